# pyright: reportPrivateImportUsage=false
"""Muon: momentum whose matrices are orthogonalised, on one process or on matrices that lie in shards on many.

Every projection of the published checkpoint is one matrix: the query, key and value projections with all their heads,
gate and up apart though they are stored as one, and every expert by itself though experts are stacked.

Source: Muon (Jordan et al., 2024, kellerjordan.github.io/posts/muon); update size of Moonlight (arXiv:2502.16982),
section 2.2; steps, momentum and update size as in the GLM-4.5 report (arXiv:2508.06471), section 2.4.
"""

from collections import defaultdict
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn

from glmcore.model.parallel.placement import Box, local_part
from glmcore.train.assignment import Stack, assign
from glmcore.train.exchange import Exchange
from glmcore.train.gradients import local_gradient
from glmcore.train.holdings import Holdings

NEWTON_SCHULZ = (3.4445, -4.7750, 2.0315)
"""Coefficients of the quintic that moves all singular values into about [0.7, 1.2]."""
NEWTON_SCHULZ_STEPS = 5
UPDATE_RMS = 0.2
"""Root mean square of a Muon update, that of a typical AdamW update."""
STACKED = {"experts.gate_up_proj": 2}
"""Projections of one stored tensor, one below the other and of one size; all other tensors hold one."""
BATCH_ELEMENTS = 1 << 26
"""Elements orthogonalised at once: 256 MiB in float32, and some four times that for what is computed on the way."""
CPU_BATCH_ELEMENTS = 1 << 17
"""The same on a CPU, where a batch that stays in the second-level cache takes 0.7 of the time of a large one."""


def orthogonalize(matrices: Tensor) -> Tensor:
    """Nearest semi-orthogonal matrix of each of `matrices` [N, A, B], roughly, in their own type.

    A matrix gets the same result bit for bit in a batch of any size.
    """
    a, b, c = NEWTON_SCHULZ
    tall = matrices.shape[-2] > matrices.shape[-1]
    x = matrices.mT if tall else matrices
    x = x / x.norm(dim=(-2, -1), keepdim=True).clamp(min=1e-7)
    for _ in range(NEWTON_SCHULZ_STEPS):
        gram = x @ x.mT
        x = torch.baddbmm(x, torch.baddbmm(gram, gram, gram, beta=b, alpha=c), x, beta=a)
    return x.mT if tall else x


def is_muon_parameter(name: str, parameter: Tensor) -> bool:
    """True for matrices other than embeddings and the output head.

    The GLM-4.5 report excepts embeddings, biases and norms; it does not speak of the output head, which follows
    Moonlight here.
    """
    return parameter.dim() >= 2 and "embed_tokens" not in name and "lm_head" not in name


class Muon:
    """Muon for named parameters of two or three dimensions, plain or DTensors of any placements.

    Momentum lies as the parameter does. No rank holds more than its shards and the matrices that it orthogonalises at
    the moment; see `glmcore.train.assignment` for who does what, and `glmcore.train.exchange` for what is sent.

    Args:
        parameters: The parameters by their global names.
        holdings: What the ranks hold of them.
        momentum: Decay of the momentum.
        weight_decay: Decoupled weight decay.
        dtype: Type of the orthogonalisation, and of what is sent for it; parameters in float64 stay in it.
    """

    def __init__(
        self,
        parameters: Mapping[str, nn.Parameter],
        holdings: Holdings,
        *,
        momentum: float,
        weight_decay: float,
        dtype: torch.dtype = torch.float32,
        batch_elements: int = BATCH_ELEMENTS,
    ) -> None:
        self.parameters = dict(parameters)
        self.decay = momentum
        self.weight_decay = weight_decay
        self.batch_elements = batch_elements
        self.momentum = {name: torch.zeros_like(parameter) for name, parameter in self.parameters.items()}
        wide = any(parameter.dtype == torch.float64 for parameter in self.parameters.values())
        self.dtype = torch.float64 if wide else dtype
        self.stacks = {name: _stack(name, parameter) for name, parameter in self.parameters.items()}
        held = {name: [_as_stack(box) for box in holdings.boxes(name)] for name in self.parameters}
        units = assign(self.stacks, held, holdings.num_peers)
        self._local = [
            (unit.name, unit.box.slices_from(held[unit.name][holdings.peer].start))
            for unit in units
            if unit.is_local and unit.owner == holdings.peer
        ]
        self.exchange: Exchange | None = None
        sent = [unit for unit in units if not unit.is_local]
        if sent and holdings.peer_group is not None:
            self.exchange = Exchange(
                sent,
                held,
                peer=holdings.peer,
                group=holdings.peer_group,
                dtype=self.dtype,
                round_elements=batch_elements,
            )

    @torch.no_grad()
    def step(self, learning_rate: float, factor: float = 1.0) -> None:
        """Update every parameter that has a gradient; gradients are used up.

        Args:
            learning_rate: Rate of this update.
            factor: What the gradients are multiplied with, above 0.
        """
        grads = {name: local_gradient(parameter) for name, parameter in self.parameters.items()}
        updates = {name: grad for name, grad in grads.items() if grad is not None}
        self._nesterov(updates, factor)
        shards = {name: self._as_stack(name, update) for name, update in updates.items()}
        self._orthogonalize([(name, shards[name][place]) for name, place in self._local if name in shards])
        if self.exchange is not None:
            self.exchange.run(shards, self._orthogonalize)
        decay = 1 - learning_rate * self.weight_decay
        by_scale: dict[float, tuple[list[Tensor], list[Tensor]]] = defaultdict(lambda: ([], []))
        for name, update in updates.items():
            parameters, changes = by_scale[UPDATE_RMS * max(self.stacks[name].matrix) ** 0.5]
            parameters.append(local_part(self.parameters[name]))
            changes.append(update)
        for scale, (parameters, changes) in by_scale.items():
            torch._foreach_mul_(parameters, decay)
            torch._foreach_add_(parameters, changes, alpha=-learning_rate * scale)

    def _nesterov(self, grads: Mapping[str, Tensor], factor: float) -> None:
        """Take the gradients into the momentum, and put the direction of Nesterov's step in their place.

        That step is `factor * grad + decay * momentum`; its size is of no account to what is made of it, so it is
        divided by `factor` and the gradients need not be multiplied.
        """
        if not grads:
            return
        momentum = [local_part(self.momentum[name]) for name in grads]
        values = list(grads.values())
        torch._foreach_mul_(momentum, self.decay)
        torch._foreach_add_(momentum, values, alpha=factor)
        torch._foreach_add_(values, momentum, alpha=self.decay / factor)

    def _as_stack(self, name: str, shard: Tensor) -> Tensor:
        return shard if shard.dim() == 3 else shard[None]

    def _orthogonalize(self, slabs: Sequence[tuple[str, Tensor]]) -> None:
        """Replace slabs [s, R, C] in place, all matrices of one shape together, as many as are allowed at once."""
        by_shape: dict[tuple[int, int], list[Tensor]] = defaultdict(list)
        on_cpu = all(slab.is_cpu for _, slab in slabs)
        limit = min(self.batch_elements, CPU_BATCH_ELEMENTS) if on_cpu else self.batch_elements
        for name, slab in slabs:
            stack = self.stacks[name]
            rows, columns = stack.matrix
            per_batch = max(1, limit // (stack.parts * rows * columns))
            by_shape[rows, columns] += [part.unflatten(1, (stack.parts, rows)) for part in slab.split(per_batch)]
        for slabs_of_shape in by_shape.values():
            for batch in _batches(slabs_of_shape, limit):
                matrices = torch.cat([slab.flatten(0, 1) for slab in batch]).to(self.dtype)
                results = orthogonalize(matrices).split([slab.shape[0] * slab.shape[1] for slab in batch])
                for slab, result in zip(batch, results, strict=True):
                    slab.copy_(result.unflatten(0, slab.shape[:2]))


def _batches(slabs: Sequence[Tensor], elements: int) -> list[list[Tensor]]:
    batches: list[list[Tensor]] = []
    room = 0
    for slab in slabs:
        if not batches or slab.numel() > room:
            batches.append([])
            room = elements
        batches[-1].append(slab)
        room -= slab.numel()
    return batches


def _stack(name: str, parameter: Tensor) -> Stack:
    shape = tuple(parameter.shape)
    parts = next((count for ending, count in STACKED.items() if name.endswith(ending)), 1)
    return Stack(shape if len(shape) == 3 else (1, *shape), parts)  # type: ignore[arg-type]


def _as_stack(box: Box) -> Box:
    return box if len(box.start) == 3 else Box((0, *box.start), (1, *box.size))

"""Muon for matrices, AdamW for the rest, as one optimiser with a state that is a flat table of tensors."""

import math
from collections import defaultdict

import torch
from torch import Tensor, nn

from glmcore.errors import CheckpointError
from glmcore.train.adamw import AdamW
from glmcore.train.config import OptimizerConfig

NEWTON_SCHULZ = (3.4445, -4.7750, 2.0315)
"""Coefficients of the quintic that moves all singular values into about [0.7, 1.2]."""
NEWTON_SCHULZ_STEPS = 5
UPDATE_RMS = 0.2
"""Root mean square of a Muon update, that of a typical AdamW update."""


def orthogonalize(matrices: Tensor) -> Tensor:
    """Nearest semi-orthogonal matrix of each of `matrices` [N, A, B], roughly.

    Source: Muon (Jordan et al., 2024); steps and coefficients as in the GLM-4.5 report, section 2.4, and Moonlight.
    """
    a, b, c = NEWTON_SCHULZ
    tall = matrices.shape[-2] > matrices.shape[-1]
    x = matrices.mT if tall else matrices
    x = x / (x.norm(dim=(-2, -1), keepdim=True) + 1e-7)
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


class Optimizer:
    """Updates all parameters of a model at once.

    Stacked experts are orthogonalised one matrix at a time, gate and up projections apart, so stacking changes no
    update.
    """

    def __init__(self, model: nn.Module, config: OptimizerConfig) -> None:
        self.config = config
        self.parameters = dict(model.named_parameters())
        self.matrices = {
            name: parameter
            for name, parameter in self.parameters.items()
            if config.matrices == "muon" and is_muon_parameter(name, parameter)
        }
        self.momentum = {name: torch.zeros_like(parameter) for name, parameter in self.matrices.items()}
        rest = {name: parameter for name, parameter in self.parameters.items() if name not in self.matrices}
        self.adam = AdamW(rest, config.adam_betas, config.weight_decay)
        self.num_updates = 0

    @torch.no_grad()
    def step(self, learning_rate: float, *, skip_above: float = math.inf) -> float:
        """Clip the gradients, update every parameter, forget the gradients.

        A parameter without a gradient (an MTP layer that was not run) is left alone.

        Args:
            learning_rate: Rate of the update.
            skip_above: With a gradient norm above it, or one that is not finite, weights and state stay.

        Returns:
            Global gradient norm before clipping.
        """
        norm = float(nn.utils.clip_grad_norm_(self.parameters.values(), self.config.max_grad_norm))
        if math.isfinite(norm) and norm <= skip_above:
            self.num_updates += 1
            self._step_muon(learning_rate)
            self.adam.step(learning_rate, self.num_updates)
        for parameter in self.parameters.values():
            parameter.grad = None
        return norm

    def _step_muon(self, learning_rate: float) -> None:
        by_shape: dict[tuple[int, int], list[tuple[str, Tensor]]] = defaultdict(list)
        momentum = self.config.momentum
        for name, parameter in self.matrices.items():
            if parameter.grad is None:
                continue
            self.momentum[name].mul_(momentum).add_(parameter.grad)
            nesterov = _as_matrices(name, parameter.grad.add(self.momentum[name], alpha=momentum))
            by_shape[nesterov.shape[-2], nesterov.shape[-1]].append((name, nesterov))
        for (rows, columns), group in by_shape.items():
            update = orthogonalize(torch.cat([matrices for _, matrices in group]))
            update *= -learning_rate * UPDATE_RMS * max(rows, columns) ** 0.5
            sizes = [len(matrices) for _, matrices in group]
            for (name, _), part in zip(group, update.split(sizes), strict=True):
                parameter = self.matrices[name]
                parameter.mul_(1 - learning_rate * self.config.weight_decay)
                parameter.add_(part.reshape(parameter.shape))

    def state_tensors(self) -> dict[str, Tensor]:
        """The whole state as named tensors, sharing memory with it."""
        tables = {"momentum": self.momentum, "mean": self.adam.mean, "square": self.adam.square}
        state = {f"{table}.{name}": tensor for table, rows in tables.items() for name, tensor in rows.items()}
        return state | {"num_updates": torch.tensor(self.num_updates)}

    @torch.no_grad()
    def load_state_tensors(self, tensors: dict[str, Tensor]) -> None:
        """Take over a state from `state_tensors`.

        Raises:
            CheckpointError: A tensor is missing, extra or misshapen.
        """
        own = self.state_tensors()
        if set(own) != set(tensors):
            raise CheckpointError(f"optimizer state differs in {min(set(own) ^ set(tensors))!r}")
        for name, tensor in tensors.items():
            if tensor.shape != own[name].shape:
                raise CheckpointError(f"optimizer state {name!r} has shape {list(tensor.shape)}")
            own[name].copy_(tensor)
        self.num_updates = int(tensors["num_updates"])


def _as_matrices(name: str, tensor: Tensor) -> Tensor:
    if name.endswith("experts.gate_up_proj"):
        tensor = tensor.unflatten(1, (2, -1))  # [E, 2, M, D]
    return tensor.reshape(-1, *tensor.shape[-2:])

"""Muon for matrices, AdamW for the rest, as one optimiser with a state that is a flat table of tensors."""

import math

import torch
import torch.distributed as dist
from torch import Tensor, nn

from glmcore.train.adamw import AdamW
from glmcore.train.config import OptimizerConfig
from glmcore.train.gradients import local_gradient
from glmcore.train.holdings import Holdings
from glmcore.train.muon import Muon, is_muon_parameter
from glmcore.train.norm import global_norm


class Optimizer:
    """Updates all parameters of a model at once, on one rank or on many together.

    Parameters may be plain tensors or DTensors on any meshes; of a pipeline a rank has only its own. What several
    ranks hold alike gets the same update on all of them.

    Args:
        model: The model, or this rank's part of it, already spread over the ranks.
        config: The rules.
        group: The processes that train it together; the default group if None. All must construct theirs.
    """

    def __init__(self, model: nn.Module, config: OptimizerConfig, group: dist.ProcessGroup | None = None) -> None:
        self.config = config
        self.parameters = dict(model.named_parameters())
        self.holdings = Holdings(self.parameters, group)
        matrices = {
            name: parameter
            for name, parameter in self.parameters.items()
            if config.matrices == "muon" and is_muon_parameter(name, parameter)
        }
        rest = {name: parameter for name, parameter in self.parameters.items() if name not in matrices}
        self.muon = Muon(
            matrices,
            self.holdings,
            momentum=config.momentum,
            weight_decay=config.weight_decay,
            dtype=getattr(torch, config.newton_schulz),
        )
        self.adam = AdamW(rest, config.adam_betas, config.weight_decay)
        self.num_updates = 0

    @torch.no_grad()
    def gradient_norm(self) -> float:
        """Global norm of the gradients, the same on all ranks, which must all call."""
        self._agree_on_missing()
        gradients = {name: local_gradient(parameter) for name, parameter in self.parameters.items()}
        return global_norm({name: grad for name, grad in gradients.items() if grad is not None}, self.holdings)

    @torch.no_grad()
    def step(self, learning_rate: float, *, skip_above: float = math.inf) -> float:
        """Clip the gradients, update every parameter, forget the gradients.

        A parameter that has no gradient on any rank (an MTP layer that was not run) is left alone.

        Args:
            learning_rate: Rate of the update.
            skip_above: With a gradient norm above it, or one that is not finite, weights and state stay.

        Returns:
            Global gradient norm before clipping.
        """
        norm = self.gradient_norm()
        if math.isfinite(norm) and norm <= skip_above:
            factor = min(1.0, self.config.max_grad_norm / (norm + 1e-6))
            self.num_updates += 1
            self.muon.step(learning_rate, factor)
            self.adam.step(learning_rate, self.num_updates, factor)
        for parameter in self.parameters.values():
            parameter.grad = None
        return norm

    def _agree_on_missing(self) -> None:
        """Give a zero gradient to what has one on another rank only, such as experts that got no token here."""
        group = self.holdings.peer_group
        if group is None:
            return
        names = sorted(self.parameters)
        has_gradient = [self.parameters[name].grad is not None for name in names]
        device = next(iter(self.parameters.values())).device
        somewhere = torch.tensor(has_gradient, dtype=torch.uint8, device=device)
        dist.all_reduce(somewhere, dist.ReduceOp.MAX, group=group)
        for name, here, there in zip(names, has_gradient, somewhere.tolist(), strict=True):
            if there and not here:
                self.parameters[name].grad = torch.zeros_like(self.parameters[name])

    def state_tensors(self) -> dict[str, Tensor]:
        """The whole state as named tensors, sharing memory with it; those of a DTensor are DTensors laid out alike."""
        tables = {"momentum": self.muon.momentum, "mean": self.adam.mean, "square": self.adam.square}
        state = {f"{table}.{name}": tensor for table, rows in tables.items() for name, tensor in rows.items()}
        return state | {"num_updates": torch.tensor(self.num_updates)}

"""AdamW for named parameters, by PyTorch's fused kernel on the part of each that this process holds."""

from collections import defaultdict
from collections.abc import Mapping

import torch
from torch import Tensor, nn

from glmcore.model.parallel.placement import local_part
from glmcore.train.gradients import local_gradient

EPS = 1e-8


class AdamW:
    """Adam with decoupled weight decay for matrices and none for vectors; Source: arXiv:1711.05101, algorithm 2.

    The kernel computes whole vectors of 8 or 16 elements with fused multiply-add and what is left over without: cut
    into shards, a tensor gets the same updates bit for bit where every shard is a multiple of 16 elements, and else
    to one unit in the last place of the second moment.
    """

    def __init__(self, parameters: Mapping[str, nn.Parameter], betas: tuple[float, float], weight_decay: float) -> None:
        self.parameters = dict(parameters)
        self.betas = betas
        self.weight_decay = weight_decay
        self.mean = {name: torch.zeros_like(parameter) for name, parameter in self.parameters.items()}
        self.square = {name: torch.zeros_like(parameter) for name, parameter in self.parameters.items()}

    @torch.no_grad()
    def step(self, learning_rate: float, num_updates: int, factor: float = 1.0) -> None:
        """Update every parameter that has a gradient.

        Args:
            learning_rate: Rate of this update.
            factor: What the gradients are multiplied with, above 0.
            num_updates: Updates so far, this one included, for the correction of the moments' start at zero.
        """
        # The kernel wants tensors of one type on one device, and one weight decay.
        alike: dict[tuple[torch.dtype, torch.device, bool], list[list[Tensor]]] = defaultdict(lambda: [[], [], [], []])
        for name, parameter in self.parameters.items():
            grad = local_gradient(parameter)
            if grad is None or not grad.numel():
                continue
            row = (local_part(parameter), grad, local_part(self.mean[name]), local_part(self.square[name]))
            for column, tensor in zip(alike[parameter.dtype, grad.device, parameter.dim() >= 2], row, strict=True):
                column.append(tensor)
        for (_, device, is_matrix), (parameters, grads, means, squares) in alike.items():
            torch._fused_adamw_(  # pyright: ignore[reportPrivateImportUsage]
                parameters,
                grads,
                means,
                squares,
                [],  # the largest second moments, of AMSGrad
                [torch.tensor(float(num_updates), device=device)] * len(parameters),
                lr=learning_rate,
                beta1=self.betas[0],
                beta2=self.betas[1],
                weight_decay=self.weight_decay if is_matrix else 0.0,
                eps=EPS,
                amsgrad=False,
                maximize=False,
                grad_scale=None if factor == 1.0 else torch.tensor(1 / factor, device=device),
            )

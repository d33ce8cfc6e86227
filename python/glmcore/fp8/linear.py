"""Layers whose weights are held in block-wise FP8 and whose inputs are quantised as they come.

They take half the memory of bfloat16, and are for sampling: they have no gradient. On a GPU the products are FP8 ones;
on the CPU the same numbers come from float32 ones, which is for tests and not for speed.

Shapes: T tokens, R routed rows, D hidden size, E experts, M expert width, P that width in whole blocks.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from typing_extensions import Self

from glmcore.errors import Fp8Error
from glmcore.fp8 import ops
from glmcore.fp8.cuda import BLOCK
from glmcore.fp8.held import HeldWeight
from glmcore.fp8.many import quantize_many
from glmcore.fp8.quantize import scales_shape


class Float8Linear(nn.Module):
    """`x @ weight.T + bias` with an FP8 weight; buffers are named as in published FP8 checkpoints."""

    weight: Tensor  # float8_e4m3fn [N, K]
    weight_scale_inv: Tensor  # float32 [ceil(N / 128), ceil(K / 128)]

    def __init__(self, weight: Tensor, weight_scale_inv: Tensor, bias: Tensor | None = None) -> None:
        """Hold codes and scales as a checkpoint has them.

        Raises:
            Fp8Error: They do not fit each other.
        """
        super().__init__()
        _check_pair(weight, weight_scale_inv)
        self.register_buffer("weight", weight.contiguous())
        self.register_buffer("weight_scale_inv", weight_scale_inv.contiguous())
        self.bias = None if bias is None else nn.Parameter(bias.detach(), requires_grad=False)

    @classmethod
    def from_linear(cls, linear: nn.Linear) -> Self:
        """Quantise a layer.

        Raises:
            Fp8Error: Its weight holds NaN or infinity.
        """
        [(q, scale)] = quantize_many([linear.weight.detach()])
        return cls(q, scale, linear.bias)

    @property
    def held(self) -> HeldWeight:
        """The weight, to be replaced."""
        return HeldWeight(self.weight, self.weight_scale_inv)

    def forward(self, x: Tensor) -> Tensor:
        """Of any leading dimensions; in the type of `x`."""
        y = ops.fp8_linear(x.reshape(-1, x.shape[-1]), self.weight.view(torch.uint8), self.weight_scale_inv)
        y = y.view(*x.shape[:-1], -1)
        return y if self.bias is None else y + self.bias


class Float8Experts(nn.Module):
    """E SwiGLU experts as two stacks of FP8 matrices.

    `gate_up_proj` [E, 2P, D] holds the gate rows, from row P on the up rows; each of the two has M rows and then zeros,
    so that its blocks are those that it has in a checkpoint, alone. `down_proj` is [E, D, M].
    """

    gate_up_proj: Tensor
    gate_up_proj_scale_inv: Tensor
    down_proj: Tensor
    down_proj_scale_inv: Tensor

    def __init__(self, num_experts: int, hidden_size: int, width: int, device: torch.device | str = "cpu") -> None:
        """Make experts of zeros; `held` is how they become others."""
        super().__init__()
        self.width = width
        self.padded_width = -(-width // BLOCK) * BLOCK
        shapes = {
            "gate_up_proj": (num_experts, 2 * self.padded_width, hidden_size),
            "down_proj": (num_experts, hidden_size, width),
        }
        for name, shape in shapes.items():
            codes = torch.zeros(shape, dtype=torch.uint8, device=device).view(torch.float8_e4m3fn)
            self.register_buffer(name, codes)
            self.register_buffer(f"{name}_scale_inv", torch.ones(scales_shape(shape, (BLOCK, BLOCK)), device=device))

    @classmethod
    def from_stacks(cls, gate_up_proj: Tensor, down_proj: Tensor) -> Self:
        """Quantise stacks [E, 2M, D] and [E, D, M] in high precision: on a GPU by one launch.

        Raises:
            Fp8Error: They hold NaN or infinity.
        """
        num_experts, hidden_size, width = down_proj.shape
        experts = cls(num_experts, hidden_size, width, down_proj.device)
        held = experts.held
        matrices: list[Tensor] = []
        for gate_up, down in zip(gate_up_proj.detach(), down_proj.detach(), strict=True):
            matrices += [*gate_up.chunk(2), down]
        quantize_many(matrices, out=[(weight.q, weight.scale_inv) for weight in held.values()])
        return experts

    @property
    def held(self) -> dict[str, HeldWeight]:
        """Every matrix to be replaced, by its name in a checkpoint: `E.gate_proj`, `E.up_proj`, `E.down_proj`."""
        weights: dict[str, HeldWeight] = {}
        blocks = self.padded_width // BLOCK
        for e in range(len(self.down_proj)):
            q, scale = self.gate_up_proj[e], self.gate_up_proj_scale_inv[e]
            end = self.padded_width + self.width
            weights[f"{e}.gate_proj"] = HeldWeight(q[: self.width], scale[:blocks])
            weights[f"{e}.up_proj"] = HeldWeight(q[self.padded_width : end], scale[blocks:])
            weights[f"{e}.down_proj"] = HeldWeight(self.down_proj[e], self.down_proj_scale_inv[e])
        return weights

    def forward(self, rows: Tensor, ends: Tensor) -> Tensor:
        """Apply expert e to rows `ends[e - 1]` up to `ends[e]` of `rows` [R, D]; `ends` is int32 [E]."""
        gate_up = _grouped(rows, self.gate_up_proj, self.gate_up_proj_scale_inv, ends)
        gate, up = gate_up[:, : self.width], gate_up[:, self.padded_width : self.padded_width + self.width]
        return _grouped(F.silu(gate) * up, self.down_proj, self.down_proj_scale_inv, ends)


def _grouped(rows: Tensor, q: Tensor, scale: Tensor, ends: Tensor) -> Tensor:
    return ops.fp8_grouped_linear(rows, q.view(torch.uint8), scale, ends)


def _check_pair(q: Tensor, scale: Tensor) -> None:
    grid = scales_shape(tuple(q.shape), (BLOCK, BLOCK)) if q.dim() == 2 else ()
    if q.dtype != torch.float8_e4m3fn or scale.dtype != torch.float32 or tuple(scale.shape) != grid:
        raise Fp8Error(
            "a weight must be a float8_e4m3fn matrix with float32 scales of its 128x128 blocks, "
            f"got {q.dtype} {list(q.shape)} and {scale.dtype} {list(scale.shape)}"
        )

"""A few steps of training on any layout of ranks, for comparison with the same steps in one process."""

import numpy as np
import torch
from conftest import TINY
from torch.distributed.tensor import DTensor

from glmcore.model.blocks import Checkpointing
from glmcore.model.config import GlmConfig
from glmcore.model.glm import Glm
from glmcore.model.parallel.apply import parallelize
from glmcore.model.parallel.config import ParallelConfig
from glmcore.model.parallel.ranks import Ranks
from glmcore.packing import PackedBatch
from glmcore.train.config import OptimizerConfig
from glmcore.train.loss import IGNORED
from glmcore.train.optim import Optimizer
from glmcore.train.schedule import LossWeights
from glmcore.train.step import train_step

ROW = 24
"""Tokens of a row."""


def row(index: int, vocab_size: int) -> PackedBatch:
    """One row of two random documents."""
    generator = np.random.default_rng(index)
    first = int(generator.integers(5, ROW - 5))
    ids = generator.integers(0, vocab_size, ROW).astype(np.int32)
    labels = np.append(ids[1:], IGNORED).astype(np.int32)
    labels[first - 1] = IGNORED
    positions = np.concatenate([np.arange(first), np.arange(ROW - first)]).astype(np.int32)
    bounds = np.array([0, first, ROW], np.int32)
    return PackedBatch(ids, labels, positions, np.ones(ROW, np.uint8), bounds, max(first, ROW - first))


def rows_of_step(step: int, num_rows: int, vocab_size: int) -> list[PackedBatch]:
    """A step's rows, each a micro-batch."""
    return [row(step * num_rows + index, vocab_size) for index in range(num_rows)]


def train(
    rank: int,
    parallel: dict[str, int],
    *,
    num_steps: int = 3,
    num_rows: int = 2,
    dtype: torch.dtype = torch.float32,
    max_grad_norm: float = 1e9,
    matrices: str = "muon",
    compute: str = "float32",
    checkpointing: Checkpointing = "none",
    **fields: object,
) -> tuple[list[tuple[float, float, float]], dict[str, np.ndarray]]:
    """Losses, MTP losses and gradient norms of some steps, and the weights and router biases here after them.

    Args:
        rank: Of this process.
        parallel: Fields of `ParallelConfig`.
        num_steps: Optimiser steps.
        num_rows: Rows of a step on all ranks, each a micro-batch.
        dtype: Of the weights.
        max_grad_norm: Where clipping begins.
        matrices: Rule of the optimiser for matrices.
        compute: Type of forward and backward passes; with bfloat16 a process on its own needs a process group.
        checkpointing: Of activations.
        fields: Fields of the model other than those of `TINY`.
    """
    low = None if compute == "float32" else getattr(torch, compute)
    ranks = Ranks(ParallelConfig(**parallel), needs_mesh=low is not None)
    config = GlmConfig(**{**TINY, **fields})
    with torch.device("meta"):
        model = Glm(config).to(dtype)
    model = parallelize(model, ranks, compute_dtype=low, checkpointing=checkpointing)
    model = model.to_empty(device="cpu").init_weights(3)
    optimizer = Optimizer(model, OptimizerConfig(matrices=matrices, max_grad_norm=max_grad_norm))
    data = ranks.axis("data")
    share = num_rows // data.size
    figures = []
    for step in range(num_steps):
        rows = rows_of_step(step, num_rows, config.vocab_size)[data.rank * share : (data.rank + 1) * share]
        result = train_step(model, rows, LossWeights(), ranks)
        figures.append((result.loss, result.mtp_loss, optimizer.step(1e-2)))
    return figures, {name: whole(tensor) for name, tensor in model.state_dict().items()}


def train_all(rank: int, cases: list[tuple[dict[str, int], dict]]) -> list:
    """`train` for each case: fields of `ParallelConfig` and the named arguments."""
    return [train(rank, parallel, **arguments) for parallel, arguments in cases]


def whole(tensor: torch.Tensor) -> np.ndarray:
    """All of a tensor, wherever its parts are."""
    tensor = tensor.detach()
    return (tensor.full_tensor() if isinstance(tensor, DTensor) else tensor).numpy()

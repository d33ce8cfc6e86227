"""What the ranks of a pipeline run in tests; the same functions run it in one process."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from conftest import TINY, batch_of
from torch.distributed.tensor import DTensor

from glmcore.errors import ConfigError
from glmcore.model.blocks import Checkpointing
from glmcore.model.config import GlmConfig
from glmcore.model.glm import Glm
from glmcore.model.parallel.apply import parallelize
from glmcore.model.parallel.config import ParallelConfig
from glmcore.model.parallel.ranks import Ranks
from glmcore.packing import PackedBatch
from glmcore.train.checkpoint import CheckpointStore, Progress
from glmcore.train.config import CheckpointConfig, OptimizerConfig
from glmcore.train.optim import Optimizer
from glmcore.train.schedule import LossWeights
from glmcore.train.step import evaluate, train_step


@dataclass(frozen=True)
class Case:
    """A model, and how it is trained for some steps."""

    parallel: dict[str, Any]
    model: dict[str, Any] = field(default_factory=dict)
    max_grad_norm: float = 1e9
    weights: LossWeights = field(default_factory=LossWeights)
    dtype: torch.dtype = torch.float64
    num_micro_batches: int = 4
    num_steps: int = 3
    compute_dtype: torch.dtype | None = None
    checkpointing: Checkpointing = "none"


@dataclass(frozen=True)
class Trace:
    """What a run was."""

    losses: list[tuple[float, float, float]]
    """Loss, MTP loss and gradient norm of each step."""
    loads: list[np.ndarray]
    weights: dict[str, np.ndarray]
    """What this rank holds of the model after the last step."""
    validation: list[float]
    """Loss on other batches before the first step and after the last."""


def batches_of(step: int, count: int) -> list[PackedBatch]:
    """Micro-batches of equal size and unequal documents."""
    lengths = [[12, 9, 3], [24], [1, 20, 3], [8, 8, 8]]
    return [batch_of(lengths[(step + i) % 4], seed=100 * step + i) for i in range(count)]


def train(case: Case) -> Trace:
    """Some optimiser steps, on the ranks of the case or in this process where it has one rank."""
    ranks = Ranks(ParallelConfig(**case.parallel))
    model = model_of(case, ranks)
    optimizer = Optimizer(model, OptimizerConfig(max_grad_norm=case.max_grad_norm))
    data = ranks.axis("data")
    held_out = [batch_of([9, 15], seed=7), batch_of([20, 4], seed=8), batch_of([6], seed=9)]
    validation = [evaluate(model, held_out, ranks)]
    losses, loads = [], []
    for step in range(case.num_steps):
        batches = batches_of(step, case.num_micro_batches)[data.rank :: data.size]
        result = train_step(model, batches, case.weights, ranks)
        losses.append((result.loss, result.mtp_loss, optimizer.step(0.01)))
        loads.append(result.routers.share.numpy())
    validation.append(evaluate(model, held_out, ranks))
    return Trace(losses, loads, weights_of(model), validation)


def model_of(case: Case, ranks: Ranks) -> Glm:
    """The model with fresh weights, or what this rank has of it."""
    with torch.device("meta"):
        whole = Glm(GlmConfig(**TINY | case.model)).to(case.dtype)
    model = parallelize(whole, ranks, compute_dtype=case.compute_dtype, checkpointing=case.checkpointing)
    return model.to_empty(device="cpu").init_weights(0)


def weights_of(model: Glm) -> dict[str, np.ndarray]:
    """All that this rank has a part of."""
    return {
        name: (tensor.full_tensor() if isinstance(tensor, DTensor) else tensor).numpy()
        for name, tensor in model.state_dict().items()
    }


def train_with_another_split(rank: int, cases: list[Case], directory: Path) -> Trace:
    """One step with each case, each from the checkpoint of the one before."""
    for number, case in enumerate(cases):
        ranks = Ranks(ParallelConfig(**case.parallel))
        model = model_of(case, ranks)
        optimizer = Optimizer(model, OptimizerConfig(max_grad_norm=case.max_grad_norm))
        store = CheckpointStore(directory, CheckpointConfig(keep_last=9))
        found = store.latest()
        if found is not None:
            store.load(found, model, optimizer)
        result = train_step(model, batches_of(number, case.num_micro_batches), case.weights, ranks)
        figures = (result.loss, result.mtp_loss, optimizer.step(0.01))
        store.save(Progress(0, number + 1), model, optimizer)
        store.wait()
    return Trace([figures], [result.routers.share.numpy()], weights_of(model), [])


def train_all(rank: int, cases: list[Case]) -> list[Trace]:
    """Each case in turn; for `run_ranks`."""
    return [train(case) for case in cases]


def odd_steps(rank: int) -> tuple[list[str], float]:
    """What steps that a pipeline cannot run are answered with; how far two equal steps are from twice the gradients."""
    ranks = Ranks(ParallelConfig(pipeline=2))
    model = parallelize(Glm(GlmConfig(**TINY)).init_weights(0).double(), ranks)
    steady = LossWeights(bias_update_rate=0.0)
    train_step(model, batches_of(0, 2), steady, ranks)
    once = {name: weight.grad.clone() for name, weight in model.named_parameters() if weight.grad is not None}
    train_step(model, batches_of(0, 2), steady, ranks)
    twice = dict(model.named_parameters())
    distance = max(float((twice[name].grad - 2 * grad).abs().max()) for name, grad in once.items())
    messages = []
    for lengths in ([[8], [8], [9]], [[8]]):
        try:
            train_step(model, [batch_of(row) for row in lengths], LossWeights(), ranks)
        except ConfigError as error:
            messages.append(str(error))
    return messages, distance

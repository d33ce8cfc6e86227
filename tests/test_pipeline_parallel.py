"""Pipelines of gloo processes against one process that holds the whole model."""

from typing import Any

import numpy as np
import torch
from conftest import TINY
from distributed import run_ranks


from glmcore.model.config import GlmConfig
from glmcore.model.glm import Glm
from glmcore.model.parallel.config import ParallelConfig
from glmcore.model.parallel.pipeline import PipelinedGlm
from glmcore.model.parallel.ranks import Ranks
from glmcore.packing import PackedBatch
from glmcore.train.config import OptimizerConfig
from glmcore.train.optim import Optimizer
from glmcore.train.step import train_step

NUM_STEPS = 3


def steps_of(num_micro_batches: int) -> list[list[PackedBatch]]:
    """Micro-batches of equal size and unequal documents, for every step."""
    lengths = [[12, 9, 3], [24], [1, 20, 3], [8, 8, 8]]
    return [
        [batch_of(lengths[(step + i) % 4], seed=10 * step + i) for i in range(num_micro_batches)]
        for step in range(NUM_STEPS)
    ]


def train(parallel: dict[str, Any], fields: dict[str, Any], num_micro_batches: int, dtype: str, clip: float) -> dict:
    """Some optimiser steps; figures of each and the weights after them."""
    ranks = Ranks(ParallelConfig(**parallel))
    config = GlmConfig(**TINY | fields)
    model = PipelinedGlm(config, ranks) if ranks.config.pipeline > 1 else Glm(config)
    model.init_weights(0).to(getattr(torch, dtype))
    optimizer = Optimizer(model, OptimizerConfig(max_grad_norm=clip))
    results = []
    for batches in steps_of(num_micro_batches):
        result = train_step(model, batches, stage(), ranks)
        results.append((result.loss, result.mtp_loss, optimizer.step(0.01), result.load.numpy()))
    return {"results": results, "state": {name: tensor.numpy() for name, tensor in model.state_dict().items()}}


def on_rank(rank: int, *args: Any) -> dict:
    return train(*args)


if __name__ == "__main__":
    import time

    for pp, extra, nmb, fields in (
        (2, {}, 4, {"num_nextn_predict_layers": 0}),
        (2, {}, 4, {}),
        (2, {"pipeline_schedule": "gpipe"}, 1, {}),
        (2, {"pipeline_schedule": "interleaved", "stages_per_rank": 2}, 4, {"num_hidden_layers": 5}),
        (4, {}, 4, {"num_hidden_layers": 5, "tie_word_embeddings": True}),
    ):
        alone = train({}, fields, nmb, "float32", 1e9)
        t = time.time()
        out = run_ranks(pp, on_rank, {"pipeline": pp, **extra}, fields, nmb, "float32", 1e9)
        print(pp, extra, fields, time.time() - t)
        for a, b in zip(alone["results"], out[0]["results"]):
            print(a[:3], b[:3], np.array_equal(a[3], b[3]))
        bad = []
        for o in out:
            for n, w in o["state"].items():
                if not np.array_equal(w, alone["state"][n]):
                    bad.append((n, float(abs(w - alone["state"][n]).max())))
        print(len(bad), bad[:6])

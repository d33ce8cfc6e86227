"""What a pipeline costs: a training step of a small model in one process and in pipelines of gloo processes.

CPU time of all ranks together over that of one process (1.00 is a pipeline for nothing), that of the slowest rank over
the mean (how even the stages are), both of the fastest of some steps; and what the first and the last rank keep at most
for the backward pass, whose order the schedule decides.

    python benches/pipeline_parallel.py
    python benches/pipeline_parallel.py --micro-batches 16
"""

import argparse
import os
import socket
import time
from typing import Any

import numpy as np
import torch
import torch.multiprocessing as mp

from glmcore.model.config import GlmConfig
from glmcore.model.glm import Glm
from glmcore.model.parallel.apply import parallelize
from glmcore.model.parallel.config import ParallelConfig
from glmcore.model.parallel.ranks import Ranks
from glmcore.packing import PackedBatch
from glmcore.train.schedule import LossWeights
from glmcore.train.step import train_step

LAYOUTS: dict[str, dict[str, Any]] = {
    "one process": {},
    "2 stages, 1f1b": {"pipeline": 2},
    "2 stages, gpipe": {"pipeline": 2, "pipeline_schedule": "gpipe"},
    "2 x 2 stages, interleaved": {"pipeline": 2, "pipeline_schedule": "interleaved", "stages_per_rank": 2},
    "4 stages, 1f1b": {"pipeline": 4},
}
NUM_TOKENS, DOCUMENT = 512, 128
REPEATS = 2


class Kept:
    """Bytes that autograd keeps at the moment, each storage once, and the most there were."""

    def __init__(self, weights: set[int]) -> None:
        self.weights = weights
        self.count: dict[int, int] = {}
        self.now = self.most = 0

    def pack(self, tensor: torch.Tensor) -> "Holder | torch.Tensor":
        """In place of a kept tensor, something that says when it is no longer kept."""
        return tensor if tensor.untyped_storage().data_ptr() in self.weights else Holder(self, tensor)


class Holder:
    """A kept tensor."""

    def __init__(self, kept: Kept, tensor: torch.Tensor) -> None:
        self.kept, self.tensor, self.key = kept, tensor, tensor.untyped_storage().data_ptr()
        kept.count[self.key] = kept.count.get(self.key, 0) + 1
        if kept.count[self.key] == 1:
            kept.now += tensor.untyped_storage().nbytes()
            kept.most = max(kept.most, kept.now)

    def __del__(self) -> None:
        self.kept.count[self.key] -= 1
        if not self.kept.count[self.key]:
            self.kept.now -= self.tensor.untyped_storage().nbytes()


def unpack(kept: Holder | torch.Tensor) -> torch.Tensor:
    """The tensor itself."""
    return kept.tensor if isinstance(kept, Holder) else kept


def batch_of(seed: int, vocab_size: int) -> PackedBatch:
    """Random documents of one length."""
    ids = np.random.default_rng(seed).integers(0, vocab_size, NUM_TOKENS).astype(np.int32)
    bounds = np.arange(0, NUM_TOKENS + 1, DOCUMENT, dtype=np.int32)
    positions = np.tile(np.arange(DOCUMENT, dtype=np.int32), NUM_TOKENS // DOCUMENT)
    return PackedBatch(ids, np.roll(ids, -1), positions, np.ones(NUM_TOKENS, np.uint8), bounds, DOCUMENT)


def run(rank: int, parallel: dict[str, Any], port: int, num_micro_batches: int, results) -> None:
    """Steps of one rank; puts its CPU time of the fastest and the bytes kept."""
    config = ParallelConfig(**parallel)
    size = str(config.num_ranks)
    os.environ.update(
        RANK=str(rank), WORLD_SIZE=size, MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port), LOCAL_RANK=str(rank)
    )
    torch.set_num_threads(1)
    ranks = Ranks(config)
    with torch.device("meta"):
        model = Glm(
            GlmConfig(
                vocab_size=2048, hidden_size=256, intermediate_size=768, num_hidden_layers=10, num_attention_heads=8,
                num_key_value_heads=2, head_dim=32, n_routed_experts=8, num_experts_per_tok=2,
                moe_intermediate_size=192, max_position_embeddings=NUM_TOKENS, eos_token_id=[1], pad_token_id=1,
            )
        )  # fmt: skip
    model = parallelize(model, ranks).to_empty(device="cpu").init_weights(0)
    batches = [batch_of(seed, model.config.vocab_size) for seed in range(num_micro_batches)]
    kept = Kept({parameter.untyped_storage().data_ptr() for parameter in model.parameters()})
    with torch.autograd.graph.saved_tensors_hooks(kept.pack, unpack):
        train_step(model, batches, LossWeights(), ranks)  # also connects the ranks
    best = float("inf")
    for _ in range(REPEATS):
        started = time.process_time()
        train_step(model, batches, LossWeights(), ranks)
        best = min(best, time.process_time() - started)
    results.put((rank, best, kept.most / 2**20))
    if config.num_ranks > 1:
        torch.distributed.barrier()
        torch.distributed.destroy_process_group()


def measure(parallel: dict[str, Any], num_micro_batches: int) -> list[tuple[int, float, float]]:
    """What each rank of a layout has put, rank 0 first."""
    context = mp.get_context("spawn")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    results = context.Queue()
    num_ranks = ParallelConfig(**parallel).num_ranks
    mp.spawn(run, (parallel, port, num_micro_batches, results), nprocs=num_ranks)
    return sorted(results.get() for _ in range(num_ranks))


def main() -> None:
    """Print a line for each layout."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--micro-batches", type=int, default=8, help="of a step, %(default)s by default")
    args = parser.parse_args()
    print(f"{args.micro_batches} micro-batches of {NUM_TOKENS} tokens")
    alone = None
    for name, parallel in LAYOUTS.items():
        ranks = measure(parallel, args.micro_batches)
        seconds = [best for _, best, _ in ranks]
        alone = alone or seconds[0]
        print(
            f"  {name:<26} {sum(seconds):6.2f} CPU s, {sum(seconds) / alone:.2f} of one process; "
            f"slowest rank {max(seconds) * len(seconds) / sum(seconds):.2f} of the mean; "
            f"kept {ranks[0][2]:.0f} and {ranks[-1][2]:.0f} MiB"
        )


if __name__ == "__main__":
    main()

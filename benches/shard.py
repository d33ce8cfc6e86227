"""What it costs to spread a step over ranks: a training step of a small model on one process and on gloo processes.

CPU time of all ranks together over that of one process (1.00 is a layout for nothing), of the fastest of some steps
with the optimiser, and the weights and optimiser state that a rank holds. All layouts train on the same rows.

    python benches/shard.py
"""

import os
import socket
import time
from typing import Any

import numpy as np
import torch
import torch.multiprocessing as mp
from torch.distributed.tensor import DTensor

from glmcore.model.config import GlmConfig
from glmcore.model.glm import Glm
from glmcore.model.parallel.apply import parallelize
from glmcore.model.parallel.config import ParallelConfig
from glmcore.model.parallel.ranks import Ranks
from glmcore.packing import PackedBatch
from glmcore.train.config import OptimizerConfig
from glmcore.train.optim import Optimizer
from glmcore.train.schedule import LossWeights
from glmcore.train.step import train_step

LAYOUTS: dict[str, dict[str, int]] = {
    "one process": {},
    "data=2": {"data": 2},
    "data=2, replicas=2": {"data": 2, "replicas": 2},
    "data=2, expert=2": {"data": 2, "expert": 2},
    "tensor=2": {"tensor": 2},
}
NUM_TOKENS, DOCUMENT, NUM_ROWS, REPEATS = 1024, 256, 2, 3


def batch_of(seed: int, vocab_size: int) -> PackedBatch:
    """Random documents of one length."""
    ids = np.random.default_rng(seed).integers(0, vocab_size, NUM_TOKENS).astype(np.int32)
    bounds = np.arange(0, NUM_TOKENS + 1, DOCUMENT, dtype=np.int32)
    positions = np.tile(np.arange(DOCUMENT, dtype=np.int32), NUM_TOKENS // DOCUMENT)
    return PackedBatch(ids, np.roll(ids, -1), positions, np.ones(NUM_TOKENS, np.uint8), bounds, DOCUMENT)


def run(rank: int, parallel: dict[str, int], port: int, results: Any) -> None:
    """Steps of one rank; puts its CPU time of the fastest and the bytes that it holds."""
    config = ParallelConfig(**parallel)
    os.environ.update(RANK=str(rank), LOCAL_RANK=str(rank), WORLD_SIZE=str(config.num_ranks))
    os.environ.update(MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port))
    torch.set_num_threads(1)
    ranks = Ranks(config)
    with torch.device("meta"):
        model = Glm(
            GlmConfig(
                vocab_size=4096, hidden_size=256, intermediate_size=768, num_hidden_layers=6, num_attention_heads=8,
                num_key_value_heads=2, head_dim=32, n_routed_experts=16, num_experts_per_tok=2,
                moe_intermediate_size=192, max_position_embeddings=NUM_TOKENS, eos_token_id=[1], pad_token_id=1,
            )
        )  # fmt: skip
    model = parallelize(model, ranks).to_empty(device="cpu").init_weights(0)
    optimizer = Optimizer(model, OptimizerConfig())
    data = ranks.axis("data")
    rows = [batch_of(seed, model.config.vocab_size) for seed in range(NUM_ROWS)][data.rank :: data.size]
    times = []
    for _ in range(REPEATS + 1):  # the first also connects the ranks
        started = time.process_time()
        train_step(model, rows, LossWeights(), ranks)
        optimizer.step(1e-3)
        times.append(time.process_time() - started)
    tensors = [*model.parameters(), *optimizer.state_tensors().values()]
    held = sum((t.to_local() if isinstance(t, DTensor) else t).numel() * t.element_size() for t in tensors)
    results.put((rank, min(times[1:]), held / 2**20))
    if config.num_ranks > 1:
        torch.distributed.barrier()
        torch.distributed.destroy_process_group()


def measure(parallel: dict[str, int]) -> list[tuple[int, float, float]]:
    """What each rank of a layout has put, rank 0 first."""
    context = mp.get_context("spawn")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    results = context.Queue()
    number = ParallelConfig(**parallel).num_ranks
    processes = [context.Process(target=run, args=(rank, parallel, port, results)) for rank in range(number)]
    for process in processes:
        process.start()
    values = sorted(results.get(timeout=300) for _ in processes)
    for process in processes:
        process.join()
    return values


def main() -> None:
    """Print the table."""
    print("| layout | CPU time of all ranks, s | over one process | weights and optimiser on a rank, MiB |")
    print("| --- | --- | --- | --- |")
    alone = 0.0
    for name, parallel in LAYOUTS.items():
        ranks = measure(parallel)
        total = sum(seconds for _, seconds, _ in ranks)
        alone = alone or total
        print(f"| {name} | {total:.2f} | {total / alone:.2f} | {max(held for *_, held in ranks):.0f} |", flush=True)


if __name__ == "__main__":
    main()

"""Reading random samples beside a numpy loop and Megatron, and the loader beside a training step.

The first table reads random samples of 4,097 tokens, 8 a batch, from one file of int32 tokens in the page cache: with
`SampleStream` from a shard and from Megatron's `.bin`, with a loop over `numpy.memmap` that knows where samples are,
and with megatron-core's `IndexedDataset` as its `GPTDataset` reads it, where `--megatron` names a folder that has the
package (megatron needs torch). All on one thread, interleaved, medians of CPU time. MB/s counts the 4 bytes of each
token once.

The second table is the rate of `Loader` with labels, positions, masks and document bounds, beside training steps of the
smallest model that there is a recipe for.

    python benches/loader.py
    python benches/loader.py --megatron /path/to/site-packages --json
"""

import argparse
import json
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from packing import show

from glmcore.data.loader import PackedRows, Source
from glmcore.data.megatron import shards_to_megatron
from glmcore.data.prefetch import Loader
from glmcore.data.samples import SampleStream
from glmcore.data.shards import ShardWriter, TokenShards

VOCAB_SIZE = 151_552
LENGTH = 4096
ROWS = 8
BATCHES = 200
REPEATS = 7


def write(folder: Path, num_tokens: int) -> tuple[TokenShards, TokenShards]:
    """The same documents of web-like lengths in both formats."""
    generator = np.random.default_rng(0)
    written = 0
    with ShardWriter(folder / "web.tokens", VOCAB_SIZE) as writer:
        while written < num_tokens:
            length = max(1, int(generator.lognormal(np.log(600), 1.151)))
            writer.append(generator.integers(0, VOCAB_SIZE, length, np.int32))
            written += length
    shards = TokenShards.open(folder / "web.tokens")
    shards_to_megatron(shards, folder / "web")
    return shards, TokenShards.open_megatron(folder / "web", VOCAB_SIZE)


def memmap_loop(folder: Path) -> Callable[[int], Any]:
    """Samples at random places, copied one by one into a batch."""
    tokens = np.memmap(folder / "web.bin", np.int32, mode="r")
    order = np.random.default_rng(0).permutation((len(tokens) - 1) // LENGTH)
    batch = np.empty((ROWS, LENGTH + 1), np.int32)

    def read(step: int) -> None:
        for row in range(ROWS):
            first = order[(step * ROWS + row) % len(order)] * LENGTH
            batch[row] = tokens[first : first + LENGTH + 1]

    return read


def megatron(folder: Path) -> Callable[[int], Any]:
    """Samples as `GPTDataset._query_document_sample_shuffle_indices` reads them, stacked into a batch."""
    from megatron.core.datasets.indexed_dataset import IndexedDataset  # pyright: ignore[reportMissingImports]

    dataset = IndexedDataset(str(folder / "web"))
    generator = np.random.default_rng(0)
    documents = generator.permutation(len(dataset))
    ends = np.cumsum(dataset.sequence_lengths[documents], dtype=np.int64)
    num_samples = int(ends[-1] - 1) // LENGTH
    firsts = np.arange(num_samples + 1, dtype=np.int64) * LENGTH
    place = np.searchsorted(ends, firsts, side="right")
    starts = np.stack((place, firsts - (ends - dataset.sequence_lengths[documents])[place]), axis=1)
    shuffle = generator.permutation(num_samples)

    def sample(k: int) -> Any:
        at = shuffle[k % num_samples]
        (first, offset), (last, end) = starts[at], starts[at + 1]
        if first == last:
            return dataset.get(documents[first], offset=int(offset), length=int(end - offset + 1))
        parts = []
        for i in range(first, last + 1):
            begin = int(offset) if i == first else 0
            parts.append(dataset.get(documents[i], offset=begin, length=None if i < last else int(end) + 1))
        return np.concatenate(parts)

    return lambda step: np.stack([sample(step * ROWS + row) for row in range(ROWS)])


def stream(shards: TokenShards) -> Callable[[int], Any]:
    """Ours, into one batch."""
    samples = SampleStream([Source("web", shards, 1.0)], capacity=LENGTH, seed=0)
    batch = np.empty((ROWS, LENGTH + 1), np.int32)
    return lambda step: samples.tokens(step * ROWS, ROWS, out=batch)


def reading_rows(folder: Path, shards: TokenShards, theirs: TokenShards, peer: str | None) -> list[dict[str, Any]]:
    """Every way to read, interleaved."""
    ways = {
        "glmcore, shard": stream(shards),
        "glmcore, Megatron's files": stream(theirs),
        "numpy.memmap loop": memmap_loop(folder),
    }
    if peer:
        sys.path.append(peer)
        ways["megatron-core"] = megatron(folder)
    seconds: dict[str, list[float]] = {name: [] for name in ways}
    for repeat in range(REPEATS + 1):  # the first round warms the page cache
        for name, read in ways.items():
            batches = range(repeat * BATCHES, repeat * BATCHES + BATCHES)
            started = time.process_time()
            for step in batches:
                read(step)
            if repeat:
                seconds[name].append(time.process_time() - started)
    samples = BATCHES * ROWS
    rate = {name: samples / statistics.median(values) for name, values in seconds.items()}
    return [
        {
            "reader": name,
            "samples/s": rate[name],
            "MB/s": rate[name] * (LENGTH + 1) * 4 / 1e6,
            "of the memmap loop": rate[name] / rate["numpy.memmap loop"],
        }
        for name in ways
    ]


def loading_rows(shards: TokenShards) -> list[dict[str, Any]]:
    """Tokens a second of whole batches, and of a model that trains on them."""
    sources = [Source("web", shards, 1.0)]
    steps = 200
    table = []
    for name, rows in (
        ("SampleStream", SampleStream(sources, capacity=LENGTH, seed=0)),
        (
            "PackedRows, best fit",
            PackedRows(sources, capacity=LENGTH, num_rows=steps * ROWS, packing="best_fit", seed=0, pad_id=0),
        ),
    ):
        seconds = []
        for _ in range(3):
            with Loader(rows, rows_per_step=ROWS, num_steps=steps) as loader:
                started = time.perf_counter()
                for _ in loader:
                    pass
                seconds.append(time.perf_counter() - started)
        table.append({"what": f"Loader of {name}", "tokens/s": steps * ROWS * LENGTH / statistics.median(seconds)})
    table.append({"what": "training step, nano model on this machine", "tokens/s": nano_step_rate()})
    for row in table:
        row["times the step"] = row["tokens/s"] / table[-1]["tokens/s"]
    return table


def nano_step_rate() -> float:
    """Tokens a second of forward and backward pass of the nano recipe's model, one thread, without the optimiser."""
    import torch

    from glmcore.model.glm import Glm
    from glmcore.model.parallel.config import ParallelConfig
    from glmcore.model.parallel.ranks import Ranks
    from glmcore.packing import PackedBatch
    from glmcore.recipe import RECIPES, Recipe
    from glmcore.train.schedule import LossWeights
    from glmcore.train.step import train_step

    torch.set_num_threads(1)
    recipe = Recipe.load([RECIPES / "nano.toml"])
    stage = recipe.train.stages[0]
    num_tokens = 4 * stage.sequence_length
    ids = np.random.default_rng(0).integers(0, recipe.model.vocab_size, num_tokens).astype(np.int32)
    bounds = np.arange(0, num_tokens + 1, stage.sequence_length, dtype=np.int32)
    positions = np.tile(np.arange(stage.sequence_length, dtype=np.int32), 4)
    batch = PackedBatch(ids, np.roll(ids, -1), positions, np.ones(num_tokens, np.uint8), bounds, stage.sequence_length)
    model = Glm(recipe.model).init_weights(0)
    seconds = []
    for _ in range(4):
        started = time.perf_counter()
        train_step(model, [batch], LossWeights(), Ranks(ParallelConfig()))
        seconds.append(time.perf_counter() - started)
    return num_tokens / min(seconds)


def main() -> None:
    """Print the tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--megatron", metavar="FOLDER", help="a folder with the package megatron")
    parser.add_argument("--million-tokens", type=int, default=100)
    parser.add_argument("--json", action="store_true", help="one JSON object on stdout")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        shards, theirs = write(folder, args.million_tokens * 1_000_000)
        tables = {
            "Random samples of 4,097 tokens": reading_rows(folder, shards, theirs, args.megatron),
            "Whole batches of 8 rows of 4,096 tokens": loading_rows(shards),
        }
    if args.json:
        json.dump(tables, sys.stdout, indent=1)
        print()
        return
    for title, table in tables.items():
        show(title, table)


if __name__ == "__main__":
    main()

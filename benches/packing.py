"""Packing beside its peers: time and what it costs in rows, padding, cut documents and lost tokens.

Lengths are log-normal like those of web pages (median 600 tokens, mean 1,164), numpy in and out. Every table is one
interleaved run on one thread; a time is the median of CPU time, so that other work on the machine counts less. Peers
in plain Python are twins of what the packages do (`packing_twins.py`), run once, on at most 110,000 documents.
lightbinpack and binpacking run in the Python of `--peers`, lists in and out as they ask for.

    python benches/packing.py
    python benches/packing.py --peers /path/to/venv/bin/python --json
"""

import argparse
import json
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from typing import Any

import numpy as np
from packing_twins import (
    Lengths,
    greedy_balance,
    heap_best_fit,
    nanochat_rows,
    trl_best_fit,
    web_lengths,
)

REPEATS = 5
MAX_TWIN_DOCUMENTS = 110_000
MAX_BINPACKING_DOCUMENTS = 11_000
WINDOW = 1000

WORKER = """
import json, sys, time
for line in sys.stdin:
    package, lengths, capacity = json.loads(line)
    if package == "lightbinpack":
        from lightbinpack import obfd as pack
    else:
        from binpacking import to_constant_volume
        def pack(lengths, capacity):
            return to_constant_volume(dict(enumerate(lengths)), capacity)
    started = time.process_time()
    bins = pack(lengths, capacity)
    seconds = time.process_time() - started
    print(json.dumps([seconds, len(bins)]), flush=True)
"""


class Peers:
    """Another Python with the packages."""

    def __init__(self, python: str) -> None:
        self.process = subprocess.Popen(
            [python, "-c", WORKER], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )

    def pack(self, package: str, lengths: list[int], capacity: int) -> tuple[float, int]:
        """Seconds and rows."""
        assert self.process.stdin
        assert self.process.stdout
        self.process.stdin.write(json.dumps([package, lengths, capacity]) + "\n")
        self.process.stdin.flush()
        seconds, rows = json.loads(self.process.stdout.readline())
        return seconds, rows


def seconds_of(call: Callable[[], Any]) -> tuple[float, Any]:
    """CPU seconds of a call, and what it gives."""
    started = time.process_time()
    result = call()
    return time.process_time() - started, result


def best_fit_rows(lengths: Lengths, capacity: int, peers: Peers | None) -> list[dict[str, Any]]:
    """Every way to pack one list of lengths."""
    from glmcore.packing import pack_best_fit, pack_concat, pack_documents

    listed = lengths.tolist()
    least = -(-int(lengths.sum()) // capacity)
    ways: dict[str, Callable[[], tuple[float, int]]] = {
        "glmcore best fit": lambda: timed(lambda: pack_best_fit(lengths, capacity).num_rows),
        "glmcore too_long=split": lambda: timed(lambda: pack_documents(lengths, capacity, too_long="split").num_rows),
        "glmcore concat": lambda: timed(lambda: pack_concat(lengths, capacity).num_rows),
    }
    if peers:
        ways["lightbinpack obfd"] = lambda: peers.pack("lightbinpack", listed, capacity)
        if len(lengths) < MAX_BINPACKING_DOCUMENTS:
            ways["binpacking"] = lambda: peers.pack("binpacking", listed, capacity)
    found: dict[str, list[tuple[float, int]]] = {name: [] for name in ways}
    for _ in range(1 if len(lengths) > 5_000_000 else REPEATS):
        for name, way in ways.items():
            found[name].append(way())
    if len(lengths) < MAX_TWIN_DOCUMENTS:
        found["TRL's loop"] = [timed(lambda: len(trl_best_fit(listed, capacity)))]
        found["sorted list and heaps"] = [timed(lambda: len(heap_best_fit(listed, capacity)))]
    table = []
    for name, runs in found.items():
        rows = runs[0][1]
        cut = cut_documents(lengths, capacity) if name == "glmcore concat" else 0
        table.append(
            {
                "documents": len(lengths),
                "capacity": capacity,
                "packing": name,
                "ms": 1e3 * statistics.median(seconds for seconds, _ in runs),
                "rows over the least": rows - least,
                "padding %": 100 * (1 - int(lengths.sum()) / (rows * capacity)),
                "cut %": 100 * cut / len(lengths),
            }
        )
    return table


def timed(call: Callable[[], int]) -> tuple[float, int]:
    """Seconds and number of rows."""
    return seconds_of(call)


def cut_documents(lengths: Lengths, capacity: int) -> int:
    """Documents that lie in two rows when all are laid end to end."""
    ends = np.cumsum(lengths, dtype=np.int64)
    return int(((ends - lengths) // capacity != (ends - 1) // capacity).sum())


def stream_rows(capacity: int) -> list[dict[str, Any]]:
    """Documents that keep coming, through a buffer of a thousand."""
    from glmcore.packing import BestFitStream

    many, few = web_lengths(1_000_000, capacity), web_lengths(30_000, capacity)

    def ours(lengths: Lengths, crop: bool) -> tuple[int, int, int, int]:
        stream = BestFitStream(capacity, window=WINDOW, too_long="error", crop=crop)
        for start in range(0, len(lengths), 10_000):
            stream.push(lengths[start : start + 10_000])
        report = stream.report
        return report.num_rows, report.num_cropped, report.num_lost_tokens, report.num_padding_tokens

    table = []
    for name, lengths, way in (
        ("glmcore, padding", many, lambda: ours(many, crop=False)),
        ("glmcore, cropping", many, lambda: ours(many, crop=True)),
        ("glmcore, cropping, the same documents", few, lambda: ours(few, crop=True)),
        ("nanochat's loop", few, lambda: (*nanochat_rows(few.tolist(), capacity, WINDOW), 0)),
    ):
        seconds, (rows, cropped, lost, padding) = seconds_of(way)
        given = rows * capacity - padding + lost
        table.append(
            {
                "capacity": capacity,
                "packing": name,
                "documents": len(lengths),
                "documents/s": len(lengths) / seconds,
                "cropped documents": cropped,
                "lost %": 100 * lost / given,
                "padding %": 100 * padding / (rows * capacity),
            }
        )
    return table


def balance_rows(count: int, num_ranks: int) -> list[dict[str, Any]]:
    """Even work, in floating-point operations of a model like GLM-4.5-Air."""
    from glmcore.packing import balance

    lengths = np.minimum(web_lengths(count, 131_072), 131_072).astype(np.float64)
    costs = 7.2e10 * lengths + 6 * 47 * 96 * 128 * lengths**2
    table = []
    for name, way in (
        ("glmcore", lambda: balance(costs, num_ranks)),
        ("glmcore, equal counts", lambda: balance(costs, num_ranks, equal_counts=True)),
        ("greedy in Python", lambda: greedy_balance(costs, num_ranks)),
        ("as they come", lambda: np.arange(len(costs)) % num_ranks),
    ):
        seconds, rank_of = seconds_of(way)
        loads = np.bincount(rank_of, weights=costs, minlength=num_ranks)
        table.append(
            {
                "items": len(costs),
                "ranks": num_ranks,
                "sharing": name,
                "ms": 1e3 * seconds,
                "busiest over mean %": 100 * (loads.max() / loads.mean() - 1),
            }
        )
    return table


def prefix_rows(num_groups: int, group: int, prompt: int, answer: int) -> list[dict[str, Any]]:
    """Groups of rollouts of one prompt."""
    from glmcore.prefixes import group_by_prefix, share_prefixes
    from glmcore.ragged import Ragged

    generator = np.random.default_rng(0)
    prompts = [generator.integers(0, 150_000, prompt) for _ in range(num_groups)]
    rows = [np.concatenate((p, generator.integers(0, 150_000, answer))) for p in prompts for _ in range(group)]
    samples = Ragged(
        np.concatenate(rows).astype(np.int32), np.arange(len(rows) + 1, dtype=np.int64) * (prompt + answer)
    )
    seconds, forest = seconds_of(lambda: share_prefixes(samples))
    grouping, _ = seconds_of(lambda: group_by_prefix(samples, 131_072))
    return [
        {
            "samples": f"{num_groups} x {group}",
            "prompt + answer": f"{prompt} + {answer}",
            "tokens apart": len(forest.place),
            "tokens shared": len(forest.input_ids),
            "saved %": 100 * forest.num_saved_tokens / len(forest.place),
            "layout ms": 1e3 * seconds,
            "grouping ms": 1e3 * grouping,
        }
    ]


def show(title: str, table: list[dict[str, Any]]) -> None:
    """A table in Markdown."""

    def cell(value: Any) -> str:
        if isinstance(value, float):
            return f"{value:,.0f}" if value >= 1000 else f"{value:.4g}"
        return f"{value:,}" if isinstance(value, int) else value

    print(f"\n{title}\n\n| {' | '.join(table[0])} |\n|{' --- |' * len(table[0])}")
    for row in table:
        print(f"| {' | '.join(cell(value) for value in row.values())} |", flush=True)


def main() -> None:
    """Print the tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--peers", metavar="PYTHON", help="a Python with lightbinpack and binpacking")
    parser.add_argument("--counts", type=int, nargs="+", default=[10_000, 100_000, 1_000_000])
    parser.add_argument("--json", action="store_true", help="one JSON object on stdout")
    args = parser.parse_args()
    peers = Peers(args.peers) if args.peers else None
    tables: dict[str, list[dict[str, Any]]] = {}

    def add(title: str, table: list[dict[str, Any]]) -> None:
        tables.setdefault(title, []).extend(table)
        if not args.json:
            show(title, table)

    for count in args.counts:
        for capacity in (4096, 32_768, 131_072):
            add("Best fit", best_fit_rows(web_lengths(count, capacity), capacity, peers))
    for capacity in (2048, 4096, 32_768):
        add("Streaming best fit", stream_rows(capacity))
    for count, num_ranks in ((512, 8), (4096, 64), (100_000, 64)):
        add("Even work over ranks", balance_rows(count, num_ranks))
    for groups, group, prompt, answer in ((16, 8, 1000, 1000), (64, 16, 4000, 1000), (64, 64, 1000, 2000)):
        add("Shared prefixes", prefix_rows(groups, group, prompt, answer))
    if args.json:
        json.dump(tables, sys.stdout, indent=1)
        print()


if __name__ == "__main__":
    main()

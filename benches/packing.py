"""Documents packed per second, beside best-fit decreasing in plain Python.

Lengths are log-normal like those of web pages (median 600 tokens, mean 1,164); documents longer than a row
are cut before. The two packings have to be the same. Run it with `python benches/packing.py`.
"""

import bisect
import heapq
import statistics
import time
from collections import defaultdict
from collections.abc import Callable, Iterator

import numpy as np
import numpy.typing as npt

from glmcore.packing import pack_best_fit

REPEATS = 7


def heap_best_fit(lengths: list[int], capacity: int) -> list[int]:
    """Row of each document: a sorted list of the free spaces in use, and a heap of rows for each."""
    row_of = [0] * len(lengths)
    spaces: list[int] = []
    rows: defaultdict[int, list[int]] = defaultdict(list)
    num_rows = 0
    for doc in sorted(range(len(lengths)), key=lambda doc: -lengths[doc]):
        place = bisect.bisect_left(spaces, lengths[doc])
        if place == len(spaces):
            free, row = capacity, num_rows
            num_rows += 1
        else:
            free = spaces[place]
            row = heapq.heappop(rows[free])
            if not rows[free]:
                spaces.pop(place)
        free -= lengths[doc]
        if not rows[free]:
            bisect.insort(spaces, free)
        heapq.heappush(rows[free], row)
        row_of[doc] = row
    return row_of


def web_lengths(count: int, capacity: int) -> npt.NDArray[np.uint32]:
    """Lengths of about `count` pieces of at most `capacity` tokens."""
    tokens = np.maximum(1, np.random.default_rng(0).lognormal(np.log(600), 1.151, count)).astype(np.int64)
    full = np.full(int((tokens // capacity).sum()), capacity)
    rests = tokens % capacity
    return np.random.default_rng(1).permutation(np.concatenate((full, rests[rests > 0]))).astype(np.uint32)


def seconds(call: Callable[[], object]) -> Iterator[float]:
    """How long each of some calls takes."""
    for _ in range(REPEATS):
        started = time.perf_counter()
        call()
        yield time.perf_counter() - started


def main() -> None:
    """Print one line for each number of documents and row length."""
    titles = (
        "documents",
        "capacity",
        "ms",
        "documents/s",
        "plain Python ms",
        "documents/s",
        "ratio",
        "padding",
    )
    print(" ".join(f"{title:>15}" for title in titles))
    for count in (10_000, 100_000, 1_000_000):
        for capacity in (4096, 32_768, 131_072):
            lengths = web_lengths(count, capacity)
            packing = pack_best_fit(lengths, capacity)
            ours = statistics.median(seconds(lambda: pack_best_fit(lengths, capacity)))  # noqa: B023  # called at once
            listed = lengths.tolist()
            started = time.perf_counter()
            twin = heap_best_fit(listed, capacity)
            theirs = time.perf_counter() - started
            if packing.row_of.tolist() != twin:
                raise SystemExit(f"{len(lengths)} documents in rows of {capacity}: the packings differ")
            padding = 1 - int(lengths.sum()) / (packing.num_rows * capacity)
            figures = (
                f"{len(lengths):,}",
                f"{capacity:,}",
                f"{1e3 * ours:.2f}",
                f"{len(lengths) / ours:,.0f}",
                f"{1e3 * theirs:.0f}",
                f"{len(lengths) / theirs:,.0f}",
                f"{theirs / ours:.0f}",
                f"{100 * padding:.4f} %",
            )
            print(" ".join(f"{figure:>15}" for figure in figures), flush=True)


if __name__ == "__main__":
    main()

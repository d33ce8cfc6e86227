"""What peers do to pack documents, as plain loops, and lengths to pack."""

import bisect
import heapq
from collections import defaultdict, deque

import numpy as np
import numpy.typing as npt

Lengths = npt.NDArray[np.uint32]


def web_lengths(count: int, capacity: int) -> Lengths:
    """Log-normal lengths like those of web pages (median 600 tokens, mean 1,164), cut into at most `capacity`."""
    tokens = np.maximum(1, np.random.default_rng(0).lognormal(np.log(600), 1.151, count)).astype(np.int64)
    full = np.full(int((tokens // capacity).sum()), capacity)
    rests = tokens % capacity
    return np.random.default_rng(1).permutation(np.concatenate((full, rests[rests > 0]))).astype(np.uint32)


def heap_best_fit(lengths: list[int], capacity: int) -> list[list[int]]:
    """Best-fit decreasing: a sorted list of the free spaces in use, and a heap of rows for each."""
    spaces: list[int] = []
    rows: defaultdict[int, list[int]] = defaultdict(list)
    bins: list[list[int]] = []
    for doc in sorted(range(len(lengths)), key=lambda doc: -lengths[doc]):
        place = bisect.bisect_left(spaces, lengths[doc])
        if place == len(spaces):
            free, row = capacity, len(bins)
            bins.append([])
        else:
            free = spaces[place]
            row = heapq.heappop(rows[free])
            if not rows[free]:
                spaces.pop(place)
        free -= lengths[doc]
        if not rows[free]:
            bisect.insort(spaces, free)
        heapq.heappush(rows[free], row)
        bins[row].append(doc)
    return bins


def trl_best_fit(lengths: list[int], capacity: int) -> list[list[int]]:
    """Best-fit decreasing as TRL 1.16 does it (`trl/data_utils.py`, `bfd_split`): a segment tree over free spaces."""
    size = 1 << (capacity - 1).bit_length()
    tree = [0] * (2 * size)

    def change(space: int, value: int) -> None:
        at = size + space - 1
        tree[at] = value
        while at > 1:
            at //= 2
            left, right = tree[2 * at], tree[2 * at + 1]
            tree[at] = left if left >= right else right

    def smallest_at_least(space: int) -> int:
        at = 1
        while at < size:
            at = 2 * at if tree[2 * at] >= space else 2 * at + 1
        return tree[at]

    change(capacity, capacity)
    waiting: defaultdict[int, deque[int]] = defaultdict(deque)
    bins: list[list[int]] = []
    for doc in sorted(range(len(lengths)), key=lambda doc: -lengths[doc]):
        length = lengths[doc]
        space = smallest_at_least(length)
        if waiting[space]:
            row = waiting[space].popleft()
            if not waiting[space] and space != capacity:
                change(space, 0)
        else:
            row = len(bins)
            bins.append([])
        bins[row].append(doc)
        left = space - length
        waiting[left].append(row)
        if left:
            change(left, left)
    return bins


def nanochat_rows(lengths: list[int], capacity: int, window: int) -> tuple[int, int, int]:
    """Rows as nanochat's loader fills them: rows, cropped pieces and tokens lost.

    The buffer is kept full; each row takes the longest document that fits until none does, then the head of the
    shortest one, whose tail is lost. Source: nanochat/dataloader.py, BOS-aligned best fit. It stops where the
    documents end, so what waits then is in no row.
    """
    documents = iter(lengths)
    buffer: list[int] = []
    num_rows = num_cropped = lost = 0
    while True:
        free = capacity
        while free:
            while len(buffer) < window:
                length = next(documents, None)
                if length is None:
                    return num_rows, num_cropped, lost
                buffer.append(length)
            best, longest = -1, 0
            for place, length in enumerate(buffer):
                if longest < length <= free:
                    best, longest = place, length
            if best >= 0:
                free -= buffer.pop(best)
                continue
            shortest = min(range(len(buffer)), key=buffer.__getitem__)
            lost += buffer.pop(shortest) - free
            num_cropped += 1
            free = 0
        num_rows += 1


def greedy_balance(costs: npt.NDArray[np.float64], num_ranks: int) -> npt.NDArray[np.int64]:
    """Rank of each item, costliest first, each to the least loaded rank."""
    loads = [(0.0, rank) for rank in range(num_ranks)]
    rank_of = np.empty(len(costs), np.int64)
    for item in np.argsort(-costs, kind="stable").tolist():
        load, rank = loads[0]
        heapq.heapreplace(loads, (load + float(costs[item]), rank))
        rank_of[item] = rank
    return rank_of

"""Packing, as one reads it in a book."""

import bisect
import itertools


def best_fit(lengths, capacity):
    """Row of each document and the documents in the order of their rows, by best-fit decreasing."""
    longest_first = sorted(range(len(lengths)), key=lambda doc: -lengths[doc])
    row_of = [0] * len(lengths)
    open_rows = []  # (free tokens, row), sorted
    num_rows = 0
    for doc in longest_first:
        fit = bisect.bisect_left(open_rows, (lengths[doc], 0))
        if fit < len(open_rows):
            free, row = open_rows.pop(fit)
        else:
            free, row = capacity, num_rows
            num_rows += 1
        bisect.insort(open_rows, (free - lengths[doc], row))
        row_of[doc] = row
    order = sorted(longest_first, key=lambda doc: row_of[doc])
    return row_of, order


def split(lengths, capacity):
    """Documents cut into pieces of a row and a rest: (document, start, length) of each."""
    return [
        (doc, start, min(capacity, length - start))
        for doc, length in enumerate(lengths)
        for start in range(0, length, capacity)
    ]


def concat(lengths, capacity):
    """Pieces (row, document, start, length) of documents end to end."""
    tokens = [(doc, place) for doc, length in enumerate(lengths) for place in range(length)]
    pieces = []
    for at, (doc, place) in enumerate(tokens):
        if pieces and pieces[-1][:2] == (at // capacity, doc):
            row, _, start, length = pieces[-1]
            pieces[-1] = (row, doc, start, length + 1)
        else:
            pieces.append((at // capacity, doc, place, 1))
    return pieces


def greedy(costs, num_ranks):
    """Rank of each item: costliest first, each to the least loaded rank; and the work of the busiest rank."""
    loads = [0.0] * num_ranks
    rank_of = [0] * len(costs)
    for item in sorted(range(len(costs)), key=lambda item: -costs[item]):
        rank = min(range(num_ranks), key=loads.__getitem__)
        loads[rank] += costs[item]
        rank_of[item] = rank
    return rank_of, max(loads)


def differencing(costs, num_ranks, group):
    """Rank of each item by Karmarkar and Karp's method, on whole lists; and the work of the busiest rank."""

    def ordered(parts):
        return sorted(parts, key=lambda part: (-part[0], part[1][0] if part[1] else len(costs)))

    items = sorted(range(len(costs)), key=lambda item: -costs[item])
    sharings = []
    for start in range(0, len(items), group):
        parts = [(costs[item], [item]) for item in items[start : start + group]]
        sharings.append(ordered(parts + [(0.0, [])] * (num_ranks - len(parts))))
    while len(sharings) > 1:
        sharings.sort(key=lambda parts: (parts[-1][0] - parts[0][0], parts[0][1][0]))
        one, other = sharings[:2]
        pairs = zip(one, reversed(other), strict=True)
        sharings = [*sharings[2:], ordered((a + b, x + y) for (a, x), (b, y) in pairs)]
    rank_of = [0] * len(costs)
    for rank, (_, members) in enumerate(sharings[0]):
        for item in members:
            rank_of[item] = rank
    return rank_of, sharings[0][0][0]


def balance(costs, num_ranks, equal_counts=False):
    """Rank of each item: the better of both methods, or differencing by groups of one item for each rank."""
    if not costs:
        return []
    num_ranks = min(num_ranks, len(costs))
    rank_of, busiest = differencing(costs, num_ranks, num_ranks if equal_counts else 1)
    greedy_rank_of, greedy_busiest = greedy(costs, num_ranks)
    return greedy_rank_of if not equal_counts and greedy_busiest < busiest else rank_of


def fill(documents, masks, pieces, num_rows, capacity, pad_id):
    """Arrays of a batch, token by token; pieces are (row, document, start, length) by row."""
    ids, labels, positions, mask, bounds = [], [], [], [], [0]
    for row in range(num_rows):
        for _, doc, start, length in (piece for piece in pieces if piece[0] == row):
            for place in range(length):
                ids.append(documents[doc][start + place])
                mask.append(int(masks[doc][start + place] != 0))
                positions.append(place)
                learned = place + 1 < length and masks[doc][start + place + 1]
                labels.append(documents[doc][start + place + 1] if learned else -100)
            bounds.append(len(ids))
        padding = (row + 1) * capacity - len(ids)
        ids += [pad_id] * padding
        labels += [-100] * padding
        positions += range(padding)
        mask += [0] * padding
        if padding:
            bounds.append(len(ids))
    longest = max((b - a for a, b in itertools.pairwise(bounds)), default=0)
    return ids, labels, positions, mask, bounds, longest

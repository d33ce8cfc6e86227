"""Best-fit decreasing in a few lines: the specification of the fast one."""

import numpy as np


def best_fit(lengths: list[int], capacity: int) -> np.ndarray:
    """Row of each document: longest first, each into the fullest row it fits, ties to earlier and lower."""
    row_of = np.zeros(len(lengths), np.uint32)
    free: list[int] = []
    for document in sorted(range(len(lengths)), key=lambda d: -lengths[d]):
        fitting = [(space, row) for row, space in enumerate(free) if space >= lengths[document]]
        if fitting:
            _, row = min(fitting)
        else:
            row = len(free)
            free.append(capacity)
        free[row] -= lengths[document]
        row_of[document] = row
    return row_of

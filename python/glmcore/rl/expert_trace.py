"""Which experts the tokens of a conversation chose while it was sampled, on their way from the engine to the trainer.

They lie in the `extra` of a rollout and not beside its tokens: nobody needs them before the rollout has ended, `extra`
is on disk in the same event as the end, and goes where samples go, into leases, through Ray and into recorded batches.
So the buffer, whose calls are per span of tokens, knows nothing of it, and runs without replay pay nothing.

Shapes: N tokens but those at the end that no layer has seen, L decoder layers with experts, K experts per token.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

Experts = npt.NDArray[np.unsignedinteger[Any]]
"""uint8 or uint16 [N, L, K], in no order."""


class ExpertTrace:
    """Collects the choices of a conversation from the generations that it was made of.

    Each generation tells of the whole text up to its end. What an earlier one has told of a token stays: it is what the
    token after it was drawn with, while a later one may have read the text again with newer weights.
    """

    def __init__(self) -> None:
        self._parts: list[Experts] = []
        self._length = 0

    def add(self, told: Experts | None) -> None:
        """Take in `Generation.experts` of a text that begins with what was told before."""
        if told is not None and len(told) > self._length:
            self._parts.append(told[self._length :])
            self._length = len(told)

    def experts(self) -> Experts | None:
        """Of the conversation so far; None if nothing was told."""
        return np.concatenate(self._parts) if self._parts else None


def layouts(all_of_them: Sequence[Experts | None]) -> list[list[Any] | None]:
    """Shapes and types in plain JSON values, for `read`."""
    return [None if each is None else [each.dtype.str, *each.shape] for each in all_of_them]


def read(layout: Sequence[Any] | None, data: memoryview) -> tuple[Experts | None, memoryview]:
    """The array at the beginning of `data`, which is not copied, and what follows it.

    Raises:
        ValueError: There is none of this layout.
    """
    if layout is None:
        return None, data
    dtype: np.dtype[Any] = np.dtype(layout[0])
    shape: tuple[int, ...] = tuple(layout[1:])
    if dtype not in (np.uint8, np.uint16) or len(shape) != 3:
        raise ValueError(f"experts of type {dtype} and shape {shape}")
    size = int(np.prod(shape))
    experts = np.frombuffer(data, dtype, size).reshape(shape)
    return experts, data[size * dtype.itemsize :]

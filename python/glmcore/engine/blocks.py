"""Who holds which block of the key-value cache, and which blocks can serve a prompt that begins alike."""

from collections import OrderedDict
from collections.abc import Iterable, Sequence

import numpy as np

from glmcore.model.paged import BLOCK

_ROOT = 0
"""What stands before the first block of every text."""


class BlockPool:
    """Blocks with a count of holders.

    A full block can be known by the text up to its end: the block before it and its own tokens decide its keys and
    values. Known blocks without holders stay until their place is needed, the longest unused first.

    Args:
        num_blocks: Blocks in all.
        reuse: Whether to know blocks by their text.
    """

    def __init__(self, num_blocks: int, *, reuse: bool = True) -> None:
        self.num_blocks = num_blocks
        self.reuse = reuse
        self._free = list(range(num_blocks - 1, -1, -1))  # low numbers first: memory comes into use as it is needed
        self._holders = [0] * num_blocks
        self._key: list[tuple[int, bytes] | None] = [None] * num_blocks
        self._serial = [_ROOT] * num_blocks
        """Number of the text that a known block ends, never used twice."""
        self._last_serial = _ROOT
        self._known: dict[tuple[int, bytes], int] = {}
        self._idle: OrderedDict[int, None] = OrderedDict()
        """Known blocks without holders, the longest unused first."""

    @property
    def available(self) -> int:
        """Blocks that `take` can give."""
        return len(self._free) + len(self._idle)

    @property
    def num_idle(self) -> int:
        """Blocks that are kept for their text alone."""
        return len(self._idle)

    def take(self, count: int) -> list[int]:
        """Blocks to write to, at most `available`."""
        taken = []
        for _ in range(count):
            if self._free:
                block = self._free.pop()
            else:
                block, _ = self._idle.popitem(last=False)
                self._forget(block)
            self._holders[block] = 1
            taken.append(block)
        return taken

    def share(self, blocks: Iterable[int]) -> None:
        """Become one more holder of blocks."""
        for block in blocks:
            if self._holders[block] == 0:
                del self._idle[block]
            self._holders[block] += 1

    def release(self, blocks: Sequence[int]) -> None:
        """Stop to hold blocks of one text, given in its order. Its end is forgotten before its beginning."""
        for block in reversed(blocks):
            self._holders[block] -= 1
            if self._holders[block] == 0:
                if self._key[block] is None:
                    self._free.append(block)
                else:
                    self._idle[block] = None

    def find(self, tokens: Sequence[int]) -> list[int]:
        """Known blocks that hold a text's beginning; nobody becomes their holder."""
        found: list[int] = []
        if not self._known or len(tokens) < BLOCK:
            return found
        ids = np.asarray(tokens, np.int32)
        serial = _ROOT
        for start in range(0, len(ids) - BLOCK + 1, BLOCK):
            block = self._known.get((serial, ids[start : start + BLOCK].tobytes()))
            if block is None:
                break
            found.append(block)
            serial = self._serial[block]
        return found

    def remember(self, tokens: Sequence[int], blocks: Sequence[int]) -> None:
        """Make the full blocks of a text known, whose tokens they hold from the first on."""
        if not self.reuse or len(tokens) < BLOCK:
            return
        ids = np.asarray(tokens, np.int32)
        serial = _ROOT
        for block, start in zip(blocks, range(0, len(ids) - BLOCK + 1, BLOCK), strict=False):
            if self._key[block] is None:
                key = (serial, ids[start : start + BLOCK].tobytes())
                known = self._known.get(key)
                if known is not None:  # another sequence has computed the same: one of the two is enough
                    serial = self._serial[known]
                    continue
                self._last_serial += 1
                self._known[key], self._key[block], self._serial[block] = block, key, self._last_serial
            serial = self._serial[block]

    def forget_all(self) -> None:
        """Know no block any more: the weights have changed."""
        for block in list(self._known.values()):
            self._forget(block)
        self._free += self._idle
        self._idle.clear()

    def _forget(self, block: int) -> None:
        key = self._key[block]
        assert key is not None
        del self._known[key]
        self._key[block] = None

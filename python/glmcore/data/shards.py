"""Token shards: tokenized documents in memory-mapped files."""

from pathlib import Path
from types import TracebackType

import numpy as np
import numpy.typing as npt
from typing_extensions import Self

from glmcore._core import CoreShards, CoreShardWriter
from glmcore.errors import DataError


class ShardWriter:
    """Writes one shard. Leaving the `with` block well makes the file appear whole; an error leaves no trace.

    Args:
        path: File to make.
        vocab_size: Ids are below it; up to 65,536 a token takes two bytes, else four.
        with_loss_mask: Keep for each token whether it is learned.

    Raises:
        DataError: The file cannot be written.
    """

    def __init__(self, path: str | Path, vocab_size: int, *, with_loss_mask: bool = False) -> None:
        self._core = CoreShardWriter(str(path), vocab_size, with_loss_mask)

    def append(
        self,
        ids: npt.NDArray[np.int32],
        loss_mask: npt.NDArray[np.uint8] | None = None,
        source: int = 0,
        quality: float = 1.0,
    ) -> None:
        """Add a document.

        Args:
            ids: int32 [n].
            loss_mask: 1 for each learned token, uint8 [n]; None for all.
            source: A number of the caller's, below 65,536.
            quality: A score of the caller's.

        Raises:
            DataError: An id is outside the vocabulary, lengths differ, or the disk is full.
        """
        self._core.append(ids, loss_mask, source, quality)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if kind is None:
            self._core.finish()
        else:
            self._core.abandon()


class TokenShards:
    """Documents of one or several shards of one vocabulary; item i is document i's ids, int32."""

    def __init__(self, core: CoreShards) -> None:
        self.core = core

    @classmethod
    def open(cls, *paths: str | Path) -> Self:
        """Map shards, in the given order. Opening reads their headers only.

        Raises:
            DataError: A file is missing, cut short or of another format, or vocabularies differ.
        """
        if not paths:
            raise DataError("no shards are given, at least one is needed")
        return cls(CoreShards([str(path) for path in paths]))

    def __len__(self) -> int:
        return self.core.num_documents

    def __getitem__(self, document: int) -> npt.NDArray[np.int32]:
        if not 0 <= document < len(self):
            raise IndexError(f"document {document} of {len(self)}")
        return self.core.tokens(document)

    def loss_mask(self, document: int) -> npt.NDArray[np.uint8]:
        """1 for each learned token of a document, uint8 [n]."""
        return self.core.loss_mask(document)

    @property
    def lengths(self) -> npt.NDArray[np.uint32]:
        """Tokens of each document, uint32 [documents]."""
        return self.core.lengths()

    @property
    def num_tokens(self) -> int:
        """Tokens of all documents."""
        return self.core.num_tokens

    @property
    def vocab_size(self) -> int:
        """Ids are below it."""
        return self.core.vocab_size

    def verify(self) -> None:
        """Read everything and check the checksums.

        Raises:
            DataError: A part is damaged; the error names file and place.
        """
        self.core.verify()

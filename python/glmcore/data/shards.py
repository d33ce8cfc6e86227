"""Token shards: memory-mapped files of tokenized documents.

A shard is one immutable file with the ids of its documents (uint16 up to a vocabulary of 65,536, else 4
bytes), a document index, source and quality of each document, an optional loss mask and a checksum for each
part. It appears under its name when it is complete.
"""

import os
from collections.abc import Iterator, Sequence
from types import TracebackType
from typing import Any

import numpy as np
import numpy.typing as npt

from glmcore._core import CoreShards, CoreShardWriter
from glmcore.errors import DataError
from glmcore.ragged import Ragged

PathLike = str | os.PathLike[str]
TokenView = npt.NDArray[np.uint16] | npt.NDArray[np.int32]
"""Ids of one document in the mapped file: read-only, nothing copied."""


class ShardWriter:
    """Writes one shard; use it in a `with` block, which finishes the file or, on an error, removes it.

    Tokens go to disk as they come. Until it is finished the file is `PATH.partial`, which the next writer of
    the same path overwrites, so a path has one writer at a time.
    """

    def __init__(self, path: PathLike, vocab_size: int, with_loss_mask: bool = False) -> None:
        """Begin a shard.

        Args:
            path: Where the finished file appears; a file there is replaced.
            vocab_size: Number of ids; every id is below it.
            with_loss_mask: Whether to store which tokens are learned.

        Raises:
            DataError: The file cannot be created or the vocabulary size is wrong.
        """
        if not 0 < vocab_size < 2**31:
            raise DataError(f"vocab_size is {vocab_size}, it must be between 1 and 2147483647")
        self._core = CoreShardWriter(os.fspath(path), vocab_size, with_loss_mask)

    def append(
        self,
        ids: npt.ArrayLike,
        loss_mask: npt.ArrayLike | None = None,
        source: int = 0,
        quality: float = 1.0,
    ) -> None:
        """Add a document. After an error in its values the shard is as before.

        Args:
            ids: Token ids; int32 arrays are read in place.
            loss_mask: For each token whether it is learned; without it all are.
            source: Number of its source, 0 to 65535.
            quality: Any number that later steps select by.

        Raises:
            DataError: An id is outside the vocabulary, the mask does not pair with the ids or the shard has
                none, a number is out of range, or the disk is full.
        """
        if not 0 <= source < 2**16:
            raise DataError(f"source is {source}, it must be from 0 to 65535")
        mask = None if loss_mask is None else flat("loss_mask", loss_mask, "biu")
        if mask is not None and mask.dtype != np.uint8:
            mask = (mask != 0).view(np.uint8)
        array = flat("ids", ids, "iu")
        if array.dtype != np.int32:
            array = array.astype(np.int64)
        self._core.append(array, mask, source, quality)

    def append_batch(self, documents: Ragged, end: int | None = None, source: int = 0, quality: float = 1.0) -> None:
        """Add many documents, all of whose tokens are learned. An error leaves those before it in the shard.

        Args:
            documents: Ids of each document.
            end: An id that is put behind each, as `<|endoftext|>`.
            source: Number of their source, 0 to 65535.
            quality: Any number that later steps select by.

        Raises:
            DataError: An id is outside the vocabulary, a number is out of range, or the disk is full.
        """
        if not 0 <= source < 2**16:
            raise DataError(f"source is {source}, it must be from 0 to 65535")
        self._core.append_batch(documents.ids, documents.offsets, end, source, quality)

    @property
    def num_documents(self) -> int:
        """Documents so far."""
        return self._core.num_documents

    @property
    def num_tokens(self) -> int:
        """Tokens so far."""
        return self._core.num_tokens

    def finish(self) -> None:
        """Complete the file, make it durable and give it its name; needed only without a `with` block.

        Raises:
            DataError: It is finished already, or the disk is full.
        """
        self._core.finish()

    def __enter__(self) -> "ShardWriter":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if kind is None:
            self._core.finish()
        else:
            self._core.abort()


class TokenShards:
    """Documents of one or several shards: item i is a read-only view of document i's ids, uint16 or int32.

    A view keeps the file mapped. Opening reads only headers, whatever the size of the files; `verify` reads
    everything.
    """

    def __init__(self, core: CoreShards) -> None:
        self._core = core

    @classmethod
    def open(cls, paths: PathLike | Sequence[PathLike]) -> "TokenShards":
        """Map shard files, their documents in the given order.

        Raises:
            DataError: A file is missing, no shard, cut short or damaged, or has another vocabulary size.
        """
        listed = [paths] if isinstance(paths, (str, os.PathLike)) else paths
        return cls(CoreShards([os.fspath(path) for path in listed]))

    @classmethod
    def open_megatron(cls, prefixes: PathLike | Sequence[PathLike], vocab_size: int) -> "TokenShards":
        """Map Megatron data sets, each a path without `.bin` and `.idx`, their documents in the given order.

        The format says nothing of sources, qualities and learned tokens: they are 0, 1 and all.

        Args:
            prefixes: One or several data sets.
            vocab_size: Number of ids, which the files do not say; reading an id past it is an error.

        Raises:
            DataError: A file is missing, no Megatron index, cut short or damaged, or holds no token ids.
        """
        if not 0 < vocab_size < 2**31:
            raise DataError(f"vocab_size is {vocab_size}, it must be between 1 and 2147483647")
        listed = [prefixes] if isinstance(prefixes, (str, os.PathLike)) else prefixes
        return cls(CoreShards.open_megatron([os.fspath(prefix) for prefix in listed], vocab_size))

    def __len__(self) -> int:
        return len(self._core)

    def __getitem__(self, index: int) -> TokenView:
        return self._core.tokens(self._place(index))

    def __iter__(self) -> Iterator[TokenView]:
        return (self._core.tokens(document) for document in range(len(self)))

    @property
    def core(self) -> CoreShards:
        """The mapped files, for other wrappers of the compiled core."""
        return self._core

    @property
    def lengths(self) -> npt.NDArray[np.uint32]:
        """Tokens of each document.

        Raises:
            DataError: The document index is damaged.
        """
        return self._core.lengths()

    @property
    def num_tokens(self) -> int:
        """Tokens of all documents."""
        return self._core.num_tokens

    @property
    def vocab_size(self) -> int:
        """Number of ids that the shards were written for."""
        return self._core.vocab_size

    @property
    def has_loss_mask(self) -> bool:
        """Whether a shard stores which tokens are learned."""
        return self._core.has_loss_mask

    def loss_mask(self, index: int) -> npt.NDArray[np.uint8]:
        """1 for each token of a document that is learned, 0 for the rest; all 1 without a stored mask."""
        return self._core.loss_mask(self._place(index))

    def source(self, index: int) -> int:
        """Number of a document's source."""
        return self._core.source(self._place(index))

    def quality(self, index: int) -> float:
        """Quality of a document."""
        return self._core.quality(self._place(index))

    def verify(self) -> None:
        """Read every byte and compare it with the checksums.

        Raises:
            DataError: A file is damaged; the message names the file and the place.
        """
        self._core.verify()

    def _place(self, index: int) -> int:
        if not -len(self) <= index < len(self):
            raise IndexError(f"document {index} of {len(self)}")
        return index % len(self)


def flat(name: str, values: npt.ArrayLike, kinds: str) -> npt.NDArray[Any]:
    """Values as a 1-D array of some kinds of integers.

    Raises:
        DataError: They are something else.
    """
    array = np.asarray(values)
    if array.size == 0:
        array = array.astype(np.int32)
    if array.ndim != 1 or array.dtype.kind not in kinds:
        raise DataError(f"{name} must be 1-D integers, got {array.ndim}-D {array.dtype}")
    return array

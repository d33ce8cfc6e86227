"""The token files of Megatron-LM, `PREFIX.bin` and `PREFIX.idx`: write them, and convert to and from shards.

`glmcore.data.shards.TokenShards.open_megatron` reads them in place.
"""

import os
from types import TracebackType

import numpy as np
import numpy.typing as npt

from glmcore._core import CoreMegatronWriter
from glmcore.data.shards import PathLike, ShardWriter, TokenShards, flat
from glmcore.ragged import Ragged


class MegatronWriter:
    """Writes one data set; use it in a `with` block, which finishes the files or, on an error, removes them.

    Every document is one sequence. The index appears last, when everything is durable.
    """

    def __init__(self, prefix: PathLike, vocab_size: int) -> None:
        """Begin a data set.

        Args:
            prefix: Path of the files without `.bin` and `.idx`; files there are replaced.
            vocab_size: Number of ids; every id is below it. Below 65,500 a token takes 2 bytes, else 4.

        Raises:
            DataError: The files cannot be created or the vocabulary size is wrong.
        """
        self._core = CoreMegatronWriter(os.fspath(prefix), vocab_size)

    def append(self, ids: npt.ArrayLike) -> None:
        """Add a document. After an error in its values the data set is as before.

        Raises:
            DataError: An id is outside the vocabulary, or the disk is full.
        """
        self._core.append(flat("ids", ids, "iu").astype(np.int64))

    def append_batch(self, documents: Ragged, end: int | None = None) -> None:
        """Add many documents, with an id `end` behind each. An error leaves those before it in the data set.

        Raises:
            DataError: An id is outside the vocabulary, or the disk is full.
        """
        self._core.append_batch(documents.ids, documents.offsets, end)

    def finish(self) -> None:
        """Complete the files; needed only without a `with` block.

        Raises:
            DataError: They are finished already, or the disk is full.
        """
        self._core.finish()

    def __enter__(self) -> "MegatronWriter":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if kind is None:
            self._core.finish()
        else:
            self._core.abort()


def shards_to_megatron(shards: TokenShards, prefix: PathLike) -> None:
    """Write the documents of `shards` as a Megatron data set. Sources, qualities and loss masks have no place there.

    Raises:
        DataError: A shard is damaged, or the files cannot be written.
    """
    with MegatronWriter(prefix, shards.vocab_size) as writer:
        for ids in shards:
            writer.append(ids)


def megatron_to_shard(prefix: PathLike, path: PathLike, vocab_size: int, source: int = 0, quality: float = 1.0) -> None:
    """Write the documents of a Megatron data set as one shard.

    Args:
        prefix: Path of the data set without `.bin` and `.idx`.
        path: The shard.
        vocab_size: Number of ids, which the data set does not say.
        source: Number of the source of every document.
        quality: Quality of every document.

    Raises:
        DataError: The data set is damaged or has ids outside the vocabulary, or the shard cannot be written.
    """
    documents = TokenShards.open_megatron(prefix, vocab_size)
    with ShardWriter(path, vocab_size) as writer:
        for ids in documents:
            writer.append(ids, source=source, quality=quality)

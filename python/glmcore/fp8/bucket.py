"""Buckets: pieces of published tensors in one run of bytes, with a header that says where they lie."""

import json
import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import orjson
import torch
from torch import Tensor

from glmcore._core import Xxh3, add_floats
from glmcore.errors import SyncError
from glmcore.tensor_stream import num_bytes

ALIGNMENT = 64
"""Every piece starts at a multiple of it: a cache line, and more than any type needs."""
MAX_HEADER_BYTES = 64 * 2**20
TORCH_TYPES = {"F8_E4M3": torch.float8_e4m3fn, "BF16": torch.bfloat16, "F32": torch.float32}
_SLAB_VALUES = 1 << 20
"""Values that are converted at a time: 4 MiB of float32."""


@dataclass(frozen=True)
class Piece:
    """Consecutive rows of a published tensor; all of them but where a tensor is larger than a bucket."""

    name: str
    dtype: str
    """As safetensors names it: F8_E4M3, BF16 or F32."""
    shape: tuple[int, ...]
    """Of the whole tensor."""
    rows: tuple[int, int]
    """First row, and the one behind the last."""
    start: int
    """First byte in the bucket."""

    @property
    def num_bytes(self) -> int:
        """Bytes of the piece."""
        return (self.rows[1] - self.rows[0]) * num_bytes(self.dtype, list(self.shape[1:]))

    @property
    def is_whole(self) -> bool:
        """Whether the piece is all of its tensor."""
        return self.rows == (0, num_rows(self.shape))


def num_rows(shape: Iterable[int]) -> int:
    """Rows of a tensor; a scalar is one."""
    return next(iter(shape), 1)


@dataclass(frozen=True)
class Bucket:
    """A part of one weight update. `data` is a view of a buffer that the next bucket but one is written into."""

    version: int
    """Policy version of the weights."""
    index: int
    """Place in the update, from 0."""
    is_last: bool
    block: tuple[int, int]
    """Rows and columns of a block of codes."""
    scale_format: str
    """`float32` or `ue8m0`."""
    pieces: tuple[Piece, ...]
    """Codes are followed by their scales, named `X.weight_scale_inv`."""
    data: Tensor
    """uint8."""
    checksum: str = ""
    """XXH3-128 of the header and of the bytes."""
    weights_checksum: str | None = None
    """In the last bucket, `WeightDigests.total` of what an engine holds after the update."""

    def sealed(self) -> "Bucket":
        """The same with its checksum."""
        return replace(self, checksum=self._digest())

    def verify(self) -> None:
        """Compare the bytes with the checksum.

        Raises:
            SyncError: They differ.
        """
        if self._digest() != self.checksum:
            raise SyncError(f"bucket {self.index} of version {self.version} is not what was sent: its checksum differs")

    def tensor(self, piece: Piece) -> Tensor:
        """The rows of a piece, a view of `data`."""
        values = self.data[piece.start : piece.start + piece.num_bytes].view(TORCH_TYPES[piece.dtype])
        return values.view(piece.rows[1] - piece.rows[0], *piece.shape[1:])

    def header(self) -> bytes:
        """All but `data`, as JSON."""
        return json.dumps(self._described() | {"checksum": self.checksum}, separators=(",", ":")).encode()

    @staticmethod
    def from_header(header: bytes, data: Tensor) -> "Bucket":
        """The bucket of a header and its bytes; `verify` is the caller's.

        Raises:
            SyncError: It is no header of a bucket with these bytes.
        """
        try:
            told = json.loads(header)
            told["pieces"] = tuple(
                Piece(str(name), dtype, _ints(shape), _pair(rows), int(start))
                for name, dtype, shape, rows, start in told["pieces"]
            )
            told["block"] = _pair(told["block"])
            bucket = Bucket(data=data, **told)
        except (ValueError, TypeError, KeyError, AttributeError) as error:
            raise SyncError(f"not the header of a bucket: {error}") from None
        for piece in bucket.pieces:
            first, end = piece.rows
            fits = piece.dtype in TORCH_TYPES and 0 <= first <= end <= num_rows(piece.shape)
            if not fits or piece.start % ALIGNMENT or piece.start + piece.num_bytes > len(data):
                raise SyncError(f"bucket {bucket.index}: tensor {piece.name!r} does not lie in it")
        return bucket

    def _described(self) -> dict[str, Any]:
        told = {key: value for key, value in vars(self).items() if key not in ("data", "checksum")}
        return told | {"pieces": [tuple(vars(piece).values()) for piece in self.pieces]}

    def _digest(self) -> str:
        return _hexdigest(orjson.dumps(self._described()), self.data.numpy())


def _ints(values: Any) -> tuple[int, ...]:
    return tuple(int(value) for value in values)


def _pair(values: Any) -> tuple[int, int]:
    first, second = values
    return int(first), int(second)


class Scratch:
    """Memory for intermediate values that is used again: fresh memory costs more than the work in it."""

    def __init__(self, dtype: torch.dtype) -> None:
        self._memory = torch.empty(0, dtype=dtype)

    def view(self, *shape: int) -> Tensor:
        """A contiguous tensor, good until the next call."""
        count = math.prod(shape)
        if count > len(self._memory):
            self._memory = torch.empty(count, dtype=self._memory.dtype)
        return self._memory[:count].view(shape)


class WeightDigests:
    """Checksums of tensors by what their values are, however they are held: XXH3-128 of the values in float32.

    XXH3 because the question is whether weights arrived, not whether somebody forged them, and because it runs at the
    speed of memory: 13 GB/s on the machine where SHA-256 makes 1.4 (2026-11-24).
    """

    def __init__(self) -> None:
        self._hashers: dict[str, Xxh3] = {}
        self._wide = Scratch(torch.float32)

    def hasher(self, name: str) -> Xxh3:
        """What takes in the values of a tensor in float32, row after row."""
        return self._hashers.setdefault(name, Xxh3())

    def add(self, name: str, values: Tensor) -> None:
        """Take in rows of a tensor; the rows of one come one after another."""
        self.add_all([(name, values)])

    def add_all(self, tensors: Iterable[tuple[str, Tensor]]) -> None:
        """Take in rows of many tensors."""
        arrays: list[tuple[np.ndarray, Xxh3]] = []
        for name, values in tensors:
            if (array := as_array(values)) is not None:
                arrays.append((array, self.hasher(name)))
                continue
            flat = values.detach().reshape(-1)
            for start in range(0, len(flat), _SLAB_VALUES):
                part = flat[start : start + _SLAB_VALUES]
                add_floats([(self._wide.view(len(part)).copy_(part).numpy(), self.hasher(name))])
        add_floats(arrays)

    def total(self) -> str:
        """One checksum of all: XXH3-128 of the lines `NAME CHECKSUM`, sorted."""
        lines = "".join(f"{name} {hasher.hexdigest()}\n" for name, hasher in sorted(self._hashers.items()))
        return _hexdigest(lines.encode())


def as_array(tensor: Tensor) -> np.ndarray | None:
    """The memory of float32 values, or of the bits of bfloat16 ones, if they lie there in order; None for others."""
    if tensor.device.type != "cpu" or not tensor.is_contiguous():
        return None
    if tensor.dtype == torch.float32:
        return tensor.detach().numpy()
    return tensor.detach().view(torch.uint16).numpy() if tensor.dtype == torch.bfloat16 else None


def _hexdigest(*parts: bytes | np.ndarray) -> str:
    hasher = Xxh3()
    for part in parts:
        hasher.update(np.frombuffer(part, np.uint8))
    return hasher.hexdigest()


@torch.no_grad()
def weights_checksum(tensors: Mapping[str, Tensor]) -> str:
    """`WeightDigests.total` of tensors under their published names."""
    digests = WeightDigests()
    digests.add_all(tensors.items())
    return digests.total()

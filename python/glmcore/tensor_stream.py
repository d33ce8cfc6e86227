"""A safetensors file read or written tensor by tensor, in the memory of the tensors in hand."""

import json
import math
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from glmcore.errors import CheckpointError

_MAX_HEADER_BYTES = 100_000_000
"""As in the safetensors library."""
_SIZES = {"F64": 8, "F32": 4, "F16": 2, "BF16": 2, "F8_E4M3": 1, "F8_E5M2": 1, "I64": 8, "I32": 4, "I16": 2, "I8": 1,
          "U8": 1, "BOOL": 1}  # fmt: skip
"""Bytes of a value of each type, by the format's name for it."""


def num_bytes(dtype: str, shape: list[int]) -> int:
    """Bytes of a tensor of the type that safetensors names `dtype`."""
    return _SIZES[dtype] * math.prod(shape)


class TensorWriter:
    """Writes tensors whose types and shapes are known beforehand to their places in one file.

    Use in a `with` block. Any thread may write any tensor; each is to be written once.

    Args:
        path: File to make.
        layout: Type, as safetensors names it, and shape of each tensor, in the order of the file.

    Raises:
        CheckpointError: A type is unknown, or the file cannot be written, for want of space for example.
    """

    def __init__(self, path: Path, layout: dict[str, tuple[str, list[int]]]) -> None:
        header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
        end = 0
        for name, (dtype, shape) in layout.items():
            if dtype not in _SIZES:
                raise CheckpointError(f"{path}: tensor {name!r} has the unknown type {dtype}")
            size = num_bytes(dtype, shape)
            header[name] = {"dtype": dtype, "shape": list(shape), "data_offsets": [end, end + size]}
            end += size
        text = json.dumps(header, separators=(",", ":")).encode()
        text += b" " * (-len(text) % 8)
        self._start = 8 + len(text)
        self._offsets = {name: header[name]["data_offsets"] for name in layout}
        self._path = path
        try:
            self._file = os.open(path, os.O_RDWR | os.O_CREAT | os.O_TRUNC, 0o644)
        except OSError as error:
            raise CheckpointError(f"cannot write {path}: {error.strerror}") from None
        try:
            self._put(memoryview(len(text).to_bytes(8, "little") + text), 0)
            os.ftruncate(self._file, self._start + end)
        except OSError as error:
            os.close(self._file)
            raise CheckpointError(f"cannot write {path}: {error.strerror}") from None

    def write(self, name: str, tensor: Any) -> None:
        """Write a contiguous CPU tensor of the type and shape that the layout has for it.

        Raises:
            CheckpointError: The tensor has another size, or cannot be written.
        """
        start, end = self._offsets[name]
        if tensor.nbytes != end - start:
            raise CheckpointError(f"tensor {name!r} has {tensor.nbytes} bytes, its place {end - start}")
        self.write_part(name, tensor, 0)

    def write_part(self, name: str, tensor: Any, first_byte: int) -> None:
        """Write consecutive bytes of a tensor, `first_byte` from its beginning.

        Raises:
            CheckpointError: They reach beyond the tensor, or cannot be written.
        """
        import torch

        data = memoryview(tensor.reshape(-1).view(torch.uint8).numpy())
        start, end = self._offsets[name]
        if not 0 <= first_byte <= first_byte + len(data) <= end - start:
            raise CheckpointError(f"{len(data)} bytes at {first_byte} are not in tensor {name!r} of {end - start}")
        try:
            self._put(data, self._start + start + first_byte)
        except OSError as error:
            raise CheckpointError(f"cannot write {self._path}: {error.strerror}") from None

    def _put(self, data: memoryview, place: int) -> None:
        done = 0
        while done < len(data):  # one call writes at most 2 GiB, and less where space ends
            done += os.pwrite(self._file, data[done : done + (1 << 30)], place + done)

    def __enter__(self) -> "TensorWriter":
        return self

    def __exit__(self, *_: object) -> None:
        os.close(self._file)


@dataclass(frozen=True)
class TensorPlace:
    """Where a tensor lies in a file."""

    dtype: str
    """As safetensors names it."""
    shape: tuple[int, ...]
    start: int
    """First byte in the file."""

    @property
    def num_bytes(self) -> int:
        """Bytes of the tensor."""
        return num_bytes(self.dtype, list(self.shape))


class TensorReader:
    """Reads tensors of one file into memory that is there already, where a memory map would hold the file beside it.

    Use in a `with` block. Any thread may read.

    Args:
        path: File to read. Its header is read and compared with its size at once.

    Raises:
        CheckpointError: The file is missing, cut short or damaged, or a tensor has an unknown type.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        try:
            self._file = os.open(path, os.O_RDONLY)
        except FileNotFoundError:
            raise CheckpointError(f"{path}: file is missing") from None
        except OSError as error:
            raise CheckpointError(f"{path}: cannot be read: {error.strerror}") from None
        try:
            self.places = self._read_header()
        except (OSError, ValueError, TypeError, KeyError, AttributeError, CheckpointError) as error:
            os.close(self._file)
            if isinstance(error, CheckpointError):
                raise
            raise CheckpointError(f"{path}: cannot be read, it may be cut short: {error}") from None

    def read(self, name: str, into: Any, first_byte: int = 0) -> None:
        """Fill a contiguous CPU tensor with the bytes of a tensor from `first_byte` on.

        Raises:
            CheckpointError: The tensor has not so many, or the file ends before.
        """
        import torch

        place = self.places[name]
        data = memoryview(into.detach().reshape(-1).view(torch.uint8).numpy())
        if not 0 <= first_byte <= first_byte + len(data) <= place.num_bytes:
            raise CheckpointError(f"{self.path}: tensor {name!r} has no {len(data)} bytes at {first_byte}")
        try:
            self._get(data, place.start + first_byte)
        except (OSError, ValueError) as error:
            raise CheckpointError(f"{self.path}: tensor {name!r} cannot be read: {error}") from None

    def _read_header(self) -> dict[str, TensorPlace]:
        size = os.fstat(self._file).st_size
        length = int.from_bytes(self._bytes(8, 0), "little")
        if length > min(size - 8, _MAX_HEADER_BYTES):
            raise ValueError(f"a header of {length} bytes in a file of {size}")
        header = json.loads(self._bytes(length, 8))
        header.pop("__metadata__", None)
        places: dict[str, TensorPlace] = {}
        end = start = 8 + length
        for name, told in sorted(header.items(), key=lambda item: item[1]["data_offsets"]):
            if told["dtype"] not in _SIZES:
                raise CheckpointError(f"{self.path}: tensor {name!r} has the unknown type {told['dtype']}")
            place = TensorPlace(told["dtype"], tuple(told["shape"]), start + told["data_offsets"][0])
            if place.start != end or place.start + place.num_bytes != start + told["data_offsets"][1]:
                raise ValueError(f"tensor {name!r} is not where its type and shape put it")
            end += place.num_bytes
            places[name] = place
        if end != size:
            raise ValueError(f"the header is of a file of {end} bytes, it has {size}")
        return places

    def _bytes(self, count: int, place: int) -> bytes:
        data = bytearray(count)
        self._get(memoryview(data), place)
        return bytes(data)

    def _get(self, data: memoryview, place: int) -> None:
        done = 0
        while done < len(data):  # one call reads at most 2 GiB
            got = os.preadv(self._file, [data[done : done + (1 << 30)]], place + done)
            if not got:
                raise ValueError(f"the file ends at byte {place + done}")
            done += got

    def __enter__(self) -> "TensorReader":
        return self

    def __exit__(self, *_: object) -> None:
        os.close(self._file)

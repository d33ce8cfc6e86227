"""A safetensors file written tensor by tensor, from several threads, in the memory of the tensors in hand."""

import json
import math
import os
from pathlib import Path
from typing import Any

from glmcore.errors import CheckpointError

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

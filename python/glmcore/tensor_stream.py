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
        CheckpointError: A type is unknown.
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
        self._file = os.open(path, os.O_RDWR | os.O_CREAT | os.O_TRUNC, 0o644)
        os.write(self._file, len(text).to_bytes(8, "little") + text)
        os.ftruncate(self._file, self._start + end)

    def write(self, name: str, tensor: Any) -> None:
        """Write a contiguous CPU tensor of the type and shape that the layout has for it."""
        import torch

        data = memoryview(tensor.reshape(-1).view(torch.uint8).numpy())
        start, end = self._offsets[name]
        if len(data) != end - start:
            raise CheckpointError(f"tensor {name!r} has {len(data)} bytes, its place {end - start}")
        done = 0
        while done < len(data):  # one call writes at most 2 GiB
            done += os.pwrite(self._file, data[done : done + (1 << 30)], self._start + start + done)

    def __enter__(self) -> "TensorWriter":
        return self

    def __exit__(self, *_: object) -> None:
        os.close(self._file)

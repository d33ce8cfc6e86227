"""The tensors of a checkpoint directory: where each lies, of what type and shape, and how it gets into memory."""

import json
from collections.abc import Iterator, Mapping
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from typing_extensions import Self

from glmcore.errors import CheckpointError
from glmcore.fp8 import dequantize_blocks
from glmcore.fp8.bucket import Scratch
from glmcore.fp8.layout import read_quantization
from glmcore.fp8.quantize import scales_shape
from glmcore.tensor_stream import TensorPlace, TensorReader

INDEX = "model.safetensors.index.json"
SINGLE = "model.safetensors"
_FLOATS = {"F64": torch.float64, "F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16}
_FP8 = "F8_E4M3"
_SLAB_BYTES = 1 << 24
"""What is converted at a time."""


class Checkpoint:
    """A checkpoint directory, open for reading; use in a `with` block.

    Opening it reads the headers of the files and no more, so `check` finds in a moment what is wrong with a checkpoint
    that takes minutes to read. No file is mapped: tensors are read into their places and lie in memory once.

    Args:
        directory: With config.json, and model.safetensors or the files that an index names.

    Raises:
        CheckpointError: A file is missing, cut short or damaged, or the index does not fit the files.
    """

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.quantization = read_quantization(_read_json(directory / "config.json"))
        self._reader_of: dict[str, TensorReader] = {}
        self._slab = Scratch(torch.uint8)
        index = self._read_index()
        self._listing = directory / (INDEX if index else SINGLE)
        with ExitStack() as stack:
            for file in sorted(set(index.values()) or {SINGLE}):
                self._open(file, index, stack)
            for name, file in index.items():
                if name not in self._reader_of:
                    raise CheckpointError(f"{directory / file}: tensor {name!r} is missing, the index has it there")
            self._stack = stack.pop_all()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._stack.close()

    @property
    def names(self) -> list[str]:
        """All tensors, in the order in which the files have them."""
        return list(self._reader_of)

    def __contains__(self, name: str) -> bool:
        return name in self._reader_of

    def file_of(self, name: str) -> Path:
        """The file that holds a tensor."""
        return self._reader_of[name].path

    def place_of(self, name: str) -> TensorPlace:
        """Type and shape of a tensor, and where it begins in its file."""
        return self._reader_of[name].places[name]

    def check(self, shapes: Mapping[str, torch.Size], also: set[str]) -> None:
        """Compare with what a model needs.

        Args:
            shapes: The tensors that are needed.
            also: Tensors that may be there beside these and their scales.

        Raises:
            CheckpointError: A tensor, or its scales, is missing, extra, misshapen or not of a type that can be read.
        """
        known = shapes.keys() | also
        for name, shape in shapes.items():
            self._check_tensor(name, shape)
            if self.place_of(name).dtype == _FP8:
                known.add(self._check_scales(name, shape))
        for name in self._reader_of:
            if name not in known:
                raise CheckpointError(f"{self.file_of(name)}: tensor {name!r} is not part of the model")

    def read(self, name: str) -> Tensor:
        """A tensor as it is in the file, on the CPU.

        Raises:
            CheckpointError: It is missing, of an unknown type or cannot be read.
        """
        place = self._find(name)
        tensor = torch.empty(place.shape, dtype=torch.float8_e4m3fn if place.dtype == _FP8 else self._float_of(name))
        self._reader_of[name].read(name, tensor)
        return tensor

    def codes(self, name: str) -> tuple[Tensor, Tensor]:
        """Codes and float32 scales of a quantised weight.

        Raises:
            CheckpointError: The weight or its scales are missing or cannot be read.
        """
        return self.read(name), self.read(self._scales_of(name)).float()

    def read_into(self, name: str, target: Tensor, *, check_finite: bool) -> None:
        """Fill a tensor, of any float type and on any device, that has the shape of one that was checked.

        Raises:
            CheckpointError: The file cannot be read, or values are not finite and `check_finite` asks for it.
        """
        if self.place_of(name).dtype == _FP8:
            self._dequantize_into(name, target)
        elif self._float_of(name) == target.dtype and target.device.type == "cpu" and target.is_contiguous():
            self._reader_of[name].read(name, target)
        else:
            for rows, part in self._slabs(name):
                target[rows].copy_(part)
        if check_finite and target.numel() and not torch.stack(target.aminmax()).isfinite().all():
            raise CheckpointError(f"{self.file_of(name)}: tensor {name!r} has values that are not finite")

    def holds(self, name: str, values: Tensor) -> bool:
        """Whether a tensor that is not quantised is `values`, in their type."""
        if self.place_of(name).shape != values.shape or self.place_of(name).dtype == _FP8:
            return False
        return all(torch.equal(values[rows].cpu(), part.to(values.dtype)) for rows, part in self._slabs(name))

    def _dequantize_into(self, name: str, target: Tensor) -> None:
        """What the codes mean to an engine: products in float32, rounded to bfloat16."""
        assert self.quantization is not None  # by _check_scales
        q, scale = self.codes(name)
        block = self.quantization.block_of(tuple(q.shape))
        direct = target.dtype == torch.bfloat16 and target.device.type == "cpu" and target.is_contiguous()
        values = dequantize_blocks(q, scale, block, torch.bfloat16, out=target if direct else None)
        if not direct:
            target.copy_(values)

    def _slabs(self, name: str) -> Iterator[tuple[slice, Tensor]]:
        """A tensor by consecutive rows; each part is good until the next."""
        place, dtype = self.place_of(name), self._float_of(name)
        row_bytes = max(1, place.num_bytes // max(1, place.shape[0]))
        step = max(1, _SLAB_BYTES // row_bytes)
        for start in range(0, place.shape[0], step):
            rows = slice(start, min(start + step, place.shape[0]))
            raw = self._slab.view((rows.stop - rows.start) * row_bytes)
            self._reader_of[name].read(name, raw, start * row_bytes)
            yield rows, raw.view(dtype).view(-1, *place.shape[1:])

    def _find(self, name: str) -> TensorPlace:
        if name not in self._reader_of:
            raise CheckpointError(f"{self._listing}: tensor {name!r} is missing")
        return self.place_of(name)

    def _check_tensor(self, name: str, shape: torch.Size) -> None:
        place = self._find(name)
        if place.shape != shape:
            raise CheckpointError(
                f"{self.file_of(name)}: tensor {name!r} has shape {list(place.shape)}, the model has {list(shape)}"
            )
        if place.dtype != _FP8:
            self._float_of(name)

    def _check_scales(self, name: str, shape: torch.Size) -> str:
        """Name of the scales of a weight."""
        scales = self._scales_of(name)
        assert self.quantization is not None  # by _scales_of
        if len(shape) < 2:
            raise CheckpointError(f"{self.file_of(name)}: tensor {name!r} is FP8 and no matrix")
        self._check_tensor(scales, torch.Size(scales_shape(tuple(shape), self.quantization.block_of(tuple(shape)))))
        self._float_of(scales)
        return scales

    def _scales_of(self, name: str) -> str:
        self._find(name)
        if self.quantization is None:
            raise CheckpointError(
                f"{self.file_of(name)}: tensor {name!r} is FP8, config.json has no quantization_config"
            )
        scales = name + self.quantization.suffix
        self._find(scales)
        return scales

    def _float_of(self, name: str) -> torch.dtype:
        dtype = self.place_of(name).dtype
        if dtype not in _FLOATS:
            raise CheckpointError(f"{self.file_of(name)}: tensor {name!r} is {dtype}, expected a float type")
        return _FLOATS[dtype]

    def _open(self, file: str, index: dict[str, str], stack: ExitStack) -> None:
        reader = stack.enter_context(TensorReader(self.directory / file))
        for name in reader.places:
            if name in self._reader_of:
                raise CheckpointError(f"{reader.path}: tensor {name!r} is in {self.file_of(name).name} too")
            if index and name not in index:
                raise CheckpointError(f"{reader.path}: tensor {name!r} is not in the index")
            self._reader_of[name] = reader

    def _read_index(self) -> dict[str, str]:
        """File of each tensor; empty where there is no index."""
        file = self.directory / INDEX
        if not file.exists():
            return {}
        if (self.directory / SINGLE).exists():
            raise CheckpointError(f"{self.directory} has {SINGLE} and {INDEX}: remove the one that is not meant")
        index = _read_json(file).get("weight_map")
        if not index or not isinstance(index, dict):
            raise CheckpointError(f"{file}: not an index of tensors")
        for name, part in index.items():
            if not isinstance(part, str) or Path(part).name != part:
                raise CheckpointError(f"{file}: tensor {name!r} is in {part!r}, which is no file of the directory")
            if not (self.directory / part).is_file():
                raise CheckpointError(f"{self.directory / part}: file is missing, the index has tensor {name!r} in it")
        return index


def _read_json(file: Path) -> dict[str, Any]:
    try:
        return dict(json.loads(file.read_text(encoding="utf-8")))
    except OSError as error:
        raise CheckpointError(f"cannot read {file}: {error.strerror}") from None
    except (ValueError, TypeError):
        raise CheckpointError(f"{file}: not a JSON object") from None

"""The weights of a trainer as buckets of block-wise FP8, made while earlier ones are on their way."""

from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any, Literal, NamedTuple

import numpy as np
import torch
from torch import Tensor

from glmcore._core import fp8_publish
from glmcore.errors import Fp8Error
from glmcore.fp8.bucket import ALIGNMENT, TORCH_TYPES, Bucket, Piece, Scratch, WeightDigests, as_array, num_rows
from glmcore.fp8.layout import SCALE_SUFFIX, is_quantized, published_dtype, published_views
from glmcore.fp8.pipeline import Pipeline, Produce, TakeBuffer
from glmcore.fp8.quantize import ScaleFormat
from glmcore.tensor_stream import num_bytes

_SLAB_VALUES = 1 << 20
"""Values that are gathered and quantised at a time."""

State = Mapping[str, Any] | Iterable[tuple[str, Any]]
"""Named tensors, plain or DTensor."""


class WeightPublisher:
    """Turns a trainer's state into buckets of published tensors: block-wise FP8 as `quantize_checkpoint` writes it.

    A background thread gathers, rounds to bfloat16, quantises and sums up bucket n + 1 while bucket n is copied and
    loaded. Buckets live in two buffers that are kept for the next update; the thread needs one gathered tensor of a
    sharded state and a few MiB besides.
    """

    def __init__(
        self,
        *,
        bucket_bytes: int = 256 * 2**20,
        precision: Literal["fp8", "bf16"] = "fp8",
        block: tuple[int, int] = (128, 128),
        scale_format: ScaleFormat = "float32",
        timeout_s: float = 600.0,
    ) -> None:
        """Make a publisher; buffers are made at the first update.

        Args:
            bucket_bytes: Most bytes of a bucket. A tensor larger than that is cut between rows of blocks.
            precision: `bf16` publishes everything as checkpoints in high precision have it.
            block: Rows and columns of a block.
            scale_format: `ue8m0` rounds scales up to powers of two.
            timeout_s: For each update as a whole.
        """
        self.bucket_bytes = bucket_bytes
        self.precision = precision
        self.block = block
        self.scale_format: ScaleFormat = scale_format
        self.timeout_s = timeout_s
        self._buffers: list[Tensor] = []

    def publish(self, version: int, state: State) -> "Publication":
        """Begin an update: iterate over what comes back, once. The state must not change until that is done.

        Where the state is sharded, every rank that has a part of it calls this, or `take_part`, at the same time:
        tensors are gathered by `full_tensor()` in the order of the state.

        Args:
            version: Policy version of the weights, from 0.
            state: Named as in `Glm.state_dict` or as in checkpoints; a float type each.
        """
        return Publication(self, version, state)

    def take_part(self, state: State) -> None:
        """Gather as `publish` does and throw the result away: for ranks that feed no engine."""
        for _, tensor in _items(state):
            _gather(tensor)

    def take_buffers(self) -> list[Tensor]:
        """The two buffers, which belong to the caller until they are given back."""
        buffers, self._buffers = self._buffers, []
        # Not torch.empty: under torch's deterministic algorithms it writes all of them, needed or not.
        return buffers or [torch.from_numpy(np.empty(self.bucket_bytes, np.uint8)) for _ in range(2)]

    def give_back(self, buffers: list[Tensor]) -> None:
        """Keep the buffers for the next update."""
        self._buffers = buffers


class Publication:
    """One update on its way: an iterable of buckets. Made by `WeightPublisher.publish`."""

    def __init__(self, publisher: WeightPublisher, version: int, state: State) -> None:
        self.version = version
        self.num_bytes = 0
        """Bytes of the buckets that have been consumed."""
        self.checksum: str | None = None
        """`WeightDigests.total` of what engines hold after the update; None before the last bucket is made."""
        self._publisher = publisher
        self._state = state
        self._pipeline: Pipeline[Tensor] | None = None

    def __iter__(self) -> Iterator[Bucket]:
        """The buckets; each is good until the next is asked for.

        Raises:
            Fp8Error: A tensor cannot be quantised, or a row of blocks does not fit a bucket.
            SyncError: The update took longer than `timeout_s`.
        """
        if self._pipeline is not None:
            raise Fp8Error("an update can be consumed once")
        buffers = self._publisher.take_buffers()
        what = f"publishing version {self.version}"
        self._pipeline = Pipeline(self._producer(), buffers, self._publisher.timeout_s, what)
        try:
            for bucket in self._pipeline:
                self.checksum = bucket.weights_checksum
                self.num_bytes += len(bucket.data)
                yield bucket
        finally:
            if self._pipeline.close():
                self._publisher.give_back(buffers)

    def _producer(self) -> Produce[Tensor]:
        def produce(take: TakeBuffer[Tensor], tell: Callable[[str], None]) -> Iterator[Bucket]:
            with torch.no_grad():
                filler = _Filler(self._publisher, self.version, take)
                for name, tensor in _items(self._state):
                    tell(f"tensor {name!r} was being made")
                    for published, view in published_views(name, _gather(tensor)):
                        yield from filler.add(published, view)
                yield filler.finish()

        return produce


def _items(state: State) -> Iterable[tuple[str, Any]]:
    items: Any = state.items() if isinstance(state, Mapping) else state
    return items


def _gather(tensor: Any) -> Tensor:
    """The whole of a tensor that may be sharded."""
    return (tensor.full_tensor() if hasattr(tensor, "full_tensor") else tensor).detach()


class _Matrix(NamedTuple):
    """Rows of a tensor, and where their codes and scales go."""

    name: str
    first: int
    values: np.ndarray
    codes: np.ndarray
    scales: np.ndarray


class _Filler:
    """Puts tensors into buckets."""

    def __init__(self, publisher: WeightPublisher, version: int, take: TakeBuffer[Tensor]) -> None:
        self.publisher = publisher
        self.version = version
        self.take = take
        self.digests = WeightDigests()
        self._rounded = Scratch(torch.bfloat16)
        self._matrices: list[_Matrix] = []
        """To be quantised into the bucket."""
        self._plain: list[tuple[str, Tensor]] = []
        """To be summed up, where they lie in the bucket."""
        self._num_pending = 0
        self._index = 0
        self._buffer: Tensor | None = None
        self._pieces: list[Piece] = []
        self._used = 0

    def add(self, name: str, tensor: Tensor) -> Iterator[Bucket]:
        """Add a tensor; gives the buckets that are full."""
        if not tensor.is_floating_point():
            raise Fp8Error(f"tensor {name!r} has type {tensor.dtype}, expected a float type")
        block_rows, columns = self.publisher.block
        quantized = self.publisher.precision == "fp8" and is_quantized(name) and tensor.numel() > 0
        if quantized and tensor.dim() != 2:
            raise Fp8Error(f"tensor {name!r} has shape {list(tensor.shape)}, expected a matrix")
        rows, shape = num_rows(tensor.shape), list(tensor.shape[1:])
        # A step is what cannot be cut: a row of blocks with its scales, or a row.
        step = min(block_rows, rows) if quantized else 1
        scale_bytes = 4 * -(-shape[0] // columns) if quantized else 0
        step_bytes = num_bytes("F8_E4M3" if quantized else published_dtype(name), [step, *shape]) + scale_bytes
        all_steps = -(-rows // step)
        first = 0
        while first < rows or not rows:
            steps_left = all_steps - first // step
            fitting = self._space() // max(step_bytes, 1)
            in_empty = (self.publisher.bucket_bytes - 2 * ALIGNMENT) // max(step_bytes, 1)
            if self._pieces and fitting < min(steps_left, in_empty):
                yield self._emit(is_last=False)  # a tensor is cut only where it is larger than a bucket
                continue
            if steps_left and not fitting:
                raise Fp8Error(
                    f"bucket_bytes={self.publisher.bucket_bytes} is too little for {step} rows of tensor {name!r}, "
                    f"{step_bytes + 2 * ALIGNMENT} bytes"
                )
            end = min(rows, first + fitting * step)
            (self._quantize if quantized else self._round)(name, tensor, first, end)
            if rows == 0:
                return
            first = end

    def finish(self) -> Bucket:
        """The last bucket."""
        return self._emit(is_last=True)

    def _space(self) -> int:
        return self.publisher.bucket_bytes - self._used - 2 * ALIGNMENT

    def _place(self, name: str, dtype: str, shape: Iterable[int], first: int, end: int) -> Tensor:
        """Make room for rows of a tensor; gives them as a view."""
        if self._buffer is None:
            self._buffer = self.take()
        start = -(-self._used // ALIGNMENT) * ALIGNMENT
        self._buffer[self._used : start] = 0  # the same weights give the same bytes
        piece = Piece(name, dtype, tuple(shape), (first, end), start)
        self._pieces.append(piece)
        self._used = start + piece.num_bytes
        values = self._buffer[start : self._used].view(TORCH_TYPES[dtype])
        return values.view(end - first, *piece.shape[1:])

    def _round(self, name: str, tensor: Tensor, first: int, end: int) -> None:
        into = self._place(name, published_dtype(name), tensor.shape, first, end)
        into.copy_((tensor if tensor.dim() else tensor[None])[first:end])
        self._plain.append((name, into))

    def _quantize(self, name: str, tensor: Tensor, first: int, end: int) -> None:
        block_rows, columns = self.publisher.block
        num_columns = tensor.shape[1]
        grid = (-(-len(tensor) // block_rows), -(-num_columns // columns))
        codes = self._place(name, "F8_E4M3", tensor.shape, first, end).view(torch.uint8).numpy()
        first_block, last_block = first // block_rows, -(-end // block_rows)
        scales = self._place(name + SCALE_SUFFIX["fp8"], "F32", grid, first_block, last_block).numpy()
        source = as_array(tensor[first:end])
        if source is not None:
            self._add_matrix(_Matrix(name, first, source, codes, scales))
            return
        step = max(_SLAB_VALUES // max(num_columns, 1) // block_rows, 1) * block_rows
        for start in range(0, end - first, step):
            rows = slice(start, min(start + step, end - first))
            blocks = slice(start // block_rows, -(-rows.stop // block_rows))
            slab = tensor[first + rows.start : first + rows.stop]
            source = as_array(self._rounded.view(*slab.shape).copy_(slab))
            assert source is not None, "made just now"
            self._add_matrix(_Matrix(name, first + start, source, codes[rows], scales[blocks]))
            self._work()  # before the memory of the slab is used again

    def _add_matrix(self, matrix: _Matrix) -> None:
        """Have a matrix quantised, together with others if they are small."""
        self._matrices.append(matrix)
        self._num_pending += matrix.values.size
        if self._num_pending > _SLAB_VALUES:
            self._work()

    def _work(self) -> None:
        """Quantise what waits, and add to the checksums."""
        publisher = self.publisher
        work = [(m.values, m.codes, m.scales, self.digests.hasher(m.name)) for m in self._matrices]
        failed = fp8_publish(work, publisher.block, publisher.scale_format == "ue8m0")
        if failed is not None:
            matrix = self._matrices[failed[0]]
            raise Fp8Error(f"tensor {matrix.name!r}, rows counted from {matrix.first + failed[1]}: {failed[2]}")
        self.digests.add_all(self._plain)
        self._matrices, self._plain, self._num_pending = [], [], 0

    def _emit(self, *, is_last: bool) -> Bucket:
        if self._buffer is None:  # a state without tensors
            self._buffer = self.take()
        self._work()
        bucket = Bucket(
            version=self.version,
            index=self._index,
            is_last=is_last,
            block=self.publisher.block,
            scale_format=self.publisher.scale_format,
            pieces=tuple(self._pieces),
            data=self._buffer[: self._used],
            weights_checksum=self.digests.total() if is_last else None,
        ).sealed()
        self._index += 1
        self._buffer, self._pieces, self._used = None, [], 0
        return bucket

"""The receiving end of a weight update: what comes is checked, put into place and read back."""

from collections.abc import Callable, Mapping

import numpy as np
import torch
from torch import Tensor

from glmcore._core import fp8_receive
from glmcore.errors import Fp8Error, SyncError
from glmcore.fp8.bucket import Bucket, Piece, Scratch, WeightDigests, as_array, num_rows
from glmcore.fp8.held import HeldWeight
from glmcore.fp8.layout import SCALE_SUFFIX
from glmcore.fp8.quantize import dequantize_blocks

_SLAB_VALUES = 1 << 20
"""Values that are made from codes at a time, in the cache."""


class Sequence:
    """Checks that the buckets of one update come whole, unharmed and in order."""

    def __init__(self, version: int) -> None:
        self.version = version
        self.last: Bucket | None = None
        self._next = 0
        self._rows: dict[str, int] = {}
        """Rows of each tensor that have come."""
        self._unfinished: set[str] = set()

    def check(self, bucket: Bucket) -> None:
        """Take note of the next bucket.

        Raises:
            SyncError: It is of another version, out of order, damaged, or a tensor comes twice or torn.
        """
        if bucket.version != self.version:
            raise SyncError(f"bucket {bucket.index} of version {bucket.version} came in the update to {self.version}")
        if self.last is not None or bucket.index != self._next:
            expected = "no more" if self.last is not None else f"bucket {self._next}"
            raise SyncError(f"bucket {bucket.index} of version {self.version} came, expected {expected}")
        bucket.verify()
        for piece in bucket.pieces:
            if self._rows.get(piece.name, 0) != piece.rows[0] or (piece.name in self._rows and not piece.rows[0]):
                raise SyncError(f"tensor {piece.name!r} of version {self.version} comes twice or with rows left out")
            self._rows[piece.name] = piece.rows[1]
            is_finished = piece.rows[1] == num_rows(piece.shape)
            (self._unfinished.discard if is_finished else self._unfinished.add)(piece.name)
        self._next += 1
        if bucket.is_last:
            self.last = bucket

    def finish(self) -> Bucket:
        """The last bucket, once all have come.

        Raises:
            SyncError: Some have not.
        """
        if self.last is None:
            raise SyncError(f"the update to version {self.version} ended after {self._next} buckets, before its last")
        if self._unfinished:
            raise SyncError(f"tensor {min(self._unfinished)!r} of version {self.version} is not complete")
        return self.last


class WeightReceiver:
    """Fills an engine's tensors from the buckets of one update.

    After an error the tensors are a mixture: nothing may be sampled from them before an update has succeeded.
    """

    def __init__(
        self,
        targets: Mapping[str, Tensor | HeldWeight],
        version: int,
        on_complete: Callable[[int], None] = lambda _: None,
    ) -> None:
        """Begin.

        Args:
            targets: What to fill, under the published names, in any float type or held in FP8.
            version: Policy version that is to come.
            on_complete: Called with the version when all is in place and verified.
        """
        self.version = version
        self._targets = targets
        self._on_complete = on_complete
        self._sequence = Sequence(version)
        self._waiting = set(targets)
        self._values = Scratch(torch.bfloat16)

    @torch.no_grad()
    def load(self, bucket: Bucket) -> None:
        """Put the next bucket's tensors into place.

        Codes stay what they are where the engine holds FP8; elsewhere they become the bfloat16 code times scale.

        Raises:
            SyncError: The bucket is damaged or out of order, or has a tensor that the engine does not know.
        """
        self._sequence.check(bucket)
        pieces = iter(bucket.pieces)
        matrices: list[tuple[np.ndarray, np.ndarray, np.ndarray]] = []
        for piece in pieces:
            target = self._targets.get(piece.name)
            if target is None or tuple(target.shape) != piece.shape:
                raise SyncError(
                    f"tensor {piece.name!r} of shape {list(piece.shape)} is unknown to the engine or misshapen"
                )
            self._waiting.discard(piece.name)
            scale = None
            if piece.dtype == "F8_E4M3":
                scale = next(pieces, None)
                if scale is None or scale.name != piece.name + SCALE_SUFFIX["fp8"]:
                    raise SyncError(f"tensor {piece.name!r} of version {self.version} has no scales behind it")
            if isinstance(target, HeldWeight):
                self._hold(bucket, piece, scale, target)
                continue
            into = (target if target.dim() else target[None])[slice(*piece.rows)]
            if scale is None:
                into.copy_(bucket.tensor(piece))
            elif (array := as_array(into)) is not None:
                matrices.append((bucket.tensor(piece).view(torch.uint8).numpy(), bucket.tensor(scale).numpy(), array))
            else:
                self._dequantize(bucket, piece, scale, into)
        fp8_receive(matrices, bucket.block)

    def finish(self) -> str:
        """End the update; gives `weights_checksum` of the tensors, read back, which is that of the trainer.

        Raises:
            SyncError: Something is missing, or what the engine holds is not what the trainer sent.
        """
        last = self._sequence.finish()
        if self._waiting:
            raise SyncError(f"tensor {min(self._waiting)!r} is missing from the update to version {self.version}")
        digests = WeightDigests()
        plain: list[tuple[str, Tensor]] = []
        for name, target in self._targets.items():
            if isinstance(target, HeldWeight):
                digests.add(name, target.values())
            else:
                plain.append((name, target))
        digests.add_all(plain)
        held = digests.total()
        if held != last.weights_checksum:
            raise SyncError(
                f"the engine holds weights with the checksum {held} after the update to version {self.version}, "
                f"the trainer's have {last.weights_checksum}"
            )
        self._on_complete(self.version)
        return held

    def _hold(self, bucket: Bucket, piece: Piece, scale: Piece | None, target: HeldWeight) -> None:
        if scale is None:
            raise SyncError(f"tensor {piece.name!r} comes as {piece.dtype}, the engine holds FP8: publish it as FP8")
        try:
            target.copy_rows(piece.rows[0], bucket.tensor(piece), bucket.tensor(scale))
        except Fp8Error as error:
            raise SyncError(f"tensor {piece.name!r} of version {self.version}: {error}") from None

    def _dequantize(self, bucket: Bucket, piece: Piece, scale: Piece, into: Tensor) -> None:
        codes, scales, (block_rows, _) = bucket.tensor(piece), bucket.tensor(scale), bucket.block
        step = max(_SLAB_VALUES // max(codes.shape[1], 1) // block_rows, 1) * block_rows
        for start in range(0, len(codes), step):
            rows = slice(start, min(start + step, len(codes)))
            blocks = slice(start // block_rows, -(-rows.stop // block_rows))
            values = self._values.view(*codes[rows].shape)
            into[rows].copy_(dequantize_blocks(codes[rows], scales[blocks], bucket.block, out=values))

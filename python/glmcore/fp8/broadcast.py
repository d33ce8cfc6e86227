"""Weight updates over torch.distributed: one rank publishes, the others load."""

import json
from collections.abc import Callable, Iterable, Iterator
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from glmcore.errors import GlmcoreError, SyncError
from glmcore.fp8.bucket import MAX_HEADER_BYTES, Bucket, Scratch
from glmcore.fp8.pipeline import Pipeline, TakeBuffer
from glmcore.fp8.publisher import Publication

_REPORT_BYTES = 1024
"""What a rank tells at the end: whether it holds the weights, or why not."""
MAX_BUCKET_BYTES = 16 * 2**30
"""Bound on what a receiver makes room for."""

Load = Callable[[int, Iterable[Bucket]], str]
"""What an engine does with an update: `Engine.update_weights`."""


class WeightBroadcast:
    """Sends weight updates from a trainer's rank to the ranks of engines, through a gloo group of its own.

    A group of its own, because trainers gather sharded tensors in another thread while buckets go out. Every rank makes
    one, at the same time; afterwards each update is a `send` on the rank `src` and a `receive` on all others. A rank
    that takes more than `timeout_s` in any step makes the update fail on all.
    """

    def __init__(self, ranks: list[int] | None = None, src: int = 0, timeout_s: float = 600.0) -> None:
        """Make the group: a collective call of all ranks of the default group, those outside `ranks` too.

        Args:
            ranks: Global ranks that take part; None for all.
            src: Global rank of the trainer.
            timeout_s: For every message and for an update as a whole.
        """
        self.ranks = list(range(dist.get_world_size())) if ranks is None else sorted(ranks)
        self.src = src
        self.timeout_s = timeout_s
        self._group: Any = dist.new_group(self.ranks, timeout=timedelta(seconds=timeout_s), backend="gloo")
        self._buffers = [Scratch(torch.uint8), Scratch(torch.uint8)]

    def send(self, publication: Publication) -> str:
        """Send an update; gives the checksum of the weights that every engine now holds.

        Raises:
            SyncError: An engine's rank did not load it, or not in time; the first such rank is named with its reason.
            Fp8Error: A tensor cannot be quantised; the receivers are told.
        """
        version, buckets = publication.version, iter(publication)
        while True:
            try:
                bucket = next(buckets, None)
            except GlmcoreError as error:
                # Receivers wait for a bucket: a length below zero says that none will come, and why.
                reason = str(error).encode()[:_REPORT_BYTES]
                self._broadcast(torch.tensor([-len(reason), 0]), version)
                self._broadcast(_bytes(reason), version)
                raise
            if bucket is None:
                break
            header = bucket.header()
            self._broadcast(torch.tensor([len(header), len(bucket.data)]), version)
            self._broadcast(_bytes(header), version)
            self._broadcast(bucket.data, version)
        expected = str(publication.checksum)
        for rank, report in self._reports({"checksum": expected}, version).items():
            if report.get("checksum") != expected:
                reason = report.get("error", f"it holds weights with the checksum {report.get('checksum')}")
                raise SyncError(f"version {version} did not reach the engine on rank {rank}: {reason}")
        return expected

    def receive(self, version: int, load: Load) -> str:
        """Receive an update while the trainer's rank sends it; gives the checksum of the weights held.

        Args:
            version: Policy version that is to come.
            load: `Engine.update_weights`.

        Raises:
            SyncError: The update did not arrive whole and in time, or could not be made.
        """
        buckets = self._buckets(version)
        failure: GlmcoreError | None = None
        checksum = ""
        try:
            checksum = load(version, buckets)
        except _TransportError:
            raise  # no rank waits for a report
        except GlmcoreError as error:
            failure = error
        for _ in buckets:
            pass  # the trainer sends to the end, whoever listens
        self._reports({"checksum": checksum} if failure is None else {"error": str(failure)}, version)
        if failure is not None:
            raise failure
        return checksum

    def _buckets(self, version: int) -> Iterator[Bucket]:
        """The buckets of one update as they come, received one ahead in a thread."""

        def produce(take: TakeBuffer[Scratch], tell: Callable[[str], None]) -> Iterator[Bucket]:
            sizes, is_last = torch.empty(2, dtype=torch.int64), False
            while not is_last:
                buffer = take()
                tell("a bucket was being waited for")
                self._broadcast(sizes, version)
                header_size, size = sizes.tolist()
                if abs(header_size) > MAX_HEADER_BYTES or not 0 <= size <= MAX_BUCKET_BYTES:
                    raise _TransportError(f"a bucket of {size} bytes with a header of {header_size} came")
                header = torch.empty(abs(header_size), dtype=torch.uint8)
                self._broadcast(header, version)
                text = header.numpy().tobytes()
                if header_size < 0:
                    told = text.decode(errors="replace")
                    raise _TransportError(f"the trainer could not publish version {version}: {told}")
                data = buffer.view(size)
                self._broadcast(data, version)
                bucket = Bucket.from_header(text, data)
                is_last = bucket.is_last
                yield bucket

        yield from Pipeline(produce, self._buffers, self.timeout_s, f"receiving version {version}")

    def _broadcast(self, tensor: Tensor, version: int) -> None:
        try:
            dist.broadcast(tensor, self.src, group=self._group)
        except RuntimeError as error:
            raise _TransportError(f"broadcasting version {version} failed: {_first_line(error)}") from None

    def _reports(self, own: dict[str, str], version: int) -> dict[int, dict[str, Any]]:
        """What every rank tells at the end of an update."""
        told = json.dumps(own).encode()
        if len(told) > _REPORT_BYTES:
            told = json.dumps({"error": own.get("error", "")[: _REPORT_BYTES // 8]}).encode()
        sent = torch.zeros(_REPORT_BYTES, dtype=torch.uint8)
        sent[: len(told)] = _bytes(told)
        got = [torch.empty_like(sent) for _ in self.ranks]
        try:
            dist.all_gather(got, sent, group=self._group)
        except RuntimeError as error:
            raise SyncError(f"no report about version {version} from every rank: {_first_line(error)}") from None
        return {
            rank: json.loads(bytes(report.numpy()).rstrip(b"\0")) for rank, report in zip(self.ranks, got, strict=True)
        }


class _TransportError(SyncError):
    """No more messages can be expected of this update."""


def _bytes(text: bytes) -> Tensor:
    return torch.frombuffer(bytearray(text), dtype=torch.uint8)


def _first_line(error: Exception) -> str:
    return str(error).strip().splitlines()[0]

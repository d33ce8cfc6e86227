"""Weight updates to engines in Ray actors. Ray is the extra `glmcore[ray]`."""

import time
from collections.abc import Sequence
from typing import Any, Protocol

import torch

from glmcore.errors import SyncError
from glmcore.fp8.bucket import Bucket, Scratch
from glmcore.fp8.publisher import Publication
from glmcore.fp8.receiver import WeightReceiver


class StartsUpdates(Protocol):
    """An engine, as `glmcore.engine.engine.Engine` is one."""

    def start_update(self, version: int) -> WeightReceiver:
        """The receiver of an update."""
        ...


class RayWeightReceiver:
    """The methods that `publish_to_actors` calls: inherit them in the class of the actor that has the engine."""

    def __init__(self, engine: StartsUpdates) -> None:
        self.engine = engine
        self._receiver: WeightReceiver | None = None
        self._bytes = Scratch(torch.uint8)

    def start_weight_update(self, version: int) -> None:
        """Begin an update."""
        self._receiver = self.engine.start_update(version)

    def load_weight_bucket(self, header: bytes, data: Any) -> None:
        """Load a bucket: its header, and its bytes as a numpy array in Ray's object store."""
        if self._receiver is None:
            raise SyncError("a bucket came, and no update has begun")
        # A copy, because what Ray shares is read-only and torch has no such tensors.
        view = self._bytes.view(len(data))
        view.numpy()[:] = data
        self._receiver.load(Bucket.from_header(header, view))

    def finish_weight_update(self) -> str:
        """End the update; gives the checksum of the weights that the engine holds."""
        if self._receiver is None:
            raise SyncError("the end of an update came, and none has begun")
        receiver, self._receiver = self._receiver, None
        return receiver.finish()


def publish_to_actors(publication: Publication, actors: Sequence[Any], timeout_s: float = 600.0) -> str:
    """Send an update to actors whose class inherits `RayWeightReceiver`.

    A bucket is put into Ray's object store once, whatever the number of actors; while they load it, the next is made.
    No more than two are there at a time.

    Returns:
        `weights_checksum` of the weights, which every engine holds.

    Raises:
        SyncError: An actor did not load the update, or not in time, or Ray is not installed.
    """
    try:
        import ray
        from ray.exceptions import GetTimeoutError, RayError
    except ImportError:
        raise SyncError("Ray is not installed: pip install 'glmcore[ray]'") from None
    deadline = time.monotonic() + timeout_s
    version = publication.version

    def results(calls: list[Any]) -> list[Any]:
        try:
            return ray.get(calls, timeout=max(deadline - time.monotonic(), 0.001))
        except GetTimeoutError:
            raise SyncError(f"actors took longer than {timeout_s:g} s to load version {version}") from None
        except RayError as error:
            told = getattr(error, "cause", None) or error
            reason = str(told).strip().splitlines()[0]
            raise SyncError(f"version {version} did not reach the engine of an actor: {reason}") from None

    results([actor.start_weight_update.remote(version) for actor in actors])
    loading: list[Any] = []
    for bucket in publication:
        shared = ray.put(bucket.data.numpy())
        coming = [actor.load_weight_bucket.remote(bucket.header(), shared) for actor in actors]
        results(loading)
        loading = coming
    results(loading)
    for number, held in enumerate(results([actor.finish_weight_update.remote() for actor in actors])):
        if held != publication.checksum:
            raise SyncError(f"actor {number} holds weights with the checksum {held}, sent were {publication.checksum}")
    return str(publication.checksum)

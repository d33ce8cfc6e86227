"""The copy of the policy that samples: block-wise FP8, made anew after every update."""

import time
from dataclasses import dataclass
from typing import Protocol

from glmcore.errors import SyncError
from glmcore.fp8.publisher import Publication, WeightPublisher
from glmcore.model.glm import Glm


class WeightsLostError(SyncError):
    """A weight update met an engine that has gone and was replaced: publish again."""


@dataclass(frozen=True)
class SyncFigures:
    """One weight update."""

    seconds: float
    num_bytes: int
    """Bytes of codes, scales and tensors in high precision that went to the engine."""
    checksum: str
    """`weights_checksum` of what the engine holds, which is the trainer's."""

    def figures(self) -> dict[str, float | str]:
        """For the record of a step."""
        return {
            "sync_seconds": self.seconds,
            "sync_bytes": self.num_bytes,
            "engine_checksum": self.checksum,
        }


class TakesWeights(Protocol):
    """An engine, or whoever brings weights to engines."""

    def update_weights(self, version: int, buckets: Publication) -> str:
        """Replace the weights; gives the checksum of what is then held."""
        ...


class WeightSync:
    """Brings the weights of the trainer's model to the engine or engines that sample.

    Args:
        engine: Takes them.
        publisher: Makes the buckets; its `timeout_s` bounds each update.
    """

    def __init__(self, engine: TakesWeights, publisher: WeightPublisher) -> None:
        self.engine = engine
        self.publisher = publisher

    def push(self, model: Glm, version: int) -> SyncFigures:
        """Replace the engine's weights by those of a block-FP8 checkpoint of `model`, bit for bit.

        Raises:
            SyncError: The engine does not hold them, or not in time.
        """
        started = time.perf_counter()
        while True:
            publication = self.publisher.publish(version, model.state_dict())
            try:
                checksum = self.engine.update_weights(version, publication)
            except WeightsLostError:
                continue
            break
        if checksum != publication.checksum:
            raise SyncError(
                f"after the update to version {version} an engine holds weights with the checksum {checksum}, "
                f"the trainer's have {publication.checksum}"
            )
        return SyncFigures(time.perf_counter() - started, publication.num_bytes, checksum)

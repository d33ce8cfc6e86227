"""The copy of the policy that samples: block-wise FP8, made anew after every update."""

import time
from dataclasses import dataclass

from glmcore.engine.engine import Engine
from glmcore.fp8.publisher import WeightPublisher
from glmcore.model.glm import Glm


@dataclass(frozen=True)
class SyncFigures:
    """One weight update."""

    seconds: float
    num_bytes: int
    """Bytes of codes, scales and tensors in high precision that went to the engine."""
    checksum: str
    """`weights_checksum` of what the engine holds, which is the trainer's."""


class WeightSync:
    """Brings the weights of the trainer's model to an engine in the same process."""

    def __init__(self, engine: Engine, publisher: WeightPublisher) -> None:
        self.engine = engine
        self.publisher = publisher

    def push(self, model: Glm, version: int) -> SyncFigures:
        """Replace the engine's weights by those of a block-FP8 checkpoint of `model`, bit for bit.

        Raises:
            SyncError: The engine does not hold them, or not in time.
        """
        started = time.perf_counter()
        publication = self.publisher.publish(version, model.state_dict())
        checksum = self.engine.update_weights(version, publication)
        return SyncFigures(time.perf_counter() - started, publication.num_bytes, checksum)

"""Checkpoints of the loop, in step with what the buffer counts as consumed."""

from typing import Any

from glmcore.model.glm import Glm
from glmcore.train.checkpoint import CheckpointStore, Progress
from glmcore.train.optim import Optimizer
from glmcore.trajectory import Lease, TrajectoryBuffer


def checkpoint_name(progress: Progress) -> str:
    """What the buffer calls the checkpoint with this progress."""
    return f"stage {progress.stage_index} step {progress.step}"


class LoopCheckpoints:
    """Acknowledges consumed groups only once a checkpoint contains their update.

    A run that is killed finds the groups that it lost the update of in the buffer again. The buffer knows beforehand
    what a checkpoint will contain, so a kill right after it repeats nothing.

    Args:
        store: Where checkpoints go.
        model: What is trained.
        optimizer: Of its parameters.
        stage_index: Position of the RL stage.
        buffer: That the groups come from; None if they come from a record.
    """

    def __init__(
        self,
        store: CheckpointStore,
        model: Glm,
        optimizer: Optimizer,
        stage_index: int,
        buffer: TrajectoryBuffer | None = None,
    ) -> None:
        self.store = store
        self.model = model
        self.optimizer = optimizer
        self.stage_index = stage_index
        self.buffer = buffer
        self._unacknowledged: list[Lease] = []

    def used(self, lease: Lease | None) -> None:
        """Take note that the weights now depend on a lease."""
        if lease is not None:
            self._unacknowledged.append(lease)

    def save(self, step: int, extra: dict[str, Any]) -> None:
        """Write the checkpoint of a finished step and acknowledge what it contains.

        Raises:
            CheckpointError: It cannot be written; what was used comes again after a restart.
            TrajectoryError: The buffer's log cannot be written.
        """
        progress = Progress(self.stage_index, step)
        name = checkpoint_name(progress)
        if self.buffer is not None:
            self.buffer.prepare(self._unacknowledged, name)
        self.store.save(progress, self.model, self.optimizer, extra)
        self.store.wait()
        if self.buffer is not None:
            self.buffer.ack(self._unacknowledged, name)
        self._unacknowledged.clear()

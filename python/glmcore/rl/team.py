"""The ranks of the trainer: the first runs the loop, the others do what it does with their part of the model.

Whatever all ranks do together (an update, gathering weights for engines, a checkpoint) the first one announces, and
then does as if it were alone. The others wait for announcements.
"""

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from torch import nn

from glmcore.fp8.publisher import Publication, State, WeightPublisher
from glmcore.model.glm import Glm
from glmcore.model.parallel.ranks import Ranks
from glmcore.rl.config import RLConfig
from glmcore.rl.curriculum.course import StepSettings
from glmcore.rl.share import Share
from glmcore.rl.trajectory_log import TrajectoryLog
from glmcore.rl.update import PolicyUpdate
from glmcore.train.checkpoint import CheckpointStore, Progress
from glmcore.train.config import CheckpointConfig
from glmcore.train.optim import Optimizer
from glmcore.trajectory import Sample


class Team:
    """Makes the parts of the trainer: those of a process on its own, or such as work together over ranks.

    Args:
        ranks: None for a process on its own.
    """

    def __init__(self, ranks: Ranks | None = None) -> None:
        self.ranks = ranks
        self._shared = ranks is not None and ranks.config.num_ranks > 1
        self._gathering: Iterator[Any] = iter(())
        """Tensors that an update of the engines had still to gather when it broke off."""

    @property
    def is_first(self) -> bool:
        """True on the rank that runs the loop."""
        return self.ranks is None or self.ranks.is_first

    def announce(self, what: str, *arguments: Any) -> None:
        """Have the other ranks do their part; the first rank does its own next."""
        if self._shared and self.ranks is not None:
            for _, tensor in self._gathering:
                _gather(tensor)
            self.ranks.from_first((what, arguments))

    def gathered(self, state: State) -> Iterator[tuple[str, Any]]:
        """The state for the publisher, to be gathered by all ranks even if the publisher does not come to its end."""
        self._gathering = iter(state.items() if isinstance(state, Mapping) else state)
        return self._gathering

    def publisher(self, config: RLConfig) -> WeightPublisher:
        """Gathers the weights for the engines, tensor by tensor; the first rank sends them."""
        options: dict[str, Any] = {"precision": config.rollout_precision, "timeout_s": config.sync_timeout_s}
        return _Publisher(self, **options) if self._shared else WeightPublisher(**options)

    def store(self, directory: Path, config: CheckpointConfig) -> CheckpointStore:
        """Checkpoints of all ranks; all of them call."""
        return _Store(self, directory, config) if self._shared and self.is_first else CheckpointStore(directory, config)

    def update(
        self, config: RLConfig, model: Glm, optimizer: Optimizer, shown: TrajectoryLog, **options: Any
    ) -> PolicyUpdate:
        """Every rank computes its share of the samples."""
        if not self._shared or self.ranks is None:
            return PolicyUpdate(config, model, optimizer, shown=shown, **options)
        share = Share(self.ranks.axis("data"))
        if not self.is_first:
            silent = _SilentLog(shown.directory, shown.config)
            return PolicyUpdate(config, model, optimizer, shown=silent, share=share, **options)
        return _Update(self, config, model, optimizer, shown=shown, share=share, **options)

    def follow(self, update: PolicyUpdate, store: CheckpointStore) -> None:
        """On ranks other than the first: do what it announces, until it announces the end."""
        assert self.ranks is not None, "a process on its own is the first"
        publisher = WeightPublisher()
        while True:
            what, arguments = self.ranks.from_first(None)
            if what == "end":
                return
            if what == "update":
                update.run(*arguments)
            elif what == "publish":
                publisher.take_part(update.model.state_dict())
            else:
                store.save(arguments[0], update.model, update.optimizer, arguments[1])
                store.wait()


class _Publisher(WeightPublisher):
    def __init__(self, team: Team, **options: Any) -> None:
        super().__init__(**options)
        self._team = team

    def publish(self, version: int, state: State) -> Publication:
        self._team.announce("publish")
        return super().publish(version, self._team.gathered(state))


class _Store(CheckpointStore):
    def __init__(self, team: Team, directory: Path, config: CheckpointConfig) -> None:
        super().__init__(directory, config)
        self._team = team

    def save(
        self, progress: Progress, model: nn.Module, optimizer: Optimizer, extra: Mapping[str, Any] | None = None
    ) -> None:
        self._team.announce("save", progress, extra)
        super().save(progress, model, optimizer, extra)


class _Update(PolicyUpdate):
    def __init__(self, team: Team, *parts: Any, **options: Any) -> None:
        super().__init__(*parts, **options)
        self._team = team

    def run(self, samples: Sequence[Sample], step: int, version: int, settings: StepSettings) -> dict[str, float]:
        self._team.announce("update", list(samples), step, version, settings)
        return super().run(samples, step, version, settings)


class _SilentLog(TrajectoryLog):
    """Chooses as the first rank's does, for all ranks compute what it shows."""

    def record(
        self, step: int, version: int, samples: Sequence[Sample], advantages: np.ndarray, logprobs: Sequence[np.ndarray]
    ) -> None:
        del step, version, samples, advantages, logprobs


def _gather(tensor: Any) -> None:
    if hasattr(tensor, "full_tensor"):
        tensor.full_tensor()

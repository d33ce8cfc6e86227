"""The engine of an asynchronous run in this process: it samples in a thread of its own while the trainer trains."""

from typing import Any

from glmcore.engine.engine import Engine
from glmcore.engine.protocol import PolicyEngine
from glmcore.errors import SyncError
from glmcore.fp8.publisher import Publication
from glmcore.rl.async_scheduler import Follow
from glmcore.rl.async_thread import LoopThread
from glmcore.rl.lockstep import LockstepEngine
from glmcore.rl.loop_engine import LoopEngine
from glmcore.rl.measured import ENGINE, ENVIRONMENT, MeasuredEngine
from glmcore.rl.rollout import EpisodePlayer, RolloutWorker
from glmcore.rl.timeline import Timeline, Window


class LocalSampling:
    """A `SamplingSide` of this process.

    Args:
        engine: Samples.
        thread: The event loop of those who ask it.
        timeline: Gets its intervals of work.
        in_step: All rollouts are of the newest weights, so nothing is sampled while the trainer trains. Then the
            batches of the engine are those of a synchronous run too, which makes the two equal bit for bit.
        timeout_s: For weights to be loaded.
    """

    def __init__(
        self, engine: Engine, thread: LoopThread, timeline: Timeline, *, in_step: bool, timeout_s: float
    ) -> None:
        self.thread = thread
        self.timeout_s = timeout_s
        self.follow: Follow = lambda _, episode: episode
        inner: PolicyEngine
        if in_step:
            inner = lockstep = LockstepEngine(engine)
            self.follow = lockstep.follow
        else:
            inner = LoopEngine(engine)
        self.engine = MeasuredEngine(inner, timeline)
        """What players ask."""

    def player(self, worker: RolloutWorker, timeline: Timeline) -> EpisodePlayer:
        """Plays what `worker` plays, with this engine."""
        theirs = worker.player
        return EpisodePlayer(
            self.engine,
            theirs.tokenizer,
            theirs.new_environment,
            theirs.limits,
            thinking=theirs.thinking,
            timeline=timeline,
        )

    @property
    def num_tokens(self) -> int:
        """See `SamplingSide.num_tokens`."""
        return self.engine.num_tokens

    def update_weights(self, version: int, buckets: Publication) -> str:
        """See `SamplingSide.update_weights`.

        Raises:
            SyncError: The engine does not hold them, or not in time.
        """
        return within(self.thread, self.engine.update_weights(version, buckets), self.timeout_s, version)

    @property
    def needs_weights(self) -> bool:
        """The engine is there from the beginning to the end."""
        return False

    def utilisation(self, window: Window, slots: int) -> dict[str, float]:
        """See `SamplingSide.utilisation`."""
        return {
            "engine_utilisation": window.utilisation(ENGINE),
            "slot_utilisation": window.mean_busy(ENVIRONMENT) / slots,
        }

    def figures(self) -> dict[str, float]:
        """Nothing else."""
        return {}

    def close(self) -> None:
        """Engine and players end with their thread."""


def within(thread: LoopThread, coroutine: Any, seconds: float, version: int) -> str:
    """Wait for engines to take a weight update.

    Raises:
        SyncError: They did not in time.
    """
    try:
        return thread.run(coroutine, timeout=seconds)
    except TimeoutError:
        raise SyncError(f"the engine took longer than {seconds:g} s to load version {version}") from None

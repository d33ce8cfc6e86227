"""The trajectory buffer in a Ray actor, for samplers and trainers on many machines. Ray is the extra `glmcore[ray]`.

`start_buffer` gives a `TrajectoryBuffer` whose calls go to the actor; it can be passed to other actors and tasks.

An actor that Ray starts again has what was acknowledged and nothing else: numbers of rollouts that were not may be
given out a second time. So every buffer belongs to one life of the actor, and a call to a later one is refused.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, cast

from glmcore.errors import GlmcoreError, TrajectoryError
from glmcore.rl.ray_cluster import new_life
from glmcore.trajectory import TrajectoryBuffer

if TYPE_CHECKING:
    from glmcore._core import CoreTrajectoryBuffer

MAX_CALLERS = 256
"""Calls that may be waiting in the actor at a time, each in a thread of its own."""


class BufferLostError(TrajectoryError):
    """The actor has died. What was acknowledged is on its disk; what was not is to be done again."""


@dataclass(frozen=True)
class _RemoteLease:
    """What `CoreLease` is, with the samples on this machine."""

    id: int
    policy_version: int
    group_ids: list[int]
    rows: list[tuple[Any, ...]]

    def samples(self) -> list[tuple[Any, ...]]:
        """The samples' rows; their arrays are read-only views of Ray's object store."""
        return self.rows


class BufferActor:
    """Owns the buffer and answers for its core."""

    def __init__(self, directory: str, options: dict[str, Any]) -> None:
        self._life = new_life()
        self._buffer = TrajectoryBuffer.open(directory, **options)

    def status(self) -> str:
        """Names this life of the actor."""
        return self._life

    def call(self, life: str, name: str, *arguments: Any) -> Any:
        """Call a method of the core."""
        if life != self._life:
            raise BufferLostError("the actor with the buffer has died and was started again: connect to it anew")
        core = self._buffer._core  # pyright: ignore[reportPrivateUsage]: the actor is the other half of the class
        result = getattr(core, name)(*arguments)
        if name == "take" and result is not None:
            return _RemoteLease(result.id, result.policy_version, result.group_ids, result.samples())
        return result


class _RemoteCore:
    """Has the methods of `CoreTrajectoryBuffer`; each is a call of the actor."""

    def __init__(self, actor: Any, life: str) -> None:
        self._actor = actor
        self._life = life

    def __getattr__(self, name: str) -> Callable[..., Any]:
        if name.startswith("_"):
            raise AttributeError(name)
        return lambda *arguments: _get(self._actor.call.remote(self._life, name, *arguments))


def new_actor(directory: str, options: dict[str, Any], **settings: Any) -> Any:
    """The actor that owns a buffer, which `connect_to` uses.

    Args:
        directory: See `TrajectoryBuffer.open`.
        options: The same.
        **settings: Of the actor.
    """
    return _ray().remote(num_cpus=0, max_concurrency=MAX_CALLERS, **settings)(BufferActor).remote(directory, options)


def connect_to(actor: Any) -> TrajectoryBuffer:
    """The buffer of an actor, as long as the actor lives.

    Raises:
        TrajectoryError: The actor could not open the buffer.
        BufferLostError: It has died.
    """
    return TrajectoryBuffer(cast("CoreTrajectoryBuffer", _RemoteCore(actor, _get(actor.status.remote()))))


def start_buffer(directory: str, *, name: str | None = None, **options: Any) -> TrajectoryBuffer:
    """Start an actor that owns the buffer in a directory of its machine, and give the buffer.

    After the actor has died, start it again on the same machine: the directory has all that was acknowledged.

    Args:
        directory: See `TrajectoryBuffer.open`.
        name: Under which `connect_buffer` finds the actor; without one it lives as long as somebody has the buffer.
        **options: Of `TrajectoryBuffer.open`.

    Raises:
        TrajectoryError: The buffer cannot be opened, or Ray is not installed.
    """
    return connect_to(new_actor(directory, options, **({"name": name, "lifetime": "detached"} if name else {})))


def connect_buffer(name: str) -> TrajectoryBuffer:
    """The buffer of an actor that `start_buffer` started under this name.

    Raises:
        TrajectoryError: There is none, or Ray is not installed.
    """
    try:
        actor = _ray().get_actor(name)
    except ValueError:
        raise TrajectoryError(f"no Ray actor has the name {name!r}: call start_buffer first") from None
    return connect_to(actor)


def _get(call: Any) -> Any:
    from ray.exceptions import RayActorError, RayTaskError

    ray = _ray()
    try:
        return ray.get(call)
    except RayTaskError as error:
        cause = getattr(error, "cause", None)
        if isinstance(cause, GlmcoreError):
            raise cause from None
        raise
    except RayActorError as error:
        reason = str(error).strip().splitlines()[-1]
        raise BufferLostError(f"the actor with the buffer is gone; start_buffer opens it again: {reason}") from None


def _ray() -> Any:
    try:
        import ray
    except ImportError:
        raise TrajectoryError("Ray is not installed: pip install 'glmcore[ray]'") from None
    return ray

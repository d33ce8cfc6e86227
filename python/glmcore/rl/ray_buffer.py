"""The trajectory buffer in a Ray actor, for samplers and trainers on many machines. Ray is the extra `glmcore[ray]`.

`start_buffer` gives a `TrajectoryBuffer` whose calls go to the actor; it can be passed to other actors and tasks.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, cast

from glmcore.errors import GlmcoreError, TrajectoryError
from glmcore.trajectory import TrajectoryBuffer

if TYPE_CHECKING:
    from glmcore._core import CoreTrajectoryBuffer

MAX_CALLERS = 256
"""Calls that may be waiting in the actor at a time, each in a thread of its own."""


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


class _BufferActor:
    """Owns the buffer and answers for its core."""

    def __init__(self, directory: str, options: dict[str, Any]) -> None:
        self._buffer = TrajectoryBuffer.open(directory, **options)

    def call(self, name: str, *arguments: Any) -> Any:
        core = self._buffer._core  # pyright: ignore[reportPrivateUsage]: the actor is the other half of the class
        result = getattr(core, name)(*arguments)
        if name == "take" and result is not None:
            return _RemoteLease(result.id, result.policy_version, result.group_ids, result.samples())
        return result


class _RemoteCore:
    """Has the methods of `CoreTrajectoryBuffer`; each is a call of the actor."""

    def __init__(self, actor: Any) -> None:
        self._actor = actor

    def __getattr__(self, name: str) -> Callable[..., Any]:
        if name.startswith("_"):
            raise AttributeError(name)
        return lambda *arguments: _get(self._actor.call.remote(name, *arguments))


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
    ray = _ray()
    settings = {"num_cpus": 0, "max_concurrency": MAX_CALLERS}
    if name is not None:
        settings |= {"name": name, "lifetime": "detached"}
    actor = ray.remote(**settings)(_BufferActor).remote(directory, options)
    core = _RemoteCore(actor)
    core.room(0)  # an actor that could not open the buffer says so here
    return TrajectoryBuffer(cast("CoreTrajectoryBuffer", core))


def connect_buffer(name: str) -> TrajectoryBuffer:
    """The buffer of an actor that `start_buffer` started under this name.

    Raises:
        TrajectoryError: There is none, or Ray is not installed.
    """
    try:
        actor = _ray().get_actor(name)
    except ValueError:
        raise TrajectoryError(f"no Ray actor has the name {name!r}: call start_buffer first") from None
    return TrajectoryBuffer(cast("CoreTrajectoryBuffer", _RemoteCore(actor)))


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
        raise TrajectoryError(f"the actor with the buffer is gone; start_buffer opens it again: {reason}") from None


def _ray() -> Any:
    try:
        import ray
    except ImportError:
        raise TrajectoryError("Ray is not installed: pip install 'glmcore[ray]'") from None
    return ray

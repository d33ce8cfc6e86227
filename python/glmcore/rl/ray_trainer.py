"""The trainer on a Ray cluster: an actor for each rank, which meet as the processes of a torchrun do.

Ray is the extra `glmcore[ray]`.
"""

import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

from glmcore.errors import GlmcoreError, RankError, RunError
from glmcore.rl.ray_buffer import BufferLostError
from glmcore.rl.ray_cluster import Bundle, first_line, give_up, import_ray, in_bundle, new_life, reserve

AFTERMATH_SECONDS = 5.0
"""What is waited, after one rank has failed, for what the others say, so that the first cause is told."""


@dataclass(frozen=True)
class Parties:
    """The actors that a trainer works with."""

    buffer: Any
    engines: list[Any] = field(default_factory=list[Any])
    """None in synchronous mode, where the trainer's first rank samples."""
    environments: list[Any] = field(default_factory=list[Any])


Job = Callable[[Parties], None]
"""What every rank runs; `torch.distributed` finds its place in the environment, as under torchrun."""


class TrainerLostError(RunError):
    """A rank, or the buffer that it works with, has died: begin again from the last checkpoint."""


class TrainerActor:
    """One rank."""

    def __init__(self) -> None:
        self._life = new_life()
        self._store: Any = None

    def status(self) -> str:
        """Says that the actor lives, and names its life."""
        return self._life

    def node(self) -> str:
        """The machine."""
        import ray

        return ray.get_runtime_context().get_node_id()

    def host(self) -> tuple[str, int]:
        """Open the place where the ranks meet, in this process; gives its address and port."""
        import ray.util
        from torch.distributed import TCPStore  # pyright: ignore[reportPrivateImportUsage]

        address = ray.util.get_node_ip_address()
        self._store = TCPStore(address, 0, is_master=True, wait_for_workers=False)
        return address, self._store.port

    def run(self, environment: dict[str, str], job: Job, parties: Parties) -> None:
        """Do the work of a rank."""
        os.environ.update(environment)
        job(parties)


class TrainerGroup:
    """All ranks, from their start to their end.

    Args:
        num_ranks: How many.
        bundle: What each needs.

    Raises:
        RunError: The cluster has no room.
    """

    def __init__(self, num_ranks: int, bundle: Bundle) -> None:
        ray = import_ray()
        self._place = reserve([bundle] * num_ranks, "PACK", f"a trainer of {num_ranks} ranks")
        self.actors = [
            ray.remote(max_concurrency=2, max_restarts=0, **in_bundle(self._place, rank, bundle))(TrainerActor).remote()
            for rank in range(num_ranks)
        ]

    def run(self, job: Job, parties: Parties) -> None:
        """Have every rank do the job, and wait until all have.

        Raises:
            TrainerLostError: A rank or the buffer has died.
            GlmcoreError: What a rank has raised.
        """
        ray = import_ray()
        from ray.exceptions import RayActorError

        try:
            environments = self._environments()
        except RayActorError as error:
            raise TrainerLostError(f"a rank of the trainer died while it started: {first_line(error)}") from None
        work = [
            actor.run.remote(environment, job, parties)
            for actor, environment in zip(self.actors, environments, strict=True)
        ]
        left = list(work)
        while left:
            done, left = ray.wait(left)
            if (error := _failure(done[0])) is not None:
                late = ray.wait(left, num_returns=len(left), timeout=AFTERMATH_SECONDS)[0] if left else []
                raise _cause([error, *(told for call in late if (told := _failure(call)) is not None)])

    def close(self) -> None:
        """End all ranks."""
        ray = import_ray()
        for actor in self.actors:
            ray.kill(actor)
        give_up(self._place)

    def _environments(self) -> list[dict[str, str]]:
        """Where each rank is, in the words of torchrun."""
        ray = import_ray()
        nodes: list[str] = ray.get([actor.node.remote() for actor in self.actors])
        address, port = ray.get(self.actors[0].host.remote())
        return [
            {
                "RANK": str(rank),
                "WORLD_SIZE": str(len(nodes)),
                "LOCAL_RANK": str(nodes[:rank].count(node)),
                "LOCAL_WORLD_SIZE": str(nodes.count(node)),
                "MASTER_ADDR": address,
                "MASTER_PORT": str(port),
                "TORCHELASTIC_USE_AGENT_STORE": "True",  # the first rank is a client of the store too
            }
            for rank, node in enumerate(nodes)
        ]


def _failure(call: Any) -> BaseException | None:
    ray = import_ray()
    from ray.exceptions import RayTaskError

    try:
        ray.get(call)
    except RayTaskError as error:
        return getattr(error, "cause", None) or error
    except Exception as error:  # an actor that has died, by whatever name
        return error
    return None


def _cause(errors: Sequence[BaseException]) -> BaseException:
    """What became of a group of which ranks have failed so."""
    from ray.exceptions import RayActorError

    for error in errors:
        if isinstance(error, RayActorError):
            return TrainerLostError(f"a rank of the trainer died: {first_line(error)}")
    for error in errors:
        if isinstance(error, BufferLostError):
            return TrainerLostError(f"the buffer's owner died: {error}")
    told = [error for error in errors if isinstance(error, GlmcoreError) and not isinstance(error, RankError)]
    return told[0] if told else errors[0]

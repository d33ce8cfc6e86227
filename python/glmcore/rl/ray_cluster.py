"""A Ray to run on, and room on it for the parties of a run. Ray is the extra `glmcore[ray]`."""

import os
import uuid
from collections.abc import Sequence
from typing import Any, Literal

from glmcore.errors import RunError

Bundle = dict[str, float]
"""What an actor needs, by Ray's names: `CPU`, `GPU`."""
PLACING_SECONDS = 300.0
"""Most that a cluster may take to make room, for one that grows first."""


class Cluster:
    """A connection to Ray: to a cluster, to what this process is connected with already, or a Ray of this machine.

    Args:
        address: Of a running cluster; None for a Ray of this machine.
        num_cpus: Cores that the run asks for. A Ray of this machine says that it has so many, however many there are.

    Raises:
        RunError: Ray is not installed.
    """

    def __init__(self, address: str | None, num_cpus: int = 0) -> None:
        ray = import_ray()
        self._started = not ray.is_initialized()
        if not self._started:
            return
        if address is None:
            ray.init(num_cpus=max(num_cpus, os.cpu_count() or 1), include_dashboard=False)
        else:
            ray.init(address=address)

    def __enter__(self) -> "Cluster":
        return self

    def __exit__(self, *_: object) -> None:
        if self._started:
            import_ray().shutdown()


def reserve(bundles: Sequence[Bundle], strategy: Literal["PACK", "SPREAD"], whom: str) -> Any:
    """A placement group: all the bundles, or none of them.

    Args:
        bundles: One for each actor.
        strategy: Close together, or on many machines, where there is a choice.
        whom: They are for, for the error.

    Raises:
        RunError: The cluster has no room.
    """
    ray = import_ray()
    from ray.util.placement_group import placement_group, remove_placement_group

    _check_total(bundles, whom)
    group = placement_group(list(bundles), strategy=strategy)
    if not group.wait(PLACING_SECONDS):
        remove_placement_group(group)
        free = {name: amount for name, amount in ray.available_resources().items() if name in ("CPU", "GPU")}
        raise RunError(
            f"the cluster made no room for {whom} in {PLACING_SECONDS:g} s: {_sum(bundles)} asked, {free} free"
        )
    return group


def give_up(group: Any) -> None:
    """Free what `reserve` has taken; the actors in it end."""
    from ray.util.placement_group import remove_placement_group

    remove_placement_group(group)


def in_bundle(group: Any, place: int, bundle: Bundle) -> dict[str, Any]:
    """Settings of an actor that is to be in one of the bundles of a group."""
    from ray.util.scheduling_strategies import PlacementGroupSchedulingStrategy

    return {
        "num_cpus": bundle.get("CPU", 0),
        "num_gpus": bundle.get("GPU", 0),
        "scheduling_strategy": PlacementGroupSchedulingStrategy(group, placement_group_bundle_index=place),
    }


def import_ray() -> Any:
    """The module.

    Raises:
        RunError: It is not installed.
    """
    try:
        import ray
    except ImportError:
        raise RunError("rl.backend='ray' needs Ray: pip install 'glmcore[ray]'") from None
    return ray


def new_life() -> str:
    """Names a life of an actor, its process first; the next life has another name."""
    return f"{os.getpid()}-{uuid.uuid4().hex}"


def first_line(error: BaseException | str) -> str:
    """What Ray's errors say first."""
    lines = str(error).strip().splitlines()
    return lines[0] if lines else type(error).__name__


def _sum(bundles: Sequence[Bundle]) -> Bundle:
    return {name: sum(bundle.get(name, 0) for bundle in bundles) for name in ("CPU", "GPU")}


def _check_total(bundles: Sequence[Bundle], whom: str) -> None:
    """Say at once what could never be placed."""
    has = import_ray().cluster_resources()
    for name, asked in _sum(bundles).items():
        if asked > has.get(name, 0):
            raise RunError(
                f"the cluster has {has.get(name, 0):g} {name} in all, {whom} asks for {asked:g}: "
                "add machines, or lower rl.ray"
            )

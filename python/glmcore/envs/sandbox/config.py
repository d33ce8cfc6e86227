"""Section of a recipe that says how model-written code is run."""

from typing import Literal

from pydantic import Field, PositiveFloat, PositiveInt

from glmcore.config import Config
from glmcore.envs.sandbox.limits import MIB, Limits


class SandboxConfig(Config):
    """How programs are shut in. Nothing is chosen silently: where a kind does not work here, that is an error."""

    kind: Literal["bubblewrap", "subprocess"] = "bubblewrap"
    """`subprocess` shuts nothing in: the program sees the machine's files and network. For trusted code alone."""
    memory: Literal["cgroup", "rlimit"] = "cgroup"
    """`cgroup` bounds all processes of a run together, `rlimit` the addresses of each one."""
    read_only: list[str] = Field(default_factory=list[str])
    """Further folders that programs can read, at the same place; `/usr` is there always."""
    warm: PositiveInt = 2
    """Sandboxes that stand ready, started before there is work for them."""
    wall_seconds: PositiveFloat = 10.0
    cpu_seconds: PositiveInt = 10
    memory_mib: PositiveInt = 512
    processes: PositiveInt = 64
    disk_mib: PositiveInt = 64
    output_mib: PositiveInt = 1

    @property
    def limits(self) -> Limits:
        """The bounds of a run."""
        return Limits(
            self.wall_seconds,
            self.cpu_seconds,
            self.memory_mib * MIB,
            self.processes,
            self.disk_mib * MIB,
            self.output_mib * MIB,
        )

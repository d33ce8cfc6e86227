"""Digit environments of which one kills its process."""

import os
import signal
from pathlib import Path
from typing import Any

from digit_copy import LATENCIES, DigitEnv, DigitFamily


class DeadlyEnv(DigitEnv):
    async def step(self, message):
        if int(self._task.id.split("#")[1]) >= 6:
            marker = Path(self._family.marker)
            try:
                marker.touch(exist_ok=False)
            except FileExistsError:
                pass
            else:
                os.kill(os.getpid(), signal.SIGKILL)
        return await super().step(message)


class DeadlyFamily(DigitFamily):
    marker = ""

    def new(self):
        return DeadlyEnv(self)


def deadly_family(options: dict[str, Any], names: list[str]) -> DeadlyFamily:
    del names
    family = DeadlyFamily(LATENCIES["none"])
    family.marker = options["marker"]
    return family

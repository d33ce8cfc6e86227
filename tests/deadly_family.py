"""Digit environments of which one blocks its whole process, once."""

import time
from pathlib import Path
from typing import Any

from digit_copy import DigitEnv, DigitFamily

PACE_SECONDS = 0.5
"""Of a judgement, so that a fast machine does not end the run before it has been killed often enough."""


class BlockingEnv(DigitEnv):
    async def step(self, message):
        if int(self._task.id.split("#")[1]) >= 6:
            try:
                Path(self._family.marker).touch(exist_ok=False)
            except FileExistsError:
                pass
            else:
                time.sleep(3600)  # without giving others their turn
        return await super().step(message)


class BlockingFamily(DigitFamily):
    marker = ""

    def new(self):
        return BlockingEnv(self)


def blocking_family(options: dict[str, Any], names: list[str]) -> BlockingFamily:
    del names
    family = BlockingFamily(lambda _: PACE_SECONDS)
    family.marker = options["marker"]
    return family

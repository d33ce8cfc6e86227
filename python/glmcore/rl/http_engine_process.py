"""A model server as a process that can be started again."""

import os
import signal
import subprocess
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path

from glmcore.errors import ServerError

_GRACE_S = 10.0
"""How long a server may take to end by itself."""


class ServerProcess:
    """Runs a server's command in a process group of its own.

    Args:
        command: Of the server.
        env: Variables beside those of this process.
        log: What the server prints is appended there.
    """

    def __init__(self, command: Sequence[str], env: Mapping[str, str], log: Path) -> None:
        self.command = list(command)
        self.env = dict(env)
        self.log = log
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def is_alive(self) -> bool:
        """Whether the process that was started last still runs."""
        return self._process is not None and self._process.poll() is None

    def start(self) -> None:
        """Start it; an earlier one is killed.

        Raises:
            ServerError: The command cannot be run.
        """
        self._end((signal.SIGKILL, None))
        try:
            with self.log.open("ab") as log:
                self._process = subprocess.Popen(
                    self.command,
                    env=os.environ | self.env,
                    stdin=subprocess.DEVNULL,
                    stdout=log,
                    stderr=subprocess.STDOUT,
                    start_new_session=True,
                )
        except OSError as error:
            raise ServerError(f"cannot start {self.command[0]}: {error.strerror}") from None

    def stop(self) -> None:
        """End it with all that it has started."""
        self._end((signal.SIGTERM, _GRACE_S), (signal.SIGKILL, None))

    def _end(self, *steps: tuple[signal.Signals, float | None]) -> None:
        """Send signals, waiting so many seconds after each."""
        process, self._process = self._process, None
        if process is None:
            return
        for number, patience_s in steps:
            with suppress(ProcessLookupError):
                os.killpg(process.pid, number)
            with suppress(subprocess.TimeoutExpired):
                process.wait(patience_s)

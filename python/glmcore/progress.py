"""Progress of long work, on stderr: a bar with rate and ETA on a terminal, plain lines elsewhere."""

import sys
import time
from collections.abc import Generator
from contextlib import contextmanager
from typing import Any

LINE_EVERY_S = 10.0
"""Seconds between two plain lines of one task."""
QUIET_S = 2.0
"""Work that takes less shows nothing but its last line."""


class ProgressBar:
    """Counts what is done; made by `progress`."""

    def __init__(self, title: str, total: int | None, unit: str) -> None:
        self.title = title
        self.total = total
        self.unit = unit
        self.done = 0
        self._first = 0
        self._started = time.monotonic()

    def advance(self, count: int, **values: float) -> None:
        """Add `count` units and show the latest `values`, such as a loss."""
        self.done += count
        self._show(values)

    def skip(self, count: int) -> None:
        """Count units that an earlier run has done; they do not enter the rate."""
        self.done += count
        self._first += count

    @property
    def rate(self) -> float:
        """Units a second."""
        return (self.done - self._first) / max(time.monotonic() - self._started, 1e-9)

    def _show(self, values: dict[str, float]) -> None:
        """Bring `values` to the screen."""

    def close(self) -> None:
        """Show the end."""


class _Lines(ProgressBar):
    """Plain lines, for logs."""

    def __init__(self, title: str, total: int | None, unit: str) -> None:
        super().__init__(title, total, unit)
        self._next_line = self._started + QUIET_S
        self._values: dict[str, float] = {}

    def _show(self, values: dict[str, float]) -> None:
        self._values = values
        if time.monotonic() >= self._next_line:
            self._next_line = time.monotonic() + LINE_EVERY_S
            self._print()

    def close(self) -> None:
        self._print()

    def _print(self) -> None:
        parts = [f"{self.title:<22}", f"{self.done:>11,}"]
        if self.total:
            left = max(self.total - self.done, 0) / max(self.rate, 1e-9)
            parts += [f"/ {self.total:,} {self.unit}", f"{_rate(self.rate)}/s", f"eta {left:.0f}s"]
        else:
            parts += [self.unit, f"{_rate(self.rate)}/s"]
        parts += [f"{name} {value:.4g}" for name, value in self._values.items()]
        print("  ".join(parts), file=sys.stderr, flush=True)


class _RichBar(ProgressBar):
    """A moving bar, for terminals."""

    def __init__(self, title: str, total: int | None, unit: str) -> None:
        super().__init__(title, total, unit)
        from rich.console import Console
        from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn, TimeRemainingColumn

        self._rich = Progress(
            TextColumn("{task.description:<22}"),
            BarColumn(),
            TaskProgressColumn(),
            TextColumn("{task.fields[figures]}"),
            TimeRemainingColumn(),
            console=Console(stderr=True),
        )
        self._task = self._rich.add_task(title, total=total, figures="")
        self._rich.start()

    def _show(self, values: dict[str, float]) -> None:
        shown = "  ".join(f"{name} {value:.4g}" for name, value in values.items())
        self._rich.update(self._task, completed=self.done, figures=f"{_rate(self.rate)} {self.unit}/s  {shown}")

    def close(self) -> None:
        self._rich.stop()


def _rate(rate: float) -> str:
    """Two digits at least: steps of minutes have a rate too."""
    return f"{rate:,.0f}" if rate >= 10 else f"{rate:.2g}"


@contextmanager
def progress(
    title: str, *, total: int | None = None, unit: str, shown: bool = True
) -> Generator[ProgressBar, None, None]:
    """Show how far a piece of work is.

    Args:
        title: What is done, in a few words.
        total: Units in all, if known.
        unit: Plural name of a unit.
        shown: False for a bar that only counts.
    """
    kind: Any = ProgressBar
    if shown:
        kind = _RichBar if sys.stderr.isatty() else _Lines
    bar: ProgressBar = kind(title, total, unit)
    try:
        yield bar
    finally:
        bar.close()


def say(line: str) -> None:
    """Tell people something, on stderr."""
    print(line, file=sys.stderr, flush=True)

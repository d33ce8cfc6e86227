"""When trainer, engine and environments were busy: a trace for Perfetto or chrome://tracing, and utilisation from it.

Utilisation is computed from the intervals of work themselves, not from counters that somebody has to keep right.
"""

import json
import threading
import time
from collections.abc import Generator, Iterable
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

Interval = tuple[float, float]
"""Beginning and end in seconds of one clock."""


def busy_share(intervals: Iterable[Interval], window: Interval) -> float:
    """Share of the window in which at least one interval is open, in [0, 1]."""
    start, end = window
    if end <= start:
        return 0.0
    total, reached = 0.0, start
    for begin, finish in sorted(intervals):
        begin, finish = max(begin, reached), min(finish, end)
        if finish > begin:
            total += finish - begin
            reached = finish
    return total / (end - start)


def mean_busy(intervals: Iterable[Interval], window: Interval) -> float:
    """Mean number of intervals that are open at a moment of the window."""
    start, end = window
    if end <= start:
        return 0.0
    return sum(max(0.0, min(finish, end) - max(begin, start)) for begin, finish in intervals) / (end - start)


@dataclass
class _Work:
    worker: str
    what: str
    row: int
    begun: float
    ended: float | None = None


class Timeline:
    """Takes down intervals of work from any thread. Without a file nothing is kept but the present window.

    Args:
        file: The trace, Chrome's JSON array format; events are appended at every `cut`. None for no trace.
    """

    def __init__(self, file: Path | None = None) -> None:
        self._file = file
        self._lock = threading.Lock()
        self._work: list[_Work] = []
        self._free_rows: dict[str, set[int]] = {}
        self._num_rows: dict[str, int] = {}
        self._processes: dict[str, int] = {}
        self._window_start = time.perf_counter()
        # Perfetto reads an array that is not closed, so a trace can be appended to and survives a kill.
        if file is not None and not file.exists():
            file.write_text("[\n", encoding="utf-8")

    @contextmanager
    def busy(self, worker: str, what: str) -> Generator[None, None, None]:
        """The block is work of `worker`; several at the same time are several rows of the trace."""
        work = self._begin(worker, what)
        try:
            yield
        finally:
            with self._lock:
                work.ended = time.perf_counter()
                self._free_rows[worker].add(work.row)

    def _begin(self, worker: str, what: str) -> _Work:
        with self._lock:
            free = self._free_rows.setdefault(worker, set())
            if free:
                row = min(free)
                free.discard(row)
            else:
                row = self._num_rows.get(worker, 0)
                self._num_rows[worker] = row + 1
            work = _Work(worker, what, row, time.perf_counter())
            self._work.append(work)
            return work

    def cut(self) -> "Window":
        """End the window that began at the last cut; gives what happened in it and writes it to the trace.

        Work that goes on is part of this window and of the next.
        """
        with self._lock:
            now = time.perf_counter()
            window = (self._window_start, now)
            intervals: dict[str, list[Interval]] = {}
            for work in self._work:
                begun = max(work.begun, window[0])
                intervals.setdefault(work.worker, []).append((begun, now if work.ended is None else work.ended))
            ended = [work for work in self._work if work.ended is not None]
            self._work = [work for work in self._work if work.ended is None]
            self._window_start = now
            self._write(ended)
        return Window(window, intervals)

    def _write(self, ended: list[_Work]) -> None:
        if self._file is None or not ended:
            return
        lines: list[str] = []
        for work in ended:
            process = self._processes.get(work.worker)
            if process is None:
                process = self._processes[work.worker] = len(self._processes) + 1
                name = {"name": "process_name", "ph": "M", "pid": process, "args": {"name": work.worker}}
                lines.append(json.dumps(name))
            assert work.ended is not None, "only finished work is written"
            micros = {"ts": round(work.begun * 1e6, 1), "dur": round((work.ended - work.begun) * 1e6, 1)}
            lines.append(json.dumps({"name": work.what, "ph": "X", "pid": process, "tid": work.row, **micros}))
        with self._file.open("a", encoding="utf-8") as file:
            file.write("".join(f"{line},\n" for line in lines))


@dataclass(frozen=True)
class Window:
    """What happened between two cuts of a timeline."""

    window: Interval
    intervals: dict[str, list[Interval]]

    def utilisation(self, worker: str) -> float:
        """Share of the window in which the worker was busy."""
        return busy_share(self.intervals.get(worker, []), self.window)

    def mean_busy(self, worker: str) -> float:
        """How much of this kind was going on at a time, on average."""
        return mean_busy(self.intervals.get(worker, []), self.window)


def read_trace(file: Path) -> list[dict[str, object]]:
    """The events of a trace, also of one whose last line was cut short."""
    events: list[dict[str, object]] = []
    for line in file.read_text(encoding="utf-8").splitlines()[1:]:
        try:
            events.append(json.loads(line.rstrip(",")))
        except ValueError:
            break
    return events

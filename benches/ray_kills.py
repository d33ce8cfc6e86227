"""Kills parties of a run on Ray with SIGKILL at random moments, each by itself, and tells what became of it."""

import json
import os
import random
import signal
import threading
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

PATIENCE_SECONDS = 300.0
"""Most that a party may take to live again, and the run to make a step then."""


class Killer:
    """Kills until it has killed so often, in a thread beside a supervisor. Its log survives it.

    Args:
        directory: Of the run; the log is beside it.
        parties: To be killed, each once before any comes again, in random order: `engine`, `environment`, `buffer`,
            `trainer`, and `run` for the process of the command. One that is there several times is killed as often.
        kills: In all, those of earlier processes among them.
        seed: Of the choices and moments.
        steps: Most steps of the run between two kills.
    """

    def __init__(self, directory: Path, parties: Sequence[str], kills: int, seed: int, steps: int = 4) -> None:
        self.metrics = directory / "metrics.jsonl"
        self.log = directory.with_name(directory.name + ".kills.jsonl")
        self.parties = list(parties)
        self.kills = kills
        self.steps = steps
        self.error: Exception | None = None
        self.seed = seed
        self._random = random.Random(f"{seed} {len(self.told())}")
        self._actors: dict[str, list[Any]] = {}
        self._starts = 0
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True)

    def told(self) -> list[dict[str, Any]]:
        """Kills so far: the party, and the seconds until it lived again and the run had made a step."""
        lines = self.log.read_text().splitlines() if self.log.exists() else []
        return [json.loads(line) for line in lines]

    def started(self, actors: dict[str, list[Any]]) -> None:
        """A supervisor has started a trainer."""
        self._actors = actors
        self._starts += 1
        if self._starts == 1:
            self._thread.start()

    def close(self) -> None:
        """The run has ended."""
        self._ended.set()
        self._thread.join()
        if self.error is not None:
            raise self.error

    def _run(self) -> None:
        try:
            told = self.told()
            if told and told[-1]["seconds"] is None:  # the run itself was killed, and is there again
                self._wait_for_steps(1)
                self._rewrite([*told[:-1], told[-1] | {"seconds": time.time() - told[-1]["at"]}])
            while len(self.told()) < self.kills and not self._ended.is_set():
                self._wait_for_steps(self._random.randint(1, self.steps))
                time.sleep(self._random.uniform(0.0, 0.3))
                if not self._ended.is_set():
                    self._kill(self._next())
        except Exception as error:  # told to whoever closes
            self.error = error

    def _next(self) -> str:
        turn, place = divmod(len(self.told()), len(self.parties))
        return random.Random(f"{self.seed} {turn}").sample(self.parties, len(self.parties))[place]

    def _kill(self, party: str) -> None:
        kill = {"party": party, "at": time.time(), "step": self._last_step()}
        if party == "run":
            self._append(kill | {"seconds": None})
            os.kill(os.getpid(), signal.SIGKILL)
        starts, begun = self._starts, time.monotonic()
        actor = self._random.choice(self._actors[party])
        life = _life(actor)
        if life is None:
            return  # it has just died of another kill
        os.kill(int(life.split("-")[0]), signal.SIGKILL)
        while not self._ended.is_set():
            lives = self._starts > starts if party in ("trainer", "buffer") else _life(actor) not in (None, life)
            if lives:
                break
            if time.monotonic() - begun > PATIENCE_SECONDS:
                raise TimeoutError(f"the {party} did not come back")
            time.sleep(0.05)
        # A new trainer may first cut off the record of steps that were lost, which is a change of the file too.
        self._wait_for_steps(2 if party in ("trainer", "buffer") else 1)
        if not self._ended.is_set():
            self._append(kill | {"seconds": time.monotonic() - begun})

    def _wait_for_steps(self, count: int) -> None:
        """Wait until the run has written so many steps more, or has ended."""
        begun = time.monotonic()
        for _ in range(count):
            before = self._written()
            while self._written() == before and not self._ended.is_set():
                if time.monotonic() - begun > PATIENCE_SECONDS:
                    raise TimeoutError("the run made no further step")
                time.sleep(0.02)

    def _written(self) -> int:
        return self.metrics.stat().st_mtime_ns if self.metrics.exists() else 0

    def _last_step(self) -> int:
        lines = self.metrics.read_text().splitlines() if self.metrics.exists() else []
        return len(lines)

    def _append(self, kill: dict[str, Any]) -> None:
        with self.log.open("a") as file:
            file.write(json.dumps(kill) + "\n")

    def _rewrite(self, kills: Sequence[dict[str, Any]]) -> None:
        self.log.write_text("".join(json.dumps(kill) + "\n" for kill in kills))


def _life(actor: Any) -> str | None:
    import ray
    from ray.exceptions import RayError

    try:
        return ray.get(actor.status.remote(), timeout=10.0)
    except RayError:
        return None


def table(kills: Sequence[dict[str, Any]]) -> str:
    """Kills of each party and how long the run took to go on, in Markdown."""
    lines = ["| party | kills | seconds to go on: median | most |", "| --- | --- | --- | --- |"]
    for party in sorted({kill["party"] for kill in kills}):
        seconds = sorted(kill["seconds"] for kill in kills if kill["party"] == party and kill["seconds"] is not None)
        median, most = (seconds[len(seconds) // 2], seconds[-1]) if seconds else (float("nan"), float("nan"))
        lines.append(f"| {party} | {len(seconds)} | {median:.1f} | {most:.1f} |")
    return "\n".join(lines)

"""Running an evaluation: every answer that is still missing, so many at a time, each recorded as it comes."""

import asyncio
import json
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from glmcore.durable import write_file
from glmcore.envs.sandbox.config import SandboxConfig
from glmcore.errors import RequestError, RunError, ServerError
from glmcore.eval.judges import Judges
from glmcore.eval.models import AnswerModel, Sampling
from glmcore.eval.problems import EvalProblem, digest
from glmcore.eval.records import Record, Records, Settings, open_records
from glmcore.eval.summary import Row, markdown, summarize
from glmcore.progress import ProgressBar, progress
from glmcore.rl.seeds import seed_of

MAX_FAILURES = 8
"""So many answers missing one after another mean that there will be none."""
_SEED_BITS = 31
"""Servers take seeds of so many bits."""


@dataclass(frozen=True)
class RunOptions:
    """How an evaluation is carried out; none of it changes what is measured."""

    concurrency: int = 32
    """Answers under way at a time."""
    timeout_s: float = 1_800.0
    """Most that one answer takes; its judgement has bounds of its own."""
    sandbox: SandboxConfig = field(default_factory=SandboxConfig)
    show_progress: bool = True


async def evaluate(
    model: AnswerModel,
    problems: Sequence[EvalProblem],
    suites: Sequence[str],
    directory: Path,
    *,
    num_samples: int = 1,
    seed: int = 0,
    sampling: Sampling = Sampling(),  # noqa: B008 (frozen)
    options: RunOptions = RunOptions(),
) -> list[Row]:
    """Answer all problems, or those that `directory` has no answers to, and sum up.

    The same problem and sample is drawn with the same seed, whatever was answered before it. Besides the records the
    directory gets summary.json and summary.md.

    Args:
        model: Who answers.
        problems: Of `load_suites`.
        suites: Their names, for the record.
        directory: Of this evaluation; gone on with if it is one of the same settings.
        num_samples: Answers to each problem.
        seed: Of all draws.
        sampling: How answers are drawn.
        options: How the evaluation is carried out.

    Raises:
        RunError: Answers are missing in the end, or the directory belongs to something else.
        VerifierError: Answers cannot be judged here.
        SandboxError: Programs cannot be run here.
    """
    settings = Settings(
        model=model.name,
        suites=list(suites),
        num_problems=len(problems),
        num_samples=num_samples,
        seed=seed,
        sampling=asdict(sampling),
        problems_digest=digest(problems),
    )
    with (
        open_records(directory, settings) as records,
        Judges({problem.kind for problem in problems}, options.sandbox) as judges,
        progress("evaluate", total=len(problems) * num_samples, unit="answers", shown=options.show_progress) as bar,
    ):
        bar.skip(len(records.found))
        done = {(record.problem, record.sample) for record in records.found}
        missing = (
            _Attempt(problem, sample, seed_of(seed, index, sample) % 2**_SEED_BITS)
            for sample in range(num_samples)
            for index, problem in enumerate(problems)
            if (problem.id, sample) not in done
        )
        await _Pass(model, judges, records, bar, sampling, options).run(missing)
        rows = summarize(records.found)
    write_summary(directory, settings, rows)
    return rows


def write_summary(directory: Path, settings: Settings, rows: Sequence[Row]) -> dict[str, Any]:
    """Write summary.json and summary.md; gives what is in the former."""
    told = {**asdict(settings), "rows": [row.to_dict() for row in rows]}
    write_file(directory / "summary.json", json.dumps(told, indent=1, ensure_ascii=False) + "\n")
    write_file(directory / "summary.md", markdown(rows))
    return told


@dataclass(frozen=True)
class _Attempt:
    """One answer to be had."""

    problem: EvalProblem
    sample: int
    seed: int


class _Pass:
    """One go at all that is missing."""

    def __init__(
        self,
        model: AnswerModel,
        judges: Judges,
        records: Records,
        bar: ProgressBar,
        sampling: Sampling,
        options: RunOptions,
    ) -> None:
        self.model = model
        self.judges = judges
        self.records = records
        self.bar = bar
        self.sampling = sampling
        self.options = options
        self.num_missing = 0
        self.failures_in_a_row = 0
        self.first_failure = ""

    async def run(self, attempts: Iterator[_Attempt]) -> None:
        workers = [asyncio.create_task(self._work(attempts)) for _ in range(self.options.concurrency)]
        try:
            await asyncio.gather(*workers)
        finally:
            for worker in workers:
                worker.cancel()
            await asyncio.gather(*workers, return_exceptions=True)
        if self.num_missing:
            raise RunError(
                f"{self.num_missing} answers are missing ({self.first_failure}); those that came are recorded: repeat "
                f"the command to get the others"
            )

    async def _work(self, attempts: Iterator[_Attempt]) -> None:
        for attempt in attempts:
            if self.failures_in_a_row >= MAX_FAILURES:
                self.num_missing += 1
                continue
            try:
                record = await self._attempt(attempt)
            except (ServerError, RequestError, asyncio.TimeoutError) as error:
                self.num_missing += 1
                self.failures_in_a_row += 1
                self.first_failure = self.first_failure or str(error) or f"none in {self.options.timeout_s:g} s"
                continue
            self.failures_in_a_row = 0
            self.records.add(record)
            self.bar.advance(1)

    async def _attempt(self, attempt: _Attempt) -> Record:
        problem, started = attempt.problem, time.perf_counter()
        answering = self.model.answer(problem.question, self.sampling, attempt.seed)
        answer = await asyncio.wait_for(answering, self.options.timeout_s)
        seconds = time.perf_counter() - started
        verdict = await self.judges.judge(problem, answer.message)
        return Record(
            problem=problem.id,
            sample=attempt.sample,
            suite=problem.suite,
            category=problem.category,
            score=verdict.score,
            extracted=verdict.extracted,
            reason=verdict.reason,
            finish_reason=answer.finish_reason,
            num_tokens=answer.num_tokens,
            seconds=round(seconds, 3),
            question=problem.question,
            reasoning=answer.message.reasoning_content,
            content=answer.message.content,
        )

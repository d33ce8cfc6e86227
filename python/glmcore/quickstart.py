"""The whole road once: corpus, tokenizer, shards, training stages, RL, export, report."""

import contextlib
import time

from glmcore.convert import convert
from glmcore.data.prepare import prepare
from glmcore.engine.llm import LLM
from glmcore.envs.registry import open_family
from glmcore.progress import say
from glmcore.recipe import Recipe
from glmcore.report import format_table, summarize, write_report
from glmcore.rl.rollout import RolloutWorker
from glmcore.rl.stage import reinforce, rewards, transcript
from glmcore.rundir import RunDirectory, open_run, timed
from glmcore.train.stages import train_stages

NUM_ANSWERS = 3
"""Held-out problems that the exported model answers at the end."""


def quickstart(recipe: Recipe) -> None:
    """Go the whole road of `recipe`, or the rest of it if the run directory holds a part.

    Prints the table of stations and the reward before and after RL on stdout.

    Raises:
        GlmcoreError: Anything that a user can mend: corpus, recipe, checkpoint, run directory.
    """
    with open_run(recipe) as run:
        say(f"run directory {run.path}, seed {recipe.run.seed}, {run.recipe.run.num_threads} threads")
        prepare(run)
        train_stages(run)
        reinforce(run)
        before, after = rewards(run)
        if not run.station_done("export"):
            with timed(run, "export") as details:
                export(run)
                details["note"] = "bf16 and block-fp8 checkpoints, reloaded"
        started = time.perf_counter()
        page = write_report(run.path)
        run.record_station("report", time.perf_counter() - started)
    print(format_table(summarize(run.path), markdown=False))
    print(f"mean reward on held-out problems before RL: {before}")
    print(f"mean reward on held-out problems after RL:  {after}")
    verdict = "do not overlap" if after.low > before.high else "OVERLAP: no clear rise"
    print(f"the 95% intervals {verdict}")
    say(f"report: {page}\ntalk to it: glmcore chat {run.path}")


def export(run: RunDirectory) -> None:
    """Write the final model as bfloat16 and block-FP8 checkpoints and answer held-out problems with the former."""
    run.export.mkdir(exist_ok=True)
    bf16, fp8 = run.export / "bf16", run.export / "fp8"
    if not bf16.exists():
        convert(run.path, bf16, "bf16", progress=False)
    if not fp8.exists():
        convert(bf16, fp8, "fp8", progress=False)
    run.record_samples("exported", _answers(run))


def _answers(run: RunDirectory) -> list[dict[str, object]]:
    """Greedy answers of the reloaded checkpoint to held-out problems."""
    config = run.recipe.rl
    llm = LLM(run.export / "bf16")
    with contextlib.closing(open_family(config.environment, config.tasks)) as family:
        worker = RolloutWorker(
            llm.engine,
            llm.tokenizer,
            family.new,
            max_tokens=config.max_response_tokens,
            temperature=0.0,
            limits=config.environment.limits,
            thinking=config.environment.thinking,
        )
        problems = family.tasks("held_out", NUM_ANSWERS, run.recipe.run.seed + 2)
        rollouts = worker.roll_out(problems, [0] * len(problems))
    shown = [transcript(rollout) for rollout in rollouts]
    for one in shown:
        verdict = "right" if one["reward"] == 1 else "wrong"
        say(f"Q: {one['question']}\nA ({verdict}): {str(one['reply']).strip()}")
    return shown

"""Reinforcement learning beside TRL's GRPOTrainer, in turn and asynchronously, with environments of four latencies.

Arms: A is TRL (one thread of PyTorch, which is its fastest here), B our synchronous loop, C one step off (batches as
they were admitted, at most one version behind), D1 to D8 our asynchronous loop with max_staleness 1 to 8. All have the
same initial weights, prompts in the same order, groups of 8, 8 groups a step, 8 tokens an answer, the same sampling,
rate, optimiser, clipping and token-mean loss, and 64 environments that work at a time; the n-th attempt at a task takes
equally long in every arm. Each run is a process of its own with one thread of PyTorch; arms take turns. B/A is what the
implementation is worth, D/B what asynchrony is; D/A mixes the two.

No run can be faster than its bound: the larger of the CPU time of the thread that trains (in A and B it samples too)
and of the work of the environments over their number. Shares are parts of the wall time: of weight updates, and of the
CPU time inside the buffer's calls. Utilisation is that of trainer, engine and environments, from intervals of work.

    python benches/rl.py                                              # all arms, 4 latencies, 5 seeds: about an hour
    python benches/rl.py --latency none --latency pareto --seeds 3    # about a quarter of an hour
    python benches/rl.py --arm B --arm D4 --latency pareto --seeds 1 --out rl.json
"""

import argparse
import contextlib
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Generator, Sequence
from pathlib import Path
from typing import Any

HERE = Path(__file__).parent
ARMS = ("A", "B", "C", "D1", "D2", "D4", "D8")
TARGET = 0.9
"""Mean reward over five steps that is waited for."""
SLOTS = 64
BUFFER_CALLS = (
    "admit",
    "room",
    "rollouts",
    "append_tokens",
    "write",
    "finish",
    "fail",
    "set_timeout",
    "take",
    "groups",
)
BUFFER_CALLS += ("running", "stats", "prepare", "ack", "flush")


def main() -> None:
    """Run what is asked for and print the tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--arm", action="append", choices=ARMS)
    parser.add_argument("--latency", action="append", choices=["none", "constant", "lognormal", "pareto"])
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--steps", type=int, default=60)
    parser.add_argument("--learning-rate", type=float, default=2e-3)
    parser.add_argument(
        "--out", type=Path, help="file for all results, JSON; runs that it has already are not repeated"
    )
    parser.add_argument("--one", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.one:
        print(json.dumps(run_one(json.loads(args.one))))
        return
    results: list[dict[str, Any]] = json.loads(args.out.read_text()) if args.out and args.out.exists() else []
    done = {key_of(result) for result in results}
    with tempfile.TemporaryDirectory() as place:
        export = prepare(Path(place))
        for seed in range(args.seeds):
            for latency in args.latency or ["none", "constant", "lognormal", "pareto"]:
                for arm in args.arm or ARMS:
                    job = {"arm": arm, "latency": latency, "seed": seed, "steps": args.steps}
                    job |= {"rate": args.learning_rate, "export": str(export)}
                    if key_of(job) in done:
                        continue
                    results.append(start(job))
                    if args.out:
                        keep(results, args.out)
    print_tables(results)


def keep(results: list[dict[str, Any]], file: Path) -> None:
    """Write the file anew; a kill leaves the old one or the new one."""
    part = file.with_name(f"{file.name}.part")
    part.write_text(json.dumps(results, indent=1))
    part.replace(file)


def key_of(run: dict[str, Any]) -> tuple[Any, ...]:
    """What tells one run from another."""
    return tuple(run[name] for name in ("arm", "latency", "seed", "steps", "rate"))


def prepare(place: Path) -> Path:
    """The model that all arms begin with."""
    import torch
    from digit_copy import prepared_model, tiny_tokenizer

    torch.set_num_threads(1)
    tokenizer = tiny_tokenizer()
    model = prepared_model(tokenizer, steps=150)
    # What an export in bfloat16 holds, so that all begin with the same numbers.
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(parameter.bfloat16())
    model.save_pretrained(place / "model")
    tokenizer.save(str(place / "model"))
    return place / "model"


def start(job: dict[str, Any]) -> dict[str, Any]:
    """One run in a process of its own."""
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1", "TOKENIZERS_PARALLELISM": "false"}
    load = os.getloadavg()[0]
    command = [sys.executable, __file__, "--one", json.dumps(job)]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    if done.returncode:
        sys.exit(f"{job}: {done.stderr[-2000:]}")
    found = json.loads(done.stdout.splitlines()[-1]) | {"load": load}
    print(
        f"{job['arm']:>2} {job['latency']:>9} seed {job['seed']}: {found['seconds']:6.1f} s, "
        f"{TARGET} after {found['seconds_to_target'] or float('nan'):6.1f} s, last reward {found['last_reward']:.3f}",
        file=sys.stderr,
    )
    return found


def run_one(job: dict[str, Any]) -> dict[str, Any]:
    """Train one arm; gives what there is to say of it."""
    import torch

    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as place:
        if job["arm"] == "A":
            from rl_trl import train_trl

            steps, figures = train_trl(
                Path(job["export"]),
                Path(place),
                latency=job["latency"],
                max_steps=job["steps"],
                learning_rate=job["rate"],
                seed=job["seed"],
                slots=SLOTS,
            )
        else:
            steps, figures = train_ours(job, Path(place) / "run")
    rewards = [reward for _, reward in steps]
    seconds = [moment for moment, _ in steps]
    means = [statistics.mean(rewards[max(0, i - 4) : i + 1]) for i in range(len(rewards))]
    reached = next((seconds[i] for i in range(4, len(means)) if means[i] >= TARGET), None)
    return {
        **{name: job[name] for name in ("arm", "latency", "seed", "steps", "rate")},
        "seconds": seconds[-1],
        "bound_s": max(figures["trainer_cpu_s"], figures["work_s"] / SLOTS),
        "seconds_to_target": reached,
        "last_reward": means[-1],
        "half_reward": means[len(means) // 2 - 1],
        "rewards": rewards,
        "rollouts_per_s": 64 * len(steps) / seconds[-1],
        **figures,
    }


def train_ours(job: dict[str, Any], directory: Path) -> tuple[list[tuple[float, float]], dict[str, Any]]:
    """Train one of our arms; gives times and rewards of its steps, and figures."""
    from digit_copy import LATENCIES, Clocks, DigitFamily
    from digit_run import digit_config, train_digits

    from glmcore.metrics import read_metrics
    from glmcore.model.glm import Glm
    from glmcore.trajectory import TrajectoryBuffer

    fields: dict[str, Any] = {"max_steps": job["steps"], "learning_rate": job["rate"]}
    if job["arm"] != "B":
        staleness = 1 if job["arm"] == "C" else int(job["arm"][1:])
        asynchronous = {"max_staleness": staleness, "environment_slots": SLOTS, "record_rollouts": False}
        fields |= {
            "mode": "async",
            "asynchronous": asynchronous | {"order": "fifo" if job["arm"] == "C" else "deadline"},
        }
    moments: list[float] = []
    clocks = Clocks()
    family = DigitFamily(LATENCIES[job["latency"]])
    with counted(TrajectoryBuffer, BUFFER_CALLS) as buffer_cpu:
        train_digits(
            directory,
            digit_config(**fields),
            family=family,
            weights=Glm.from_pretrained(job["export"]).state_dict(),
            seed=job["seed"],
            on_start=clocks.start,
            after_step=lambda _: moments.append(clocks.seconds),
        )
    records = read_metrics(directory / "metrics.jsonl")
    ages: dict[int, int] = {}
    for record in records:
        for age, count in record["staleness"].items():
            ages[int(age)] = ages.get(int(age), 0) + count
    total = moments[-1]
    figures = clocks.figures() | {
        "work_s": family.work_s,
        "buffer_share": buffer_cpu() / total,
        "mean_staleness": sum(age * count for age, count in ages.items()) / sum(ages.values()),
        "max_staleness": max(ages),
        "sync_share": sum(record["sync_seconds"] for record in records) / total,
        "trainer_utilisation": sum(record["train_seconds"] for record in records) / total,
    }
    for name in ("engine_utilisation", "slot_utilisation"):
        if name in records[-1]:
            figures[name] = statistics.mean(record[name] for record in records)
    return list(zip(moments, [record["reward_mean"] for record in records], strict=True)), figures


@contextlib.contextmanager
def counted(owner: Any, names: Sequence[str]) -> Generator[Callable[[], float], None, None]:
    """Count the CPU time of methods, in all threads; gives what tells the seconds so far."""
    spent: list[float] = []

    def count(method: Any) -> Any:
        def timed(*args: Any, **kwargs: Any) -> Any:
            before = time.thread_time()
            try:
                return method(*args, **kwargs)
            finally:
                spent.append(time.thread_time() - before)

        return timed

    before = {name: getattr(owner, name) for name in names}
    for name, method in before.items():
        setattr(owner, name, count(method))
    try:
        yield lambda: sum(spent)
    finally:
        for name, method in before.items():
            setattr(owner, name, method)


def print_tables(results: list[dict[str, Any]]) -> None:
    """Medians over the seeds, with the range; ratios are of medians."""
    for latency in dict.fromkeys(result["latency"] for result in results):
        print(f"\nlatency {latency}: seconds to a 5-step mean reward of {TARGET} (range), median of seeds")
        print("| arm | s to 0.9 | runs there | s | of bound | rollouts/s | CPU s | reward at half, all samples |")
        print("|---|---|---|---|---|---|---|---|")
        here = [result for result in results if result["latency"] == latency]
        arms = {arm: [run for run in here if run["arm"] == arm] for arm in dict.fromkeys(run["arm"] for run in here)}
        medians: dict[str, float] = {}
        for arm, runs in arms.items():
            reached = sorted(run["seconds_to_target"] for run in runs if run["seconds_to_target"] is not None)
            told = "never"
            if reached:
                medians[arm] = statistics.median(reached)
                told = f"{medians[arm]:.1f} ({reached[0]:.1f} to {reached[-1]:.1f})"
            over = statistics.median(run["seconds"] / run["bound_s"] for run in runs)
            print(
                f"| {arm} | {told} | {len(reached)} of {len(runs)} | {_median(runs, 'seconds'):.1f} | {over:.2f} | "
                f"{_median(runs, 'rollouts_per_s'):.0f} | {_median(runs, 'cpu_s'):.1f} | "
                f"{_median(runs, 'half_reward'):.3f}, {_median(runs, 'last_reward'):.3f} |"
            )
        for over, under in (("A", "B"), ("B", "C"), *(("B", arm) for arm in medians if arm.startswith("D"))):
            if over in medians and under in medians:
                print(f"{under} is {medians[over] / medians[under]:.2f} times as fast as {over}")
        print_shares(arms)


def print_shares(arms: dict[str, list[dict[str, Any]]]) -> None:
    """Where the time of our arms goes."""
    names = ("sync_share", "buffer_share", "trainer_utilisation", "engine_utilisation", "slot_utilisation")
    print("\n| arm | weight updates | buffer | trainer busy | engine busy | slots busy | staleness mean, max |")
    print("|---|---|---|---|---|---|---|")
    for arm, runs in arms.items():
        if arm != "A":
            shares = " | ".join(f"{_median(runs, name):.1%}" if name in runs[0] else "-" for name in names)
            print(f"| {arm} | {shares} | {_median(runs, 'mean_staleness'):.1f}, {_median(runs, 'max_staleness'):.0f} |")


def _median(runs: list[dict[str, Any]], name: str) -> float:
    return statistics.median(run[name] for run in runs)


if __name__ == "__main__":
    sys.path.insert(0, str(HERE))
    main()

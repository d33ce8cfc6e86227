"""Kill a run of reinforcement learning with SIGKILL at random moments, again and again, and look at what became of it.

Whatever the moments, the run goes on: every step is made once, no group is lost or trained on twice, no token is older
than `max_staleness`, and a synchronous run ends with the weights of one that nobody has disturbed, bit for bit. On Ray
each party is killed by itself: engines, environments, the owner of the buffer, ranks of the trainer, and now and then
the whole run.

    python benches/rl_soak.py                    # 100 kills of an asynchronous run, then 100 of a synchronous one
    python benches/rl_soak.py --mode async --kills 20 --seed 3
    python benches/rl_soak.py --backend ray --directory soak   # 100 kills of parties; called again it goes on
"""

import argparse
import multiprocessing
import os
import random
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

HERE = Path(__file__).parent
STALENESS = 2
GROUPS = 3


def settings(mode: str, steps: int) -> dict[str, Any]:
    """Of the runs that are killed."""
    return {
        "max_steps": steps,
        "groups_per_step": GROUPS,
        "rollouts_per_group": 4,
        "checkpoint_every_steps": 3,
        "mode": mode,
        "asynchronous": {"max_staleness": STALENESS},
    }


def train(directory: str, weights: str, mode: str, steps: int, finished: Any) -> None:
    """What the process that is killed does."""
    import torch
    from digit_copy import LATENCIES, DigitFamily
    from digit_run import digit_config, train_digits

    torch.set_num_threads(1)
    sys.stderr = Path("/dev/null").open("w")  # noqa: SIM115 (until the process is killed)
    config = digit_config(**settings(mode, steps))
    family = DigitFamily(LATENCIES["uneven"])
    train_digits(Path(directory), config, family=family, weights=torch.load(weights, weights_only=True))
    finished.set()


def soak(directory: Path, mode: str, *, kills: int, steps: int, seed: int) -> int:
    """Kill the run in `directory` until it has been killed so often or is done, then let it end; gives the kills."""
    import torch
    from digit_copy import prepared_model, tiny_tokenizer

    torch.set_num_threads(1)
    directory.mkdir(parents=True, exist_ok=True)
    weights = directory / "weights.pt"
    torch.save(prepared_model(tiny_tokenizer(), steps=20).state_dict(), weights)
    server = multiprocessing.get_context("forkserver")
    server.set_forkserver_preload(["digit_run", "glmcore.rl.sources", "torch"])
    chance = random.Random(seed)
    finished, killed = server.Event(), 0
    while not finished.is_set():
        arguments = (str(directory / "run"), str(weights), mode, steps, finished)
        process = server.Process(target=train, args=arguments)
        process.start()
        if killed < kills:
            wait_for_steps(process, directory / "run" / "metrics.jsonl", chance.randint(0, 2 * steps // (kills + 1)))
            process.join(chance.uniform(0.0, 0.3))
        else:
            process.join(300)
        if process.is_alive():
            process.kill()
            killed += 1
        process.join()
        if killed > kills or (process.exitcode not in (0, -9)):
            raise RuntimeError(f"the run did not end by itself: exit code {process.exitcode}")
    return killed


def train_on_ray(directory: str, weights: str, mode: str, steps: int, options: dict[str, Any], finished: Any) -> None:
    """What the process of the command does, which kills its parties and, if that is asked for, itself."""
    import torch
    from digit_run import digit_config, train_digits_on_ray
    from ray_kills import Killer

    killer = Killer(Path(directory), options["parties"], options["kills"], options["seed"])
    often = {"max_worker_restarts": 10**6, "max_trainer_restarts": 10**6, "health_every_s": 0.2}
    config = digit_config(**settings(mode, steps), backend="ray", ray=often)
    beginning = torch.load(weights, weights_only=True)
    train_digits_on_ray(
        Path(directory), config, beginning, latency="uneven", ranks=options["ranks"], on_start=killer.started
    )
    killer.close()
    finished.set()


def soak_on_ray(
    directory: Path, mode: str, *, kills: int, steps: int, seed: int, ranks: int = 1, kills_run: bool = True
) -> None:
    """Have a run on Ray killed party by party until it has been so often, and let it end."""
    import torch
    from digit_copy import prepared_model, tiny_tokenizer

    directory.mkdir(parents=True, exist_ok=True)
    weights = directory / "weights.pt"
    torch.set_num_threads(1)
    torch.save(prepared_model(tiny_tokenizer(), steps=20).state_dict(), weights)
    os.environ |= {
        "PYTHONPATH": f"{HERE}:{HERE.parent / 'python'}",
        "RAY_AUTH_MODE": "disabled",
        "RAY_USAGE_STATS_ENABLED": "0",
        "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",
    }
    alone = ["engine", "environment", "buffer", "trainer"] if mode == "async" else ["buffer", "trainer"]
    parties = alone * 3 + ["run"] if kills_run else alone  # starting a Ray takes longest
    options = {"parties": parties, "kills": kills, "seed": seed, "ranks": ranks}
    server = multiprocessing.get_context("spawn")
    finished = server.Event()
    while not finished.is_set():
        arguments = (str(directory / "run"), str(weights), mode, steps, options, finished)
        process = server.Process(target=train_on_ray, args=arguments)
        process.start()
        process.join()
        if process.exitcode not in (0, -9):
            raise RuntimeError(f"the run did not end by itself: exit code {process.exitcode}")


def wait_for_steps(process: Any, metrics: Path, count: int) -> None:
    """Wait until a run has made so many steps more, or ends."""

    def made() -> int:
        return metrics.read_bytes().count(b"\n") if metrics.exists() else 0

    until = made() + count
    while process.is_alive() and made() < until:
        time.sleep(0.01)


@dataclass(frozen=True)
class Found:
    """What a finished run has trained on."""

    lost: int
    """Groups that were admitted and are neither trained on nor in the buffer."""
    twice: int
    """Groups that were trained on more than once."""
    rewards: list[float]
    """Mean reward of each step."""


def check(directory: Path, mode: str, steps: int) -> Found:
    """Whether the run in `directory` has kept its promises.

    Raises:
        AssertionError: It has not.
    """
    from glmcore.metrics import read_metrics
    from glmcore.rl.replay import BatchRecord
    from glmcore.trajectory import TrajectoryBuffer

    records = read_metrics(directory / "metrics.jsonl")
    assert [record["step"] for record in records] == list(range(1, steps + 1))
    limits = {"capacity": 1000, "groups_per_step": GROUPS, "max_staleness": STALENESS if mode == "async" else 0}
    with TrajectoryBuffer.open(str(directory / "trajectories"), **limits) as buffer:  # pyright: ignore[reportArgumentType]
        taken = [group.group_id for lease in buffer.consumed() for group in lease.groups]
        assert buffer.stats()["max_staleness_seen"] <= limits["max_staleness"]
        assert buffer.stats()["failed_rollouts"] == 0
        held = {group.group_id for group in buffer.groups()}
    if mode == "async":
        record = BatchRecord(directory / "batches")
        batches = [record.read(step) for step in range(1, steps + 1)]
        assert [group for batch in batches if batch for group in batch.group_ids] == taken
    known = held | set(taken)
    lost = max(known) + 1 - len(known) if mode == "async" else 0  # in turn, groups that a kill hit are sampled again
    found = Found(lost, len(taken) - len(set(taken)), [record["reward_mean"] for record in records])
    assert (len(taken), found.lost, found.twice) == (steps * GROUPS, 0, 0), f"lost {found.lost}, twice {found.twice}"
    return found


def same_weights(one: Path, other: Path) -> bool:
    """Whether the last checkpoints of two runs are equal, byte for byte."""

    def last(directory: Path) -> dict[str, bytes]:
        newest = max((directory / "checkpoints").iterdir())
        return {file.name: file.read_bytes() for file in newest.iterdir()}

    return last(one) == last(other)


def main() -> None:
    """Kill as often as is asked for."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--mode", choices=["sync", "async"], action="append")
    parser.add_argument("--backend", choices=["local", "ray"], default="local")
    parser.add_argument("--kills", type=int, default=100)
    parser.add_argument("--steps", type=int, default=600)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--ranks", type=int, default=1, help="of the trainer on Ray")
    parser.add_argument("--directory", type=Path, help="where the runs are, to go on with; by default a temporary one")
    args = parser.parse_args()
    kill = local_kills if args.backend == "local" else ray_kills
    with tempfile.TemporaryDirectory() as temporary:
        for mode in args.mode or ["async", "sync"]:
            place = (args.directory or Path(temporary)).absolute() / mode
            begun = time.perf_counter()
            told = kill(place, mode, args)
            found = check(place / "killed" / "run", mode, args.steps)
            told += f"\n{args.steps} steps, {found.lost} groups lost, {found.twice} trained on twice"
            soak(place / "whole", mode, kills=0, steps=args.steps, seed=args.seed)
            if mode == "sync":
                same = same_weights(place / "killed" / "run", place / "whole" / "run")
                assert same, "the weights differ from those of a run that nobody disturbed"
                told += ", the weights are those of a run that nobody disturbed, bit for bit"
            else:
                told += "\n" + curves(found.rewards, check(place / "whole" / "run", mode, args.steps).rewards)
            print(f"{mode}, {args.backend}, {time.perf_counter() - begun:.0f} s\n{told}", flush=True)


def local_kills(place: Path, mode: str, args: argparse.Namespace) -> str:
    """Kill a run of one process."""
    return f"killed {soak(place / 'killed', mode, kills=args.kills, steps=args.steps, seed=args.seed)} times"


def ray_kills(place: Path, mode: str, args: argparse.Namespace) -> str:
    """Kill parties of a run on Ray."""
    from ray_kills import Killer, table

    directory = place / "killed"
    soak_on_ray(directory, mode, kills=args.kills, steps=args.steps, seed=args.seed, ranks=args.ranks)
    return table(Killer(directory / "run", [], 0, 0).told())


def curves(one: list[float], other: list[float], parts: int = 5) -> str:
    """Mean rewards of two runs over equal parts of their steps, and by how many standard errors they differ."""
    lines = ["| steps | killed | undisturbed | difference in standard errors |", "| --- | --- | --- | --- |"]
    for place in np.array_split(np.arange(len(one)), parts):
        ours, theirs = np.array(one)[place], np.array(other)[place]
        error = float(np.sqrt(_squared_error(ours) + _squared_error(theirs)))
        lines.append(
            f"| {place[0] + 1}-{place[-1] + 1} | {ours.mean():.3f} | {theirs.mean():.3f} "
            f"| {(ours.mean() - theirs.mean()) / error:+.1f} |"
        )
    return "\n".join(lines)


def _squared_error(rewards: "np.ndarray", blocks: int = 8) -> float:
    """Of a mean over steps that depend on each other, from the means of blocks of them."""
    means = [block.mean() for block in np.array_split(rewards, blocks)]
    return float(np.var(means, ddof=1)) / blocks


if __name__ == "__main__":
    sys.path.insert(0, str(HERE))
    main()

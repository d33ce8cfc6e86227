"""Kill a run of reinforcement learning with SIGKILL at random moments, again and again, and look at what became of it.

Whatever the moments, the run goes on: every step is made once, no group is trained on twice, no token is older than
`max_staleness`, and a synchronous run ends with the weights of one that nobody has disturbed, bit for bit.

    python benches/rl_soak.py                    # 100 kills of an asynchronous run, then 100 of a synchronous one
    python benches/rl_soak.py --mode async --kills 20 --seed 3
"""

import argparse
import multiprocessing
import random
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

HERE = Path(__file__).parent
STALENESS = 2
GROUPS = 3


def train(directory: str, weights: str, mode: str, steps: int, finished: Any) -> None:
    """What the process that is killed does."""
    import torch
    from digit_copy import DigitFamily
    from digit_run import digit_config, train_digits

    torch.set_num_threads(1)
    sys.stderr = Path("/dev/null").open("w")  # noqa: SIM115 (until the process is killed)
    config = digit_config(
        max_steps=steps,
        groups_per_step=GROUPS,
        rollouts_per_group=4,
        checkpoint_every_steps=3,
        mode=mode,
        asynchronous={"max_staleness": STALENESS},
    )
    family = DigitFamily(lambda chance: float(chance.choice([0.0, 0.0, 0.02])))
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


def wait_for_steps(process: Any, metrics: Path, count: int) -> None:
    """Wait until a run has made so many steps more, or ends."""

    def made() -> int:
        return metrics.read_bytes().count(b"\n") if metrics.exists() else 0

    until = made() + count
    while process.is_alive() and made() < until:
        time.sleep(0.01)


def check(directory: Path, mode: str, steps: int) -> None:
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
        assert len(taken) == len(set(taken)) == steps * GROUPS, "a group was trained on twice, or never"
        assert buffer.stats()["max_staleness_seen"] <= limits["max_staleness"]
        assert buffer.stats()["failed_rollouts"] == 0
    if mode == "async":
        record = BatchRecord(directory / "batches")
        batches = [record.read(step) for step in range(1, steps + 1)]
        assert [group for batch in batches if batch for group in batch.group_ids] == taken


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
    parser.add_argument("--kills", type=int, default=100)
    parser.add_argument("--steps", type=int, default=600)
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    for mode in args.mode or ["async", "sync"]:
        with tempfile.TemporaryDirectory() as place:
            begun = time.perf_counter()
            killed = soak(Path(place) / "killed", mode, kills=args.kills, steps=args.steps, seed=args.seed)
            check(Path(place) / "killed" / "run", mode, args.steps)
            told = ""
            if mode == "sync":
                soak(Path(place) / "whole", mode, kills=0, steps=args.steps, seed=args.seed)
                same = same_weights(Path(place) / "killed" / "run", Path(place) / "whole" / "run")
                assert same, "the weights differ from those of a run that nobody disturbed"
                told = ", the weights are those of a run that nobody disturbed"
            print(f"{mode}: killed {killed} times in {args.steps} steps, {time.perf_counter() - begun:.0f} s{told}")


if __name__ == "__main__":
    sys.path.insert(0, str(HERE))
    main()

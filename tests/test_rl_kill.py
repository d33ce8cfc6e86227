"""A run of reinforcement learning that is killed at random moments, or finds its disk full."""

import subprocess
import sys
from pathlib import Path

import pytest
from rl_soak import check, same_weights, soak

ROOT = Path(__file__).parents[1]


@pytest.mark.parametrize(("mode", "kills", "steps"), [("async", 2, 12), ("sync", 2, 12)])
def test_killed_at_random_moments_it_trains_on_every_group_once(tmp_path, mode, kills, steps):
    assert soak(tmp_path / "killed", mode, kills=kills, steps=steps, seed=1) >= 1
    check(tmp_path / "killed" / "run", mode, steps)
    if mode == "sync":
        soak(tmp_path / "whole", mode, kills=0, steps=steps, seed=1)
        assert same_weights(tmp_path / "killed" / "run", tmp_path / "whole" / "run")


FULL = """
import resource, sys
from pathlib import Path
from digit_copy import LATENCIES, DigitFamily, prepared_model, tiny_tokenizer
from digit_run import digit_config, train_digits
from glmcore.errors import GlmcoreError
if sys.argv[2] == "full":  # no file may grow beyond this, as on a disk without room
    resource.setrlimit(resource.RLIMIT_FSIZE, (60_000, 60_000))
config = digit_config(max_steps=6, groups_per_step=4, mode="async", asynchronous={"record_rollouts": False})
try:
    weights = prepared_model(tiny_tokenizer(), steps=1).state_dict()
    train_digits(Path(sys.argv[1]), config, family=DigitFamily(LATENCIES["none"]), weights=weights)
except (GlmcoreError, OSError) as error:
    print(type(error).__name__, error)
    sys.exit(1)
"""


def test_without_room_for_rollouts_it_stops_with_the_reason_and_goes_on_when_there_is(tmp_path):
    def run(room: str) -> subprocess.CompletedProcess:
        environment = {"PYTHONPATH": f"{ROOT / 'benches'}:{ROOT / 'python'}", "PATH": "", "OMP_NUM_THREADS": "1"}
        command = [sys.executable, "-c", FULL, str(tmp_path), room]
        return subprocess.run(command, env=environment, capture_output=True, text=True, timeout=120, check=False)

    stopped = run("full")
    assert stopped.returncode == 1, stopped.stderr
    assert "File too large" in stopped.stdout
    assert run("room").returncode == 0

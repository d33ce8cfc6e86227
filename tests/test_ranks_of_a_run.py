"""`glmcore train` with several processes, as torchrun starts them."""

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch.distributed as dist
from distributed import run_ranks

from glmcore.cli import main

TINY = Path(__file__).parent / "tiny.toml"


def command(rank: int, arguments: list[str]) -> int:
    return main(arguments)


def start(rank: int, port: int, arguments: list[str]) -> subprocess.Popen:
    environment = {
        "RANK": str(rank),
        "LOCAL_RANK": str(rank),
        "WORLD_SIZE": "2",
        "LOCAL_WORLD_SIZE": "2",
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(port),
        "TORCHELASTIC_USE_AGENT_STORE": "True",
    }
    return subprocess.Popen(
        [sys.executable, "-m", "glmcore", *arguments],
        env=os.environ | environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


@pytest.mark.e2e
def test_two_ranks_prepare_train_and_save_what_one_process_does(tmp_path):
    settings = ["train", str(TINY), "train.batch.rows_multiple=2"]
    assert main([*settings, f"run.dir={tmp_path / 'one'}"]) == 0
    assert run_ranks(2, command, [*settings, f"run.dir={tmp_path / 'two'}", "parallel.data=2"], timeout=120) == [0, 0]

    one, two = (
        [json.loads(line) for line in (tmp_path / name / "metrics.jsonl").read_text().splitlines()]
        for name in ("one", "two")
    )
    assert [(r["stage"], r["step"], r["tokens"]) for r in two] == [(r["stage"], r["step"], r["tokens"]) for r in one]
    # The same sums in another order: float32 rounding, 6e-8 a term, over a dozen small steps.
    for name in ("loss", "mtp_loss", "grad_norm"):
        np.testing.assert_allclose([r[name] for r in two], [r[name] for r in one], rtol=1e-5)
    checkpoints = [sorted(path.name for path in (tmp_path / name / "checkpoints").iterdir()) for name in ("one", "two")]
    assert checkpoints[0] == checkpoints[1]


def test_an_error_on_one_rank_ends_all_with_one_line(tmp_path):
    (tmp_path / "theirs.txt").write_text("not a run")
    store = dist.TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)
    ranks = [start(rank, store.port, ["train", str(TINY), f"run.dir={tmp_path}", "parallel.data=2"]) for rank in (0, 1)]
    try:
        outputs = [rank.communicate(timeout=90) for rank in ranks]
    finally:
        for rank in ranks:
            rank.kill()
    assert [rank.returncode for rank in ranks] == [1, 1]
    assert not any(stdout for stdout, _ in outputs)
    lines = [line for _, stderr in outputs for line in stderr.splitlines() if "[W" not in line]
    assert len(lines) == 1, lines
    assert lines[0].startswith("glmcore: error: rank 0: ")
    assert "is not empty and holds no run" in lines[0]


def test_a_layout_of_other_size_than_the_processes_is_refused(tmp_path, capsys):
    assert main(["train", str(TINY), f"run.dir={tmp_path / 'run'}", "parallel.data=2"]) == 1
    assert "parallel needs 2 processes" in capsys.readouterr().err

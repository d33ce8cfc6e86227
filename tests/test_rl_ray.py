"""Rollout workers, environments and the buffer in actors, on a Ray of this machine."""

import importlib.util
import json
from pathlib import Path

import pytest
import torch
from digit_copy import LATENCIES, DigitFamily, prepared_model, tiny_tokenizer
from digit_run import digit_config, train_digits

from glmcore.errors import RunError
from glmcore.rl.replay import BatchRecord

pytestmark = [
    pytest.mark.skipif(importlib.util.find_spec("ray") is None, reason="Ray is not installed: glmcore[ray]"),
    pytest.mark.filterwarnings("ignore"),  # Ray's own
]


@pytest.fixture
def cluster(monkeypatch):
    import ray

    monkeypatch.setenv("RAY_AUTH_MODE", "disabled")
    monkeypatch.setenv("RAY_USAGE_STATS_ENABLED", "0")
    root = Path(__file__).parents[1]
    monkeypatch.setenv("PYTHONPATH", f"{root / 'benches'}:{root / 'tests'}:{root / 'python'}")
    ray.init(num_cpus=2, include_dashboard=False, log_to_driver=False, object_store_memory=80 * 2**20)
    yield
    ray.shutdown()


def ray_config(marker: Path):
    """Rollouts of the seventh task and those behind it kill their worker once."""
    options = {"marker": str(marker)}
    environment = {"name": "custom", "factory": "deadly_family:deadly_family", "options": options, "thinking": False}
    usual = {
        "max_steps": 8,
        "groups_per_step": 3,
        "rollouts_per_group": 4,
        "mode": "async",
        "backend": "ray",
        "asynchronous": {"max_staleness": 2},
        "environment": environment,
        "routing_replay": True,  # refuses rollouts whose worker did not record the choice of experts
    }
    return digit_config(**usual)


@pytest.mark.usefixtures("cluster")
def test_a_run_goes_on_when_a_worker_dies(tmp_path):
    torch.set_num_threads(1)
    weights = prepared_model(tiny_tokenizer(), steps=5).state_dict()
    family = DigitFamily(LATENCIES["none"])
    train_digits(tmp_path, ray_config(tmp_path / "killed"), family=family, weights=weights)
    records = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    assert [record["step"] for record in records] == list(range(1, 9))
    assert records[-1]["worker_restarts"] == 1
    assert all(record["failed"] == 0 for record in records)
    assert all(record["kl_replayed_routing"] >= 0 for record in records)
    assert max(int(age) for record in records for age in record["staleness"]) <= 2
    assert not family.attempts  # all environments were in the actors
    batches = [BatchRecord(tmp_path / "batches").read(step) for step in range(1, 9)]
    groups = [group for batch in batches for group in batch.group_ids]
    assert len(set(groups)) == len(groups) == 8 * 3


def test_without_ray_the_error_says_what_to_install(monkeypatch, tmp_path):
    monkeypatch.setitem(__import__("sys").modules, "ray", None)
    with pytest.raises(RunError, match=r"pip install 'glmcore\[ray\]'"):
        train_digits(tmp_path, ray_config(tmp_path / "killed"), family=DigitFamily(LATENCIES["none"]))

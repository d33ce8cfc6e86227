"""All parties of a run in actors on a Ray of this machine, killed one by one."""

import importlib.util
import json
from pathlib import Path

import pytest
import torch
from digit_copy import LATENCIES, DigitFamily, prepared_model, tiny_tokenizer
from digit_run import digit_config, train_digits, train_digits_on_ray
from ray_kills import Killer
from rl_soak import check
from test_rl_dynamic import write_recipe

from glmcore.errors import ConfigError, RunError
from glmcore.recipe import Recipe
from glmcore.rl.ray_cluster import reserve
from glmcore.rl.stage import check_ranks

pytestmark = [
    pytest.mark.skipif(importlib.util.find_spec("ray") is None, reason="Ray is not installed: glmcore[ray]"),
    pytest.mark.filterwarnings("ignore"),  # Ray's own
]

STEPS = 48
"""More than all kills take, each with the steps that are waited for before and after it."""
OFTEN = {"max_worker_restarts": 50, "max_trainer_restarts": 50, "health_every_s": 0.2, "health_timeout_s": 6.0}


@pytest.fixture(scope="module")
def cluster():
    import ray

    root = Path(__file__).parents[1]
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("RAY_AUTH_MODE", "disabled")
        patch.setenv("RAY_USAGE_STATS_ENABLED", "0")
        patch.setenv("PYTHONPATH", f"{root / 'benches'}:{root / 'tests'}:{root / 'python'}")
        ray.init(num_cpus=4, include_dashboard=False, log_to_driver=False, object_store_memory=80 * 2**20)
        yield
        ray.shutdown()


@pytest.fixture(scope="module")
def weights():
    torch.set_num_threads(1)
    return prepared_model(tiny_tokenizer(), steps=5).state_dict()


def small(steps: int = STEPS, **fields):
    usual = {"max_steps": steps, "groups_per_step": 3, "rollouts_per_group": 4, "checkpoint_every_steps": 3}
    return digit_config(**(usual | {"backend": "ray", "ray": OFTEN, "asynchronous": {"max_staleness": 2}} | fields))


def records(directory: Path) -> list[dict]:
    return [json.loads(line) for line in (directory / "metrics.jsonl").read_text().splitlines()]


@pytest.mark.usefixtures("cluster")
def test_killed_party_by_party_it_goes_on_and_trains_on_every_group_once(tmp_path, weights):
    killer = Killer(tmp_path / "run", ["engine", "environment"] * 2 + ["buffer", "trainer"], kills=6, seed=1, steps=2)
    train_digits_on_ray(
        tmp_path / "run",
        small(mode="async"),
        weights,
        factory="deadly_family:blocking_family",
        options={"marker": str(tmp_path / "blocked")},
        on_start=killer.started,
    )
    killer.close()
    assert len(killer.told()) == 6
    assert (tmp_path / "blocked").exists()  # one worker hung, and was ended by the health check
    check(tmp_path / "run", "async", STEPS)


@pytest.mark.usefixtures("cluster")
def test_in_turn_a_run_whose_trainer_and_buffer_are_killed_ends_with_the_weights_of_one_in_a_single_process(
    tmp_path, weights
):
    killer = Killer(tmp_path / "run", ["buffer", "trainer"], kills=2, seed=0, steps=2)
    train_digits_on_ray(tmp_path / "run", small(mode="sync"), weights, on_start=killer.started)
    killer.close()
    assert len(killer.told()) == 2
    check(tmp_path / "run", "sync", STEPS)
    train_digits(
        tmp_path / "local", small(mode="sync", backend="local"), family=DigitFamily(LATENCIES["none"]), weights=weights
    )
    one, other = (max((tmp_path / name / "checkpoints").iterdir()) for name in ("run", "local"))
    file = "model-00000.safetensors"  # the others hold the random numbers of two processes
    assert (one / file).read_bytes() == (other / file).read_bytes()


@pytest.mark.usefixtures("cluster")
def test_two_ranks_that_share_the_weights_train_as_one_does(tmp_path, weights):
    config = small(8, mode="async", backend="local", updates_per_step=3, routing_replay=True)
    train_digits(tmp_path / "one", config, family=DigitFamily(LATENCIES["none"]), weights=weights)
    write_recipe(tmp_path / "one", config)
    again = config.model_copy(update={"backend": "ray", "replay": str(tmp_path / "one")})
    train_digits_on_ray(tmp_path / "two", again, weights, ranks=2)
    # Sums over samples are rounded in another order, and every step begins with the differences of those before.
    # Rounding is 6e-8 of the terms, which are up to 1 where their mean is the loss; Adam, which divides by the size of
    # a gradient, makes of an error in a small one a difference of up to the rate, 3e-3, in a weight.
    for one, two in zip(records(tmp_path / "one"), records(tmp_path / "two"), strict=True):
        assert two["loss"] == pytest.approx(one["loss"], abs=2e-4)
        assert two["grad_norm"] == pytest.approx(one["grad_norm"], rel=2e-3)
        assert two["entropy"] == pytest.approx(one["entropy"], rel=1e-3)
    newest = max((tmp_path / "two" / "checkpoints").iterdir())
    sizes = [(newest / f"model-{rank:05d}.safetensors").stat().st_size for rank in range(2)]
    assert max(sizes) < 1.3 * min(sizes)  # each has its half


@pytest.mark.usefixtures("cluster")
def test_a_cluster_without_room_is_told_what_is_missing():
    with pytest.raises(RunError, match="the cluster has 4 CPU in all, a trainer asks for 6: add machines"):
        reserve([{"CPU": 3}] * 2, "PACK", "a trainer")


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        ("parallel.tensor=2", "parallel.tensor=2 must be 1"),
        ("parallel.pipeline=2", "parallel.pipeline=2 must be 1"),
        ("rl.loss.kl_weight=0.1", "set parallel.data=1"),
    ],
)
def test_ranks_that_cannot_train_together_are_refused(setting, message):
    overrides = [setting, *(["rl.loss.kl=k3", "parallel.data=2"] if "kl" in setting else [])]
    with pytest.raises(ConfigError, match=message):
        check_ranks(Recipe.load([Path(__file__).parent / "tiny.toml"], overrides))


def test_without_ray_the_error_says_what_to_install(monkeypatch, tmp_path, weights):
    monkeypatch.setitem(__import__("sys").modules, "ray", None)
    with pytest.raises(RunError, match=r"pip install 'glmcore\[ray\]'"):
        train_digits_on_ray(tmp_path, small(mode="async"), weights)

"""The buffer in an actor, on a Ray of this machine."""

import importlib.util
from pathlib import Path

import pytest

from glmcore.errors import StaleError, TrajectoryError
from glmcore.rl.ray_buffer import connect_buffer, start_buffer

needs_ray = pytest.mark.skipif(importlib.util.find_spec("ray") is None, reason="Ray is not installed: glmcore[ray]")


def sample_groups(buffer, count: int) -> None:
    for _ in range(count):
        for rollout in buffer.rollouts(buffer.admit("task", 2, 0)):
            buffer.append_tokens(rollout, [rollout] * 3, [1] * 3, [-1.0] * 3, 0)
            buffer.finish(rollout, float(rollout))


@needs_ray
@pytest.mark.filterwarnings("ignore")  # Ray's own
def test_samplers_in_other_processes_fill_the_buffer_and_a_new_actor_finds_what_was_acknowledged(tmp_path, monkeypatch):
    import ray

    monkeypatch.setenv("RAY_AUTH_MODE", "disabled")
    monkeypatch.setenv("RAY_USAGE_STATS_ENABLED", "0")
    here = Path(__file__).parent
    monkeypatch.setenv("PYTHONPATH", f"{here}:{here.parent / 'python'}")
    ray.init(num_cpus=1, include_dashboard=False, log_to_driver=False, object_store_memory=80 * 2**20)
    try:
        options = {"capacity": 64, "max_staleness": 1, "groups_per_step": 2}
        buffer = start_buffer(str(tmp_path), name="buffer", **options)
        sampling = ray.remote(sample_groups).remote(buffer, 4)
        lease = buffer.take(2, 0, timeout=60)
        ray.get(sampling, timeout=60)
        samples = lease.samples()
        assert [sample.ids.tolist() for sample in samples] == [[rollout] * 3 for rollout in range(4)]
        assert not samples[0].ids.flags.writeable
        lease.ack("one")
        with pytest.raises(StaleError, match="past max_staleness 1"):
            connect_buffer("buffer").admit("task", 1, 0)
        ray.kill(ray.get_actor("buffer"))
        with pytest.raises(TrajectoryError, match="the actor with the buffer is gone"):
            buffer.stats()
        again = start_buffer(str(tmp_path), **options)
        assert [group.state for group in again.groups()] == ["ready"] * 2
        assert again.stats()["consumed_groups"] == 2
        with pytest.raises(TrajectoryError, match="another process has"):
            start_buffer(str(tmp_path), **options)
        with pytest.raises(TrajectoryError, match="no Ray actor has the name 'none'"):
            connect_buffer("none")
    finally:
        ray.shutdown()


def test_without_ray_the_error_says_what_to_install(monkeypatch, tmp_path):
    monkeypatch.setitem(__import__("sys").modules, "ray", None)
    with pytest.raises(TrajectoryError, match=r"pip install 'glmcore\[ray\]'"):
        start_buffer(str(tmp_path), capacity=1, max_staleness=0)

"""Weights to engines in Ray actors, on a Ray of this machine."""

import importlib.util

import pytest
from test_fp8_publisher import PARAMS, PROMPTS, SMALL, engine, trained

from glmcore.errors import SyncError
from glmcore.fp8 import RayWeightReceiver, WeightPublisher, publish_to_actors

needs_ray = pytest.mark.skipif(importlib.util.find_spec("ray") is None, reason="Ray is not installed: glmcore[ray]")


class EngineActor(RayWeightReceiver):
    def __init__(self):
        super().__init__(engine())

    def generate(self) -> list[list[int]]:
        return [generation.token_ids for generation in self.engine.generate(PROMPTS, PARAMS)]


@needs_ray
@pytest.mark.filterwarnings("ignore")  # Ray's own
def test_actors_hold_what_the_trainer_sent(monkeypatch):
    import ray

    monkeypatch.setenv("RAY_AUTH_MODE", "disabled")
    monkeypatch.setenv("RAY_USAGE_STATS_ENABLED", "0")
    from pathlib import Path

    here = str(Path(__file__).parent)
    monkeypatch.setenv("PYTHONPATH", f"{here}:{Path(here).parent / 'python'}")
    ray.init(num_cpus=1, include_dashboard=False, log_to_driver=False, object_store_memory=80 * 2**20)
    try:
        actor_class = ray.remote(num_cpus=0)(EngineActor)
        actors = [actor_class.remote() for _ in range(1)]
        model, publisher, here_engine = trained(), WeightPublisher(bucket_bytes=SMALL), engine()
        expected = here_engine.update_weights(3, publisher.publish(3, model.state_dict()))
        assert publish_to_actors(publisher.publish(3, model.state_dict()), actors, timeout_s=60) == expected
        tokens = [generation.token_ids for generation in here_engine.generate(PROMPTS, PARAMS)]
        assert ray.get(actors[0].generate.remote(), timeout=60) == tokens
        with pytest.raises(SyncError, match=r"version 2 did not reach.*version 2 came, the engine holds version 3"):
            publish_to_actors(publisher.publish(2, model.state_dict()), actors, timeout_s=60)
        with pytest.raises(SyncError, match=r"actors took longer than 0 s to load version 4"):
            publish_to_actors(publisher.publish(4, model.state_dict()), actors, timeout_s=0)
    finally:
        ray.shutdown()


def test_without_ray_the_error_says_what_to_install(monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "ray", None)
    with pytest.raises(SyncError, match=r"pip install 'glmcore\[ray\]'"):
        publish_to_actors(WeightPublisher().publish(0, {}), [])

"""Environments that take a while: how long, and that nobody's speed changes it."""

import asyncio
import selectors

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from glmcore.chat import Message
from glmcore.envs.config import ReasoningGymConfig
from glmcore.envs.delayed import DelayedFamily
from glmcore.envs.reasoning import ReasoningFamily
from glmcore.envs.registry import list_tasks, open_family
from glmcore.errors import ConfigError
from glmcore.recipe import RECIPES, Recipe


class Jump(selectors.DefaultSelector):
    """Waits by moving its clock."""

    now = 0.0

    def select(self, timeout=None):
        self.now += timeout or 0.0
        return super().select(0)


class VirtualLoop(asyncio.SelectorEventLoop):
    """An event loop in which sleep takes its time and none of ours."""

    def __init__(self):
        self.clock = Jump()
        super().__init__(self.clock)

    def time(self):
        return self.clock.now


def run_in_virtual_time(awaitable):
    """The result, and the seconds that it would have taken."""
    loop = VirtualLoop()
    try:
        return loop.run_until_complete(awaitable), loop.time()
    finally:
        loop.close()


def family_of(**options):
    return DelayedFamily(options, ["chain_sum"])


def test_delays_are_pareto_above_the_scale_and_cut_at_the_cap():
    family = family_of(scale_s=0.05, shape=1.2, cap_s=1e9)
    drawn = [family.delay(f"chain_sum/{task}", attempt) for task in range(100) for attempt in range(20)]
    # A right family fails once in 1,000 choices of tasks; these are always the same.
    assert stats.kstest(drawn, stats.pareto(1.2, scale=0.05).cdf).pvalue > 1e-3
    capped = family_of(scale_s=0.05, shape=1.2, cap_s=0.4)
    assert [capped.delay(f"chain_sum/{task}", n) for task in range(100) for n in range(20)] == [
        min(delay, 0.4) for delay in drawn
    ]
    # P(delay > cap) = (scale / cap)^shape = 0.082, with a standard error of 0.006 over 2,000 draws
    assert np.mean(np.array(drawn) > 0.4) == pytest.approx((0.05 / 0.4) ** 1.2, abs=4 * 0.0062)


@given(st.text(max_size=30), st.text(max_size=30), st.integers(0, 1_000), st.integers(0, 1_000))
def test_a_delay_depends_on_task_and_attempt_alone(one, other, first, second):
    delays = {(task, n): family_of().delay(task, n) for task in (one, other) for n in (first, second)}
    assert {key: family_of().delay(*key) for key in reversed(delays)} == delays
    assert len(set(delays.values())) == len(delays)


def test_the_nth_attempt_at_a_task_waits_for_its_delay_and_is_then_judged():
    family = family_of(cap_s=1e9)
    problems = family.tasks("train", 3, seed=0)
    assert problems == ReasoningFamily(ReasoningGymConfig(), ["chain_sum"]).tasks("train", 3, seed=0)

    async def attempt(problem, answer):
        environment = family.new()
        start = await environment.reset(problem)
        result = await environment.step(Message("", answer))
        await environment.close()
        return start.messages[-1]["content"], result.reward, result.done

    for n in range(3):
        for problem in problems:
            found, seconds = run_in_virtual_time(attempt(problem, problem.answer if n else "no number"))
            assert found == (problem.question, float(n > 0), True)
            assert seconds == pytest.approx(family.delay(problem.id, n), abs=1e-6)
    assert family.attempts == {problem.id: 3 for problem in problems}
    family.close()


def test_attempts_side_by_side_take_as_long_as_the_slowest():
    family = family_of(cap_s=1e9)
    problems = family.tasks("train", 16, seed=1)

    async def attempt(problem):
        environment = family.new()
        await environment.reset(problem)
        await environment.step(Message("", problem.answer))

    async def all_of_them():
        await asyncio.gather(*map(attempt, problems))

    _, seconds = run_in_virtual_time(all_of_them())
    assert seconds == pytest.approx(max(family.delay(problem.id, 0) for problem in problems), abs=1e-6)


def test_held_out_problems_are_judged_at_once():
    family = family_of()
    [problem] = family.tasks("held_out", 1, seed=0)

    async def attempt():
        environment = family.new()
        await environment.reset(problem)
        return await environment.step(Message("", problem.answer))

    result, seconds = run_in_virtual_time(attempt())
    assert (result.reward, seconds, family.attempts) == (1.0, 0.0, {})


def test_an_option_that_does_not_exist_is_refused_with_those_that_do():
    with pytest.raises(ConfigError, match=r"\['scale'\].*scale_s, shape, cap_s"):
        family_of(scale=1.0)


def test_the_recipe_of_the_asynchronous_ablation_opens_the_family():
    base = RECIPES / "ablations" / "base.toml"
    overrides = [
        'rl.environment={ name = "custom", factory = "glmcore.envs.delayed:DelayedFamily", options = { cap_s = 0.5 } }'
    ]
    config = Recipe.load([base], overrides).rl
    family = open_family(config.environment, config.tasks)
    assert isinstance(family, DelayedFamily)
    assert family.options == {"scale_s": 0.02, "shape": 1.2, "cap_s": 0.5}
    assert len(list_tasks(config.environment, config.tasks, "held_out", 4, 0)) == 4
    family.close()

import asyncio
import os
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scripted_engine import STOPS, TOOLS, Script, Steps, tool
from test_chat import GLM47_TEMPLATE, render

from glmcore import train_tokenizer
from glmcore.engine.sampling import SamplingParams
from glmcore.envs.config import EpisodeLimits
from glmcore.envs.protocol import Delegation, Item, Start, StepResult
from glmcore.errors import EnvironmentFailure, RequestError
from glmcore.rl.episode import play
from glmcore.rl.episode_record import EpisodeRecord, Row, with_branches
from glmcore.trajectory import TrajectoryBuffer

CALL = "tool:\n<think></think>\n<tool_call>look\n<arg_key>at</arg_key>\n<arg_value>it</arg_value>\n</tool_call>"
ANSWER = "user:\n<think></think>\nDone."
LIMITS = EpisodeLimits(max_context=2_000)


@pytest.fixture(scope="module")
def tokenizer():
    return train_tokenizer([Path(os.__file__).read_text()], vocab_size=600, progress=False)


def played(tokenizer, env, script, *, row=None, seed=1, limits=LIMITS, max_tokens=500, **settings):
    row = Row() if row is None else row
    sampling = SamplingParams(max_tokens=max_tokens)
    task = Item("task")
    return asyncio.run(play(env, task, script, tokenizer, limits, row, seed, sampling=sampling, **settings)), row


MODEL_TEXT = st.text("ab \u4f60", max_size=6).map(str.strip)
WRITTEN = st.builds(
    lambda content, reasoning, calls: {
        "role": "assistant",
        "content": content,
        "reasoning_content": reasoning,
        "tool_calls": [{"function": {"name": "look", "arguments": {"at": value}}} for value in calls],
    },
    MODEL_TEXT,
    MODEL_TEXT.filter(bool),
    st.lists(st.one_of(MODEL_TEXT, st.integers(-9, 9)), max_size=2),
)
HEARD = st.one_of(
    st.lists(st.builds(lambda text: {"role": "tool", "content": text}, st.text("ab<|>\n", max_size=6)), min_size=1, max_size=2),
    st.builds(lambda text: [{"role": "user", "content": text}], st.text("ab<|>/\n", max_size=6)),
)  # fmt: skip


@settings(deadline=None, max_examples=60)
@given(turns=st.lists(st.tuples(WRITTEN, HEARD), min_size=1, max_size=4), cuts=st.integers(1, 9))
def test_a_played_conversation_is_what_the_template_renders_with_the_models_tokens_verbatim(tokenizer, turns, cuts):
    def text(messages, *, ask=False):
        return render(messages, TOOLS, True, ask, GLM47_TEMPLATE, clear_thinking=False)

    messages = [{"role": "system", "content": "s"}, {"role": "user", "content": "u"}]
    start, replies, results = Start(messages, TOOLS), [], []
    for written, heard in turns:
        reply = text([*messages, written]).removeprefix(text(messages, ask=True))
        # Pieces that no tokenizer would cut a text into.
        ids = [t for i in range(0, len(reply), cuts) for t in tokenizer.encode(reply[i : i + cuts], special="parse")]
        replies.append([*ids, tokenizer.token_to_id(STOPS[heard[0]["role"]])])
        results.append(StepResult(heard))
        messages = [*messages, written, *heard]
    results[-1] = StepResult(reward=1.0, done=True)
    messages = messages[: -len(turns[-1][1])]

    env = Steps(*results, start=start)

    class Verbatim(Script):
        async def generate(self, prompt_ids, params, *, priority=0):
            self._left = replies[len(self.prompts)]
            return await super().generate(prompt_ids, params)

    engine = Verbatim(tokenizer)
    ending, row = played(tokenizer, env, engine, format="glm-4.7")
    stop = STOPS[turns[-1][1][0]["role"]]
    assert tokenizer.decode(row.ids) == text(messages) + stop
    sampled = [token for token, learned in zip(row.ids, row.loss_mask, strict=True) if learned]
    assert sampled == [token for reply in replies for token in reply]
    assert [len(prompt) for prompt in engine.prompts] == row.turns[1::2]
    assert all(row.ids[: len(prompt)] == prompt for prompt in engine.prompts)
    assert ending.reward == 1.0
    assert [len(message.tool_calls) for message in env.heard] == [len(written["tool_calls"]) for written, _ in turns]


def test_only_the_models_tokens_are_learned_and_carry_log_probabilities(tokenizer):
    env = Steps(tool("seen"), StepResult(reward=1.0, done=True, parts={"right": 1.0}))
    ending, row = played(tokenizer, env, Script(tokenizer, CALL, ANSWER))
    learned = np.array(row.loss_mask, bool)
    assert (np.array(row.logprobs)[learned] == -0.25).all()
    assert (np.array(row.logprobs)[~learned] == 0).all()
    assert tokenizer.decode(np.array(row.ids)[~learned]).endswith(
        "<tool_response>\nseen\n</tool_response><|assistant|>"
    )
    assert (ending.reward, ending.finish_reason, ending.turn_rewards) == (1.0, "stop", [0.0, 1.0])
    assert ending.parts == {"right": 1.0}
    assert env.closed == 1


def test_the_context_is_kept_over_150_turns(tokenizer):
    steps = [tool(str(number)) for number in range(149)]
    env = Steps(*steps, StepResult(reward=1.0, done=True))
    engine = Script(tokenizer, *[CALL] * 149, ANSWER)
    limits = EpisodeLimits(max_context=30_000, max_turns=150)
    ending, row = played(tokenizer, env, engine, limits=limits)
    assert len(ending.turn_rewards) == 150
    assert row.ids[: len(engine.prompts[-1])] == engine.prompts[-1]
    assert tokenizer.decode(row.ids).count("<tool_response>") == 149


@pytest.mark.parametrize(
    "call",
    [
        "tool:</think><tool_call>look\n<arg_key>at</arg_key>\n<arg_value>it</arg_value>\n",
        "tool:</think><tool_call>look<tool_call>",
        "tool:</think><tool_call></tool_call>",
        "tool:</think><tool_call>look\n<arg_key>at</arg_key>\n</tool_call>",
        "tool:</think><tool_call>look</tool_call> and more",
        "tool:</think></tool_call>",
    ],
)
def test_a_tool_call_that_does_not_parse_ends_the_episode_with_nothing(tokenizer, call):
    env = Steps(StepResult([{"role": "tool", "content": "x"}], reward=0.5))
    ending, row = played(tokenizer, env, Script(tokenizer, CALL, call))
    assert (ending.reward, ending.finish_reason) == (0.0, "bad_tool_call")
    assert ending.turn_rewards == [0.0, 0.0]
    assert len(env.heard) == 1
    assert sum(row.loss_mask) > 0


def test_an_answer_that_is_cut_off_is_judged_once_and_is_the_last(tokenizer):
    env = Steps(StepResult([{"role": "user", "content": "more"}], reward=0.5))
    ending, row = played(tokenizer, env, Script(tokenizer, "user:</think>" + "a b c " * 9), max_tokens=8)
    assert (ending.reward, ending.finish_reason, sum(row.loss_mask)) == (0.5, "length", 8)
    env = Steps()
    ending, _ = played(tokenizer, env, Script(tokenizer, CALL), max_tokens=9)
    assert (ending.reward, ending.finish_reason, env.heard) == (0.0, "length", [])


def test_limits_of_turns_context_and_time_end_an_episode_with_what_it_has(tokenizer):
    def steps():
        return Steps(*[StepResult([{"role": "tool", "content": "x"}], reward=0.125) for _ in range(8)])

    ending, _ = played(
        tokenizer, steps(), Script(tokenizer, *[CALL] * 8), limits=EpisodeLimits(max_context=2_000, max_turns=3)
    )
    assert (ending.finish_reason, ending.reward) == ("turns", 0.375)
    long = Script(tokenizer, *[CALL] * 8)
    ending, row = played(tokenizer, steps(), long, limits=EpisodeLimits(max_context=400))
    assert (ending.finish_reason, len(row.ids) <= 400) == ("length", True)
    slow = Script(tokenizer, CALL, None)
    ending, _ = played(tokenizer, steps(), slow, limits=EpisodeLimits(max_context=2_000, episode_seconds=0.2))
    assert (ending.finish_reason, ending.reward) == ("time", 0.125)


@pytest.mark.parametrize(
    ("results", "reason"),
    [
        ([OSError("disk gone")], "step raised OSError: disk gone"),
        (["hang"], "step took more than 0.1 s"),
        ([TimeoutError("its own")], "step raised TimeoutError: its own"),
        ([StepResult(reward=float("nan"), done=True)], "the reward nan, which is no finite number"),
        ([StepResult(reward="much", done=True)], "the reward 'much', which is no finite number"),
        ([StepResult(reward=0.0, done=True, parts={"style": float("inf")})], "the style inf"),
        ([StepResult(reward=1.5, done=True)], "the reward 1.5 is not between 0.0 and 1.0"),
        ([tool("x" * 1_001)], "said 1001 characters at once, more than 1000"),
        ([StepResult()], "was not done and said nothing"),
        ([StepResult([{"role": "assistant", "content": "I"}])], "no message of tool, user, system"),
        ([StepResult([{"role": "tool", "content": {1: 2}}])], "cannot be written"),
        ([StepResult(["garbage"])], "said 'garbage'"),
        ([None], "step gave 'None', no StepResult"),
    ],
)
def test_what_an_environment_does_wrong_fails_its_episode_with_the_reason(tokenizer, results, reason):
    env = Steps(*results)
    limits = EpisodeLimits(max_context=2_000, step_seconds=0.1, max_observation_chars=1_000)
    with pytest.raises(EnvironmentFailure, match=reason.replace("(", r"\(")):
        played(tokenizer, env, Script(tokenizer, CALL), limits=limits)
    assert env.closed == 1


def test_an_environment_that_does_not_even_start_or_end_fails_its_episode(tokenizer):
    with pytest.raises(EnvironmentFailure, match="reset raised ValueError: no such task"):
        played(tokenizer, Steps(start=ValueError("no such task")), Script(tokenizer))

    class Stuck(Steps):
        async def close(self):
            await asyncio.sleep(3600)

    stuck = Stuck(StepResult(reward=1.0, done=True))
    limits = EpisodeLimits(max_context=999, step_seconds=0.05)
    with pytest.raises(EnvironmentFailure, match=r"close took more than 0\.05 s"):
        played(tokenizer, stuck, Script(tokenizer, ANSWER), limits=limits)


def test_an_environment_that_ignores_its_cancellation_holds_nobody_up(tokenizer):
    class Deaf(Steps):
        async def step(self, message):
            for _ in range(30):
                try:
                    await asyncio.sleep(0.01)
                except asyncio.CancelledError:
                    self.heard.append("cancelled")

    env = Deaf()
    with pytest.raises(EnvironmentFailure, match="took more than"):
        played(tokenizer, env, Script(tokenizer, ANSWER), limits=EpisodeLimits(max_context=999, step_seconds=0.02))


def test_an_answer_that_the_engine_gives_up_goes_on_under_the_next_weights(tokenizer):
    whole, row = played(tokenizer, Steps(StepResult(reward=1.0, done=True)), Script(tokenizer, ANSWER))
    engine = Script(tokenizer, ANSWER, piece=3)
    ending, pieces = played(tokenizer, Steps(StepResult(reward=1.0, done=True)), engine)
    assert pieces.ids == row.ids
    sampled = [version for version, learned in zip(pieces.versions, pieces.loss_mask, strict=True) if learned]
    assert sampled == [3 + place // 3 for place in range(len(sampled))]
    assert engine.prompts[1] == pieces.ids[: len(engine.prompts[1])]
    assert (whole, len({params.seed for params in engine.params})) == (ending, len(engine.params))


def test_every_answer_is_drawn_with_a_seed_of_its_own_and_the_first_with_the_given_one(tokenizer):
    engines = [Script(tokenizer, CALL, CALL, ANSWER) for _ in range(2)]
    for engine in engines:
        played(tokenizer, Steps(tool("x"), tool("y"), StepResult(reward=1.0, done=True)), engine, seed=7)
    seeds = [params.seed for params in engines[0].params]
    assert seeds[0] == 7
    assert len(set(seeds)) == 3
    assert seeds == [params.seed for params in engines[1].params]


def delegating(*inner, judged=False):
    sub = Steps(*inner, start=Start([{"role": "user", "content": "Look closer."}], TOOLS))
    first = StepResult([{"role": "tool", "content": "before"}, Delegation(sub, Item("closer"), judged)])
    return Steps(first, StepResult(reward=1.0, done=True)), sub


def test_a_sub_agent_has_a_conversation_of_its_own_that_is_a_further_sample_of_the_group(tokenizer):
    env, sub = delegating(tool("far"), StepResult(reward=0.25, done=True))
    engine = Script(tokenizer, CALL, CALL, "user:</think>It is red.", ANSWER)
    ending, row = played(tokenizer, env, engine)
    text = tokenizer.decode(row.ids)
    assert "before\n</tool_response>\n<tool_response>\nIt is red.\n</tool_response>" in text
    assert "far" not in text
    [branch] = ending.branches
    assert "far" in tokenizer.decode(branch.row.ids)
    assert (sub.closed, ending.reward, branch.reward, branch.finish_reason) == (1, 1.0, None, "stop")

    with TrajectoryBuffer.open(":memory:", capacity=4, max_staleness=0) as buffer:
        group = buffer.admit("t", 1, 3)
        [rollout] = buffer.rollouts(group)
        buffer.append_tokens(rollout, row.ids, row.loss_mask, row.logprobs, 3)
        buffer.finish(rollout, ending.reward, ending.finish_reason, extra=ending.record.to_bytes())
        main, further = with_branches(buffer.take(1, 3).samples())
    assert (main.group_id, further.group_id, further.reward) == (group, group, 1.0)
    assert further.ids.tolist() == branch.row.ids
    assert further.policy_versions.tolist() == [3] * len(branch.row.ids)
    assert further.turns.tolist() == branch.row.turns


def test_a_sub_agent_may_be_judged_on_its_own_and_is_worth_nothing_if_its_call_does_not_parse(tokenizer):
    env, _ = delegating(StepResult(reward=0.25, done=True), judged=True)
    ending, _ = played(tokenizer, env, Script(tokenizer, CALL, "user:</think>red", ANSWER))
    assert ending.branches[0].reward == 0.25
    env, _ = delegating()
    ending, row = played(tokenizer, env, Script(tokenizer, CALL, "tool:</think><tool_call>", ANSWER))
    assert (ending.branches[0].reward, ending.reward) == (0.0, 1.0)
    assert "error: the sub-agent gave no answer (bad_tool_call)" in tokenizer.decode(row.ids)


def test_a_sub_agent_that_is_one_too_many_is_refused_in_words(tokenizer):
    env, _ = delegating()
    ending, row = played(tokenizer, env, Script(tokenizer, CALL, ANSWER), limits=replace_limits(max_branches=0))
    assert ending.branches == []
    assert "no further sub-agent" in tokenizer.decode(row.ids)


def replace_limits(**changes):
    return LIMITS.model_copy(update=changes)


def test_a_sub_agents_environment_that_breaks_fails_the_episode(tokenizer):
    env, sub = delegating(OSError("gone"))
    with pytest.raises(EnvironmentFailure, match="gone"):
        played(tokenizer, env, Script(tokenizer, CALL, CALL))
    assert (env.closed, sub.closed) == (1, 1)


@given(
    rewards=st.lists(st.floats(-1, 1), max_size=3),
    rows=st.lists(st.lists(st.tuples(st.integers(0, 9), st.booleans()), min_size=1, max_size=5), max_size=3),
)
def test_a_record_comes_back_from_its_bytes(rewards, rows):
    branches = []
    for tokens in rows:
        row = Row()
        for token, sampled in tokens:
            if sampled:
                row.answer([token], [-0.5], [4])
            else:
                row.prompt([token])
        branches.append(row)
    record = EpisodeRecord(rewards, {"a": 1.0}, [replace_row(row) for row in branches])
    assert EpisodeRecord.from_bytes(record.to_bytes()) == record
    assert EpisodeRecord.from_bytes(b"") == EpisodeRecord()


def replace_row(row):
    from glmcore.rl.episode_record import Branch

    return Branch(replace(row), "stop", None)


def test_limits_need_the_models_context(tokenizer):
    with pytest.raises(RequestError, match="within"):
        played(tokenizer, Steps(), Script(tokenizer), limits=EpisodeLimits())

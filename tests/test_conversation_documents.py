import json
import os
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from glmcore.data.builders.conversations import (
    ConversationError,
    ConversationRules,
    anthropic_documents,
    anthropic_messages,
    openai_documents,
    openai_messages,
)
from glmcore.data.builders.session_log import cc_bench_documents, session_documents
from glmcore.data.documents import Document, read_documents, write_documents
from glmcore.data.encode import encode_documents
from glmcore.tokenizer import train_tokenizer

TOOL = {"type": "function", "function": {"name": "bash", "description": "Run it.", "parameters": {"type": "object"}}}
OPENAI = [
    {"role": "developer", "content": [{"type": "text", "text": "Be"}, {"type": "text", "text": "brief."}]},
    {"role": "user", "content": "List it"},
    {"role": "assistant", "content": None, "reasoning_content": "Two calls.", "tool_calls": [
        {"id": "c1", "type": "function", "function": {"name": "bash", "arguments": '{"command": "ls", "n": 1}'}},
        {"id": "c2", "type": "function", "function": {"name": "bash", "arguments": ""}},
    ]},
    {"role": "tool", "tool_call_id": "c2", "content": "nothing"},
    {"role": "tool", "tool_call_id": "c1", "content": "a b"},
    {"role": "assistant", "content": "a and b", "reasoning": "Done."},
]  # fmt: skip
ANTHROPIC = [
    {"role": "user", "content": "List it"},
    {"role": "assistant", "content": [
        {"type": "thinking", "thinking": "Two calls.", "signature": "x"},
        {"type": "redacted_thinking", "data": "x"},
        {"type": "tool_use", "id": "c1", "name": "bash", "input": {"command": "ls", "n": 1}},
        {"type": "tool_use", "id": "c2", "name": "bash", "input": {}},
    ]},
    {"role": "user", "content": [
        {"type": "tool_result", "tool_use_id": "c2", "content": "nothing", "is_error": True},
        {"type": "tool_result", "tool_use_id": "c1", "content": [{"type": "text", "text": "a b"}]},
    ]},
    {"role": "assistant", "content": [{"type": "thinking", "thinking": "Done."}, {"type": "text", "text": "a and b"}]},
]  # fmt: skip
EXPECTED = [
    {"role": "system", "content": "Be\nbrief."},
    {"role": "user", "content": "List it"},
    {"role": "assistant", "content": "", "reasoning_content": "Two calls.", "tool_calls": [
        {"type": "function", "function": {"name": "bash", "arguments": {"command": "ls", "n": 1}}},
        {"type": "function", "function": {"name": "bash", "arguments": {}}},
    ]},
    {"role": "tool", "content": "a b"},
    {"role": "tool", "content": "nothing"},
    {"role": "assistant", "content": "a and b", "reasoning_content": "Done."},
]  # fmt: skip


@pytest.fixture(scope="module")
def tokenizer():
    return train_tokenizer([Path(os.__file__).read_text()], 600, progress=False)


def build(builder, *records, **options):
    rejects = []
    placed = [(f"p{at}", record) for at, record in enumerate(records)]
    documents = list(builder(placed, on_reject=lambda *told: rejects.append(told), **options))
    return documents, rejects


@pytest.mark.parametrize("as_text", [False, True])
def test_both_formats_give_the_same_document(as_text):
    pack = json.dumps if as_text else lambda value: value
    [openai], rejects = build(openai_documents, {"messages": pack(OPENAI), "tools": pack([TOOL])})
    assert rejects == []
    assert openai == Document("p0", "agent", messages=EXPECTED, tools=[TOOL])
    described = {"name": "bash", "description": "Run it.", "input_schema": {"type": "object"}}
    record = {
        "messages": pack(ANTHROPIC),
        "system": [{"type": "text", "text": "Be\nbrief."}],
        "tools": pack([described]),
    }
    [anthropic], rejects = build(anthropic_documents, record)
    assert rejects == []
    assert anthropic == openai


def test_only_what_the_assistant_produced_is_learned(tokenizer, tmp_path):
    [document], _ = build(openai_documents, {"messages": OPENAI, "tools": [TOOL]})
    write_documents(tmp_path / "d.jsonl", [document])
    [encoded] = encode_documents(tokenizer, list(read_documents(tmp_path / "d.jsonl")))
    text = tokenizer.decode(encoded.ids)
    assert '<tools>\n{"type": "function", "function": {"name": "bash"' in text
    learned = tokenizer.decode(encoded.ids[encoded.loss_mask == 1])
    assert learned == (
        "\n<think>Two calls.</think>\n<tool_call>bash\n<arg_key>command</arg_key>\n<arg_value>ls</arg_value>\n<arg_key>n</arg_key>\n"
        "<arg_value>1</arg_value>\n</tool_call>\n<tool_call>bash\n</tool_call><|observation|>\n<think>Done.</think>\na and b<|endoftext|>"
    )


def user(text="go"):
    return {"role": "user", "content": text}


def call(name="f", arguments="{}", id="c"):
    return {
        "role": "assistant",
        "content": "",
        "tool_calls": [{"id": id, "function": {"name": name, "arguments": arguments}}],
    }


def result(id="c", content="r"):
    return {"role": "tool", "tool_call_id": id, "content": content}


END = {"role": "assistant", "content": "done"}


@pytest.mark.parametrize(
    ("messages", "reason"),
    [
        (None, "missing or no list"),
        ("{broken", "text that is no JSON"),
        (["x"], "message 0 is no object"),
        ([{"role": "robot", "content": "x"}], "the role 'robot'"),
        ([user(None), END], "content of message 0 is missing"),
        ([user([{"type": "image_url"}]), END], "content of the type 'image_url'"),
        ([user(), call(name=""), result(), END], "a function without a name"),
        ([user(), call(arguments="{not json"), result(), END], "arguments that are no JSON"),
        ([user(), call(arguments="[1]"), result(), END], "arguments that are no object"),
        ([user(), call(), END], "1 calls have 0 results"),
        ([user(), call(), result(), result(), END], "1 calls have 2 results"),
        ([user(), call(), result("other"), END], "answers no call"),
        ([user(), result(), END], "0 calls have 1 results"),
        ([user()], "0 answers"),
        ([END], "nobody asks"),
        ([user(), call(), result()], "truncated"),
        ([user(), call()], "truncated"),
        ([user(), {"role": "assistant", "content": " "}], "truncated"),
    ],
)
def test_malformed_conversations_are_left_out_with_the_reason(messages, reason):
    documents, [(place, told)] = build(openai_documents, {"messages": messages})
    assert documents == []
    assert place == "p0"
    assert reason in told


def test_rules_are_options():
    cut = [user(), call(), result()]
    documents, _ = build(openai_documents, {"messages": cut}, rules=ConversationRules(drop_truncated=False))
    assert len(documents) == 1
    documents, [(_, reason)] = build(
        openai_documents, {"messages": OPENAI}, rules=ConversationRules(min_assistant_messages=3)
    )
    assert reason == "2 answers, at least 3 are wanted"
    documents, [(_, reason)] = build(
        anthropic_documents, {"messages": ANTHROPIC}, rules=ConversationRules(max_failed_calls=0.4)
    )
    assert reason == "1 of 2 calls failed"
    documents, _ = build(anthropic_documents, {"messages": ANTHROPIC}, rules=ConversationRules(max_failed_calls=0.5))
    assert len(documents) == 1
    documents, [(_, reason)] = build(openai_documents, {"messages": OPENAI}, rules=ConversationRules(max_characters=50))
    assert "at most 50" in reason


def test_old_calls_and_results_without_ids_are_read():
    old = [user(), {"role": "assistant", "content": "", "function_call": {"name": "f", "arguments": "{}"}}, {"role": "function", "name": "f", "content": "r"}, END]  # fmt: skip
    messages = openai_messages(old)
    assert messages[2] == {"role": "tool", "content": "r"}
    with pytest.raises(ConversationError, match="same id"):
        openai_messages(
            [user(), {"role": "assistant", "tool_calls": call()["tool_calls"] * 2}, result(), result(), END]
        )


def test_text_beside_results_becomes_the_users_next_turn():
    messages = anthropic_messages([user(), {"role": "assistant", "content": [{"type": "tool_use", "id": "c", "name": "f", "input": {}}]}, {"role": "user", "content": [{"type": "text", "text": "also"}, {"type": "tool_result", "tool_use_id": "c"}]}, END])  # fmt: skip
    assert [message["role"] for message in messages] == ["user", "assistant", "tool", "user", "assistant"]


VALUES = (
    st.none()
    | st.booleans()
    | st.sampled_from(["", "x", "\ud800", "user", "assistant", "tool", "text", "tool_use", "c", '{"a": 1}'])
)
TREES = st.recursive(VALUES, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from(["role", "content", "type", "text", "tool_calls", "function", "name", "arguments", "id", "input", "tool_call_id", "uuid", "parentUuid", "message"]), inner, max_size=5), max_leaves=12)  # fmt: skip


@given(tree=st.lists(TREES, max_size=4), tools=TREES)
def test_nothing_but_a_reason_comes_of_any_malformed_record(tree, tools):
    for builder in (openai_documents, anthropic_documents):
        documents, rejects = build(builder, {"messages": tree, "tools": tools, "system": tools})
        assert len(documents) + len(rejects) == 1
    documents, _ = build(cc_bench_documents, {"trajectory": tree, "model_name": "m", "task_id": 1})
    for document in documents:
        json.dumps(vars(document), ensure_ascii=False).encode()


def record(uuid, parent, role, content, side=False, id=None, **more):
    message = {"role": role, "content": content} | ({"id": id, "model": "glm"} if role == "assistant" else {})
    common = {"isSidechain": side, "userType": "external", "cwd": "/w", "sessionId": "s", "version": "2.1.0"}
    return {"uuid": uuid, "parentUuid": parent, "type": role, "message": message, **common, **more}


def use(id, **arguments):
    return {"type": "tool_use", "id": id, "name": "Bash", "input": arguments}


def results(*ids):
    return [{"type": "tool_result", "tool_use_id": id, "content": f"of {id}"} for id in ids]


SESSION = [
    {"type": "summary", "summary": "Title", "leafUuid": "x"},
    {"type": "file-history-snapshot", "messageId": "1"},
    record("1", None, "user", "Do it"),
    record("2", "1", "assistant", [{"type": "thinking", "thinking": "Look."}], id="m1"),
    record("3", "2", "assistant", [{"type": "text", "text": "I look."}], id="m1"),
    record("4", "3", "assistant", [use("t1", command="ls")], id="m1"),
    record("5", "4", "assistant", [use("t2", command="pwd")], id="m1"),
    record("6", "5", "user", results("t2")),
    record("7", "4", "user", results("t1")),
    record("8", "6", "assistant", [use("t3", prompt="sub")], id="m2"),
    record("s1", None, "user", "Sub task", side=True),
    record("s2", "s1", "assistant", [{"type": "text", "text": "Sub done"}], side=True, id="m9"),
    record("9", "8", "user", results("t3")),
    {"type": "system", "uuid": "10", "parentUuid": "9", "content": "notice", "isSidechain": False},
    record("11", "10", "assistant", [{"type": "text", "text": "Wrong end"}], id="m3"),
    record("12", "10", "assistant", [{"type": "text", "text": "Right end"}], id="m4"),
    record("13", "12", "assistant", [{"type": "text", "text": "API Error"}], id="m5", isApiErrorMessage=True),
    {"type": "system", "subtype": "compact_boundary", "uuid": "20", "parentUuid": None, "isSidechain": False},
    record("21", "20", "user", "Summary of what was said", isCompactSummary=True),
    record("22", "21", "assistant", [{"type": "text", "text": "Go on"}], id="m6"),
]


def test_a_session_gives_its_last_version_each_side_chain_and_what_follows_a_compaction():
    rejects = []
    documents = list(session_documents("log", SESSION, on_reject=lambda *told: rejects.append(told)))
    assert rejects == []
    assert [document.id for document in documents] == ["log#0", "log#1", "log#2"]
    main, side, after = (document.messages for document in documents)
    assert [message["role"] for message in main] == [
        "user",
        "assistant",
        "tool",
        "tool",
        "assistant",
        "tool",
        "assistant",
    ]
    assert main[1]["reasoning_content"] == "Look."
    assert main[1]["content"] == "I look."
    assert [call["function"]["arguments"] for call in main[1]["tool_calls"]] == [{"command": "ls"}, {"command": "pwd"}]
    assert [message["content"] for message in main[2:4]] == ["of t1", "of t2"]
    assert main[-1]["content"] == "Right end"
    assert [message["content"] for message in side] == ["Sub task", "Sub done"]
    assert [message["content"] for message in after] == ["Summary of what was said", "Go on"]
    without = list(session_documents("log", SESSION, side_chains=False, on_reject=lambda *_: None))
    assert [document.id for document in without] == ["log#0", "log#2"]


def test_a_log_without_names_is_read_in_its_order():
    bare = [{"type": entry["type"], "message": entry["message"]} for entry in SESSION[2:10] if entry["uuid"] != "8"]
    bare.append({"type": "assistant", "message": {"role": "assistant", "content": "End"}})
    [document] = session_documents("log", bare, on_reject=lambda *_: None)
    assert [message["role"] for message in document.messages] == ["user", "assistant", "tool", "tool", "assistant"]


def test_a_circle_of_parents_ends():
    entries = [record("a", "b", "user", "x"), record("b", "a", "assistant", "y", id="m"), record("c", "c", "user", "z")]
    documents = list(session_documents("log", entries, on_reject=lambda *_: None))
    assert [message["content"] for message in documents[0].messages] == ["x", "y"]


def test_rows_of_cc_bench_are_read_and_chosen():
    row = {"id": 1, "task_id": 7, "trajectory": json.dumps(SESSION), "model_name": "GLM-4.6", "task_category": "x", "failure_rate": 12.5, "tool_calls": 3}  # fmt: skip
    documents, rejects = build(cc_bench_documents, row, tools=[TOOL])
    assert rejects == []
    assert [document.id for document in documents] == [f"cc-bench/7/GLM-4.6#{at}" for at in range(3)]
    assert documents[0].tools == [TOOL]
    broken = [{**row, "trajectory": value} for value in ("[", None, [1])]
    documents, rejects = build(cc_bench_documents, row, *broken, models=["Other"])
    assert documents == []
    assert rejects[0] == ("p0", "a trajectory of 'GLM-4.6'")
    documents, rejects = build(cc_bench_documents, *broken)
    assert [reason for _, reason in rejects] == ["`trajectory` is text that is no JSON", "`trajectory` is missing or no list", "1 records are no objects"]  # fmt: skip
    documents, rejects = build(cc_bench_documents, row, max_failure_rate=10.0)
    assert rejects == [("p0", "12.5 % of the calls failed")]

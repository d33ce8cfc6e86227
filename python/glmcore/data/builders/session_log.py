"""Session logs of Claude Code as documents, alone and as CC-Bench publishes them."""

import json
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from typing import Any

from glmcore.data.builders.conversations import (
    DEFAULT_RULES,
    ConversationError,
    ConversationRules,
    Message,
    anthropic_messages,
    make_document,
)
from glmcore.data.documents import Document, OnReject, Record

Entry = dict[str, Any]
_MAX_SESSION_RECORDS = 200_000


def session_documents(
    name: str,
    entries: Sequence[Any],
    *,
    source: str = "agent",
    tools: list[dict[str, Any]] | None = None,
    side_chains: bool = True,
    rules: ConversationRules = DEFAULT_RULES,
    on_reject: OnReject,
) -> Iterator[Document]:
    """Conversations of a session: the main one, again after each compaction, and each side chain as one of its own.

    Of turns that were taken back and said again, the last version counts. What is not a message (summaries, snapshots
    of files, notices) is left out, and so are answers that only report an error of the interface.

    Args:
        name: Beginning of the documents' ids, and the place of what is left out.
        entries: The log's records, in its order.
        source: Source of the documents.
        tools: Function descriptions, which a log does not hold.
        side_chains: False leaves out what sub-agents did.
        rules: Which conversations are kept.
        on_reject: Told of each conversation that is left out.

    Source: records as Claude Code 2.1 writes them and the card of zai-org/CC-Bench-trajectories shows them.
    """
    if len(entries) > _MAX_SESSION_RECORDS:
        on_reject(name, f"{len(entries)} records, at most {_MAX_SESSION_RECORDS} are read")
        return
    known = [entry for entry in entries if isinstance(entry, dict)]
    if len(known) < len(entries):
        on_reject(name, f"{len(entries) - len(known)} records are no objects")
    for number, (side, chain) in enumerate(_chains(known)):
        place = f"{name}#{number}"
        if side and not side_chains:
            continue
        try:
            messages = _messages(chain)
            if not messages:
                continue  # only notices
            document = make_document(place, source, messages, tools, rules)
        except ConversationError as error:
            on_reject(place, str(error))
        else:
            yield document


def session_file_documents(
    name: str, records: Iterable[Record], *, on_reject: OnReject, **options: Any
) -> Iterator[Document]:
    """Conversations of one log file, its lines as records; see `session_documents`."""
    yield from session_documents(name, [fields for _, fields in records], on_reject=on_reject, **options)


def cc_bench_documents(
    rows: Iterable[Record],
    *,
    source: str = "agent",
    models: Collection[str] | None = None,
    max_failure_rate: float = 100.0,
    tools: list[dict[str, Any]] | None = None,
    side_chains: bool = True,
    rules: ConversationRules = DEFAULT_RULES,
    on_reject: OnReject,
) -> Iterator[Document]:
    """Conversations of rows with CC-Bench's columns; ids are `cc-bench/task/model#number`.

    Args:
        rows: Place and columns of each; `trajectory` is a session log as JSON text, or its records.
        source: Source of the documents.
        models: Names of the models whose trajectories are learned from; None for all.
        max_failure_rate: Percentage of failed calls at most, by the column `failure_rate`.
        tools: Function descriptions, which the rows do not hold.
        side_chains: False leaves out what sub-agents did.
        rules: Which conversations are kept.
        on_reject: Told of each row and conversation that is left out.

    Source: columns of zai-org/CC-Bench-trajectories (its card).
    """
    for place, row in rows:
        model, rate = str(row.get("model_name")), row.get("failure_rate")
        if models is not None and model not in models:
            on_reject(place, f"a trajectory of {model!r}")
            continue
        if isinstance(rate, int | float) and rate > max_failure_rate:
            on_reject(place, f"{rate} % of the calls failed")
            continue
        entries = row.get("trajectory")
        if isinstance(entries, str):
            try:
                entries = json.loads(entries)
            except (ValueError, RecursionError):
                on_reject(place, "`trajectory` is text that is no JSON")
                continue
        if not isinstance(entries, list):
            on_reject(place, "`trajectory` is missing or no list")
            continue
        yield from session_documents(
            f"cc-bench/{row.get('task_id', place)}/{model}",
            entries,
            source=source,
            tools=tools,
            side_chains=side_chains,
            rules=rules,
            on_reject=on_reject,
        )


def _chains(entries: list[Entry]) -> Iterator[tuple[bool, list[Entry]]]:
    """Whether it is a side chain, and its records in the order of the log, for each conversation by its beginning.

    Records name their parent. Each root begins a conversation, and the path from its last leaf up to it is the version
    that counts. Records that belong to an answer on the path are added: parallel calls of one answer branch off it, and
    so do their results.
    """
    parents = _parents(entries)
    root_of: list[int] = []
    leaf_of: dict[int, int] = {}
    for at, entry in enumerate(entries):
        above = parents[at]
        root_of.append(at if above is None else root_of[above])
        if entry.get("type") in ("user", "assistant"):
            leaf_of[root_of[at]] = at
    for root, leaf in sorted(leaf_of.items()):
        path: set[int] = set()
        at: int | None = leaf
        while at is not None:
            path.add(at)
            at = parents[at]
        chain = _with_parallel_calls(entries, [at for at, top in enumerate(root_of) if top == root], path)
        yield bool(entries[leaf].get("isSidechain")), [entries[at] for at in chain]


def _parents(entries: list[Entry]) -> list[int | None]:
    """Where the parent of each record stands, always before it; a record without a name follows the one before it."""
    place: dict[str, int] = {}
    last: dict[bool, int] = {}
    parents: list[int | None] = []
    for at, entry in enumerate(entries):
        name, side = entry.get("uuid"), bool(entry.get("isSidechain"))
        parents.append(place.get(str(entry.get("parentUuid"))) if isinstance(name, str) else last.get(side))
        if isinstance(name, str):
            place.setdefault(name, at)
        last[side] = at
    return parents


def _with_parallel_calls(entries: list[Entry], members: list[int], path: set[int]) -> list[int]:
    """The path with all records of its answers and all results of their calls."""
    answers = {name for at in path if (name := _answer_id(entries[at])) is not None}
    chosen = {at for at in members if at in path or _answer_id(entries[at]) in answers}
    calls = {str(block.get("id")) for at in chosen for block in _blocks(entries[at]) if block.get("type") == "tool_use"}
    answered = {result for at in chosen for result in _results(entries[at])}
    for at in members:
        if at not in chosen and any(result in calls and result not in answered for result in _results(entries[at])):
            chosen.add(at)
            answered |= set(_results(entries[at]))
    return sorted(chosen)


def _messages(chain: list[Entry]) -> list[Message]:
    """Messages of a conversation: records of one answer joined, results of its calls together behind it."""
    turns: list[dict[str, Any]] = []
    last_answer: Any = None
    for entry in chain:
        message = entry.get("message")
        if entry.get("type") not in ("user", "assistant") or not isinstance(message, Mapping):
            continue
        if entry.get("isApiErrorMessage") or message.get("model") == "<synthetic>":
            continue
        role, content = message.get("role"), message.get("content")
        blocks = [{"type": "text", "text": content}] if isinstance(content, str) else content
        if not isinstance(blocks, list):
            raise ConversationError("a record has a message without content")
        if role == "assistant":
            answer = _answer_id(entry)
            if answer is not None and answer == last_answer:
                owner = next(turn for turn in reversed(turns) if turn["role"] == "assistant")
                owner["content"] += blocks
                continue
            last_answer = answer
        elif turns and turns[-1]["role"] == "user" and _only_results(turns[-1]["content"]) and _has_result(blocks):
            turns[-1]["content"] += blocks
            continue
        turns.append({"role": role, "content": list(blocks)})
    return anthropic_messages(turns)


def _answer_id(entry: Entry) -> str | None:
    message = entry.get("message")
    name = message.get("id") if isinstance(message, Mapping) and entry.get("type") == "assistant" else None
    return name if isinstance(name, str) else None


def _blocks(entry: Entry) -> list[Mapping[str, Any]]:
    message = entry.get("message")
    content = message.get("content") if isinstance(message, Mapping) else None
    return [block for block in content if isinstance(block, Mapping)] if isinstance(content, list) else []


def _results(entry: Entry) -> list[str]:
    """Ids of the calls that a record answers."""
    return [str(block.get("tool_use_id")) for block in _blocks(entry) if block.get("type") == "tool_result"]


def _only_results(blocks: list[Any]) -> bool:
    return all(isinstance(block, Mapping) and block.get("type") == "tool_result" for block in blocks)


def _has_result(blocks: list[Any]) -> bool:
    return any(isinstance(block, Mapping) and block.get("type") == "tool_result" for block in blocks)

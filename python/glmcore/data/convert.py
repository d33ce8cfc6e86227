"""Records to documents, by the kind of their source."""

from collections.abc import Callable, Iterable, Iterator
from dataclasses import replace
from functools import cache, partial
from pathlib import Path
from typing import Any, NamedTuple

from glmcore.chat import apply_chat_template
from glmcore.data.builders.conversations import ConversationRules, anthropic_documents, openai_documents
from glmcore.data.builders.fim import fill_in_middle
from glmcore.data.builders.history import CommitRules, commit_documents
from glmcore.data.builders.issues import IssueRules, issue_documents
from glmcore.data.builders.problems import ProblemFields, gym_documents, problem_documents
from glmcore.data.builders.repository import repository_documents
from glmcore.data.builders.session_log import cc_bench_documents, session_file_documents
from glmcore.data.config import SourceConfig
from glmcore.data.documents import Document
from glmcore.data.readers.git import read_git
from glmcore.data.readers.jsonl import read_jsonl, read_text_lines
from glmcore.data.readers.record import Limits, Piece, Record, Reject, Rejects
from glmcore.data.readers.tables import read_arrow, read_parquet
from glmcore.data.readers.text import read_markdown, read_text
from glmcore.errors import RequestError
from glmcore.tokenizer import Tokenizer, train_tokenizer

_PLAIN: dict[str, Callable[[Piece, Limits, Reject], Iterator[Record]]] = {
    "git": read_git,
    "jsonl": read_jsonl,
    "lines": read_text_lines,
    "markdown": read_markdown,
    "text": read_text,
}
_TABLES = {"arrow": read_arrow, "parquet": read_parquet}


class Found(NamedTuple):
    """A document and where it was found."""

    file: str
    place: str
    document: Document


def read_records(piece: Piece, columns: Iterable[str] | None, limits: Limits, reject: Reject) -> Iterator[Record]:
    """Records of a piece; of a table only some columns, None for all."""
    if piece.format in _TABLES:
        wanted = None if columns is None else frozenset(columns)
        return _TABLES[piece.format](piece, wanted, limits, reject)
    return _PLAIN[piece.format](piece, limits, reject)


def find_documents(source: SourceConfig, piece: Piece, limits: Limits, seed: int, rejects: Rejects) -> Iterator[Found]:
    """Documents of a piece; what is none goes to the rejects."""
    found = _KINDS[source.kind](source, piece, limits, seed, rejects)
    rule = source.fill_in_the_middle
    if not rule.rate:
        return found
    fill = partial(fill_in_middle, rate=rule.rate, seed=seed, spm_share=rule.spm_share, span=rule.span)
    return (Found(file, place, next(fill([document]))) for file, place, document in found)


def _texts(source: SourceConfig, piece: Piece, limits: Limits, seed: int, rejects: Rejects) -> Iterator[Found]:
    """A document of each record with a text; of `mixed` sources also of each with messages."""
    fields, own = source.fields, piece.format in ("jsonl", "parquet", "arrow")
    mixed = own and source.kind == "mixed"
    text_field = fields.text if own else "text"
    id_field, quality_field, metadata = (fields.id, fields.quality, fields.metadata) if own else (None, None, [])
    columns = [name for name in (text_field, id_field, quality_field, *metadata) if name is not None]
    columns += [fields.messages, fields.tools] if mixed else []
    reject = partial(rejects.add, piece.name)
    blank = reject if own else partial(rejects.leave_out, piece.name)  # a blank file is nothing to stop for
    file, name = piece.name, source.name
    for place, values in read_records(piece, columns, limits, reject):
        text = values.get(text_field)
        if mixed and text is None and values.get(fields.messages) is not None:
            yield from _conversation(source, file, place, values, rejects)
            continue
        if type(text) is not str:
            reject(place, *_not_there(text_field, text), values)
            continue
        if not text or text.isspace():
            blank(place, "empty", f"{text_field!r} is empty", values)
            continue
        known = values.get(id_field) if id_field is not None else None
        named = f"{file}:{place}" if known is None else str(known)
        quality = 1.0
        if quality_field is not None:
            given = _quality(values.get(quality_field))
            if given is None:
                reject(place, "wrong_type", f"{quality_field!r} is no finite number", values)
                continue
            quality = given
        kept = {key: values[key] for key in metadata if key in values} or None
        yield Found(file, place, Document(named, name, text, quality=quality, metadata=kept))


def _conversations(source: SourceConfig, piece: Piece, limits: Limits, seed: int, rejects: Rejects) -> Iterator[Found]:
    """Conversations that the chat template renders."""
    name, file = source.name, piece.name
    records = read_records(piece, None, limits, partial(rejects.add, file))

    def bad(place: str, reason: str) -> None:
        rejects.add(file, place, "bad_conversation", reason)

    if source.layout == "claude-code":
        named = ((record.place, record.fields) for record in records)
        documents = session_file_documents(
            file,
            named,
            source=name,
            side_chains=source.conversations.side_chains,
            rules=_conversation_rules(source),
            on_reject=bad,
        )
        for document in documents:
            yield from _rendered(Found(file, "offset 0", document), bad)
        return
    for place, values in records:
        yield from _conversation(source, file, place, values, rejects)


def _conversation(
    source: SourceConfig, file: str, place: str, values: dict[str, Any], rejects: Rejects
) -> Iterator[Found]:
    """Conversations of one record."""
    fields, name, rules = source.fields, source.name, _conversation_rules(source)

    def bad(place: str, reason: str) -> None:
        rejects.add(file, place, "bad_conversation", reason, values)

    def told(_: str, reason: str) -> None:
        bad(place, reason)

    known = values.get(fields.id) if fields.id is not None else None
    one = [(f"{file}:{place}" if known is None else str(known), values)]
    if source.layout == "openai":
        documents = openai_documents(
            one,
            source=name,
            messages_field=fields.messages,
            tools_field=fields.tools,
            rules=rules,
            on_reject=told,
        )
    elif source.layout == "anthropic":
        documents = anthropic_documents(one, source=name, rules=rules, on_reject=told)
    else:
        rule = source.conversations
        documents = cc_bench_documents(
            one,
            source=name,
            models=rule.models or None,
            max_failure_rate=rule.max_failure_rate,
            side_chains=rule.side_chains,
            rules=rules,
            on_reject=told,
        )
    quality = 1.0 if fields.quality is None else _quality(values.get(fields.quality))
    if quality is None:
        rejects.add(file, place, "wrong_type", f"{fields.quality!r} is no finite number", values)
        return
    metadata = {key: values[key] for key in fields.metadata if key in values} or None
    for document in documents:
        yield from _rendered(Found(file, place, replace(document, quality=quality, metadata=metadata)), bad)


def _conversation_rules(source: SourceConfig) -> ConversationRules:
    rule = source.conversations
    return ConversationRules(
        rule.min_assistant_messages, rule.drop_truncated, rule.max_failed_calls, max_characters=rule.max_chars
    )


def _problems(source: SourceConfig, piece: Piece, limits: Limits, seed: int, rejects: Rejects) -> Iterator[Found]:
    """Conversations of problems, from records or drawn from a task."""
    rule, name, file = source.problems, source.name, piece.name
    reject = partial(rejects.add, file)

    def unsolved(place: str, reason: str) -> None:
        rejects.leave_out(file, place, "problem_left_out", reason)

    if piece.format == "task":
        drawn = gym_documents(
            piece.url, piece.stop, seed, source=name, thinking_share=rule.thinking_share, on_reject=unsolved
        )
        for document in drawn:
            yield Found(file, document.id, document)
        return
    fields = ProblemFields(rule.question, rule.reasoning, rule.solution, rule.answer)
    for place, values in read_records(piece, None, limits, reject):
        one = [(f"{file}:{place}", values)]
        told = partial(lambda place, _, reason: unsolved(place, reason), place)
        for document in problem_documents(
            one,
            fields=fields,
            source=name,
            thinking_share=rule.thinking_share,
            answer_mark=rule.answer_mark,
            on_reject=told,
        ):
            yield from _rendered(Found(file, place, document), unsolved)


def _repositories(source: SourceConfig, piece: Piece, limits: Limits, seed: int, rejects: Rejects) -> Iterator[Found]:
    """Files of a repository in the order of their imports, and its commits."""
    directory, rule, file = Path(piece.url), source.repositories, piece.name
    commit = piece.stamp if piece.format == "git" else None

    def left_out(place: str, reason: str) -> None:
        rejects.leave_out(file, place, "file_left_out", reason)

    def no_commit(place: str, reason: str) -> None:
        rejects.leave_out(file, place, "commit_left_out", reason)

    documents = repository_documents(
        directory, commit=commit, source=source.name, max_length=rule.max_chars, on_reject=left_out
    )
    for document in documents:
        yield Found(file, document.id, document)
    if commit is not None and rule.history:
        commits = commit_documents(
            directory,
            revision=commit,
            source=source.name,
            merges=rule.merges,
            max_length=rule.max_chars,
            rules=CommitRules(rule.max_files, rule.max_changed_lines, rule.min_message_chars),
            on_reject=no_commit,
        )
        for document in commits:
            yield Found(file, document.id, document)


def _discussions(source: SourceConfig, piece: Piece, limits: Limits, seed: int, rejects: Rejects) -> Iterator[Found]:
    """Issues and pull requests of one file, with the files that they touch."""
    rule, file = source.discussions, piece.name

    def left_out(place: str, reason: str) -> None:
        rejects.leave_out(file, place, "discussion_left_out", reason)

    records = read_records(piece, None, limits, partial(rejects.add, file))
    documents = issue_documents(
        ((record.place, record.fields) for record in records),
        repository=rule.repository,
        checkouts={name: Path(path) for name, path in rule.checkouts.items()},
        source=source.name,
        max_length=rule.max_chars,
        rules=IssueRules(rule.min_chars, rule.max_single_chars, rule.merged_only, rule.max_files),
        on_reject=left_out,
    )
    for document in documents:
        yield Found(file, document.id, document)


_KINDS: dict[str, Callable[[SourceConfig, Piece, Limits, int, Rejects], Iterator[Found]]] = {
    "conversations": _conversations,
    "discussions": _discussions,
    "documents": _texts,
    "mixed": _texts,
    "problems": _problems,
    "repositories": _repositories,
}


def _not_there(field: str, content: Any) -> tuple[str, str]:
    if content is None:
        return "missing_field", f"no {field!r}"
    return "wrong_type", f"{field!r} is {type(content).__name__}"


def _quality(value: Any) -> float | None:
    """A given quality, 1 where none is; None for what is no number that a shard can hold."""
    if value is None:
        return 1.0
    return float(value) if type(value) in (float, int) and -3e38 < value < 3e38 else None


def _rendered(found: Found, bad: Callable[[str, str], None]) -> Iterator[Found]:
    """The conversation if it can be rendered."""
    document = found.document
    try:
        apply_chat_template(_bytes_tokenizer(), document.messages or [], document.tools)
    except RequestError as error:
        bad(found.place, str(error))
    else:
        yield found


@cache
def _bytes_tokenizer() -> Tokenizer:
    """A tokenizer without merges, enough to try a template."""
    return train_tokenizer([], 256 + 36, progress=False)

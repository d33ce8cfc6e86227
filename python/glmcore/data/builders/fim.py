"""Fill-in-the-middle: which part of a text is asked for between the rest."""

import ast
import hashlib
import re
import warnings
from collections.abc import Iterable, Iterator
from dataclasses import replace
from typing import Literal

from glmcore.data.documents import Document

Span = Literal["characters", "lines", "blocks"]
_LINE_END = re.compile(r"\r\n|\r|\n")
_MAX_PARSED_CHARS = 1_000_000
_UNIT = 1 << 64


def fill_in_middle(
    documents: Iterable[Document], *, rate: float, seed: int, spm_share: float = 0.5, span: Span = "characters"
) -> Iterator[Document]:
    """The documents, a share of those with text as fill-in-the-middle.

    What becomes of a document depends on `seed` and its id alone, so neither the order nor the number of documents
    matters. Conversations and documents that have a middle already stay as they are.

    Args:
        documents: Any documents; source code is meant.
        rate: Share of the documents, in [0, 1].
        seed: Of the draws.
        spm_share: Share of those in the order suffix, prefix, middle; the rest is prefix, suffix, middle.
        span: `characters` takes what lies between two characters drawn at random. `lines` does the same with line
            starts. `blocks` takes a statement or the body of one: of the syntax tree if the id names a Python file and
            it can be parsed, else lines that are indented deeper than the one before them.

    Source: Bavarian et al., arXiv:2207.14255: two cuts at random characters, half PSM and half SPM, and rates of 0.5 to
    0.9 without a loss elsewhere. GLM-4.5 applies it to all source code; rate, share and spans are not published
    (arXiv:2508.06471, section 2.2).
    """
    for document in documents:
        text = document.text
        drawn, order, first, second = _draws(seed, document.id)
        if not text or document.middle is not None or drawn >= rate * _UNIT:
            yield document
            continue
        middle = _SPANS[span](document.id, text, first, second)
        if middle is None:
            yield document
        else:
            yield replace(document, middle=middle, middle_order="spm" if order < spm_share * _UNIT else "psm")


def _draws(seed: int, name: str) -> tuple[int, ...]:
    """Four numbers below 2**64."""
    digest = hashlib.sha256(f"fim/{seed}/{name}".encode("utf-8", errors="surrogatepass")).digest()
    return tuple(int.from_bytes(digest[at : at + 8], "little") for at in range(0, 32, 8))


def _characters(_: str, text: str, first: int, second: int) -> tuple[int, int]:
    return _two_of(range(len(text) + 1), first, second)


def _lines(_: str, text: str, first: int, second: int) -> tuple[int, int]:
    starts = _line_starts(text)
    return _two_of(starts, first, second)


def _blocks(name: str, text: str, first: int, second: int) -> tuple[int, int] | None:
    starts = _line_starts(text)
    spans = _statements(text) if name.endswith((".py", ".pyi")) else []
    spans = spans or _indented(text, starts)
    if not spans:
        return None
    start, stop = spans[first * len(spans) >> 64]
    return starts[start], starts[stop]


_SPANS = {"characters": _characters, "lines": _lines, "blocks": _blocks}


def _two_of(places: range | list[int], first: int, second: int) -> tuple[int, int]:
    """Two different places, each pair as likely as any."""
    one = first * len(places) >> 64
    other = second * (len(places) - 1) >> 64
    other += other >= one
    return places[min(one, other)], places[max(one, other)]


def _line_starts(text: str) -> list[int]:
    """Where lines start, and the end of the text."""
    starts = [0, *(match.end() for match in _LINE_END.finditer(text))]
    return starts if starts[-1] == len(text) else [*starts, len(text)]


def _statements(text: str) -> list[tuple[int, int]]:
    """Numbers of the first line and of the one behind, for each statement and body; empty if it cannot be parsed."""
    if len(text) > _MAX_PARSED_CHARS:
        return []
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # old escapes in other people's strings
            tree = ast.parse(text)
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        return []
    last = len(_line_starts(text)) - 1
    spans: set[tuple[int, int]] = set()
    for node in ast.walk(tree):
        for name in ("body", "orelse", "finalbody", "handlers"):
            body = getattr(node, name, None)
            if isinstance(body, list) and body:
                lines = [(_first_line(part), part.end_lineno or part.lineno) for part in body]
                spans |= {(start - 1, min(stop, last)) for start, stop in [*lines, (lines[0][0], lines[-1][1])]}
    return sorted(spans)


def _first_line(node: ast.AST) -> int:
    decorators = [item.lineno for item in getattr(node, "decorator_list", [])]
    return min([node.lineno, *decorators])  # pyright: ignore[reportAttributeAccessIssue]


def _indented(text: str, starts: list[int]) -> list[tuple[int, int]]:
    """Runs of lines that are indented deeper than the line before, blank lines at their end left out."""
    indents: list[tuple[int, int]] = []
    for number in range(len(starts) - 1):
        line = text[starts[number] : starts[number + 1]]
        if line.strip():
            indents.append((number, len(line.expandtabs(8)) - len(line.expandtabs(8).lstrip())))
    spans: list[tuple[int, int]] = []
    opened: list[tuple[int, int]] = []
    before = -1
    for at, (number, indent) in enumerate(indents):
        while opened and indent < opened[-1][1]:
            spans.append((opened.pop()[0], before + 1))
        if at and indent > indents[at - 1][1]:
            opened.append((number, indent))
        before = number
    spans += [(start, before + 1) for start, _ in opened]
    return sorted(spans)

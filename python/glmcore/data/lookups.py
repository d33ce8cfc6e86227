"""Questions that nobody can answer from memory: made-up people, facts about them, and how to look them up.

A person's facts follow from the name and a seed, so a world of any size needs no file. A held-out person is one whose
name hashes into one eighth of all hashes, so no choice of seeds can bring such a name into training data: a friend is
always of the same side.
"""

import hashlib
import json
import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any

from glmcore.data.reasoning import is_held_out

_CONSONANTS, _VOWELS = "bdklmnrst", "aeio"
_VALUES: dict[str, Sequence[str]] = {
    "job": ["baker", "cook", "judge", "nurse", "pilot", "sailor", "tailor", "teacher"],
    "town": [
        "Prague",
        "Oslo",
        "Athens",
        "Bern",
        "Cairo",
        "Delhi",
        "Paris",
        "Quito",
        "Seoul",
        "Tunis",
        "Vienna",
        "Dakar",
    ],
    "colour": ["red", "blue", "green", "white", "black", "brown", "pink", "grey"],
}
SEARCH_TOOL: dict[str, Any] = {
    "type": "function",
    "function": {
        "name": "search",
        "description": "Find pages.",
        "parameters": {"type": "object", "properties": {"query": {"type": "string"}}, "required": ["query"]},
    },
}
"""The tool that the questions are answered with."""


@dataclass(frozen=True)
class Lookup:
    """A question about a person, or about a person's friend."""

    id: str
    question: str
    answer: str
    """A line of the last page: the key that is asked for, and its value."""
    queries: tuple[str, ...]
    """What to search for, one after the other: the name, and for a question about the friend that line of the first
    page."""
    pages: tuple[str, ...]
    """What is found."""


def generate_lookups(count: int, seed: int, *, held_out: bool) -> Iterator[Lookup]:
    """Distinct questions, all about held-out people or none; the same seed gives the same ones.

    Args:
        count: At most; there are 1,296 names, about an eighth of them held out, with six questions each: three need
            one page, three need two.
        seed: Of the draws and of the facts.
        held_out: Whether to give those for evaluation.
    """
    keys = [(name, hops, key) for name in _names(held_out) for hops in (1, 2) for key in _VALUES]
    random.Random(f"{seed} {held_out}").shuffle(keys)
    for name, hops, key in keys[:count]:
        question, queries, pages = f"The {key} of {name}?", [f"name {name}"], [_page(name, seed)]
        if hops == 2:
            friend = _facts(name, seed)["friend"]
            question = f"The {key} of the friend of {name}?"
            queries, pages = [*queries, f"friend {friend}"], [*pages, _page(friend, seed)]
            name = friend
        answer = f"{key} {_facts(name, seed)[key]}"
        yield Lookup(f"lookup/{seed}/{question}", question, answer, tuple(queries), tuple(pages))


def all_pages(seed: int) -> Iterator[tuple[str, str]]:
    """Name and page of every person, held out or not."""
    for held_out in (False, True):
        for name in _names(held_out):
            yield name, _page(name, seed)


@cache
def _names(held_out: bool) -> list[str]:
    names = [(a + b + c + d).capitalize() for a in _CONSONANTS for b in _VOWELS for c in _CONSONANTS for d in _VOWELS]
    return [name for name in names if is_held_out(name) == held_out]


def _facts(name: str, seed: int) -> dict[str, str]:
    draw = random.Random(f"{seed} {name}")
    friend = draw.choice([other for other in _names(is_held_out(name)) if other != name])
    return {"friend": friend} | {key: draw.choice(values) for key, values in _VALUES.items()}


def _page(name: str, seed: int) -> str:
    """A line for each key and its value.

    Queries and answers are lines of pages too, since that is what a small model learns first: to repeat what followed a
    token the last time. So a value is spelled with the space before it everywhere (without, it is another token), and a
    question never begins a line with a key, which would then be followed by something else than its value.
    """
    return "\n".join(f"{key} {value}" for key, value in ({"name": name} | _facts(name, seed)).items())


def search_result(pages: Sequence[str]) -> str:
    """What the search tool says of the pages that it has found."""
    return json.dumps(list(pages), ensure_ascii=False) if len(pages) > 1 else "".join(pages) or "nothing found"


def to_text(lookup: Lookup) -> str:
    """The way to the answer as running text: exercises in reading.

    The lines of each page come again in another order, so that much of the text can be known only by whoever looks
    where a key was before.
    """
    draw = random.Random(lookup.id)
    lines = [lookup.question]
    for query, page in zip(lookup.queries, lookup.pages, strict=True):
        facts = page.split("\n")
        lines += [query, *facts, *draw.sample(facts, len(facts))]
    return "\n".join([*lines, lookup.question, lookup.answer]) + "\n"


def to_messages(lookup: Lookup, direct_answer_share: float) -> list[dict[str, Any]]:
    """The question answered by searching, or for a share of all questions with a search or two too few, as if one knew.

    Such answers leave it to reinforcement learning to find out that looking things up pays.
    """
    digest = hashlib.sha256(f"direct/{lookup.question}".encode()).digest()
    searches = len(lookup.queries)
    if digest[0] / 256 < direct_answer_share:
        searches = digest[1] % searches
    messages: list[dict[str, Any]] = [{"role": "user", "content": lookup.question}]
    for query, page in zip(lookup.queries[:searches], lookup.pages, strict=False):
        call = {"function": {"name": "search", "arguments": {"query": query}}}
        messages += [
            {"role": "assistant", "content": "", "tool_calls": [call]},
            {"role": "tool", "content": search_result([page])},
        ]
    return [*messages, {"role": "assistant", "content": lookup.answer}]

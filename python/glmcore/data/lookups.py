"""Questions that nobody can answer from memory: made-up people, facts about them, and how to look them up.

A person's facts follow from the name and a seed, so a world of any size needs no file. A held-out person is one whose
name hashes into one eighth of all hashes, so no choice of seeds can bring such a name into training data: friends and
bosses of people are of their own side.
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
    "age": [str(age) for age in range(20, 80)],
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
    "pet": ["cat", "dog", "bird", "fish", "horse", "snake", "goat", "mouse"],
}
_RELATIONS = ("friend", "boss")
_READ_QUESTIONS = 8
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
    """A question about a person, or about a person's friend or boss."""

    id: str
    question: str
    answer: str
    names: tuple[str, ...]
    """The people whose pages answer it, in the order in which they are found: one, or the second from the first."""
    pages: tuple[str, ...]
    """Their pages."""


def generate_lookups(count: int, seed: int, *, held_out: bool) -> Iterator[Lookup]:
    """Distinct questions, all about held-out people or none; the same seed gives the same ones.

    Args:
        count: At most; there are 1,296 names, about an eighth of them held out, with twelve questions each: four of
            them need one page, eight need two.
        seed: Of the draws and of the facts.
        held_out: Whether to give those for evaluation.
    """
    keys = [(name, relation, key) for name in _names(held_out) for relation in (None, *_RELATIONS) for key in _VALUES]
    random.Random(f"{seed} {held_out}").shuffle(keys)
    for name, relation, key in keys[:count]:
        names = (name,) if relation is None else (name, _facts(name, seed)[relation])
        question = f"{name}'s {key}?" if relation is None else f"{name}'s {relation}'s {key}?"
        pages = tuple(_page(one, seed) for one in names)
        yield Lookup(f"lookup/{seed}/{'/'.join(names)}/{key}", question, _facts(names[-1], seed)[key], names, pages)


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
    known = draw.sample([other for other in _names(is_held_out(name)) if other != name], len(_RELATIONS))
    return dict(zip(_RELATIONS, known, strict=True)) | {key: draw.choice(values) for key, values in _VALUES.items()}


def _page(name: str, seed: int) -> str:
    """The name, then a line for each key and each value.

    A value has a line of its own, and a question begins with a name, so that a byte-pair tokenizer cuts names and
    values alike wherever they are. " green" and "green" are different tokens: a small model would have to learn a
    second spelling of every value before it could copy any.
    """
    return "\n".join([name, *(part for fact in _facts(name, seed).items() for part in fact)])


def search_result(pages: Sequence[str]) -> str:
    """What the search tool says of the pages that it has found."""
    return json.dumps(list(pages), ensure_ascii=False) if len(pages) > 1 else "".join(pages) or "nothing found"


def to_text(lookup: Lookup) -> str:
    """The pages of the question and what can be read there, as running text: exercises in reading.

    Questions about one person, or about two and what one is to the other, in an order that follows from the id.
    """
    facts = [dict(zip(page.split("\n")[1::2], page.split("\n")[2::2], strict=True)) for page in lookup.pages]
    asked = [
        (f"{name}'s {key}", value)
        for name, known in zip(lookup.names, facts, strict=True)
        for key, value in known.items()
    ]
    if len(lookup.names) > 1:
        first, second = lookup.names
        relation = next(key for key, value in facts[0].items() if value == second)
        asked += [(f"{first}'s {relation}'s {key}", facts[1][key]) for key in _VALUES]
    random.Random(lookup.id).shuffle(asked)
    answers = [f"{question}?\n{answer}" for question, answer in asked[:_READ_QUESTIONS]]
    return "\n".join([*lookup.pages, *answers]) + "\n"


def to_messages(lookup: Lookup, direct_answer_share: float) -> list[dict[str, Any]]:
    """The question answered by searching, or for a share of all questions with a search or two too few, as if one knew.

    Such answers leave it to reinforcement learning to find out that looking things up pays.
    """
    digest = hashlib.sha256(f"direct/{lookup.question}".encode()).digest()
    searches = len(lookup.names)
    if digest[0] / 256 < direct_answer_share:
        searches = digest[1] % searches
    messages: list[dict[str, Any]] = [{"role": "user", "content": lookup.question}]
    for name, page in zip(lookup.names[:searches], lookup.pages, strict=False):
        call = {"function": {"name": "search", "arguments": {"query": name}}}
        messages += [
            {"role": "assistant", "content": "", "tool_calls": [call]},
            {"role": "tool", "content": search_result([page])},
        ]
    return [*messages, {"role": "assistant", "content": lookup.answer}]

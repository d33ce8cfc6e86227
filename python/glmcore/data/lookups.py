"""Questions that nobody can answer from memory: made-up people, facts about them, and how to look one up.

A person's facts follow from the name and a seed, so a world of any size needs no file. A held-out person is one whose
name hashes into one eighth of all hashes, so no choice of seeds can bring questions about them into training data.
"""

import hashlib
import json
import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from glmcore.data.reasoning import is_held_out

_CONSONANTS, _VOWELS = "bdfgklmnprstvz", "aeiou"
_VALUES: dict[str, Sequence[str]] = {
    "age": [str(age) for age in range(20, 80)],
    "town": ["Lima", "Oslo", "Rome", "Bern", "Cairo", "Delhi", "Paris", "Quito", "Seoul", "Tunis", "Vienna", "Dakar"],
    "colour": ["red", "blue", "green", "white", "black", "brown", "pink", "grey"],
    "pet": ["cat", "dog", "bird", "fish", "horse", "snake", "goat", "mouse"],
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
    """A question about one person."""

    id: str
    question: str
    answer: str
    name: str
    page: str
    """What there is to find about the person."""


def generate_lookups(count: int, seed: int, *, held_out: bool) -> Iterator[Lookup]:
    """Distinct questions, all about held-out people or none; the same seed gives the same ones.

    Args:
        count: At most; there are 4,900 names, an eighth of them held out, with four facts each.
        seed: Of the draws and of the facts.
        held_out: Whether to give those for evaluation.
    """
    names = [a + b + c + d for a in _CONSONANTS for b in _VOWELS for c in _CONSONANTS for d in _VOWELS]
    keys = [(name.capitalize(), key) for name in names for key in _VALUES if is_held_out(name) == held_out]
    random.Random(f"{seed} {held_out}").shuffle(keys)
    for name, key in keys[:count]:
        facts = _facts(name, seed)
        page = f"{name}: " + ", ".join(f"{fact} {value}" for fact, value in facts.items())
        yield Lookup(f"lookup/{seed}/{name}/{key}", f"What is the {key} of {name}?", facts[key], name, page)


def _facts(name: str, seed: int) -> dict[str, str]:
    draw = random.Random(f"{seed} {name}")
    return {key: draw.choice(values) for key, values in _VALUES.items()}


def search_result(pages: Sequence[str]) -> str:
    """What the search tool says of the pages that it has found."""
    return json.dumps(list(pages), ensure_ascii=False) if len(pages) > 1 else "".join(pages) or "nothing found"


def to_messages(lookup: Lookup, direct_answer_share: float) -> list[dict[str, Any]]:
    """The question answered with a search, or for a share of all questions at once, as if one could know.

    Such answers leave it to reinforcement learning to find out that looking things up pays.
    """
    asked = {"role": "user", "content": lookup.question}
    told = {"role": "assistant", "content": lookup.answer}
    if hashlib.sha256(f"direct/{lookup.question}".encode()).digest()[0] / 256 < direct_answer_share:
        return [asked, told]
    call = {"function": {"name": "search", "arguments": {"query": lookup.name}}}
    found = {"role": "tool", "content": search_result([lookup.page])}
    return [asked, {"role": "assistant", "content": "", "tool_calls": [call]}, found, told]

"""A search agent: it looks for what it needs in a user's documents, turn by turn, and cites where it found it."""

import json
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

from glmcore.demo.models import ChatModel, Json
from glmcore.demo.passages import Passage
from glmcore.envs.index import SearchIndex

SYSTEM = """You answer questions from a collection of documents that only your tools can read.
Search before you answer; search again with other words if you found nothing; open a passage to read what is around it.
Use only what you found. After each statement cite the passages it comes from by their numbers in brackets, like [3].
If the documents do not tell, say so."""
SHOWN = 400
"""Characters of a passage that a search shows."""
TOOLS: list[Json] = [
    {
        "type": "function",
        "function": {
            "name": "search",
            "description": "Find the passages that fit the words best.",
            "parameters": {
                "type": "object",
                "properties": {
                    "query": {"type": "string", "description": "A few telling words."},
                    "limit": {"type": "integer", "minimum": 1, "maximum": 10, "default": 5},
                },
                "required": ["query"],
            },
        },
    },
    {
        "type": "function",
        "function": {
            "name": "open",
            "description": "Read a whole passage with the one before and the one after it.",
            "parameters": {
                "type": "object",
                "properties": {"number": {"type": "integer", "description": "The passage's number."}},
                "required": ["number"],
            },
        },
    },
]


@dataclass(frozen=True)
class Step:
    """One tool call and what it gave."""

    tool: str
    arguments: dict[str, Any]
    result: str


@dataclass(frozen=True)
class Finding:
    """What the agent found."""

    answer: str
    sources: list[Passage]
    """Passages that the answer cites and that the agent has seen, in the order of their first mention."""
    steps: list[Step] = field(default_factory=list[Step])
    num_turns: int = 0
    """Answers that the model was asked for."""


class Library:
    """Passages with their index, and which of them have been seen."""

    def __init__(self, passages: Sequence[Passage]) -> None:
        self.passages = passages
        self.seen: set[int] = set()
        self._index = SearchIndex(passage.text for passage in passages)

    def run(self, tool: str, arguments: dict[str, Any]) -> str:
        """What a tool gives; a wrong call gives a text that says what is wrong."""
        match tool, arguments:
            case "search", {"query": str(query)}:
                limit = arguments.get("limit", 5)
                return self._search(query, limit if isinstance(limit, int) and 1 <= limit <= 10 else 5)
            case "open", {"number": int(number)} if 1 <= number <= len(self.passages):
                return self._open(number)
            case "open", _:
                return f"Error: number must be one of 1 to {len(self.passages)}"
            case "search", _:
                return "Error: query must be a text"
        return f"Error: there is no tool {tool!r}; there are search and open"

    def _search(self, query: str, limit: int) -> str:
        found = [self.passages[number] for number, _ in self._index.search(query, limit)]
        self.seen.update(passage.number for passage in found)
        if not found:
            return "Nothing was found: try other words"
        return "\n\n".join(self._written(passage, passage.text.strip()[:SHOWN]) for passage in found)

    def _open(self, number: int) -> str:
        path = self.passages[number - 1].path
        around = [passage for passage in self.passages[max(number - 2, 0) : number + 1] if passage.path == path]
        self.seen.update(passage.number for passage in around)
        return "\n\n".join(self._written(passage, passage.text.rstrip()) for passage in around)

    @staticmethod
    def _written(passage: Passage, text: str) -> str:
        return f"[{passage.number}] {passage.source}\n{text}"


def search(
    model: ChatModel,
    passages: Sequence[Passage],
    question: str,
    *,
    max_turns: int = 8,
    on_step: Callable[[Step], None] = lambda _: None,
) -> Finding:
    """Answer a question from documents.

    Args:
        model: Calls the tools and answers.
        passages: The documents.
        question: What to find out.
        max_turns: Most answers of the model, at least 1; in the last one it may call no tool.
        on_step: Told of each tool call once it has run.
    """
    library = Library(passages)
    messages: list[Json] = [{"role": "system", "content": SYSTEM}, {"role": "user", "content": question}]
    steps: list[Step] = []
    for turn in range(1, max_turns + 1):
        message = model.answer(messages, TOOLS, must_answer=turn == max_turns)
        calls = message.get("tool_calls") or []
        if not calls or turn == max_turns:
            answer = (message.get("content") or "").strip()
            return Finding(answer, cited(answer, library), steps, turn)
        messages.append(message)
        for call in calls:
            step = _take(library, call["function"])
            steps.append(step)
            on_step(step)
            messages.append({"role": "tool", "tool_call_id": call["id"], "content": step.result})
    raise ValueError(f"max_turns must be at least 1, got {max_turns}")


def cited(answer: str, library: Library) -> list[Passage]:
    """The passages that an answer cites as [number]; numbers that were never shown to the model cite nothing."""
    numbers = [int(number) for group in re.findall(r"\[(\d+(?:\s*,\s*\d+)*)\]", answer) for number in group.split(",")]
    return [library.passages[number - 1] for number in dict.fromkeys(numbers) if number in library.seen]


def _take(library: Library, function: Json) -> Step:
    try:
        arguments = json.loads(function.get("arguments") or "{}")
    except ValueError:
        arguments = None
    if not isinstance(arguments, dict):
        return Step(function["name"], {}, "Error: the arguments are no JSON object")
    return Step(function["name"], arguments, library.run(function["name"], arguments))

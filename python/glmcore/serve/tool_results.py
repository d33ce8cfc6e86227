"""Results of tools in the order of their calls.

Clients tie a result to its call by an id. The model's format has no ids: its results stand in the order of the calls.
"""

from collections.abc import Iterator, Sequence
from typing import Any


def in_call_order(messages: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """The messages with each run of `tool` messages ordered as the calls of the answer before it.

    Results whose `tool_call_id` is of no such call keep their order, after the others.
    """
    ordered: list[dict[str, Any]] = []
    for run in _runs(messages):
        if run[0]["role"] == "tool":
            calls = ordered[-1].get("tool_calls", []) if ordered else []
            place = {call["id"]: number for number, call in enumerate(calls)}
            run.sort(key=lambda result: place.get(result.get("tool_call_id"), len(place)))
        ordered += run
    return ordered


def _runs(messages: Sequence[dict[str, Any]]) -> Iterator[list[dict[str, Any]]]:
    """Neighbouring `tool` messages together, the others alone."""
    run: list[dict[str, Any]] = []
    for message in messages:
        if run and not (run[-1]["role"] == message["role"] == "tool"):
            yield run
            run = []
        run.append(message)
    if run:
        yield run

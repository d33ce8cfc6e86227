"""Whether function calls are among the answers that are possible, by the rules of the Berkeley Function-Calling Leaderboard.

An expected call names, for each argument, the values that are right; an empty text among them means that the argument
may be left out. Texts are compared without case, spaces and some punctuation; the order of parallel calls is free.

Source: Patil et al., the Berkeley Function-Calling Leaderboard (gorilla.cs.berkeley.edu), abstract-syntax-tree check.
"""

import re
from collections.abc import Mapping, Sequence
from typing import Any

from glmcore.chat import ToolCall

Expected = Mapping[str, Mapping[str, Sequence[Any]]]
"""One call: the function's name, and the right values of each argument."""
_IGNORED = re.compile(r"[ ,./\-_*^]")


def calls_match(calls: Sequence[ToolCall], expected: Sequence[Expected], functions: Mapping[str, Any]) -> bool:
    """Whether the calls are the expected ones, in any order.

    Args:
        calls: What the model wants to call.
        expected: What it should.
        functions: JSON schema of the arguments of each function, by its name.
    """
    if len(calls) != len(expected):
        return False
    fits = [[_fits(call, right, functions) for right in expected] for call in calls]
    return _all_assigned(fits, 0, set())


def _all_assigned(fits: Sequence[Sequence[bool]], call: int, used: set[int]) -> bool:
    """Whether each call from this one on can have an expectation of its own."""
    if call == len(fits):
        return True
    free = (place for place, fit in enumerate(fits[call]) if fit and place not in used)
    return any(_all_assigned(fits, call + 1, used | {place}) for place in free)


def _fits(call: ToolCall, expected: Expected, functions: Mapping[str, Any]) -> bool:
    [(name, right)] = expected.items()
    if call.name != name or name not in functions:
        return False
    schema = functions[name]
    known = schema.get("properties", {})
    if any(key not in known or key not in right for key in call.arguments):
        return False
    if any(key not in call.arguments for key in schema.get("required", ())):
        return False
    if any(key not in call.arguments and "" not in values for key, values in right.items()):
        return False
    return all(_is_one_of(value, right[key], known[key]) for key, value in call.arguments.items())


def _is_one_of(value: Any, right: Sequence[Any], schema: Mapping[str, Any]) -> bool:
    return _has_type(value, schema.get("type")) and any(_same(value, one) for one in right)


def _has_type(value: Any, kind: Any) -> bool:
    """Whether a value is of a type of JSON schema; whole numbers are numbers too, booleans are not."""
    kinds: dict[str, tuple[type, ...]] = {
        "string": (str,),
        "integer": (int,),
        "number": (int, float),
        "boolean": (bool,),
        "array": (list,),
        "object": (dict,),
    }
    if kind not in kinds:
        return True
    return isinstance(value, kinds[kind]) and (kind == "boolean" or not isinstance(value, bool))


def _same(value: Any, right: Any) -> bool:
    """Whether a value is right; inside of objects there are lists of right values again."""
    if isinstance(value, str) and isinstance(right, str):
        return _plain(value) == _plain(right)
    if isinstance(value, list) and isinstance(right, list):
        return len(value) == len(right) and all(_same(*pair) for pair in zip(value, right, strict=True))
    if isinstance(value, dict) and isinstance(right, dict):
        if any(key not in right for key in value):
            return False
        missing = [options for key, options in right.items() if key not in value]
        return all("" in _options(options) for options in missing) and all(
            any(_same(one, option) for option in _options(right[key])) for key, one in value.items()
        )
    return value == right and isinstance(value, bool) == isinstance(right, bool)


def _options(value: Any) -> list[Any]:
    return value if isinstance(value, list) else [value]


def _plain(text: str) -> str:
    return _IGNORED.sub("", text).lower().replace("'", '"')

"""Whether a reply's tool calls are in the model's format.

`glmcore.chat.parse_reply` makes the best of any text; training must not reward what it had to guess.
"""

import re

from glmcore.chat import Message

_OPEN, _CLOSE = "<tool_call>", "</tool_call>"
_SPACE = re.compile(r"\s*")
_KEY, _KEY_END, _VALUE, _VALUE_END = "<arg_key>", "</arg_key>", "<arg_value>", "</arg_value>"


def calls_are_well_formed(reply: str, message: Message) -> bool:
    """Whether every tool call of a reply is complete and nothing but white space follows the first.

    Args:
        reply: Text of the turn, without its stop token.
        message: What `parse_reply` made of it.

    Source: format of tool calls in the chat template of GLM-4.6.
    """
    if not message.finished_thinking:  # then all of it is reasoning
        return True
    start = reply.find(_OPEN)
    if start < 0:
        return _CLOSE not in message.content
    calls = 0
    while reply.startswith(_OPEN, start):
        end = _end_of_call(reply, start + len(_OPEN))
        if end is None:
            return False
        calls += 1
        start = _skip_space(reply, end)
    return start == len(reply) and calls == len(message.tool_calls)


def _end_of_call(reply: str, start: int) -> int | None:
    """Where a call ends whose name begins at `start`; None if it is not complete."""
    stops = [place for mark in (_KEY, _CLOSE) if (place := reply.find(mark, start)) >= 0]
    if not stops:
        return None
    here = min(stops)
    name = reply[start:here].strip()
    if not name or any(mark in name for mark in "<>\n \t"):
        return None
    while reply.startswith(_KEY, here):
        for mark in (_KEY_END, _VALUE, _VALUE_END):
            found = reply.find(mark, here)
            if found < 0 or (mark == _VALUE and reply[here:found].strip()):
                return None
            here = found + len(mark)
        here = _skip_space(reply, here)
    return here + len(_CLOSE) if reply.startswith(_CLOSE, here) else None


def _skip_space(text: str, start: int) -> int:
    found = _SPACE.match(text, start)
    assert found is not None  # nothing is enough for it
    return found.end()

"""What the text of an answer must look like, from what the turn asks for."""

from dataclasses import replace
from typing import Any

from glmcore.chat import ChatFormat
from glmcore.engine.constrain import Constraint, Thinking, json_object, json_schema, tool_calls
from glmcore.engine.sampling import SamplingParams
from glmcore.errors import RequestError
from glmcore.serve.errors import bad_request
from glmcore.serve.turn import Turn
from glmcore.tokenizer import Tokenizer

CALL = "<tool_call>"


def constrained(turn: Turn, tokenizer: Tokenizer, chat_format: ChatFormat) -> SamplingParams:
    """The turn's sampling, bound to the form that its answer must have. Thinking is free.

    A tool that has to be called is called with arguments that fit its schema, as far as they can be enforced. Where
    tools may be called but need not, nothing is enforced: a model that knows its tools calls them well, and words stay
    as they are. With `tool_choice` none, no call can begin.

    Raises:
        ServeError: Two forms are asked for at once, or one cannot be had.
    """
    thinking: Thinking = "none"
    if turn.thinking:
        thinking = "begun" if chat_format == "glm-4.7" else "first"
    try:
        constraint = _constraint(turn, thinking)
    except RequestError as error:
        raise bad_request(str(error)) from None
    bias = dict(turn.params.logit_bias)
    if turn.tools and turn.tool_choice == "none":
        bias[tokenizer.token_to_id(CALL)] = float("-inf")
    return replace(turn.params, constraint=constraint, logit_bias=bias)


def _constraint(turn: Turn, thinking: Thinking) -> Constraint | None:
    must_call = turn.tool_choice == "required" or not isinstance(turn.tool_choice, str)
    if must_call and turn.response_format is not None:
        raise bad_request("response_format and a tool that has to be called exclude each other", param="tool_choice")
    if must_call:
        tools: list[Any] = list(turn.tools)
        choice: Any = turn.tool_choice
        return tool_calls(tools, choice, parallel=turn.parallel_tool_calls, thinking=thinking, lenient=True)
    if turn.response_format is None:
        return None
    if turn.response_format == "json_object":
        return json_object(thinking=thinking)
    assert not isinstance(turn.response_format, str)
    return json_schema(turn.response_format, thinking=thinking)

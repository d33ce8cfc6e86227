"""Answers that are sent when they are complete."""

from collections.abc import Coroutine
from typing import Any, TypeVar

from starlette.requests import Request

from glmcore.serve.conversations import Answers
from glmcore.serve.errors import ServeError
from glmcore.serve.sse import ClientGoneError, unless_gone
from glmcore.serve.turn import TurnEvent

_T = TypeVar("_T")


async def while_wanted(request: Request, work: Coroutine[Any, Any, _T], limit_s: float) -> _T:
    """The result of `work`, which is cancelled when the client goes away or the time is up.

    Raises:
        ServeError: The time is up, or nobody waits for the answer any more.
    """
    try:
        return await unless_gone(request.receive, work, limit_s)
    except ClientGoneError:
        raise ServeError(499, "timeout", "the client has closed the connection") from None


async def whole_answer(request: Request, answers: Answers, limit_s: float) -> list[TurnEvent]:
    """All events of the answers; what is still running is aborted if nobody waits for them any more.

    Raises:
        ServeError: The time is up, the engine has failed, or nobody waits.
    """

    async def collect() -> list[TurnEvent]:
        return [event async for event in answers]

    try:
        return await while_wanted(request, collect(), limit_s)
    finally:
        await answers.aclose()

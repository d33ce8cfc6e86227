"""Answers over HTTP that end the work behind them when their reader goes away or the time is up."""

import asyncio
import logging
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine
from typing import Any, TypeVar

import orjson
from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from glmcore.serve.errors import ServeError, internal_error

logger = logging.getLogger(__name__)
_T = TypeVar("_T")
COMMENT = b": still here\n\n"
"""A sign of life that readers of event streams skip."""


class ClientGoneError(Exception):
    """The client has closed its connection: nobody reads the answer."""


def json_answer(value: Any, status: int = 200) -> Response:
    """A JSON body."""
    return Response(orjson.dumps(value), status, media_type="application/json")


def data_event(value: Any) -> bytes:
    """An event without a name, as the OpenAI dialects send them."""
    return b"data: " + orjson.dumps(value) + b"\n\n"


async def unless_gone(receive: Receive, work: Coroutine[Any, Any, _T], limit_s: float) -> _T:
    """The result of `work`, which is cancelled when the client goes away or the time is up.

    Args:
        receive: The request's messages, its body read already.
        work: What to do.
        limit_s: Time that it has.

    Raises:
        ClientGoneError: The client has gone away.
        ServeError: The time is up.
    """
    working = asyncio.ensure_future(work)
    leaving = asyncio.ensure_future(_disconnect(receive))
    try:
        await asyncio.wait({working, leaving}, timeout=limit_s, return_when=asyncio.FIRST_COMPLETED)
        if working.done():
            return working.result()
        if leaving.done():
            raise ClientGoneError
        raise ServeError(504, "timeout", f"the request took longer than {limit_s:g} s", code="timeout")
    finally:
        working.cancel()
        leaving.cancel()
        await asyncio.gather(working, leaving, return_exceptions=True)


async def _disconnect(receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass


class EventStream(Response):
    """An event stream.

    Args:
        chunks: Whole events, encoded. Its end ends the stream.
        close: Called however the stream ends; aborts what is still running.
        error_chunk: Encodes what goes wrong once the stream has begun.
        limit_s: Time that the stream has.
        heartbeat: Sent after each `heartbeat_s` of silence.
        heartbeat_s: Seconds.
    """

    media_type = "text/event-stream"

    def __init__(
        self,
        chunks: AsyncIterator[bytes],
        close: Callable[[], Awaitable[None]],
        error_chunk: Callable[[ServeError], bytes],
        *,
        limit_s: float,
        heartbeat_s: float,
        heartbeat: bytes = COMMENT,
    ) -> None:
        super().__init__(headers={"cache-control": "no-cache", "x-accel-buffering": "no"})
        del self.headers["content-length"]
        self._chunks = chunks
        self._close = close
        self._error_chunk = error_chunk
        self._limit_s = limit_s
        self._heartbeat = heartbeat
        self._heartbeat_s = heartbeat_s
        self._last = 0.0

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        try:
            await send({"type": "http.response.start", "status": self.status_code, "headers": self.raw_headers})
            await unless_gone(receive, self._pump(send), self._limit_s)
        except ClientGoneError:
            return
        except ServeError as error:
            await self._send(send, self._error_chunk(error))
        except Exception:
            logger.exception("a stream failed")
            await self._send(send, self._error_chunk(internal_error()))
        finally:
            await self._close()
        await send({"type": "http.response.body", "body": b"", "more_body": False})

    async def _pump(self, send: Send) -> None:
        self._last = asyncio.get_running_loop().time()
        living = asyncio.ensure_future(self._live(send))
        try:
            async for chunk in self._chunks:
                await self._send(send, chunk)
        finally:
            living.cancel()

    async def _live(self, send: Send) -> None:
        now = asyncio.get_running_loop().time
        while True:
            await asyncio.sleep(max(self._last + self._heartbeat_s - now(), self._heartbeat_s / 10))
            if now() - self._last >= self._heartbeat_s:
                await self._send(send, self._heartbeat)

    async def _send(self, send: Send, chunk: bytes) -> None:
        self._last = asyncio.get_running_loop().time()
        await send({"type": "http.response.body", "body": chunk, "more_body": True})

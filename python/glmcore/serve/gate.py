"""What every request passes before it is parsed: who asks, how often, how much; and what the log keeps of it."""

import asyncio
import json
import logging
import re
import secrets
import time
from collections.abc import Callable

from starlette.datastructures import Headers, MutableHeaders
from starlette.responses import Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from glmcore.serve.caller import CALLER, Caller
from glmcore.serve.config import ServeConfig
from glmcore.serve.errors import ServeError, internal_error
from glmcore.serve.metrics import Metrics
from glmcore.serve.rates import RateLimits
from glmcore.serve.security import Doorkeeper

logger = logging.getLogger(__name__)
OPEN_PATHS = frozenset({"/", "/health", "/health/live", "/health/ready"})
"""Answered without a key: they tell nothing and cost nothing."""
OPEN_PREFIX = "/page/"
REQUEST_ID = re.compile(r"[A-Za-z0-9_.-]{1,64}")


class Gate:
    """The middleware.

    Args:
        app: What it guards.
        config: The server's.
        door: Decides who is answered.
        metrics: Where requests are counted.
        refuse: Makes the response to a request at this path that fails.
    """

    def __init__(
        self,
        app: ASGIApp,
        config: ServeConfig,
        door: Doorkeeper,
        metrics: Metrics,
        refuse: Callable[[str, ServeError], Response],
    ) -> None:
        self._app = app
        self._limits = config.limits
        self._log_prompts = config.security.log_prompts
        self._door = door
        self._rates = RateLimits(config.limits)
        self._metrics = metrics
        self._refuse = refuse

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        await _Request(self, scope, receive, send).answer()


class _Request:
    """One request on its way through the gate."""

    def __init__(self, gate: Gate, scope: Scope, receive: Receive, send: Send) -> None:
        self._gate = gate
        self._scope = scope
        self._receive = receive
        self._send = send
        self._status = 0
        self._began = time.perf_counter()
        self._body: bytes | None = None
        """The body, until whatever the gate guards has taken it."""
        self._shown = b""
        """The body, for the log."""
        headers = Headers(scope=scope)
        given = headers.get("x-request-id", "")
        fresh = f"req_{secrets.token_hex(12)}"
        self._headers = headers
        self._caller = Caller(given if REQUEST_ID.fullmatch(given) else fresh)

    async def answer(self) -> None:
        token = CALLER.set(self._caller)
        try:
            self._admit()
            if await self._read_body():
                await self._gate._app(self._scope, self._receive_some, self._send_some)
        except ServeError as error:
            await self._fail(error)
        except Exception:
            logger.exception("request %s failed", self._caller.request_id)
            await self._fail(internal_error())
        finally:
            CALLER.reset(token)
            self._leave()

    def _admit(self) -> None:
        path = self._scope["path"]
        client = self._scope.get("client") or ("-", 0)
        if path in OPEN_PATHS or path.startswith(OPEN_PREFIX):
            return
        self._caller.key = self._gate._door.admit(self._headers, client[0])
        if self._scope["method"] == "POST":
            self._gate._rates.admit(self._caller.key)

    async def _read_body(self) -> bool:
        """Take the whole body in, before anything looks at it; False if the client goes away meanwhile."""
        announced = self._headers.get("content-length", "")
        if announced.isdecimal():
            self._check_size(int(announced[:20]))
        body = bytearray()
        more = True
        while more:
            remaining_s = self._gate._limits.body_timeout_s - (time.perf_counter() - self._began)
            try:
                message = await asyncio.wait_for(self._receive(), max(remaining_s, 0.001))
            except asyncio.TimeoutError:
                raise ServeError(408, "timeout", "the body did not arrive in time", code="timeout") from None
            if message["type"] == "http.disconnect":
                return False
            body += message.get("body", b"")
            self._check_size(len(body))
            more = message.get("more_body", False)
        self._body = bytes(body)
        if self._gate._log_prompts:
            self._shown = self._body
        return True

    def _check_size(self, num_bytes: int) -> None:
        most = self._gate._limits.max_body_bytes
        if num_bytes > most:
            raise ServeError(413, "too_large", f"the body has more than {most} bytes", code="request_too_large")

    async def _receive_some(self) -> Message:
        if self._body is None:
            return await self._receive()
        body, self._body = self._body, None
        return {"type": "http.request", "body": body, "more_body": False}

    async def _send_some(self, message: Message) -> None:
        if message["type"] == "http.response.start":
            self._status = message["status"]
            headers = MutableHeaders(scope=message)
            headers["x-request-id"] = headers["request-id"] = self._caller.request_id
            headers["x-content-type-options"] = "nosniff"
        await self._send(message)

    async def _fail(self, error: ServeError) -> None:
        if self._status:
            return  # the answer has begun; closing the connection is all that is left
        response = self._gate._refuse(self._scope["path"], error)
        await response(self._scope, self._receive, self._send_some)

    def _leave(self) -> None:
        caller = self._caller
        seconds = time.perf_counter() - self._began
        route = self._scope.get("route")
        path = getattr(route, "path", "other")
        self._gate._metrics.requests.labels(path, str(self._status)).inc()
        self._gate._metrics.request_s.labels(path).observe(seconds)
        self._gate._rates.charge(caller.key, caller.prompt_tokens + caller.completion_tokens)
        logger.info(
            "%s %s %s %s %d: %d prompt tokens (%d cached), %d completion tokens, %.3f s",
            *(caller.request_id, caller.key, self._scope["method"], path, self._status),
            *(caller.prompt_tokens, caller.cached_tokens, caller.completion_tokens, seconds),
        )
        if self._shown:
            body = self._shown.decode(errors="replace")
            logger.info("%s body: %s", caller.request_id, json.dumps(body, ensure_ascii=False))

"""What a server answers when it does not do what was asked. Each dialect writes it in its own shape."""

from typing import Literal

from glmcore.errors import GlmcoreError

Kind = Literal[
    "invalid_request",
    "authentication",
    "permission",
    "not_found",
    "too_large",
    "rate_limit",
    "overloaded",
    "timeout",
    "unavailable",
    "internal",
]


class ServeError(GlmcoreError):
    """A request that is refused, or fails.

    Args:
        status: HTTP status; a dialect may have another one for the same kind.
        kind: What went wrong.
        message: For the person at the other end.
        param: Field of the request that is wrong.
        code: Short name of the problem, for programs.
        retry_after_s: Seconds after which the same request may succeed.
    """

    def __init__(
        self,
        status: int,
        kind: Kind,
        message: str,
        *,
        param: str | None = None,
        code: str | None = None,
        retry_after_s: float | None = None,
    ) -> None:
        super().__init__(message)
        self.status = status
        self.kind: Kind = kind
        self.message = message
        self.param = param
        self.code = code
        self.retry_after_s = retry_after_s


def bad_request(message: str, *, param: str | None = None, code: str | None = None) -> ServeError:
    """The request itself is wrong: sent again it fails again."""
    return ServeError(400, "invalid_request", message, param=param, code=code)


def too_long(num_tokens: int, context: int) -> ServeError:
    """The prompt does not fit the context; clients know the wording and shorten what they send."""
    message = f"prompt is too long: {num_tokens} tokens > {context - 1} maximum"
    return bad_request(message, param="messages", code="context_length_exceeded")


def overloaded(retry_after_s: float) -> ServeError:
    """As many requests wait as may wait."""
    message = "the server has as many requests as it can hold: try again later"
    return ServeError(429, "overloaded", message, code="overloaded", retry_after_s=retry_after_s)


def internal_error() -> ServeError:
    """A fault of the server; the log has it, the client does not see it."""
    return ServeError(500, "internal", "the server failed: its log says why")

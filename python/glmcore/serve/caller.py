"""Who a request comes from, and what it has used so far: set once a request, read by whatever serves it."""

from contextvars import ContextVar
from dataclasses import dataclass


@dataclass
class Caller:
    """One request."""

    request_id: str
    key: str = "-"
    """Fingerprint of the API key, or the address where no key is asked for."""
    prompt_tokens: int = 0
    completion_tokens: int = 0
    cached_tokens: int = 0


CALLER: ContextVar[Caller | None] = ContextVar("caller", default=None)
"""The request that the running task serves. Tasks that it starts see the same one."""

"""How often each client may ask, and how much."""

import time
from collections.abc import Callable

from glmcore.serve.config import LimitsConfig
from glmcore.serve.errors import ServeError

MAX_CLIENTS = 10_000
"""Clients remembered; beyond them those that have asked for nothing lately are forgotten."""


class TokenBucket:
    """Fills at a steady rate up to one minute's worth; what is taken may leave it in debt.

    Args:
        per_minute: Rate, and the most that it holds.
        clock: Seconds.
    """

    def __init__(self, per_minute: float, clock: Callable[[], float] = time.monotonic) -> None:
        self.per_minute = per_minute
        self._clock = clock
        self._level = per_minute
        self._at = clock()

    def level(self) -> float:
        """What it holds now; below zero in debt."""
        now = self._clock()
        self._level = min(self.per_minute, self._level + (now - self._at) * self.per_minute / 60)
        self._at = now
        return self._level

    def wait_s(self, amount: float) -> float:
        """Seconds until it holds `amount`; 0 if it does now."""
        return max(0.0, (amount - self.level()) * 60 / self.per_minute)

    def take(self, amount: float) -> None:
        """Take `amount`, whatever it holds."""
        self._level = self.level() - amount


class RateLimits:
    """The buckets of all clients.

    Args:
        limits: Rates.
        clock: Seconds.
    """

    def __init__(self, limits: LimitsConfig, clock: Callable[[], float] = time.monotonic) -> None:
        self._rates = {"requests": limits.requests_per_minute, "tokens": limits.tokens_per_minute}
        self._clock = clock
        self._buckets: dict[tuple[str, str], TokenBucket] = {}

    def admit(self, client: str) -> None:
        """Count one request.

        Raises:
            ServeError: The client has asked too often, or has yet to pay for what it got; says when to come back.
        """
        for what in ("requests", "tokens"):
            bucket = self._bucket(client, what)
            if bucket is not None and (wait_s := bucket.wait_s(1.0)) > 0:
                message = f"rate limit reached: {bucket.per_minute:g} {what} a minute"
                raise ServeError(429, "rate_limit", message, code="rate_limit_exceeded", retry_after_s=wait_s)
        requests = self._bucket(client, "requests")
        if requests is not None:
            requests.take(1.0)

    def charge(self, client: str, tokens: int) -> None:
        """Count the tokens of a request that has ended."""
        bucket = self._bucket(client, "tokens")
        if bucket is not None:
            bucket.take(tokens)

    def _bucket(self, client: str, what: str) -> TokenBucket | None:
        rate = self._rates[what]
        if rate is None:
            return None
        if (client, what) not in self._buckets:
            if len(self._buckets) >= MAX_CLIENTS:
                full = [key for key, bucket in self._buckets.items() if bucket.level() >= bucket.per_minute]
                for key in full:
                    del self._buckets[key]
            self._buckets[client, what] = TokenBucket(rate, self._clock)
        return self._buckets[client, what]

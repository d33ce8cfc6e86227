"""What a server counts, for Prometheus."""

import time
from collections.abc import Callable, Iterable
from typing import Any

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest
from prometheus_client.core import GaugeMetricFamily
from prometheus_client.registry import Collector

from glmcore.engine.request import Delta

FIRST_TOKEN_S = (0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120)
NEXT_TOKEN_S = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 10)
REQUEST_S = (0.01, 0.05, 0.1, 0.5, 1, 2.5, 5, 10, 30, 60, 120, 300, 600, 1800)


class Metrics:
    """The figures of one server; another server in the same process has its own."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        made: dict[str, Any] = {"registry": self.registry}
        self.requests = Counter("glmcore_requests", "Requests answered", ["path", "status"], **made)
        self.request_s = Histogram("glmcore_request_seconds", "Whole requests", ["path"], buckets=REQUEST_S, **made)
        self.first_token_s = Histogram(
            "glmcore_first_token_seconds", "From taking a request on to its first token", buckets=FIRST_TOKEN_S, **made
        )
        self.next_token_s = Histogram(
            "glmcore_next_token_seconds", "Between the tokens of an answer", buckets=NEXT_TOKEN_S, **made
        )
        self.prompt_tokens = Counter("glmcore_prompt_tokens", "Tokens of prompts", **made)
        self.cached_tokens = Counter("glmcore_cached_tokens", "Tokens of prompts that the cache had", **made)
        self.completion_tokens = Counter("glmcore_completion_tokens", "Tokens generated", **made)
        self.generations = Counter("glmcore_generations", "Generations by how they ended", ["end"], **made)
        self.in_flight = Gauge("glmcore_generations_in_flight", "Generations running or waiting", **made)
        self.refused = Counter("glmcore_refused", "Requests refused", ["reason"], **made)

    def watch(self, read: Callable[[], dict[str, float]]) -> None:
        """Show what `read` gives, by name, at each scrape."""
        self.registry.register(_Watched(read))

    def text(self) -> bytes:
        """All figures in the text format of Prometheus."""
        return generate_latest(self.registry)


class _Watched(Collector):
    def __init__(self, read: Callable[[], dict[str, float]]) -> None:
        self._read = read

    def describe(self) -> Iterable[GaugeMetricFamily]:
        return []

    def collect(self) -> Iterable[GaugeMetricFamily]:
        for name, value in self._read().items():
            yield GaugeMetricFamily(f"glmcore_engine_{name}", f"Engine: {name.replace('_', ' ')}", value=value)


class StreamMeter:
    """Counts one generation."""

    def __init__(self, metrics: Metrics, prompt_tokens: int) -> None:
        self._metrics = metrics
        self._last = time.perf_counter()
        self._seen: dict[int, float] = {}
        metrics.prompt_tokens.inc(prompt_tokens)
        metrics.in_flight.inc()

    def saw(self, delta: Delta) -> None:
        """Tokens have come."""
        now = time.perf_counter()
        count = len(delta.token_ids)
        before = self._seen.get(delta.index)
        if before is None:
            self._metrics.first_token_s.observe(now - self._last)
        elif count:
            self._metrics.next_token_s.observe((now - before) / count)
        self._seen[delta.index] = now
        self._metrics.completion_tokens.inc(count)
        self._metrics.cached_tokens.inc(0 if delta.index else delta.cached_tokens)

    def end(self, how: str) -> None:
        """The generation has ended."""
        self._metrics.in_flight.dec()
        self._metrics.generations.labels(how).inc()

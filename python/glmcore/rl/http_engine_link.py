"""Requests to a model server, and the bounds that an engine sets them."""

from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

from glmcore.errors import ConfigError, RequestError, ServerError
from glmcore.rl.http_engine_dialects import Call


@dataclass(frozen=True)
class HttpEngineConfig:
    """Bounds of time and trouble, in seconds."""

    request_s: float = 3_600.0
    """Most that a request may take between two weight updates."""
    load_s: float = 600.0
    """Most that a server takes to load weights."""
    start_s: float = 1_200.0
    """Most that a server takes to come up."""
    drain_s: float = 10.0
    """Most that requests take to come back when they are ended early; those that do not are sent again whole."""
    health_every_s: float = 5.0
    health_s: float = 10.0
    """Most that a server takes to say that it is well."""
    health_misses: int = 3
    """So many times not being well, one after another, means being dead."""
    max_restarts: int = 8
    """Over the life of the engine."""
    max_tries: int = 4
    """For a request that fails at a server that is well."""


class ServerLink:
    """Connections to one server.

    Args:
        url: Of the server.
        api_key: Sent as a bearer token.

    Raises:
        ConfigError: `httpx` is not installed.
    """

    def __init__(self, url: str, api_key: str | None = None) -> None:
        try:
            import httpx
        except ImportError:
            raise ConfigError("HTTP engines need httpx: pip install 'glmcore[http]'") from None
        self.url = url.rstrip("/")
        headers = {"Authorization": f"Bearer {api_key}"} if api_key else {}
        limits = httpx.Limits(max_connections=None, max_keepalive_connections=None)
        self._client = httpx.AsyncClient(base_url=self.url, headers=headers, limits=limits)

    async def send(self, call: Call, timeout_s: float) -> Mapping[str, Any]:
        """One request to the server; gives the object that it answers, an empty one for no content.

        Raises:
            ServerError: It cannot be reached, is too slow, or says that it failed.
            RequestError: It refuses.
        """
        import httpx

        try:
            response = await self._client.request(call.method, call.path, json=call.body, timeout=timeout_s)
        except httpx.TimeoutException:
            raise ServerError(f"{self.url}{call.path} did not answer in {timeout_s:g} s") from None
        except (httpx.TransportError, RuntimeError) as error:  # a closed client raises the latter
            raise ServerError(f"{self.url}{call.path} cannot be reached: {error or type(error).__name__}") from None
        if response.status_code != 200:
            trouble = f"{self.url}{call.path} answered {response.status_code}: {' '.join(response.text[:300].split())}"
            refused = 400 <= response.status_code < 500 and response.status_code not in (408, 429)
            raise (RequestError if refused else ServerError)(trouble)
        told: Any = {}
        with suppress(ValueError):
            told = response.json()
        return told if isinstance(told, dict) else {}

    async def close(self) -> None:
        """Give up all connections."""
        await self._client.aclose()

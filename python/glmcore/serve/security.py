"""Whom a server answers: API keys, and where there are none only this machine."""

import hashlib
import hmac
import ipaddress
import os
import re
import secrets
from collections.abc import Iterable, Mapping
from pathlib import Path

from glmcore.errors import ConfigError
from glmcore.serve.config import ServeConfig
from glmcore.serve.errors import ServeError

MIN_KEY_LENGTH = 16


class ApiKeys:
    """Keys that open the server, held as keyed hashes only.

    Args:
        keys: The keys.

    Raises:
        ConfigError: A key is short enough to be guessed.
    """

    def __init__(self, keys: Iterable[str]) -> None:
        self._secret = secrets.token_bytes(32)
        self._digests: list[bytes] = []
        for key in dict.fromkeys(keys):
            if len(key) < MIN_KEY_LENGTH:
                raise ConfigError(
                    f"API key {len(self._digests) + 1} has {len(key)} characters: take at least {MIN_KEY_LENGTH}, "
                    "such as `python -c 'import secrets; print(secrets.token_urlsafe(32))'` gives"
                )
            self._digests.append(self._digest(key))

    @classmethod
    def load(cls, config: ServeConfig, environment: Mapping[str, str] = os.environ) -> "ApiKeys":
        """The keys of the configured file and of the environment.

        Raises:
            ConfigError: The file cannot be read, or a key is too short.
        """
        keys: list[str] = []
        if config.security.keys_file is not None:
            path = Path(config.security.keys_file)
            try:
                lines = [line.strip() for line in path.read_text(encoding="utf-8").splitlines()]
            except (OSError, UnicodeDecodeError) as error:
                raise ConfigError(f"security.keys_file: cannot read {path}: {error}") from None
            keys += [line for line in lines if line and not line.startswith("#")]
            if not keys:
                raise ConfigError(f"security.keys_file: {path} has no key")
        keys += re.split(r"[,\s]+", environment.get(config.security.keys_variable, "").strip(", \t\n"))
        return cls(key for key in keys if key)

    def __len__(self) -> int:
        return len(self._digests)

    def owner(self, offered: str) -> str | None:
        """Name of the key, by its place in the list; None if it is none of them.

        The time does not tell how much of a key was right, nor which one: all hashes are compared in constant time.
        """
        digest = self._digest(offered)
        found = None
        for place, known in enumerate(self._digests):
            if hmac.compare_digest(digest, known):
                found = f"key-{place + 1}"
        return found

    def _digest(self, key: str) -> bytes:
        return hmac.digest(self._secret, key.encode(errors="surrogatepass"), hashlib.sha256)


class Doorkeeper:
    """Decides whether a request is answered.

    Args:
        config: The server's.
        keys: Keys that open it; without any, only requests that were meant for this machine are answered.
    """

    def __init__(self, config: ServeConfig, keys: ApiKeys) -> None:
        self._keys = keys
        self._hosts = {name.lower() for name in config.listen.allowed_hosts}
        self._open = config.security.open_to_all

    def admit(self, headers: Mapping[str, str], address: str) -> str:
        """Who asks: the name of the key, or the address.

        Raises:
            ServeError: The key is missing or wrong, or a foreign page sent the request through the user's browser.
        """
        if len(self._keys):
            return self._owner(headers)
        if not self._open:
            self._check_origin(headers)
        return address

    def _owner(self, headers: Mapping[str, str]) -> str:
        scheme, _, token = headers.get("authorization", "").partition(" ")
        offered = token.strip() if scheme.lower() == "bearer" else headers.get("x-api-key", "")
        owner = self._keys.owner(offered) if offered else None
        if owner is None:
            what = "wrong API key" if offered else "no API key: send Authorization: Bearer KEY, or x-api-key: KEY"
            raise ServeError(401, "authentication", what, code="invalid_api_key")
        return owner

    def _check_origin(self, headers: Mapping[str, str]) -> None:
        """Refuse what a page of another site sends to this machine, by name tricks (DNS rebinding) or straight."""
        host = headers.get("host", "")
        if not self._is_ours(host):
            raise ServeError(
                403,
                "permission",
                f"this server is not called {host[:100]!r}: add the name to listen.allowed_hosts",
                code="host_not_allowed",
            )
        origin = headers.get("origin")
        if origin is not None and origin.partition("://")[2] != host:
            raise ServeError(403, "permission", f"pages of {origin[:100]!r} may not use this server", code="origin")

    def _is_ours(self, host: str) -> bool:
        name = host.rpartition("]")[0].removeprefix("[") if host.startswith("[") else host.partition(":")[0]
        return name.lower() in self._hosts or is_loopback(name)


def is_loopback(host: str) -> bool:
    """Whether only this machine reaches `host`."""
    if host.lower() == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def check_exposure(config: ServeConfig, keys: ApiKeys) -> None:
    """Refuse to open the server to others without a key, unless that is asked for by name.

    Raises:
        ConfigError: It would be.
    """
    host = config.listen.host
    if not is_loopback(host) and not len(keys) and not config.security.open_to_all:
        raise ConfigError(
            f"listen.host={host} can be reached from other machines, and there is no API key: set "
            f"security.keys_file or the environment variable {config.security.keys_variable}, or say "
            "security.open_to_all=true"
        )

"""An environment behind HTTP, in any language: three small JSON calls.

    POST {url}/reset  {"task": {...}}                 -> {"episode": "id", "messages": [...], "tools": [...]}
    POST {url}/step   {"episode": "id", "message": {...}}
                                -> {"observations": [...], "reward": 0.0, "done": false, "parts": {...}}
    POST {url}/close  {"episode": "id"}               -> {}

Messages are those of `glmcore.chat`: `role`, `content`, and for the assistant `reasoning_content` and `tool_calls`
with a `function` of `name` and `arguments`. Tasks are the lines of a file on this side, sent as they are.
"""

import asyncio
import http.client
import json
import urllib.parse
from collections.abc import Mapping, Sequence
from typing import Any

from glmcore.chat import Message
from glmcore.envs.config import HttpConfig
from glmcore.envs.items import choose, read_items
from glmcore.envs.protocol import Item, Split, Start, StepResult
from glmcore.errors import EnvironmentFailure


class HttpEnv:
    """One episode on a server.

    Args:
        config: Where the server is, and the bounds of an answer.
    """

    def __init__(self, config: HttpConfig) -> None:
        self._config = config
        self._episode: str | None = None

    async def reset(self, task: Item) -> Start:
        """Send the task.

        Raises:
            EnvironmentFailure: The server is away, too slow, too talkative, or answers something else.
        """
        answer = await self._post("reset", {"task": {"id": task.id, **task.data}})
        self._episode = str(_get(answer, "episode", str))
        return Start(_get(answer, "messages", list), _get(answer, "tools", list, []))

    async def step(self, message: Message) -> StepResult:
        """Send the message.

        Raises:
            EnvironmentFailure: See `reset`.
        """
        said: dict[str, Any] = {
            "role": "assistant",
            "content": message.content,
            "reasoning_content": message.reasoning_content,
            "tool_calls": [{"function": {"name": c.name, "arguments": c.arguments}} for c in message.tool_calls],
        }
        answer = await self._post("step", {"episode": self._episode, "message": said})
        return StepResult(
            _get(answer, "observations", list, []),
            _get(answer, "reward", (int, float), 0.0),
            _get(answer, "done", bool),
            _get(answer, "parts", dict, {}),
        )

    async def close(self) -> None:
        """End the episode on the server, if it has begun."""
        if self._episode is not None:
            episode, self._episode = self._episode, None
            await self._post("close", {"episode": episode})

    async def _post(self, verb: str, value: Mapping[str, Any]) -> Mapping[str, Any]:
        return await asyncio.to_thread(_post, self._config, verb, json.dumps(value).encode())


def _post(config: HttpConfig, verb: str, body: bytes) -> Mapping[str, Any]:
    """One call; blocks.

    Raises:
        EnvironmentFailure: There is no answer, or no JSON object of bounded size.
    """
    parts = urllib.parse.urlsplit(config.url)
    kind = http.client.HTTPSConnection if parts.scheme == "https" else http.client.HTTPConnection
    connection = kind(parts.netloc, timeout=config.timeout_seconds)
    try:
        headers = {"Content-Type": "application/json"}
        connection.request("POST", f"{parts.path.rstrip('/')}/{verb}", body, headers)
        with connection.getresponse() as response:  # it holds the socket too where not all of it is read
            data = response.read(config.max_answer_bytes + 1)
        if response.status != 200:
            raise EnvironmentFailure(f"{verb}: status {response.status}: {data[:200].decode(errors='replace')}")
        if len(data) > config.max_answer_bytes:
            raise EnvironmentFailure(f"{verb}: the answer has more than {config.max_answer_bytes} bytes")
        answer = json.loads(data)
    except (OSError, http.client.HTTPException, ValueError) as error:
        raise EnvironmentFailure(f"{verb} at {config.url}: {type(error).__name__}: {error}") from None
    finally:
        connection.close()
    if not isinstance(answer, dict):
        raise EnvironmentFailure(f"{verb}: the answer is no JSON object")
    return answer


def _get(answer: Mapping[str, Any], key: str, kind: type | tuple[type, ...], default: Any = None) -> Any:
    value = answer.get(key, default)
    if not isinstance(value, kind):
        raise EnvironmentFailure(f"the server's {key} is {str(value)[:80]!r}")
    return value


class HttpFamily:
    """Episodes on a server, tasks from JSON lines.

    Args:
        config: Server and tasks.
        names: None.

    Raises:
        DataError: The file cannot be read.
    """

    def __init__(self, config: HttpConfig, names: Sequence[str]) -> None:
        self._config = config
        self._items = read_items(config.tasks, [])

    def tasks(self, split: Split, count: int, seed: int) -> list[Item]:
        """See `Family.tasks`."""
        return choose(self._items, split, count, seed)

    def new(self) -> HttpEnv:
        """The environment of one more episode."""
        return HttpEnv(self._config)

    def close(self) -> None:
        """Nothing is held."""

"""Who answers: an engine in this process, or a server that speaks OpenAI's chat completions."""

import asyncio
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

from glmcore.chat import Message, apply_chat_template, parse_reply
from glmcore.errors import ConfigError, RequestError, ServerError

if TYPE_CHECKING:
    import httpx

    from glmcore.engine.protocol import PolicyEngine
    from glmcore.tokenizer import Tokenizer

MAX_TRIES = 6
_FIRST_WAIT_S = 0.5
_BUSY = (408, 409, 429, 500, 502, 503, 504, 529)
"""Answers of a server that is worth another try."""


@dataclass(frozen=True)
class Sampling:
    """How answers are drawn."""

    max_tokens: int = 2_048
    temperature: float = 1.0
    top_p: float = 1.0
    thinking: bool = True


@dataclass(frozen=True)
class Answer:
    """What a model said."""

    message: Message
    finish_reason: str
    """`stop` or `length`."""
    num_tokens: int
    """Tokens of the answer, thinking included; 0 where a server does not tell."""


class AnswerModel(Protocol):
    """Answers questions; any number at a time."""

    name: str

    async def answer(self, question: str, sampling: Sampling, seed: int) -> Answer:
        """Answer a question.

        Raises:
            ServerError: There is no answer now, but there may be one later.
            RequestError: There will be none.
        """
        ...

    async def close(self) -> None:
        """Give up what is held."""
        ...


class EngineModel:
    """A model in this process.

    Args:
        engine: Draws the tokens.
        tokenizer: Renders questions and reads answers.
        name: Of the model, for the record.
    """

    def __init__(self, engine: "PolicyEngine", tokenizer: "Tokenizer", name: str) -> None:
        self.engine = engine
        self.tokenizer = tokenizer
        self.name = name

    async def answer(self, question: str, sampling: Sampling, seed: int) -> Answer:
        from glmcore.engine.sampling import SamplingParams

        turn = [{"role": "user", "content": question}]
        prompt = apply_chat_template(self.tokenizer, turn, thinking=sampling.thinking, add_generation_prompt=True)
        params = SamplingParams(
            max_tokens=sampling.max_tokens, temperature=sampling.temperature, top_p=sampling.top_p, seed=seed
        )
        [generation] = await self.engine.generate(prompt.ids.tolist(), params)
        if generation.finish_reason == "abort":
            raise ServerError("the engine ended the request early")
        text = self.tokenizer.decode(generation.token_ids, skip_special_tokens=True)
        return Answer(parse_reply(text), generation.finish_reason, len(generation.token_ids))

    async def close(self) -> None:
        """Nothing of its own."""


class ServerModel:
    """A model behind OpenAI's chat completions.

    Args:
        url: Of the server, with or without `/v1`.
        model: Its name there; None for the first one that the server lists.
        api_key: Sent as a bearer token.
        timeout_s: Most that one answer may take.

    Raises:
        ConfigError: `httpx` is not installed.
    """

    def __init__(self, url: str, model: str | None, api_key: str | None, timeout_s: float) -> None:
        try:
            import httpx
        except ImportError:
            raise ConfigError("evaluating a server needs httpx: pip install 'glmcore[http]'") from None
        base = url.rstrip("/")
        self.url = base if base.endswith("/v1") else f"{base}/v1"
        self.name = model or ""
        headers = {"Authorization": f"Bearer {api_key}"} if api_key else {}
        limits = httpx.Limits(max_connections=None, max_keepalive_connections=None)
        self._client = httpx.AsyncClient(timeout=httpx.Timeout(timeout_s, connect=10), headers=headers, limits=limits)

    async def find(self) -> None:
        """Ask which model is served, where none was named.

        Raises:
            ServerError: The server cannot be reached.
            RequestError: It lists no model.
        """
        if self.name:
            return
        listed = (await self._request("GET", f"{self.url}/models", None)).get("data", [])
        if not listed:
            raise RequestError(f"{self.url} lists no model: name one with --model")
        self.name = str(listed[0]["id"])

    async def answer(self, question: str, sampling: Sampling, seed: int) -> Answer:
        body: dict[str, Any] = {
            "model": self.name,
            "messages": [{"role": "user", "content": question}],
            "max_tokens": sampling.max_tokens,
            "temperature": sampling.temperature,
            "top_p": sampling.top_p,
            "seed": seed,
        }
        if not sampling.thinking:
            body["chat_template_kwargs"] = {"enable_thinking": False}
        told = await self._request("POST", f"{self.url}/chat/completions", body)
        try:
            choice = told["choices"][0]
            message = choice["message"]
            content = message.get("content") or ""
            thought = message.get("reasoning_content") or message.get("reasoning") or ""
            tokens = int((told.get("usage") or {}).get("completion_tokens") or 0)
            reason = str(choice.get("finish_reason"))
        except (KeyError, IndexError, TypeError, AttributeError, ValueError):
            raise RequestError(f"{self.url} answered with something else than a chat completion") from None
        if thought:
            return Answer(Message(thought, content, finished_thinking=bool(content)), reason, tokens)
        return Answer(parse_reply(content), reason, tokens)

    async def _request(self, method: str, url: str, body: dict[str, Any] | None) -> dict[str, Any]:
        """One request, tried again while the server is busy or away."""
        import httpx

        trouble = ""
        for number in range(MAX_TRIES):
            wait_s = _FIRST_WAIT_S * 2**number
            try:
                response = await self._client.request(method, url, json=body)
            except httpx.TimeoutException:
                raise ServerError(f"{url} did not answer in time") from None
            except httpx.TransportError as error:
                trouble = f"{url} cannot be reached: {error or type(error).__name__}"
            else:
                if response.status_code == 200:
                    return _json(response, url)
                trouble = f"{url} answered {response.status_code}: {' '.join(response.text[:300].split())}"
                if response.status_code not in _BUSY:
                    raise RequestError(trouble)
                wait_s = _asked_wait(response, wait_s)
            if number + 1 < MAX_TRIES:
                await asyncio.sleep(wait_s)
        raise ServerError(trouble)

    async def close(self) -> None:
        await self._client.aclose()


def _json(response: "httpx.Response", url: str) -> dict[str, Any]:
    try:
        told = response.json()
    except ValueError:
        told = None
    if not isinstance(told, dict):
        raise RequestError(f"{url} answered with something else than a JSON object")
    return told


def _asked_wait(response: "httpx.Response", default_s: float) -> float:
    try:
        return min(60.0, max(0.0, float(response.headers["retry-after"])))
    except (KeyError, ValueError):
        return default_s

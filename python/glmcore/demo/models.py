"""What answers: a server that speaks OpenAI's chat completions, or a checkpoint in this process."""

import json
import secrets
import urllib.error
import urllib.request
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Protocol

from glmcore.errors import RequestError

Json = dict[str, Any]


class ChatModel(Protocol):
    """Answers a conversation."""

    def answer(self, messages: Sequence[Json], tools: Sequence[Json], *, must_answer: bool) -> Json:
        """The assistant's message, as OpenAI has it. `must_answer` rules out tool calls."""
        ...


class ServerModel:
    """A model behind an OpenAI-compatible endpoint.

    Args:
        url: Base address, such as http://127.0.0.1:8000/v1.
        model: Name of the model there; None for the first that it lists.
        api_key: Sent as a bearer token, if the server asks for one.
        max_tokens: Most tokens of one answer.
        timeout_s: Seconds that an answer may take.
    """

    def __init__(
        self, url: str, model: str | None, *, api_key: str | None, max_tokens: int, timeout_s: float = 600.0
    ) -> None:
        if not url.startswith(("http://", "https://")):
            raise RequestError(f"{url!r} is no http or https address")
        self._url = url.rstrip("/")
        self._headers = {"content-type": "application/json"}
        if api_key:
            self._headers["authorization"] = f"Bearer {api_key}"
        self._max_tokens = max_tokens
        self._timeout_s = timeout_s
        self._model = model or self._call("/models")["data"][0]["id"]

    def answer(self, messages: Sequence[Json], tools: Sequence[Json], *, must_answer: bool) -> Json:
        body = {
            "model": self._model,
            "messages": list(messages),
            "tools": list(tools),
            "tool_choice": "none" if must_answer else "auto",
            "temperature": 0,
            "max_tokens": self._max_tokens,
        }
        return self._call("/chat/completions", body)["choices"][0]["message"]

    def _call(self, path: str, body: Json | None = None) -> Any:
        data = None if body is None else json.dumps(body).encode()
        request = urllib.request.Request(self._url + path, data, self._headers)
        try:
            with urllib.request.urlopen(request, timeout=self._timeout_s) as response:
                return json.load(response)
        except urllib.error.HTTPError as error:
            said = error.read(2000).decode(errors="replace")
            raise RequestError(f"{self._url}{path} answered {error.code}: {said}") from None
        except (OSError, ValueError) as error:
            raise RequestError(f"cannot reach {self._url}{path}: {error}") from None


class LocalModel:
    """A checkpoint in this process.

    Args:
        directory: Hugging Face layout, with its tokenizer.
        max_tokens: Most tokens of one answer.
    """

    def __init__(self, directory: Path, *, max_tokens: int) -> None:
        from glmcore.engine.llm import LLM

        self._llm = LLM(directory)
        self._max_tokens = max_tokens

    def answer(self, messages: Sequence[Json], tools: Sequence[Json], *, must_answer: bool) -> Json:
        from glmcore.chat import apply_chat_template, parse_reply
        from glmcore.engine.sampling import SamplingParams

        told = None if must_answer else list(tools)
        prompt = apply_chat_template(self._llm.tokenizer, messages, told, add_generation_prompt=True)
        params = SamplingParams(max_tokens=self._max_tokens, temperature=0.0)
        [generation] = self._llm.engine.generate([prompt.ids.tolist()], [params])
        said = parse_reply(self._llm.reply_text(generation.token_ids), tools=told)
        message: Json = {"role": "assistant", "content": said.content, "reasoning_content": said.reasoning_content}
        if said.tool_calls and not must_answer:
            message["tool_calls"] = [
                {
                    "id": f"call_{secrets.token_hex(12)}",
                    "type": "function",
                    "function": {"name": call.name, "arguments": json.dumps(call.arguments, ensure_ascii=False)},
                }
                for call in said.tool_calls
            ]
        return message

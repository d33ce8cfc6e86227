"""Turns answered by one engine: rendered, bounded, and read back as events."""

from collections.abc import AsyncGenerator, AsyncIterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

from glmcore.chat import ChatFormat, apply_chat_template
from glmcore.engine.sampling import SamplingParams
from glmcore.errors import RequestError
from glmcore.serve.admission import Admission, AdmittedStream
from glmcore.serve.config import LimitsConfig
from glmcore.serve.constraints import constrained
from glmcore.serve.errors import ServeError, bad_request, too_long
from glmcore.serve.metrics import Metrics
from glmcore.serve.reply import Reply
from glmcore.serve.turn import Turn, TurnEvent
from glmcore.tokenizer import Tokenizer

MIN_TEMPERATURE = 1e-3
"""Below it the most likely token is taken, which is what such a temperature means; scores divided by it overflow."""


@dataclass(frozen=True)
class TurnLimits:
    """How much one request may ask for."""

    context: int
    """Tokens of prompt and answer together."""
    max_completion_tokens: int | None = None
    """Most tokens of an answer; None for what the context leaves."""
    max_choices: int = 16
    max_sequences: int = 1024
    """Answers in flight at a time, over all requests."""
    retry_after_s: float = 1.0
    """What a client that is refused for these is told to wait."""

    @classmethod
    def of(cls, limits: LimitsConfig, model_context: int) -> "TurnLimits":
        """The configured limits of a server whose model has this context."""
        return cls(
            context=min(limits.max_context or model_context, model_context),
            max_completion_tokens=limits.max_completion_tokens,
            max_choices=limits.max_choices,
            max_sequences=limits.max_sequences_in_flight,
            retry_after_s=limits.retry_after_s,
        )


class Conversations:
    """Answers turns with one engine.

    Args:
        service: An `EngineService`.
        tokenizer: That of its model.
        limits: What requests may ask for.
        chat_format: Format of the model's conversations.
        metrics: Where generations are counted; None for a count of its own.
        sampling: What holds where a request does not say.
    """

    def __init__(
        self,
        service: Any,
        tokenizer: Tokenizer,
        limits: TurnLimits,
        *,
        chat_format: ChatFormat = "glm-4.5",
        metrics: Metrics | None = None,
        sampling: SamplingParams = SamplingParams(),  # noqa: B008 (frozen)
    ) -> None:
        self.sampling = sampling
        self.service = service
        self.tokenizer = tokenizer
        self.limits = limits
        self.chat_format: ChatFormat = chat_format
        self.metrics = metrics or Metrics()
        self.admission = Admission(limits.max_sequences, limits.retry_after_s)

    def prompt_ids(self, turn: Turn) -> list[int]:
        """The prompt as the model reads it. Whatever people and tools wrote in it stays text.

        Raises:
            ServeError: A message cannot be rendered.
        """
        tools = None if turn.tool_choice == "none" else list(turn.tools) or None
        try:
            rendered = apply_chat_template(
                self.tokenizer,
                turn.messages,
                tools,
                turn.thinking,
                add_generation_prompt=True,
                format=self.chat_format,
            )
        except RequestError as error:
            raise bad_request(str(error), param="messages") from None
        return rendered.ids.tolist()

    def encode(self, text: str) -> list[int]:
        """Ids of a text whose special tokens stay text."""
        return self.tokenizer.encode(text.encode(errors="replace").decode())

    def run(self, turn: Turn) -> "Answers":
        """Take the turn on, and answer it.

        Returns:
            The events of all answers as they come. Closing it aborts what is still running, and frees its memory.

        Raises:
            ServeError: The turn cannot be answered, or the server has too much to do. Nothing has been started then.
        """
        prompt = self.prompt_ids(turn)
        params = constrained(turn, self.tokenizer, self.chat_format)
        stream = self.generate(prompt, params, priority=turn.priority)
        in_thinking = turn.thinking and self.chat_format == "glm-4.7"
        replies = [Reply(index, turn, len(prompt), in_thinking=in_thinking) for index in range(params.n)]
        return Answers(stream, replies, len(prompt))

    def generate(self, prompt: Sequence[int], params: SamplingParams, *, priority: int = 0) -> AdmittedStream:
        """Take a prompt on, and continue it.

        Raises:
            ServeError: It is empty or too long, or the server has too much to do.
        """
        if not prompt:
            raise bad_request("the prompt is empty", param="prompt")
        if len(prompt) >= self.limits.context:
            raise too_long(len(prompt), self.limits.context)
        if params.n > self.limits.max_choices:
            raise bad_request(f"n must be at most {self.limits.max_choices}, got {params.n}", param="n")
        heat = params.temperature if params.temperature >= MIN_TEMPERATURE else 0.0
        try:
            bounded = replace(params, max_tokens=self.room(len(prompt), params.max_tokens), temperature=heat)
        except RequestError as error:
            raise bad_request(str(error)) from None
        self.admission.take(params.n)
        deltas = self.service.stream(prompt, bounded, priority=priority)
        return AdmittedStream(deltas, self.admission, params.n, len(prompt), self.metrics)

    def room(self, prompt_tokens: int, asked: int) -> int:
        """Tokens that an answer may have: what was asked for, the server's bound or the context, whichever is least.

        An answer that the bound or the context cuts off ends with reason `length`, as one that reaches what was asked.
        """
        most = self.limits.max_completion_tokens or asked
        return min(asked, most, max(self.limits.context - prompt_tokens, 1))


class Answers:
    """The events of a turn's answers, as they come."""

    def __init__(self, stream: AdmittedStream, replies: Sequence[Reply], prompt_tokens: int) -> None:
        self.prompt_tokens = prompt_tokens
        self._stream = stream
        self._replies = replies
        self._events = self._read()

    def __aiter__(self) -> AsyncIterator[TurnEvent]:
        return self._events

    async def __anext__(self) -> TurnEvent:
        return await self._events.__anext__()

    async def aclose(self) -> None:
        """Abort what is still running, and free its memory."""
        await self._events.aclose()
        await self._stream.aclose()

    async def _read(self) -> AsyncGenerator[TurnEvent, None]:
        try:
            async for delta in self._stream:
                for event in self._replies[delta.index].feed(delta):
                    yield event
                if all(reply.done for reply in self._replies):
                    return
        finally:
            await self._stream.aclose()
        raise ServeError(503, "unavailable", "the server stopped before the answer was complete")

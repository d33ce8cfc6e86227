"""What a request to the Responses API may hold.

Fields that steer only OpenAI's own services (`metadata`, `user`, `prompt_cache_key`, `safety_identifier`,
`service_tier`, `truncation: disabled`, `text.verbosity`, ...) are taken and have no effect: clients send them always.
Fields that would change the answer are honoured or refused.

Source: OpenAI's Responses API reference, and what the clients named in docs/clients.md send.
"""

from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Discriminator, Field, PositiveInt
from pydantic import Tag as Named


class _Open(BaseModel):
    """An object to which clients add fields of their own."""

    model_config = ConfigDict(extra="allow")


class ContentPart(_Open):
    """A part of a message or of a tool's output; only text can be read."""

    type: str
    text: str | None = None
    refusal: str | None = None


class MessageItem(_Open):
    """A message; `type` may be left out."""

    type: Literal["message"] = "message"
    role: Literal["user", "assistant", "system", "developer"]
    content: str | list[ContentPart]


class FunctionCallItem(_Open):
    """A call that the assistant made."""

    type: Literal["function_call"]
    call_id: str
    name: str
    arguments: str
    namespace: str | None = None


class FunctionCallOutputItem(_Open):
    """What a function gave."""

    type: Literal["function_call_output"]
    call_id: str
    output: str | list[ContentPart]


class ReasoningItem(_Open):
    """The assistant's reasoning, as it was sent."""

    type: Literal["reasoning"]
    summary: list[ContentPart] = []
    content: list[ContentPart] | None = None
    encrypted_content: str | None = None


class OtherItem(_Open):
    """An item of a kind that is refused."""

    type: str


_ITEMS = {
    "message": MessageItem,
    "function_call": FunctionCallItem,
    "function_call_output": FunctionCallOutputItem,
    "reasoning": ReasoningItem,
}


def _kind(item: Any) -> str:
    kind = item.get("type", "message") if isinstance(item, dict) else getattr(item, "type", "message")
    return kind if isinstance(kind, str) and kind in _ITEMS else "other"


Item = Annotated[
    Annotated[MessageItem, Named("message")]
    | Annotated[FunctionCallItem, Named("function_call")]
    | Annotated[FunctionCallOutputItem, Named("function_call_output")]
    | Annotated[ReasoningItem, Named("reasoning")]
    | Annotated[OtherItem, Named("other")],
    Discriminator(_kind),
]


class Tool(_Open):
    """A tool; only functions, which the caller runs, and namespaces of them can be offered."""

    type: str
    name: str | None = None
    description: str | None = None
    parameters: dict[str, Any] | None = None
    strict: bool | None = None
    tools: list["Tool"] = []


class ToolChoice(_Open):
    """A function that must be called, or the functions that may be."""

    type: str
    name: str | None = None
    namespace: str | None = None
    mode: Literal["auto", "required"] = "auto"
    tools: list[dict[str, Any]] = []


class Reasoning(_Open):
    """Whether the model thinks first: `none` asks for no thinking, every other effort for thinking."""

    effort: Literal["none", "minimal", "low", "medium", "high", "xhigh", "max"] | None = None
    summary: str | None = None


class TextFormat(_Open):
    """What the answer's text must be."""

    type: Literal["text", "json_object", "json_schema"] = "text"
    name: str | None = None
    schema_: dict[str, Any] | None = Field(default=None, alias="schema")


class TextConfig(_Open):
    """How the answer is written."""

    format: TextFormat = TextFormat()


class ResponsesRequest(_Open):
    """A request for a response."""

    model: str | None = None
    input: str | list[Item]
    instructions: str | None = None
    tools: list[Tool] | None = None
    tool_choice: Literal["none", "auto", "required"] | ToolChoice = "auto"
    parallel_tool_calls: bool | None = None
    reasoning: Reasoning | None = None
    text: TextConfig | None = None
    include: list[str] | None = None
    stream: bool | None = None
    max_output_tokens: PositiveInt | None = None
    temperature: float | None = Field(default=None, ge=0, le=2)
    top_p: float | None = Field(default=None, gt=0, le=1)
    top_logprobs: int | None = Field(default=None, ge=0, le=20)
    metadata: dict[str, str] | None = None
    user: str | None = None
    store: bool | None = None
    background: bool | None = None
    truncation: Literal["auto", "disabled"] | None = None
    max_tool_calls: PositiveInt | None = None
    previous_response_id: str | None = None
    conversation: Any = None
    prompt: Any = None

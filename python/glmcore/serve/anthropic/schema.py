"""What a request to the Messages API may hold.

Fields that steer only Anthropic's own services (`metadata`, `cache_control`, `context_management`, `service_tier`,
betas) are taken and have no effect: clients send them always. Fields that would change the answer are honoured or
refused.

Source: Anthropic's Messages API reference, and what the clients named in docs/clients.md send.
"""

from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, PositiveInt


class _Open(BaseModel):
    """An object to which clients add fields of their own."""

    model_config = ConfigDict(extra="allow")


class TextBlock(_Open):
    """Text."""

    type: Literal["text"]
    text: str


class ImageBlock(_Open):
    """An image; refused."""

    type: Literal["image"]


class TextSource(_Open):
    """Where a document is: only text that stands in the request can be read."""

    type: str
    data: str | None = None


class DocumentBlock(_Open):
    """A document for the model to read."""

    type: Literal["document"]
    source: TextSource
    title: str | None = None
    context: str | None = None


class SearchResultBlock(_Open):
    """A passage that a search of the caller's has found."""

    type: Literal["search_result"]
    source: str
    title: str
    content: list[TextBlock]


class ToolReferenceBlock(_Open):
    """The name of a tool that a search for tools has found; the request lists the tool itself."""

    type: Literal["tool_reference"]
    tool_name: str


ResultBlock = Annotated[
    TextBlock | ImageBlock | DocumentBlock | SearchResultBlock | ToolReferenceBlock, Field(discriminator="type")
]


class ToolResultBlock(_Open):
    """What a tool gave."""

    type: Literal["tool_result"]
    tool_use_id: str
    content: str | list[ResultBlock] | None = None
    is_error: bool | None = None


class ToolUseBlock(_Open):
    """A call that the assistant made."""

    type: Literal["tool_use"]
    id: str
    name: str
    input: dict[str, Any]


class ThinkingBlock(_Open):
    """The assistant's thinking, as it was sent."""

    type: Literal["thinking"]
    thinking: str
    signature: str = ""


class RedactedThinkingBlock(_Open):
    """Thinking that another server has encrypted."""

    type: Literal["redacted_thinking"]
    data: str


ContentBlock = Annotated[
    TextBlock
    | ImageBlock
    | DocumentBlock
    | SearchResultBlock
    | ToolResultBlock
    | ToolUseBlock
    | ThinkingBlock
    | RedactedThinkingBlock,
    Field(discriminator="type"),
]


class InputMessage(_Open):
    """One message; `system` among the messages is what coding agents send during a conversation."""

    role: Literal["user", "assistant", "system"]
    content: str | list[ContentBlock]


class Tool(_Open):
    """A tool that the caller runs."""

    name: str = Field(min_length=1, max_length=128)
    type: str | None = None
    description: str | None = None
    input_schema: dict[str, Any] | None = None
    defer_loading: bool = False
    """The model does not see the tool before a result refers to it."""


class ToolChoice(_Open):
    """Whether and which tools are called."""

    type: Literal["auto", "any", "tool", "none"]
    name: str | None = None
    disable_parallel_tool_use: bool = False


class Thinking(_Open):
    """Whether the model thinks first, and whether the caller sees it."""

    type: Literal["enabled", "adaptive", "disabled"]
    budget_tokens: PositiveInt | None = None
    display: str | None = None


class OutputFormat(_Open):
    """The JSON schema that the answer follows."""

    type: Literal["json_schema"]
    schema_: dict[str, Any] = Field(alias="schema")


class OutputConfig(_Open):
    """How the answer is written."""

    format: OutputFormat | None = None


class CountRequest(_Open):
    """What makes a prompt: all that `count_tokens` looks at."""

    model: str
    messages: list[InputMessage] = Field(min_length=1)
    system: str | list[TextBlock] | None = None
    tools: list[Tool] | None = None
    tool_choice: ToolChoice | None = None
    thinking: Thinking | None = None
    output_config: OutputConfig | None = None


class MessagesRequest(CountRequest):
    """A request for an answer."""

    max_tokens: PositiveInt
    stream: bool = False
    stop_sequences: list[Annotated[str, Field(min_length=1)]] | None = None
    temperature: float | None = Field(default=None, ge=0, le=2)
    top_p: float | None = Field(default=None, gt=0, le=1)
    top_k: int | None = Field(default=None, ge=0)

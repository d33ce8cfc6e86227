"""What a chat completion asks for."""

from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ModelWrapValidatorHandler, PositiveInt, PrivateAttr, model_validator
from typing_extensions import Self

from glmcore.serve.openai.sampling import MAX_LOGPROBS, Body, SamplingBody

ToolName = Annotated[str, Field(pattern=r"^[A-Za-z0-9_.:/-]{1,128}$")]


class _Loose(BaseModel):
    """A part of a message. Clients send back what they were given with fields of their own, which are not read."""

    model_config = ConfigDict(extra="ignore", strict=True)


class ContentPart(_Loose):
    """A part of a content: only text can be read."""

    type: str
    text: str | None = None
    refusal: str | None = None


class CalledFunction(_Loose):
    """The function of a tool call."""

    name: str
    arguments: str | dict[str, Any] = ""


class ToolCallMade(_Loose):
    """A tool call of an earlier answer."""

    id: str | None = None
    type: str = "function"
    function: CalledFunction


class ChatMessage(_Loose):
    """One message."""

    role: Literal["system", "developer", "user", "assistant", "tool"]
    content: str | list[ContentPart] | None = None
    reasoning_content: str | None = None
    """The thinking of an earlier answer."""
    reasoning: str | None = None
    """The same, as some clients call it."""
    tool_calls: list[ToolCallMade] | None = None
    tool_call_id: str | None = None


class FunctionDescription(_Loose):
    """A function that the model may call."""

    name: ToolName
    description: str | None = None
    parameters: dict[str, Any] | None = None


class Tool(_Loose):
    """A tool that the model may call."""

    type: Literal["function"]
    function: FunctionDescription
    _given: Any = PrivateAttr(None)

    @model_validator(mode="wrap")
    @classmethod
    def _keep(cls, value: Any, handler: ModelWrapValidatorHandler[Self]) -> Self:
        tool = handler(value)
        tool._given = value
        return tool

    @property
    def given(self) -> dict[str, Any]:
        """Exactly what the client sent: the model reads its keys in the same order."""
        return self._given


class NamedFunction(Body):
    """The name of a function."""

    name: str


class NamedTool(Body):
    """The one tool to call."""

    type: Literal["function"]
    function: NamedFunction


class JsonSchema(Body):
    """A schema that the content must fit."""

    name: str | None = None
    description: str | None = None
    schema_: Annotated[dict[str, Any], Field(alias="schema")]
    strict: bool | None = None
    """Without effect: the content always fits."""


class ResponseFormat(Body):
    """What the content must look like."""

    type: Literal["text", "json_object", "json_schema"]
    json_schema: JsonSchema | None = None


class TemplateArguments(Body):
    """What is passed to the chat template."""

    enable_thinking: bool | None = None


class ThinkingSwitch(Body):
    """Whether to think, as GLM's own API has it."""

    type: Literal["enabled", "disabled"]


class ChatRequest(SamplingBody):
    """A chat completion."""

    messages: Annotated[list[ChatMessage], Field(min_length=1)]
    max_tokens: PositiveInt | None = None
    max_completion_tokens: PositiveInt | None = None
    logprobs: bool = False
    top_logprobs: Annotated[int, Field(ge=0, le=MAX_LOGPROBS)] | None = None
    tools: list[Tool] | None = None
    tool_choice: Literal["none", "auto", "required"] | NamedTool | None = None
    parallel_tool_calls: bool = True
    response_format: ResponseFormat | None = None
    chat_template_kwargs: TemplateArguments | None = None
    thinking: ThinkingSwitch | None = None
    reasoning_effort: Literal["none", "minimal", "low", "medium", "high", "xhigh"] | None = None
    """The model has no grades: none means no thinking, any other thinking."""
    modalities: list[Literal["text"]] | None = None

"""What a server is told: where it listens, whom it answers, how much it does for them."""

from typing import Literal

from pydantic import Field, NonNegativeFloat, NonNegativeInt, PositiveFloat, PositiveInt

from glmcore.config import Config
from glmcore.engine.config import EngineConfig


class ListenConfig(Config):
    """Where the server listens."""

    host: str = "127.0.0.1"
    """Address; one that others can reach needs `security.keys_file` or keys in the environment."""
    port: NonNegativeInt = 8000
    """0 lets the system choose."""
    allowed_hosts: list[str] = Field(default_factory=list[str])
    """Names in the Host header that are answered besides those of this machine; only where no key is asked for."""
    shutdown_s: NonNegativeFloat = 30.0
    """Seconds that requests in flight have to end when the server stops; what is left is aborted."""
    keep_alive_s: PositiveInt = 65
    """Seconds that an idle connection is kept."""


class SecurityConfig(Config):
    """Whom the server answers."""

    keys_file: str | None = None
    """A file with an API key in each line; empty lines and those that begin with # are skipped."""
    keys_variable: str = "GLMCORE_API_KEYS"
    """Environment variable with API keys, separated by commas or spaces; they are added to those of the file."""
    open_to_all: bool = False
    """Answer without a key on an address that others can reach."""
    log_prompts: bool = False
    """Write the bodies of requests to the log."""


class LimitsConfig(Config):
    """How much the server does."""

    max_body_bytes: PositiveInt = 8 << 20
    """Longest body, refused before it is parsed."""
    body_timeout_s: PositiveFloat = 30.0
    """Seconds within which a body must have arrived."""
    request_timeout_s: PositiveFloat = 1800.0
    """Seconds that a request may take, waiting included."""
    max_context: PositiveInt | None = None
    """Tokens of prompt and answer together; None for what the model has."""
    max_completion_tokens: PositiveInt | None = None
    """Most tokens of an answer, whatever the request asks for; None for what the context leaves."""
    max_sequences_in_flight: PositiveInt = 1024
    """Answers running and waiting at a time; a request beyond them gets 429."""
    max_choices: PositiveInt = 128
    """Largest `n` of a request, and most prompts of one completions request times its `n`."""
    retry_after_s: PositiveFloat = 1.0
    """What the Retry-After header of an overloaded server says."""
    requests_per_minute: PositiveInt | None = None
    """For each API key (each address where there are no keys); None for no limit."""
    tokens_per_minute: PositiveInt | None = None
    """Prompt and answer together, for each API key; a key in debt waits until it is paid. None for no limit."""
    heartbeat_s: PositiveFloat = 10.0
    """Seconds of silence after which a stream sends a sign of life."""


class ModelConfig(Config):
    """How the model is held."""

    dtype: Literal["float32", "bfloat16"] = "float32"
    """Arithmetic. float32 is the fastest on most CPUs and adds no rounding of its own."""
    fp8: bool = False
    """Hold in FP8 what FP8 checkpoints have quantised."""
    num_threads: NonNegativeInt = 0
    """Threads of PyTorch; 0 takes every core."""


class ServeConfig(Config):
    """A server."""

    model_name: str | None = None
    """What clients call the model; None for the name of its directory."""
    model_aliases: list[str] = Field(default_factory=list[str])
    """Other names that mean it; `*` takes any name."""
    chat_format: Literal["glm-4.5", "glm-4.7"] = "glm-4.5"
    """Format of conversations; glm-4.5 is that of GLM-4.6 too."""
    thinking: bool = True
    """Whether answers think where the request does not say."""
    listen: ListenConfig = ListenConfig()
    security: SecurityConfig = SecurityConfig()
    limits: LimitsConfig = LimitsConfig()
    model: ModelConfig = ModelConfig()
    engine: EngineConfig = EngineConfig()

    @property
    def model_names(self) -> list[str]:
        """What clients may call the model, its own name first; `*` stands for any name."""
        return [self.model_name or "glm", *self.model_aliases]

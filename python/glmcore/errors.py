"""Every exception that glmcore raises on purpose.

Each class also derives from the builtin that fits, so both `except GlmcoreError` and
`except ValueError` do what a reader expects. The Rust binding imports its classes from here.
"""


class GlmcoreError(Exception):
    """Base of all errors that glmcore raises on purpose."""


class TokenizerError(GlmcoreError, ValueError):
    """A tokenizer file, a text or an id cannot be handled."""


class DataError(GlmcoreError, ValueError):
    """A corpus, a document or a token shard cannot be read or written."""


class PackingError(GlmcoreError, ValueError):
    """Documents cannot be packed as asked."""


class TrajectoryError(GlmcoreError, RuntimeError):
    """The trajectory buffer refuses a call or its log is damaged."""


class BufferFullError(TrajectoryError):
    """The trajectory buffer has no room for a group: wait until others are consumed."""


class NotReadyError(TrajectoryError):
    """The groups of a batch were not complete in time: wait longer."""


class StaleError(TrajectoryError):
    """A group might be trained on when it is too old: sample it from newer weights."""


class Fp8Error(GlmcoreError, ValueError):
    """A tensor cannot be quantised or dequantised."""


class KernelError(GlmcoreError, RuntimeError):
    """A CUDA kernel cannot be compiled or launched, or there is no GPU for it."""


class ConfigError(GlmcoreError, ValueError):
    """A recipe or a model configuration is wrong."""


class CheckpointError(GlmcoreError, ValueError):
    """A checkpoint is missing, cut short, or does not fit the model."""


class RequestError(GlmcoreError, ValueError):
    """A generation request cannot be served."""


class QueueFullError(RequestError):
    """Too many requests wait already: try again later."""


class RunError(GlmcoreError, RuntimeError):
    """A run cannot start or go on: no disk space, a locked or foreign run directory."""


class SyncError(GlmcoreError, RuntimeError):
    """Weights did not reach an engine, or not as they were sent."""


class RankError(GlmcoreError, RuntimeError):
    """A process of a run stops because another one has failed.

    Args:
        message: What happened.
        is_news: False where the other process has said why, so that this one need not speak.
    """

    def __init__(self, message: str, *, is_news: bool = False) -> None:
        super().__init__(message)
        self.is_news = is_news


class SandboxError(GlmcoreError, RuntimeError):
    """A sandbox cannot be made here, or not as asked."""


class EnvironmentFailure(GlmcoreError, RuntimeError):  # noqa: N818 (it fails one rollout, which is no error of the run)
    """An environment broke down, hung or gave garbage, so that its episode has no reward."""


class VerifierError(GlmcoreError, RuntimeError):
    """Answers of a kind cannot be judged here: a package is missing, or a judging process does not start."""


class ServerError(GlmcoreError, RuntimeError):
    """A server, or an engine behind one, cannot answer now: it is away, too busy or too slow."""

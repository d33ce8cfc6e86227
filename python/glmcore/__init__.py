"""glmcore: the GLM-4.6 system, tokenizer to serving.

Public names are imported on first use, so `import glmcore` stays fast and never loads torch.
"""

import importlib
from typing import TYPE_CHECKING, Any

from glmcore._core import __version__

if TYPE_CHECKING:
    from glmcore.engine.llm import LLM, Completion
    from glmcore.engine.sampling import SamplingParams
    from glmcore.model.glm import Glm
    from glmcore.ragged import Ragged
    from glmcore.tokenizer import StreamDecoder, Tokenizer, train_tokenizer
    from glmcore.trajectory import TrajectoryBuffer

_HOME_OF = {
    "Completion": "glmcore.engine.llm",
    "Glm": "glmcore.model.glm",
    "LLM": "glmcore.engine.llm",
    "Ragged": "glmcore.ragged",
    "SamplingParams": "glmcore.engine.sampling",
    "StreamDecoder": "glmcore.tokenizer",
    "Tokenizer": "glmcore.tokenizer",
    "TrajectoryBuffer": "glmcore.trajectory",
    "train_tokenizer": "glmcore.tokenizer",
}
_SUBPACKAGES = ("chat", "data", "engine", "envs", "fp8", "model", "packing", "rl", "train")

__all__ = [
    "LLM",
    "Completion",
    "Glm",
    "Ragged",
    "SamplingParams",
    "StreamDecoder",
    "Tokenizer",
    "TrajectoryBuffer",
    "__version__",
    "train_tokenizer",
]


def __getattr__(name: str) -> Any:
    if name in _HOME_OF:
        return getattr(importlib.import_module(_HOME_OF[name]), name)
    if name in _SUBPACKAGES:
        return importlib.import_module(f"glmcore.{name}")
    raise AttributeError(f"module 'glmcore' has no attribute {name!r}")

"""How a checkpoint asks to be sampled from, where a request does not say: its generation_config.json."""

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from glmcore.engine.sampling import SamplingParams
from glmcore.errors import CheckpointError, RequestError

FILE = "generation_config.json"
_FIELDS = ("temperature", "top_p", "top_k", "min_p", "repetition_penalty")


@dataclass(frozen=True)
class GenerationDefaults:
    """What the file says. `do_sample` is not looked at: temperature 0 is how one asks for the likeliest tokens."""

    sampling: SamplingParams = field(default_factory=SamplingParams)
    """Temperature, `top_p`, `top_k`, `min_p` and repetition penalty of the file; what it does not name is as in any
    `SamplingParams`."""
    stop_token_ids: tuple[int, ...] | None = None
    """Its `eos_token_id`; None where it has none."""

    @classmethod
    def of(cls, directory: Path) -> "GenerationDefaults":
        """The defaults of a checkpoint directory; those of this class if it has no such file.

        Raises:
            CheckpointError: The file is no JSON object, or a value of it is out of range.
        """
        file = directory / FILE
        if not file.exists():
            return cls()
        try:
            said: Any = json.loads(file.read_bytes())
        except ValueError as error:
            raise CheckpointError(f"{file} is no JSON: {error}") from None
        if not isinstance(said, dict):
            raise CheckpointError(f"{file} is no JSON object")
        given = {name: said[name] for name in _FIELDS if said.get(name) is not None}
        try:
            sampling = SamplingParams(**given)
        except RequestError as error:
            raise CheckpointError(f"{file}: {error}") from None
        ends = said.get("eos_token_id")
        ends = [ends] if isinstance(ends, int) else ends
        if ends is not None and not (isinstance(ends, list) and all(isinstance(token, int) for token in ends)):
            raise CheckpointError(f"{file}: eos_token_id must be an integer or a list of them, got {ends!r}")
        return cls(sampling, None if ends is None else tuple(ends))

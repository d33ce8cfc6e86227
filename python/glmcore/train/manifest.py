"""What a checkpoint consists of, as `manifest.json` in its directory tells it."""

import hashlib
import json
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from glmcore.durable import write_file
from glmcore.errors import CheckpointError

NAME = "manifest.json"
FORMAT = "glmcore checkpoint 1"


@dataclass(frozen=True)
class File:
    """One file of a checkpoint."""

    size: int
    """Bytes."""
    sha256: str


Chunk = tuple[str, str, list[int], list[int]]
"""File, name in it, and offset and size of the part in each dimension."""


@dataclass(frozen=True)
class StoredTensor:
    """One tensor, in parts that ranks wrote."""

    dtype: str
    """As safetensors names it."""
    shape: list[int]
    chunks: list[Chunk]


@dataclass(frozen=True)
class Manifest:
    """Everything in a checkpoint that is not a tensor's value."""

    files: dict[str, File]
    tensors: dict[str, StoredTensor]
    progress: dict[str, int] = field(default_factory=dict)
    num_ranks: int = 1
    extra: dict[str, Any] = field(default_factory=dict)
    """State of the loop, any JSON."""

    def digests(self) -> dict[str, str]:
        """SHA-256 of every file."""
        return {name: file.sha256 for name, file in self.files.items()}

    def write(self, directory: Path) -> None:
        """Write it with a digest of itself."""
        content = json.dumps({"format": FORMAT, **asdict(self)}, separators=(",", ":"))
        digest = hashlib.sha256(content.encode()).hexdigest()
        write_file(directory / NAME, f'{{"sha256":"{digest}","content":\n{content}\n}}\n')

    @staticmethod
    def read(directory: Path) -> "Manifest":
        """Read and check it.

        Raises:
            CheckpointError: It is missing, cut short, changed or of another format.
        """
        file = directory / NAME
        try:
            text = file.read_text(encoding="utf-8")
        except FileNotFoundError:
            raise CheckpointError(f"{file}: file is missing") from None
        except (OSError, UnicodeDecodeError) as error:
            raise CheckpointError(f"{file}: cannot be read: {error}") from None
        head, _, rest = text.partition("\n")
        content = rest.removesuffix("\n}\n")
        if hashlib.sha256(content.encode()).hexdigest() not in head or content == rest:
            raise CheckpointError(f"{file}: is not what was written: its checksum differs")
        told = json.loads(content)
        if told.pop("format") != FORMAT:
            raise CheckpointError(f"{file}: is of another format than {FORMAT!r}")
        told["files"] = {name: File(**values) for name, values in told["files"].items()}
        told["tensors"] = {name: StoredTensor(**values) for name, values in told["tensors"].items()}
        return Manifest(**told)

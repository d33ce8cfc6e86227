"""A model with the GLM special tokens, small enough to be exported in a moment."""

from functools import cache
from pathlib import Path

import torch
from test_model import random_model

from glmcore.model.glm import Glm
from glmcore.recipe import Recipe
from glmcore.tokenizer import Tokenizer, train_tokenizer

TINY_RECIPE = Path(__file__).parent / "tiny.toml"
VOCAB_SIZE = 336
"""256 bytes, 36 special tokens and some merges."""


@cache
def tokenizer() -> Tokenizer:
    texts = [
        "one two three four five six seven eight",
        "get_weather city Paris Rome",
        "def add(a, b): return a + b",
    ] * 20
    return train_tokenizer(texts, vocab_size=VOCAB_SIZE, progress=False)


def model(**fields: object) -> Glm:
    stops = [tokenizer().token_to_id(token) for token in ("<|endoftext|>", "<|user|>", "<|observation|>")]
    ends = {"vocab_size": VOCAB_SIZE, "eos_token_id": stops, "pad_token_id": stops[0], "max_position_embeddings": 512}
    return random_model(torch.float32, **ends, **fields)


def export(directory: Path, **fields: object) -> Path:
    """A bfloat16 checkpoint with its tokenizer."""
    model(**fields).save_pretrained(directory)
    tokenizer().save(directory)
    return directory


def recipe(directory: Path, *overrides: str) -> Recipe:
    """A recipe whose first stage has the model's rotary base."""
    return Recipe.load([TINY_RECIPE], [f"run.dir={directory}", *overrides])

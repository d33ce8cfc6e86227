"""How much an engine takes on at a time, and how much memory it may use for that."""

from typing import Annotated

from pydantic import Field, NonNegativeInt, PositiveInt

from glmcore.config import Config


class EngineConfig(Config):
    """Bounds of an engine."""

    max_sequences: PositiveInt = 256
    """Most sequences that are read and generated together; others wait."""
    max_step_tokens: PositiveInt = 2_048
    """Most tokens of a step: one of each running sequence, the rest parts of prompts. Bounds how long a prompt can
    delay the sequences that are being generated."""
    max_waiting: NonNegativeInt = 4_096
    """Sequences that may wait; more are refused."""
    cache_tokens: PositiveInt | None = None
    """Tokens that the key-value cache holds. None for what `cache_memory_share` gives."""
    cache_memory_share: Annotated[float, Field(gt=0, le=1)] = 0.5
    """Part of the free memory that the cache may come to use, where `cache_tokens` does not say; never more than
    `max_sequences` sequences of the model's context need."""
    num_draft_tokens: NonNegativeInt = 0
    """Tokens that the model's MTP layer proposes for each sequence and step. The model then computes them together
    with the next one and keeps those that it would have drawn: the distribution is the same. 0 for none."""
    record_experts: bool = False
    """Tell with each continuation which experts its tokens chose, for a trainer that routes them alike. Costs a byte a
    token, layer and choice beside the cache, two with more than 256 experts."""
    reuse_prefixes: bool = True
    """Keep the cache of ended sequences for prompts that begin alike, as long as there is room."""

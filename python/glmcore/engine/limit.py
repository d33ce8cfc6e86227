"""How long an answer may become, and which requests can never be served."""

from collections.abc import Sequence

from glmcore.engine.sampling import SamplingParams
from glmcore.errors import RequestError
from glmcore.model.config import GlmConfig


def answer_limit(
    prompt_ids: Sequence[int], params: SamplingParams, config: GlmConfig, cache_tokens: int, *, with_text: bool
) -> int:
    """Tokens that a request may generate.

    Args:
        prompt_ids: What it continues.
        params: Of sampling.
        config: Of the model.
        cache_tokens: Tokens that the key-value cache holds.
        with_text: Whether the engine has a tokenizer.

    Raises:
        RequestError: It can never be served.
    """
    if not len(prompt_ids):
        raise RequestError("the prompt is empty")
    if not 0 <= min(prompt_ids) <= max(prompt_ids) < config.vocab_size:
        raise RequestError(f"the prompt has a token outside the vocabulary of {config.vocab_size}")
    room = config.max_position_embeddings - len(prompt_ids)
    if room < 1:
        raise RequestError(
            f"the prompt has {len(prompt_ids)} tokens; the context of {config.max_position_embeddings} leaves no "
            "room to generate"
        )
    params.check_vocabulary(config.vocab_size)
    if not with_text and (params.stop or params.constraint):
        raise RequestError("stop strings and constraints need an engine with a tokenizer")
    limit = min(params.max_tokens, room)
    if len(prompt_ids) + limit > cache_tokens:
        raise RequestError(
            f"{len(prompt_ids)} tokens of prompt and up to {limit} of answer do not fit the cache of "
            f"{cache_tokens} tokens: lower max_tokens or raise cache_tokens"
        )
    return limit

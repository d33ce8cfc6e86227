"""Generation from a checkpoint directory: text in, text out."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from glmcore.chat import Message, apply_chat_template, parse_reply
from glmcore.engine.config import EngineConfig
from glmcore.engine.defaults import GenerationDefaults
from glmcore.engine.engine import Engine
from glmcore.engine.memory import check_fits
from glmcore.engine.request import Generation
from glmcore.engine.sampling import SamplingParams
from glmcore.errors import CheckpointError
from glmcore.model.fp8 import copy_codes, hold_in_fp8
from glmcore.model.glm import Glm
from glmcore.tokenizer import Tokenizer


@dataclass(frozen=True)
class Completion:
    """One continuation of a prompt."""

    token_ids: list[int]
    """Generated tokens, the stop token included."""
    text: str
    """Their text, without special tokens."""
    logprobs: list[float]
    """Log-probability of each token when it was drawn."""
    finish_reason: str
    """`stop` or `length`."""


class LLM:
    """A checkpoint with its tokenizer, ready to generate.

    Args:
        directory: Hugging Face layout, bfloat16 or block-FP8, with tokenizer.json.
        dtype: Arithmetic of the model. float32 is the fastest on most CPUs and adds no rounding of its own.
        config: How much the engine takes on at a time, and how much memory it may use.
        fp8: Hold in FP8 what FP8 checkpoints have quantised, and quantise its inputs: `Float8Linear`. The codes are
            those of the checkpoint if it has 128x128 blocks. Half the memory; on the CPU slower.

    Raises:
        CheckpointError: The checkpoint is damaged or larger than the free memory, or its tokenizer does not fit the
            model.
    """

    def __init__(
        self,
        directory: str | Path,
        *,
        dtype: torch.dtype = torch.float32,
        config: EngineConfig = EngineConfig(),  # noqa: B008 (frozen)
        fp8: bool = False,
    ) -> None:
        check_fits(Path(directory), dtype)
        self.tokenizer = Tokenizer.from_pretrained(str(directory))
        model = Glm.from_pretrained(directory, dtype=dtype)
        if self.tokenizer.vocab_size > model.config.vocab_size:
            raise CheckpointError(
                f"{directory}: the tokenizer has {self.tokenizer.vocab_size} ids, "
                f"the model only {model.config.vocab_size}"
            )
        if fp8:
            copy_codes(hold_in_fp8(model), Path(directory))
        defaults = GenerationDefaults.of(Path(directory))
        self.sampling = defaults.sampling
        """How the checkpoint asks to be sampled from."""
        stops = model.config.eos_token_id if defaults.stop_token_ids is None else defaults.stop_token_ids
        self.engine = Engine(model, stops, tokenizer=self.tokenizer, config=config)

    def generate(
        self,
        prompts: Sequence[str | Sequence[int]],
        params: SamplingParams | Sequence[SamplingParams] | None = None,
    ) -> list[Completion]:
        """Continue each prompt, given as text or as token ids. Special tokens in text stay text.

        Args:
            prompts: What to continue.
            params: One for all, or one for each; None for `sampling`.

        Raises:
            RequestError: A prompt is empty or fills the context.
        """
        ids = [self.tokenizer.encode(prompt) if isinstance(prompt, str) else list(prompt) for prompt in prompts]
        params = params or self.sampling
        every = [params] * len(ids) if isinstance(params, SamplingParams) else list(params)
        return [self._completion(generation) for generation in self.engine.generate(ids, every)]

    def chat(
        self,
        messages: Sequence[dict[str, Any]],
        params: SamplingParams | None = None,
        *,
        thinking: bool = True,
    ) -> Message:
        """The model's answer to a conversation; without `params` it is drawn as `sampling` says."""
        prompt = apply_chat_template(self.tokenizer, list(messages), thinking=thinking, add_generation_prompt=True)
        [generation] = self.engine.generate([prompt.ids.tolist()], [params or self.sampling])
        return parse_reply(self.reply_text(generation.token_ids))

    def reply_text(self, token_ids: Sequence[int]) -> str:
        """Text of a generated turn, thinking and tool tags kept, stop token left out."""
        return self.tokenizer.decode(list(token_ids), skip_special_tokens=True)

    def _completion(self, generation: Generation) -> Completion:
        return Completion(
            token_ids=generation.token_ids,
            text=generation.text,
            logprobs=generation.logprobs,
            finish_reason=generation.finish_reason,
        )

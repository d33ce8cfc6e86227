"""Batched generation with a key-value cache, from weights that can be replaced between calls.

Shapes: B sequences being decoded, V vocabulary.
"""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor

from glmcore.engine.sampling import SamplingParams, sample
from glmcore.errors import RequestError, SyncError
from glmcore.fp8.bucket import Bucket
from glmcore.fp8.receiver import WeightReceiver
from glmcore.model.attention import KeyValueCache
from glmcore.model.fp8 import weights_to_fill
from glmcore.model.glm import Glm
from glmcore.model.layout import DocumentLayout


@dataclass
class Generation:
    """One generated continuation."""

    token_ids: list[int] = field(default_factory=list)
    """Generated tokens, the stop token included."""
    logprobs: list[float] = field(default_factory=list)
    """Log-probability of each token in the distribution that it was drawn from, before `top_p`."""
    finish_reason: str = "length"
    """`stop` when a stop token came, `length` when `max_tokens` or the context ran out."""
    policy_version: int = 0
    """Version of the weights that drew every token."""


@dataclass
class _Sequence:
    """One request in flight."""

    params: SamplingParams
    stop_ids: frozenset[int]
    uniforms: np.ndarray
    limit: int
    """Tokens that may be generated."""
    result: Generation

    def add(self, token: int, logprob: float) -> bool:
        """Record a token; True while the sequence goes on."""
        self.result.token_ids.append(token)
        self.result.logprobs.append(logprob)
        if token in self.stop_ids:
            self.result.finish_reason = "stop"
            return False
        return len(self.result.token_ids) < self.limit


class Engine:
    """Generates from one copy of the weights. Requests of one call are batched; equal prompts are read once."""

    def __init__(self, model: Glm, stop_token_ids: Iterable[int], max_sequences: int = 256) -> None:
        """Take over `model`.

        Args:
            model: Its weights are replaced by `update_weights`.
            stop_token_ids: Tokens that end a text where the request names none.
            max_sequences: Most sequences decoded together; more requests wait their turn.
        """
        self.model = model
        self.stop_token_ids = frozenset(stop_token_ids)
        self.max_sequences = max_sequences
        self.policy_version = 0
        self._torn_by: int | None = None
        """Version of the update that has begun and not ended."""

    def update_weights(self, version: int, buckets: Iterable[Bucket]) -> str:
        """Replace all parameters and buffers; see `start_update`.

        Args:
            version: Policy version of the new weights, not below the present one.
            buckets: `WeightPublisher.publish` of that version.

        Returns:
            `weights_checksum` of the weights that the engine now holds: the trainer's.

        Raises:
            SyncError: The update is not complete, damaged or older; without a new one the engine generates no more.
        """
        receiver = self.start_update(version)
        for bucket in buckets:
            receiver.load(bucket)
        return receiver.finish()

    def start_update(self, version: int) -> WeightReceiver:
        """The receiver of an update that comes bucket by bucket; until its `finish` the engine generates nothing.

        Raises:
            SyncError: The engine holds a newer version.
        """
        if version < self.policy_version:
            raise SyncError(f"an update to version {version} came, the engine holds version {self.policy_version}")
        self._torn_by = version
        return WeightReceiver(weights_to_fill(self.model), version, self._complete_update)

    def _complete_update(self, version: int) -> None:
        self.policy_version = version
        self._torn_by = None

    @torch.no_grad()
    def generate(
        self,
        prompts: Sequence[Sequence[int]],
        params: Sequence[SamplingParams],
        on_tokens: Callable[[int], None] = lambda _: None,
    ) -> list[Generation]:
        """Continue each prompt.

        Args:
            prompts: Token ids, none empty.
            params: One for each prompt.
            on_tokens: Called after every batched step with the number of tokens drawn.

        Returns:
            One generation a prompt, in order.

        Raises:
            RequestError: A prompt is empty, has an id outside the vocabulary, or fills the context.
            SyncError: A weight update has failed, so that the weights are a mixture.
        """
        if self._torn_by is not None:
            raise SyncError(f"the weights are a mixture: the update to version {self._torn_by} did not complete")
        sequences = [self._admit(i, *request) for i, request in enumerate(zip(prompts, params, strict=True))]
        for start in range(0, len(prompts), self.max_sequences):
            wave = slice(start, start + self.max_sequences)
            self._generate_wave(prompts[wave], sequences[wave], on_tokens)
        return [sequence.result for sequence in sequences]

    def _admit(self, index: int, prompt: Sequence[int], params: SamplingParams) -> _Sequence:
        config = self.model.config
        if not len(prompt):
            raise RequestError(f"prompt {index} is empty")
        if not 0 <= min(prompt) <= max(prompt) < config.vocab_size:
            raise RequestError(f"prompt {index} has a token outside the vocabulary of {config.vocab_size}")
        room = config.max_position_embeddings - len(prompt)
        if room < 1:
            raise RequestError(
                f"prompt {index} has {len(prompt)} tokens; the context of "
                f"{config.max_position_embeddings} leaves no room to generate"
            )
        stops = self.stop_token_ids if params.stop_token_ids is None else frozenset(params.stop_token_ids)
        result = Generation(policy_version=self.policy_version)
        return _Sequence(params, stops, params.uniforms(), min(params.max_tokens, room), result)

    def _generate_wave(
        self, prompts: Sequence[Sequence[int]], sequences: list[_Sequence], on_tokens: Callable[[int], None]
    ) -> None:
        longest = max(len(prompt) + sequence.limit for prompt, sequence in zip(prompts, sequences, strict=True))
        hidden, caches = self._prefill(prompts, longest)
        position = torch.tensor([len(prompt) for prompt in prompts])
        active = list(sequences)
        draws = 0
        while active:
            tokens = self._draw(hidden, active, draws)
            draws += 1
            on_tokens(len(active))
            going = [i for i, sequence in enumerate(active) if sequence.add(*tokens[i])]
            if len(going) < len(active):
                active = [active[i] for i in going]
                position = position[going]
                caches = [KeyValueCache(cache.keys[going], cache.values[going]) for cache in caches]
            if active:
                ids = torch.tensor([tokens[i][0] for i in going])
                hidden = self.model.decode(ids, position, caches)
                position = position + 1

    def _prefill(self, prompts: Sequence[Sequence[int]], max_length: int) -> tuple[Tensor, list[KeyValueCache]]:
        """Hidden state [B, D] of each prompt's last token, and caches that hold the prompts."""
        unique = {tuple(prompt): None for prompt in prompts}
        rows = {prompt: row for row, prompt in enumerate(unique)}
        lengths = [len(prompt) for prompt in unique]
        cu_seqlens = np.concatenate(([0], np.cumsum(lengths))).astype(np.int32)
        ids = torch.tensor([token for prompt in unique for token in prompt])
        positions = torch.cat([torch.arange(length) for length in lengths])
        caches = self.model.new_caches(len(unique), max_length)
        output = self.model(ids, positions, DocumentLayout.from_cu_seqlens(cu_seqlens), caches=caches)
        index = torch.tensor([rows[tuple(prompt)] for prompt in prompts])
        hidden = output.hidden[torch.from_numpy(cu_seqlens[1:].astype(np.int64) - 1)][index]
        return hidden, [KeyValueCache(cache.keys[index], cache.values[index]) for cache in caches]

    def _draw(self, hidden: Tensor, active: list[_Sequence], draw: int) -> list[tuple[int, float]]:
        uniform = torch.tensor([sequence.uniforms[draw] for sequence in active], dtype=torch.float64)
        temperature = torch.tensor([sequence.params.temperature for sequence in active])
        top_p = torch.tensor([sequence.params.top_p for sequence in active])
        tokens, logprobs = sample(self.model.logits(hidden), uniform, temperature, top_p)
        return list(zip(tokens.tolist(), logprobs.tolist(), strict=True))

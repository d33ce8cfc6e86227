"""The next token of every sequence of a batch, each by its own parameters.

Parameters and what sequences have drawn so far are tensors with a slot a sequence. A step takes the slots of its
sequences and works on the whole batch; what no sequence of it asks for costs nothing.

Shapes: B sequences of a step, V vocabulary, S slots.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Literal

import numpy as np
import torch
from torch import Tensor

from glmcore.engine.drawing import draw, most_likely
from glmcore.engine.guide import Grammars, Guide, allowed_tokens
from glmcore.engine.penalties import Biases, Penalties
from glmcore.engine.sampling import STREAM_TOKEN, SamplingParams, uniforms
from glmcore.errors import RequestError
from glmcore.model.decode_ops import can_draw, draw_tokens


@dataclass(frozen=True)
class Drawn:
    """What a step drew."""

    tokens: Tensor
    """int64 [B], on the CPU."""
    logprobs: Tensor
    """Log-probability of each token in the model's own distribution at the temperature of its sequence (at 1 where that
    is 0), as a trainer computes it: before biases, penalties, constraints and truncation. float32 or wider [B], on the
    CPU."""
    top_logprobs: dict[int, dict[int, float]] = field(default_factory=dict)
    """For each place of the batch that asked: the most likely tokens of the same distribution, most likely first."""
    ended: dict[int, Literal["stop", "abort"]] = field(default_factory=dict)
    """Places where the text ends for another reason than its tokens: its constraint is complete and there is no stop
    token (`stop`), its constraint failed, or its scores are no numbers (`abort`)."""


@dataclass(frozen=True)
class Rows:
    """Parameters of the sequences of a step, each [B]."""

    slots: np.ndarray
    temperature: Tensor
    top_p: Tensor
    min_p: Tensor
    top_k: Tensor
    num_top: Tensor
    """Most likely tokens that are asked for."""
    penalty: Tensor
    """Row in the penalties, or -1."""
    edited: Tensor
    """Whether something is drawn from other scores than the model's own."""

    @property
    def heat(self) -> Tensor:
        """What scores are divided by, [B]."""
        return self.temperature.masked_fill(self.temperature == 0, 1.0)

    @property
    def truncated(self) -> Tensor:
        """Whether only the most likely tokens can come, bool [B]."""
        return (self.temperature > 0) & ((self.top_k > 0) | (self.top_p < 1) | (self.min_p > 0))

    def truncate(self, probability: Tensor, chosen: Tensor) -> tuple[Tensor, Tensor]:
        """The tokens that can come in rows `chosen` [R] of `probability` [B, V]; see `most_likely`."""
        limits = (part[chosen].to(probability.device) for part in (self.top_k, self.top_p, self.min_p))
        return most_likely(probability[chosen.to(probability.device)], *limits)


class Sampler:
    """Draws tokens for sequences that come and go.

    Args:
        vocab_size: V.
        device: Where the scores are.
        grammars: Compiles constraints; without it requests with one are refused.
    """

    def __init__(self, vocab_size: int, device: torch.device | str = "cpu", grammars: Grammars | None = None) -> None:
        self.vocab_size = vocab_size
        self.device = torch.device(device)
        self._free: list[int] = []
        self._seeds = np.zeros(0, np.uint64)
        self._steps = np.zeros(0, np.int64)
        """Tokens that each sequence has drawn, [S]."""
        self._numbers = np.zeros((3, 0), np.float32)
        """Temperature, top_p and min_p, [3, S]."""
        self._counts = np.zeros((4, 0), np.int64)
        """top_k, num_top, penalty and edited of `Rows`, [4, S]."""
        self._penalties = Penalties(vocab_size, self.device)
        self._biases = Biases()
        self._grammars = grammars
        self._guides: dict[int, tuple[Guide, frozenset[int]]] = {}
        """Of each slot with a constraint, with its stop tokens."""

    def admit(
        self, params: SamplingParams, prompt_ids: Sequence[int], *, stop_ids: Iterable[int] = (), choice: int = 0
    ) -> int:
        """Take a sequence in; the slot that it has until `release`.

        Args:
            params: Its parameters.
            prompt_ids: Its prompt.
            stop_ids: The tokens that end it, which cannot come before `min_tokens`.
            choice: Which of the `n` continuations it is.

        Raises:
            RequestError: Its constraint cannot be enforced.
        """
        guide = self._guide(params, stop_ids)
        if not self._free:
            self._grow()
        slot = self._free.pop()
        if guide is not None:
            self._guides[slot] = (guide, frozenset(stop_ids))
        self._seeds[slot] = params.seed_of(choice)
        self._steps[slot] = 0
        self._numbers[:, slot] = (params.temperature, params.top_p, params.min_p)
        row = self._penalties.admit(params, prompt_ids) if params.penalises else -1
        num_top = min(params.top_logprobs, self.vocab_size)
        self._counts[:, slot] = (min(params.top_k, self.vocab_size), num_top, row, params.edits_scores)
        self._biases.add(slot, params, stop_ids)
        return slot

    def release(self, slot: int) -> None:
        """Forget a sequence."""
        row = int(self._counts[2, slot])
        if row >= 0:
            self._penalties.release(row)
        self._biases.drop(slot)
        self._guides.pop(slot, None)
        self._free.append(slot)

    @torch.no_grad()
    def draw(self, logits: Tensor, slots: Sequence[int]) -> Drawn:
        """Draw the next token of each sequence of a step, and remember it.

        Args:
            logits: Scores of the model, float32 or wider [B, V]; overwritten.
            slots: Slot of each sequence, distinct, [B].
        """
        rows = self.rows(slots)
        edited = rows.edited.nonzero().squeeze(1).to(self.device)
        own = logits[edited]
        self._edit(logits, rows)
        if can_draw(logits):
            tokens, logprobs, broken = self._draw_in_core(logits, rows)
        else:
            tokens, logprobs, broken = self._draw_in_torch(logits, rows)
        if len(edited):
            heat_up(own, rows.heat[edited.cpu()])
            logprobs[edited] = own.log_softmax(-1).gather(1, tokens[edited, None]).squeeze(1)
            logits[edited] = own
        top = likeliest_tokens(logits, rows.num_top)
        ended = self._remember(rows, tokens)
        for place in broken:
            ended[place] = "abort"
        return Drawn(tokens.cpu(), logprobs.cpu(), top, ended)

    def _draw_in_core(self, logits: Tensor, rows: Rows) -> tuple[Tensor, Tensor, list[int]]:
        """Tokens, their log-probabilities and the rows that are no numbers; heats scores where others ask for them."""
        parts = (rows.temperature, rows.top_k, rows.top_p, rows.min_p)
        tokens, logprobs = draw_tokens(logits, *parts, self.uniforms(rows, STREAM_TOKEN))
        broken = logprobs.isnan().nonzero().squeeze(1).tolist()
        logprobs[broken] = 0.0
        if bool(rows.num_top.any()):
            heat_up(logits, rows.heat)
        return tokens, logprobs, broken

    def _draw_in_torch(self, logits: Tensor, rows: Rows) -> tuple[Tensor, Tensor, list[int]]:
        """The plain twin of `_draw_in_core`, on any device."""
        greedy = (rows.temperature == 0).nonzero().squeeze(1).to(self.device)
        best = logits[greedy].argmax(-1)
        heat_up(logits, rows.heat)
        probability = logits.softmax(-1)
        broken = replace_broken(probability)
        tokens = best if len(best) == len(logits) else self._choose(probability, rows).index_copy_(0, greedy, best)
        return tokens, probability.gather(1, tokens[:, None]).squeeze(1).log(), broken

    def rows(self, slots: Sequence[int]) -> Rows:
        """Parameters of sequences."""
        places = np.asarray(slots, np.int64)
        temperature, top_p, min_p = torch.from_numpy(self._numbers.take(places, 1))
        top_k, num_top, penalty, edited = torch.from_numpy(self._counts.take(places, 1))
        return Rows(places, temperature, top_p, min_p, top_k, num_top, penalty, edited)

    def uniforms(self, rows: Rows, stream: int, ahead: int | np.ndarray = 0) -> Tensor:
        """Random numbers that decide the next token of each sequence, or the one `ahead` of it, float64 [B]."""
        numbers = uniforms(self._seeds[rows.slots], self._steps[rows.slots] + ahead, stream)
        return torch.from_numpy(numbers).to(self.device)

    def advance(self, rows: Rows, count: np.ndarray) -> None:
        """Note that sequences without edits have drawn so many tokens, [B]."""
        self._steps[rows.slots] += count

    def _edit(self, logits: Tensor, rows: Rows) -> None:
        """Change the scores, in place, as the parameters say."""
        if not bool(rows.edited.any()):
            return
        self._biases.apply(logits, rows.slots, self._steps)
        penalised = (rows.penalty >= 0).nonzero().squeeze(1)
        if len(penalised):
            self._penalties.apply(logits, penalised.to(self.device), rows.penalty[penalised].to(self.device))

        guided = [place for place, slot in enumerate(rows.slots.tolist()) if slot in self._guides]
        if guided and self._grammars is not None:
            guides = [self._guides[int(rows.slots[place])][0] for place in guided]
            forbidden = torch.from_numpy(~allowed_tokens(guides, self._grammars)).to(self.device)
            index = torch.tensor(guided, device=self.device)
            logits[index] = logits[index].masked_fill_(forbidden, -torch.inf)

    def _guide(self, params: SamplingParams, stop_ids: Iterable[int]) -> Guide | None:
        if params.constraint is None:
            return None
        if self._grammars is None:
            raise RequestError("a constraint needs an engine with a tokenizer")
        return self._grammars.start(params.constraint, stop_ids)

    def _choose(self, probability: Tensor, rows: Rows) -> Tensor:
        """A token of each row, of those that truncation leaves, [B]."""
        uniform = self.uniforms(rows, STREAM_TOKEN)
        truncated = rows.truncated
        if not bool(truncated.any()):
            return draw(probability, uniform)
        chosen = truncated.nonzero().squeeze(1)
        place = chosen.to(self.device)
        likely, ids = rows.truncate(probability, chosen)
        kept = ids.gather(1, draw(likely, uniform[place])[:, None]).squeeze(1)
        if len(chosen) == len(truncated):
            return kept
        return draw(probability, uniform).index_copy_(0, place, kept)

    def _remember(self, rows: Rows, tokens: Tensor) -> dict[int, Literal["stop", "abort"]]:
        self._steps[rows.slots] += 1
        penalised = (rows.penalty >= 0).nonzero().squeeze(1)
        if len(penalised):
            self._penalties.count(rows.penalty[penalised].to(self.device), tokens[penalised.to(self.device)])
        ended: dict[int, Literal["stop", "abort"]] = {}
        if not self._guides:
            return ended
        for place, slot in enumerate(rows.slots.tolist()):
            guide, stop_ids = self._guides.get(slot, (None, frozenset()))
            if guide is None:
                continue
            token = int(tokens[place])
            if token not in stop_ids:
                guide.consume(token)
            if guide.failed:
                ended[place] = "abort"
            elif guide.is_complete and not stop_ids:
                ended[place] = "stop"
        return ended

    def _grow(self) -> None:
        held = len(self._seeds)
        more = max(16, held)
        self._seeds = np.concatenate([self._seeds, np.zeros(more, np.uint64)])
        self._steps = np.concatenate([self._steps, np.zeros(more, np.int64)])
        self._numbers = np.concatenate([self._numbers, np.zeros((3, more), np.float32)], 1)
        self._counts = np.concatenate([self._counts, np.zeros((4, more), np.int64)], 1)
        self._free += reversed(range(held, held + more))


def heat_up(scores: Tensor, heat: Tensor) -> None:
    """Divide scores [B, V] by temperatures [B] above 0, in place; what they are relative to may change."""
    if bool((heat != 1).any()):
        # The largest becomes 0 first, so that no temperature is too small.
        scores.sub_(scores.amax(-1, keepdim=True)).div_(heat.to(scores)[:, None])


def replace_broken(probability: Tensor) -> list[int]:
    """Make rows of `probability` [B, V] that are no numbers certain of token 0, in place; tells which they were."""
    broken = probability[:, 0].isnan().nonzero().squeeze(1)
    if len(broken):
        probability[broken] = 0
        probability[broken, 0] = 1
    return broken.tolist()


def likeliest_tokens(scores: Tensor, num_top: Tensor) -> dict[int, dict[int, float]]:
    """For each row of `scores` [B, V] with `num_top` [B] above 0, so many tokens and their log-probabilities."""
    asking = num_top.nonzero().squeeze(1)
    if not len(asking):
        return {}
    counts = num_top[asking].tolist()
    logprobs, tokens = scores[asking.to(scores.device)].log_softmax(-1).topk(max(counts))
    found = zip(asking.tolist(), counts, tokens.tolist(), logprobs.tolist(), strict=True)
    return {place: dict(zip(ids[:count], values[:count], strict=True)) for place, count, ids, values in found}

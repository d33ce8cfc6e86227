"""Changes to the scores of single tokens: biases, and penalties for tokens that came before.

Shapes: B sequences of a step, R of them with penalties, P sequences with penalties, C distinct tokens, V vocabulary.
"""

import math
from collections.abc import Iterable, Sequence

import numpy as np
import torch
from torch import Tensor

from glmcore.engine.sampling import SamplingParams

RULED_OUT = -1e9
"""Added to the score of a token that must not come. It comes where a constraint leaves no other."""


class Biases:
    """Numbers that are added to scores: `logit_bias`, and what keeps stop tokens away before `min_tokens`."""

    def __init__(self) -> None:
        self._of_slot: dict[int, list[tuple[int, int, float, float]]] = {}
        """Slot, token, bias and the step from which it no longer counts."""
        self._all: tuple[np.ndarray, ...] | None = None
        """The same as four columns."""

    def add(self, slot: int, params: SamplingParams, stop_ids: Iterable[int]) -> None:
        """Take the biases of a sequence in."""
        entries = [(slot, token, max(bias, RULED_OUT), math.inf) for token, bias in params.logit_bias.items()]
        if params.min_tokens:
            entries += [(slot, token, RULED_OUT, params.min_tokens) for token in sorted(stop_ids)]
        if entries:
            self._of_slot[slot] = entries
            self._all = None

    def drop(self, slot: int) -> None:
        """Forget a sequence."""
        if self._of_slot.pop(slot, None) is not None:
            self._all = None

    def apply(self, logits: Tensor, slots: np.ndarray, steps: np.ndarray) -> None:
        """Add to the scores, in place.

        Args:
            logits: [B, V].
            slots: Slot of each row, int64 [B].
            steps: Tokens that the sequence of each slot has drawn, int64 [S].
        """
        if not self._of_slot:
            return
        if self._all is None:
            entries = [entry for of_slot in self._of_slot.values() for entry in of_slot]
            slot, token, bias, until = zip(*entries, strict=True)
            self._all = (np.array(slot), np.array(token), np.array(bias), np.array(until))
        slot, token, bias, until = self._all
        row_of = np.full(len(steps), -1)
        row_of[slots] = np.arange(len(slots))
        live = (row_of[slot] >= 0) & (steps[slot] < until)
        place = (torch.from_numpy(row_of[slot][live]), torch.from_numpy(token[live]))
        values = torch.from_numpy(bias[live]).to(logits)
        logits.index_put_(tuple(part.to(logits.device) for part in place), values, accumulate=True)


class Penalties:
    """The distinct tokens of sequences with penalties, so that a step touches no other score.

    Args:
        vocab_size: V.
        device: Where the scores are.
    """

    def __init__(self, vocab_size: int, device: torch.device) -> None:
        self._place = torch.zeros(0, vocab_size, dtype=torch.int32, device=device)
        """Place of each token among the distinct ones of a sequence, -1 of one that has not come, [P, V]."""
        self._token = torch.zeros(0, 64, dtype=torch.int64, device=device)
        """Distinct tokens of the prompt and the text, [P, C]."""
        self._count = torch.zeros(0, 64, dtype=torch.int32, device=device)
        """How often each was generated, [P, C]."""
        self._num_distinct = torch.zeros(0, dtype=torch.int64, device=device)
        self._factors = torch.ones(3, 0, device=device)
        """Repetition, presence and frequency penalty, [3, P]."""
        self._free: list[int] = []

    def admit(self, params: SamplingParams, prompt_ids: Sequence[int]) -> int:
        """Take a sequence in; the row that it has until `release`."""
        if not self._free:
            self._add_rows()
        row = self._free.pop()
        factors = (params.repetition_penalty, params.presence_penalty, params.frequency_penalty)
        self._factors[:, row] = torch.tensor(factors)
        distinct = torch.as_tensor(prompt_ids, dtype=torch.int64).unique().to(self._token.device)
        if params.repetition_penalty == 1:
            distinct = distinct[:0]  # a prompt matters to this penalty alone
        self._make_room(len(distinct))
        self._place[row] = -1
        self._place[row, distinct] = torch.arange(len(distinct), dtype=torch.int32, device=distinct.device)
        self._token[row, : len(distinct)] = distinct
        self._count[row] = 0
        self._num_distinct[row] = len(distinct)
        return row

    def release(self, row: int) -> None:
        """Forget a sequence."""
        self._free.append(row)

    def apply(self, logits: Tensor, places: Tensor, rows: Tensor) -> None:
        """Change the scores of R sequences, in place.

        Args:
            logits: [B, V].
            places: Their places in the batch, [R].
            rows: Their rows, [R].
        """
        num_distinct = self._num_distinct[rows]
        width = int(num_distinct.max())
        which, index = (torch.arange(width, device=rows.device) < num_distinct[:, None]).nonzero(as_tuple=True)
        row = rows[which]
        token, count = self._token[row, index], self._count[row, index]
        repetition, presence, frequency = self._factors[:, row].to(logits.dtype)
        score = logits[places[which], token]
        score = torch.where(score > 0, score / repetition, score * repetition)
        logits[places[which], token] = score - count * frequency - (count > 0) * presence

    def count(self, rows: Tensor, tokens: Tensor) -> None:
        """Note a token of each of the sequences of `rows`, which are distinct."""
        self._make_room(int(self._num_distinct[rows].max()) + 1)
        place = self._place[rows, tokens].long()
        new = place < 0
        place = torch.where(new, self._num_distinct[rows], place)
        self._place[rows, tokens] = place.int()
        self._token[rows, place] = tokens
        self._count[rows, place] += 1
        self._num_distinct[rows] += new

    def _make_room(self, num_distinct: int) -> None:
        held = self._token.shape[1]
        if num_distinct > held:
            more = (len(self._token), max(held, num_distinct - held))
            self._token = torch.cat([self._token, self._token.new_zeros(more)], 1)
            self._count = torch.cat([self._count, self._count.new_zeros(more)], 1)

    def _add_rows(self) -> None:
        held = len(self._token)
        more = max(4, held)
        for name in ("_place", "_token", "_count", "_num_distinct"):
            tensor = getattr(self, name)
            setattr(self, name, torch.cat([tensor, tensor.new_zeros(more, *tensor.shape[1:])]))
        self._factors = torch.cat([self._factors, self._factors.new_ones(3, more)], 1)
        self._free += range(held, held + more)

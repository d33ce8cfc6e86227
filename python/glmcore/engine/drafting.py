"""Drafts of the next tokens by the model's MTP layer.

The layer reads a token together with the hidden state of the token before it, and keeps keys and values of its own in
the blocks of the sequence. What it writes at a place depends on the text up to there alone, so blocks can be shared as
those of the model. Before the first token of a text there is no state; a zero stands there.

Source: DeepSeek-V3 report (arXiv:2412.19437), section 2.2 and 5.4.3 (drafts by the MTP layer).

Shapes: T tokens, B sequences with drafts, K drafts of each, D hidden size, V vocabulary.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from glmcore.engine import sequence as own
from glmcore.engine.runner import Runner, layout_of
from glmcore.engine.sampler import Sampler
from glmcore.engine.sequence import Part
from glmcore.engine.speculative import draft
from glmcore.model.paged import BLOCK


@dataclass(frozen=True)
class Drafts:
    """Drafts of the sequences of a step."""

    sequences: list[own.Sequence]
    tokens: Tensor
    """int64 [B, K]."""
    probability: Tensor
    """What they were drawn from, [B, K, V]."""


class Drafter:
    """Keeps the MTP layer up with the texts of an engine, and drafts.

    Args:
        runner: Of the engine, with the cache of the MTP layer.
        sampler: Of the engine.
        num_tokens: Drafts of each sequence and step, K.
    """

    def __init__(self, runner: Runner, sampler: Sampler, num_tokens: int) -> None:
        self._runner = runner
        self._sampler = sampler
        self._num_tokens = num_tokens
        weight = runner.model.lm_head.weight
        self._block_end = weight.new_zeros(runner.num_blocks, weight.shape[1])
        """Hidden state of the last token of each block, from which a text goes on that begins with the block."""
        self.drafts: Drafts | None = None
        """Of the step that is being computed."""

    def draft(self, running: Sequence[own.Sequence]) -> None:
        """Let the layer read the newest tokens of running sequences and give each its drafts, or none.

        None get those that may not draft.
        """
        states = [sequence.states for sequence in running if sequence.states is not None]
        rows = [
            (len(state), sequence.length + 1, sequence.blocks) for state, sequence in zip(states, running, strict=True)
        ]
        ids = [token for row, sequence in zip(rows, running, strict=True) for token in sequence.token_ids[-row[0] :]]
        hidden = self._read(torch.cat(states), ids, rows)
        last = torch.tensor([count for count, _, _ in rows]).cumsum(0) - 1
        chosen = [row for row, sequence in enumerate(running) if sequence.may_draft(self._num_tokens)]
        for sequence in running:
            sequence.drafts, sequence.states, sequence.lag = [], None, 0
        self.drafts = None
        if not chosen:
            return
        drafted = [running[row] for row in chosen]
        slots = [sequence.slot for sequence in drafted if sequence.slot is not None]
        state = hidden[last[chosen].to(hidden.device)]
        tokens, probabilities = [], []
        for ahead in range(self._num_tokens):
            if ahead:
                rows = [(1, sequence.length + 1 + ahead, sequence.blocks) for sequence in drafted]
                state = self._read(state, tokens[-1].tolist(), rows)
            token, probability = draft(self._sampler, self._runner.scores(state), slots, ahead)
            tokens.append(token)
            probabilities.append(probability)
        self.drafts = Drafts(drafted, torch.stack(tokens, 1), torch.stack(probabilities, 1))
        for sequence, ids in zip(drafted, self.drafts.tokens.tolist(), strict=True):
            sequence.drafts = ids

    def follow(self, parts: Sequence[Part], hidden: Tensor) -> None:
        """Take note of the states that a step has computed, and let the layer read the parts of prompts.

        Args:
            parts: Of the step.
            hidden: State of each of their tokens, [T, D].
        """
        states, ids, rows = [], [], []
        start = 0
        for part in parts:
            own_states = hidden[start : start + len(part.tokens)]
            start += len(part.tokens)
            first = part.length - len(part.tokens)
            for place in range(first - first % BLOCK + BLOCK - 1, part.length, BLOCK):
                if place >= first:
                    self._block_end[part.blocks[place // BLOCK]] = own_states[place - first]
            if part.prefill is None:
                part.members[0].states = own_states
                continue
            states += [self._state_before(part, first), own_states[:-1]]
            part.prefill.state = own_states[-1:]
            ids += part.tokens
            rows.append((len(part.tokens), part.length, part.blocks))
        if rows:
            self._read(torch.cat(states), ids, rows)

    def _state_before(self, part: Part, first: int) -> Tensor:
        """State of the token before a part of a prompt, [1, D]."""
        assert part.prefill is not None
        if part.prefill.state is not None:
            return part.prefill.state
        if first == 0:
            return torch.zeros_like(self._block_end[:1])
        block = part.blocks[first // BLOCK - 1]
        return self._block_end[block : block + 1]

    @torch.no_grad()
    def _read(self, states: Tensor, ids: Sequence[int], rows: Sequence[tuple[int, int, Sequence[int]]]) -> Tensor:
        device = states.device
        layout = layout_of(rows, device)
        positions = torch.from_numpy(layout.positions).to(device)
        tokens = torch.tensor(ids, device=device)
        return self._runner.model.predict_further(states, tokens, positions, layout, self._runner.caches[-1])

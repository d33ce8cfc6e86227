"""What the next step computes: which sequences go on, which begin, and which have to give way."""

import heapq
from collections.abc import Callable

from glmcore.engine.blocks import BlockPool
from glmcore.engine.config import EngineConfig
from glmcore.engine.expert_record import ExpertRecord
from glmcore.engine.sequence import Part, Prefill, Sequence
from glmcore.model.paged import BLOCK


def num_blocks(tokens: int) -> int:
    """Blocks that hold so many tokens."""
    return -(-tokens // BLOCK)


class Scheduler:
    """Waiting, reading and running sequences, and the blocks they hold.

    A step serves every running sequence with one token and gives what is left of its tokens to texts that are being
    read, in the order of priority and arrival. Where blocks run out, the sequence that is last in that order gives all
    of its own back and waits; it will be read again, what it has generated included. The first in the order is never
    interrupted, so that everything ends. A sequence takes recorded experts along when its blocks leave it.
    """

    def __init__(self, config: EngineConfig, pool: BlockPool, record: ExpertRecord | None = None) -> None:
        self.config = config
        self.pool = pool
        self.record = record
        self.running: list[Sequence] = []
        self.prefills: list[Prefill] = []
        self._waiting: list[tuple[tuple[int, int], Sequence]] = []
        self.preemptions = 0
        self.prompt_tokens = 0
        self.cached_tokens = 0

    @property
    def num_waiting(self) -> int:
        """Sequences that wait."""
        return len(self._waiting)

    @property
    def num_running(self) -> int:
        """Sequences in the cache, being read or generated."""
        return len(self.running) + sum(len(prefill.members) for prefill in self.prefills)

    def add(self, sequence: Sequence) -> None:
        """Let a sequence wait for its turn."""
        heapq.heappush(self._waiting, (sequence.order, sequence))

    def plan(self, draft: Callable[[list[Sequence]], None] | None = None) -> list[Part]:
        """The parts of the next step, none if there is nothing to do.

        Args:
            draft: Gives the running sequences their `drafts`.
        """
        self._find_room()
        if draft is not None and self.running:
            draft(self.running)
        parts = [
            Part(
                [sequence.token_ids[-1], *sequence.drafts],
                sequence.length + 1 + len(sequence.drafts),
                sequence.blocks,
                [sequence],
            )
            for sequence in self.running
        ]
        budget = self.config.max_step_tokens - sum(len(part.tokens) for part in parts)
        self._admit(budget)
        for prefill in sorted(self.prefills, key=lambda prefill: prefill.order):
            if budget <= 0 and parts:
                break
            end = min(len(prefill.tokens), prefill.done + max(budget, 1))
            is_read = end == len(prefill.tokens)
            members = [member for member in prefill.members if is_read and member.num_tokens == end]
            parts.append(Part(prefill.tokens[prefill.done : end], end, prefill.blocks, members, prefill))
            budget -= end - prefill.done
        return parts

    def computed(self, parts: list[Part]) -> list[tuple[int, int]]:
        """Take note that a step has computed its parts.

        Returns:
            Pairs of blocks of which the second is to become a copy of the first, before the next step.
        """
        copies: list[tuple[int, int]] = []
        for part in parts:
            if part.prefill is None:
                part.members[0].length += 1
                continue
            part.prefill.done = part.length
            if part.length == len(part.prefill.tokens):
                self.prefills.remove(part.prefill)
                copies += self._go_on_from(part.prefill)
        return copies

    def end(self, sequence: Sequence) -> None:
        """Free what a sequence holds, wherever it is."""
        sequence.ended = True
        if sequence in self.running:
            self.running.remove(sequence)
            self._release(sequence)
            return
        for prefill in self.prefills:
            if sequence in prefill.members:
                prefill.members.remove(sequence)
                if not prefill.members:
                    self.prefills.remove(prefill)
                    self._drop(prefill)
                return
        self._waiting = [entry for entry in self._waiting if entry[1] is not sequence]
        heapq.heapify(self._waiting)

    def recompute_all(self) -> None:
        """Let everything be read anew: no block holds what the present weights would give."""
        self.pool.forget_all()
        for prefill in self.prefills:
            self.pool.release(prefill.blocks)
            for member in prefill.members:
                self.add(member)
        self.prefills.clear()
        for sequence in self.running:
            self._take_experts(sequence, sequence.blocks, sequence.length)
            self.pool.release(sequence.blocks)
            self._wait_again(sequence)
        self.running.clear()

    def _find_room(self) -> None:
        """Give every running sequence places for its newest token and for drafts, in the order of the sequences.

        All drafts get theirs: a seed gives other tokens with a draft than without one.
        """
        cramped = [sequence for sequence in self.running if len(sequence.blocks) * BLOCK < self._places(sequence)]
        for sequence in sorted(cramped, key=lambda sequence: sequence.order):
            while len(sequence.blocks) * BLOCK < self._places(sequence):
                if sequence not in self.running:
                    break
                if self.pool.available:
                    sequence.blocks += self.pool.take(1)
                else:
                    self._preempt_last()

    def _places(self, sequence: Sequence) -> int:
        """Tokens that the cache holds of a sequence after its next step."""
        drafts = self.config.num_draft_tokens
        return sequence.num_tokens + (drafts if drafts and sequence.may_draft(drafts) else 0)

    def _to_read(self, sequence: Sequence) -> list[int]:
        """What a waiting sequence reads: its text, but for the newest token where drafts may come after that."""
        tokens = sequence.text_ids
        return tokens[:-1] if sequence.token_ids and self.config.num_draft_tokens else tokens

    def _preempt_last(self) -> None:
        last = max([*self.running, *self.prefills], key=lambda held: held.order)
        self.preemptions += 1
        if isinstance(last, Prefill):
            self.prefills.remove(last)
            self._drop(last)
            for member in last.members:
                self.add(member)
            return
        self.running.remove(last)
        self._release(last)
        self._wait_again(last)

    def _wait_again(self, sequence: Sequence) -> None:
        sequence.blocks, sequence.length = [], 0
        sequence.drafts, sequence.states, sequence.lag = [], None, 0
        self.add(sequence)

    def _admit(self, budget: int) -> None:
        """Begin to read waiting texts, as long as there are tokens, places and blocks for them."""
        budget -= sum(len(prefill.tokens) - prefill.done for prefill in self.prefills)
        reading = {tuple(prefill.tokens): prefill for prefill in self.prefills}
        places = self.config.max_sequences - self.num_running
        while self._waiting and places > 0:
            sequence = self._waiting[0][1]
            tokens = self._to_read(sequence)
            prefill = reading.get(tuple(tokens))
            if prefill is None:
                if budget <= 0 and (self.running or self.prefills):
                    return
                prefill = self._begin(
                    tokens, len(tokens) if len(tokens) == sequence.num_tokens else self._places(sequence)
                )
                if prefill is None:
                    return
                reading[tuple(tokens)] = prefill
                budget -= len(tokens) - prefill.done
                cached = prefill.done
            else:
                cached = len(tokens)
            heapq.heappop(self._waiting)
            prefill.members.append(sequence)
            places -= 1
            if not sequence.token_ids:
                sequence.cached_tokens = cached
                self.prompt_tokens += len(tokens)
                self.cached_tokens += cached

    def _begin(self, tokens: list[int], places: int) -> Prefill | None:
        """Start to read a text behind what is known of it; None if there is no room for so many places."""
        # The last token is always computed: what comes after it has to be drawn.
        known = self.pool.find(tokens[:-1])
        self.pool.share(known)
        needed = num_blocks(len(tokens)) - len(known)
        busy = len(self.running) + len(self.prefills)
        if self.pool.available < num_blocks(places) - len(known) + busy:  # each of the busy ones will soon need a block
            self.pool.release(known)
            return None
        prefill = Prefill(tokens, known + self.pool.take(needed), len(known) * BLOCK, [])
        self.prefills.append(prefill)
        return prefill

    def _go_on_from(self, prefill: Prefill) -> list[tuple[int, int]]:
        """Let the members of a text that is read run; the full blocks are common to them."""
        self.pool.remember(prefill.tokens, prefill.blocks)
        length = len(prefill.tokens)
        full, rest = prefill.blocks[: length // BLOCK], prefill.blocks[length // BLOCK :]
        copies = []
        for member in prefill.members[1:]:
            if self.pool.available < len(rest):
                self._take_experts(member, prefill.blocks, length)
                self._preempted_at_birth(member)
                continue
            self.pool.share(full)
            own = self.pool.take(len(rest))
            copies += list(zip(rest, own, strict=True))
            member.blocks, member.length, member.states = full + own, length, prefill.state
            self.running.append(member)
        first = prefill.members[0]
        first.blocks, first.length, first.states = prefill.blocks, length, prefill.state
        self.running.append(first)
        return copies

    def _preempted_at_birth(self, member: Sequence) -> None:
        self.preemptions += 1
        self._wait_again(member)

    def _take_experts(self, sequence: Sequence, blocks: list[int], length: int) -> None:
        if self.record is not None:
            self.record.take_out(sequence, blocks, length)

    def _release(self, sequence: Sequence) -> None:
        self._take_experts(sequence, sequence.blocks, sequence.length)
        self.pool.remember(sequence.text_ids[: sequence.length - sequence.lag], sequence.blocks)
        self.pool.release(sequence.blocks)
        sequence.blocks = []

    def _drop(self, prefill: Prefill) -> None:
        self.pool.remember(prefill.tokens[: prefill.done], prefill.blocks)
        self.pool.release(prefill.blocks)

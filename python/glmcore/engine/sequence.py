"""One continuation on its way through the engine."""

from collections.abc import Sequence as SequenceOf
from dataclasses import dataclass, field

import numpy as np
from torch import Tensor

from glmcore.engine.sampling import SamplingParams
from glmcore.engine.stopping import TextStream


@dataclass(eq=False)
class Sequence:
    """One choice of a request."""

    request_id: int
    index: int
    params: SamplingParams
    prompt_ids: SequenceOf[int]
    stop_ids: frozenset[int]
    limit: int
    """Tokens that may be generated."""
    order: tuple[int, int]
    """Priority, then number of arrival: the lower goes first, and is preempted last."""
    text: TextStream | None
    slot: int | None = None
    """Its place in the sampler, from its first start on."""
    token_ids: list[int] = field(default_factory=list)
    """Generated so far."""
    blocks: list[int] = field(default_factory=list)
    """Of the cache, while it runs."""
    length: int = 0
    """Tokens that the cache holds: all but the last one while it runs."""
    cached_tokens: int = 0
    """Prompt tokens that were not computed, until they are told."""
    ended: bool = False
    drafts: list[int] = field(default_factory=list)
    """Tokens that may come next, computed together with the last one."""
    states: Tensor | None = None
    """Hidden states of the tokens before the newest ones, which the MTP layer has not read yet, [A, D]."""
    lag: int = 0
    """Tokens in the cache that the MTP layer has not read."""
    experts: list[np.ndarray] = field(default_factory=list)
    """Of its first tokens, as far as an `ExpertRecord` has given them out, [T, L, K] in parts."""

    @property
    def text_ids(self) -> list[int]:
        """Prompt and what was generated."""
        return [*self.prompt_ids, *self.token_ids]

    @property
    def chosen_experts(self) -> np.ndarray | None:
        """`experts` as one array; None where there are none."""
        return np.concatenate(self.experts) if self.experts else None


@dataclass(eq=False)
class Prefill:
    """A text that is being read into the cache, for one or more sequences that go on from it."""

    tokens: list[int]
    blocks: list[int]
    """For all of the text."""
    done: int
    """Tokens that the cache holds."""
    members: list[Sequence]
    state: Tensor | None = None
    """Hidden state of the last token that was computed, [1, D]; None before the first."""

    @property
    def order(self) -> tuple[int, int]:
        """That of the member that goes first."""
        return min(member.order for member in self.members)


@dataclass(frozen=True)
class Part:
    """Tokens that a step computes for one text."""

    tokens: SequenceOf[int]
    length: int
    """Tokens of the text up to and with these."""
    blocks: list[int]
    members: SequenceOf[Sequence]
    """Sequences that draw their next token after these; none while a text is not read to its end."""
    prefill: Prefill | None = None

    @property
    def has_drafts(self) -> bool:
        """Whether the tokens are the last one of a text and drafts after it."""
        return self.prefill is None and len(self.tokens) > 1

    @property
    def num_scores(self) -> int:
        """Of how many of the last tokens the scores are needed."""
        return len(self.tokens) if self.prefill is None else min(len(self.members), 1)

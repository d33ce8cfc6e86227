"""One continuation on its way through the engine."""

from collections.abc import Sequence as SequenceOf
from dataclasses import dataclass, field

import numpy as np
from torch import Tensor

from glmcore.engine.request import Delta
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
    whole: bool = False
    """Nothing is told before it ends."""
    slot: int | None = None
    """Its place in the sampler, from its first start on."""
    token_ids: list[int] = field(default_factory=list)
    """Generated so far."""
    num_told: int = 0
    """Of these, those that a delta has told."""
    logprobs: list[float] = field(default_factory=list)
    """Of the tokens that are not told; so are the next three."""
    top_logprobs: list[dict[int, float]] = field(default_factory=list)
    policy_versions: list[int] = field(default_factory=list)
    new_text: str = ""
    finish_reason: str | None = None
    stop: int | str | None = None
    """The stop token or stop string that ended it."""
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

    def take(
        self, token: int, logprob: float, version: int, top: dict[int, float] | None = None, ended: str | None = None
    ) -> bool:
        """Add a token, which may end the sequence, as may another reason.

        Returns:
            Whether it has ended.
        """
        self.token_ids.append(token)
        self.logprobs.append(logprob)
        self.policy_versions.append(version)
        if top is not None:
            self.top_logprobs.append(top)
        if ended is not None:
            self.finish_reason = ended
        elif token in self.stop_ids:
            self.finish_reason, self.stop = "stop", token
        elif len(self.token_ids) >= self.limit:
            self.finish_reason = "length"
        if self.text is not None:
            self.new_text += self.text.push(token)
            if self.finish_reason:
                self.new_text += self.text.finish()
            if self.text.stopped_by is not None:
                self.finish_reason, self.stop = "stop", self.text.stopped_by
        return self.finish_reason is not None

    def tell(self) -> Delta:
        """What is not told yet."""
        delta = Delta(
            index=self.index,
            token_ids=self.token_ids[self.num_told :],
            logprobs=self.logprobs,
            top_logprobs=self.top_logprobs,
            policy_versions=self.policy_versions,
            text=self.new_text,
            finish_reason=self.finish_reason,
            stop=self.stop,
            cached_tokens=self.cached_tokens,
            experts=self.chosen_experts if self.finish_reason else None,
        )
        self.num_told, self.cached_tokens, self.new_text = len(self.token_ids), 0, ""
        self.logprobs, self.top_logprobs, self.policy_versions = [], [], []
        return delta

    @property
    def text_ids(self) -> list[int]:
        """Prompt and what was generated."""
        return [*self.prompt_ids, *self.token_ids]

    @property
    def num_tokens(self) -> int:
        """Of `text_ids`."""
        return len(self.prompt_ids) + len(self.token_ids)

    def may_draft(self, count: int) -> bool:
        """Whether it gets so many drafts.

        None where the next token is not drawn from the model's own distribution alone, or where so many tokens more may
        not come.
        """
        return not self.params.edits_scores and self.limit - len(self.token_ids) - 1 >= count

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


@dataclass(slots=True)
class Part:
    """Tokens that a step computes for one text."""

    tokens: SequenceOf[int]
    length: int
    """Tokens of the text up to and with these."""
    blocks: list[int]
    members: SequenceOf[Sequence]
    """Sequences that draw their next token after these: none while a text is not read to its end, nor those that have
    read again what they had generated, and go on from their newest token."""
    prefill: Prefill | None = None

    @property
    def has_drafts(self) -> bool:
        """Whether the tokens are the last one of a text and drafts after it."""
        return self.prefill is None and len(self.tokens) > 1

    @property
    def num_scores(self) -> int:
        """Of how many of the last tokens the scores are needed."""
        return len(self.tokens) if self.prefill is None else min(len(self.members), 1)

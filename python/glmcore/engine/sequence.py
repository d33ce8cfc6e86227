"""One continuation on its way through the engine."""

from collections.abc import Sequence as SequenceOf
from dataclasses import dataclass, field

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

    @property
    def text_ids(self) -> list[int]:
        """Prompt and what was generated."""
        return [*self.prompt_ids, *self.token_ids]


@dataclass(eq=False)
class Prefill:
    """A text that is being read into the cache, for one or more sequences that go on from it."""

    tokens: list[int]
    blocks: list[int]
    """For all of the text."""
    done: int
    """Tokens that the cache holds."""
    members: list[Sequence]

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

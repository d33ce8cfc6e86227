"""What a verifier says of an answer."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Verdict:
    """The judgement of one answer."""

    score: float
    """In [0, 1]; 1 for a right answer."""
    extracted: str | None
    """What was judged: the answer as it was found in the reply; None where there was none."""
    reason: str = ""
    """Why the answer is not right, in a few words."""

    @property
    def right(self) -> bool:
        """Whether the answer is fully right."""
        return self.score == 1.0

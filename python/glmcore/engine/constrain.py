"""What a generated text must look like (stub while the sampler lands)."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Constraint:
    """A grammar that a text must match."""

    grammar: str
    """Source of the grammar."""

"""What the text of an answer must look like, from what the turn asks for."""

from dataclasses import replace
from typing import TYPE_CHECKING

from glmcore.engine.sampling import SamplingParams
from glmcore.tokenizer import Tokenizer

if TYPE_CHECKING:
    from glmcore.serve.turn import Turn


def constrained(turn: "Turn", tokenizer: Tokenizer) -> SamplingParams:
    """The turn's sampling, bound to the form that its answer must have.

    Raises:
        ServeError: The form cannot be had.
    """
    return replace(turn.params)

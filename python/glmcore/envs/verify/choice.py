"""Multiple choice: a question with lettered options, and the letter that a reply settles on."""

import random
import re
from collections.abc import Sequence
from dataclasses import dataclass

from glmcore.envs.verify.verdict import Verdict
from glmcore.errors import DataError

LETTERS = "ABCDEFGHIJKLMNOPQRSTUVWXYZ"
_LETTER = r"[(\[*_{$]*(?:\\(?:text|mathrm|mathbf|textbf)\s*\{\s*)?([A-Z])(?![A-Za-z])"
_FORMS = (
    re.compile(r"\\boxed\s*\{\s*" + _LETTER),
    re.compile(
        r"(?i:\bfinal\s+answer|\banswer|\bcorrect\s+(?:option|choice))(?i:\s+is|\s*:|\s*=)+[\s:*]*"
        r"(?i:(?:option|choice)\s+)?" + _LETTER
    ),
    re.compile(r"(?m)^\s*(?i:(?:option|choice)\s+)?" + _LETTER + r"\s*[)\].:,*_}$]*\s*$"),
)
"""Ways in which a letter is given, the most explicit first."""
_OPENING = re.compile(r"\s*" + _LETTER + r"[)\].:,*_]")


@dataclass(frozen=True)
class Choice:
    """A question as it is put, and the letter of the right option."""

    text: str
    letter: str


def pose_choice(question: str, options: Sequence[str], right: int, seed: int) -> Choice:
    """A question with its options in an order that the seed decides.

    Args:
        question: Without options.
        options: Two or more.
        right: Place of the right one in `options`.
        seed: Of the order: one fixed for each problem, so that the place of the right option says nothing.

    Raises:
        DataError: There are too few or too many options, or `right` is none of them.
    """
    if not 2 <= len(options) <= len(LETTERS):
        raise DataError(f"a choice has 2 to {len(LETTERS)} options, not {len(options)}")
    if not 0 <= right < len(options):
        raise DataError(f"the right option is number {right} of {len(options)}")
    order = list(range(len(options)))
    random.Random(seed).shuffle(order)
    lines = "\n".join(f"{LETTERS[place]}) {options[index]}" for place, index in enumerate(order))
    last = LETTERS[len(options) - 1]
    text = f"{question}\n\n{lines}\n\nEnd with a line 'Answer: X', where X is a letter from A to {last}."
    return Choice(text, LETTERS[order.index(right)])


def extract_choice(reply: str, num_options: int) -> str | None:
    """The letter that a reply gives; None if it gives none.

    The last of the most explicit form counts: a box, then words such as "the answer is B", then a letter on a line of
    its own, then one that the reply begins with, as in "B) because".
    """
    letters = LETTERS[:num_options]
    for form in _FORMS:
        found = [letter for letter in form.findall(reply) if letter in letters]
        if found:
            return found[-1]
    opening = _OPENING.match(reply)
    return opening[1] if opening and opening[1] in letters else None


def verify_choice(letter: str, reply: str, num_options: int) -> Verdict:
    """Judge a reply, as it was given after the thinking, to a question of `pose_choice`."""
    found = extract_choice(reply, num_options)
    if found is None:
        return Verdict(0.0, None, "no letter was found")
    return Verdict(1.0, found) if found == letter else Verdict(0.0, found, "another letter")

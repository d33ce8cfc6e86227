"""Text as it becomes certain, and the strings that end it."""

from collections.abc import Sequence

from glmcore.tokenizer import Tokenizer


def special_ids(tokenizer: Tokenizer) -> frozenset[int]:
    """Tokens that are flagged special and no part of a text: role and end tokens, not `<think>` or the tool tags."""
    return frozenset(token for _, token, special in tokenizer.core.added_tokens if special)


class TextStream:
    """The text of one sequence, token by token: never half a character, never what may begin a stop string.

    A text ends where the first stop string is complete, whatever tokens it was cut into; of several that are complete
    at the same character the longest counts. What comes out is the text before the stop string.

    Args:
        tokenizer: Of the tokens.
        skipped: Tokens that are no part of the text: `special_ids`.
        stop: Strings that end the text, none empty.
        min_tokens: A stop string that is complete within so many tokens ends nothing.
    """

    def __init__(
        self, tokenizer: Tokenizer, skipped: frozenset[int], stop: Sequence[str] = (), min_tokens: int = 0
    ) -> None:
        self._decoder = tokenizer.stream_decoder()
        self._skipped = skipped
        self._vocab_size = tokenizer.vocab_size
        self._stop = sorted(stop, key=len, reverse=True)
        self._min_tokens = min_tokens
        self._num_tokens = 0
        self._held = ""
        """Text that may be the beginning of a stop string."""
        self.stopped_by: str | None = None
        """The stop string that has ended the text."""

    def push(self, token_id: int) -> str:
        """Text that the token makes certain; "" after a stop string, and of tokens that the tokenizer does not have."""
        self._num_tokens += 1
        if token_id in self._skipped or token_id >= self._vocab_size or self.stopped_by is not None:
            return ""
        return self._take(self._decoder.push(token_id))

    def finish(self) -> str:
        """The rest of the text: no more tokens come. Bytes of an incomplete character become U+FFFD."""
        if self.stopped_by is not None:
            return ""
        certain = self._take(self._decoder.finish())
        rest, self._held = self._held, ""
        return certain if self.stopped_by is not None else certain + rest

    def _take(self, new: str) -> str:
        if not self._stop:
            return new
        if not new:
            return ""
        text = self._held + new
        if self._num_tokens > self._min_tokens:
            # Only what ends in the new text: what ended before was complete too early to count.
            ends = [(text.find(stop, max(0, len(self._held) - len(stop) + 1)), stop) for stop in self._stop]
            found = [(start + len(stop), start, stop) for start, stop in ends if start >= 0]
            if found:
                _, start, self.stopped_by = min(found)
                self._held = ""
                return text[:start]
        keep = self._length_held(text)
        self._held = text[len(text) - keep :]
        return text[: len(text) - keep]

    def _length_held(self, text: str) -> int:
        """Length of the longest end of `text` that is a beginning of a stop string, and not all of it."""
        for length in range(min(len(text), len(self._stop[0]) - 1), 0, -1):
            end = text[-length:]
            if any(len(stop) > length and stop.startswith(end) for stop in self._stop):
                return length
        return 0

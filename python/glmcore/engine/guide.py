"""The tokens that a constraint allows next, for the sequences of a batch at once.

llguidance (extra `glmcore[serve]`) follows the grammar. What is added here: thinking before the constraint begins, the
stop tokens of each request, and tags of the chat format, which come as their tokens or not at all: a tag that was spelt
out in the text of an argument would end it for whoever reads the reply.

Shapes: R sequences with constraints, W 32-bit words with a bit for each token of the tokenizer, V vocabulary of
the model.
"""

import itertools
import re
import threading
from collections import OrderedDict
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from glmcore.engine.constrain import Constraint
from glmcore.engine.grammar import TAGS, lark_of
from glmcore.errors import RequestError
from glmcore.tokenizer import Tokenizer

MAX_COMPILED = 64
"""Grammars that are kept for the next request with the same constraint."""
THINK_TAGS = ("<think>", "</think>")
LIMITS = {
    "initial_lexer_fuel": 400_000,
    "step_lexer_fuel": 200_000,
    "step_max_items": 50_000,
    "max_lexer_states": 50_000,
    "max_grammar_size": 100_000,
    "verbose_errors": False,
}
"""What a grammar may cost. Usual schemas compile in milliseconds; the largest that fit these bounds were seen to take
1.6 s. Compiling has no time limit of its own: it happens outside of the engine's thread; see `EngineService`."""


class Grammars:
    """Compiles constraints for one tokenizer. Threads may share it.

    Args:
        tokenizer: Of the model.
        vocab_size: Tokens of the model, V, at least those of the tokenizer.
    """

    def __init__(self, tokenizer: Tokenizer, vocab_size: int) -> None:
        self.tokenizer = tokenizer
        self.vocab_size = vocab_size
        self.num_words = -(-tokenizer.vocab_size // 32)
        self._compiled: OrderedDict[Constraint, Any] = OrderedDict()
        self._lock = threading.Lock()
        self._engine: Any = None
        self.executor: Any = None
        """Threads that fill masks."""
        self._tokens: _Tokens | None = None

    def compile(self, constraint: Constraint) -> None:
        """Compile a constraint ahead, so that `start` takes no time.

        Raises:
            RequestError: It cannot be enforced, or would cost too much.
        """
        with self._lock:
            self._matcher(constraint)

    def start(self, constraint: Constraint, stop_ids: Iterable[int]) -> "Guide":
        """A guide at the start of a text.

        Args:
            constraint: What the text must look like.
            stop_ids: Tokens that end it, which come when it is complete.

        Raises:
            RequestError: As `compile`.
        """
        with self._lock:
            matcher = self._matcher(constraint).deep_copy()
            assert self._tokens is not None
            return Guide(matcher, self._tokens, constraint, sorted(stop_ids), self.num_words)

    def _matcher(self, constraint: Constraint) -> Any:
        if constraint in self._compiled:
            self._compiled.move_to_end(constraint)
            return self._compiled[constraint]
        try:
            from llguidance import LLExecutor, LLMatcher, LLParserLimits, LLTokenizer
        except ImportError:
            raise RequestError("constraints need llguidance: pip install 'glmcore[serve]'") from None
        if self._tokens is None:
            self._tokens = _Tokens(self.tokenizer)
            self.executor = LLExecutor()
            wrapper: Any = _Wrapper(self.tokenizer, self._tokens)
            self._engine = LLTokenizer(wrapper, n_vocab=self.tokenizer.vocab_size, eos_token=self._tokens.end)
        try:
            grammar = lark_of(constraint, self.tokenizer)
        except RecursionError:
            raise RequestError("the constraint is nested too deeply") from None
        matcher = LLMatcher(self._engine, grammar, log_level=0, limits=LLParserLimits(**LIMITS))
        possible = any(matcher.compute_bitmask())  # also does work that is left over from compiling
        if matcher.is_error():
            raise RequestError(f"the constraint cannot be enforced: {_reason(matcher.get_error())}")
        if not possible:
            raise RequestError("the constraint allows no text at all")
        self._compiled[constraint] = matcher
        while len(self._compiled) > MAX_COMPILED:
            self._compiled.popitem(last=False)
        return matcher


class _Tokens:
    """What guides have to know of a tokenizer's tokens."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        added = {text: token for text, token, _ in tokenizer.core.added_tokens}
        self.added = frozenset(added.values())
        self.bytes = [tokenizer.id_to_token(token) for token in range(tokenizer.vocab_size)]
        self.end = added.get("<|endoftext|>", tokenizer.vocab_size - 1)
        """Stands for the end of the text in grammars."""
        self.think_end = added.get("</think>")
        self.opening = tokenizer.encode("\n<think>", special="parse")
        self.tags = [tag.encode() for tag in (*TAGS, *THINK_TAGS)]
        ordinary = [(token, text) for token, text in enumerate(self.bytes) if token not in self.added]
        self.completing: dict[bytes, list[int]] = {
            tag[length:]: [] for tag in self.tags for length in range(1, len(tag))
        }
        for token, text in ordinary:
            for length in range(1, min(len(text), max(map(len, self.tags))) + 1):
                if text[:length] in self.completing:
                    self.completing[text[:length]].append(token)
        """For each rest of a tag the tokens that begin with it."""
        self.spelling = [token for token, text in ordinary if any(tag in text for tag in self.tags)]
        """Tokens that spell a whole tag."""


class _Wrapper:
    """A tokenizer as llguidance wants it."""

    is_tokenizer_wrapper = True
    bos_token_id = None

    def __init__(self, tokenizer: Tokenizer, tokens: _Tokens) -> None:
        self.eos_token_id = tokens.end
        self.tokens = tokens.bytes
        self.special_token_ids = sorted(tokens.added)
        self._tokenizer = tokenizer

    def __call__(self, text: str | bytes) -> list[int]:
        return self._tokenizer.encode(text if isinstance(text, str) else text.decode(errors="replace"))


class Guide:
    """Follows one text and tells which tokens may come next. Made by `Grammars.start`."""

    def __init__(
        self, matcher: Any, tokens: _Tokens, constraint: Constraint, stop_ids: Sequence[int], num_words: int
    ) -> None:
        self._matcher = matcher
        self._tokens = tokens
        self._stop_ids = list(stop_ids)
        self._foreign_end = [] if tokens.end in stop_ids else [tokens.end]
        self._guards_tags = constraint.kind == "tool_calls" or constraint.thinking != "none"
        self._tail = b""
        """The last bytes of the text, in which a tag may be about to be spelt."""
        self._forced = list(tokens.opening) if constraint.thinking == "first" else []
        self._thinks = constraint.thinking != "none"
        self.failed = False
        """The grammar costs more than it may, or came to a dead end: the text ends and is not what was asked for."""
        if self._thinks:
            if tokens.think_end is None:
                raise RequestError("a constraint after thinking needs a tokenizer with the token </think>")
            self._thinking_words = np.zeros(num_words, np.uint32)
            ordinary = [token for token in range(len(tokens.bytes)) if token not in tokens.added]
            _set_bits(self._thinking_words, [*ordinary, tokens.think_end], on=True)

    @property
    def matcher(self) -> Any | None:
        """The grammar's state, if the next mask is to come from it."""
        return None if self._thinks or self.failed else self._matcher

    def finish_words(self, words: npt.NDArray[np.uint32]) -> None:
        """Complete the mask of the next token.

        Args:
            words: What the matcher allows, or zeros if it does not decide, uint32 [W]; changed in place.
        """
        if self._thinks:
            if self._forced:
                _set_bits(words, self._forced[:1], on=True)
                return
            words[:] = self._thinking_words
        elif not self.failed:
            self.failed = self._matcher.is_error()
            ends = not self.failed and self._matcher.is_accepting()
            _set_bits(words, self._foreign_end, on=False)
            if ends:
                _set_bits(words, self._stop_ids, on=True)
        if self._guards_tags:
            _set_bits(words, self._tokens.spelling, on=False)
            _set_bits(words, self._about_to_spell(), on=False)
        self.failed = self.failed or not words.any()
        if self.failed:
            words[:] = 0
            _set_bits(words, self._stop_ids or [self._tokens.end], on=True)

    @property
    def is_complete(self) -> bool:
        """Whether the text is complete and nothing but a stop token can follow."""
        return self.failed or (not self._thinks and self._matcher.is_stopped())

    def consume(self, token: int) -> None:
        """Go on after a token that is no stop token."""
        if self._thinks:
            if self._forced:
                self._forced.pop(0)
            elif token == self._tokens.think_end:
                self._thinks = False
        elif not self.failed and not self._matcher.consume_token(token):
            self.failed = True
        if self._guards_tags:
            plain = token not in self._tokens.added
            self._tail = (self._tail + self._tokens.bytes[token])[-16:] if plain else b""

    def _about_to_spell(self) -> list[int]:
        """Tokens that would complete a tag which the text has begun to spell."""
        start = self._tail.rfind(b"<")
        if start < 0:
            return []
        begun = self._tail[start:]
        rests = [tag[len(begun) :] for tag in self._tokens.tags if tag.startswith(begun) and len(tag) > len(begun)]
        return [token for rest in rests for token in self._tokens.completing[rest]]


def allowed_tokens(guides: Sequence[Guide], grammars: Grammars) -> npt.NDArray[np.bool_]:
    """True for the tokens that may come next in each text, bool [R, V].

    Grammars are asked in parallel and without the GIL.
    """
    words = np.zeros((len(guides), grammars.num_words), np.uint32)
    asked = [(guide.matcher, row) for row, guide in enumerate(guides) if guide.matcher is not None]
    if asked:
        grammars.executor.unsafe_compute_mask_ptr(asked, words.ctypes.data, words.shape[1] * 4, len(words))
    for guide, row in zip(guides, words, strict=True):
        guide.finish_words(row)
    known = grammars.tokenizer.vocab_size
    allowed = np.zeros((len(guides), grammars.vocab_size), np.bool_)
    allowed[:, :known] = np.unpackbits(words.view(np.uint8), axis=1, bitorder="little", count=known)
    return allowed


def _set_bits(words: npt.NDArray[np.uint32], tokens: Sequence[int], *, on: bool) -> None:
    if not len(tokens):
        return
    place = np.asarray(tokens)
    bits = np.uint32(1) << (place % 32).astype(np.uint32)
    if on:
        np.bitwise_or.at(words, place // 32, bits)
    else:
        np.bitwise_and.at(words, place // 32, ~bits)


def _reason(message: str) -> str:
    """What an error says before it shows the place in the grammar, in one line."""
    lines = itertools.takewhile(lambda line: not re.match(r"\s*\d+ \|", line), message.splitlines())
    return re.sub(r"^at \d+\(\d+\): ", "", " ".join(" ".join(lines).split()))[:300]

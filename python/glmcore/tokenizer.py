"""Byte-level BPE in the GLM-4 format: text to ids and back, exact to Hugging Face `tokenizers`."""

import json
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, TypeVar

import numpy as np
import numpy.typing as npt

from glmcore._core import GLM4_SPECIAL_TOKENS, PATTERNS, CoreStreamDecoder, CoreTokenizer, CoreTrainer
from glmcore.durable import write_file
from glmcore.errors import TokenizerError
from glmcore.progress import progress as show_progress
from glmcore.ragged import Ragged, TokenIds

TEMPLATE_FILE = Path(__file__).parent / "chat_template.jinja"
COMPILED_SUFFIX = ".glmtok"
END_OF_TEXT = "<|endoftext|>"
FEED_BYTES = 1 << 24
"""Text between two looks at the progress bar."""
MERGE_STEP = 256
"""Merges learned between two looks at the progress bar."""


@dataclass(frozen=True)
class Offsets:
    """Ids of a text and the part of it that each stands for."""

    ids: TokenIds
    """int32 [n]."""
    spans: npt.NDArray[np.int64]
    """Start and end of each id's part, int64 [n, 2]."""


class StreamDecoder:
    """Text from tokens as they come, never half a character."""

    def __init__(self, core: CoreStreamDecoder) -> None:
        self._core = core

    def push(self, token_id: int) -> str:
        """Text that the token completes; empty while a character is incomplete.

        Raises:
            TokenizerError: The id is outside the vocabulary.
        """
        return self._core.push(token_id)

    def finish(self) -> str:
        """Text of the bytes still held back, the invalid ones as U+FFFD."""
        return self._core.finish()


class Tokenizer:
    """A tokenizer. Text never turns into a special token unless the caller asks for it."""

    def __init__(self, core: CoreTokenizer) -> None:
        self._core = core

    @classmethod
    def from_file(cls, path: str | Path) -> "Tokenizer":
        """Read a tokenizer.json, or a compiled tokenizer (`*.glmtok`), which must not change while it is read.

        Raises:
            TokenizerError: The file cannot be read, or asks for something that cannot be honoured exactly.
        """
        path = Path(path)
        read = CoreTokenizer.from_compiled_file if path.suffix == COMPILED_SUFFIX else CoreTokenizer.from_json_file
        return cls(_naming(path, lambda: read(str(path))))

    @classmethod
    def from_tiktoken(
        cls, path: str | Path, pattern: str = PATTERNS["glm4"], special_tokens: Literal["glm4"] | Sequence[str] = "glm4"
    ) -> "Tokenizer":
        """Read a `*.tiktoken` rank file, which says neither how text is split nor which special tokens there are.

        Args:
            path: Lines of a token in base64 and its rank.
            pattern: Regular expression that finds the words; `PATTERNS` holds those of known models.
            special_tokens: They take the ids after the ranks; `glm4` are the 36 of GLM-4.5.

        Raises:
            TokenizerError: The file cannot be read or is damaged.
        """
        special = list(GLM4_SPECIAL_TOKENS) if special_tokens == "glm4" else list(special_tokens)
        return cls(_naming(Path(path), lambda: CoreTokenizer.from_tiktoken_file(str(path), pattern, special)))

    @classmethod
    def from_pretrained(cls, directory: str | Path) -> "Tokenizer":
        """Read the tokenizer.json of a checkpoint directory; errors as `from_file`."""
        return cls.from_file(Path(directory) / "tokenizer.json")

    @classmethod
    def open(cls, path: str | Path) -> "Tokenizer":
        """Read what is there: a directory as `from_pretrained`, else a file as `from_file`."""
        return cls.from_pretrained(path) if Path(path).is_dir() else cls.from_file(path)

    def save(self, path: str | Path) -> None:
        """Write a tokenizer.json, a compiled tokenizer, or into a directory what `transformers.AutoTokenizer` reads.

        Args:
            path: A file that ends in .json; one that ends in .glmtok, which loads faster; or a directory, made if it is
                not there.
        """
        path = Path(path)
        if path.suffix == COMPILED_SUFFIX:
            write_file(path, self._core.to_compiled())
            return
        if path.suffix == ".json":
            write_file(path, self._core.to_json())
            return
        path.mkdir(parents=True, exist_ok=True)
        config: dict[str, Any] = {
            "clean_up_tokenization_spaces": False,
            "model_max_length": 128_000,
            "padding_side": "left",
            "tokenizer_class": "PreTrainedTokenizerFast",
        }
        if END_OF_TEXT in self.special_tokens:
            config |= {"eos_token": END_OF_TEXT, "pad_token": END_OF_TEXT}
        write_file(path / "tokenizer.json", self._core.to_json())
        write_file(path / "tokenizer_config.json", json.dumps(config, indent=2) + "\n")
        write_file(path / "chat_template.jinja", TEMPLATE_FILE.read_text(encoding="utf-8"))

    def encode(self, text: str, special: Literal["text", "parse"] = "text") -> list[int]:
        """Ids of `text`.

        Args:
            text: Any text.
            special: What becomes of special tokens that stand in the text: `text` leaves them text, `parse` turns them
                into their ids.
        """
        return self._core.encode_to_list(text, _parses(special))

    def encode_to_numpy(self, text: str, special: Literal["text", "parse"] = "text") -> TokenIds:
        """Ids of `text` as int32 [n]; see `encode`."""
        return self._core.encode(text, _parses(special))

    def encode_bytes(self, data: bytes) -> TokenIds:
        """Ids of bytes of which some may be no UTF-8, int32 [n]; `decode_bytes` gives all of them back."""
        return self._core.encode_bytes(data)

    def encode_file(
        self, path: str | Path, num_threads: int | None = None, special: Literal["text", "parse"] = "text"
    ) -> TokenIds:
        """Ids of the text of a file, int32 [n]. The file is mapped, and must not change meanwhile.

        Raises:
            TokenizerError: The file cannot be read or is not UTF-8.
        """
        ids, _ = self._core.encode_file_part(str(path), 0, sys.maxsize, _parses(special), num_threads or 0)
        return ids

    def encode_file_parts(
        self, path: str | Path, num_threads: int | None = None, special: Literal["text", "parse"] = "text"
    ) -> Iterator[tuple[TokenIds, int]]:
        """The ids of `encode_file` in parts, each with the bytes it stands for: for files larger than memory.

        Parts stand for 16 MiB or a little more, up to a place where a cut changes no token; a file is one part where
        there is none, or where its tokenizer splits by an unknown pattern.
        """
        done = 0
        while True:
            ids, end = self._core.encode_file_part(str(path), done, FEED_BYTES, _parses(special), num_threads or 0)
            if end == done:
                return
            yield ids, end - done
            done = end

    def encode_with_offsets(
        self, text: str, special: Literal["text", "parse"] = "text", unit: Literal["characters", "bytes"] = "characters"
    ) -> Offsets:
        """Ids of `text` and the part of it that each stands for.

        Args:
            text: Any text.
            special: As for `encode`.
            unit: Count places in characters, as Hugging Face does, or in bytes of UTF-8. A token that holds a part of
                a character spans all of it in characters.
        """
        if unit not in ("characters", "bytes"):
            raise TokenizerError(f"unit must be 'characters' or 'bytes', got {unit!r}")
        return Offsets(*self._core.encode_with_offsets(text, _parses(special), unit == "characters"))

    def encode_batch(
        self,
        texts: Sequence[str],
        num_threads: int | None = None,
        special: Literal["text", "parse"] = "text",
    ) -> Ragged:
        """Ids of many texts. `Ragged.truncate` and `Ragged.windows` cut them to a length.

        Args:
            texts: Any texts.
            num_threads: None for all cores. The result does not depend on it.
            special: As for `encode`.
        """
        return Ragged(*self._core.encode_batch(list(texts), _parses(special), num_threads or 0))

    def with_template(self, ids: Sequence[int] | TokenIds) -> TokenIds:
        """`ids` between the tokens that the file's post-processor puts around a text, int32 [n]."""
        before, after = self._core.template
        return np.concatenate([before, ids, after]).astype(np.int32)

    def decode(self, ids: Sequence[int] | TokenIds, *, skip_special_tokens: bool = False) -> str:
        """Text of `ids`, bytes that are no UTF-8 as U+FFFD.

        Args:
            ids: Token ids.
            skip_special_tokens: Leave out the tokens flagged special. `<think>`, tool and box tags are not.

        Raises:
            TokenizerError: An id is outside the vocabulary.
        """
        return self._core.decode_to_text(ids, skip_special_tokens)

    def decode_bytes(self, ids: Sequence[int] | TokenIds, *, skip_special_tokens: bool = False) -> bytes:
        """Bytes of `ids`; see `decode`."""
        return self._core.decode(ids, skip_special_tokens)

    def decode_batch(self, batch: Ragged, *, skip_special_tokens: bool = False) -> list[str]:
        """Text of each item of `batch`; see `decode`."""
        return self._core.decode_batch(batch.ids, batch.offsets, skip_special_tokens)

    def stream_decoder(self) -> StreamDecoder:
        """A decoder for tokens that come one by one."""
        return StreamDecoder(CoreStreamDecoder(self._core))

    @property
    def core(self) -> CoreTokenizer:
        """The compiled tokenizer, for other parts of this package."""
        return self._core

    @property
    def vocab_size(self) -> int:
        """Number of ids, special tokens included."""
        return self._core.vocab_size

    @property
    def special_tokens(self) -> list[str]:
        """Tokens outside the learned vocabulary, in the order of their file."""
        return [text for text, _, _ in self._core.added_tokens]

    @property
    def patterns(self) -> list[str]:
        """Regular expressions that split text, in order."""
        return self._core.patterns

    def token_to_id(self, token: str) -> int:
        """Id of the token with exactly this text.

        Raises:
            TokenizerError: There is none.
        """
        token_id = self._core.token_to_id(token.encode())
        if token_id is None:
            raise TokenizerError(f"there is no token {token!r}")
        return token_id

    def id_to_token(self, token_id: int) -> bytes:
        """Bytes of a token; a token need not be whole characters.

        Raises:
            TokenizerError: The id is outside the vocabulary.
        """
        token = self._core.id_to_bytes(token_id) if 0 <= token_id < self.vocab_size else None
        if token is None:
            raise TokenizerError(f"token id {token_id} is outside the vocabulary of {self.vocab_size}")
        return token


def train_tokenizer(
    texts_or_files: Iterable[str | Path],
    vocab_size: int,
    pattern: str = "glm4",
    special_tokens: Literal["glm4"] | Sequence[str] = "glm4",
    num_threads: int | None = None,
    progress: bool = True,
    *,
    min_frequency: int = 0,
    max_token_length: int | None = None,
    by_line: bool = False,
) -> Tokenizer:
    """Learn a byte-level BPE; the merges are those of Hugging Face's trainer on the same texts and settings.

    Memory grows with the distinct words of the text, not with the text: 64 bytes for each while counting (per thread),
    then about 24 and 12 for each of its bytes. Files may be larger than memory.

    Args:
        texts_or_files: Texts, or paths of UTF-8 files.
        vocab_size: All ids, the special tokens among them; at least 256 more than those.
        pattern: How text is split into words: a key of `PATTERNS`, or a regular expression.
        special_tokens: They take the last ids; `glm4` are the 36 of GLM-4.5.
        num_threads: None for all cores. The result does not depend on it.
        progress: Show a progress bar.
        min_frequency: Pairs that stand fewer times are not merged; the vocabulary may then be smaller than asked for.
        max_token_length: Tokens of so many bytes, or more, are not learned (Hugging Face's rule).
        by_line: Take each line of a file as a text of its own, as Hugging Face's `train` does; else a file is one text,
            as its `train_from_iterator` takes it, and tokens may hold line breaks with what follows.

    Raises:
        TokenizerError: A file cannot be read, or the text has too few distinct pairs.
    """
    special = list(GLM4_SPECIAL_TOKENS) if special_tokens == "glm4" else list(special_tokens)
    trainer = CoreTrainer(PATTERNS.get(pattern, pattern), min_frequency, max_token_length or 0)
    with show_progress("count words", unit="bytes", shown=progress) as bar:
        for item in _files_and_batches(texts_or_files):
            if isinstance(item, Path):
                _feed_file(trainer, item, by_line, num_threads or 0, bar.advance)
            else:
                trainer.feed(item, num_threads or 0)
                bar.advance(sum(len(text) for text in item))
    num_learned = vocab_size - len(special)
    with show_progress("learn merges", total=max(num_learned, 0), unit="tokens", shown=progress) as bar:
        done = 0
        while done < num_learned:
            reached = trainer.merge_up_to(min(done + MERGE_STEP, num_learned))
            bar.advance(reached - done)
            if reached == done:
                break
            done = reached
    return Tokenizer(trainer.finish(vocab_size, special))


def _feed_file(
    trainer: CoreTrainer, path: Path, by_line: bool, num_threads: int, advance: Callable[[int], None]
) -> None:
    done = -1
    reached = 0
    while reached != done:
        done = reached
        reached = trainer.feed_file_part(str(path), done, by_line, num_threads)
        advance(reached - done)


def _files_and_batches(texts_or_files: Iterable[str | Path]) -> Iterator[Path | list[str]]:
    """Paths as they come, texts together."""
    batch: list[str] = []
    size = 0
    for item in texts_or_files:
        if isinstance(item, Path):
            yield item
            continue
        batch.append(item)
        size += len(item)
        if size >= FEED_BYTES:
            yield batch
            batch, size = [], 0
    yield batch


_T = TypeVar("_T")


def _naming(path: Path, read: Callable[[], _T]) -> _T:
    """Put the path before the message of an error that does not name it."""
    try:
        return read()
    except TokenizerError as error:
        if str(path) in str(error):
            raise
        raise TokenizerError(f"{path}: {error}") from None


def _parses(special: str) -> bool:
    if special not in ("text", "parse"):
        raise TokenizerError(f"special must be 'text' or 'parse', got {special!r}")
    return special == "parse"

"""Byte-level BPE in the GLM-4 format: text to ids and back, exact to Hugging Face `tokenizers`."""

import json
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
import numpy.typing as npt

from glmcore._core import GLM4_SPECIAL_TOKENS, CoreStreamDecoder, CoreTokenizer, CoreTrainer
from glmcore.durable import write_file
from glmcore.errors import TokenizerError
from glmcore.progress import progress as show_progress

TokenIds = npt.NDArray[np.int32]
TEMPLATE_FILE = Path(__file__).parent / "chat_template.jinja"
FEED_BYTES = 1 << 20
"""Text that is counted between two looks at the progress bar."""
MERGE_STEP = 256
"""Merges learned between two looks at the progress bar."""


@dataclass(frozen=True)
class Ragged:
    """Token ids of many texts in one array; item i is a view of text i's ids."""

    ids: TokenIds
    """All ids, int32 [n]."""
    offsets: npt.NDArray[np.int64]
    """Bounds of the texts, int64 [texts + 1], starting at 0."""

    def __len__(self) -> int:
        return len(self.offsets) - 1

    def __getitem__(self, index: int) -> TokenIds:
        if not -len(self) <= index < len(self):
            raise IndexError(f"text {index} of {len(self)}")
        index %= len(self)
        return self.ids[self.offsets[index] : self.offsets[index + 1]]

    def __iter__(self) -> Iterator[TokenIds]:
        return (self[index] for index in range(len(self)))


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
        """Read a tokenizer.json.

        Raises:
            TokenizerError: The file cannot be read, or asks for something that cannot be honoured exactly.
        """
        try:
            text = Path(path).read_text(encoding="utf-8")
        except OSError as error:
            raise TokenizerError(f"cannot read {path}: {error.strerror}") from None
        except UnicodeDecodeError:
            raise TokenizerError(f"{path}: not UTF-8 text") from None
        try:
            return cls(CoreTokenizer.from_json(text))
        except TokenizerError as error:
            raise TokenizerError(f"{path}: {error}") from None

    @classmethod
    def from_pretrained(cls, directory: str | Path) -> "Tokenizer":
        """Read the tokenizer.json of a checkpoint directory; errors as `from_file`."""
        return cls.from_file(Path(directory) / "tokenizer.json")

    def save(self, path: str | Path) -> None:
        """Write a tokenizer.json, or into a directory everything that `transformers.AutoTokenizer` reads.

        Args:
            path: A file that ends in .json, or a directory, made if it is not there.
        """
        path = Path(path)
        if path.suffix == ".json":
            write_file(path, self._core.to_json())
            return
        path.mkdir(parents=True, exist_ok=True)
        config = {
            "clean_up_tokenization_spaces": False,
            "eos_token": "<|endoftext|>",
            "model_max_length": 128_000,
            "pad_token": "<|endoftext|>",
            "padding_side": "left",
            "tokenizer_class": "PreTrainedTokenizerFast",
        }
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
        return self.encode_to_numpy(text, special).tolist()

    def encode_to_numpy(self, text: str, special: Literal["text", "parse"] = "text") -> TokenIds:
        """Ids of `text` as int32 [n]; see `encode`."""
        return self._core.encode(_clean(text), _parses(special))

    def encode_batch(
        self,
        texts: Sequence[str],
        num_threads: int | None = None,
        special: Literal["text", "parse"] = "text",
    ) -> Ragged:
        """Ids of many texts.

        Args:
            texts: Any texts.
            num_threads: None for all cores. The result does not depend on it.
            special: As for `encode`.
        """
        ids, offsets = self._core.encode_batch([_clean(text) for text in texts], _parses(special), num_threads or 0)
        return Ragged(ids, offsets)

    def decode(self, ids: Sequence[int] | TokenIds, *, skip_special_tokens: bool = False) -> str:
        """Text of `ids`, bytes that are no UTF-8 as U+FFFD.

        Args:
            ids: Token ids.
            skip_special_tokens: Leave out the tokens flagged special. `<think>`, tool and box tags are not.

        Raises:
            TokenizerError: An id is outside the vocabulary.
        """
        return self.decode_bytes(ids, skip_special_tokens=skip_special_tokens).decode("utf-8", errors="replace")

    def decode_bytes(self, ids: Sequence[int] | TokenIds, *, skip_special_tokens: bool = False) -> bytes:
        """Bytes of `ids`; see `decode`."""
        try:
            array = np.ascontiguousarray(ids, dtype=np.int32)
        except (OverflowError, ValueError):
            raise TokenizerError("ids must be a flat sequence of 32-bit integers") from None
        return self._core.decode(array, skip_special_tokens)

    def decode_batch(self, batch: Ragged, *, skip_special_tokens: bool = False) -> list[str]:
        """Text of each item of `batch`; see `decode`."""
        return [self.decode(ids, skip_special_tokens=skip_special_tokens) for ids in batch]

    def stream_decoder(self) -> StreamDecoder:
        """A decoder for tokens that come one by one."""
        return StreamDecoder(CoreStreamDecoder(self._core))

    @property
    def vocab_size(self) -> int:
        """Number of ids, special tokens included."""
        return self._core.vocab_size

    @property
    def special_tokens(self) -> list[str]:
        """Tokens outside the learned vocabulary, by id."""
        return self._core.added_tokens

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
    pattern: Literal["glm4"] = "glm4",
    special_tokens: Literal["glm4"] | Sequence[str] = "glm4",
    num_threads: int | None = None,
    progress: bool = True,
) -> Tokenizer:
    """Learn a byte-level BPE; the merges are those of Hugging Face's trainer on the same words.

    Args:
        texts_or_files: Texts, or paths of UTF-8 files.
        vocab_size: All ids, the special tokens among them; at least 256 more than those.
        pattern: How text is split into words; GLM-4's pattern is the only one.
        special_tokens: They take the last ids; `glm4` are the 36 of GLM-4.5.
        num_threads: None for all cores. The result does not depend on it.
        progress: Show a progress bar.

    Raises:
        TokenizerError: A file cannot be read, or the text has too few distinct pairs.
    """
    if pattern != "glm4":
        raise TokenizerError(f"pattern must be 'glm4', got {pattern!r}")
    special = list(GLM4_SPECIAL_TOKENS) if special_tokens == "glm4" else list(special_tokens)
    trainer = CoreTrainer()
    with show_progress("count words", unit="bytes", shown=progress) as bar:
        for batch in _batches(texts_or_files):
            trainer.feed(batch, num_threads or 0)
            bar.advance(sum(len(text) for text in batch))
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


def _batches(texts_or_files: Iterable[str | Path]) -> Iterator[list[str]]:
    batch: list[str] = []
    size = 0
    for item in texts_or_files:
        text = _read(item) if isinstance(item, Path) else _clean(item)
        batch.append(text)
        size += len(text)
        if size >= FEED_BYTES:
            yield batch
            batch, size = [], 0
    yield batch


def _read(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except OSError as error:
        raise TokenizerError(f"cannot read {path}: {error.strerror}") from None
    except UnicodeDecodeError:
        raise TokenizerError(f"{path}: not UTF-8 text") from None


def _parses(special: str) -> bool:
    if special not in ("text", "parse"):
        raise TokenizerError(f"special must be 'text' or 'parse', got {special!r}")
    return special == "parse"


def _clean(text: str) -> str:
    """Lone surrogates, which no UTF-8 can hold, become U+FFFD."""
    if text.isascii():
        return text
    return text.encode("utf-8", errors="surrogatepass").decode("utf-8", errors="replace")

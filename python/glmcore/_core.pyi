"""Stub of the compiled core, written by hand and checked against it by stubtest."""

from typing import final

import numpy as np
import numpy.typing as npt

__version__: str

# ---- tokenizer ------------------------------------------------------------------------------------

GLM4_SPECIAL_TOKENS: list[str]

@final
class CoreTokenizer:
    """A byte-level BPE tokenizer."""

    @staticmethod
    def from_json(text: str) -> CoreTokenizer:
        """Read the text of a tokenizer.json."""

    def to_json(self) -> str:
        """The text of a tokenizer.json."""

    def encode(self, text: str, parse_special: bool) -> npt.NDArray[np.int32]:
        """Ids of `text`; special tokens in it stay text unless `parse_special`."""

    def encode_batch(
        self, texts: list[str], parse_special: bool, num_threads: int
    ) -> tuple[npt.NDArray[np.int32], npt.NDArray[np.int64]]:
        """Ids of all texts and the bounds of each."""

    def decode(self, ids: npt.NDArray[np.int32], skip_special: bool) -> bytes:
        """Bytes of `ids`, without the tokens flagged special if `skip_special`."""

    @property
    def vocab_size(self) -> int:
        """Number of ids, special tokens included."""

    @property
    def added_tokens(self) -> list[str]:
        """Text of each added token, by id."""

    def token_to_id(self, token: bytes) -> int | None:
        """Id of the token with exactly these bytes."""

    def id_to_bytes(self, id: int) -> bytes | None:
        """Bytes of a token."""

@final
class CoreStreamDecoder:
    """Text from tokens as they come."""

    def __new__(cls, tokenizer: CoreTokenizer) -> CoreStreamDecoder:
        """A decoder at the start of a text."""

    def push(self, id: int) -> str:
        """Text that `id` completes."""

    def finish(self) -> str:
        """Text of the bytes still held back."""

@final
class CoreTrainer:
    """Learns merges: feed all text, then merge in as many steps as the caller likes."""

    def __new__(cls) -> CoreTrainer:
        """A trainer that has seen nothing."""

    def feed(self, texts: list[str], num_threads: int) -> None:
        """Count the words of `texts`."""

    def merge_up_to(self, num_tokens: int) -> int:
        """Learn until there are `num_tokens` tokens or no pair is left; gives the number of tokens."""

    def finish(self, vocab_size: int, special_tokens: list[str]) -> CoreTokenizer:
        """The tokenizer with `vocab_size` ids, the last of them the special tokens."""

# ---- data -----------------------------------------------------------------------------------------

# ---- packing --------------------------------------------------------------------------------------

# ---- trajectory -----------------------------------------------------------------------------------

# ---- fp8 ------------------------------------------------------------------------------------------

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

@final
class CoreShardWriter:
    """Writes one token shard; the file appears when it is finished."""

    def __new__(cls, path: str, vocab_size: int, with_loss_mask: bool) -> CoreShardWriter:
        """A writer to `path`."""

    def append(
        self, ids: npt.NDArray[np.int32], loss_mask: npt.NDArray[np.uint8] | None, source: int, quality: float
    ) -> None:
        """Add a document."""

    def finish(self) -> None:
        """Make the file durable under its name."""

    def abandon(self) -> None:
        """Drop what was written."""

@final
class CoreShards:
    """Shards of one vocabulary, memory-mapped, as one list of documents."""

    def __new__(cls, paths: list[str]) -> CoreShards:
        """Map the files."""

    @property
    def num_documents(self) -> int:
        """Number of documents."""

    @property
    def num_tokens(self) -> int:
        """Number of tokens."""

    @property
    def vocab_size(self) -> int:
        """Number of ids in the vocabulary."""

    def lengths(self) -> npt.NDArray[np.uint32]:
        """Tokens of each document."""

    def tokens(self, document: int) -> npt.NDArray[np.int32]:
        """Ids of a document, widened from the file."""

    def loss_mask(self, document: int) -> npt.NDArray[np.uint8]:
        """1 for each token of a document that is learned."""

    def verify(self) -> None:
        """Check every checksum."""

@final
class CoreMixture:
    """Draws documents from several sources by weight."""

    def __new__(cls, sources: list[tuple[str, float, CoreShards]], seed: int) -> CoreMixture:
        """A mixture at its beginning."""

    def draw(self, min_tokens: int) -> tuple[npt.NDArray[np.uint16], npt.NDArray[np.uint64], npt.NDArray[np.uint32]]:
        """Draw documents until they have `min_tokens` tokens."""

    def epochs(self) -> list[int]:
        """How often all documents of each source were drawn."""

def shuffled(len: int, count: int, seed: int, name: str) -> npt.NDArray[np.uint32]:
    """The first `count` places of the shuffled order of `len` things that belongs to `seed` and `name`."""

# ---- packing --------------------------------------------------------------------------------------

_Int32 = npt.NDArray[np.int32]
_Arrays = tuple[_Int32, _Int32, _Int32, npt.NDArray[np.uint8], _Int32, int]

@final
class CorePieces:
    """Pieces of documents by row."""

    @property
    def num_rows(self) -> int:
        """Number of rows."""

    def arrays(self) -> list[npt.NDArray[np.uint32]]:
        """Document, first token and length of each piece, and where each row starts among them."""

    def select_rows(self, rows: npt.NDArray[np.uint32]) -> CorePieces:
        """The given rows, in the given order."""

    def fill(
        self,
        documents: tuple[_Int32, npt.NDArray[np.int64], npt.NDArray[np.uint8] | None],
        rows: tuple[int, int],
        capacity: int,
        pad_id: int,
    ) -> _Arrays:
        """The batch of some rows, with documents end to end in `ids`."""

    def fill_from_shards(
        self,
        shards: list[CoreShards],
        source: npt.NDArray[np.uint16],
        document: npt.NDArray[np.uint64],
        rows: tuple[int, int],
        capacity: int,
        pad_id: int,
    ) -> _Arrays:
        """The batch of some rows, with document i being document `document[i]` of `shards[source[i]]`."""

def pack_best_fit(
    lengths: npt.NDArray[np.uint32], capacity: int
) -> tuple[npt.NDArray[np.uint32], npt.NDArray[np.uint32], CorePieces]:
    """Pack whole documents by best-fit decreasing."""

def pack_best_fit_split(lengths: npt.NDArray[np.uint32], capacity: int) -> CorePieces:
    """Pack by best-fit decreasing after cutting documents longer than `capacity`."""

def pack_concat(lengths: npt.NDArray[np.uint32], capacity: int) -> CorePieces:
    """Lay documents end to end and cut at every row's end."""

def balance(costs: npt.NDArray[np.float64], num_ranks: int) -> npt.NDArray[np.uint32]:
    """Rank of each item, the costliest first to the rank with the least work."""

# ---- trajectory -----------------------------------------------------------------------------------

@final
class CoreTrajectoryBuffer:
    """The buffer of trajectories."""

    def __new__(
        cls, directory: str | None, capacity: int, max_staleness: int, groups_per_step: int
    ) -> CoreTrajectoryBuffer:
        """The buffer in a directory, or in memory for None."""

    def admit(self, task: str, num_rollouts: int, policy_version: int) -> int:
        """Make a group of rollouts of one task; gives its number."""

    def rollouts(self, group_id: int) -> list[int]:
        """Numbers of a group's rollouts."""

    def append_tokens(
        self,
        rollout_id: int,
        ids: npt.NDArray[np.int32],
        loss_mask: npt.NDArray[np.uint8],
        logprobs: npt.NDArray[np.float32],
        policy_version: int,
    ) -> None:
        """Add tokens to a running rollout."""

    def finish(self, rollout_id: int, reward: float, finish_reason: str) -> None:
        """End a rollout with a reward."""

    def fail(self, rollout_id: int, reason: str) -> None:
        """End a rollout that cannot go on."""

    def discard(self, group_id: int) -> None:
        """Forget a group that is not leased."""

    def take(
        self, num_groups: int, policy_version: int, timeout: float | None
    ) -> (
        list[
            tuple[
                int,
                int,
                str,
                npt.NDArray[np.int32],
                npt.NDArray[np.uint8],
                npt.NDArray[np.float32],
                npt.NDArray[np.int32],
                float,
                str | None,
                str | None,
            ]
        ]
        | None
    ):
        """Lease the oldest groups once complete; None if they are not after `timeout` seconds."""

    def ack(self, group_ids: list[int]) -> None:
        """Make the consumption of leased groups durable."""

    def release(self, group_ids: list[int]) -> None:
        """Give leased groups back."""

    def groups(self) -> list[tuple[int, int, int, int, str, str]]:
        """A line about each group that has not been consumed."""

    def stats(self) -> list[tuple[str, int]]:
        """Counts by name."""

    def close(self) -> None:
        """Let the directory go. Further calls are errors."""

# ---- fp8 ------------------------------------------------------------------------------------------

def fp8_quantize_f32(
    w: npt.NDArray[np.float32], block: tuple[int, int], floor: float, ue8m0: bool
) -> tuple[npt.NDArray[np.uint8], npt.NDArray[np.float32]]:
    """Quantise a float32 matrix; gives codes and scales."""

def fp8_quantize_bits(
    w: npt.NDArray[np.uint16], bfloat16: bool, block: tuple[int, int], floor: float, ue8m0: bool
) -> tuple[npt.NDArray[np.uint8], npt.NDArray[np.float32]]:
    """Quantise a matrix of float16 or, with `bfloat16`, bfloat16 bits; gives codes and scales."""

def fp8_dequantize(
    q: npt.NDArray[np.uint8], scale: npt.NDArray[np.float32], block: tuple[int, int]
) -> npt.NDArray[np.float32]:
    """Codes times scales as float32."""

"""Stub of the compiled core, written by hand and checked against it by stubtest."""

import os
from collections.abc import Sequence
from typing import TypeAlias, final

import numpy as np
import numpy.typing as npt
from typing_extensions import Self

__all__ = [
    "CODE_FIELDS",
    "GLM4_SPECIAL_TOKENS",
    "PATTERNS",
    "STOP_TOKENS",
    "TEXT_FIELDS",
    "CoreBestFitStream",
    "CoreChatTemplate",
    "CoreConversation",
    "CoreDecontaminator",
    "CoreDraws",
    "CoreJsonLines",
    "CoreLease",
    "CoreMegatronWriter",
    "CoreQualityClassifier",
    "CoreReplyParser",
    "CoreSamples",
    "CoreShardWriter",
    "CoreShards",
    "CoreStreamDecoder",
    "CoreTokenizer",
    "CoreTrainer",
    "CoreTrajectoryBuffer",
    "DecodeModel",
    "Packing",
    "Pieces",
    "Xxh3",
    "__version__",
    "add_floats",
    "attention_backward_bf16",
    "attention_backward_f32",
    "attention_backward_f64",
    "attention_forward_bf16",
    "attention_forward_f32",
    "attention_forward_f64",
    "balance",
    "code_statistics",
    "decode_draw",
    "decode_linear",
    "detect_language",
    "draw",
    "exact_hashes",
    "fill",
    "fp8_dequantize_bits",
    "fp8_dequantize_f32",
    "fp8_publish",
    "fp8_quantize_bits",
    "fp8_quantize_f32",
    "fp8_receive",
    "group_by_prefix",
    "jaccard",
    "lsh_bands",
    "minhash",
    "near_duplicates",
    "pack_best_fit",
    "pack_concat",
    "pack_documents",
    "parse_reply",
    "render_chat",
    "share_prefixes",
    "shuffled",
    "text_statistics",
]

__version__: str

# ---- tokenizer ------------------------------------------------------------------------------------

GLM4_SPECIAL_TOKENS: list[str]
PATTERNS: dict[str, str]

@final
class CoreTokenizer:
    """A byte-level BPE tokenizer."""

    @staticmethod
    def from_json(text: str) -> CoreTokenizer:
        """Read the text of a tokenizer.json."""

    @staticmethod
    def from_json_file(path: str) -> CoreTokenizer:
        """Read a tokenizer.json."""

    @staticmethod
    def from_tiktoken_file(path: str, pattern: str, special_tokens: list[str]) -> CoreTokenizer:
        """Read a rank file of tiktoken."""

    @staticmethod
    def from_compiled_file(path: str) -> CoreTokenizer:
        """Read the compiled form."""

    def to_json(self) -> str:
        """The text of a tokenizer.json."""

    def to_compiled(self) -> bytes:
        """The compiled form."""

    def encode(self, text: str, parse_special: bool) -> npt.NDArray[np.int32]:
        """Ids of `text`; added tokens in it stay text unless `parse_special`."""

    def encode_to_list(self, text: str, parse_special: bool) -> list[int]:
        """Ids of `text` as a list."""

    def encode_bytes(self, data: bytes) -> npt.NDArray[np.int32]:
        """Ids of bytes of which some may be no UTF-8."""

    def encode_file_part(
        self, path: str, start: int, min_bytes: int, parse_special: bool, num_threads: int
    ) -> tuple[npt.NDArray[np.int32], int]:
        """Ids of a part of a file's text from byte `start` on, and the byte it ends at."""

    def encode_with_offsets(
        self, text: str, parse_special: bool, characters: bool
    ) -> tuple[npt.NDArray[np.int32], npt.NDArray[np.int64]]:
        """Ids of `text` and where each begins and ends in it: in characters if `characters`, else in bytes of UTF-8."""

    def encode_batch(
        self, texts: list[str], parse_special: bool, num_threads: int
    ) -> tuple[npt.NDArray[np.int32], npt.NDArray[np.int64]]:
        """Ids of all texts and the bounds of each."""

    def decode(self, ids: Sequence[int] | npt.NDArray[np.int32], skip_special: bool) -> bytes:
        """Bytes of `ids`, without the tokens flagged special if `skip_special`."""

    def decode_to_text(self, ids: Sequence[int] | npt.NDArray[np.int32], skip_special: bool) -> str:
        """Text of `ids`, bytes that are no UTF-8 as U+FFFD."""

    def decode_batch(
        self,
        ids: Sequence[int] | npt.NDArray[np.int32],
        offsets: npt.NDArray[np.int64],
        skip_special: bool,
    ) -> list[str]:
        """Text of each item of a batch."""

    @property
    def vocab_size(self) -> int:
        """Number of ids, added tokens included."""

    @property
    def added_tokens(self) -> list[tuple[str, int, bool]]:
        """Text, id and flag of each added token."""

    @property
    def template(self) -> tuple[list[int], list[int]]:
        """Ids that the post-processor puts before and after a text."""

    @property
    def patterns(self) -> list[str]:
        """Patterns that split text, in order."""

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

    def __new__(cls, pattern: str, min_frequency: int, max_token_length: int) -> CoreTrainer:
        """A trainer that has seen nothing; `max_token_length` 0 sets no limit."""

    def feed(self, texts: list[str], num_threads: int) -> None:
        """Count the words of `texts`."""

    def feed_file_part(self, path: str, start: int, by_line: bool, num_threads: int) -> int:
        """Count words of a file from byte `start` on; gives the byte to go on from."""

    def merge_up_to(self, num_tokens: int) -> int:
        """Learn until there are `num_tokens` tokens or no pair is left; gives the number of tokens."""

    def finish(self, vocab_size: int, special_tokens: list[str]) -> CoreTokenizer:
        """The tokenizer with `vocab_size` ids, the last of them the special tokens."""

# ---- chat -----------------------------------------------------------------------------------------

STOP_TOKENS: list[str]

_ChatTokens: TypeAlias = tuple[npt.NDArray[np.int32], npt.NDArray[np.uint8]]
_PlainCall: TypeAlias = tuple[str, list[tuple[str, str, bool]]]
_PlainReply: TypeAlias = tuple[str, str, list[_PlainCall], bool]
_PlainEvent: TypeAlias = tuple[str, str, _PlainCall | None]

def render_chat(
    tokenizer: CoreTokenizer,
    messages: str,
    tools: str | None,
    format: str,
    thinking: bool,
    clear_thinking: bool,
    generation_prompt: bool,
) -> _ChatTokens:
    """Ids of a conversation, given as JSON."""

def parse_reply(text: str, in_thinking: bool, tools: str | None) -> _PlainReply:
    """A reply taken apart; `tools` as JSON."""

@final
class CoreConversation:
    """A conversation that only grows."""

    def __new__(cls, tokenizer: CoreTokenizer, format: str, thinking: bool) -> CoreConversation:
        """A conversation in which nobody has spoken."""

    def opening(self, tools: str | None) -> _ChatTokens:
        """Ids before the first message; `tools` as JSON."""

    def add(self, message: str) -> _ChatTokens:
        """Ids of one more message, given as JSON."""

    def prompt(self) -> _ChatTokens:
        """Ids after which a model samples its answer."""

    def add_sampled(self, last_token: str) -> None:
        """Note that a model has sampled an answer, and the token it ended with."""

    def ending(self) -> _ChatTokens:
        """The stop label of a written answer that nothing follows."""

@final
class CoreReplyParser:
    """A reply taken apart while it arrives."""

    def __new__(cls, in_thinking: bool, tools: str | None) -> CoreReplyParser:
        """A parser before the first character; `tools` as JSON."""

    def push(self, text: str) -> list[_PlainEvent]:
        """Take more text and tell what it brings."""

    def finish(self) -> tuple[list[_PlainEvent], _PlainReply]:
        """End the text: what was held back, and the whole reply."""

@final
class CoreChatTemplate:
    """The chat template of any model."""

    def __new__(cls, source: str) -> CoreChatTemplate:
        """Read a template."""

    def render(self, variables: str) -> str:
        """Text of a conversation; `variables` as JSON."""

    def tokens(self, tokenizer: CoreTokenizer, variables: str) -> _ChatTokens:
        """Ids of a conversation; `variables` as JSON."""

# ---- data -----------------------------------------------------------------------------------------

@final
class CoreShardWriter:
    """Writes one shard."""

    def __new__(cls, path: str | os.PathLike[str], vocab_size: int, with_loss_mask: bool) -> CoreShardWriter:
        """Begin a shard."""

    def append(
        self,
        ids: npt.NDArray[np.int32] | npt.NDArray[np.int64],
        loss_mask: npt.NDArray[np.uint8] | None,
        source: int,
        quality: float,
    ) -> None:
        """Add a document."""

    def append_batch(
        self, ids: npt.NDArray[np.int32], offsets: npt.NDArray[np.int64], end: int | None, source: int, quality: float
    ) -> None:
        """Add many documents, each with `end` behind it."""

    def finish(self) -> None:
        """Complete the file and give it its name."""

    def abort(self) -> None:
        """Remove what was written, unless finished."""

    @property
    def num_documents(self) -> int:
        """Number of documents so far."""

    @property
    def num_tokens(self) -> int:
        """Number of tokens so far."""

@final
class CoreShards:
    """Shards of one vocabulary, read as one."""

    def __new__(cls, paths: list[str]) -> CoreShards:
        """Map shards."""

    @staticmethod
    def open_megatron(prefixes: list[str], vocab_size: int) -> CoreShards:
        """Map Megatron data sets."""

    def __len__(self) -> int:
        """Number of documents."""

    @property
    def num_tokens(self) -> int:
        """Number of tokens of all documents."""

    @property
    def vocab_size(self) -> int:
        """Number of ids in the vocabulary."""

    @property
    def has_loss_mask(self) -> bool:
        """Whether a shard says which tokens are learned."""

    def tokens(self, document: int) -> npt.NDArray[np.uint16] | npt.NDArray[np.int32]:
        """Token ids of a document, in place."""

    def loss_mask(self, document: int) -> npt.NDArray[np.uint8]:
        """1 for each token of a document that is learned, 0 for the rest."""

    def source(self, document: int) -> int:
        """Source of a document."""

    def quality(self, document: int) -> float:
        """Quality of a document."""

    def lengths(self) -> npt.NDArray[np.uint32]:
        """Number of tokens of every document."""

    def verify(self) -> None:
        """Check every byte."""

@final
class CoreDraws:
    """Documents drawn from a mixture, and where their tokens are."""

    @property
    def source(self) -> npt.NDArray[np.uint16]:
        """Number of the source of each document."""

    @property
    def document(self) -> npt.NDArray[np.uint64]:
        """Number of each document in its source."""

    @property
    def length(self) -> npt.NDArray[np.uint32]:
        """Number of tokens of each document."""

    def fill(
        self, pieces: Pieces, first_row: int, num_rows: int, capacity: int, pad_id: int, out: _OutArrays | None
    ) -> _BatchArrays:
        """Arrays of some rows of a packing of these documents."""

def draw(
    names: list[str],
    weights: list[float],
    shards: list[CoreShards],
    seed: int,
    min_tokens: int,
    progress: list[tuple[int, int]],
) -> CoreDraws:
    """Documents of a mixture from a state on, until there are enough tokens."""

def shuffled(len: int, seed: int, name: str) -> npt.NDArray[np.uint32]:
    """The numbers below `len` in the order that belongs to a seed and a name."""

@final
class CoreJsonLines:
    """A file of JSON objects with a text each."""

    def __new__(cls, path: str | os.PathLike[str], field: str) -> CoreJsonLines:
        """Map a file."""

    @property
    def num_bytes(self) -> int:
        """Bytes of the file."""

    def encode(
        self, tokenizer: CoreTokenizer, start: int, min_bytes: int, num_threads: int
    ) -> tuple[npt.NDArray[np.int32], npt.NDArray[np.int64], int]:
        """Ids of the texts of the lines from byte `start` on that hold `min_bytes`, their bounds, the byte behind."""

@final
class CoreMegatronWriter:
    """Writes one Megatron data set."""

    def __new__(cls, prefix: str | os.PathLike[str], vocab_size: int) -> CoreMegatronWriter:
        """Begin a data set."""

    def append(self, ids: npt.NDArray[np.int64]) -> None:
        """Add a document."""

    def append_batch(self, ids: npt.NDArray[np.int32], offsets: npt.NDArray[np.int64], end: int | None) -> None:
        """Add many documents, each with `end` behind it."""

    def finish(self) -> None:
        """Complete the files and give them their names."""

    def abort(self) -> None:
        """Remove what was written, unless finished."""

@final
class CoreSamples:
    """Samples of one length from a mixture; sample k is a pure function of the seed and k."""

    def __new__(
        cls, names: list[str], weights: list[float], shards: list[CoreShards], sample_len: int, seed: int
    ) -> CoreSamples:
        """A stream of samples."""

    @property
    def max_deviation(self) -> float:
        """How many samples a source can be off its share."""

    @property
    def samples_per_epoch(self) -> list[int]:
        """Samples of one epoch of each source."""

    def counts(self, k: int) -> list[int]:
        """Samples of each source among the first `k`."""

    def sample(self, k: int) -> tuple[int, int, int]:
        """Source, epoch and first token of sample `k`."""

    def tokens(self, first: int, count: int, len: int, out: npt.NDArray[np.int32] | None) -> npt.NDArray[np.int32]:
        """Ids of some samples, `len` tokens of each."""

    def fill(self, first: int, count: int, pad_id: int, out: _OutArrays | None) -> _BatchArrays:
        """Arrays of some samples, a row each."""

# ---- packing --------------------------------------------------------------------------------------

_BatchArrays: TypeAlias = tuple[
    npt.NDArray[np.int32],
    npt.NDArray[np.int32],
    npt.NDArray[np.int32],
    npt.NDArray[np.uint8],
    npt.NDArray[np.int32],
    int,
]
_OutArrays: TypeAlias = tuple[
    npt.NDArray[np.int32], npt.NDArray[np.int32], npt.NDArray[np.int32], npt.NDArray[np.uint8]
]
_PieceArrays: TypeAlias = tuple[npt.NDArray[np.uint32], npt.NDArray[np.uint32], npt.NDArray[np.uint32]]

@final
class Packing:
    """A row for every document, each whole."""

    @property
    def row_of(self) -> npt.NDArray[np.uint32]:
        """Row of each document."""

    @property
    def order(self) -> npt.NDArray[np.uint32]:
        """Documents by row, then by position in the row."""

    @property
    def row_offsets(self) -> npt.NDArray[np.uint32]:
        """Where each row starts in `order`, and at the end the number of documents."""

    @property
    def num_rows(self) -> int:
        """Number of rows in use."""

@final
class Pieces:
    """Pieces of documents, by row, then by position in the row. No piece is empty."""

    @property
    def doc(self) -> npt.NDArray[np.uint32]:
        """Document of each piece."""

    @property
    def start(self) -> npt.NDArray[np.uint32]:
        """First token of each piece within its document."""

    @property
    def length(self) -> npt.NDArray[np.uint32]:
        """Number of tokens of each piece."""

    @property
    def row_offsets(self) -> npt.NDArray[np.uint32]:
        """Where each row starts among the pieces, and at the end the number of pieces."""

    @property
    def num_rows(self) -> int:
        """Number of rows."""

    @property
    def num_too_long(self) -> int:
        """Documents longer than a row, in the packing that the rows are from."""

    @property
    def num_lost_tokens(self) -> int:
        """Tokens of those that are in no row."""

    def select_rows(self, rows: npt.NDArray[np.uint32]) -> Pieces:
        """The given rows, in the given order."""

def pack_best_fit(lengths: npt.NDArray[np.uint32], capacity: int) -> Packing:
    """Rows by best-fit decreasing."""

def pack_documents(lengths: npt.NDArray[np.uint32], capacity: int, too_long: str) -> Pieces:
    """Rows by best-fit decreasing, longer documents treated as chosen."""

def pack_concat(lengths: npt.NDArray[np.uint32], capacity: int) -> Pieces:
    """Documents end to end, cut at every row's end."""

def balance(costs: npt.NDArray[np.float64], num_ranks: int, equal_counts: bool) -> npt.NDArray[np.uint32]:
    """Rank of each item."""

def fill(
    ids: npt.NDArray[np.int32],
    offsets: npt.NDArray[np.int64],
    loss_mask: npt.NDArray[np.uint8] | None,
    packing: Packing | Pieces,
    capacity: int,
    pad_id: int,
    out: _OutArrays | None,
) -> _BatchArrays:
    """Arrays of all rows of a packing."""

def share_prefixes(
    ids: npt.NDArray[np.int32], offsets: npt.NDArray[np.int64]
) -> tuple[
    npt.NDArray[np.int32],
    npt.NDArray[np.int32],
    npt.NDArray[np.int32],
    npt.NDArray[np.int32],
    npt.NDArray[np.int32],
]:
    """Samples that share prefixes, as trees of tokens."""

def group_by_prefix(ids: npt.NDArray[np.int32], offsets: npt.NDArray[np.int64], capacity: int) -> Packing:
    """Samples by batch, those with common prefixes together."""

@final
class CoreBestFitStream:
    """Packs documents that keep coming."""

    def __new__(cls, capacity: int, window: int, too_long: str, crop: bool) -> CoreBestFitStream:
        """An empty stream."""

    def push(self, lengths: npt.NDArray[np.uint32]) -> Pieces:
        """Add documents; gives the rows that leave the buffer."""

    def finish(self) -> Pieces:
        """The rows of all pieces that wait."""

    def waiting(self) -> _PieceArrays:
        """Pieces in the buffer, from the oldest to the newest."""

    def resume(
        self,
        doc: npt.NDArray[np.uint32],
        start: npt.NDArray[np.uint32],
        length: npt.NDArray[np.uint32],
        next_doc: int,
    ) -> None:
        """Put an empty stream where another was."""

    @property
    def next_doc(self) -> int:
        """Number of the next document, modulo 2^32."""

    def report(self) -> tuple[int, int, int, int, int]:
        """Rows, padding tokens, cropped pieces, lost tokens and documents longer than a row, so far."""

# ---- trajectory -----------------------------------------------------------------------------------

_SampleRow: TypeAlias = tuple[
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
    npt.NDArray[np.int32],
    bytes,
]
_TakenRollout: TypeAlias = tuple[int, float | None, str | None, list[tuple[int, int]]]
_TakenGroup: TypeAlias = tuple[int, str, int, list[_TakenRollout]]

@final
class CoreLease:
    """Groups handed out for training."""

    @property
    def id(self) -> int:
        """Its number."""

    @property
    def policy_version(self) -> int:
        """Version of the trainer that took it."""

    @property
    def group_ids(self) -> list[int]:
        """Numbers of its groups."""

    def samples(self) -> list[_SampleRow]:
        """All rollouts, group by group."""

@final
class CoreTrajectoryBuffer:
    """The buffer of trajectories."""

    def __new__(
        cls,
        directory: str | None,
        capacity: int,
        capacity_tokens: int | None,
        max_staleness: int,
        groups_per_step: int,
        updates_per_step: int,
        order: str,
        pass_reward: float,
        segment_bytes: int,
    ) -> CoreTrajectoryBuffer:
        """The buffer in a directory, or in memory for None."""

    def admit(
        self,
        task: str,
        num_rollouts: int,
        policy_version: int,
        priority: int,
        max_tokens: int | None,
        rollout_timeout: float | None,
        timeout: float | None,
        sync: bool,
    ) -> int:
        """Make a group of rollouts of one task; gives its number. Waits for room up to `timeout` seconds."""

    def room(self, policy_version: int) -> int:
        """How many groups of a version would not be refused for their age."""

    def rollouts(self, group_id: int) -> list[int]:
        """Numbers of a group's rollouts."""

    def append_tokens(
        self,
        rollout_id: int,
        ids: npt.NDArray[np.int32],
        loss_mask: npt.NDArray[np.uint8],
        logprobs: npt.NDArray[np.float32],
        policy_version: int,
        ends_turn: bool,
    ) -> None:
        """Add tokens to a running rollout."""

    def write(
        self,
        ids: npt.NDArray[np.int32],
        loss_mask: npt.NDArray[np.uint8],
        logprobs: npt.NDArray[np.float32],
        rollouts: Sequence[tuple[int, Sequence[tuple[int, int, bool]], float | None, str, bytes]],
    ) -> None:
        """Write whole rollouts, whose tokens lie one after the other in the arrays."""

    def finish(self, rollout_id: int, reward: float, finish_reason: str, extra: bytes, sync: bool) -> None:
        """End a rollout with a reward."""

    def fail(self, rollout_id: int, reason: str, sync: bool) -> None:
        """End a rollout that cannot go on."""

    def restart(self, rollout_id: int) -> None:
        """Drop the tokens of a running rollout."""

    def set_timeout(self, rollout_id: int, timeout: float | None) -> None:
        """Let a running rollout fail if it has not ended in so many seconds from now."""

    def discard(self, group_id: int) -> None:
        """Forget a group that is not leased."""

    def take(
        self, num_groups: int, policy_version: int, timeout: float | None, group_ids: list[int] | None
    ) -> CoreLease | None:
        """Lease a batch once complete, or exactly these groups; None if there is none after `timeout` seconds."""

    def prepare(self, lease_ids: list[int], checkpoint: str) -> None:
        """State that the checkpoint that is about to be completed contains these leases."""

    def ack(self, lease_ids: list[int], checkpoint: str | None) -> None:
        """Make the consumption of leases durable."""

    def release(self, lease_ids: list[int]) -> None:
        """Give leases back."""

    def recover(self, checkpoint: str | None, policy_version: int | None) -> None:
        """Go on from a checkpoint: leases that it contains are consumed, all others given back."""

    def flush(self) -> None:
        """Wait until everything is on disk."""

    def groups(self) -> list[tuple[int, int, int, int, int, str, str]]:
        """A line about each group that has not been consumed."""

    def running(self) -> list[tuple[int, int, int, str]]:
        """Rollout, group, tokens so far and task of each rollout that has not ended."""

    def sample(self, rollout_id: int) -> _SampleRow:
        """A copy of a rollout as it is now."""

    def stats(self) -> tuple[list[tuple[str, int]], list[tuple[int, int]]]:
        """Counts by name, and trained tokens by staleness."""

    def task_stats(self, task: str) -> tuple[int, int, int, float] | None:
        """Attempts, passes, failures and sum of rewards of a task, or None."""

    def tasks(self) -> list[tuple[str, tuple[int, int, int, float]]]:
        """The same of all tasks."""

    def order(self) -> list[tuple[int, str, list[_TakenGroup]]]:
        """Version, checkpoint and groups of each consumed lease, in order."""

    def close(self) -> None:
        """Let the directory go once everything is on disk. Further calls are errors."""

# ---- checksum -------------------------------------------------------------------------------------

@final
class Xxh3:
    """XXH3-128 of the bytes that were given to it."""

    def __new__(cls) -> Self: ...
    def update(self, data: npt.NDArray[np.uint8]) -> None:
        """Add bytes, C-contiguous."""

    def hexdigest(self) -> str:
        """32 hexadecimal digits, as `xxh128sum` prints them."""

# ---- decode ----------------------------------------------------------------------------------------

@final
class DecodeModel:
    """A model whose weights are arrays of somebody else's: see `glmcore.model.decode_ops`."""

    def __new__(
        cls,
        sizes: object,
        embedding: npt.NDArray[np.float32],
        norm: npt.NDArray[np.float32],
        layers: Sequence[object],
    ) -> Self: ...
    def run(
        self,
        step: tuple[
            npt.NDArray[np.int32],
            npt.NDArray[np.int32],
            npt.NDArray[np.int32],
            npt.NDArray[np.int32],
            npt.NDArray[np.int32],
        ],
        angles: tuple[npt.NDArray[np.float32], npt.NDArray[np.float32]],
        caches: Sequence[tuple[npt.NDArray[np.float32], npt.NDArray[np.float32]]],
        out: npt.NDArray[np.float32],
        chosen: npt.NDArray[np.uint16] | None,
    ) -> None:
        """Ids, bounds, lengths, tables, wanted rows; cosines, sines; caches; hidden states; experts, if wanted."""

def decode_linear(
    weight: npt.NDArray[np.float32], inputs: int, x: npt.NDArray[np.float32], out: npt.NDArray[np.float32]
) -> None:
    """`out = x weight^T`, where no row knows of the others."""

def decode_draw(
    scores: npt.NDArray[np.float32],
    wishes: tuple[
        npt.NDArray[np.float32],
        npt.NDArray[np.int64],
        npt.NDArray[np.float32],
        npt.NDArray[np.float32],
        npt.NDArray[np.float64],
    ],
    tokens: npt.NDArray[np.int64],
    logprobs: npt.NDArray[np.float32],
) -> None:
    """A token of each row of `scores`, flat `[B * V]`, and its log-probability at the row's temperature.

    Rows whose scores are no distribution get token 0 and NaN.

    Args:
        scores: Of the next tokens.
        wishes: Temperature, top_k, top_p, min_p and a random number of each row.
        tokens: Becomes the tokens, [B].
        logprobs: Becomes their log-probabilities, [B].

    Raises:
        ValueError: Sizes do not fit.
    """

# ---- attention -------------------------------------------------------------------------------------

_Batch: TypeAlias = tuple[npt.NDArray[np.int32], tuple[int, int, int], int]
"""Bounds of the documents; heads, key-value heads and channels; threads."""

def attention_forward_f32(
    inputs: tuple[npt.NDArray[np.float32], npt.NDArray[np.float32], npt.NDArray[np.float32]],
    batch: _Batch,
    out: npt.NDArray[np.float32],
    log_sum: npt.NDArray[np.float32],
) -> None:
    """Attention within documents: query, key and value, the batch, the result and its logarithms."""

def attention_backward_f32(
    inputs: tuple[
        npt.NDArray[np.float32],
        npt.NDArray[np.float32],
        npt.NDArray[np.float32],
        npt.NDArray[np.float32],
        npt.NDArray[np.float32],
    ],
    log_sum: npt.NDArray[np.float32],
    batch: _Batch,
    grads: tuple[npt.NDArray[np.float32], npt.NDArray[np.float32], npt.NDArray[np.float32]],
) -> None:
    """Its gradients: query, key, value, result and the result's gradient; logarithms; the batch; the gradients."""

def attention_forward_f64(
    inputs: tuple[npt.NDArray[np.float64], npt.NDArray[np.float64], npt.NDArray[np.float64]],
    batch: _Batch,
    out: npt.NDArray[np.float64],
    log_sum: npt.NDArray[np.float64],
) -> None:
    """Attention within documents: query, key and value, the batch, the result and its logarithms."""

def attention_backward_f64(
    inputs: tuple[
        npt.NDArray[np.float64],
        npt.NDArray[np.float64],
        npt.NDArray[np.float64],
        npt.NDArray[np.float64],
        npt.NDArray[np.float64],
    ],
    log_sum: npt.NDArray[np.float64],
    batch: _Batch,
    grads: tuple[npt.NDArray[np.float64], npt.NDArray[np.float64], npt.NDArray[np.float64]],
) -> None:
    """Its gradients: query, key, value, result and the result's gradient; logarithms; the batch; the gradients."""

def attention_forward_bf16(
    inputs: tuple[npt.NDArray[np.uint16], npt.NDArray[np.uint16], npt.NDArray[np.uint16]],
    batch: _Batch,
    out: npt.NDArray[np.uint16],
    log_sum: npt.NDArray[np.float32],
) -> None:
    """Attention within documents: query, key and value, the batch, the result and its logarithms."""

def attention_backward_bf16(
    inputs: tuple[
        npt.NDArray[np.uint16],
        npt.NDArray[np.uint16],
        npt.NDArray[np.uint16],
        npt.NDArray[np.uint16],
        npt.NDArray[np.uint16],
    ],
    log_sum: npt.NDArray[np.float32],
    batch: _Batch,
    grads: tuple[npt.NDArray[np.uint16], npt.NDArray[np.uint16], npt.NDArray[np.uint16]],
) -> None:
    """Its gradients: query, key, value, result and the result's gradient; logarithms; the batch; the gradients."""

# ---- fp8 ------------------------------------------------------------------------------------------

_Fp8Request: TypeAlias = tuple[tuple[int, int], float, bool, bool]

def fp8_quantize_f32(
    w: npt.NDArray[np.float32], q: npt.NDArray[np.uint8], scale: npt.NDArray[np.float32], request: _Fp8Request
) -> None:
    """Quantise a float32 matrix."""

def fp8_quantize_bits(
    w: npt.NDArray[np.uint16],
    bfloat16: bool,
    q: npt.NDArray[np.uint8],
    scale: npt.NDArray[np.float32],
    request: _Fp8Request,
) -> None:
    """Quantise a matrix of float16 or, with `bfloat16`, bfloat16 bits."""

def fp8_dequantize_f32(
    q: npt.NDArray[np.uint8], scale: npt.NDArray[np.float32], block: tuple[int, int], out: npt.NDArray[np.float32]
) -> None:
    """Codes times scales into a float32 matrix."""

def fp8_dequantize_bits(
    q: npt.NDArray[np.uint8],
    scale: npt.NDArray[np.float32],
    block: tuple[int, int],
    bfloat16: bool,
    out: npt.NDArray[np.uint16],
) -> None:
    """Codes times scales into a matrix of float16 or, with `bfloat16`, bfloat16 bits."""

def fp8_publish(
    matrices: Sequence[
        tuple[npt.NDArray[np.float32] | npt.NDArray[np.uint16], npt.NDArray[np.uint8], npt.NDArray[np.float32], Xxh3]
    ],
    block: tuple[int, int],
    ue8m0: bool,
) -> tuple[int, int, str] | None:
    """Quantise matrices and add what their codes mean to checksums.

    Gives the place of what cannot be quantised: number of the matrix, first row of the part, and why.
    """

def fp8_receive(
    matrices: Sequence[
        tuple[npt.NDArray[np.uint8], npt.NDArray[np.float32], npt.NDArray[np.float32] | npt.NDArray[np.uint16]]
    ],
    block: tuple[int, int],
) -> None:
    """Turn codes and scales into bfloat16 values, in the targets' types."""

def add_floats(arrays: Sequence[tuple[npt.NDArray[np.float32] | npt.NDArray[np.uint16], Xxh3]]) -> None:
    """Add the float32 values of arrays to checksums."""

# ---- cleaning -------------------------------------------------------------------------------------

TEXT_FIELDS: list[str]
CODE_FIELDS: list[str]

def text_statistics(texts: Sequence[str], num_threads: int) -> npt.NDArray[np.float64]:
    """Numbers about prose, one row for each text and one column for each of `TEXT_FIELDS`."""

def code_statistics(texts: Sequence[str], num_threads: int) -> npt.NDArray[np.float64]:
    """Numbers about source files, one row for each text and one column for each of `CODE_FIELDS`."""

def detect_language(texts: Sequence[str], num_threads: int) -> tuple[list[str], list[str], npt.NDArray[np.float64]]:
    """Language and script of each text."""

def exact_hashes(texts: Sequence[str], num_threads: int) -> npt.NDArray[np.uint64]:
    """Upper and lower half of the 128-bit hash of each text."""

def minhash(
    texts: Sequence[str], num_permutations: int, shingle: int, seed: int, num_threads: int
) -> npt.NDArray[np.uint32]:
    """`MinHash` signature of each text."""

def near_duplicates(
    signatures: npt.NDArray[np.uint32],
    threshold: float,
    bands: tuple[int, int] | None,
    quality: npt.NDArray[np.float64] | None,
    ids: npt.NDArray[np.uint64] | None,
    texts: Sequence[str] | None,
    shingle: int,
    num_threads: int,
) -> npt.NDArray[np.uint32]:
    """Text that is kept in place of each text."""

def lsh_bands(num_permutations: int, threshold: float) -> tuple[int, int, float]:
    """Number of bands and rows for a threshold, and the probability that a pair at the threshold is compared."""

def jaccard(a: str, b: str, shingle: int) -> float:
    """Exact Jaccard similarity of the shingles of two texts."""

@final
class CoreDecontaminator:
    """Runs of tokens of evaluation texts."""

    def __new__(cls, texts: Sequence[str], letters: bool, ngram: int, min_units: int) -> CoreDecontaminator: ...
    @property
    def num_skipped(self) -> int:
        """Evaluation texts that were too short."""

    @property
    def num_runs(self) -> int:
        """Number of different runs."""

    def overlaps(
        self, texts: Sequence[str], num_threads: int
    ) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.int64], npt.NDArray[np.int64]]:
        """Share of each text inside shared runs, and where they are, in characters."""

@final
class CoreQualityClassifier:
    """A linear classifier over hashed runs of tokens."""

    @staticmethod
    def train(
        texts: Sequence[str],
        labels: npt.NDArray[np.bool_],
        table_bits: int,
        max_run: int,
        epochs: int,
        learning_rate: float,
        seed: int,
        num_threads: int,
    ) -> CoreQualityClassifier:
        """Learn from texts labelled true or false."""

    @staticmethod
    def from_bytes(data: bytes) -> CoreQualityClassifier:
        """Read the form of `to_bytes`."""

    def to_bytes(self) -> bytes:
        """Bytes to save."""

    def scores(self, texts: Sequence[str], num_threads: int) -> npt.NDArray[np.float64]:
        """Likelihood of the label true for each text."""

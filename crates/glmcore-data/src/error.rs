//! Everything that can go wrong with shards and mixtures.

use std::io;
use std::path::PathBuf;

/// Why a shard cannot be written or read, or a mixture not sampled.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
#[expect(missing_docs, reason = "the messages name every field")]
pub enum Error {
    /// The operating system refused.
    #[error("cannot {action} {}: {source}", path.display())]
    Io { action: &'static str, path: PathBuf, source: io::Error },
    /// Another kind of file.
    #[error("{} is not a token shard: its first bytes are not GLMTOKEN", path.display())]
    NotAShard { path: PathBuf },
    /// A shard of a later format.
    #[error("{} has format version {version}, this build reads version {}", path.display(), crate::VERSION)]
    Version { path: PathBuf, version: u32 },
    /// Fewer or more bytes than the header announces.
    #[error("{} has {len} bytes, a complete file has {expected}: it was cut short or written over", path.display())]
    Truncated { path: PathBuf, len: u64, expected: u64 },
    /// A line that is no record.
    #[error("{}:{line}: {problem}", path.display())]
    Line { path: PathBuf, line: usize, problem: String },
    /// Bytes that no writer leaves.
    #[error("{} is damaged at {place}: {problem}", path.display())]
    Corrupt { path: PathBuf, place: String, problem: String },
    /// Shards read as one must share a vocabulary.
    #[error("{} has a vocabulary of {vocab_size}, the shards before it of {expected}", path.display())]
    VocabMismatch { path: PathBuf, vocab_size: u32, expected: u32 },
    /// A vocabulary size that ids in 31 bits cannot have.
    #[error("vocab_size is {vocab_size}, it must be between 1 and {}", crate::MAX_VOCAB_SIZE)]
    VocabSize { vocab_size: u32 },
    /// An id outside the vocabulary.
    #[error("document {document} has id {id} at position {position}, ids must be from 0 to {}", vocab_size - 1)]
    IdOutOfRange { document: u64, position: usize, id: i64, vocab_size: u32 },
    /// A document whose length does not fit 32 bits.
    #[error("document {document} has {len} tokens, at most {} fit", u32::MAX)]
    DocumentTooLong { document: u64, len: usize },
    /// A loss mask that does not pair with the ids, or is missing, or is not wanted.
    #[error("document {document} has {mask} loss mask entries for {len} tokens")]
    LossMaskLength { document: u64, mask: usize, len: usize },
    /// A loss mask for a shard that was created without.
    #[error(
        "document {document} has a loss mask, but the shard was created without: pass with_loss_mask"
    )]
    UnwantedLossMask { document: u64 },
    /// No such document.
    #[error("document {document} does not exist, there are {num_documents}")]
    NoSuchDocument { document: u64, num_documents: u64 },
    /// Tokens past the end of a document.
    #[error("document {document} has {len} tokens, there are no tokens {start} to {end}")]
    NoSuchTokens { document: u64, len: u64, start: u64, end: u64 },
    /// Tokens past the end of a file or source.
    #[error("there are no tokens {first} to {end}, there are {num_tokens}")]
    NoTokensThere { first: u64, end: u64, num_tokens: u64 },
    /// Another kind of file where a Megatron index should be.
    #[error("{} is not a Megatron index: its first bytes are not MMIDIDX", path.display())]
    NotMegatron { path: PathBuf },
    /// A Megatron data set of values that are no token ids.
    #[error("{} has dtype code {code}: only 4 (int32) and 8 (uint16) hold token ids", path.display())]
    TokenType { path: PathBuf, code: u8 },
    /// A sample of no tokens, or of more than int32 numbers.
    #[error("sample_len is {sample_len}, it must be from 1 to {}", i32::MAX)]
    SampleLength { sample_len: u32 },
    /// A source that cannot fill one sample.
    #[error("source {name:?} has {num_tokens} tokens, fewer than one sample of {sample_len}")]
    SourceTooShort { name: String, num_tokens: u64, sample_len: u32 },
    /// A mixture or a set of shards of nothing.
    #[error("no {what} are given, at least one is needed")]
    Nothing { what: &'static str },
    /// More sources than 16 bits number.
    #[error("{count} sources are more than the {} of one mixture", u16::MAX)]
    TooManySources { count: usize },
    /// A weight that is no share.
    #[error("source {name:?} has weight {weight}, it must be finite and above 0")]
    Weight { name: String, weight: f64 },
    /// Two sources that would be told apart by nothing.
    #[error("two sources are named {name:?}")]
    SameName { name: String },
    /// A source that can never give a token.
    #[error("source {name:?} has no tokens")]
    EmptySource { name: String },
    /// A state of another mixture.
    #[error("the state is of {given} sources, the mixture has {expected}")]
    Progress { given: usize, expected: usize },
}

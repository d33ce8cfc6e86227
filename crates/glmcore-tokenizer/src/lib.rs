//! Byte-level byte-pair encoding in the GLM-4 format: train, encode, decode.
//!
//! Ids are those of Hugging Face `tokenizers` for the same `tokenizer.json`. Text never turns into a special token
//! unless the caller asks for it.
//!
//! ```
//! use glmcore_tokenizer::{Special, Tokenizer, Trainer};
//!
//! let mut trainer = Trainer::new();
//! trainer.feed(&["low lower lowest", "new newer newest"], 1);
//! let tokenizer = Tokenizer::from_training(&trainer.finish(270)?, &["<|user|>"])?;
//! let ids = tokenizer.encode("a newer <|user|>", Special::AsText);
//! assert_eq!(tokenizer.decode(&ids)?, b"a newer <|user|>");
//! # Ok::<(), glmcore_tokenizer::Error>(())
//! ```
#![deny(unsafe_code)]
#![warn(missing_docs)]
#![expect(
    clippy::cast_possible_truncation,
    reason = "ids are below 2^20, places in a text are checked where they are stored in 32 bits, hashes are cut on purpose"
)]
#![expect(
    clippy::inline_always,
    reason = "the hot path is compiled once for each set of instructions, and only what is inlined takes part"
)]

mod added;
mod batch;
mod bpe;
mod byte_level;
mod cache;
mod characters;
mod count;
mod decode;
mod encode;
mod file;
mod hash;
mod key;
mod learn;
mod long;
mod memory;
mod merges;
mod normalize;
mod prefetch;
mod split;
mod threads;
mod tokenizer;
mod train;
mod unicode;
mod vocabulary;
mod words;

use std::path::PathBuf;

pub use added::AddedToken;
pub use batch::EncodedBatch;
pub use decode::StreamDecoder;
pub use encode::IdsAndSpans;
pub use file::{GLM4_SPECIAL_TOKENS, NUM_SPECIAL_FLAGGED};
pub use learn::Merger;
pub use split::{
    CL100K_PATTERN, DEEPSEEK_PATTERNS, GLM4_PATTERN, GPT2_PATTERN, O200K_PATTERN, QWEN2_PATTERN,
};
pub use tokenizer::{Special, Template, TokenId, Tokenizer, split};
pub use train::{Limits, Trainer, Training};

/// Why a tokenizer cannot be loaded, trained or used.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// A tokenizer.json is no JSON of the expected shape.
    #[error("not a tokenizer.json: {0}")]
    NotATokenizer(#[from] serde_json::Error),
    /// A tokenizer.json asks for something that this crate cannot do exactly.
    #[error("{component} is not supported: {value}")]
    #[expect(missing_docs, reason = "the message names every field")]
    Unsupported { component: &'static str, value: String },
    /// A file cannot be opened or read.
    #[error("cannot read {}: {source}", path.display())]
    #[expect(missing_docs, reason = "the message names every field")]
    File { path: PathBuf, source: std::io::Error },
    /// A file is larger than any tokenizer.
    #[error("{} has {size} bytes, more than the {limit} that a tokenizer may have", path.display())]
    #[expect(missing_docs, reason = "the message names every field")]
    FileTooLarge { path: PathBuf, size: u64, limit: u64 },
    /// A file is not text.
    #[error("{}: no UTF-8 text at byte {at}", path.display())]
    #[expect(missing_docs, reason = "the message names every field")]
    NotUtf8 { path: PathBuf, at: usize },
    /// A compiled tokenizer is not what was written.
    #[error("damaged compiled tokenizer: {0}")]
    Damaged(&'static str),
    /// The vocabulary or the merges of a tokenizer.json contradict themselves.
    #[error("inconsistent vocabulary: {0}")]
    Inconsistent(String),
    /// An id lies outside the vocabulary.
    #[error("token id {id} at position {position} is outside the vocabulary of {vocab_size}")]
    #[expect(missing_docs, reason = "the message names every field")]
    UnknownId { id: u32, position: usize, vocab_size: usize },
    /// The text holds too few distinct pairs for the vocabulary.
    #[error(
        "the text allows {possible} merges, {wanted} are needed: give more text or a smaller vocabulary"
    )]
    #[expect(missing_docs, reason = "the message names every field")]
    TooLittleText { possible: usize, wanted: usize },
    /// The vocabulary has no room for the 256 bytes and the special tokens.
    #[error(
        "a vocabulary of {vocab_size} has no room for 256 bytes and {num_special} special tokens"
    )]
    #[expect(missing_docs, reason = "the message names every field")]
    VocabularyTooSmall { vocab_size: usize, num_special: usize },
}

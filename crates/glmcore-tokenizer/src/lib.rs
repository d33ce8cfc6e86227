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
#![forbid(unsafe_code)]
#![warn(missing_docs)]

mod batch;
mod bpe;
mod byte_level;
mod decode;
mod file;
mod pretokenize;
mod special;
mod tokenizer;
mod train;

pub use batch::{EncodedBatch, encode_batch};
pub use decode::StreamDecoder;
pub use file::{GLM4_SPECIAL_TOKENS, NUM_SPECIAL_FLAGGED};
pub use pretokenize::{GLM4_PATTERN, pretokens};
pub use tokenizer::{AddedToken, Special, TokenId, Tokenizer};
pub use train::{Merger, Trainer, Training};

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

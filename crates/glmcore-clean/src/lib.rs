//! Cleaning of text corpora: numbers about texts, their language and quality, copies, and overlap with evaluation sets.
//!
//! Texts in, numbers out: [`text_statistics`] and [`code_statistics`] count what the published filters look at,
//! [`detect_language`] names language and script, [`QualityClassifier`] learns a score from labelled texts,
//! [`exact_hashes`], [`minhash`] and [`near_duplicates`] find copies, [`Decontaminator`] finds evaluation texts inside
//! training texts. Every function takes a batch and a number of threads, and the result does not depend on that number.
//! Time is linear in the bytes of the texts and memory per thread is bounded, whatever the texts hold.
//!
//! ```
//! use glmcore_clean::{Copies, MinHash, minhash, near_duplicates};
//!
//! let story = "It was a bright cold day in April, and the clocks were striking thirteen. ".repeat(9);
//! let texts = [story.clone() + "Winston", "Something else, of which there is one copy only.".into(), story];
//! let signatures = minhash(&texts, &MinHash::new(128, 5, 1)?, 1);
//! let copies = near_duplicates(&signatures, &Copies::new(128, 0.8)?, 1)?;
//! assert_eq!(copies, [0, 1, 0]); // the text that each is a copy of
//! # Ok::<(), glmcore_clean::Error>(())
//! ```
#![deny(unsafe_code)]
#![warn(missing_docs)]

mod characters;
mod classifier;
mod code;
mod decontaminate;
mod exact;
mod hash;
mod instructions;
mod language;
mod lsh;
mod minhash;
mod repetition;
mod statistics;
mod table;
mod threads;
mod tokens;

pub use classifier::{QualityClassifier, Training};
pub use code::{CODE_FIELDS, code_statistics};
pub use decontaminate::{Decontaminator, Overlaps, Unit};
pub use exact::exact_hashes;
pub use language::{Language, detect_language};
pub use lsh::{Clustering, Copies, near_duplicates};
pub use minhash::{MinHash, jaccard, minhash};
pub use repetition::MAX_WORDS;
pub use statistics::{TEXT_FIELDS, text_statistics};

/// Why texts cannot be cleaned as asked.
#[derive(Debug, Clone, PartialEq, thiserror::Error)]
#[non_exhaustive]
#[expect(missing_docs, reason = "the messages name every field")]
pub enum Error {
    /// A setting outside what the method can do.
    #[error("{name} is {value}, it must be {range}")]
    Setting { name: &'static str, value: String, range: &'static str },
    /// Arrays that do not pair up.
    #[error("{name} has {len} entries, {expected} are needed")]
    Length { name: &'static str, len: usize, expected: usize },
    /// Texts of one label only: there is nothing to tell apart.
    #[error("labels must hold both true and false, all {count} are {label}")]
    OneLabel { count: usize, label: bool },
    /// Bytes that are no saved classifier.
    #[error("not a saved quality classifier: {problem}")]
    NotAClassifier { problem: String },
    /// A number that cannot be compared.
    #[error("{name} {index} is {value}, it must be finite")]
    NotFinite { name: &'static str, index: usize, value: f64 },
    /// Two texts with one id leave the order open.
    #[error("id {id} is given to more than one text")]
    RepeatedId { id: u64 },
}

/// The error for a setting.
fn setting(name: &'static str, value: impl std::fmt::Display, range: &'static str) -> Error {
    Error::Setting { name, value: value.to_string(), range }
}

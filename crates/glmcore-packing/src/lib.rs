//! Sequence packing: choose a row of a `[rows, capacity]` batch for every document.
//!
//! Lengths in, row numbers out: [`pack_best_fit`] keeps documents whole, [`pack_documents`] first does
//! what the caller chose with those longer than a row, [`BestFitStream`] packs documents that never end,
//! [`pack_concat`] lays them end to end and cuts at every row's end, [`balance`] shares work between
//! ranks. [`fill`] then turns rows into the arrays that a training step reads. [`PrefixForest`] lays out
//! samples that share prefixes. Every function is deterministic: same input, same packing, on every
//! machine.
//!
//! ```
//! let packing = glmcore_packing::pack_best_fit(&[5, 3, 4, 4], 8)?;
//! assert_eq!(packing.row_of(), [0, 0, 1, 1]);
//! assert_eq!(packing.row(1), [2, 3]);
//! # Ok::<(), glmcore_packing::Error>(())
//! ```
#![forbid(unsafe_code)]
#![warn(missing_docs)]

mod balance;
mod batch;
mod best_fit;
mod concat;
mod exchange;
mod pieces;
mod prefix;
mod ragged;
mod stream;
mod too_long;

pub use balance::balance;
pub use batch::{BatchArrays, Bounds, IGNORED_LABEL, PackedBatch, fill, fill_into};
pub use best_fit::{Packing, pack_best_fit, pack_documents};
pub use concat::pack_concat;
pub use pieces::{Piece, Pieces};
pub use prefix::{PrefixForest, group_by_prefix};
pub use ragged::Ragged;
pub use stream::{BestFitStream, StreamReport};
pub use too_long::{Loss, TooLong};

/// Longest row that can be packed: 16,777,216 tokens. The tables of best fit have one entry per
/// possible length, 8 bytes each, so this bounds them at 128 MiB.
pub const MAX_CAPACITY: u32 = 1 << 24;

/// Why documents cannot be packed.
#[derive(Debug, Clone, PartialEq, thiserror::Error)]
#[non_exhaustive]
#[expect(missing_docs, reason = "the messages name every field")]
pub enum Error {
    /// The row length is zero or past [`MAX_CAPACITY`].
    #[error("capacity is {capacity}, it must be between 1 and {MAX_CAPACITY}")]
    Capacity { capacity: u32 },
    /// A document does not fit an empty row. Split or truncate it before packing.
    #[error("document {index} has {len} tokens, more than the row capacity of {capacity}")]
    DocumentTooLong { index: usize, len: u32, capacity: u32 },
    /// More documents, pieces or rows than a 32-bit number can count.
    #[error("{count} {what} are more than the {} that one packing can hold", u32::MAX - 1)]
    TooMany { what: &'static str, count: u64 },
    /// A row number past the end.
    #[error("row {row} does not exist, there are {num_rows}")]
    NoSuchRow { row: u64, num_rows: usize },
    /// A row of the packing was made for longer rows.
    #[error("row {row} holds {tokens} tokens, more than the row capacity of {capacity}")]
    RowOverflow { row: usize, tokens: u64, capacity: u32 },
    /// The batch has too many tokens for int32 document bounds.
    #[error(
        "{num_rows} rows of {capacity} tokens are more than the {} tokens of one batch",
        i32::MAX
    )]
    BatchTooLarge { num_rows: usize, capacity: u32 },
    /// The packing was made for other documents than the ones given.
    #[error(
        "document {doc} has {len} tokens here, but the packing reads tokens {start} to {end} of it"
    )]
    PieceOutsideDocument { doc: u32, len: u64, start: u64, end: u64 },
    /// The packing was made for another number of documents.
    #[error("the packing is of {packed} documents, but {given} are given")]
    DocumentCount { packed: usize, given: usize },
    /// Document bounds that do not start at 0, go down, or miss the end of the tokens.
    #[error("offsets must rise from 0 to the {num_tokens} tokens, but offset {index} is {offset}")]
    Offsets { index: usize, offset: i64, num_tokens: usize },
    /// No offsets at all: even no documents have the one offset 0.
    #[error("offsets are empty, they must start with 0")]
    NoOffsets,
    /// A loss mask that does not pair with the tokens.
    #[error("loss_mask has {mask} entries for {num_tokens} tokens")]
    LossMask { mask: usize, num_tokens: usize },
    /// Arrays that the batch does not fit.
    #[error("out.{array} has {len} entries, the batch has {num_tokens} tokens")]
    OutLength { array: &'static str, len: usize, num_tokens: usize },
    /// A buffer that cannot work: no piece, too many, or more waiting than it holds.
    #[error("a window of {window} pieces cannot hold them, it must be from 1 to {}", u32::MAX - 1)]
    Window { window: u32 },
    /// A cost that cannot be added up.
    #[error("cost {index} is {cost}, it must be finite and not negative")]
    Cost { index: usize, cost: f64 },
    /// Work cannot be shared between no ranks.
    #[error("num_ranks is 0, it must be at least 1")]
    NoRanks,
}

/// Refuses row lengths that no packing can have.
fn check_capacity(capacity: u32) -> Result<(), Error> {
    if (1..=MAX_CAPACITY).contains(&capacity) { Ok(()) } else { Err(Error::Capacity { capacity }) }
}

/// `count` as a 32-bit number; `u32::MAX` itself stays free as a mark.
fn count32(what: &'static str, count: u64) -> Result<u32, Error> {
    u32::try_from(count).ok().filter(|&n| n < u32::MAX).ok_or(Error::TooMany { what, count })
}

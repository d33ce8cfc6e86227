//! What happens to documents longer than a row.

use crate::{Error, Piece, count32};

/// The caller's choice for documents longer than a row.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum TooLong {
    /// Refuse to pack.
    Error,
    /// Cut into pieces of a whole row and one rest; nothing is lost.
    Split,
    /// Keep the first row's worth of tokens.
    Truncate,
    /// Leave the document out.
    Drop,
}

/// What became of documents longer than a row.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Loss {
    /// Documents longer than a row.
    pub num_too_long: u32,
    /// Their tokens that are in no row.
    pub num_lost_tokens: u64,
}

impl TooLong {
    /// Pieces of a document that are no longer than a row, in order, and how many tokens are lost. An
    /// empty document has no piece.
    pub(crate) fn cut(
        self,
        doc: u32,
        len: u32,
        capacity: u32,
    ) -> (impl Iterator<Item = Piece>, u32) {
        let kept = match self {
            Self::Truncate => len.min(capacity),
            Self::Drop | Self::Error if len > capacity => 0,
            Self::Split | Self::Drop | Self::Error => len,
        };
        let pieces = (0..kept.div_ceil(capacity)).map(move |i| {
            let start = i * capacity;
            Piece { doc, start, len: capacity.min(kept - start) }
        });
        (pieces, len - kept)
    }
}

/// Pieces of all documents, none longer than a row.
///
/// # Errors
///
/// [`Error::DocumentTooLong`] where that is the caller's choice, [`Error::TooMany`].
pub(crate) fn cut_all(
    lengths: &[u32],
    capacity: u32,
    too_long: TooLong,
) -> Result<(Vec<Piece>, Loss), Error> {
    count32("documents", lengths.len() as u64)?;
    if too_long == TooLong::Error {
        check_lengths(lengths, capacity)?;
    }
    let total = lengths.iter().map(|&len| u64::from(len.div_ceil(capacity))).sum();
    count32("pieces", total)?;
    let mut loss = Loss::default();
    let mut cut = Vec::with_capacity(lengths.len());
    for (doc, &len) in (0..).zip(lengths) {
        let (pieces, num_lost) = too_long.cut(doc, len, capacity);
        cut.extend(pieces);
        loss.num_too_long += u32::from(len > capacity);
        loss.num_lost_tokens += u64::from(num_lost);
    }
    Ok((cut, loss))
}

/// Refuses documents longer than a row.
pub(crate) fn check_lengths(lengths: &[u32], capacity: u32) -> Result<(), Error> {
    match lengths.iter().position(|&len| len > capacity) {
        Some(index) => Err(Error::DocumentTooLong { index, len: lengths[index], capacity }),
        None => Ok(()),
    }
}

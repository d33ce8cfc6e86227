//! Rows of pieces as the flat arrays that a training step reads.

use std::ops::Range;

use crate::{Error, Piece, Pieces, check_capacity};

/// Label of a token that the loss leaves out.
pub const IGNORED_LABEL: i32 = -100;

/// `num_rows` rows of `capacity` tokens, row after row. Every array but `cu_seqlens` has one entry per
/// token.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PackedBatch {
    /// Token ids; the padding id behind the last piece of a row.
    pub input_ids: Vec<i32>,
    /// The next token of the same piece, or [`IGNORED_LABEL`]: where the next token is not learned, at a
    /// piece's last token, and on padding.
    pub labels: Vec<i32>,
    /// Place in the piece, from 0; padding counts as a piece.
    pub position_ids: Vec<i32>,
    /// 1 where the token itself is learned; 0 on padding.
    pub loss_mask: Vec<u8>,
    /// Bounds of every piece in the flat arrays, from 0 to their length; a row's padding is one piece.
    pub cu_seqlens: Vec<i32>,
    /// Length of the longest piece, padding included; 0 for no rows.
    pub max_seqlen: i32,
}

/// Fills `rows` of `pieces` into the arrays of one batch.
///
/// `copy` writes the token ids of a piece and, for each, whether it is learned (0 or not).
///
/// ```
/// use glmcore_packing::{Ragged, fill, pack_best_fit};
///
/// let documents = Ragged::new(&[5, 6, 7, 8, 9], &[0, 3, 5], None)?;
/// let lengths = documents.lengths()?;
/// let pieces = pack_best_fit(&lengths, 6)?.pieces(&lengths)?;
/// let batch = fill(&pieces, 0..1, 6, 0, |piece, ids, mask| documents.copy(piece, ids, mask))?;
/// assert_eq!(batch.input_ids, [5, 6, 7, 8, 9, 0]);
/// assert_eq!(batch.labels, [6, 7, -100, 9, -100, -100]);
/// assert_eq!(batch.cu_seqlens, [0, 3, 5, 6]);
/// # Ok::<(), glmcore_packing::Error>(())
/// ```
///
/// # Errors
///
/// What `copy` gives, and [`Error::NoSuchRow`], [`Error::RowOverflow`], [`Error::Capacity`],
/// [`Error::BatchTooLarge`].
pub fn fill<E: From<Error>>(
    pieces: &Pieces,
    rows: Range<usize>,
    capacity: u32,
    pad_id: i32,
    copy: impl FnMut(Piece, &mut [i32], &mut [u8]) -> Result<(), E>,
) -> Result<PackedBatch, E> {
    let num_tokens = check_rows(pieces, &rows, capacity)?;
    let mut input_ids = vec![0; num_tokens];
    let mut labels = vec![0; num_tokens];
    let mut position_ids = vec![0; num_tokens];
    let mut loss_mask = vec![0; num_tokens];
    let mut out = BatchArrays {
        input_ids: &mut input_ids,
        labels: &mut labels,
        position_ids: &mut position_ids,
        loss_mask: &mut loss_mask,
    };
    let Bounds { cu_seqlens, max_seqlen } =
        fill_into(pieces, rows, capacity, pad_id, &mut out, copy)?;
    Ok(PackedBatch { input_ids, labels, position_ids, loss_mask, cu_seqlens, max_seqlen })
}

/// Memory that a batch is written to, one entry per token.
#[derive(Debug)]
pub struct BatchArrays<'a> {
    /// See [`PackedBatch::input_ids`].
    pub input_ids: &'a mut [i32],
    /// See [`PackedBatch::labels`].
    pub labels: &'a mut [i32],
    /// See [`PackedBatch::position_ids`].
    pub position_ids: &'a mut [i32],
    /// See [`PackedBatch::loss_mask`].
    pub loss_mask: &'a mut [u8],
}

/// Where the pieces of a batch lie.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Bounds {
    /// See [`PackedBatch::cu_seqlens`].
    pub cu_seqlens: Vec<i32>,
    /// See [`PackedBatch::max_seqlen`].
    pub max_seqlen: i32,
}

/// [`fill`] into memory of the caller, such as pinned memory; every entry is written, whatever it held.
///
/// # Errors
///
/// Those of [`fill`], and [`Error::OutLength`]; what was written before an error is left.
pub fn fill_into<E: From<Error>>(
    pieces: &Pieces,
    rows: Range<usize>,
    capacity: u32,
    pad_id: i32,
    out: &mut BatchArrays<'_>,
    mut copy: impl FnMut(Piece, &mut [i32], &mut [u8]) -> Result<(), E>,
) -> Result<Bounds, E> {
    let num_tokens = check_rows(pieces, &rows, capacity)?;
    for (array, len) in [
        ("input_ids", out.input_ids.len()),
        ("labels", out.labels.len()),
        ("position_ids", out.position_ids.len()),
        ("loss_mask", out.loss_mask.len()),
    ] {
        if len != num_tokens {
            return Err(Error::OutLength { array, len, num_tokens }.into());
        }
    }
    let row_len = capacity as usize;
    let mut bounds = Bounds { cu_seqlens: vec![0], max_seqlen: 0 };
    for (index, row) in rows.enumerate() {
        let end = (index + 1) * row_len;
        let mut start = index * row_len;
        let tokens: u64 = pieces.row(row).map(|piece| u64::from(piece.len)).sum();
        if tokens > u64::from(capacity) {
            return Err(Error::RowOverflow { row, tokens, capacity }.into());
        }
        for piece in pieces.row(row) {
            let tokens = start..start + piece.len as usize;
            start = tokens.end;
            let (ids, mask) =
                (&mut out.input_ids[tokens.clone()], &mut out.loss_mask[tokens.clone()]);
            copy(piece, ids, mask)?;
            label(ids, mask, &mut out.labels[tokens.clone()]);
            bounds.end_piece(tokens.clone(), &mut out.position_ids[tokens]);
        }
        if start < end {
            out.input_ids[start..end].fill(pad_id);
            out.loss_mask[start..end].fill(0);
            out.labels[start..end].fill(IGNORED_LABEL);
            bounds.end_piece(start..end, &mut out.position_ids[start..end]);
        }
    }
    Ok(bounds)
}

/// Number of tokens of some rows, once they are known to be there and to fit int32 bounds.
fn check_rows(pieces: &Pieces, rows: &Range<usize>, capacity: u32) -> Result<usize, Error> {
    check_capacity(capacity)?;
    let num_rows = rows.len();
    if rows.end > pieces.num_rows() {
        return Err(Error::NoSuchRow { row: rows.end as u64 - 1, num_rows: pieces.num_rows() });
    }
    num_rows
        .checked_mul(capacity as usize)
        .filter(|&n| i32::try_from(n).is_ok())
        .ok_or(Error::BatchTooLarge { num_rows, capacity })
}

/// Makes the mask 0 or 1, and the label of each token the next one if that is learned.
fn label(ids: &[i32], mask: &mut [u8], labels: &mut [i32]) {
    for learned in &mut *mask {
        *learned = u8::from(*learned != 0);
    }
    let Some((last, labels)) = labels.split_last_mut() else { return };
    for ((label, &next), &learned) in labels.iter_mut().zip(&ids[1..]).zip(&mask[1..]) {
        *label = if learned == 0 { IGNORED_LABEL } else { next };
    }
    *last = IGNORED_LABEL;
}

impl Bounds {
    /// Numbers the tokens of a piece and notes its end.
    fn end_piece(&mut self, tokens: Range<usize>, position_ids: &mut [i32]) {
        let bound =
            |token: usize| i32::try_from(token).expect("the batch has at most i32::MAX tokens");
        self.max_seqlen = self.max_seqlen.max(bound(tokens.len()));
        self.cu_seqlens.push(bound(tokens.end));
        for (position, place) in (0..).zip(position_ids) {
            *place = position;
        }
    }
}

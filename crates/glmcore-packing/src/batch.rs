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

/// Documents end to end in one array.
#[derive(Debug, Clone, Copy)]
pub struct Ragged<'a> {
    ids: &'a [i32],
    offsets: &'a [i64],
    loss_mask: Option<&'a [u8]>,
}

impl<'a> Ragged<'a> {
    /// Document `i` is `ids[offsets[i]..offsets[i + 1]]`; without a mask every token is learned.
    ///
    /// # Errors
    ///
    /// [`Error::NoOffsets`], [`Error::Offsets`], [`Error::LossMask`].
    pub fn new(
        ids: &'a [i32],
        offsets: &'a [i64],
        loss_mask: Option<&'a [u8]>,
    ) -> Result<Self, Error> {
        let num_tokens = ids.len();
        let wrong = |index: usize| Error::Offsets { index, offset: offsets[index], num_tokens };
        match offsets {
            [] => return Err(Error::NoOffsets),
            [first, ..] if *first != 0 => return Err(wrong(0)),
            [.., last] if usize::try_from(*last) != Ok(num_tokens) => {
                return Err(wrong(offsets.len() - 1));
            }
            _ => {}
        }
        if let Some(before) = offsets.windows(2).position(|pair| pair[1] < pair[0]) {
            return Err(wrong(before + 1));
        }
        if let Some(mask) = loss_mask.filter(|mask| mask.len() != num_tokens) {
            return Err(Error::LossMask { mask: mask.len(), num_tokens });
        }
        Ok(Self { ids, offsets, loss_mask })
    }

    /// Number of documents.
    pub fn num_documents(&self) -> usize {
        self.offsets.len() - 1
    }

    /// Number of tokens of each document.
    ///
    /// # Errors
    ///
    /// [`Error::TooMany`] for a document with more tokens than 32 bits count.
    pub fn lengths(&self) -> Result<Vec<u32>, Error> {
        let length = |pair: &[i64]| {
            crate::count32("tokens of one document", (pair[1] - pair[0]).unsigned_abs())
        };
        self.offsets.windows(2).map(length).collect()
    }

    /// Copies one piece; pass it to [`fill`].
    ///
    /// # Errors
    ///
    /// [`Error::PieceOutsideDocument`].
    pub fn copy(&self, piece: Piece, ids: &mut [i32], loss_mask: &mut [u8]) -> Result<(), Error> {
        let tokens = self.locate(piece)?;
        ids.copy_from_slice(&self.ids[tokens.clone()]);
        match self.loss_mask {
            Some(mask) => loss_mask.copy_from_slice(&mask[tokens]),
            None => loss_mask.fill(1),
        }
        Ok(())
    }

    fn locate(&self, piece: Piece) -> Result<Range<usize>, Error> {
        let Piece { doc, start, len } = piece;
        let (start, end) = (u64::from(start), u64::from(start) + u64::from(len));
        let bounds = self.offsets.get(doc as usize..doc as usize + 2).unwrap_or(&[0, 0]);
        let doc_len = (bounds[1] - bounds[0]).unsigned_abs();
        if end > doc_len {
            return Err(Error::PieceOutsideDocument { doc, len: doc_len, start, end });
        }
        let at =
            |token: u64| usize::try_from(bounds[0].unsigned_abs() + token).expect("inside ids");
        Ok(at(start)..at(end))
    }
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
    mut copy: impl FnMut(Piece, &mut [i32], &mut [u8]) -> Result<(), E>,
) -> Result<PackedBatch, E> {
    check_capacity(capacity)?;
    let num_rows = rows.len();
    if rows.end > pieces.num_rows() {
        return Err(
            Error::NoSuchRow { row: rows.end as u64 - 1, num_rows: pieces.num_rows() }.into()
        );
    }
    let row_len = capacity as usize;
    let num_tokens = num_rows
        .checked_mul(row_len)
        .filter(|&n| i32::try_from(n).is_ok())
        .ok_or(Error::BatchTooLarge { num_rows, capacity })?;

    let mut batch = PackedBatch {
        input_ids: vec![pad_id; num_tokens],
        labels: vec![IGNORED_LABEL; num_tokens],
        position_ids: vec![0; num_tokens],
        loss_mask: vec![0; num_tokens],
        cu_seqlens: vec![0],
        max_seqlen: 0,
    };
    for (index, row) in rows.enumerate() {
        let end = (index + 1) * row_len;
        let mut start = index * row_len;
        let tokens: u64 = pieces.row(row).map(|piece| u64::from(piece.len)).sum();
        if tokens > u64::from(capacity) {
            return Err(Error::RowOverflow { row, tokens, capacity }.into());
        }
        for piece in pieces.row(row) {
            let tokens = start..start + piece.len as usize;
            let (ids, mask) =
                (&mut batch.input_ids[tokens.clone()], &mut batch.loss_mask[tokens.clone()]);
            copy(piece, ids, mask)?;
            label(ids, mask, &mut batch.labels[tokens.clone()]);
            start = tokens.end;
            batch.end_piece(tokens);
        }
        if start < end {
            batch.end_piece(start..end);
        }
    }
    Ok(batch)
}

/// Makes the mask 0 or 1, and the label of each token the next one if that is learned.
fn label(ids: &[i32], mask: &mut [u8], labels: &mut [i32]) {
    for learned in &mut *mask {
        *learned = u8::from(*learned != 0);
    }
    for ((label, &next), &learned) in labels.iter_mut().zip(&ids[1..]).zip(&mask[1..]) {
        *label = if learned == 0 { IGNORED_LABEL } else { next };
    }
}

impl PackedBatch {
    /// Numbers the tokens of a piece and notes its end.
    fn end_piece(&mut self, tokens: Range<usize>) {
        let bound =
            |token: usize| i32::try_from(token).expect("the batch has at most i32::MAX tokens");
        self.max_seqlen = self.max_seqlen.max(bound(tokens.len()));
        self.cu_seqlens.push(bound(tokens.end));
        for (position, place) in (0..).zip(&mut self.position_ids[tokens]) {
            *place = position;
        }
    }
}

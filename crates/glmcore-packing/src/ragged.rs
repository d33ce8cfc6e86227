//! Documents end to end in one array.

use std::ops::Range;

use crate::{Error, Piece};

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

    /// Copies one piece; pass it to [`fill`](crate::fill).
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

    /// Number of tokens of all documents.
    pub fn num_tokens(&self) -> usize {
        self.ids.len()
    }

    /// Where a document's tokens lie among all.
    ///
    /// # Panics
    ///
    /// If there is no such document.
    pub fn tokens_of(&self, doc: usize) -> Range<usize> {
        let at = |offset: i64| usize::try_from(offset).expect("offsets rise from 0 to a length");
        at(self.offsets[doc])..at(self.offsets[doc + 1])
    }

    /// Ids of a document.
    ///
    /// # Panics
    ///
    /// If there is no such document.
    pub fn document(&self, doc: usize) -> &'a [i32] {
        &self.ids[self.tokens_of(doc)]
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

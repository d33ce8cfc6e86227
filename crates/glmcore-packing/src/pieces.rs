//! Pieces of documents in rows: what every packing comes down to.

use crate::{Error, Loss, count32};

/// Consecutive tokens of one document.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Piece {
    /// Which document.
    pub doc: u32,
    /// First token of it.
    pub start: u32,
    /// Number of tokens.
    pub len: u32,
}

/// Pieces by row, then by position in the row. No piece is empty.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Pieces {
    doc: Vec<u32>,
    start: Vec<u32>,
    len: Vec<u32>,
    row_offsets: Vec<u32>,
    loss: Loss,
}

impl Pieces {
    /// No rows yet, with room for some.
    pub(crate) fn with_capacity(num_pieces: usize, num_rows: usize) -> Self {
        let array = || Vec::with_capacity(num_pieces);
        let mut row_offsets = Vec::with_capacity(num_rows + 1);
        row_offsets.push(0);
        Self { doc: array(), start: array(), len: array(), row_offsets, loss: Loss::default() }
    }

    /// Rows made elsewhere; empty pieces are left out.
    ///
    /// # Errors
    ///
    /// [`Error::TooMany`].
    pub fn from_rows<R: IntoIterator<Item = Piece>>(
        rows: impl IntoIterator<Item = R>,
    ) -> Result<Self, Error> {
        let mut pieces = Self::with_capacity(0, 0);
        for row in rows {
            row.into_iter().for_each(|piece| pieces.push(piece));
            count32("pieces", pieces.doc.len() as u64)?;
            pieces.end_row();
        }
        Ok(pieces)
    }

    /// Adds a piece to the row being built; an empty piece is left out.
    pub(crate) fn push(&mut self, piece: Piece) {
        if piece.len > 0 {
            self.doc.push(piece.doc);
            self.start.push(piece.start);
            self.len.push(piece.len);
        }
    }

    /// Ends the row being built.
    pub(crate) fn end_row(&mut self) {
        self.row_offsets.push(u32::try_from(self.doc.len()).expect("callers count pieces before"));
    }

    /// Document of each piece.
    pub fn doc(&self) -> &[u32] {
        &self.doc
    }

    /// First token of each piece within its document.
    pub fn start(&self) -> &[u32] {
        &self.start
    }

    /// Number of tokens of each piece.
    pub fn len(&self) -> &[u32] {
        &self.len
    }

    /// Where each row starts among the pieces, and at the end the number of pieces.
    pub fn row_offsets(&self) -> &[u32] {
        &self.row_offsets
    }

    /// What became of the documents longer than a row, in the packing that the rows are from.
    pub fn loss(&self) -> Loss {
        self.loss
    }

    pub(crate) fn with_loss(mut self, loss: Loss) -> Self {
        self.loss = loss;
        self
    }

    /// Number of rows.
    pub fn num_rows(&self) -> usize {
        self.row_offsets.len() - 1
    }

    /// Pieces of one row.
    ///
    /// # Panics
    ///
    /// If `row` is not below [`num_rows`](Self::num_rows).
    pub fn row(&self, row: usize) -> impl Iterator<Item = Piece> + '_ {
        let pieces = self.row_offsets[row] as usize..self.row_offsets[row + 1] as usize;
        pieces.map(|i| Piece { doc: self.doc[i], start: self.start[i], len: self.len[i] })
    }

    /// The given rows, in the given order.
    ///
    /// # Errors
    ///
    /// [`Error::NoSuchRow`] for a number past the end, [`Error::TooMany`] where rows repeat too often.
    pub fn select_rows(&self, rows: &[u32]) -> Result<Self, Error> {
        let num_rows = self.num_rows();
        if let Some(&row) = rows.iter().find(|&&row| row as usize >= num_rows) {
            return Err(Error::NoSuchRow { row: row.into(), num_rows });
        }
        let count = |row: u32| self.row_offsets[row as usize + 1] - self.row_offsets[row as usize];
        let num_pieces = count32("pieces", rows.iter().map(|&row| u64::from(count(row))).sum())?;
        let mut selected = Self::with_capacity(num_pieces as usize, rows.len());
        for &row in rows {
            for piece in self.row(row as usize) {
                selected.push(piece);
            }
            selected.end_row();
        }
        Ok(selected.with_loss(self.loss))
    }
}

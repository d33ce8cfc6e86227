//! A matrix, and how it is cut into blocks.

use crate::Error;

/// A row-major matrix of numbers or codes.
#[derive(Debug, Clone, Copy)]
pub struct Matrix<'a, T> {
    pub(crate) values: &'a [T],
    pub(crate) rows: usize,
    pub(crate) columns: usize,
}

impl<'a, T> Matrix<'a, T> {
    /// A matrix over `values`, row after row.
    ///
    /// # Errors
    ///
    /// [`Error::Length`] unless there are `rows * columns` values.
    pub fn new(values: &'a [T], rows: usize, columns: usize) -> Result<Self, Error> {
        check_length("matrix", values.len(), rows, columns)?;
        Ok(Self { values, rows, columns })
    }
}

/// Rows and columns of a block. Blocks at the right and lower edge of a matrix may be smaller.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Blocks {
    pub(crate) rows: usize,
    pub(crate) columns: usize,
}

impl Blocks {
    /// Blocks of `rows` by `columns`.
    ///
    /// # Errors
    ///
    /// [`Error::EmptyBlock`] if one of them is 0.
    pub fn new(rows: usize, columns: usize) -> Result<Self, Error> {
        if rows == 0 || columns == 0 {
            return Err(Error::EmptyBlock { rows, columns });
        }
        Ok(Self { rows, columns })
    }

    /// Blocks below and beside each other that cover a matrix: the shape of its scales.
    pub fn grid(self, rows: usize, columns: usize) -> (usize, usize) {
        (rows.div_ceil(self.rows), columns.div_ceil(self.columns))
    }
}

pub(crate) fn check_length(
    what: &'static str,
    len: usize,
    rows: usize,
    columns: usize,
) -> Result<(), Error> {
    if rows.checked_mul(columns) == Some(len) {
        Ok(())
    } else {
        Err(Error::Length { what, len, rows, columns })
    }
}

/// Matrices with fewer values are done before a second thread has woken up.
const MIN_PARALLEL_VALUES: usize = 1 << 19;

/// Whether other threads should help with so many values.
pub(crate) fn is_parallel(num_values: usize) -> bool {
    num_values >= MIN_PARALLEL_VALUES && rayon::current_num_threads() > 1
}

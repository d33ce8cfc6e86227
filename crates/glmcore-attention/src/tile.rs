//! Blocks of numbers and their products.

use crate::element::{Element, Real};
use crate::{Document, Shape};

/// Tokens of a block of queries or keys.
pub(crate) const BLOCK: usize = 64;
/// Rows of a product that are summed together in registers.
const ROWS: usize = 8;
/// Columns of a product that are summed together in registers: four or two vectors of 512 bits with `f32`.
const COLUMNS: usize = 32;

/// Rows of a product that are computed for `count` rows.
pub(crate) fn padded_rows(count: usize) -> usize {
    count.next_multiple_of(ROWS)
}

/// Columns of a product that are computed for `count` columns.
pub(crate) fn padded_columns(count: usize) -> usize {
    count.next_multiple_of(COLUMNS)
}

/// A matrix in memory: rows `row` apart, columns `column` apart.
#[derive(Clone, Copy)]
pub(crate) struct Strided<'a, R> {
    pub(crate) values: &'a [R],
    pub(crate) row: usize,
    pub(crate) column: usize,
}

/// `c = a b`, or `c += a b` with `ADD`, for `m` by `depth` times `depth` by `n`; `m` and `n` are padded.
#[expect(clippy::many_single_char_names, reason = "the names of the formula")]
#[inline(always)]
pub(crate) fn multiply<R: Real, const FUSED: bool, const ADD: bool>(
    (m, n, depth): (usize, usize, usize),
    a: Strided<'_, R>,
    (b, b_row): (&[R], usize),
    (c, c_row): (&mut [R], usize),
) {
    for i in (0..m).step_by(ROWS) {
        for j in (0..n).step_by(COLUMNS) {
            let mut sums = [[R::ZERO; COLUMNS]; ROWS];
            for l in 0..depth {
                let line: &[R; COLUMNS] =
                    b[l * b_row + j..][..COLUMNS].try_into().expect("of that length");
                let column = &a.values[i * a.row + l * a.column..][..=(ROWS - 1) * a.row];
                for (row, sums) in sums.iter_mut().enumerate() {
                    let factor = column[row * a.row];
                    for (sum, &value) in sums.iter_mut().zip(line) {
                        *sum = factor.multiply_add::<FUSED>(value, *sum);
                    }
                }
            }
            for (row, sums) in sums.iter().enumerate() {
                let line: &mut [R; COLUMNS] = (&mut c[(i + row) * c_row + j..][..COLUMNS])
                    .try_into()
                    .expect("of that length");
                for (value, &sum) in line.iter_mut().zip(sums) {
                    *value = if ADD { value.plus(sum) } else { sum };
                }
            }
        }
    }
}

/// Copies a head's rows of a document, times `factor`, to the first `head_dim` of every `width` places of `to`.
#[inline(always)]
pub(crate) fn load<T: Element>(
    from: &[T],
    document: Document,
    (row, first, channels): (usize, usize, usize),
    factor: Option<T::Real>,
    width: usize,
    to: &mut [T::Real],
) {
    for (token, to) in to.chunks_exact_mut(width).take(document.len).enumerate() {
        let from = &from[(document.start + token) * row + first..][..channels];
        for (to, from) in to.iter_mut().zip(from) {
            let value = from.widen();
            *to = factor.map_or(value, |factor| value.times(factor));
        }
    }
}

/// Transposes blocks of `BLOCK` rows of `width` to blocks of `channels` rows of `BLOCK`.
#[inline(always)]
pub(crate) fn transpose<R: Real>(from: &[R], width: usize, channels: usize, to: &mut [R]) {
    let blocks = from.chunks_exact(BLOCK * width).zip(to.chunks_exact_mut(BLOCK * channels));
    for (from, to) in blocks {
        for (channel, to) in to.chunks_exact_mut(BLOCK).enumerate() {
            for (token, to) in to.iter_mut().enumerate() {
                *to = from[token * width + channel];
            }
        }
    }
}

/// Zeros for `tokens`, in whole blocks, of `width` each.
pub(crate) fn reset<R: Real>(values: &mut Vec<R>, tokens: usize, width: usize) {
    values.clear();
    values.resize(tokens.next_multiple_of(BLOCK) * width, R::ZERO);
}

/// Where a head lies in a row of queries (or of keys): length of the row, first channel, channels.
pub(crate) fn head_of_queries(shape: Shape, head: usize) -> (usize, usize, usize) {
    (shape.queries(), head * shape.head_dim, shape.head_dim)
}

/// As `head_of_queries`.
pub(crate) fn head_of_keys(shape: Shape, head: usize) -> (usize, usize, usize) {
    (shape.keys(), head * shape.head_dim, shape.head_dim)
}

/// Lanes that a sum or a maximum along a row is made of before they are joined.
const LANES: usize = 16;

/// Sum of a row whose length is a multiple of `LANES`.
#[inline(always)]
pub(crate) fn sum<R: Real>(row: &[R]) -> R {
    let mut lanes = [R::ZERO; LANES];
    for part in row.chunks_exact(LANES) {
        for (lane, &value) in lanes.iter_mut().zip(part) {
            *lane = lane.plus(value);
        }
    }
    lanes.iter().fold(R::ZERO, |sum, &lane| sum.plus(lane))
}

/// Largest of a row whose length is a multiple of `LANES`.
#[inline(always)]
pub(crate) fn largest<R: Real>(row: &[R]) -> R {
    let mut lanes = [R::LOWEST; LANES];
    for part in row.chunks_exact(LANES) {
        for (lane, &value) in lanes.iter_mut().zip(part) {
            *lane = if value > *lane { value } else { *lane };
        }
    }
    lanes.iter().fold(R::LOWEST, |top, &lane| if lane > top { lane } else { top })
}

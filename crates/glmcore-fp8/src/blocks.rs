//! Matrices in blocks with a scale each.

use half::{bf16, f16};
use rayon::prelude::*;

use crate::Error;
use crate::e4m3::{E4M3_MAX, encode, values};

/// Smallest amax of a weight block: an all-zero block gets the scale `1e-10 / 448`.
pub const WEIGHT_FLOOR: f32 = 1e-10;
/// Smallest amax of an activation group.
pub const ACTIVATION_FLOOR: f32 = 1e-4;

/// Matrices with fewer values are not worth a second thread.
const MIN_PARALLEL_VALUES: usize = 1 << 16;

/// A float type that weights come in.
pub trait Element: Copy + Send + Sync {
    /// The same value in float32, exact for narrower types.
    fn to_f32(self) -> f32;
    /// The nearest value of this type.
    fn from_f32(value: f32) -> Self;
}

impl Element for f32 {
    #[inline]
    fn to_f32(self) -> f32 {
        self
    }
    #[inline]
    fn from_f32(value: f32) -> Self {
        value
    }
}

impl Element for bf16 {
    #[inline]
    fn to_f32(self) -> f32 {
        self.to_f32()
    }
    #[inline]
    fn from_f32(value: f32) -> Self {
        Self::from_f32(value)
    }
}

impl Element for f16 {
    #[inline]
    fn to_f32(self) -> f32 {
        self.to_f32()
    }
    #[inline]
    fn from_f32(value: f32) -> Self {
        Self::from_f32(value)
    }
}

/// What a scale may be.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ScaleFormat {
    /// Any float32.
    Float32,
    /// A power of two, rounded up, which some GPUs want.
    Ue8m0,
}

/// A row-major matrix.
#[derive(Debug, Clone, Copy)]
pub struct Matrix<'a, T> {
    values: &'a [T],
    rows: usize,
    columns: usize,
}

impl<'a, T: Element> Matrix<'a, T> {
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

fn check_length(what: &'static str, len: usize, rows: usize, columns: usize) -> Result<(), Error> {
    if rows.checked_mul(columns) == Some(len) {
        Ok(())
    } else {
        Err(Error::Length { what, len, rows, columns })
    }
}

fn check_block(block: (usize, usize)) -> Result<(), Error> {
    let (rows, columns) = block;
    if rows == 0 || columns == 0 { Err(Error::EmptyBlock { rows, columns }) } else { Ok(()) }
}

/// Scale of a block whose largest magnitude is `amax`.
fn scale_of(amax: f32, floor: f32, format: ScaleFormat) -> f32 {
    let scale = amax.max(floor) / E4M3_MAX;
    match format {
        ScaleFormat::Float32 => scale,
        ScaleFormat::Ue8m0 => round_up_to_power_of_two(scale),
    }
}

/// Smallest power of two that is not below `scale`, a normal positive number.
fn round_up_to_power_of_two(scale: f32) -> f32 {
    let bits = scale.to_bits();
    let exponent = (bits + 0x7f_ffff) & 0x7f80_0000;
    f32::from_bits(exponent)
}

/// Quantises a matrix block by block; blocks at the right and lower edge may be smaller.
///
/// Gives the codes, shaped as the matrix, and the scales, one a block, row after row. A value is `code * scale`.
///
/// # Errors
///
/// [`Error::NotFinite`] for the first value that is NaN or infinite, [`Error::EmptyBlock`].
pub fn quantize<T: Element>(
    matrix: Matrix<'_, T>,
    block: (usize, usize),
    floor: f32,
    format: ScaleFormat,
) -> Result<(Vec<u8>, Vec<f32>), Error> {
    check_block(block)?;
    let Matrix { values, rows, columns } = matrix;
    let block_columns = columns.div_ceil(block.1);
    let mut q = vec![0; values.len()];
    let mut scales = vec![0.0; rows.div_ceil(block.0) * block_columns];
    if values.is_empty() {
        return Ok((q, scales));
    }
    let strip = block.0 * columns;
    let work = |(index, ((values, q), scales)): (usize, Strip<'_, T>)| {
        quantize_strip(values, q, scales, columns, block.1, floor, format)
            .map_err(|(row, column)| Error::NotFinite { row: index * block.0 + row, column })
    };
    if values.len() < MIN_PARALLEL_VALUES {
        let strips =
            values.chunks(strip).zip(q.chunks_mut(strip)).zip(scales.chunks_mut(block_columns));
        strips.enumerate().try_for_each(work)?;
    } else {
        let strips = values
            .par_chunks(strip)
            .zip(q.par_chunks_mut(strip))
            .zip(scales.par_chunks_mut(block_columns));
        strips.enumerate().map(work).collect::<Vec<_>>().into_iter().collect::<Result<(), _>>()?;
    }
    Ok((q, scales))
}

/// Values, codes and scales of one row of blocks.
type Strip<'a, T> = ((&'a [T], &'a mut [u8]), &'a mut [f32]);

/// Quantises one row of blocks; an error is the place of the first value that is not finite.
fn quantize_strip<T: Element>(
    values: &[T],
    q: &mut [u8],
    scales: &mut [f32],
    columns: usize,
    width: usize,
    floor: f32,
    format: ScaleFormat,
) -> Result<(), (usize, usize)> {
    let mut amax = vec![0.0_f32; scales.len()];
    for (row, line) in values.chunks_exact(columns).enumerate() {
        for (amax, part) in amax.iter_mut().zip(line.chunks(width)) {
            // NaN compares as larger than everything in bits, so it survives an integer maximum.
            let bits =
                part.iter().map(|value| value.to_f32().to_bits() & 0x7fff_ffff).max().unwrap_or(0);
            if bits >= 0x7f80_0000 {
                let column = line
                    .iter()
                    .position(|value| !value.to_f32().is_finite())
                    .expect("one is not finite");
                return Err((row, column));
            }
            *amax = amax.max(f32::from_bits(bits));
        }
    }
    for (scale, &amax) in scales.iter_mut().zip(&amax) {
        *scale = scale_of(amax, floor, format);
    }
    for (line, q) in values.chunks_exact(columns).zip(q.chunks_exact_mut(columns)) {
        for ((part, q), &scale) in line.chunks(width).zip(q.chunks_mut(width)).zip(&*scales) {
            for (value, q) in part.iter().zip(q) {
                *q = encode((value.to_f32() / scale).clamp(-E4M3_MAX, E4M3_MAX));
            }
        }
    }
    Ok(())
}

/// Multiplies each code with its block's scale, into `out`.
///
/// # Errors
///
/// [`Error::Length`] for arrays that do not fit `shape`, [`Error::EmptyBlock`].
pub fn dequantize<T: Element>(
    q: &[u8],
    scales: &[f32],
    shape: (usize, usize),
    block: (usize, usize),
    out: &mut [T],
) -> Result<(), Error> {
    check_block(block)?;
    let (rows, columns) = shape;
    check_length("q", q.len(), rows, columns)?;
    check_length("out", out.len(), rows, columns)?;
    let block_columns = columns.div_ceil(block.1);
    check_length("scale_inv", scales.len(), rows.div_ceil(block.0), block_columns)?;
    if q.is_empty() {
        return Ok(());
    }
    let strip = block.0 * columns;
    let values = values();
    let work = |((q, out), scales): ((&[u8], &mut [T]), &[f32])| {
        for (q, out) in q.chunks_exact(columns).zip(out.chunks_exact_mut(columns)) {
            for ((q, out), &scale) in q.chunks(block.1).zip(out.chunks_mut(block.1)).zip(scales) {
                for (&code, out) in q.iter().zip(out) {
                    *out = T::from_f32(values[usize::from(code)] * scale);
                }
            }
        }
    };
    if q.len() < MIN_PARALLEL_VALUES {
        q.chunks(strip).zip(out.chunks_mut(strip)).zip(scales.chunks(block_columns)).for_each(work);
    } else {
        q.par_chunks(strip)
            .zip(out.par_chunks_mut(strip))
            .zip(scales.par_chunks(block_columns))
            .for_each(work);
    }
    Ok(())
}

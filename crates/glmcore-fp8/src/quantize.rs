//! Numbers to codes and scales.

use rayon::prelude::*;

use crate::Error;
use crate::blocks::{Blocks, Matrix, check_length, is_parallel};
use crate::e4m3::E4M3_MAX;
use crate::element::{Element, INFINITY};
use crate::instructions::{Instructions, Task, Way, dispatch};
use crate::part::PartEncoder;

/// Smallest amax of a weight block: an all-zero block gets the scale `1e-10 / 448`.
pub const WEIGHT_FLOOR: f32 = 1e-10;
/// Smallest amax of an activation group.
pub const ACTIVATION_FLOOR: f32 = 1e-4;

/// Values of a strip of blocks that are looked at twice while they are in a near cache. Whole rows of a matrix are read
/// faster than parts of them: narrower tiles, though they fit a smaller cache, took up to half as long again.
const TILE_VALUES: usize = 1 << 19;

/// What a scale may be.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ScaleFormat {
    /// Any float32.
    Float32,
    /// A power of two, rounded up, which some GPUs want.
    Ue8m0,
}

/// What becomes of NaN and infinity.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum NotFinite {
    /// An error that names the place.
    Refuse,
    /// They become NaN; the scale of their block is that of its finite values.
    Propagate,
}

/// How matrices are quantised.
#[derive(Debug, Clone, Copy)]
pub struct Quantizer {
    /// How a matrix is cut.
    pub blocks: Blocks,
    /// Smallest amax of a block, between 1e-18 and 1e18.
    pub floor: f32,
    /// What a scale may be.
    pub format: ScaleFormat,
    /// What becomes of NaN and infinity.
    pub not_finite: NotFinite,
    /// What the loops are made of; the result does not depend on it.
    pub instructions: Instructions,
}

impl Quantizer {
    /// For weights: scales in float32, the floor of weights, NaN and infinity refused.
    pub fn of_weights(blocks: Blocks) -> Self {
        Self {
            blocks,
            floor: WEIGHT_FLOOR,
            format: ScaleFormat::Float32,
            not_finite: NotFinite::Refuse,
            instructions: Instructions::best(),
        }
    }

    /// Quantises a matrix: codes, shaped as the matrix, and scales, one a block, row after row.
    ///
    /// A value is `code * scale` of its block. Works on the threads of rayon's current pool.
    ///
    /// # Errors
    ///
    /// As [`Quantizer::quantize_into`].
    pub fn quantize<T: Element>(
        &self,
        matrix: Matrix<'_, T>,
    ) -> Result<(Vec<u8>, Vec<f32>), Error> {
        let (rows, columns) = self.blocks.grid(matrix.rows, matrix.columns);
        let (mut q, mut scales) = (vec![0; matrix.values.len()], vec![0.0; rows * columns]);
        self.quantize_into(matrix, &mut q, &mut scales)?;
        Ok((q, scales))
    }

    /// Quantises a matrix into arrays that are there already.
    ///
    /// # Errors
    ///
    /// [`Error::NotFinite`] for the first value that is NaN or infinite, unless they are propagated; [`Error::Floor`];
    /// [`Error::Length`] for arrays that do not fit. What the arrays then hold is left open.
    pub fn quantize_into<T: Element>(
        &self,
        matrix: Matrix<'_, T>,
        q: &mut [u8],
        scales: &mut [f32],
    ) -> Result<(), Error> {
        if !(1e-18..=1e18).contains(&self.floor) {
            return Err(Error::Floor { floor: self.floor });
        }
        let Matrix { values, rows, columns } = matrix;
        let grid = self.blocks.grid(rows, columns);
        check_length("q", q.len(), rows, columns)?;
        check_length("scale_inv", scales.len(), grid.0, grid.1)?;
        if values.is_empty() {
            return Ok(());
        }
        let strip = self.blocks.rows * columns;
        if is_parallel(values.len()) {
            let strips = values.par_chunks(strip).zip(q.par_chunks_mut(strip));
            let results: Vec<_> = strips
                .zip(scales.par_chunks_mut(grid.1))
                .enumerate()
                .map(|(index, ((values, q), scales))| self.strip(index, values, columns, q, scales))
                .collect();
            results.into_iter().collect() // the first error by place, not by time
        } else {
            let strips = values.chunks(strip).zip(q.chunks_mut(strip));
            strips.zip(scales.chunks_mut(grid.1)).enumerate().try_for_each(
                |(index, ((values, q), scales))| self.strip(index, values, columns, q, scales),
            )
        }
    }

    /// Quantises the row of blocks with this `index`.
    fn strip<T: Element>(
        &self,
        index: usize,
        values: &[T],
        columns: usize,
        q: &mut [u8],
        scales: &mut [f32],
    ) -> Result<(), Error> {
        let mut place = None;
        let strip = Strip { quantizer: self, values, columns, q, scales, place: &mut place };
        dispatch(self.instructions, strip);
        match place {
            Some((row, column)) => {
                Err(Error::NotFinite { row: index * self.blocks.rows + row, column })
            }
            None => Ok(()),
        }
    }

    /// Scale of a block whose largest magnitude is `amax`.
    fn scale_of(&self, amax: f32) -> f32 {
        let scale = amax.max(self.floor) / E4M3_MAX;
        match self.format {
            ScaleFormat::Float32 => scale,
            ScaleFormat::Ue8m0 => f32::from_bits((scale.to_bits() + 0x7f_ffff) & INFINITY),
        }
    }
}

/// One row of blocks.
struct Strip<'a, T> {
    quantizer: &'a Quantizer,
    values: &'a [T],
    columns: usize,
    q: &'a mut [u8],
    scales: &'a mut [f32],
    /// Row and column of the first value that is refused.
    place: &'a mut Option<(usize, usize)>,
}

impl<T: Element> Task for Strip<'_, T> {
    #[inline(always)]
    fn run(self, way: Way) {
        let width = self.quantizer.blocks.columns;
        let rows = self.values.len() / self.columns;
        let per_tile = (TILE_VALUES / rows / width).max(1);
        let mut largest = vec![T::Magnitude::default(); (per_tile * width).min(self.columns)];
        let mut encoders = Vec::with_capacity(per_tile.min(self.scales.len()));
        for (tile, scales) in self.scales.chunks_mut(per_tile).enumerate() {
            let start = tile * per_tile * width;
            let end = (start + scales.len() * width).min(self.columns);
            let largest = &mut largest[..end - start]; // of each column
            largest.fill(T::Magnitude::default());
            for line in self.values.chunks_exact(self.columns) {
                for (largest, value) in largest.iter_mut().zip(&line[start..end]) {
                    *largest = value.magnitude().max(*largest);
                }
            }
            encoders.clear();
            for (block, (scale, largest)) in
                scales.iter_mut().zip(largest.chunks(width)).enumerate()
            {
                let amax = largest.iter().copied().max().map_or(0.0, T::magnitude_to_f32);
                if amax.is_finite() {
                    *scale = self.quantizer.scale_of(amax);
                    encoders.push(PartEncoder::new::<T>(way, *scale, rows * width));
                } else if self.quantizer.not_finite == NotFinite::Refuse {
                    *self.place = first_not_finite(self.values, self.columns);
                    return;
                } else {
                    let left = start + block * width;
                    let amax =
                        finite_amax(self.values, self.columns, left..(left + width).min(end));
                    *scale = self.quantizer.scale_of(amax);
                    encoders.push(PartEncoder::Plain(*scale));
                }
            }
            let lines = self.values.chunks_exact(self.columns);
            for (line, q) in lines.zip(self.q.chunks_exact_mut(self.columns)) {
                let parts = line[start..end].chunks(width).zip(q[start..end].chunks_mut(width));
                for ((part, q), encoder) in parts.zip(&encoders) {
                    encoder.encode(part, q);
                }
            }
        }
    }
}

#[cold]
fn first_not_finite<T: Element>(values: &[T], columns: usize) -> Option<(usize, usize)> {
    let place = values.iter().position(|value| !value.to_f32().is_finite())?;
    Some((place / columns, place % columns))
}

#[cold]
fn finite_amax<T: Element>(values: &[T], columns: usize, block: std::ops::Range<usize>) -> f32 {
    let parts = values.chunks_exact(columns).flat_map(|line| &line[block.clone()]);
    parts.map(|value| value.to_f32().abs()).filter(|value| value.is_finite()).fold(0.0, f32::max)
}

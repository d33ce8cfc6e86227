//! Codes and scales to numbers.

use rayon::prelude::*;

use crate::Error;
use crate::blocks::{Blocks, Matrix, check_length, is_parallel};
use crate::element::Element;
use crate::instructions::{Instructions, Task, Way, dispatch};
use crate::part::PartDecoder;

/// Multiplies each code with its block's scale in float32, and rounds it to nearest into `out`.
///
/// Works on the threads of rayon's current pool.
///
/// # Errors
///
/// [`Error::Length`] for scales or an `out` that do not fit the matrix.
pub fn dequantize<T: Element>(
    q: Matrix<'_, u8>,
    scales: &[f32],
    blocks: Blocks,
    out: &mut [T],
) -> Result<(), Error> {
    dequantize_with(Instructions::best(), q, scales, blocks, out)
}

/// [`dequantize`] with given instructions; the result does not depend on them.
///
/// # Errors
///
/// As [`dequantize`].
pub fn dequantize_with<T: Element>(
    instructions: Instructions,
    q: Matrix<'_, u8>,
    scales: &[f32],
    blocks: Blocks,
    out: &mut [T],
) -> Result<(), Error> {
    let Matrix { values: q, rows, columns } = q;
    let grid = blocks.grid(rows, columns);
    check_length("out", out.len(), rows, columns)?;
    check_length("scale_inv", scales.len(), grid.0, grid.1)?;
    if q.is_empty() {
        return Ok(());
    }
    let strip = blocks.rows * columns;
    let work = |((q, out), scales)| {
        dispatch(instructions, Strip { q, out, scales, columns, width: blocks.columns });
    };
    if is_parallel(q.len()) {
        let strips = q.par_chunks(strip).zip(out.par_chunks_mut(strip));
        strips.zip(scales.par_chunks(grid.1)).for_each(work);
    } else {
        q.chunks(strip).zip(out.chunks_mut(strip)).zip(scales.chunks(grid.1)).for_each(work);
    }
    Ok(())
}

/// One row of blocks.
struct Strip<'a, T> {
    q: &'a [u8],
    out: &'a mut [T],
    scales: &'a [f32],
    columns: usize,
    width: usize,
}

impl<T: Element> Task for Strip<'_, T> {
    #[inline(always)]
    fn run(self, way: Way) {
        let rows = self.q.len() / self.columns;
        let decoders = self.scales.iter();
        let decoders: Vec<_> =
            decoders.map(|&scale| PartDecoder::new::<T>(way, scale, rows * self.width)).collect();
        let lines = self.q.chunks_exact(self.columns).zip(self.out.chunks_exact_mut(self.columns));
        for (q, out) in lines {
            let parts = q.chunks(self.width).zip(out.chunks_mut(self.width));
            for ((q, out), decoder) in parts.zip(&decoders) {
                decoder.decode(q, out);
            }
        }
    }
}

//! Matrix products whose rows do not know of each other.

use crate::instructions::Instructions;
use crate::lanes::dot;

/// Rows that are multiplied before the matrix is read again: with 128 inputs they fill the first cache.
const TILE: usize = 64;

/// A matrix `[outputs, inputs]` and a bias.
#[derive(Debug, Clone, Copy)]
pub struct Linear<'a> {
    /// Row by row.
    pub weight: &'a [f32],
    /// A number for each output.
    pub bias: Option<&'a [f32]>,
    /// Length of its rows.
    pub inputs: usize,
}

impl Linear<'_> {
    /// Number of its rows.
    pub fn outputs(&self) -> usize {
        self.weight.len() / self.inputs
    }

    /// `out = x weight^T + bias` for rows `x` `[n, inputs]`. Every value of `out` is the same sum in the same order,
    /// whatever the other rows are.
    #[inline(always)]
    pub(crate) fn apply<I: Instructions>(&self, x: &[f32], out: &mut [f32]) {
        let outputs = self.outputs();
        let tiles = x.chunks(TILE * self.inputs).zip(out.chunks_mut(TILE * outputs));
        for (x, out) in tiles {
            self.multiply::<I>(x, out, outputs);
        }
        if let Some(bias) = self.bias {
            for row in out.chunks_exact_mut(outputs) {
                for (value, bias) in row.iter_mut().zip(bias) {
                    *value += bias;
                }
            }
        }
    }

    #[inline(always)]
    fn multiply<I: Instructions>(&self, x: &[f32], out: &mut [f32], outputs: usize) {
        let rows = x.len() / self.inputs;
        let mut output = 0;
        while output < outputs {
            let left = outputs - output;
            let mut row = 0;
            if left < 4 || (rows == 1 && left < 16) {
                for row in 0..rows {
                    let x = &x[row * self.inputs..][..self.inputs];
                    out[row * outputs + output] = dot::<I>(x, self.row(output));
                }
                output += 1;
                continue;
            }
            if rows == 1 {
                self.block::<I, 1, 16>(x, out, (0, output), outputs);
                output += 16;
                continue;
            }
            while row + 4 <= rows {
                self.block::<I, 4, 4>(x, out, (row, output), outputs);
                row += 4;
            }
            if row + 2 <= rows {
                self.block::<I, 2, 4>(x, out, (row, output), outputs);
                row += 2;
            }
            if row < rows {
                self.block::<I, 1, 4>(x, out, (row, output), outputs);
            }
            output += 4;
        }
    }

    #[inline(always)]
    fn row(&self, output: usize) -> &[f32] {
        &self.weight[output * self.inputs..][..self.inputs]
    }

    /// `R` rows times `O` outputs, at most 16 sums.
    #[inline(always)]
    fn block<I: Instructions, const R: usize, const O: usize>(
        &self,
        x: &[f32],
        out: &mut [f32],
        (row, output): (usize, usize),
        outputs: usize,
    ) {
        let len = self.inputs;
        let sums = I::products::<R, O>(&x[row * len..], &self.weight[output * len..], len);
        for r in 0..R {
            out[(row + r) * outputs + output..][..O].copy_from_slice(&sums[r * O..][..O]);
        }
    }
}

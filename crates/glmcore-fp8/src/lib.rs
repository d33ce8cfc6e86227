//! Block-wise FP8 (e4m3) quantisation, as GLM's FP8 checkpoints and rollout engines have it.
//!
//! A matrix is cut into blocks; each block has a scale `s = max(amax, floor) / 448` in float32 and its values become
//! `e4m3(clamp(w / s, -448, 448))`. Divisions are true divisions, so the result is bit for bit that of the same
//! arithmetic in PyTorch. Groups of activations are blocks of one row with another floor.
//!
//! Values are rounded to nearest, ties to even. A block of zeros has the scale `floor / 448`; -0 keeps its sign. NaN and
//! infinity are refused with their place, or become NaN while the others of their block stay what they are.
//!
//! ```
//! use glmcore_fp8::{Blocks, Matrix, Quantizer, dequantize};
//!
//! let weight = [0.5_f32, -1.0, 2.0, 896.0];
//! let (q, scale) = Quantizer::of_weights(Blocks::new(2, 2)?).quantize(Matrix::new(&weight, 2, 2)?)?;
//! assert_eq!(scale, [2.0]);
//! let mut back = [0.0_f32; 4];
//! dequantize(Matrix::new(&q, 2, 2)?, &scale, Blocks::new(2, 2)?, &mut back)?;
//! assert_eq!(back, [0.5, -1.0, 2.0, 896.0]);
//! # Ok::<(), glmcore_fp8::Error>(())
//! ```
#![deny(unsafe_code)]
#![warn(missing_docs)]
#![expect(
    clippy::inline_always,
    reason = "loops have to land in the function that has the instructions"
)]

mod blocks;
mod dequantize;
mod e4m3;
mod element;
mod instructions;
mod lanes;
mod part;
mod plain;
mod quantize;
#[cfg(target_arch = "x86_64")]
mod tables;

pub use blocks::{Blocks, Matrix};
pub use dequantize::{dequantize, dequantize_with};
pub use e4m3::{E4M3_MAX, decode, encode};
pub use element::Element;
pub use instructions::Instructions;
pub use quantize::{ACTIVATION_FLOOR, NotFinite, Quantizer, ScaleFormat, WEIGHT_FLOOR};

/// Why a matrix cannot be quantised or dequantised.
#[derive(Debug, Clone, PartialEq, thiserror::Error)]
#[non_exhaustive]
#[expect(missing_docs, reason = "the messages name every field")]
pub enum Error {
    /// A value is infinite or not a number.
    #[error("value at row {row}, column {column} is not finite")]
    NotFinite { row: usize, column: usize },
    /// An array has another length than its shape says.
    #[error("{what} has {len} values, a shape of {rows} by {columns} needs {}", rows * columns)]
    Length { what: &'static str, len: usize, rows: usize, columns: usize },
    /// A scale could be too small to be inverted.
    #[error("floor is {floor:e}, it must be between 1e-18 and 1e18")]
    Floor { floor: f32 },
    /// A block has no rows or no columns.
    #[error("block is {rows} by {columns}, both must be at least 1")]
    EmptyBlock { rows: usize, columns: usize },
}

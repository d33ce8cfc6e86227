//! Block-wise FP8 (e4m3) quantisation, as GLM's FP8 checkpoints and rollout engines have it.
//!
//! A matrix is cut into blocks; each block has a scale `s = max(amax, floor) / 448` in float32 and its values become
//! `e4m3(clamp(w / s, -448, 448))`. Divisions are true divisions, so the result is bit for bit that of the same
//! arithmetic in PyTorch. Groups of activations are blocks of one row with another floor.
//!
//! ```
//! use glmcore_fp8::{Matrix, ScaleFormat, dequantize, quantize, WEIGHT_FLOOR};
//!
//! let weight = [0.5_f32, -1.0, 2.0, 896.0];
//! let matrix = Matrix::new(&weight, 2, 2)?;
//! let (q, scale) = quantize(matrix, (2, 2), WEIGHT_FLOOR, ScaleFormat::Float32)?;
//! assert_eq!(scale, [2.0]);
//! let mut back = [0.0_f32; 4];
//! dequantize(&q, &scale, (2, 2), (2, 2), &mut back)?;
//! assert_eq!(back, [0.5, -1.0, 2.0, 896.0]);
//! # Ok::<(), glmcore_fp8::Error>(())
//! ```
#![forbid(unsafe_code)]
#![warn(missing_docs)]

mod blocks;
mod e4m3;

pub use blocks::{
    ACTIVATION_FLOOR, Element, Matrix, ScaleFormat, WEIGHT_FLOOR, dequantize, quantize,
};
pub use e4m3::{E4M3_MAX, decode, encode};

/// Why a matrix cannot be quantised or dequantised.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
#[expect(missing_docs, reason = "the messages name every field")]
pub enum Error {
    /// A value is infinite or not a number.
    #[error("value at row {row}, column {column} is not finite")]
    NotFinite { row: usize, column: usize },
    /// An array has another length than its shape says.
    #[error("{what} has {len} values, a shape of {rows} by {columns} needs {}", rows * columns)]
    Length { what: &'static str, len: usize, rows: usize, columns: usize },
    /// A block has no rows or no columns.
    #[error("block is {rows} by {columns}, both must be at least 1")]
    EmptyBlock { rows: usize, columns: usize },
}

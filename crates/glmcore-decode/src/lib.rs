//! Steps of a GLM mixture-of-experts model over a paged key-value cache, on the CPU in float32.
//!
//! A step takes new tokens of any number of sequences, one or many of each, through all layers, and leaves their keys and
//! values in the blocks of the sequences. **Rows do not know of each other**: every number of a token is made by the same
//! operations in the same order, whatever else is in the step, so a token has the same bits alone and in a batch, in a
//! long prompt read whole and read in parts, and behind keys that another sequence has left.
//!
//! [`Linear`] is the product that makes this so: partial sums in 16 lanes along the inputs, then a tree over the lanes.
#![deny(unsafe_code)]
#![warn(missing_docs)]
#![expect(
    clippy::inline_always,
    reason = "loops have to land in the function that has the instructions"
)]

mod attend;
mod elementwise;
mod experts;
mod instructions;
mod lanes;
mod linear;
mod record;
mod sample;
mod step;

pub use experts::{Experts, FeedForward, Mlp};
pub use linear::Linear;
pub use sample::{Wishes, draw};
pub use step::{Attention, Cache, Layer, Model, Step, multiply, run, run_recorded};

/// Tokens of a block.
pub const BLOCK: usize = 16;

/// Sizes and constants of a model.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Shape {
    /// Width of the residual stream.
    pub hidden: usize,
    /// Query heads.
    pub num_heads: usize,
    /// Key-value heads; divides the query heads.
    pub num_kv_heads: usize,
    /// Channels of a head, a multiple of 16.
    pub head_dim: usize,
    /// What scores are multiplied with: `head_dim ** -0.5`.
    pub scale: f32,
    /// Of the norms.
    pub eps: f32,
    /// Experts of a token.
    pub top_k: usize,
    /// Groups of experts.
    pub num_groups: usize,
    /// Groups that a token can choose from.
    pub top_groups: usize,
    /// Whether the weights of a token's experts sum to 1 before they are scaled.
    pub normalise: bool,
    /// What the weights of a token's experts are multiplied with.
    pub routed_scale: f32,
}

/// Why a step cannot be computed.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
#[expect(missing_docs, reason = "the messages name every field")]
pub enum Error {
    /// Heads that the cache has no layout for.
    #[error(
        "{num_heads} heads, {num_kv_heads} key-value heads and {head_dim} channels: heads must divide, channels be a multiple of 16"
    )]
    Heads { num_heads: usize, num_kv_heads: usize, head_dim: usize },
    /// An array has another length than it needs.
    #[error("{what} has {len} values, it needs {expected}")]
    Length { what: &'static str, len: usize, expected: usize },
    /// The sequences of the step are no sequences.
    #[error(
        "sequence {0} has no new tokens, fewer tokens than new ones, or more than its blocks hold"
    )]
    Sequence(usize),
    /// A token, a block or a row is not there.
    #[error("{what} {value} is outside 0..{end}")]
    Outside { what: &'static str, value: i64, end: usize },
}

//! Causal grouped-query attention within the documents of a packed batch, forward and backward.
//!
//! Every document sees itself alone. Queries and keys are taken in blocks of 64 tokens with an online softmax, so memory
//! grows with the length of a document and not with its square (Dao et al., arXiv:2205.14135; the
//! backward pass is algorithm 4 there). Blocks begin where the document begins and each document is computed by one
//! thread for a group of heads, so results do not depend on its neighbours or on the number of threads, to the bit.
//!
//! ```
//! use glmcore_attention::{Shape, forward};
//!
//! let shape = Shape { num_heads: 1, num_kv_heads: 1, head_dim: 1 };
//! let (query, key, value) = ([0.0_f32; 3], [0.0; 3], [1.0, 3.0, 7.0]);
//! let (mut out, mut log_sum) = ([0.0; 3], [0.0; 3]);
//! forward(&query, &key, &value, &[0, 2, 3], shape, 1, &mut out, &mut log_sum)?;
//! assert_eq!(out, [1.0, 2.0, 7.0]); // the mean of what is seen
//! # Ok::<(), glmcore_attention::Error>(())
//! ```
#![deny(unsafe_code)]
#![warn(missing_docs)]
#![expect(
    clippy::inline_always,
    reason = "loops have to land in the function that has the instructions"
)]

mod backward;
mod element;
mod forward;
mod instructions;
mod threads;
mod tile;

pub use backward::{Gradients, backward};
pub use element::Element;
pub use forward::forward;

/// Heads and channels.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Shape {
    /// Query heads.
    pub num_heads: usize,
    /// Key-value heads; divides the query heads.
    pub num_kv_heads: usize,
    /// Channels of a head.
    pub head_dim: usize,
}

impl Shape {
    fn queries(self) -> usize {
        self.num_heads * self.head_dim
    }

    fn keys(self) -> usize {
        self.num_kv_heads * self.head_dim
    }

    /// Query heads that share a key-value head.
    fn group(self) -> usize {
        self.num_heads / self.num_kv_heads
    }
}

/// Why attention cannot be computed.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
#[expect(missing_docs, reason = "the messages name every field")]
pub enum Error {
    /// A shape has no heads or channels, or heads that do not divide.
    #[error("{0:?} needs num_kv_heads to divide num_heads, and all to be at least 1")]
    Shape(Shape),
    /// The bounds of the documents do not start at 0 or go back.
    #[error("cu_seqlens must start at 0 and never fall")]
    Bounds,
    /// An array has another length than its shape says.
    #[error("{what} has {len} values, it needs {expected}")]
    Length { what: &'static str, len: usize, expected: usize },
}

/// A document: its first token and its number of tokens.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Document {
    pub(crate) start: usize,
    pub(crate) len: usize,
}

/// The documents, and the number of tokens.
fn documents(cu_seqlens: &[i32], shape: Shape) -> Result<(Vec<Document>, usize), Error> {
    let Shape { num_heads, num_kv_heads, head_dim } = shape;
    if num_kv_heads == 0 || head_dim == 0 || num_heads == 0 || num_heads % num_kv_heads != 0 {
        return Err(Error::Shape(shape));
    }
    if cu_seqlens.first() != Some(&0) {
        return Err(Error::Bounds);
    }
    let mut documents = Vec::with_capacity(cu_seqlens.len() - 1);
    let mut start = 0;
    for &end in &cu_seqlens[1..] {
        let end = usize::try_from(end).map_err(|_| Error::Bounds)?;
        let len = end.checked_sub(start).ok_or(Error::Bounds)?;
        documents.push(Document { start, len });
        start = end;
    }
    Ok((documents, start))
}

fn check(what: &'static str, len: usize, expected: usize) -> Result<(), Error> {
    if len == expected { Ok(()) } else { Err(Error::Length { what, len, expected }) }
}

/// Pairs of a document and a key-value head, the longest documents first so that threads end together.
fn tasks(documents: &[Document], shape: Shape) -> Vec<(Document, usize)> {
    let mut longest_first: Vec<Document> =
        documents.iter().copied().filter(|document| document.len > 0).collect();
    longest_first.sort_by_key(|document| std::cmp::Reverse(document.len));
    let heads = 0..shape.num_kv_heads;
    longest_first
        .iter()
        .flat_map(|&document| heads.clone().map(move |head| (document, head)))
        .collect()
}

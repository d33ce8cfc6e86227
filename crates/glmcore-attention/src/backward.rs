//! The backward pass.

use crate::element::{Element, Real};
use crate::instructions::{Task, dispatch};
use crate::tile::{
    BLOCK, Strided, head_of_keys, head_of_queries, load, multiply, padded_columns, padded_rows, reset, sum, transpose,
};
use crate::{Document, Error, Shape, check, documents, tasks, threads};

/// What the forward pass was given, what it gave and the gradient of that.
#[derive(Debug, Clone, Copy)]
pub struct Gradients<'a, T: Element> {
    /// `[T, num_heads, head_dim]`.
    pub query: &'a [T],
    /// `[T, num_kv_heads, head_dim]`.
    pub key: &'a [T],
    /// `[T, num_kv_heads, head_dim]`.
    pub value: &'a [T],
    /// The forward pass's result, `[T, num_heads, head_dim]`.
    pub out: &'a [T],
    /// The forward pass's logarithms, `[num_heads, T]`.
    pub log_sum: &'a [T::Real],
    /// Gradient of `out`, `[T, num_heads, head_dim]`.
    pub grad: &'a [T],
}

/// Gradients of query, key and value, written to `grads` in this order; see [`forward`](crate::forward()).
///
/// # Errors
///
/// If a length does not fit the others.
pub fn backward<T: Element>(
    given: Gradients<'_, T>,
    cu_seqlens: &[i32],
    shape: Shape,
    num_threads: usize,
    grads: [&mut [T]; 3],
) -> Result<(), Error> {
    let (documents, tokens) = documents(cu_seqlens, shape)?;
    let (queries, keys) = (tokens * shape.queries(), tokens * shape.keys());
    let [grad_query, grad_key, grad_value] = grads;
    for (what, len, expected) in [
        ("query", given.query.len(), queries),
        ("key", given.key.len(), keys),
        ("value", given.value.len(), keys),
        ("out", given.out.len(), queries),
        ("log_sum", given.log_sum.len(), tokens * shape.num_heads),
        ("grad", given.grad.len(), queries),
        ("grad_query", grad_query.len(), queries),
        ("grad_key", grad_key.len(), keys),
        ("grad_value", grad_value.len(), keys),
    ] {
        check(what, len, expected)?;
    }
    let tasks = tasks(&documents, shape);
    threads::for_each(
        tasks.len(),
        num_threads,
        Scratch::default,
        |scratch, index| {
            let (document, kv_head) = tasks[index];
            let mut result = [Vec::new(), Vec::new(), Vec::new()];
            dispatch(Group { given, shape, tokens, document, kv_head, scratch, result: &mut result });
            result
        },
        |index, [query, key, value]| {
            let (document, kv_head) = tasks[index];
            let width = shape.group() * shape.head_dim;
            store(grad_query, &query, document, (shape.queries(), kv_head * width, width));
            store(grad_key, &key, document, head_of_keys(shape, kv_head));
            store(grad_value, &value, document, head_of_keys(shape, kv_head));
        },
    );
    Ok(())
}

/// Copies rows to their places among those of the batch.
fn store<T: Copy>(to: &mut [T], from: &[T], document: Document, (row, first, width): (usize, usize, usize)) {
    for (token, from) in from.chunks_exact(width).enumerate() {
        to[(document.start + token) * row + first..][..width].copy_from_slice(from);
    }
}

/// Memory of a thread. Rows of a document but for the last three, which are blocks.
struct Scratch<R> {
    query: Vec<R>,
    grad: Vec<R>,
    key: Vec<R>,
    key_transposed: Vec<R>,
    value: Vec<R>,
    value_transposed: Vec<R>,
    log_sum: Vec<R>,
    /// Products of each row of `out` and its gradient.
    inner: Vec<R>,
    grad_query: Vec<R>,
    grad_key: Vec<R>,
    grad_value: Vec<R>,
    weights: Vec<R>,
    grad_weights: Vec<R>,
}

impl<R: Real> Default for Scratch<R> {
    fn default() -> Self {
        let new = Vec::new;
        let block = || vec![R::ZERO; BLOCK * BLOCK];
        Self {
            query: new(),
            grad: new(),
            key: new(),
            key_transposed: new(),
            value: new(),
            value_transposed: new(),
            log_sum: new(),
            inner: new(),
            grad_query: new(),
            grad_key: new(),
            grad_value: new(),
            weights: block(),
            grad_weights: block(),
        }
    }
}

/// The heads of a document that share a key-value head.
struct Group<'a, T: Element> {
    given: Gradients<'a, T>,
    shape: Shape,
    tokens: usize,
    document: Document,
    kv_head: usize,
    scratch: &'a mut Scratch<T::Real>,
    result: &'a mut [Vec<T>; 3],
}

impl<T: Element> Task for Group<'_, T> {
    #[inline(always)]
    fn run<const FUSED: bool>(self) {
        let Self { given, shape, tokens, document, kv_head, scratch, result } = self;
        let (channels, len) = (shape.head_dim, document.len);
        let width = padded_columns(channels);
        for (from, rows, transposed) in [
            (given.key, &mut scratch.key, &mut scratch.key_transposed),
            (given.value, &mut scratch.value, &mut scratch.value_transposed),
        ] {
            reset(rows, len, width);
            load(from, document, head_of_keys(shape, kv_head), None, width, rows);
            reset(transposed, len, channels);
            transpose(rows, width, channels, transposed);
        }
        reset(&mut scratch.grad_key, len, width);
        reset(&mut scratch.grad_value, len, width);
        let scale = T::Real::inverse_root(channels);
        for head in 0..shape.group() {
            let of_all = kv_head * shape.group() + head;
            let place = head_of_queries(shape, of_all);
            // The product of every row with its gradient first, in the place where the queries will be.
            reset(&mut scratch.query, len, width);
            reset(&mut scratch.grad, len, width);
            load(given.out, document, place, None, width, &mut scratch.query);
            load(given.grad, document, place, None, width, &mut scratch.grad);
            reset(&mut scratch.inner, len, 1);
            let rows = scratch.query.chunks_exact_mut(width).zip(scratch.grad.chunks_exact(width));
            for (inner, (out, grad)) in scratch.inner.iter_mut().zip(rows) {
                for (out, &grad) in out.iter_mut().zip(grad) {
                    *out = out.times(grad);
                }
                *inner = sum(out);
            }
            load(given.query, document, place, Some(scale), width, &mut scratch.query);
            reset(&mut scratch.log_sum, len, 1);
            scratch.log_sum[..len]
                .copy_from_slice(&given.log_sum[of_all * tokens + document.start..][..len]);
            reset(&mut scratch.grad_query, len, width);
            for start in (0..len).step_by(BLOCK) {
                for first in (start..len).step_by(BLOCK) {
                    let columns = BLOCK.min(len - start);
                    go_back::<_, FUSED>(scratch, (channels, width), (first, BLOCK.min(len - first)), (start, columns));
                }
            }
            write(&mut result[0], &scratch.grad_query, Some(scale), (len, width, channels), (shape.group(), head));
        }
        write(&mut result[1], &scratch.grad_key, None, (len, width, channels), (1, 0));
        write(&mut result[2], &scratch.grad_value, None, (len, width, channels), (1, 0));
    }
}

/// Adds what a block of queries and a block of keys give to the gradients of both.
#[inline(always)]
fn go_back<R: Real, const FUSED: bool>(
    scratch: &mut Scratch<R>,
    (channels, width): (usize, usize),
    (first, rows): (usize, usize),
    (start, columns): (usize, usize),
) {
    let (m, n) = (padded_rows(rows), padded_columns(columns));
    let query = &scratch.query[first * width..];
    let grad = &scratch.grad[first * width..];
    let by_row = |values| Strided { values, row: width, column: 1 };
    let key = &scratch.key_transposed[start * channels..];
    multiply::<R, FUSED, false>((m, n, channels), by_row(query), (key, BLOCK), (&mut scratch.weights, BLOCK));
    let value = &scratch.value_transposed[start * channels..];
    multiply::<R, FUSED, false>((m, n, channels), by_row(grad), (value, BLOCK), (&mut scratch.grad_weights, BLOCK));
    for i in 0..m {
        let (log_sum, inner) = (scratch.log_sum[first + i], scratch.inner[first + i]);
        let weights = &mut scratch.weights[i * BLOCK..][..n];
        for weight in weights.iter_mut() {
            *weight = weight.minus(log_sum).exponential::<FUSED>();
        }
        if first == start {
            weights[(i + 1).min(n)..].fill(R::ZERO);
        }
        let grads = &mut scratch.grad_weights[i * BLOCK..][..n];
        for (grad, &weight) in grads.iter_mut().zip(weights.iter()) {
            *grad = weight.times(grad.minus(inner));
        }
    }
    let transposed = |values| Strided { values, row: 1, column: BLOCK };
    let k = padded_rows(columns); // rows of the keys' gradients
    let to = &mut scratch.grad_value[start * width..];
    multiply::<R, FUSED, true>((k, width, m), transposed(&scratch.weights), (grad, width), (to, width));
    let to = &mut scratch.grad_key[start * width..];
    multiply::<R, FUSED, true>((k, width, m), transposed(&scratch.grad_weights), (query, width), (to, width));
    let by_row = Strided { values: scratch.grad_weights.as_slice(), row: BLOCK, column: 1 };
    let to = &mut scratch.grad_query[first * width..];
    let key = &scratch.key[start * width..];
    multiply::<R, FUSED, true>((m, width, n), by_row, (key, width), (to, width));
}

/// Rounds rows of `width` to those of head `head` of `heads`, `channels` each.
#[inline(always)]
fn write<T: Element>(
    to: &mut Vec<T>,
    from: &[T::Real],
    factor: Option<T::Real>,
    (len, width, channels): (usize, usize, usize),
    (heads, head): (usize, usize),
) {
    to.resize(len * heads * channels, T::narrow(T::Real::ZERO));
    for (to, from) in to.chunks_exact_mut(heads * channels).zip(from.chunks_exact(width)) {
        for (to, &from) in to[head * channels..][..channels].iter_mut().zip(from) {
            *to = T::narrow(factor.map_or(from, |factor| from.times(factor)));
        }
    }
}

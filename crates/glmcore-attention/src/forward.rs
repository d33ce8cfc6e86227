//! The forward pass.

use crate::element::{Element, Real};
use crate::instructions::{Task, dispatch};
use crate::tile::{
    BLOCK, Strided, head_of_keys, head_of_queries, largest, load, multiply, padded_columns, padded_rows, reset, sum,
    transpose,
};
use crate::{Document, Error, Shape, check, documents, tasks, threads};

/// Attends from every token to the tokens of its document up to itself, with scale `head_dim ** -0.5`.
///
/// `query` and `out` are `[T, num_heads, head_dim]`, `key` and `value` `[T, num_kv_heads, head_dim]`, and document `n`
/// is the tokens `cu_seqlens[n]..cu_seqlens[n + 1]`. `log_sum` `[num_heads, T]` becomes the logarithm of the sum of the
/// exponentials that each query's weights are divided by, for [`backward`](crate::backward).
///
/// # Errors
///
/// If a length does not fit the others.
#[expect(clippy::too_many_arguments, reason = "arrays of one call")]
pub fn forward<T: Element>(
    query: &[T],
    key: &[T],
    value: &[T],
    cu_seqlens: &[i32],
    shape: Shape,
    num_threads: usize,
    out: &mut [T],
    log_sum: &mut [T::Real],
) -> Result<(), Error> {
    let (documents, tokens) = documents(cu_seqlens, shape)?;
    check("query", query.len(), tokens * shape.queries())?;
    check("key", key.len(), tokens * shape.keys())?;
    check("value", value.len(), tokens * shape.keys())?;
    check("out", out.len(), tokens * shape.queries())?;
    check("log_sum", log_sum.len(), tokens * shape.num_heads)?;
    let tasks = tasks(&documents, shape);
    threads::for_each(
        tasks.len(),
        num_threads,
        Scratch::default,
        |scratch, index| {
            let (document, kv_head) = tasks[index];
            let mut result = (Vec::new(), Vec::new());
            dispatch(Group { query, key, value, shape, document, kv_head, scratch, result: &mut result });
            result
        },
        |index, (attended, sums)| {
            let (document, kv_head) = tasks[index];
            let width = shape.group() * shape.head_dim;
            for (token, row) in attended.chunks_exact(width).enumerate() {
                let first = (document.start + token) * shape.queries() + kv_head * width;
                out[first..first + width].copy_from_slice(row);
            }
            for (head, row) in sums.chunks_exact(document.len).enumerate() {
                let first = (kv_head * shape.group() + head) * tokens + document.start;
                log_sum[first..first + document.len].copy_from_slice(row);
            }
        },
    );
    Ok(())
}

/// Memory of a thread.
struct Scratch<R> {
    query: Vec<R>,
    key: Vec<R>,
    key_transposed: Vec<R>,
    value: Vec<R>,
    scores: Vec<R>,
    sums: Vec<R>,
}

impl<R: Real> Default for Scratch<R> {
    fn default() -> Self {
        let new = Vec::new;
        let scores = vec![R::ZERO; BLOCK * BLOCK];
        Self { query: new(), key: new(), key_transposed: new(), value: new(), scores, sums: new() }
    }
}

/// The heads of a document that share a key-value head.
struct Group<'a, T: Element> {
    query: &'a [T],
    key: &'a [T],
    value: &'a [T],
    shape: Shape,
    document: Document,
    kv_head: usize,
    scratch: &'a mut Scratch<T::Real>,
    /// Rows of the group's heads, and a row of logarithms for each head.
    result: &'a mut (Vec<T>, Vec<T::Real>),
}

impl<T: Element> Task for Group<'_, T> {
    #[inline(always)]
    fn run<const FUSED: bool>(self) {
        let Self { query, key, value, shape, document, kv_head, scratch, result } = self;
        let (channels, len) = (shape.head_dim, document.len);
        let width = padded_columns(channels);
        let row = shape.group() * channels;
        let zero = T::Real::ZERO;
        result.0.resize(len * row, T::narrow(zero));
        result.1.resize(len * shape.group(), zero);

        for (from, to) in [(key, &mut scratch.key), (value, &mut scratch.value)] {
            reset(to, len, width);
            load(from, document, head_of_keys(shape, kv_head), None, width, to);
        }
        reset(&mut scratch.key_transposed, len, channels);
        transpose(&scratch.key, width, channels, &mut scratch.key_transposed);
        let scale = T::Real::inverse_root(channels);
        for head in 0..shape.group() {
            let place = head_of_queries(shape, kv_head * shape.group() + head);
            reset(&mut scratch.query, len, width);
            load(query, document, place, Some(scale), width, &mut scratch.query);
            for first in (0..len).step_by(BLOCK) {
                let rows = BLOCK.min(len - first);
                let (top, total) = attend::<_, FUSED>(scratch, (channels, width), first, rows);
                for i in 0..rows {
                    let sums = &scratch.sums[i * width..][..channels];
                    let to = &mut result.0[(first + i) * row + head * channels..][..channels];
                    for (to, &sum) in to.iter_mut().zip(sums) {
                        *to = T::narrow(sum.over(total[i]));
                    }
                    result.1[head * len + first + i] = top[i].plus(total[i].logarithm());
                }
            }
        }
    }
}

/// Makes `scratch.sums` the values summed by weight for the block of queries from `first` on; gives, for each row, the
/// largest score and the sum of the exponentials of scores less that.
#[inline(always)]
fn attend<R: Real, const FUSED: bool>(
    scratch: &mut Scratch<R>,
    (channels, width): (usize, usize),
    first: usize,
    rows: usize,
) -> ([R; BLOCK], [R; BLOCK]) {
    let m = padded_rows(rows);
    let query = Strided { values: &scratch.query[first * width..], row: width, column: 1 };
    let (mut top, mut total) = ([R::LOWEST; BLOCK], [R::ZERO; BLOCK]);
    reset(&mut scratch.sums, BLOCK, width);
    for start in (0..=first).step_by(BLOCK) {
        let diagonal = start == first;
        let n = padded_columns(if diagonal { rows } else { BLOCK });
        let key = &scratch.key_transposed[start * channels..];
        multiply::<R, FUSED, false>((m, n, channels), query, (key, BLOCK), (&mut scratch.scores, BLOCK));
        for i in 0..m {
            let scores = &mut scratch.scores[i * BLOCK..][..n];
            if diagonal {
                scores[(i + 1).min(n)..].fill(R::LOWEST);
            }
            let highest = largest(scores);
            let highest = if highest > top[i] { highest } else { top[i] };
            for score in scores.iter_mut() {
                *score = score.minus(highest).exponential::<FUSED>();
            }
            let shrink = top[i].minus(highest).exponential::<FUSED>();
            top[i] = highest;
            total[i] = total[i].multiply_add::<FUSED>(shrink, sum(scores));
            for sum in &mut scratch.sums[i * width..][..width] {
                *sum = sum.times(shrink);
            }
        }
        let weights = Strided { values: &scratch.scores, row: BLOCK, column: 1 };
        let value = &scratch.value[start * width..];
        multiply::<R, FUSED, true>((m, width, n), weights, (value, width), (&mut scratch.sums, width));
    }
    (top, total)
}

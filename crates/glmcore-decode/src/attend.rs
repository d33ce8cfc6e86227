//! Attention of new tokens to the blocks of their sequences.

use crate::instructions::Instructions;
use crate::lanes::{LANES, sum_of_lanes};
use crate::{BLOCK, Shape, Step};

/// Queries that meet keys and values together.
const ROWS: usize = 4;

/// Where a head of a block lies.
#[inline(always)]
fn place(shape: &Shape, block: i32, head: usize) -> usize {
    (block.unsigned_abs() as usize * shape.num_kv_heads + head) * shape.head_dim * BLOCK
}

/// Puts a token's keys and values, `[num_kv_heads, head_dim]` each, into its place.
#[inline(always)]
pub(crate) fn store(
    shape: &Shape,
    (key, value): (&[f32], &[f32]),
    table: &[i32],
    position: usize,
    (keys, values): (&mut [f32], &mut [f32]),
) {
    let (channels, offset) = (shape.head_dim, position % BLOCK);
    for head in 0..shape.num_kv_heads {
        let start = place(shape, table[position / BLOCK], head);
        let key = &key[head * channels..][..channels];
        for (channel, key) in keys[start..][..channels * BLOCK].chunks_exact_mut(BLOCK).zip(key) {
            channel[offset] = *key;
        }
        values[start + offset * channels..][..channels]
            .copy_from_slice(&value[head * channels..][..channels]);
    }
}

/// A query head of a token.
#[derive(Clone, Copy)]
struct Row {
    /// Where its channels begin.
    start: usize,
    position: usize,
}

/// Attends from the new tokens of sequence `index` with scale `head_dim ** -0.5`. `query` and `out` are
/// `[T, num_heads, head_dim]`; `scores` is memory for the work.
///
/// Each query has its own sums over the keys in their order, so that it has the same bits whatever is computed beside it.
#[inline(always)]
pub(crate) fn attend<I: Instructions>(
    shape: &Shape,
    step: &Step<'_>,
    index: usize,
    query: &[f32],
    (keys, values): (&[f32], &[f32]),
    scores: &mut Vec<f32>,
    out: &mut [f32],
) {
    let (tokens, first, table) = step.sequence(index);
    let group = shape.num_heads / shape.num_kv_heads;
    let queries = tokens.len() * group;
    let longest = (first + tokens.len()).next_multiple_of(BLOCK);
    if scores.len() < ROWS * longest {
        scores.resize(ROWS * longest, 0.0);
    }
    for head in 0..shape.num_kv_heads {
        let row_of = |i: usize| {
            let (token, of_group) = (i / group, i % group);
            let row = (tokens.start + token) * shape.num_heads + head * group + of_group;
            Row { start: row * shape.head_dim, position: first + token }
        };
        let mut next = 0;
        while next < queries {
            let count = ROWS.min(queries - next);
            let rows: [Row; ROWS] = std::array::from_fn(|i| row_of(next + i.min(count - 1)));
            let blocks = &table[..=rows[ROWS - 1].position / BLOCK];
            let cache = (head, blocks, keys, values);
            match count {
                1 => meet::<I, 1>(shape, [rows[0]], cache, query, scores, out),
                2 => meet::<I, 2>(shape, [rows[0], rows[1]], cache, query, scores, out),
                3 => meet::<I, 3>(shape, [rows[0], rows[1], rows[2]], cache, query, scores, out),
                _ => meet::<I, ROWS>(shape, rows, cache, query, scores, out),
            }
            next += count;
        }
    }
}

/// The attention of `R` queries to blocks of one head.
#[inline(always)]
fn meet<I: Instructions, const R: usize>(
    shape: &Shape,
    rows: [Row; R],
    (head, blocks, keys, values): (usize, &[i32], &[f32], &[f32]),
    query: &[f32],
    scores: &mut [f32],
    out: &mut [f32],
) {
    let channels = shape.head_dim;
    let query: [&[f32]; R] = std::array::from_fn(|r| &query[rows[r].start..][..channels]);
    let width = blocks.len() * BLOCK;
    let mut top = [f32::MIN; R];
    for (i, &block) in blocks.iter().enumerate() {
        let keys = &keys[place(shape, block, head)..][..channels * BLOCK];
        let mut sums = I::scores(query, keys);
        for r in 0..R {
            // What lies behind the query's own place is of later tokens, or of nobody.
            let seen = (rows[r].position + 1).saturating_sub(i * BLOCK).min(BLOCK);
            let mut highest = [f32::MIN; LANES];
            for lane in 0..LANES {
                let score = sums[r][lane] * shape.scale;
                sums[r][lane] = if lane < seen { score } else { f32::NEG_INFINITY };
                highest[lane] = if lane < seen { score } else { f32::MIN };
            }
            top[r] = highest.iter().fold(top[r], |a, &b| if b > a { b } else { a });
            scores[r * width + i * BLOCK..][..BLOCK].copy_from_slice(&sums[r]);
        }
    }
    let mut total = [0.0; R];
    for r in 0..R {
        let mut sum = [0.0; LANES];
        for weights in scores[r * width..][..width].as_chunks_mut::<LANES>().0 {
            *weights = I::exponential(&weights.map(|score| score - top[r]));
            for lane in 0..LANES {
                sum[lane] += weights[lane];
            }
        }
        total[r] = sum_of_lanes(&sum);
    }
    let last = rows[R - 1].position;
    for channel in (0..channels).step_by(2 * LANES) {
        let (scores, cache) = (&scores[..], (blocks, values, last));
        if channel + 2 * LANES <= channels {
            mix::<I, R, 2>(shape, (rows, head, channel), cache, (scores, width), total, out);
        } else {
            mix::<I, R, 1>(shape, (rows, head, channel), cache, (scores, width), total, out);
        }
    }
}

/// The values of `V` vectors of channels, summed by weight.
#[inline(always)]
fn mix<I: Instructions, const R: usize, const V: usize>(
    shape: &Shape,
    (rows, head, channel): ([Row; R], usize, usize),
    (blocks, values, last): (&[i32], &[f32], usize),
    (scores, width): (&[f32], usize),
    total: [f32; R],
    out: &mut [f32],
) {
    let mut sums = [[[0.0; LANES]; V]; R];
    let weights: [&[f32]; R] = std::array::from_fn(|r| &scores[r * width..][..width]);
    for (i, &block) in blocks.iter().enumerate() {
        let count = (last + 1 - i * BLOCK).min(BLOCK);
        let values = &values[place(shape, block, head) + channel..]
            [..(count - 1) * shape.head_dim + V * LANES];
        let weights = weights.map(|weights| &weights[i * BLOCK..][..count]);
        I::mix(weights, values, shape.head_dim, &mut sums);
    }
    for r in 0..R {
        for v in 0..V {
            let out = &mut out[rows[r].start + channel + v * LANES..][..LANES];
            for lane in 0..LANES {
                out[lane] = sums[r][v][lane] / total[r];
            }
        }
    }
}

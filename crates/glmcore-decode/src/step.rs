//! The layers one after the other.

use std::ops::Range;

use crate::attend::{attend, store};
use crate::elementwise::{add, norm_head, rms_norm, rotate};
use crate::experts::{FeedForward, Scratch, room};
use crate::instructions::{Instructions, Task, dispatch};
use crate::linear::Linear;
use crate::record::Record;
use crate::{BLOCK, Error, Shape};

/// Projections and norms of attention.
#[derive(Debug, Clone, Copy)]
pub struct Attention<'a> {
    /// Projection of queries.
    pub query: Linear<'a>,
    /// Projection of keys.
    pub key: Linear<'a>,
    /// Projection of values.
    pub value: Linear<'a>,
    /// Projection of the result.
    pub output: Linear<'a>,
    /// Norms of query and key heads.
    pub norms: Option<(&'a [f32], &'a [f32])>,
}

/// One layer.
#[derive(Debug, Clone, Copy)]
pub struct Layer<'a> {
    /// Norm before attention.
    pub input_norm: &'a [f32],
    /// Attention.
    pub attention: Attention<'a>,
    /// Norm before the feed-forward layer.
    pub post_norm: &'a [f32],
    /// The feed-forward layer.
    pub feed_forward: FeedForward<'a>,
}

/// A model, in the memory of whoever has it.
#[derive(Debug, Clone)]
pub struct Model<'a> {
    /// Sizes.
    pub shape: Shape,
    /// `[V, D]`.
    pub embedding: &'a [f32],
    /// Layers, first to last.
    pub layers: Vec<Layer<'a>>,
    /// Norm behind the last layer.
    pub norm: &'a [f32],
}

/// The new tokens of a step, sequence after sequence.
#[derive(Debug, Clone, Copy)]
pub struct Step<'a> {
    /// Token ids, `[T]`.
    pub ids: &'a [i32],
    /// First new token of each sequence, and their number, `[B + 1]`.
    pub cu_queries: &'a [i32],
    /// Tokens of each sequence, the new ones included, `[B]`.
    pub lengths: &'a [i32],
    /// Blocks of each sequence, `[B, N]`.
    pub tables: &'a [i32],
    /// Cosines and sines of each position, `[P, R / 2]` each.
    pub angles: (&'a [f32], &'a [f32]),
    /// Channels that are rotated, by two.
    pub half_rotary: usize,
    /// New tokens whose hidden states are wanted, `[S]`.
    pub rows: &'a [i32],
}

/// Keys `[P, num_kv_heads, head_dim, BLOCK]` and values `[P, num_kv_heads, BLOCK, head_dim]` of a layer.
#[derive(Debug)]
pub struct Cache<'a> {
    /// Channel by channel.
    pub keys: &'a mut [f32],
    /// Token by token.
    pub values: &'a mut [f32],
}

fn unsigned(value: i32) -> usize {
    value.max(0).unsigned_abs() as usize
}

impl Step<'_> {
    fn num_sequences(&self) -> usize {
        self.lengths.len()
    }

    /// New tokens of a sequence, the position of the first, and the blocks.
    pub(crate) fn sequence(&self, index: usize) -> (Range<usize>, usize, &[i32]) {
        let tokens = unsigned(self.cu_queries[index])..unsigned(self.cu_queries[index + 1]);
        let first = unsigned(self.lengths[index]) - tokens.len();
        let width = self.tables.len() / self.lengths.len();
        (tokens, first, &self.tables[index * width..][..width])
    }

    fn check(&self, model: &Model<'_>, num_blocks: usize) -> Result<(), Error> {
        let (tokens, sequences) = (self.ids.len(), self.num_sequences());
        check("cu_queries", self.cu_queries.len(), sequences + 1)?;
        let width = self.tables.len() / sequences.max(1);
        check("tables", self.tables.len(), width * sequences)?;
        check("sin", self.angles.1.len(), self.angles.0.len())?;
        let vocabulary = model.embedding.len() / model.shape.hidden;
        inside("token", self.ids, vocabulary)?;
        inside("row", self.rows, tokens)?;
        let mut end = 0;
        for index in 0..sequences {
            let (from, to) = (self.cu_queries[index], self.cu_queries[index + 1]);
            let length = self.lengths[index];
            if from != end || to <= from || length < to - from || unsigned(length) > width * BLOCK {
                return Err(Error::Sequence(index));
            }
            end = to;
            let used = unsigned(length).div_ceil(BLOCK);
            inside("block", &self.tables[index * width..][..used], num_blocks)?;
            let known = self.angles.0.len() / self.half_rotary.max(1);
            inside("position", &[length - 1], known)?;
        }
        check("ids", tokens, unsigned(end))
    }
}

pub(crate) fn check(what: &'static str, len: usize, expected: usize) -> Result<(), Error> {
    if len == expected { Ok(()) } else { Err(Error::Length { what, len, expected }) }
}

fn inside(what: &'static str, values: &[i32], end: usize) -> Result<(), Error> {
    match values.iter().find(|&&value| value < 0 || unsigned(value) >= end) {
        None => Ok(()),
        Some(&value) => Err(Error::Outside { what, value: i64::from(value), end }),
    }
}

/// Runs the new tokens of a step and adds them to the caches, one of each layer. `out` `[S, D]` becomes the normed hidden
/// states of `step.rows`.
///
/// # Errors
///
/// If sizes do not fit, or a token, block or row is not there. Nothing has been written then.
///
/// # Panics
///
/// If the matrices of a layer do not fit the shape.
pub fn run<'a>(
    model: &Model<'a>,
    step: &Step<'_>,
    caches: &mut [Cache<'a>],
    out: &mut [f32],
) -> Result<(), Error> {
    start(model, step, caches, out, None)
}

/// [`run`] that also makes `chosen` `[T, L, K]` the experts of each token in each of the `L` layers that have some.
///
/// # Errors
///
/// See [`run`]; also if `chosen` has another size, or a layer has more than 2^16 experts.
///
/// # Panics
///
/// See [`run`].
pub fn run_recorded<'a>(
    model: &Model<'a>,
    step: &Step<'_>,
    caches: &mut [Cache<'a>],
    out: &mut [f32],
    chosen: &mut [u16],
) -> Result<(), Error> {
    let sparse = model.layers.iter().filter_map(|layer| match &layer.feed_forward {
        FeedForward::Sparse(experts) => Some(experts.correction.len()),
        FeedForward::Dense(_) => None,
    });
    let (num_layers, most) = sparse.fold((0, 0), |(n, most), count| (n + 1, most.max(count)));
    let end = usize::from(u16::MAX) + 1;
    if most > end {
        return Err(Error::Outside { what: "experts", value: most as i64, end: end + 1 });
    }
    let top_k = model.shape.top_k;
    check("chosen", chosen.len(), step.ids.len() * num_layers * top_k)?;
    start(model, step, caches, out, Some(Record { chosen, num_layers, top_k, done: 0 }))
}

fn start<'a>(
    model: &Model<'a>,
    step: &Step<'_>,
    caches: &mut [Cache<'a>],
    out: &mut [f32],
    record: Option<Record<'_>>,
) -> Result<(), Error> {
    let Shape { hidden, num_heads, num_kv_heads, head_dim, .. } = model.shape;
    if num_kv_heads == 0 || !num_heads.is_multiple_of(num_kv_heads) || !head_dim.is_multiple_of(16)
    {
        return Err(Error::Heads { num_heads, num_kv_heads, head_dim });
    }
    check("caches", caches.len(), model.layers.len())?;
    check("out", out.len(), step.rows.len() * hidden)?;
    let block = num_kv_heads * head_dim * BLOCK;
    let num_blocks = caches.first().map_or(0, |cache| cache.keys.len() / block);
    for cache in caches.iter() {
        check("keys", cache.keys.len(), num_blocks * block)?;
        check("values", cache.values.len(), num_blocks * block)?;
    }
    step.check(model, num_blocks)?;
    dispatch(Run { model, step, caches, out, record });
    Ok(())
}

/// `out = x weight^T`; see [`Linear`].
///
/// # Errors
///
/// If sizes do not fit.
pub fn multiply(linear: Linear<'_>, x: &[f32], out: &mut [f32]) -> Result<(), Error> {
    check("weight", linear.weight.len(), linear.outputs() * linear.inputs)?;
    check("x", x.len(), x.len() / linear.inputs * linear.inputs)?;
    check("out", out.len(), x.len() / linear.inputs * linear.outputs())?;
    dispatch(Product { linear, x, out });
    Ok(())
}

struct Product<'a> {
    linear: Linear<'a>,
    x: &'a [f32],
    out: &'a mut [f32],
}

impl Task for Product<'_> {
    #[inline(always)]
    fn run<I: Instructions>(self) {
        self.linear.apply::<I>(self.x, self.out);
    }
}

struct Run<'a, 'm> {
    model: &'a Model<'m>,
    step: &'a Step<'a>,
    caches: &'a mut [Cache<'m>],
    out: &'a mut [f32],
    record: Option<Record<'a>>,
}

/// Memory for the work of a layer.
#[derive(Default)]
struct Work {
    normed: Vec<f32>,
    query: Vec<f32>,
    key: Vec<f32>,
    value: Vec<f32>,
    attended: Vec<f32>,
    added: Vec<f32>,
    scores: Vec<f32>,
    feed_forward: Scratch,
}

impl Task for Run<'_, '_> {
    #[inline(always)]
    fn run<I: Instructions>(self) {
        let Self { model, step, caches, out, mut record } = self;
        let hidden = model.shape.hidden;
        let mut x = Vec::with_capacity(step.ids.len() * hidden);
        for &id in step.ids {
            x.extend_from_slice(&model.embedding[unsigned(id) * hidden..][..hidden]);
        }
        let mut work = Work::default();
        for (layer, cache) in model.layers.iter().zip(caches) {
            layer.run::<I>(&model.shape, step, cache, &mut work, &mut x);
            if let Some(record) = &mut record {
                record.add(&layer.feed_forward, &work.feed_forward);
            }
        }
        for (&row, out) in step.rows.iter().zip(out.chunks_exact_mut(hidden)) {
            rms_norm::<I>(&x[unsigned(row) * hidden..][..hidden], model.norm, model.shape.eps, out);
        }
    }
}

impl Layer<'_> {
    #[inline(always)]
    fn run<I: Instructions>(
        &self,
        shape: &Shape,
        step: &Step<'_>,
        cache: &mut Cache<'_>,
        work: &mut Work,
        x: &mut [f32],
    ) {
        let tokens = step.ids.len();
        let (queries, keys) =
            (shape.num_heads * shape.head_dim, shape.num_kv_heads * shape.head_dim);
        let normed = room(&mut work.normed, x.len());
        let added = room(&mut work.added, x.len());
        let query = room(&mut work.query, tokens * queries);
        let key = room(&mut work.key, tokens * keys);
        let value = room(&mut work.value, tokens * keys);
        let attended = room(&mut work.attended, tokens * queries);

        rms_norm::<I>(x, self.input_norm, shape.eps, normed);
        self.attention.query.apply::<I>(normed, query);
        self.attention.key.apply::<I>(normed, key);
        self.attention.value.apply::<I>(normed, value);
        // All keys of the step are in place before the first query meets them: sequences can share blocks.
        for index in 0..step.num_sequences() {
            let (range, first, table) = step.sequence(index);
            for (offset, token) in range.enumerate() {
                let position = first + offset;
                let key = &mut key[token * keys..][..keys];
                self.attention.turn::<I>(
                    shape,
                    step,
                    position,
                    &mut query[token * queries..][..queries],
                    key,
                );
                let value = &value[token * keys..][..keys];
                store(shape, (key, value), table, position, (cache.keys, cache.values));
            }
        }
        for index in 0..step.num_sequences() {
            let cache = (&*cache.keys, &*cache.values);
            attend::<I>(shape, step, index, query, cache, &mut work.scores, attended);
        }
        self.attention.output.apply::<I>(attended, added);
        add(x, added);
        rms_norm::<I>(x, self.post_norm, shape.eps, normed);
        self.feed_forward.apply::<I>(shape, normed, &mut work.feed_forward, added);
        add(x, added);
    }
}

impl Attention<'_> {
    /// Norms and rotates a token's heads.
    #[inline(always)]
    fn turn<I: Instructions>(
        &self,
        shape: &Shape,
        step: &Step<'_>,
        position: usize,
        query: &mut [f32],
        key: &mut [f32],
    ) {
        let half = step.half_rotary;
        let cos = &step.angles.0[position * half..][..half];
        let sin = &step.angles.1[position * half..][..half];
        let norms = self.norms.map_or([None, None], |(query, key)| [Some(query), Some(key)]);
        for (heads, norm) in [query, key].into_iter().zip(norms) {
            for head in heads.chunks_exact_mut(shape.head_dim) {
                if let Some(weight) = norm {
                    norm_head::<I>(head, weight, shape.eps);
                }
                rotate(head, cos, sin);
            }
        }
    }
}

//! The feed-forward layer of each token: one network for all, or some of many experts and a shared one.

use crate::Shape;
use crate::elementwise::{add, gated, swiglu};
use crate::instructions::Instructions;
use crate::lanes::{LANES, padded, sigmoid};
use crate::linear::Linear;

/// `down(silu(gate(x)) * up(x))`.
#[derive(Debug, Clone, Copy)]
pub struct Mlp<'a> {
    /// `[M, D]`.
    pub gate: Linear<'a>,
    /// `[M, D]`.
    pub up: Linear<'a>,
    /// `[D, M]`.
    pub down: Linear<'a>,
}

/// Experts of which a router chooses some for each token.
#[derive(Debug, Clone, Copy)]
pub struct Experts<'a> {
    /// `[E, D]`.
    pub router: Linear<'a>,
    /// Added to the scores for the choice alone, `[E]`.
    pub correction: &'a [f32],
    /// Gate and up of each expert, `[E, 2M, D]`.
    pub gate_up: &'a [f32],
    /// `[E, D, M]`.
    pub down: &'a [f32],
    /// The expert that every token sees.
    pub shared: Mlp<'a>,
}

/// A feed-forward layer.
#[derive(Debug, Clone, Copy)]
pub enum FeedForward<'a> {
    /// One network.
    Dense(Mlp<'a>),
    /// Some of many.
    Sparse(Experts<'a>),
}

/// Memory for the work.
#[derive(Default)]
pub(crate) struct Scratch {
    gate: Vec<f32>,
    up: Vec<f32>,
    gated: Vec<f32>,
    scores: Vec<f32>,
    rows: Vec<f32>,
    gate_up: Vec<f32>,
    routed: Vec<f32>,
    /// Experts of each token, and their weights.
    pub(crate) chosen: Vec<(usize, f32)>,
    place: Vec<usize>,
    order: Vec<usize>,
}

/// Makes room for so many numbers; what they are does not matter.
pub(crate) fn room(memory: &mut Vec<f32>, len: usize) -> &mut [f32] {
    if memory.len() < len {
        memory.resize(len, 0.0);
    }
    &mut memory[..len]
}

impl Mlp<'_> {
    #[inline(always)]
    fn apply<I: Instructions>(&self, x: &[f32], scratch: &mut Scratch, out: &mut [f32]) {
        let len = x.len() / self.gate.inputs * self.gate.outputs();
        let (gate, up) = (room(&mut scratch.gate, len), room(&mut scratch.up, len));
        self.gate.apply::<I>(x, gate);
        self.up.apply::<I>(x, up);
        let both = room(&mut scratch.gated, len);
        gated::<I>(gate, up, both);
        self.down.apply::<I>(both, out);
    }
}

impl FeedForward<'_> {
    /// The result for each row of `x` `[T, D]`.
    #[inline(always)]
    pub(crate) fn apply<I: Instructions>(
        &self,
        shape: &Shape,
        x: &[f32],
        scratch: &mut Scratch,
        out: &mut [f32],
    ) {
        match self {
            Self::Dense(mlp) => mlp.apply::<I>(x, scratch, out),
            Self::Sparse(experts) => {
                experts.shared.apply::<I>(x, scratch, out);
                experts.choose::<I>(shape, x, scratch);
                experts.apply::<I>(shape, x, scratch);
                let (hidden, k) = (shape.hidden, shape.top_k);
                for (token, out) in out.chunks_exact_mut(hidden).enumerate() {
                    let mut sum = vec![0.0; hidden];
                    for choice in token * k..(token + 1) * k {
                        let (_, weight) = scratch.chosen[choice];
                        let row = &scratch.routed[scratch.place[choice] * hidden..][..hidden];
                        for (sum, value) in sum.iter_mut().zip(row) {
                            *sum += weight * value;
                        }
                    }
                    add(out, &sum);
                }
            }
        }
    }
}

impl Experts<'_> {
    fn count(&self) -> usize {
        self.correction.len()
    }

    /// Makes `scratch.chosen` the experts of each token and their weights.
    #[inline(always)]
    fn choose<I: Instructions>(&self, shape: &Shape, x: &[f32], scratch: &mut Scratch) {
        let count = self.count();
        let tokens = x.len() / shape.hidden;
        let scores = room(&mut scratch.scores, tokens * count);
        self.router.apply::<I>(x, scores);
        for chunk in scores.chunks_mut(LANES) {
            let len = chunk.len();
            chunk.copy_from_slice(&sigmoid::<I>(&padded(chunk))[..len]);
        }
        scratch.chosen.clear();
        let mut wanted = vec![0.0; count];
        for scores in scores.chunks_exact(count) {
            for ((wanted, score), bias) in wanted.iter_mut().zip(scores).zip(self.correction) {
                *wanted = score + bias;
            }
            keep_best_groups(shape, &mut wanted);
            let first = scratch.chosen.len();
            for _ in 0..shape.top_k {
                let best = largest(&wanted);
                wanted[best] = f32::NEG_INFINITY;
                scratch.chosen.push((best, scores[best]));
            }
            let total: f32 = scratch.chosen[first..].iter().map(|(_, score)| score).sum();
            for (_, weight) in &mut scratch.chosen[first..] {
                if shape.normalise {
                    *weight /= total + 1e-20;
                }
                *weight *= shape.routed_scale;
            }
        }
    }

    /// Makes `scratch.routed` the results of the chosen experts, in the order of the experts, so that each is read once.
    #[inline(always)]
    fn apply<I: Instructions>(&self, shape: &Shape, x: &[f32], scratch: &mut Scratch) {
        let (hidden, choices) = (shape.hidden, scratch.chosen.len());
        let width = self.down.len() / self.count() / hidden;
        let mut ends = vec![0; self.count() + 1];
        for &(expert, _) in &scratch.chosen {
            ends[expert + 1] += 1;
        }
        for expert in 0..self.count() {
            ends[expert + 1] += ends[expert];
        }
        let mut next = ends.clone();
        scratch.place.resize(choices, 0);
        scratch.order.resize(choices, 0);
        for (choice, &(expert, _)) in scratch.chosen.iter().enumerate() {
            scratch.place[choice] = next[expert];
            scratch.order[next[expert]] = choice;
            next[expert] += 1;
        }
        let routed = room(&mut scratch.routed, choices * hidden);
        for expert in 0..self.count() {
            let chosen = &scratch.order[ends[expert]..ends[expert + 1]];
            if chosen.is_empty() {
                continue;
            }
            let rows = room(&mut scratch.rows, chosen.len() * hidden);
            for (row, choice) in rows.chunks_exact_mut(hidden).zip(chosen) {
                row.copy_from_slice(&x[choice / shape.top_k * hidden..][..hidden]);
            }
            let up = &self.gate_up[expert * 2 * width * hidden..][..2 * width * hidden];
            let down = &self.down[expert * width * hidden..][..width * hidden];
            let gate_up = room(&mut scratch.gate_up, chosen.len() * 2 * width);
            Linear { weight: up, bias: None, inputs: hidden }.apply::<I>(rows, gate_up);
            let both = room(&mut scratch.gated, chosen.len() * width);
            swiglu::<I>(gate_up, width, both);
            let out = &mut routed[ends[expert] * hidden..ends[expert + 1] * hidden];
            Linear { weight: down, bias: None, inputs: width }.apply::<I>(both, out);
        }
    }
}

/// The first of the largest numbers.
fn largest(values: &[f32]) -> usize {
    let mut best = 0;
    for (i, &value) in values.iter().enumerate() {
        if value > values[best] {
            best = i;
        }
    }
    best
}

/// Puts experts outside a token's best groups out of reach; a group counts by its two best.
fn keep_best_groups(shape: &Shape, wanted: &mut [f32]) {
    if shape.num_groups == 1 {
        return;
    }
    let size = wanted.len() / shape.num_groups;
    let mut of_group: Vec<f32> = wanted
        .chunks_exact(size)
        .map(|group| {
            let best = largest(group);
            let others = group.iter().enumerate().filter(|&(i, _)| i != best);
            group[best] + others.fold(f32::NEG_INFINITY, |a, (_, &b)| a.max(b))
        })
        .collect();
    let mut kept = vec![false; shape.num_groups];
    for _ in 0..shape.top_groups {
        let best = largest(&of_group);
        of_group[best] = f32::NEG_INFINITY;
        kept[best] = true;
    }
    for (group, kept) in wanted.chunks_exact_mut(size).zip(kept) {
        if !kept {
            group.fill(f32::NEG_INFINITY);
        }
    }
}

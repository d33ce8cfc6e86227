//! What is done number by number or head by head: norms, rotation, gates.

use crate::instructions::Instructions;
use crate::lanes::{LANES, dot, padded, sigmoid};

/// `out = x / sqrt(mean(x^2) + eps) * weight`, row by row.
#[inline(always)]
pub(crate) fn rms_norm<I: Instructions>(x: &[f32], weight: &[f32], eps: f32, out: &mut [f32]) {
    let width = weight.len();
    for (x, out) in x.chunks_exact(width).zip(out.chunks_exact_mut(width)) {
        let scale = 1.0 / (dot::<I>(x, x) / width as f32 + eps).sqrt();
        for ((out, x), weight) in out.iter_mut().zip(x).zip(weight) {
            *out = x * scale * weight;
        }
    }
}

/// The norm of a head, in place.
#[inline(always)]
pub(crate) fn norm_head<I: Instructions>(head: &mut [f32], weight: &[f32], eps: f32) {
    let scale = 1.0 / (dot::<I>(head, head) / head.len() as f32 + eps).sqrt();
    for (value, weight) in head.iter_mut().zip(weight) {
        *value = *value * scale * weight;
    }
}

/// Rotates the first channels of a head: pairs are half of the rotated channels apart.
#[inline(always)]
pub(crate) fn rotate(head: &mut [f32], cos: &[f32], sin: &[f32]) {
    let (first, rest) = head.split_at_mut(cos.len());
    for (((a, b), cos), sin) in first.iter_mut().zip(rest).zip(cos).zip(sin) {
        (*a, *b) = (*a * cos - *b * sin, *b * cos + *a * sin);
    }
}

/// `silu(gate) * up` of rows that hold the gate first and then as much of up.
#[inline(always)]
pub(crate) fn swiglu<I: Instructions>(gate_up: &[f32], width: usize, out: &mut [f32]) {
    for (row, out) in gate_up.chunks_exact(2 * width).zip(out.chunks_exact_mut(width)) {
        let (gate, up) = row.split_at(width);
        gated::<I>(gate, up, out);
    }
}

/// `silu(gate) * up`.
#[inline(always)]
pub(crate) fn gated<I: Instructions>(gate: &[f32], up: &[f32], out: &mut [f32]) {
    let chunks = gate.chunks(LANES).zip(up.chunks(LANES)).zip(out.chunks_mut(LANES));
    for ((gate, up), out) in chunks {
        let share = sigmoid::<I>(&padded(gate));
        for lane in 0..out.len() {
            out[lane] = gate[lane] * share[lane] * up[lane];
        }
    }
}

/// `x += y`.
#[inline(always)]
pub(crate) fn add(x: &mut [f32], y: &[f32]) {
    for (x, y) in x.iter_mut().zip(y) {
        *x += y;
    }
}

//! The next token of each sequence from its scores: no row knows of the others.

use crate::Error;
use crate::experts::room;
use crate::instructions::{Instructions, Task, dispatch};
use crate::lanes::{LANES, Lanes, sum_of_lanes};
use crate::step::check;

/// Tokens whose weights are summed before the cumulative sum, which is then so much shorter.
const GROUP: usize = 4 * LANES;

/// What `B` sequences ask of sampling, each `[B]`.
#[derive(Debug, Clone, Copy)]
pub struct Wishes<'a> {
    /// What scores are divided by; 0 for the most likely token.
    pub temperature: &'a [f32],
    /// Tokens that can come, the most likely ones; 0 for all.
    pub top_k: &'a [i64],
    /// Part of what `top_k` left that the tokens that can come must reach; 1 for all.
    pub top_p: &'a [f32],
    /// Tokens that can come are at least this times as likely as the first; 0 for all.
    pub min_p: &'a [f32],
    /// Random numbers in `[0, 1)`.
    pub uniform: &'a [f64],
}

/// Draws a token from each row of `scores` `[B, V]`, and gives its log-probability at the temperature (at 1 where that is
/// 0) before any truncation. A row whose scores are no distribution gets token 0 and NaN.
///
/// Of the tokens ordered by probability, equal ones by id, `top_k` keeps so many, `top_p` those before which the sum is
/// below this part of what `top_k` kept, and `min_p` those that are likely enough; the first always stays. The random
/// number is then looked up in the cumulative distribution.
///
/// # Errors
///
/// If sizes do not fit.
pub fn draw(
    scores: &[f32],
    wishes: Wishes<'_>,
    tokens: &mut [i64],
    logprobs: &mut [f32],
) -> Result<(), Error> {
    let count = tokens.len();
    check("temperature", wishes.temperature.len(), count)?;
    check("top_k", wishes.top_k.len(), count)?;
    check("top_p", wishes.top_p.len(), count)?;
    check("min_p", wishes.min_p.len(), count)?;
    check("uniform", wishes.uniform.len(), count)?;
    check("logprobs", logprobs.len(), count)?;
    let vocab = scores.len() / count.max(1);
    check("scores", scores.len(), vocab * count)?;
    if vocab > 0 {
        dispatch(Draw { scores, vocab, wishes, tokens, logprobs });
    }
    Ok(())
}

struct Draw<'a> {
    scores: &'a [f32],
    vocab: usize,
    wishes: Wishes<'a>,
    tokens: &'a mut [i64],
    logprobs: &'a mut [f32],
}

impl Task for Draw<'_> {
    #[inline(always)]
    fn run<I: Instructions>(self) {
        let Self { scores, vocab, wishes, tokens, logprobs } = self;
        let mut memory = Vec::new();
        let weights = room(&mut memory, vocab.next_multiple_of(GROUP));
        let mut sums = vec![0.0; weights.len() / GROUP];
        for (row, scores) in scores.chunks_exact(vocab).enumerate() {
            let (highest, broken) = maximum(scores);
            if broken || !highest.is_finite() {
                (tokens[row], logprobs[row]) = (0, f32::NAN);
                continue;
            }
            let temperature = wishes.temperature[row];
            let heat = if temperature == 0.0 { 1.0 } else { temperature };
            weigh::<I>(scores, highest, heat, weights, &mut sums);
            let total: f64 = sums.iter().map(|&sum| f64::from(sum)).sum();
            let limits = Limits {
                top_k: usize::try_from(wishes.top_k[row]).unwrap_or(0),
                top_p: wishes.top_p[row],
                min_p: wishes.min_p[row],
            };
            let uniform = wishes.uniform[row];
            let token = if temperature == 0.0 {
                scores.iter().position(|&score| score == highest).unwrap_or(0)
            } else if limits.keep_all() {
                look_up(weights, &sums, uniform, total)
            } else {
                among_likely(&weights[..vocab], limits, uniform, total)
            };
            tokens[row] = i64::try_from(token).expect("a vocabulary is no larger");
            let score = f64::from(scores[token] - highest) / f64::from(heat);
            #[expect(clippy::cast_possible_truncation, reason = "the result is float32")]
            let logprob = (score - total.ln()) as f32;
            logprobs[row] = logprob;
        }
    }
}

/// The largest of numbers, and whether one is no number.
#[inline(always)]
fn maximum(values: &[f32]) -> (f32, bool) {
    let (vectors, rest) = values.as_chunks::<LANES>();
    let mut highest = [f32::NEG_INFINITY; LANES];
    let mut broken = [false; LANES];
    for vector in vectors {
        for lane in 0..LANES {
            highest[lane] = if vector[lane] > highest[lane] { vector[lane] } else { highest[lane] };
            broken[lane] |= vector[lane].is_nan();
        }
    }
    let highest =
        highest.iter().chain(rest).fold(f32::NEG_INFINITY, |a, &b| if b > a { b } else { a });
    (highest, broken.contains(&true) || rest.iter().any(|value| value.is_nan()))
}

/// Makes `weights` the exponentials of `(score - highest) / heat`, filled up with zeros, and `sums` those of its groups.
#[inline(always)]
fn weigh<I: Instructions>(
    scores: &[f32],
    highest: f32,
    heat: f32,
    weights: &mut [f32],
    sums: &mut [f32],
) {
    let (vectors, rest) = scores.as_chunks::<LANES>();
    let mut last = [f32::NEG_INFINITY; LANES];
    last[..rest.len()].copy_from_slice(rest);
    let all = vectors.iter().chain((!rest.is_empty()).then_some(&last));
    let (places, _) = weights.as_chunks_mut::<LANES>();
    for (place, vector) in places.iter_mut().zip(all) {
        *place = I::exponential(&vector.map(|score| (score - highest) / heat));
    }
    weights[scores.len()..].fill(0.0);
    for (group, sum) in weights.chunks_exact(GROUP).zip(sums) {
        let mut of_lane: Lanes = [0.0; LANES];
        for vector in group.as_chunks::<LANES>().0 {
            for lane in 0..LANES {
                of_lane[lane] += vector[lane];
            }
        }
        *sum = sum_of_lanes(&of_lane);
    }
}

/// First token whose cumulative weight exceeds `uniform` of the total; never one of weight 0.
fn look_up(weights: &[f32], sums: &[f32], uniform: f64, total: f64) -> usize {
    let target = (uniform * total).min(total.next_down());
    let (group, before) = first_beyond(sums, target, 0.0);
    let start = group * GROUP;
    start + first_beyond(&weights[start..][..GROUP], target, before).0
}

/// First place whose cumulative sum exceeds `target`, and the sum of those before it. The last with mass if rounding lets
/// none exceed it.
fn first_beyond(mass: &[f32], target: f64, start: f64) -> (usize, f64) {
    let (mut sum, mut last) = (start, (0, start));
    for (place, &mass) in mass.iter().enumerate() {
        if mass > 0.0 {
            last = (place, sum);
            sum += f64::from(mass);
            if sum > target {
                break;
            }
        }
    }
    last
}

/// What truncation keeps.
#[derive(Clone, Copy)]
struct Limits {
    top_k: usize,
    top_p: f32,
    min_p: f32,
}

impl Limits {
    fn keep_all(self) -> bool {
        self.top_k == 0 && self.top_p >= 1.0 && self.min_p <= 0.0
    }
}

/// A token of those that truncation leaves. The largest weight is 1.
fn among_likely(weights: &[f32], limits: Limits, uniform: f64, total: f64) -> usize {
    let (kept, nucleus) = if limits.top_k > 0 {
        let mut kept = ordered(weights, 0.0);
        if limits.top_k < kept.len() {
            kept.select_nth_unstable(limits.top_k);
            kept.truncate(limits.top_k);
        }
        kept.sort_unstable();
        let reached: f64 = kept.iter().map(|&key| f64::from(weight_of(key))).sum();
        (kept, reached)
    } else {
        // Tokens below half of (1 - top_p) / V of the total are together less than half of what no nucleus needs.
        let needless = f64::from(1.0 - limits.top_p) * 0.5 / weights.len() as f64 * total;
        #[expect(clippy::cast_possible_truncation, reason = "a bound that may be rounded")]
        let mut kept = ordered(weights, limits.min_p.max(needless as f32));
        kept.sort_unstable();
        (kept, total)
    };
    let nucleus = nucleus * f64::from(limits.top_p);
    let mut sum = 0.0;
    let mut count = 0;
    for (place, &key) in kept.iter().enumerate() {
        let weight = weight_of(key);
        let beyond = (limits.top_p < 1.0 && sum >= nucleus) || weight < limits.min_p;
        if place > 0 && beyond {
            break;
        }
        sum += f64::from(weight);
        count = place + 1;
    }
    let masses: Vec<f32> = kept[..count].iter().map(|&key| weight_of(key)).collect();
    let target = (uniform * sum).min(sum.next_down());
    token_of(kept[first_beyond(&masses, target, 0.0).0])
}

/// Keys of the tokens of at least weight `floor`, and more than 0: the lower, the more likely, then the lower the id.
fn ordered(weights: &[f32], floor: f32) -> Vec<u64> {
    let likely = weights.iter().enumerate().filter(|&(_, &weight)| weight > 0.0 && weight >= floor);
    // The bits of positive numbers are ordered like them.
    likely.map(|(token, weight)| u64::from(!weight.to_bits()) << 32 | token as u64).collect()
}

fn weight_of(key: u64) -> f32 {
    #[expect(clippy::cast_possible_truncation, reason = "the upper half")]
    let bits = (key >> 32) as u32;
    f32::from_bits(!bits)
}

fn token_of(key: u64) -> usize {
    #[expect(clippy::cast_possible_truncation, reason = "the lower half")]
    let token = key as u32;
    token as usize
}

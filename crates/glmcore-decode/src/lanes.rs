//! Vectors of 16 numbers, in which every sum is made: one partial sum a lane, then a tree over the lanes. The order of a
//! sum so depends on its length alone.

use crate::instructions::Instructions;

/// Numbers of a vector.
pub(crate) const LANES: usize = 16;
pub(crate) type Lanes = [f32; LANES];

/// `a * b + c`.
#[inline(always)]
pub(crate) fn fused<I: Instructions>(a: f32, b: f32, c: f32) -> f32 {
    if I::FUSED { a.mul_add(b, c) } else { a * b + c }
}

/// `a * b + c`, lane by lane.
#[inline(always)]
pub(crate) fn add_product<I: Instructions>(sum: &mut Lanes, a: &Lanes, b: &Lanes) {
    for lane in 0..LANES {
        sum[lane] = fused::<I>(a[lane], b[lane], sum[lane]);
    }
}

/// The first numbers of `values`, zero in the lanes that are left.
#[inline(always)]
pub(crate) fn padded(values: &[f32]) -> Lanes {
    let mut lanes = [0.0; LANES];
    lanes[..values.len()].copy_from_slice(values);
    lanes
}

/// The sum of a vector: halves onto halves, four times.
#[inline(always)]
pub(crate) fn sum_of_lanes(vector: &Lanes) -> f32 {
    let mut sums = *vector;
    for half in [8, 4, 2, 1] {
        for lane in 0..half {
            sums[lane] += sums[lane + half];
        }
    }
    sums[0]
}

/// The sum of products.
#[inline(always)]
pub(crate) fn dot<I: Instructions>(a: &[f32], b: &[f32]) -> f32 {
    let ((a, a_rest), (b, b_rest)) = (a.as_chunks::<LANES>(), b.as_chunks::<LANES>());
    let mut sum = [0.0; LANES];
    for (a, b) in a.iter().zip(b) {
        add_product::<I>(&mut sum, a, b);
    }
    if !a_rest.is_empty() {
        add_product::<I>(&mut sum, &padded(a_rest), &padded(b_rest));
    }
    sum_of_lanes(&sum)
}

/// Arguments of the exponential that give a normal number.
pub(crate) const LEAST: f32 = -87.0;
pub(crate) const MOST: f32 = 88.0;
/// `1.5 * 2^23`: adding it leaves no bits behind the point.
pub(crate) const ROUND: f32 = 12_582_912.0;
/// `ln 2` in two parts; the first has 10 bits, so that a small integer times it is exact.
pub(crate) const LN2: (f32, f32) = (0.693_359_4, -2.121_944_4e-4);
/// Inverse factorials of 7 down to 0.
pub(crate) const TAYLOR: [f32; 8] =
    [1.0 / 5040.0, 1.0 / 720.0, 1.0 / 120.0, 1.0 / 24.0, 1.0 / 6.0, 0.5, 1.0, 1.0];

/// The exponential of each lane, to about 1e-7 of it; 0 below `LEAST`, for minus infinity too.
///
/// `exp(x) = 2^n exp(r)` with `|r| <= ln 2 / 2` and a Taylor polynomial.
#[inline(always)]
pub(crate) fn exponential<I: Instructions>(x: &Lanes) -> Lanes {
    let mut result = [0.0; LANES];
    for lane in 0..LANES {
        let value = x[lane].clamp(LEAST, MOST);
        let shifted = fused::<I>(value, std::f32::consts::LOG2_E, ROUND);
        let n = shifted - ROUND;
        let rest = fused::<I>(-n, LN2.1, fused::<I>(-n, LN2.0, value));
        let mut p = TAYLOR[0];
        for &coefficient in &TAYLOR[1..] {
            p = fused::<I>(p, rest, coefficient);
        }
        let power = f32::from_bits((shifted.to_bits() << 23).wrapping_add(0x3F80_0000));
        result[lane] = if x[lane] >= LEAST { p * power } else { 0.0 };
    }
    result
}

/// `1 / (1 + exp(-x))` of each lane.
#[inline(always)]
pub(crate) fn sigmoid<I: Instructions>(x: &Lanes) -> Lanes {
    let e = I::exponential(&x.map(|x| -x));
    e.map(|e| 1.0 / (1.0 + e))
}

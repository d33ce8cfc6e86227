//! The loops of `plain` without a branch, a table or a division, so that a compiler turns them into wide instructions.
//!
//! Bit for bit the same results; the proofs stand where the steps are.

use crate::element::Element;

/// Bits of 2^-6, the smallest normal e4m3 value.
const SMALLEST_NORMAL: u32 = 0x3c80_0000;

/// As `plain::encode_part` for finite values whose quotients by `scale` are at most 448 and half an ulp.
///
/// `scale` is normal and below 2^121, so that its reciprocal is normal too.
#[inline(always)]
pub(crate) fn encode_part<T: Element>(part: &[T], scale: f32, q: &mut [u8]) {
    let reciprocal = 1.0 / scale;
    for (value, q) in part.iter().zip(q) {
        let value = value.to_f32();
        let sign = (value.to_bits() >> 24) as u8 & 0x80; // of the value: the remainders of a -0 are +0
        *q = sign | encode(divide(value.abs(), scale, reciprocal)) & 0x7f;
    }
}

/// The correctly rounded quotient, wherever it is large enough to become a code other than 0.
///
/// One step with the remainder makes the quotient faithful, and a further one makes it correct, given that the
/// reciprocal is (Markstein, IBM J. Res. Dev. 34(1), 1990, theorem 8.2; Muller et al., Handbook of Floating-Point
/// Arithmetic, section 4.7). No remainder that matters underflows: quotients from 2^-11 on have remainders above
/// 2^-36 times a scale that is at least 2^-69.
#[inline(always)]
fn divide(value: f32, scale: f32, reciprocal: f32) -> f32 {
    let estimate = value * reciprocal;
    let faithful = (-estimate).mul_add(scale, value).mul_add(reciprocal, estimate);
    (-faithful).mul_add(scale, value).mul_add(reciprocal, faithful)
}

/// Nearest code, in the lower seven bits, of a value from 0 to 448 and half an ulp, ties to even.
///
/// With e the exponent of the value, at least that of the smallest normal, codes are 2^(e-3) apart. Adding
/// 2^(e+20), whose last mantissa bit is just that, rounds; the sum's last byte is then the number of steps, and
/// the code is `steps + 8 * (e + 6)`. Another 56 steps in the addend make the constant vanish in the last byte.
#[inline(always)]
fn encode(value: f32) -> u8 {
    let bits = value.to_bits();
    let exponent = (bits & 0x7f80_0000).max(SMALLEST_NORMAL);
    let rounded = value + f32::from_bits(exponent + (20 << 23) + 56);
    rounded.to_bits().wrapping_add(exponent >> 20).to_le_bytes()[0]
}

/// As `plain::decode_part`.
#[inline(always)]
pub(crate) fn decode_part<T: Element>(q: &[u8], scale: f32, out: &mut [T]) {
    for (&code, out) in q.iter().zip(out) {
        *out = T::from_f32(decode(code) * scale);
    }
}

/// Value of a code: its bits, moved, with float32's exponent. A subnormal gets the implied 1 of the smallest normal,
/// which is then taken away.
#[inline(always)]
fn decode(code: u8) -> f32 {
    let magnitude = u32::from(code & 0x7f);
    let subnormal = f32::from_bits((magnitude << 20) + (121 << 23)) - f32::from_bits(121 << 23);
    let normal = f32::from_bits((magnitude << 20) + (120 << 23));
    let value = if magnitude < 8 { subnormal } else { normal };
    let value = if magnitude == 0x7f { f32::NAN } else { value };
    f32::from_bits(value.to_bits() | u32::from(code & 0x80) << 24)
}

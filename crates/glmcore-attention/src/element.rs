//! Numbers in memory and the wider ones that are computed with.

use half::bf16;

/// A number that sums are made of.
pub trait Real: Copy + PartialOrd + Send + Sync + 'static {
    /// Zero.
    const ZERO: Self;
    /// Below all numbers.
    const LOWEST: Self;
    /// `self * by + plus`, rounded once if `FUSED`: only where the processor has an instruction for it.
    fn multiply_add<const FUSED: bool>(self, by: Self, plus: Self) -> Self;
    /// Sum.
    fn plus(self, other: Self) -> Self;
    /// Difference.
    fn minus(self, other: Self) -> Self;
    /// Product.
    fn times(self, other: Self) -> Self;
    /// Quotient.
    fn over(self, other: Self) -> Self;
    /// The exponential of a number that is not above 1 or so.
    fn exponential<const FUSED: bool>(self) -> Self;
    /// Natural logarithm.
    fn logarithm(self) -> Self;
    /// `1 / sqrt(count)`.
    fn inverse_root(count: usize) -> Self;
}

/// A number in memory: `f32`, `f64` or `bf16`.
pub trait Element: Copy + Send + Sync + 'static {
    /// What it is computed with.
    type Real: Real;
    /// To be computed with.
    fn widen(self) -> Self::Real;
    /// Rounded to nearest.
    fn narrow(value: Self::Real) -> Self;
}

macro_rules! real {
    ($type:ty, $exponential:expr) => {
        impl Real for $type {
            const ZERO: Self = 0.0;
            const LOWEST: Self = <$type>::MIN;
            #[inline(always)]
            fn multiply_add<const FUSED: bool>(self, by: Self, plus: Self) -> Self {
                if FUSED { self.mul_add(by, plus) } else { self * by + plus }
            }
            #[inline(always)]
            fn plus(self, other: Self) -> Self {
                self + other
            }
            #[inline(always)]
            fn minus(self, other: Self) -> Self {
                self - other
            }
            #[inline(always)]
            fn times(self, other: Self) -> Self {
                self * other
            }
            #[inline(always)]
            fn over(self, other: Self) -> Self {
                self / other
            }
            #[inline(always)]
            fn exponential<const FUSED: bool>(self) -> Self {
                $exponential(self, |a: Self, b: Self, c: Self| a.multiply_add::<FUSED>(b, c))
            }
            #[inline(always)]
            fn logarithm(self) -> Self {
                self.ln()
            }
            fn inverse_root(count: usize) -> Self {
                1.0 / (count as Self).sqrt()
            }
        }

        impl Element for $type {
            type Real = Self;
            #[inline(always)]
            fn widen(self) -> Self {
                self
            }
            #[inline(always)]
            fn narrow(value: Self) -> Self {
                value
            }
        }
    };
}

real!(f32, exponential_of_f32);
real!(f64, |x: f64, _| x.exp());

impl Element for bf16 {
    type Real = f32;
    #[inline(always)]
    fn widen(self) -> f32 {
        f32::from_bits(u32::from(self.to_bits()) << 16)
    }
    #[inline(always)]
    fn narrow(value: f32) -> Self {
        let bits = value.to_bits();
        let half = 0x7fff + ((bits >> 16) & 1); // to nearest, ties to even
        let rounded =
            if value.is_nan() { (bits >> 16) | 0x40 } else { bits.wrapping_add(half) >> 16 };
        #[expect(clippy::cast_possible_truncation, reason = "the upper half is shifted out")]
        Self::from_bits(rounded as u16)
    }
}

/// `2^n * e^r` with `n` the nearest whole number to `x / ln 2`: within 3 * 2^-23 of it; 0 below -87.
#[inline(always)]
fn exponential_of_f32(x: f32, multiply_add: impl Fn(f32, f32, f32) -> f32) -> f32 {
    const LOG2_E: f32 = std::f32::consts::LOG2_E;
    const LN_2_HIGH: f32 = 0.693_359_4; // 9 bits, so that its product with n is exact
    const LN_2_LOW: f32 = -2.121_944_4e-4;
    const ROUND: f32 = 12_582_912.0; // 1.5 * 2^23: adding it leaves a whole number in the lowest bits

    let shifted = multiply_add(x.max(-87.0), LOG2_E, ROUND);
    let n = shifted - ROUND;
    let r = multiply_add(n, -LN_2_LOW, multiply_add(n, -LN_2_HIGH, x.max(-87.0)));
    let mut p = 1.0 / 720.0;
    for coefficient in [1.0 / 120.0, 1.0 / 24.0, 1.0 / 6.0, 0.5, 1.0, 1.0] {
        p = multiply_add(p, r, coefficient);
    }
    let power = f32::from_bits(shifted.to_bits().wrapping_add(127) << 23);
    if x < -87.0 { 0.0 } else { p * power }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_exponential_is_as_exact_as_it_says() {
        let mut x = 1.0_f32;
        while x > -88.0 {
            for value in [x.exponential::<false>(), x.exponential::<true>()] {
                let exact = f64::from(x).exp();
                let error = (f64::from(value) - exact).abs() / exact;
                assert!(error < 3.0 * f64::from(f32::EPSILON) || x < -87.0, "{x}: {error:e}");
            }
            x -= 1.7e-4;
        }
        assert_eq!(f32::MIN.exponential::<true>().to_bits(), 0);
    }

    #[test]
    fn bfloat16_is_rounded_as_the_half_crate_does() {
        for bits in (0..u32::MAX).step_by(65_521).chain([0x7f80_0000, 0xff80_0000, 0x7f80_0001]) {
            let value = f32::from_bits(bits);
            assert_eq!(<bf16 as Element>::narrow(value).to_bits(), bf16::from_f32(value).to_bits());
        }
    }
}

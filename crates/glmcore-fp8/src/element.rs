//! The float types that weights come in.

use half::{bf16, f16};

/// Bits of infinity in float32; larger ones, the sign left out, are NaN.
pub(crate) const INFINITY: u32 = 0x7f80_0000;

/// A float type that weights come in.
pub trait Element: Copy + Send + Sync {
    /// The same value in float32, exact for narrower types.
    fn to_f32(self) -> f32;
    /// The nearest value of this type, ties to even.
    fn from_f32(value: f32) -> Self;
    /// Bits of the largest magnitude in float32: a NaN is larger than infinity, and that larger than all else.
    fn amax_bits(values: &[Self]) -> u32;
    /// The same values, if this type is bfloat16.
    fn as_bf16(_: &[Self]) -> Option<&[bf16]> {
        None
    }
    /// The same values, if this type is bfloat16.
    fn as_bf16_mut(_: &mut [Self]) -> Option<&mut [bf16]> {
        None
    }
}

impl Element for f32 {
    #[inline(always)]
    fn to_f32(self) -> f32 {
        self
    }

    #[inline(always)]
    fn from_f32(value: f32) -> Self {
        value
    }

    #[inline(always)]
    fn amax_bits(values: &[Self]) -> u32 {
        values.iter().fold(0, |amax, value| amax.max(value.to_bits() & 0x7fff_ffff))
    }
}

impl Element for bf16 {
    #[inline(always)]
    fn to_f32(self) -> f32 {
        f32::from_bits(u32::from(self.to_bits()) << 16)
    }

    #[inline(always)]
    fn from_f32(value: f32) -> Self {
        let bits = value.to_bits();
        let rounded = (bits.wrapping_add(0x7fff + (bits >> 16 & 1))) >> 16;
        let quiet = bits >> 16 | 0x40;
        let is_nan = bits & 0x7fff_ffff > INFINITY;
        let [low, high, ..] = if is_nan { quiet } else { rounded }.to_le_bytes();
        Self::from_bits(u16::from_le_bytes([low, high]))
    }

    #[inline(always)]
    fn amax_bits(values: &[Self]) -> u32 {
        u32::from(values.iter().fold(0, |amax, value| amax.max(value.to_bits() & 0x7fff))) << 16
    }

    fn as_bf16(values: &[Self]) -> Option<&[bf16]> {
        Some(values)
    }

    fn as_bf16_mut(values: &mut [Self]) -> Option<&mut [bf16]> {
        Some(values)
    }
}

impl Element for f16 {
    #[inline(always)]
    fn to_f32(self) -> f32 {
        let magnitude = u32::from(self.to_bits() & 0x7fff) << 13;
        let sign = u32::from(self.to_bits() & 0x8000) << 16;
        // Exponents are 112 apart. A subnormal gets the implied 1 of the smallest normal, which is then taken away.
        let subnormal = f32::from_bits(magnitude + (113 << 23)) - f32::from_bits(113 << 23);
        let normal = magnitude + (112 << 23);
        let not_finite = magnitude | INFINITY;
        let bits = if magnitude < 1 << 23 {
            subnormal.to_bits()
        } else if magnitude < 31 << 23 {
            normal
        } else {
            not_finite
        };
        f32::from_bits(bits | sign)
    }

    #[inline(always)]
    fn from_f32(value: f32) -> Self {
        Self::from_f32(value)
    }

    #[inline(always)]
    fn amax_bits(values: &[Self]) -> u32 {
        let amax = values.iter().fold(0, |amax, value| amax.max(value.to_bits() & 0x7fff));
        Element::to_f32(Self::from_bits(amax)).to_bits()
    }
}

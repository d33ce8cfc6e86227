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
    /// Bits of a magnitude, as wide as the type. They are ordered as the magnitudes are: a NaN is larger than infinity,
    /// and that larger than all else.
    type Magnitude: Copy + Ord + Default + Send;
    /// The bits without their sign.
    fn magnitude(self) -> Self::Magnitude;
    /// The same magnitude in float32.
    fn magnitude_to_f32(magnitude: Self::Magnitude) -> f32;
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

    type Magnitude = u32;

    #[inline(always)]
    fn magnitude(self) -> u32 {
        self.to_bits() & 0x7fff_ffff
    }

    #[inline(always)]
    fn magnitude_to_f32(magnitude: u32) -> f32 {
        Self::from_bits(magnitude)
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

    type Magnitude = u16;

    #[inline(always)]
    fn magnitude(self) -> u16 {
        self.to_bits() & 0x7fff
    }

    #[inline(always)]
    fn magnitude_to_f32(magnitude: u16) -> f32 {
        Element::to_f32(Self::from_bits(magnitude))
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

    type Magnitude = u16;

    #[inline(always)]
    fn magnitude(self) -> u16 {
        self.to_bits() & 0x7fff
    }

    #[inline(always)]
    fn magnitude_to_f32(magnitude: u16) -> f32 {
        Element::to_f32(Self::from_bits(magnitude))
    }
}

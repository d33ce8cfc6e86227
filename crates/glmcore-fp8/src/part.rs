//! Parts of a block with one scale, turned into codes and back on the way that a task may go.

use crate::element::Element;
use crate::instructions::Way;
use crate::{lanes, plain};

#[cfg(target_arch = "x86_64")]
use crate::tables::{Decoder, Encoder, MIN_VALUES};

/// Turns the values of one block into codes.
#[derive(Clone, Copy)]
pub(crate) enum PartEncoder {
    Plain(f32),
    Lanes(f32),
    #[cfg(target_arch = "x86_64")]
    Table(Encoder),
}

impl PartEncoder {
    /// For a block of about `num_values` finite values.
    #[inline(always)]
    pub(crate) fn new<T: Element>(way: Way, scale: f32, num_values: usize) -> Self {
        match way {
            Way::Plain => Self::Plain(scale),
            #[cfg(target_arch = "x86_64")]
            Way::Tables if num_values >= MIN_VALUES && T::as_bf16(&[]).is_some() => {
                Self::Table(Encoder::new(scale))
            }
            _ => Self::Lanes(scale),
        }
    }

    #[inline(always)]
    #[cfg_attr(
        target_arch = "x86_64",
        expect(unsafe_code, reason = "instructions that a processor may lack")
    )]
    pub(crate) fn encode<T: Element>(&self, part: &[T], q: &mut [u8]) {
        match self {
            Self::Plain(scale) => plain::encode_part(part, *scale, q),
            Self::Lanes(scale) => lanes::encode_part(part, *scale, q),
            #[cfg(target_arch = "x86_64")]
            Self::Table(encoder) => {
                let part = T::as_bf16(part).expect("tables are made for bfloat16 alone");
                // SAFETY: this way is gone only with the instructions that it needs.
                unsafe { encoder.encode_part(part, q) }
            }
        }
    }
}

/// Turns the codes of one block into values.
#[derive(Clone, Copy)]
#[expect(clippy::large_enum_variant, reason = "a strip has one kind of them, side by side")]
pub(crate) enum PartDecoder {
    Plain(f32),
    Lanes(f32),
    #[cfg(target_arch = "x86_64")]
    Table(Decoder),
}

impl PartDecoder {
    /// For a block of about `num_values` codes.
    #[inline(always)]
    pub(crate) fn new<T: Element>(way: Way, scale: f32, num_values: usize) -> Self {
        match way {
            Way::Plain => Self::Plain(scale),
            #[cfg(target_arch = "x86_64")]
            Way::Tables if num_values >= MIN_VALUES && T::as_bf16(&[]).is_some() => {
                Self::Table(Decoder::new(scale))
            }
            _ => Self::Lanes(scale),
        }
    }

    #[inline(always)]
    #[cfg_attr(
        target_arch = "x86_64",
        expect(unsafe_code, reason = "instructions that a processor may lack")
    )]
    pub(crate) fn decode<T: Element>(&self, q: &[u8], out: &mut [T]) {
        match self {
            Self::Plain(scale) => plain::decode_part(q, *scale, out),
            Self::Lanes(scale) => lanes::decode_part(q, *scale, out),
            #[cfg(target_arch = "x86_64")]
            Self::Table(decoder) => {
                let out = T::as_bf16_mut(out).expect("tables are made for bfloat16 alone");
                // SAFETY: this way is gone only with the instructions that it needs.
                unsafe { decoder.decode_part(q, out) }
            }
        }
    }
}

//! One part of a block, as the format is defined: the specification of `lanes`, and what runs where a processor lacks
//! fused multiplication.

use crate::e4m3::{E4M3_MAX, decode, encode};
use crate::element::Element;

/// `e4m3(clamp(value / scale))`; what is not finite becomes NaN.
pub(crate) fn encode_part<T: Element>(part: &[T], scale: f32, q: &mut [u8]) {
    for (value, q) in part.iter().zip(q) {
        let value = value.to_f32();
        *q = if value.is_finite() {
            encode((value / scale).clamp(-E4M3_MAX, E4M3_MAX))
        } else {
            encode(f32::NAN.copysign(value))
        };
    }
}

/// `decode(code) * scale`.
pub(crate) fn decode_part<T: Element>(q: &[u8], scale: f32, out: &mut [T]) {
    for (&code, out) in q.iter().zip(out) {
        *out = T::from_f32(decode(code) * scale);
    }
}

//! One value: e4m3fn, the 8-bit float with 4 exponent and 3 mantissa bits and no infinities.

use std::sync::LazyLock;

/// Largest finite value.
pub const E4M3_MAX: f32 = 448.0;

const NAN: u8 = 0x7f;
/// Bits of 2^-6, the smallest normal value, in float32.
const SMALLEST_NORMAL: u32 = 0x3c80_0000;

/// Nearest code of `value`, ties to even; values beyond [`E4M3_MAX`] saturate, NaN stays NaN.
///
/// ```
/// assert_eq!(glmcore_fp8::encode(1.0), 0x38);
/// assert_eq!(glmcore_fp8::decode(glmcore_fp8::encode(-1e9)), -448.0);
/// ```
#[inline]
pub fn encode(value: f32) -> u8 {
    let bits = value.to_bits();
    let sign = (bits >> 24) as u8 & 0x80;
    let magnitude = bits & 0x7fff_ffff;
    if magnitude > 0x7f80_0000 {
        return sign | NAN;
    }
    // Below the smallest normal value codes are multiples of 2^-9: adding 2^14 aligns a float32's last
    // mantissa bit with 2^-9, so the addition itself rounds to nearest even.
    if magnitude < SMALLEST_NORMAL {
        let shifted = f32::from_bits(magnitude) + 16_384.0;
        return sign | (shifted.to_bits() & 0xff) as u8;
    }
    // Keep 3 of the 23 mantissa bits, rounding to nearest even; a carry moves into the exponent by itself.
    let odd = (magnitude >> 20) & 1;
    let rounded = (magnitude + 0x7_ffff + odd) >> 20;
    let code = rounded - (120 << 3); // exponent bias 127 becomes 7
    sign | code.min(0x7e) as u8
}

static VALUES: LazyLock<[f32; 256]> = LazyLock::new(|| {
    std::array::from_fn(|code| {
        let exponent = i32::try_from(code >> 3 & 0xf).expect("four bits");
        let mantissa = (code & 7) as f32;
        let magnitude = match (exponent, code & 7) {
            (15, 7) => f32::NAN,
            (0, _) => mantissa * 2.0_f32.powi(-9),
            _ => (8.0 + mantissa) * 2.0_f32.powi(exponent - 10),
        };
        if code & 0x80 == 0 { magnitude } else { -magnitude }
    })
});

/// Value of a code; 0x7f and 0xff are NaN.
#[inline]
pub fn decode(code: u8) -> f32 {
    VALUES[usize::from(code)]
}

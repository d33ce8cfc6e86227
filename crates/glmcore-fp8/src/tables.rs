//! bfloat16 to codes and back by table: within a block a code depends on no more than the seven mantissa bits, apart from
//! sign and exponent, and a value on no more than the code. The tables are made by `lanes`, so all bits are the same.
#![expect(
    unsafe_code,
    reason = "instructions that a processor may lack, and their loads and stores"
)]

use std::arch::x86_64::{
    __m512i, _mm256_loadu_epi8, _mm512_add_epi8, _mm512_and_si512, _mm512_cmplt_epu16_mask,
    _mm512_cvtepu8_epi16, _mm512_loadu_epi8, _mm512_loadu_epi16, _mm512_mask_blend_epi16,
    _mm512_permutex2var_epi8, _mm512_permutex2var_epi16, _mm512_set1_epi8, _mm512_set1_epi16,
    _mm512_slli_epi16, _mm512_srli_epi16, _mm512_storeu_epi8, _mm512_storeu_epi16,
    _mm512_ternarylogic_epi32, _mm512_test_epi16_mask,
};

use half::bf16;

use crate::lanes;

/// Blocks with fewer values do not repay a table.
pub(crate) const MIN_VALUES: usize = 1 << 12;

/// Values that are turned into codes at once.
const GROUP: usize = 64;
/// Picks the bits of its first operand where the third has a 1, else those of the second.
const SELECT: i32 = 0xe4;

/// What the codes of a block's values are made from.
#[derive(Clone, Copy)]
pub(crate) struct Encoder {
    scale: f32,
    /// For each mantissa: the code at some exponent, less the byte of the value's bits that holds the exponent.
    by_mantissa: [u8; 128],
    /// Bits of a magnitude from which on quotients are normal codes, which are as far apart as the exponents tell.
    smallest_normal: u16,
}

impl Encoder {
    /// Of a block whose values are finite and at most 448 times the scale; `scale` as in `lanes`.
    #[inline(always)]
    pub(crate) fn new(scale: f32) -> Self {
        let exponent = (scale.to_bits() >> 23) as u16 + 1; // quotients between 1 and 4
        let mut values = [bf16::ZERO; 128];
        for (value, mantissa) in values.iter_mut().zip(0..) {
            *value = bf16::from_bits(exponent << 7 | mantissa);
        }
        let mut by_mantissa = [0; 128];
        lanes::encode_part(&values, scale, &mut by_mantissa);
        for (code, value) in by_mantissa.iter_mut().zip(values) {
            *code = code.wrapping_sub((value.to_bits() >> 4).to_le_bytes()[0]);
        }
        let smallest_normal = ((scale * 2.0_f32.powi(-6)).to_bits() >> 16) as u16 + 1;
        Self { scale, by_mantissa, smallest_normal }
    }

    /// As `plain::encode_part`.
    #[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq,avx512vbmi,avx2,fma")]
    pub(crate) fn encode_part(&self, part: &[bf16], q: &mut [u8]) {
        let [low, high] = load_bytes(&self.by_mantissa);
        let smallest = _mm512_set1_epi16(self.smallest_normal.cast_signed());
        let magnitude = _mm512_set1_epi16(0x7fff);
        let sign = _mm512_set1_epi8(i8::MIN);
        let (groups, rest) = part.as_chunks::<GROUP>();
        let (q_groups, q_rest) = q.as_chunks_mut::<GROUP>();
        for (group, q) in groups.iter().zip(q_groups) {
            let [a, b] = load_values(group);
            let small = _mm512_cmplt_epu16_mask(_mm512_and_si512(a, magnitude), smallest)
                | _mm512_cmplt_epu16_mask(_mm512_and_si512(b, magnitude), smallest);
            if small != 0 {
                lanes::encode_part(group, self.scale, q);
                continue;
            }
            let mantissas = _mm512_permutex2var_epi8(a, EVEN_BYTES.load(), b);
            let signs = _mm512_permutex2var_epi8(a, ODD_BYTES.load(), b);
            let (a, b) = (_mm512_srli_epi16::<4>(a), _mm512_srli_epi16::<4>(b));
            let exponents = _mm512_permutex2var_epi8(a, EVEN_BYTES.load(), b);
            let codes = _mm512_add_epi8(_mm512_permutex2var_epi8(low, mantissas, high), exponents);
            store_bytes(q, _mm512_ternarylogic_epi32::<SELECT>(signs, codes, sign));
        }
        lanes::encode_part(rest, self.scale, q_rest);
    }
}

/// What the values of a block's codes are made from.
#[derive(Clone, Copy)]
pub(crate) struct Decoder {
    scale: f32,
    /// Value of each code without a sign.
    by_code: [bf16; 128],
}

impl Decoder {
    #[inline(always)]
    pub(crate) fn new(scale: f32) -> Self {
        let codes: [u8; 128] = std::array::from_fn(|code| code.to_le_bytes()[0]);
        let mut by_code = [bf16::ZERO; 128];
        lanes::decode_part(&codes, scale, &mut by_code);
        Self { scale, by_code }
    }

    /// As `plain::decode_part`.
    #[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq,avx512vbmi,avx2,fma")]
    pub(crate) fn decode_part(&self, q: &[u8], out: &mut [bf16]) {
        let (first, last) = self.by_code.split_at(64);
        let small = load_values(first.try_into().expect("64 values"));
        let large = load_values(last.try_into().expect("64 values"));
        let upper_half = _mm512_set1_epi16(0x40);
        let sign = _mm512_set1_epi16(i16::MIN);
        let (groups, rest) = q.as_chunks::<32>();
        let (out_groups, out_rest) = out.as_chunks_mut::<32>();
        for (group, out) in groups.iter().zip(out_groups) {
            // SAFETY: the array has 32 bytes.
            let codes = _mm512_cvtepu8_epi16(unsafe { _mm256_loadu_epi8(group.as_ptr().cast()) });
            let lower = _mm512_permutex2var_epi16(small[0], codes, small[1]);
            let upper = _mm512_permutex2var_epi16(large[0], codes, large[1]);
            let is_upper = _mm512_test_epi16_mask(codes, upper_half);
            let values = _mm512_mask_blend_epi16(is_upper, lower, upper);
            let signs = _mm512_slli_epi16::<8>(codes);
            let signed = _mm512_ternarylogic_epi32::<SELECT>(signs, values, sign);
            // SAFETY: the array has 64 bytes.
            unsafe { _mm512_storeu_epi16(out.as_mut_ptr().cast(), signed) };
        }
        lanes::decode_part(rest, self.scale, out_rest);
    }
}

/// Byte numbers for a permutation of two registers.
struct Places([u8; 64]);

const EVEN_BYTES: Places = Places::every_other(0);
const ODD_BYTES: Places = Places::every_other(1);

impl Places {
    const fn every_other(mut first: u8) -> Self {
        let mut places = [0; 64];
        let mut index = 0;
        while index < 64 {
            places[index] = first;
            first += 2;
            index += 1;
        }
        Self(places)
    }

    #[target_feature(enable = "avx512f,avx512bw")]
    fn load(&self) -> __m512i {
        // SAFETY: the array has 64 bytes.
        unsafe { _mm512_loadu_epi8(self.0.as_ptr().cast()) }
    }
}

#[target_feature(enable = "avx512f,avx512bw")]
fn load_bytes(bytes: &[u8; 128]) -> [__m512i; 2] {
    // SAFETY: the array has twice 64 bytes.
    unsafe {
        [_mm512_loadu_epi8(bytes.as_ptr().cast()), _mm512_loadu_epi8(bytes[64..].as_ptr().cast())]
    }
}

#[target_feature(enable = "avx512f,avx512bw")]
fn load_values(values: &[bf16; GROUP]) -> [__m512i; 2] {
    // SAFETY: the array has twice 64 bytes.
    unsafe {
        [
            _mm512_loadu_epi16(values.as_ptr().cast()),
            _mm512_loadu_epi16(values[32..].as_ptr().cast()),
        ]
    }
}

#[target_feature(enable = "avx512f,avx512bw")]
fn store_bytes(bytes: &mut [u8; GROUP], values: __m512i) {
    // SAFETY: the array has 64 bytes.
    unsafe { _mm512_storeu_epi8(bytes.as_mut_ptr().cast(), values) };
}

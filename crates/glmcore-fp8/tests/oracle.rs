//! The fast paths against plain twins.
#![expect(
    clippy::unwrap_used,
    clippy::cast_possible_truncation,
    reason = "a test may panic, and random bits are cut to size"
)]

use glmcore_fp8::{
    ACTIVATION_FLOOR, Blocks, E4M3_MAX, Element, Error, Instructions, Matrix, NotFinite, Quantizer,
    ScaleFormat, WEIGHT_FLOOR, decode, dequantize, dequantize_with, encode,
};
use half::{bf16, f16};
use proptest::prelude::*;

/// The nearest finite code by looking at all of them; of two equally near ones the even.
fn plain_encode(value: f32) -> u8 {
    let sign = if value.is_sign_negative() { 0x80 } else { 0 };
    let magnitude = f64::from(value.abs().min(E4M3_MAX));
    let distance = |code: u8| (f64::from(decode(code)) - magnitude).abs();
    let best = (0..0x7f_u8)
        .min_by(|&a, &b| distance(a).total_cmp(&distance(b)).then((a & 1).cmp(&(b & 1))))
        .unwrap();
    sign | best
}

fn plain_quantize(
    w: &[f32],
    rows: usize,
    columns: usize,
    block: (usize, usize),
    floor: f32,
) -> (Vec<u8>, Vec<f32>) {
    let block_columns = columns.div_ceil(block.1);
    let mut amax = vec![0.0_f32; rows.div_ceil(block.0) * block_columns];
    let at = |i: usize| (i / columns / block.0) * block_columns + (i % columns) / block.1;
    for (i, value) in w.iter().enumerate() {
        amax[at(i)] = amax[at(i)].max(value.abs());
    }
    let scale: Vec<f32> = amax.iter().map(|amax| amax.max(floor) / 448.0).collect();
    let q = w
        .iter()
        .enumerate()
        .map(|(i, value)| plain_encode((value / scale[at(i)]).clamp(-448.0, 448.0)))
        .collect();
    (q, scale)
}

#[test]
fn every_code_decodes_and_encodes_to_itself() {
    for code in 0..=255_u8 {
        let value = decode(code);
        if code & 0x7f == 0x7f {
            assert!(value.is_nan());
        } else {
            assert_eq!(encode(value), code);
        }
    }
    assert_eq!(
        (decode(0x7e), decode(0x01), decode(0x08)),
        (448.0, 2.0_f32.powi(-9), 2.0_f32.powi(-6))
    );
}

#[test]
fn every_bfloat16_goes_to_the_nearest_code() {
    for bits in 0..=u16::MAX {
        let value = bf16::from_bits(bits).to_f32();
        if value.is_nan() {
            assert_eq!(encode(value) & 0x7f, 0x7f);
        } else {
            assert_eq!(encode(value), plain_encode(value), "{value}");
        }
    }
}

proptest! {
    #[test]
    fn floats_go_to_the_nearest_code(value in prop_oneof![prop::num::f32::NORMAL, prop::num::f32::SUBNORMAL, -500.0..500.0_f32]) {
        prop_assert_eq!(encode(value), plain_encode(value));
    }

    #[test]
    fn blocks_equal_the_plain_twin(
        (rows, columns) in (1_usize..20, 1_usize..20),
        block in (1_usize..9, 1_usize..9),
        exponents in prop::collection::vec(-40..40_i32, 400),
        floor in prop::sample::select(vec![WEIGHT_FLOOR, ACTIVATION_FLOOR]),
    ) {
        let w: Vec<f32> = exponents[..rows * columns]
            .iter()
            .zip(0_u16..)
            .map(|(&e, i)| (f32::from(i) - 100.0) * 2.0_f32.powi(e))
            .collect();
        let matrix = Matrix::new(&w, rows, columns).unwrap();
        let blocks = Blocks::new(block.0, block.1).unwrap();
        let quantizer = Quantizer { floor, ..Quantizer::of_weights(blocks) };
        let (q, scale) = quantizer.quantize(matrix).unwrap();
        prop_assert_eq!((q.clone(), scale.clone()), plain_quantize(&w, rows, columns, block, floor));

        let mut back = vec![0.0_f32; w.len()];
        dequantize(Matrix::new(&q, rows, columns).unwrap(), &scale, blocks, &mut back).unwrap();
        for (back, w) in back.iter().zip(&w) {
            // Half a step of 3 mantissa bits, or half the smallest step of the largest scale.
            let bound = w.abs() / 16.0 + scale.iter().fold(0.0_f32, |a, &b| a.max(b)) * 2.0_f32.powi(-10) * 1.01;
            prop_assert!((back - w).abs() <= bound);
        }
        let powers = Quantizer { format: ScaleFormat::Ue8m0, ..quantizer };
        let (q2, scale2) = powers.quantize(matrix).unwrap();
        prop_assert_eq!(q2.len(), q.len());
        for (power, plain) in scale2.iter().zip(&scale) {
            prop_assert!(power.log2().fract() == 0.0 && power >= plain && *power < 2.0 * plain);
        }
    }

    #[test]
    fn all_instructions_agree_on_any_bits(
        (rows, columns) in (1_usize..90, 1_usize..200),
        block in prop::sample::select(vec![(1, 128), (64, 64), (128, 128), (7, 33)]),
        seed in any::<u64>(),
        ue8m0 in any::<bool>(),
        largest_exponent in 0_u16..255,
        spread in prop::sample::select(vec![3, 12, 255]),
    ) {
        let bits = random_bits(rows * columns, seed);
        // Exponents that are close enough together to meet in one block, in each type.
        let exponent = |bits: u64, largest: u16| largest.saturating_sub((bits >> 40) as u16 % spread);
        let f32s: Vec<f32> = bits.iter()
            .map(|&bits| f32::from_bits(bits as u32 & 0x807f_ffff | u32::from(exponent(bits, largest_exponent)) << 23))
            .collect();
        let bf16s: Vec<bf16> = f32s.iter().map(|value| bf16::from_bits((value.to_bits() >> 16) as u16)).collect();
        let f16s: Vec<f16> = bits.iter()
            .map(|&bits| f16::from_bits(bits as u16 & 0x83ff | exponent(bits, largest_exponent % 31) << 10))
            .collect();
        check_instructions(&f32s, rows, columns, block, ue8m0)?;
        check_instructions(&bf16s, rows, columns, block, ue8m0)?;
        check_instructions(&f16s, rows, columns, block, ue8m0)?;
    }
}

/// Bits from splitmix64.
fn random_bits(count: usize, seed: u64) -> Vec<u64> {
    (1..=count as u64)
        .map(|i| {
            let mut bits = seed.wrapping_add(i.wrapping_mul(0x9e37_79b9_7f4a_7c15));
            bits = (bits ^ bits >> 30).wrapping_mul(0xbf58_476d_1ce4_e5b9);
            bits = (bits ^ bits >> 27).wrapping_mul(0x94d0_49bb_1331_11eb);
            bits ^ bits >> 31
        })
        .collect()
}

fn check_instructions<T: Element + std::fmt::Debug>(
    values: &[T],
    rows: usize,
    columns: usize,
    block: (usize, usize),
    ue8m0: bool,
) -> Result<(), TestCaseError> {
    let matrix = Matrix::new(values, rows, columns).unwrap();
    let blocks = Blocks::new(block.0, block.1).unwrap();
    let format = if ue8m0 { ScaleFormat::Ue8m0 } else { ScaleFormat::Float32 };
    let quantizer = Quantizer { format, ..Quantizer::of_weights(blocks) };
    let [plain, others @ ..] = &Instructions::all()[..] else { unreachable!() };
    let (q, scale) = Quantizer { instructions: *plain, ..quantizer }.quantize(matrix).unwrap();
    let codes = Matrix::new(&q, rows, columns).unwrap();
    let decoded = |instructions| {
        let mut out = vec![T::from_f32(0.0); q.len()];
        dequantize_with(instructions, codes, &scale, blocks, &mut out).unwrap();
        out.iter().map(|value| value.to_f32().to_bits()).collect::<Vec<_>>()
    };
    for &instructions in others {
        let (same_q, same_scale) =
            Quantizer { instructions, ..quantizer }.quantize(matrix).unwrap();
        prop_assert_eq!(&same_scale, &scale);
        for (place, (same, code)) in same_q.iter().zip(&q).enumerate() {
            prop_assert_eq!(same, code, "{:?} {:?} at {}", instructions, values[place], place);
        }
        prop_assert_eq!(decoded(instructions), decoded(*plain));
    }
    Ok(())
}

/// Every bfloat16 up to some magnitude in one block, for magnitudes of every mantissa and several exponents.
#[test]
fn every_bfloat16_in_a_block_of_any_scale_is_the_same_with_all_instructions() {
    for mantissa in 0..128_u16 {
        let exponent = [1, 90, 127, 200, 254][usize::from(mantissa % 5)];
        let largest = exponent << 7 | mantissa;
        let bits = (0..=u16::MAX).filter(|bits| bits & 0x7fff <= largest);
        let mut values: Vec<bf16> = bits.map(bf16::from_bits).collect();
        values.resize(values.len().next_multiple_of(128).max(4096), bf16::ZERO);
        check_instructions(&values, values.len() / 128, 128, (values.len() / 128, 128), false)
            .unwrap();
    }
}

/// Every code, with scales of many mantissas.
#[test]
fn every_code_of_a_block_of_any_scale_is_the_same_with_all_instructions() {
    let codes: Vec<u8> = (0..4096_u32).map(|code| (code % 256) as u8).collect();
    let matrix = Matrix::new(&codes, 16, 256).unwrap();
    let blocks = Blocks::new(16, 256).unwrap();
    for bits in random_bits(2_000, 1) {
        let scale =
            [f32::from_bits(bits as u32 & 0x7f_ffff | (100 + (bits >> 32) as u32 % 60) << 23)];
        let bits_of = |instructions| {
            let (mut narrow, mut wide) = (vec![bf16::ZERO; 4096], vec![0.0_f32; 4096]);
            dequantize_with(instructions, matrix, &scale, blocks, &mut narrow).unwrap();
            dequantize_with(instructions, matrix, &scale, blocks, &mut wide).unwrap();
            let narrow: Vec<u16> = narrow.iter().map(|value| value.to_bits()).collect();
            (narrow, wide.iter().map(|value| value.to_bits()).collect::<Vec<_>>())
        };
        let all = Instructions::all();
        assert!(all.iter().all(|&other| bits_of(other) == bits_of(all[0])));
    }
}

#[test]
fn conversions_are_those_of_the_half_crate() {
    for bits in 0..=u16::MAX {
        let (a, b) = (f16::from_bits(bits), bf16::from_bits(bits));
        if !a.is_nan() {
            assert_eq!(Element::to_f32(a).to_bits(), f16::to_f32(a).to_bits());
        }
        assert_eq!(Element::to_f32(a).is_nan(), a.is_nan());
        for low in [0, 1, 0x7fff, 0x8000, 0x8001, 0xffff] {
            let value = f32::from_bits(u32::from(bits) << 16 | low);
            assert_eq!(
                <bf16 as Element>::from_f32(value).to_bits(),
                bf16::from_f32(value).to_bits()
            );
        }
        assert_eq!(Element::to_f32(b).to_bits(), u32::from(bits) << 16);
    }
}

#[test]
fn large_matrices_in_parallel_equal_the_plain_twin() {
    let (rows, columns) = (1_300, 411);
    let w: Vec<f32> =
        (0..rows * columns).map(|i| ((i * 7919 % 10_007) as f32 - 5_000.0) * 1e-3).collect();
    let blocks = Blocks::new(128, 128).unwrap();
    let quantized =
        Quantizer::of_weights(blocks).quantize(Matrix::new(&w, rows, columns).unwrap()).unwrap();
    assert_eq!(quantized, plain_quantize(&w, rows, columns, (128, 128), WEIGHT_FLOOR));
}

#[test]
fn zeros_have_a_finite_scale_and_infinities_a_place_or_become_nan() {
    let zeros = [0.0, -0.0, 0.0, 0.0_f32];
    let quantizer = Quantizer::of_weights(Blocks::new(2, 2).unwrap());
    let (q, scale) = quantizer.quantize(Matrix::new(&zeros, 2, 2).unwrap()).unwrap();
    assert_eq!((q, scale), (vec![0, 0x80, 0, 0], vec![1e-10 / 448.0]));
    for bad in [f32::NAN, f32::INFINITY, f32::NEG_INFINITY] {
        let w = [1.0, 2.0, 3.0, 4.0, 5.0, bad];
        let matrix = Matrix::new(&w, 3, 2).unwrap();
        assert_eq!(
            Quantizer::of_weights(Blocks::new(1, 1).unwrap()).quantize(matrix).unwrap_err(),
            Error::NotFinite { row: 2, column: 1 }
        );
        let propagating = Quantizer { not_finite: NotFinite::Propagate, ..quantizer };
        let (q, scale) = propagating.quantize(matrix).unwrap();
        assert_eq!(scale, [4.0 / 448.0, 5.0 / 448.0]);
        assert_eq!((q[3], q[4], q[5] & 0x7f), (0x7e, 0x7e, 0x7f));
    }
}

#[test]
fn what_does_not_fit_is_refused() {
    assert!(matches!(Matrix::new(&[1.0_f32], 2, 1), Err(Error::Length { .. })));
    assert!(matches!(Blocks::new(0, 1), Err(Error::EmptyBlock { .. })));
    let one = Blocks::new(1, 1).unwrap();
    let code = Matrix::new(&[0], 1, 1).unwrap();
    let wrong = dequantize(code, &[1.0, 1.0], one, &mut [0.0_f32]);
    assert!(matches!(wrong, Err(Error::Length { what: "scale_inv", .. })));
    let matrix = Matrix::new(&[1.0_f32], 1, 1).unwrap();
    for floor in [0.0, -1.0, f32::NAN, 1e30] {
        let quantizer = Quantizer { floor, ..Quantizer::of_weights(one) };
        assert!(matches!(quantizer.quantize(matrix), Err(Error::Floor { .. })));
    }
}

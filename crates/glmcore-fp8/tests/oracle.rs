//! The fast paths against plain twins.
#![expect(clippy::unwrap_used, reason = "a test may panic")]

use glmcore_fp8::{
    ACTIVATION_FLOOR, E4M3_MAX, Error, Matrix, ScaleFormat, WEIGHT_FLOOR, decode, dequantize,
    encode, quantize,
};
use half::bf16;
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
        let (q, scale) = quantize(matrix, block, floor, ScaleFormat::Float32).unwrap();
        prop_assert_eq!((q.clone(), scale.clone()), plain_quantize(&w, rows, columns, block, floor));

        let mut back = vec![0.0_f32; w.len()];
        dequantize(&q, &scale, (rows, columns), block, &mut back).unwrap();
        for (back, w) in back.iter().zip(&w) {
            // Half a step of 3 mantissa bits, or half the smallest step of the largest scale.
            let bound = w.abs() / 16.0 + scale.iter().fold(0.0_f32, |a, &b| a.max(b)) * 2.0_f32.powi(-10) * 1.01;
            prop_assert!((back - w).abs() <= bound);
        }
        let (q2, scale2) = quantize(matrix, block, floor, ScaleFormat::Ue8m0).unwrap();
        prop_assert_eq!(q2.len(), q.len());
        for (power, plain) in scale2.iter().zip(&scale) {
            prop_assert!(power.log2().fract() == 0.0 && power >= plain && *power < 2.0 * plain);
        }
    }
}

#[test]
fn large_matrices_in_parallel_equal_the_plain_twin() {
    let (rows, columns) = (300, 401);
    let w: Vec<f32> =
        (0..rows * columns).map(|i| ((i * 7919 % 10_007) as f32 - 5_000.0) * 1e-3).collect();
    let (q, scale) = quantize(
        Matrix::new(&w, rows, columns).unwrap(),
        (128, 128),
        WEIGHT_FLOOR,
        ScaleFormat::Float32,
    )
    .unwrap();
    assert_eq!((q, scale), plain_quantize(&w, rows, columns, (128, 128), WEIGHT_FLOOR));
}

#[test]
fn zeros_have_a_finite_scale_and_infinities_a_place() {
    let (q, scale) = quantize(
        Matrix::new(&[0.0_f32; 4], 2, 2).unwrap(),
        (2, 2),
        WEIGHT_FLOOR,
        ScaleFormat::Float32,
    )
    .unwrap();
    assert_eq!((q, scale), (vec![0; 4], vec![1e-10 / 448.0]));
    for bad in [f32::NAN, f32::INFINITY, f32::NEG_INFINITY] {
        let w = [1.0, 2.0, 3.0, 4.0, 5.0, bad];
        let error =
            quantize(Matrix::new(&w, 3, 2).unwrap(), (1, 1), WEIGHT_FLOOR, ScaleFormat::Float32)
                .unwrap_err();
        assert_eq!(error, Error::NotFinite { row: 2, column: 1 });
    }
}

#[test]
fn shapes_that_do_not_fit_are_refused() {
    assert!(matches!(Matrix::new(&[1.0_f32], 2, 1), Err(Error::Length { .. })));
    let matrix = Matrix::new(&[1.0_f32], 1, 1).unwrap();
    assert!(matches!(
        quantize(matrix, (0, 1), WEIGHT_FLOOR, ScaleFormat::Float32),
        Err(Error::EmptyBlock { .. })
    ));
    let wrong = dequantize(&[0], &[1.0, 1.0], (1, 1), (1, 1), &mut [0.0_f32]);
    assert!(matches!(wrong, Err(Error::Length { what: "scale_inv", .. })));
}

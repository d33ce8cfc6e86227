//! Attention beside the formula, written down plainly.
#![expect(clippy::cast_possible_truncation, reason = "numbers are rounded to float32")]
#![expect(clippy::unwrap_used, reason = "a failure is a failed test")]

use glmcore_attention::{Element, Error, Gradients, Shape, backward, forward};
use half::bf16;
use proptest::prelude::*;

/// Numbers between -2 and 2 from a fixed generator.
fn numbers(count: usize, mut state: u64) -> Vec<f64> {
    let mut next = || {
        state =
            state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (state >> 40) as f64 / f64::from(1 << 22) - 2.0
    };
    (0..count).map(|_| next()).collect()
}

struct Case {
    shape: Shape,
    bounds: Vec<i32>,
    query: Vec<f64>,
    key: Vec<f64>,
    value: Vec<f64>,
    grad: Vec<f64>,
}

fn case(lengths: &[i32], shape: Shape) -> Case {
    let mut bounds = vec![0];
    bounds.extend(lengths.iter().scan(0, |end, &len| {
        *end += len;
        Some(*end)
    }));
    let tokens = usize::try_from(*bounds.last().unwrap()).unwrap();
    let (queries, keys) =
        (tokens * shape.num_heads * shape.head_dim, tokens * shape.num_kv_heads * shape.head_dim);
    Case {
        shape,
        bounds,
        query: numbers(queries, 1),
        key: numbers(keys, 2),
        value: numbers(keys, 3),
        grad: numbers(queries, 4),
    }
}

/// Result and gradients of query, key and value by the definition.
fn plain(case: &Case) -> [Vec<f64>; 4] {
    let Shape { num_heads, num_kv_heads, head_dim } = case.shape;
    let mut out = vec![0.0; case.query.len()];
    let mut grads =
        [vec![0.0; case.query.len()], vec![0.0; case.key.len()], vec![0.0; case.key.len()]];
    let scale = (head_dim as f64).powf(-0.5);
    for bounds in case.bounds.windows(2) {
        let (start, end) =
            (usize::try_from(bounds[0]).unwrap(), usize::try_from(bounds[1]).unwrap());
        for (i, head) in (start..end).flat_map(|i| (0..num_heads).map(move |head| (i, head))) {
            let q = (i * num_heads + head) * head_dim;
            let kv = |j: usize| (j * num_kv_heads + head / (num_heads / num_kv_heads)) * head_dim;
            let dot = |a: &[f64], x: usize, b: &[f64], y: usize| -> f64 {
                (0..head_dim).map(|c| a[x + c] * b[y + c]).sum()
            };
            let exps: Vec<f64> = (start..=i)
                .map(|j| (scale * dot(&case.query, q, &case.key, kv(j))).exp())
                .collect();
            let total: f64 = exps.iter().sum();
            for (j, exp) in (start..=i).zip(&exps) {
                for c in 0..head_dim {
                    out[q + c] += exp / total * case.value[kv(j) + c];
                }
            }
            let inner = dot(&out, q, &case.grad, q);
            for (j, exp) in (start..=i).zip(&exps) {
                let weight = exp / total;
                let score = weight * (dot(&case.grad, q, &case.value, kv(j)) - inner) * scale;
                for c in 0..head_dim {
                    grads[0][q + c] += score * case.key[kv(j) + c];
                    grads[1][kv(j) + c] += score * case.query[q + c];
                    grads[2][kv(j) + c] += weight * case.grad[q + c];
                }
            }
        }
    }
    let [query, key, value] = grads;
    [out, query, key, value]
}

/// The same by the crate, with numbers of a type and their rounding to it.
fn fast<T: Element>(case: &Case, narrow: fn(f64) -> T, num_threads: usize) -> [Vec<T>; 4] {
    let round = |values: &[f64]| values.iter().map(|&value| narrow(value)).collect::<Vec<T>>();
    let (query, key, value, grad) =
        (round(&case.query), round(&case.key), round(&case.value), round(&case.grad));
    let mut out = round(&vec![9.0; query.len()]);
    let mut log_sum = vec![narrow(9.0).widen(); query.len() / case.shape.head_dim];
    forward(&query, &key, &value, &case.bounds, case.shape, num_threads, &mut out, &mut log_sum)
        .unwrap();
    let mut grads = [
        round(&vec![9.0; query.len()]),
        round(&vec![9.0; key.len()]),
        round(&vec![9.0; key.len()]),
    ];
    let given = Gradients {
        query: &query,
        key: &key,
        value: &value,
        out: &out,
        log_sum: &log_sum,
        grad: &grad,
    };
    let [grad_query, grad_key, grad_value] = &mut grads;
    backward(given, &case.bounds, case.shape, num_threads, [grad_query, grad_key, grad_value])
        .unwrap();
    let [grad_query, grad_key, grad_value] = grads;
    [out, grad_query, grad_key, grad_value]
}

fn shapes() -> impl Strategy<Value = Shape> {
    (1_usize..3, 1_usize..4, prop_oneof![Just(1_usize), Just(16), Just(33), Just(64)]).prop_map(
        |(num_kv_heads, group, head_dim)| Shape {
            num_heads: num_kv_heads * group,
            num_kv_heads,
            head_dim,
        },
    )
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(24))]

    #[test]
    fn results_and_gradients_are_those_of_the_formula(
        lengths in prop::collection::vec(prop_oneof![0..20, 60..70, 120..140], 1..4), shape in shapes()
    ) {
        let case = case(&lengths, shape);
        let single: fn(f64) -> f32 = |value| value as f32;
        for (exact, (wide, narrow)) in
            plain(&case).iter().zip(fast(&case, |value| value, 1).iter().zip(fast(&case, single, 2)))
        {
            let size = exact.iter().fold(1.0_f64, |size, value| size.max(value.abs()));
            for (exact, (wide, narrow)) in exact.iter().zip(wide.iter().zip(narrow)) {
                prop_assert!((exact - wide).abs() < 1e-12 * size, "{exact} {wide}");
                // Inputs are rounded to 2^-24 of 2; scores of 64 such products then move weights by up to 1e-5.
                prop_assert!((exact - f64::from(narrow)).abs() < 3e-5 * size, "{exact} {narrow}");
            }
        }
    }

    #[test]
    fn a_document_has_the_same_bits_alone_and_among_others(
        lengths in prop::collection::vec(0..100, 1..5), num_threads in 1_usize..4
    ) {
        let shape = Shape { num_heads: 4, num_kv_heads: 2, head_dim: 8 };
        let whole = case(&lengths, shape);
        let single: fn(f64) -> f32 = |value| value as f32;
        let together = fast(&whole, single, num_threads);
        for bounds in whole.bounds.windows(2) {
            let part = |values: &[f64], row: usize| {
                values[usize::try_from(bounds[0]).unwrap() * row..usize::try_from(bounds[1]).unwrap() * row].to_vec()
            };
            let alone = fast(&Case {
                shape,
                bounds: vec![0, bounds[1] - bounds[0]],
                query: part(&whole.query, 32),
                key: part(&whole.key, 16),
                value: part(&whole.value, 16),
                grad: part(&whole.grad, 32),
            }, single, 1);
            for (together, (alone, row)) in together.iter().zip(alone.iter().zip([32, 32, 16, 16])) {
                let start = usize::try_from(bounds[0]).unwrap() * row;
                prop_assert_eq!(&together[start..start + alone.len()], alone.as_slice());
            }
        }
    }
}

#[test]
fn bfloat16_is_computed_in_float32_and_rounded_once() {
    let shape = Shape { num_heads: 2, num_kv_heads: 1, head_dim: 32 };
    let mut case = case(&[100, 7], shape);
    for values in [&mut case.query, &mut case.key, &mut case.value, &mut case.grad] {
        for value in values.iter_mut() {
            *value = bf16::from_f64(*value).to_f64();
        }
    }
    let [exact, grad_query, grad_key, grad_value] = plain(&case);
    let found = fast(&case, bf16::from_f64, 1);
    for (exact, found) in [exact, grad_query, grad_key, grad_value].iter().zip(&found) {
        let size = exact.iter().fold(0.0_f64, |size, value| size.max(value.abs()));
        for (exact, found) in exact.iter().zip(found) {
            // Half a unit of 8 bits; gradients also meet the rounding of `out`, 2^-9 of values up to 2, times 32 channels.
            assert!((exact - found.to_f64()).abs() < 0.02 * size, "{exact} {found}");
        }
    }
}

#[test]
fn arrays_that_do_not_fit_are_named() {
    let shape = Shape { num_heads: 2, num_kv_heads: 1, head_dim: 1 };
    let run = |query: &[f32], bounds: &[i32], shape| {
        let (mut out, mut log_sum) = (vec![0.0; query.len()], vec![0.0; query.len()]);
        forward(
            query,
            &query[..query.len() / 2],
            &query[..query.len() / 2],
            bounds,
            shape,
            1,
            &mut out,
            &mut log_sum,
        )
    };
    assert_eq!(run(&[0.0; 4], &[0, 2], shape), Ok(()));
    assert_eq!(
        run(&[0.0; 4], &[0, 3], shape),
        Err(Error::Length { what: "query", len: 4, expected: 6 })
    );
    assert_eq!(run(&[0.0; 4], &[0, 2, 1], shape), Err(Error::Bounds));
    assert_eq!(run(&[0.0; 4], &[1, 2], shape), Err(Error::Bounds));
    let odd = Shape { num_heads: 3, num_kv_heads: 2, head_dim: 1 };
    assert_eq!(run(&[0.0; 4], &[0, 2], odd), Err(Error::Shape(odd)));
}

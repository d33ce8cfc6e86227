//! Documents per second of every packing, on web-like lengths.

use std::hint::black_box;

use criterion::{BenchmarkId, Criterion, Throughput, criterion_group, criterion_main};
use glmcore_packing::{Pieces, balance, fill, pack_best_fit, pack_concat, pack_documents};

/// Log-normal lengths like those of web pages (median 600 tokens, mean 1,164), from a fixed linear
/// congruential generator.
fn lengths(count: usize) -> Vec<u32> {
    let mut state = 0x2545_f491_4f6c_dd1d_u64;
    let mut uniform = || {
        state =
            state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (state >> 11) as f64 / (1_u64 << 53) as f64
    };
    let mut length = || {
        let normal = (0..12).map(|_| uniform()).sum::<f64>() - 6.0; // sum of 12 uniforms: variance 1
        #[expect(
            clippy::cast_possible_truncation,
            clippy::cast_sign_loss,
            reason = "600 e^6.9 at most"
        )]
        let tokens = (600.0 * (1.151 * normal).exp()) as u32;
        tokens.max(1)
    };
    (0..count).map(|_| length()).collect()
}

/// The same documents cut at `capacity`, so that best fit takes them.
fn cut(lengths: &[u32], capacity: u32) -> Vec<u32> {
    let cut =
        |&len: &u32| (0..len.div_ceil(capacity)).map(move |i| capacity.min(len - i * capacity));
    lengths.iter().flat_map(cut).collect()
}

fn packings(c: &mut Criterion) {
    for count in [10_000, 100_000, 1_000_000] {
        let lengths = lengths(count);
        for capacity in [4096, 32_768, 131_072] {
            let mut group = c.benchmark_group(format!("{count} documents, rows of {capacity}"));
            group.sample_size(10);
            let pieces = cut(&lengths, capacity);
            group.throughput(Throughput::Elements(pieces.len() as u64));
            group.bench_function("pack_best_fit", |b| {
                b.iter(|| pack_best_fit(black_box(&pieces), capacity));
            });
            group.throughput(Throughput::Elements(count as u64));
            group.bench_function("pack_documents", |b| {
                b.iter(|| pack_documents(black_box(&lengths), capacity, TooLong::Split));
            });
            group.bench_function("pack_concat", |b| {
                b.iter(|| pack_concat(black_box(&lengths), capacity));
            });
            group.finish();
        }
    }
}

fn balances(c: &mut Criterion) {
    let mut group = c.benchmark_group("balance over 64 ranks");
    for count in [1000, 10_000, 100_000] {
        let costs: Vec<f64> = lengths(count).into_iter().map(f64::from).collect();
        group.throughput(Throughput::Elements(count as u64));
        group.bench_with_input(BenchmarkId::from_parameter(count), &costs, |b, costs| {
            b.iter(|| balance(black_box(costs), 64));
        });
    }
    group.finish();
}

fn fills(c: &mut Criterion) {
    let mut group = c.benchmark_group("fill 1 Mi tokens");
    group.throughput(Throughput::Elements(1 << 20));
    for capacity in [4096, 32_768, 131_072] {
        let pieces: Pieces =
            pack_concat(&lengths(10_000), capacity).expect("the lengths can be packed");
        let rows = (1 << 20) / capacity as usize;
        group.bench_with_input(BenchmarkId::from_parameter(capacity), &pieces, |b, pieces| {
            b.iter(|| {
                fill::<glmcore_packing::Error>(pieces, 0..rows, capacity, 0, |_, ids, mask| {
                    ids.fill(7);
                    mask.fill(1);
                    Ok(())
                })
            });
        });
    }
    group.finish();
}

criterion_group!(benches, packings, balances, fills);
criterion_main!(benches);

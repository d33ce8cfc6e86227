//! Documents per second of every packing, on web-like lengths.

use std::hint::black_box;

use criterion::{BenchmarkId, Criterion, Throughput, criterion_group, criterion_main};
use glmcore_packing::{
    BestFitStream, Pieces, PrefixForest, Ragged, TooLong, balance, fill, pack_best_fit,
    pack_concat, pack_documents,
};

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
            b.iter(|| balance(black_box(costs), 64, false));
        });
    }
    group.finish();
}

fn streams(c: &mut Criterion) {
    for capacity in [2048, 4096, 32_768, 131_072] {
        let pieces = cut(&lengths(100_000), capacity);
        let mut group =
            c.benchmark_group(format!("stream through 1,000 pieces, rows of {capacity}"));
        group.sample_size(10).throughput(Throughput::Elements(pieces.len() as u64));
        for crop in [false, true] {
            group.bench_function(if crop { "crop" } else { "pad" }, |b| {
                b.iter(|| {
                    let mut stream = BestFitStream::new(capacity, 1000, TooLong::Error, crop)?;
                    stream.push(black_box(&pieces))
                });
            });
        }
        group.finish();
    }
}

fn prefixes(c: &mut Criterion) {
    let mut group =
        c.benchmark_group("share the prefixes of groups of 16, prompts and answers of 1,000");
    for num_groups in [1, 8, 64] {
        let mut ids = Vec::new();
        for prompt in 0..num_groups {
            for answer in 0..16 {
                ids.extend((0..1000).map(|i| prompt * 1000 + i));
                ids.extend((0..1000).map(|i| answer * 1000 + i));
            }
        }
        let offsets: Vec<i64> = (0..=i64::from(num_groups) * 16).map(|i| i * 2000).collect();
        let samples = Ragged::new(&ids, &offsets, None).expect("the offsets fit");
        group.sample_size(10).throughput(Throughput::Elements(ids.len() as u64));
        group.bench_function(BenchmarkId::from_parameter(num_groups), |b| {
            b.iter(|| PrefixForest::new(black_box(&samples)));
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

criterion_group!(benches, packings, balances, streams, prefixes, fills);
criterion_main!(benches);

//! Quantising and dequantising bfloat16 weights, in bytes read and written, beside a copy.

use std::hint::black_box;

use criterion::{BenchmarkId, Criterion, Throughput, criterion_group, criterion_main};
use glmcore_fp8::{Matrix, ScaleFormat, WEIGHT_FLOOR, dequantize, quantize};
use half::bf16;

fn fp8(c: &mut Criterion) {
    let mut group = c.benchmark_group("fp8_128x128");
    for size in [256_usize, 1024, 4096] {
        let weight: Vec<bf16> = (0..size * size)
            .map(|i| bf16::from_f32((i * 7919 % 10_007) as f32 * 1e-3 - 5.0))
            .collect();
        let matrix = Matrix::new(&weight, size, size).expect("the matrix is square");
        let (q, scale) = quantize(matrix, (128, 128), WEIGHT_FLOOR, ScaleFormat::Float32)
            .expect("values are finite");
        let mut out = weight.clone();
        group.throughput(Throughput::Bytes((size * size * 3) as u64));
        group.bench_function(BenchmarkId::new("quantize", size), |b| {
            b.iter(|| quantize(black_box(matrix), (128, 128), WEIGHT_FLOOR, ScaleFormat::Float32));
        });
        group.bench_function(BenchmarkId::new("dequantize", size), |b| {
            b.iter(|| dequantize(black_box(&q), &scale, (size, size), (128, 128), &mut out));
        });
        group.throughput(Throughput::Bytes((size * size * 4) as u64));
        group.bench_function(BenchmarkId::new("copy", size), |b| {
            b.iter(|| out.copy_from_slice(black_box(&weight)));
        });
    }
    group.finish();
}

criterion_group!(benches, fp8);
criterion_main!(benches);

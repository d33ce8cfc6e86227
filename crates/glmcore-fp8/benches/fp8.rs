//! Quantising and dequantising bfloat16 weights, in bytes read and written, beside a copy and the plain twin. One thread.

use std::hint::black_box;

use criterion::{BenchmarkId, Criterion, Throughput, criterion_group, criterion_main};
use glmcore_fp8::{Blocks, Instructions, Matrix, Quantizer, dequantize_with};
use half::bf16;

fn fp8(c: &mut Criterion) {
    let pool = rayon::ThreadPoolBuilder::new().num_threads(1).build().expect("a thread");
    let mut group = c.benchmark_group("fp8_128x128");
    let blocks = Blocks::new(128, 128).expect("not empty");
    for size in [256_usize, 1024, 4096] {
        let weight: Vec<bf16> = (0..size * size)
            .map(|i| bf16::from_f32((i * 7919 % 10_007) as f32 * 1e-3 - 5.0))
            .collect();
        let matrix = Matrix::new(&weight, size, size).expect("the matrix is square");
        let quantizer = Quantizer::of_weights(blocks);
        let (mut q, mut scale) = quantizer.quantize(matrix).expect("values are finite");
        let mut out = weight.clone();
        group.throughput(Throughput::Bytes((size * size * 3) as u64));
        for instructions in Instructions::all() {
            let name = format!("{instructions:?}");
            let quantizer = Quantizer { instructions, ..quantizer };
            group.bench_function(BenchmarkId::new(format!("quantize {name}"), size), |b| {
                b.iter(|| {
                    pool.install(|| quantizer.quantize_into(black_box(matrix), &mut q, &mut scale))
                });
            });
            group.bench_function(BenchmarkId::new(format!("dequantize {name}"), size), |b| {
                b.iter(|| {
                    let q = Matrix::new(black_box(&q), size, size)?;
                    pool.install(|| dequantize_with(instructions, q, &scale, blocks, &mut out))
                });
            });
        }
        group.throughput(Throughput::Bytes((size * size * 4) as u64));
        group.bench_function(BenchmarkId::new("copy", size), |b| {
            b.iter(|| out.copy_from_slice(black_box(&weight)));
        });
    }
    group.finish();
}

criterion_group!(benches, fp8);
criterion_main!(benches);

//! Writing, opening and reading shards, and drawing from a mixture.

use std::hint::black_box;
use std::path::Path;
use std::sync::Arc;

use criterion::{BenchmarkId, Criterion, Throughput, criterion_group, criterion_main};
use glmcore_data::{
    Lengths, MegatronFile, MegatronWriter, Mixture, SampleStream, Schedule, ShardWriter, Shuffle,
    Source, TokenFile, TokenShards,
};

const VOCAB_SIZE: u32 = 151_552;
const DOCUMENT_LEN: usize = 1000;

fn write(path: &Path, count: usize) {
    let ids: Vec<u32> = (0..).take(DOCUMENT_LEN).collect();
    let mut writer =
        ShardWriter::create(path, VOCAB_SIZE, false).expect("the folder can be written");
    for _ in 0..count {
        writer.append(&ids, None, 0, 1.0).expect("the ids are in the vocabulary");
    }
    writer.finish().expect("the disk has room");
}

fn shards(c: &mut Criterion) {
    let dir = tempfile::tempdir().expect("there is a temporary folder");
    for count in [100, 1000, 10_000] {
        let path = dir.path().join(count.to_string());
        let bytes = (count * DOCUMENT_LEN * 4) as u64;
        let mut group = c.benchmark_group(format!("shard of {count} documents"));
        group.sample_size(10).throughput(Throughput::Bytes(bytes));
        group.bench_function("write", |b| b.iter(|| write(&path, count)));
        group.bench_function("verify", |b| {
            let shards = TokenShards::open([&path]).expect("it was just written");
            b.iter(|| shards.verify().expect("it was just written"));
        });
        group.bench_function("copy in shuffled order", |b| {
            let shards = TokenShards::open([&path]).expect("it was just written");
            let shuffle = Shuffle::new(shards.num_documents(), 0, "bench", 0);
            let (mut ids, mut mask) = (vec![0; DOCUMENT_LEN], vec![0; DOCUMENT_LEN]);
            b.iter(|| {
                for k in 0..shards.num_documents() {
                    shards
                        .copy(shuffle.at(k), 0, &mut ids, &mut mask)
                        .expect("it was just written");
                }
            });
        });
        group.throughput(Throughput::Elements(1));
        group.bench_function("open", |b| b.iter(|| TokenShards::open([black_box(&path)])));
        group.finish();
    }
}

/// Samples of 4,097 tokens from 20 million, in the order of a stream, from both formats.
fn samples(c: &mut Criterion) {
    const SAMPLE_LEN: usize = 4096;
    let dir = tempfile::tempdir().expect("there is a temporary folder");
    let (path, prefix) = (dir.path().join("shard"), dir.path().join("megatron"));
    write(&path, 20_000);
    let ids: Vec<u32> = (0..).take(DOCUMENT_LEN).collect();
    let mut writer =
        MegatronWriter::create(&prefix, VOCAB_SIZE).expect("the folder can be written");
    for _ in 0..20_000 {
        writer.append(&ids).expect("the ids are in the vocabulary");
    }
    writer.finish().expect("the disk has room");
    let megatron = MegatronFile::open(&prefix, VOCAB_SIZE).expect("it was just written");
    let mut group = c.benchmark_group("samples of 4,097 tokens");
    for (name, documents) in [
        ("shard", TokenShards::open([&path])),
        ("megatron", TokenShards::new(vec![TokenFile::Megatron(megatron)])),
    ] {
        let documents = Arc::new(documents.expect("it was just written"));
        let source = Source { name: name.into(), weight: 1.0, documents };
        let stream = SampleStream::new(vec![source], 4096, 0).expect("there are enough tokens");
        let (mut ids, mut mask) = (vec![0; SAMPLE_LEN + 1], vec![0; SAMPLE_LEN + 1]);
        let mut k = 0;
        group.throughput(Throughput::Bytes((SAMPLE_LEN as u64 + 1) * 4));
        group.bench_function(format!("read from {name}"), |b| {
            b.iter(|| {
                stream.read(k, &mut ids, &mut mask).expect("the files are whole");
                k += 1;
            });
        });
        group.throughput(Throughput::Elements(1));
        group.bench_function(format!("documents in {name}"), |b| {
            b.iter(|| {
                k += 1;
                stream.stretches(black_box(k))
            });
        });
    }
    group.finish();
}

fn schedules(c: &mut Criterion) {
    let mut group = c.benchmark_group("place of the order of sources");
    group.throughput(Throughput::Elements(1));
    for num_sources in [2, 8, 64] {
        let weights: Vec<f64> = (1..=num_sources).map(f64::from).collect();
        let schedule = Schedule::new(&weights);
        let mut k = 1 << 40;
        group.bench_function(BenchmarkId::from_parameter(num_sources), |b| {
            b.iter(|| {
                k += 1;
                schedule.at(black_box(k))
            });
        });
    }
    group.finish();
}

fn draws(c: &mut Criterion) {
    for num_sources in [1, 8, 64] {
        let source = |i: u32| Source {
            name: i.to_string(),
            weight: f64::from(1 + i % 7),
            documents: vec![500 + i; 100_000],
        };
        let sources: Vec<_> = (0..num_sources).map(source).collect();
        let mut group = c.benchmark_group(format!("draw from {num_sources} sources"));
        group.sample_size(10);
        for count in [1000, 10_000, 100_000] {
            group.throughput(Throughput::Elements(count as u64));
            group.bench_with_input(BenchmarkId::from_parameter(count), &count, |b, &count| {
                let mut mixture = Mixture::new(sources.clone(), 0).expect("the sources are good");
                b.iter(|| mixture.draw(u64::MAX, count));
            });
        }
        group.finish();
    }
}

criterion_group!(benches, shards, samples, schedules, draws);
criterion_main!(benches);

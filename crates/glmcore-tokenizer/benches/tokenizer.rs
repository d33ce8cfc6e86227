//! Encoding, decoding and training speed in bytes of text, on the sources of this crate repeated.

use std::hint::black_box;

use criterion::{BenchmarkId, Criterion, Throughput, criterion_group, criterion_main};
use glmcore_tokenizer::{GLM4_SPECIAL_TOKENS, Special, Tokenizer, Trainer};

fn corpus() -> String {
    [
        include_str!("../src/train.rs"),
        include_str!("../src/encode.rs"),
        include_str!("../src/file/json.rs"),
    ]
    .concat()
}

fn trained(text: &str) -> Tokenizer {
    let mut trainer = Trainer::new();
    trainer.feed(&[text], 1);
    Tokenizer::from_training(
        &trainer.finish(1_000).expect("the corpus is large enough"),
        &GLM4_SPECIAL_TOKENS,
    )
    .expect("learned tokens fit")
}

fn tokenizer(c: &mut Criterion) {
    let text = corpus();
    let tokenizer = trained(&text);
    let mut group = c.benchmark_group("tokenizer");
    for size in [1 << 10, 1 << 13, text.len()] {
        let part = &text[..text.floor_char_boundary(size)];
        let ids = tokenizer.encode(part, Special::AsText);
        group.throughput(Throughput::Bytes(part.len() as u64));
        group.bench_with_input(BenchmarkId::new("encode", size), part, |b, part| {
            b.iter(|| tokenizer.encode(black_box(part), Special::AsText));
        });
        group.bench_with_input(BenchmarkId::new("decode", size), &ids, |b, ids| {
            b.iter(|| tokenizer.decode(black_box(ids)));
        });
    }
    group.bench_function("train_1000", |b| b.iter(|| trained(black_box(&text))));
    group.finish();
}

criterion_group!(benches, tokenizer);
criterion_main!(benches);

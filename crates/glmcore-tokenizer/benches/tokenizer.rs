//! Encoding, decoding and training in bytes of text a second, one thread, beside the crates `tokenizers`, `tiktoken-rs`
//! and `bpe-openai`, all with cl100k's vocabulary; the text is this workspace's own sources. Each iteration sees the same
//! text: `benches/tokenizer.py` tells fresh text from text seen before.
#![expect(clippy::unwrap_used, reason = "a bench may panic")]

use std::fmt::Write;
use std::hint::black_box;
use std::path::Path;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use criterion::{BenchmarkId, Criterion, Throughput, criterion_group, criterion_main};
use glmcore_tokenizer::{CL100K_PATTERN, Special, Tokenizer, Trainer};
use tokenizers::models::TrainerWrapper;
use tokenizers::models::bpe::BpeTrainer;
use tokenizers::pre_tokenizers::byte_level::ByteLevel;

/// Ids of cl100k's ranks; the special tokens come after them.
const NUM_RANKS: u32 = 100_256;
const TRAINED_IDS: usize = 2_000;

/// Rust and Markdown files of the workspace, in order of their paths.
fn corpus() -> String {
    fn add(directory: &Path, text: &mut String) {
        let entries = std::fs::read_dir(directory).unwrap();
        let mut paths: Vec<_> = entries.map(|entry| entry.unwrap().path()).collect();
        paths.sort();
        for path in paths {
            if path.is_dir() {
                add(&path, text);
            } else if path.extension().is_some_and(|kind| kind == "rs" || kind == "md") {
                text.push_str(&std::fs::read_to_string(path).unwrap());
            }
        }
    }
    let mut text = String::new();
    for crate_of in ["chat", "data", "fp8", "packing", "py", "tokenizer", "trajectory"] {
        add(
            &Path::new(env!("CARGO_MANIFEST_DIR")).join(format!("../glmcore-{crate_of}")),
            &mut text,
        );
    }
    text
}

/// cl100k's rank file, from the copy inside `tiktoken-rs`.
fn rank_file(theirs: &tiktoken_rs::CoreBPE) -> String {
    (0..NUM_RANKS).fold(String::new(), |mut file, rank| {
        let token = theirs.decode_bytes(&[rank]).unwrap();
        writeln!(file, "{} {rank}", STANDARD.encode(token)).unwrap();
        file
    })
}

fn encode(c: &mut Criterion) {
    tokenizers::utils::parallelism::set_parallelism(false);
    let text = corpus();
    let tiktoken = tiktoken_rs::cl100k_base().unwrap();
    let ours = Tokenizer::from_tiktoken(&rank_file(&tiktoken), CL100K_PATTERN, &[]).unwrap();
    let hugging_face: tokenizers::Tokenizer = ours.to_json().parse().unwrap();
    let bpe = bpe_openai::cl100k_base();

    let expected = ours.encode(&text, Special::AsText);
    assert!(tiktoken.encode_ordinary(&text) == expected, "tiktoken-rs gives other ids");
    assert!(bpe.encode(&text) == expected, "bpe-openai gives other ids");
    let theirs = hugging_face.encode_fast(text.as_str(), false).unwrap();
    assert!(theirs.get_ids() == expected, "tokenizers gives other ids");

    let mut group = c.benchmark_group("encode");
    group.sample_size(10);
    for size in [1 << 10, 1 << 15, text.len()] {
        let part = &text[..text.floor_char_boundary(size)];
        group.throughput(Throughput::Bytes(part.len() as u64));
        group.bench_with_input(BenchmarkId::new("glmcore", size), part, |b, part| {
            b.iter(|| ours.encode(black_box(part), Special::AsText));
        });
        group.bench_with_input(BenchmarkId::new("bpe-openai", size), part, |b, part| {
            b.iter(|| bpe.encode(black_box(part)));
        });
        group.bench_with_input(BenchmarkId::new("tiktoken-rs", size), part, |b, part| {
            b.iter(|| tiktoken.encode_ordinary(black_box(part)));
        });
        group.bench_with_input(BenchmarkId::new("tokenizers", size), part, |b, part| {
            b.iter(|| hugging_face.encode_fast(black_box(part), false).unwrap());
        });
    }
    group.finish();

    let mut group = c.benchmark_group("decode");
    group.sample_size(10).throughput(Throughput::Bytes(text.len() as u64));
    group.bench_function("glmcore", |b| b.iter(|| ours.decode(black_box(&expected))));
    group.bench_function("bpe-openai", |b| b.iter(|| bpe.decode(black_box(&expected))));
    group.bench_function("tiktoken-rs", |b| b.iter(|| tiktoken.decode_bytes(black_box(&expected))));
    group.bench_function("tokenizers", |b| {
        b.iter(|| hugging_face.decode(black_box(&expected), false).unwrap());
    });
    group.finish();
}

fn train(c: &mut Criterion) {
    let text = corpus();
    let empty = Tokenizer::from_tiktoken(&bytes_only(), CL100K_PATTERN, &[]).unwrap();
    let hugging_face: tokenizers::Tokenizer = empty.to_json().parse().unwrap();
    let mut group = c.benchmark_group("train");
    group.sample_size(10).throughput(Throughput::Bytes(text.len() as u64));
    group.bench_function("glmcore", |b| {
        b.iter(|| {
            let mut trainer = Trainer::with_pattern(CL100K_PATTERN).unwrap();
            trainer.feed(&[black_box(&text)], 1);
            trainer.finish(TRAINED_IDS).unwrap()
        });
    });
    group.bench_function("tokenizers", |b| {
        b.iter(|| {
            let trainer = BpeTrainer::builder()
                .vocab_size(TRAINED_IDS)
                .show_progress(false)
                .initial_alphabet(ByteLevel::alphabet().into_iter().collect())
                .build();
            let mut tokenizer = hugging_face.clone();
            let mut trainer = TrainerWrapper::from(trainer);
            tokenizer.train(&mut trainer, std::iter::once(black_box(text.as_str()))).unwrap();
            tokenizer
        });
    });
    group.finish();
}

/// A rank file of the 256 bytes.
fn bytes_only() -> String {
    (0..=u8::MAX).fold(String::new(), |mut file, byte| {
        writeln!(file, "{} {byte}", STANDARD.encode([byte])).unwrap();
        file
    })
}

criterion_group!(benches, encode, train);
criterion_main!(benches);

//! Bytes per second of every function on one thread, on the sources and pages of this workspace.

use std::fs;
use std::hint::black_box;
use std::path::Path;

use criterion::{BenchmarkId, Criterion, Throughput, criterion_group, criterion_main};
use glmcore_clean::{
    Copies, Decontaminator, MinHash, QualityClassifier, Training, Unit, code_statistics,
    detect_language, exact_hashes, minhash, near_duplicates, text_statistics,
};

/// Every Rust, Python and Markdown file below the workspace's root, in order.
fn texts() -> Vec<String> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("../..");
    let mut texts = Vec::new();
    for folder in ["crates", "python", "docs", "tests"] {
        read(&root.join(folder), &mut texts);
    }
    texts
}

fn read(place: &Path, texts: &mut Vec<String>) {
    let entries = fs::read_dir(place).expect("the workspace can be read");
    let mut paths: Vec<_> = entries.map(|entry| entry.expect("readable").path()).collect();
    paths.sort();
    for path in paths {
        if path.is_dir() {
            read(&path, texts);
        } else if path.extension().is_some_and(|kind| kind == "rs" || kind == "py" || kind == "md")
        {
            texts.extend(fs::read_to_string(&path));
        }
    }
}

fn functions(c: &mut Criterion) {
    let all = texts();
    for share in [16, 4, 1] {
        let texts: Vec<&String> = all.iter().step_by(share).collect();
        let size: usize = texts.iter().map(|text| text.len()).sum();
        let mut group = c.benchmark_group(format!("{} texts, {} KiB", texts.len(), size >> 10));
        group.sample_size(10).throughput(Throughput::Bytes(size as u64));
        group.bench_function("text_statistics", |b| {
            b.iter(|| text_statistics(black_box(&texts), 1));
        });
        group.bench_function("code_statistics", |b| {
            b.iter(|| code_statistics(black_box(&texts), 1));
        });
        group.bench_function("detect_language", |b| {
            b.iter(|| detect_language(black_box(&texts), 1));
        });
        group.bench_function("exact_hashes", |b| b.iter(|| exact_hashes(black_box(&texts), 1)));
        // What a permutation costs beside reading: 64 are computed at a time.
        for permutations in [64, 128, 256, 512] {
            let how = MinHash::new(permutations, 5, 1).expect("valid");
            let name = BenchmarkId::new("minhash", permutations);
            group.bench_function(name, |b| b.iter(|| minhash(black_box(&texts), &how, 1)));
        }
        let signatures = minhash(&texts, &MinHash::new(128, 5, 1).expect("valid"), 1);
        let copies = Copies::new(128, 0.8).expect("valid");
        group.bench_function("near_duplicates", |b| {
            b.iter(|| near_duplicates(black_box(&signatures), &copies, 1));
        });
        let evaluation = Decontaminator::new(&all[..20], Unit::Token, 13, 8).expect("valid");
        group.bench_function("overlaps", |b| b.iter(|| evaluation.overlaps(black_box(&texts), 1)));
        let labels: Vec<bool> = (0..texts.len()).map(|text| text % 2 == 0).collect();
        let classifier =
            QualityClassifier::train(&texts, &labels, &Training::default(), 1).expect("two labels");
        group.bench_function("scores", |b| b.iter(|| classifier.scores(black_box(&texts), 1)));
        group.finish();
    }
}

criterion_group!(benches, functions);
criterion_main!(benches);

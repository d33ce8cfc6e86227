//! The order of samples: shares, purity, epochs, and samples against the documents they come from.

#![expect(
    clippy::unwrap_used,
    clippy::cast_possible_truncation,
    clippy::cast_possible_wrap,
    reason = "a wrong number fails the test"
)]

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::Arc;

use glmcore_data::{Error, Lengths, SampleStream, Schedule, ShardWriter, Source, TokenShards};
use proptest::prelude::*;

/// Documents whose ids count up from `first`, so that a token tells where it is from; every third token
/// is not learned.
fn write(path: &Path, first: u32, lengths: &[u32]) {
    let mut writer = ShardWriter::create(path, 1_000_000, true).unwrap();
    let mut next = first;
    for &len in lengths {
        let ids: Vec<u32> = (next..next + len).collect();
        let mask: Vec<u8> = ids.iter().map(|id| u8::from(id % 3 != 0)).collect();
        writer.append(&ids, Some(&mask), 0, 1.0).unwrap();
        next += len;
    }
    writer.finish().unwrap();
}

/// Sources of one or two shards each; source `i` has ids from `10_000 * i`.
fn sources(dir: &Path, given: &[(f64, Vec<u32>)]) -> Vec<Source<Arc<TokenShards>>> {
    let mut sources = Vec::new();
    for (i, (weight, lengths)) in (0..).zip(given) {
        let (one, two) = lengths.split_at(lengths.len() / 2);
        let paths = [dir.join(format!("{i}a")), dir.join(format!("{i}b"))];
        write(&paths[0], 10_000 * i, one);
        write(&paths[1], 10_000 * i + one.iter().sum::<u32>(), two);
        let documents = Arc::new(TokenShards::open(&paths).unwrap());
        sources.push(Source { name: format!("source {i}"), weight: *weight, documents });
    }
    sources
}

fn read(stream: &SampleStream, k: u64, len: usize) -> (Vec<i32>, Vec<u8>) {
    let (mut ids, mut mask) = (vec![0; len], vec![9; len]);
    stream.read(k, &mut ids, &mut mask).unwrap();
    (ids, mask)
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(40))]

    #[test]
    fn counts_are_those_of_the_places_and_off_the_shares_by_less_than_promised(
        weights in prop::collection::vec(1e-3..10.0_f64, 1..40),
        num_places in 0_u64..2000,
    ) {
        let schedule = Schedule::new(&weights);
        prop_assert!(schedule.max_deviation() < 2.0);
        let total: f64 = weights.iter().sum();
        let mut counts = vec![0; weights.len()];
        for k in 0..num_places {
            prop_assert_eq!(&schedule.counts(k), &counts);
            for (&count, weight) in counts.iter().zip(&weights) {
                let off = count as f64 - k as f64 * weight / total;
                prop_assert!(off.abs() <= schedule.max_deviation() + 1e-9, "{off} after {k}");
            }
            let (source, before) = schedule.at(k);
            prop_assert_eq!(before, counts[usize::from(source)]);
            counts[usize::from(source)] += 1;
        }
    }

    #[test]
    fn shares_hold_at_any_distance(weights in prop::collection::vec(1e-3..10.0_f64, 1..40), k in 0_u64..1 << 40) {
        let schedule = Schedule::new(&weights);
        let counts = schedule.counts(k);
        prop_assert_eq!(counts.iter().sum::<u64>(), k);
        let total: f64 = weights.iter().sum();
        for (&count, weight) in counts.iter().zip(&weights) {
            let off = count as f64 - k as f64 * (weight / total);
            prop_assert!(off.abs() <= schedule.max_deviation() + 1e-3, "{off}"); // float64 at 2^40
        }
        let (source, before) = schedule.at(k);
        prop_assert_eq!(before, counts[usize::from(source)]);
    }

    #[test]
    fn a_sample_is_consecutive_tokens_of_its_source_with_their_masks_and_documents(
        lengths in prop::collection::vec(0_u32..30, 2..20),
        sample_len in 1_u32..40,
        seed: u64,
        k in 0_u64..1000,
    ) {
        prop_assume!(lengths.iter().sum::<u32>() >= sample_len);
        let dir = tempfile::tempdir().unwrap();
        let stream = SampleStream::new(sources(dir.path(), &[(1.0, lengths.clone())]), sample_len, seed).unwrap();
        let num_tokens = lengths.iter().sum::<u32>() as i32;
        let (ids, mask) = read(&stream, k, sample_len as usize + 1);
        for (pair, mask) in ids.windows(2).zip(&mask) {
            prop_assert_eq!(pair[1], (pair[0] + 1) % num_tokens);
            prop_assert_eq!(*mask, u8::from(pair[0] % 3 != 0));
        }
        let starts: Vec<i32> = lengths.iter().scan(0, |at, &len| { *at += len as i32; Some(*at) }).collect();
        let mut at = 0;
        for stretch in stream.stretches(k).unwrap() {
            prop_assert_eq!(stretch.first_token as i32, ids[at]);
            let end = at + stretch.len as usize;
            let document = |id: i32| starts.partition_point(|&start| start <= id);
            for &id in &ids[at..end] {
                prop_assert_eq!(document(id), document(ids[at]));
            }
            // A document may end where its source does, and the same document may begin there again.
            let goes_on = ids[end - 1] + 1 < num_tokens && document(ids[end]) == document(ids[at]);
            prop_assert_eq!(stretch.continues, goes_on);
            at = end;
        }
        prop_assert_eq!(at, sample_len as usize);
    }

    #[test]
    fn an_epoch_has_every_token_at_most_once_and_leaves_out_less_than_a_sample(
        lengths in prop::collection::vec(1_u32..30, 2..20),
        sample_len in 1_u32..20,
        seed: u64,
        epoch in 0_u64..5,
    ) {
        prop_assume!(lengths.iter().sum::<u32>() >= sample_len);
        let dir = tempfile::tempdir().unwrap();
        let stream = SampleStream::new(sources(dir.path(), &[(1.0, lengths)]), sample_len, seed).unwrap();
        let per_epoch = stream.samples_per_epoch(0);
        let mut seen = BTreeMap::new();
        for k in epoch * per_epoch..(epoch + 1) * per_epoch {
            prop_assert_eq!(stream.sample(k).epoch, epoch);
            for id in read(&stream, k, sample_len as usize).0 {
                *seen.entry(id).or_insert(0) += 1;
            }
        }
        prop_assert!(seen.values().all(|&count| count == 1));
        let left_out = stream.sources()[0].documents.num_tokens() - seen.len() as u64;
        prop_assert!(left_out < sample_len.into());
    }

    #[test]
    fn a_source_keeps_its_order_whatever_it_is_mixed_with(seed: u64) {
        let dir = tempfile::tempdir().unwrap();
        let given = [(3.0, vec![50; 8]), (1.0, vec![40; 6]), (0.5, vec![30; 5])];
        let mixed = SampleStream::new(sources(dir.path(), &given), 16, seed).unwrap();
        let alone = SampleStream::new(sources(dir.path(), &given[..1]), 16, seed).unwrap();
        let of_source: Vec<u64> = (0..200).filter(|&k| mixed.sample(k).source == 0).collect();
        for (n, k) in (0..).zip(of_source) {
            prop_assert_eq!(read(&mixed, k, 16), read(&alone, n, 16));
        }
    }
}

#[test]
fn the_bound_of_shares_is_that_of_the_docs() {
    assert!((Schedule::new(&[0.3, 0.7]).max_deviation() - 0.5).abs() < 1e-12);
    assert!(Schedule::new(&[2.0]).max_deviation() < 1e-12);
    for n in [4, 8, 256] {
        assert!(Schedule::new(&vec![1.0; n]).max_deviation() < 1.0);
    }
}

#[test]
fn orders_of_seeds_and_epochs_differ_and_cut_elsewhere() {
    let dir = tempfile::tempdir().unwrap();
    let stream =
        |seed| SampleStream::new(sources(dir.path(), &[(1.0, vec![1000; 4])]), 16, seed).unwrap();
    let firsts = |stream: &SampleStream, from: u64| {
        (from..from + 50).map(|k| stream.sample(k).first_token).collect::<Vec<_>>()
    };
    let (one, two) = (stream(1), stream(2));
    assert_ne!(firsts(&one, 0), firsts(&two, 0));
    assert_ne!(firsts(&one, 0), firsts(&one, one.samples_per_epoch(0)));
    let phases: std::collections::BTreeSet<u64> = (0..40)
        .map(|epoch| one.sample(epoch * one.samples_per_epoch(0)).first_token % 16)
        .collect();
    assert!(phases.len() > 8); // 4,000 is a multiple of 16: without a phase there would be one
}

#[test]
fn samples_that_cannot_be_are_refused() {
    let dir = tempfile::tempdir().unwrap();
    let sources = sources(dir.path(), &[(1.0, vec![5, 5])]);
    let error = SampleStream::new(sources.clone(), 11, 0).unwrap_err();
    assert!(matches!(error, Error::SourceTooShort { num_tokens: 10, sample_len: 11, .. }));
    assert!(matches!(SampleStream::new(sources, 0, 0).unwrap_err(), Error::SampleLength { .. }));
    assert!(matches!(SampleStream::new(Vec::new(), 4, 0).unwrap_err(), Error::Nothing { .. }));
}

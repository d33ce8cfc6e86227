//! The mixture against a plain twin, and the promises about shares, order and state.

#![expect(
    clippy::unwrap_used,
    clippy::cast_possible_truncation,
    reason = "a wrong number fails the test"
)]

use std::collections::BTreeMap;

use glmcore_data::{Draws, Error, Mixture, Progress, Shuffle, Source};
use proptest::prelude::*;

fn sources(given: &[(f64, Vec<u32>)]) -> Vec<Source<Vec<u32>>> {
    let source = |(i, (weight, lengths)): (usize, &(f64, Vec<u32>))| Source {
        name: format!("source {i}"),
        weight: *weight,
        documents: lengths.clone(),
    };
    given.iter().enumerate().map(source).collect()
}

/// One to five sources of up to 20 documents, at least one of them not empty.
fn any_sources() -> impl Strategy<Value = Vec<(f64, Vec<u32>)>> {
    let lengths = prop::collection::vec(0_u32..50, 1..20).prop_map(|mut lengths| {
        lengths[0] += 1;
        lengths
    });
    prop::collection::vec((0.01..10.0_f64, lengths), 1..6)
}

/// Draws by counting everything anew for each document.
fn twin(given: &[(f64, Vec<u32>)], seed: u64, min_tokens: u64) -> Draws {
    let mut draws = Draws::default();
    while draws.num_tokens < min_tokens {
        let tokens_of = |source: usize| -> u64 {
            let pairs = draws.source.iter().zip(&draws.length);
            pairs.filter(|&(&s, _)| usize::from(s) == source).map(|(_, &len)| u64::from(len)).sum()
        };
        let rank = |source: usize| tokens_of(source) as f64 / given[source].0;
        let next = (0..given.len()).min_by(|&a, &b| rank(a).total_cmp(&rank(b))).unwrap();
        let count = draws.source.iter().filter(|&&s| usize::from(s) == next).count() as u64;
        let len = given[next].1.len() as u64;
        let shuffle = Shuffle::new(len, seed, &format!("source {next}"), count / len);
        let document = shuffle.at(count % len);
        let length = given[next].1[document as usize];
        draws.source.push(next as u16);
        draws.document.push(document);
        draws.length.push(length);
        draws.num_tokens += u64::from(length);
    }
    draws
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    #[test]
    fn draws_equal_the_twin(given in any_sources(), seed: u64, min_tokens in 0_u64..2000) {
        let mut mixture = Mixture::new(sources(&given), seed).unwrap();
        prop_assert_eq!(mixture.draw(min_tokens, usize::MAX).unwrap(), twin(&given, seed, min_tokens));
    }

    #[test]
    fn a_resumed_mixture_goes_on_as_if_never_stopped(
        given in any_sources(), seed: u64, first in 0_usize..60, second in 0_usize..60,
    ) {
        let mut whole = Mixture::new(sources(&given), seed).unwrap();
        let expected = whole.draw(u64::MAX, first + second).unwrap();

        let mut stopped = Mixture::new(sources(&given), seed).unwrap();
        let mut draws = stopped.draw(u64::MAX, first).unwrap();
        let mut resumed = Mixture::new(sources(&given), seed).unwrap();
        resumed.seek(stopped.progress()).unwrap();
        draws.append(resumed.draw(u64::MAX, second).unwrap());
        prop_assert_eq!(draws, expected);
        prop_assert_eq!(resumed.progress(), whole.progress());
        prop_assert_eq!(resumed.epochs(), whole.epochs());
    }

    #[test]
    fn shares_follow_the_weights_within_one_document_of_each_source(
        given in any_sources(), seed: u64, num_draws in 1_usize..500,
    ) {
        let mut mixture = Mixture::new(sources(&given), seed).unwrap();
        let longest: Vec<f64> =
            given.iter().map(|(_, lengths)| f64::from(*lengths.iter().max().unwrap())).collect();
        let sum_of_weights: f64 = given.iter().map(|(weight, _)| weight).sum();
        for _ in 0..num_draws {
            mixture.draw(u64::MAX, 1).unwrap();
            let total: u64 = mixture.progress().iter().map(|p| p.tokens).sum();
            for (i, progress) in mixture.progress().iter().enumerate() {
                let share = given[i].0 / sum_of_weights;
                let off = progress.tokens as f64 - share * total as f64;
                prop_assert!(off <= longest[i] + 1e-6, "source {} is {} tokens over", i, off);
                prop_assert!(off >= -share * longest.iter().sum::<f64>() - 1e-6, "source {} is {} under", i, off);
            }
        }
    }

    #[test]
    fn each_epoch_has_every_document_once(len in 1_u64..300, seed: u64, epoch: u64) {
        let shuffle = Shuffle::new(len, seed, "web", epoch);
        let mut order: Vec<u64> = (0..len).map(|k| shuffle.at(k)).collect();
        order.sort_unstable();
        prop_assert!(order.into_iter().eq(0..len));
    }

    #[test]
    fn the_order_of_a_source_does_not_depend_on_the_others(given in any_sources(), seed: u64) {
        let of_first = |draws: &Draws| -> Vec<u64> {
            let drawn = draws.source.iter().zip(&draws.document);
            drawn.filter(|&(&source, _)| source == 0).map(|(_, &document)| document).collect()
        };
        let mut together = Mixture::new(sources(&given), seed).unwrap();
        let mut alone = Mixture::new(sources(&given[..1]), seed).unwrap();
        let expected = of_first(&together.draw(u64::MAX, 300).unwrap());
        prop_assert_eq!(of_first(&alone.draw(u64::MAX, expected.len()).unwrap()), expected);
    }
}

#[test]
fn small_shuffles_reach_every_order_about_equally_often() {
    let mut counts = BTreeMap::new();
    for seed in 0..24_000 {
        let shuffle = Shuffle::new(4, seed, "web", 0);
        *counts.entry([0, 1, 2, 3].map(|k| shuffle.at(k))).or_insert(0_i32) += 1;
    }
    assert_eq!(counts.len(), 24);
    // Counts of a fair shuffle: 1000 with a standard deviation of 31; 5 of them for 24 counts.
    assert!(counts.values().all(|&count| (count - 1000).abs() < 155), "{counts:?}");
}

#[test]
fn large_shuffles_send_neighbours_to_places_that_know_nothing_of_each_other() {
    const LEN: u64 = 100_003;
    let shuffle = Shuffle::new(LEN, 7, "web", 0);
    let order: Vec<u64> = (0..LEN).map(|k| shuffle.at(k)).collect();
    // In a random order the differences of neighbours fall into 16 equal classes (modulo the length)
    // about equally often: 6250 with a standard deviation of 77; 5 of them.
    let mut classes = [0_i64; 16];
    for pair in order.windows(2) {
        classes[((pair[1] + LEN - pair[0]) % LEN * 16 / LEN) as usize] += 1;
    }
    assert!(classes.iter().all(|&count| (count - 6250).abs() < 385), "{classes:?}");
    let fixed = order.iter().zip(0..).filter(|&(&at, k)| at == k).count();
    assert!(fixed < 8, "{fixed} documents stay in place, 1 is expected");
}

#[test]
fn orders_of_epochs_seeds_and_names_differ() {
    let order = |seed, name, epoch| {
        let shuffle = Shuffle::new(1000, seed, name, epoch);
        (0..1000).map(|k| shuffle.at(k)).collect::<Vec<u64>>()
    };
    let orders = [order(1, "web", 0), order(1, "web", 1), order(2, "web", 0), order(1, "code", 0)];
    for (i, first) in orders.iter().enumerate() {
        for second in &orders[..i] {
            let same = first.iter().zip(second).filter(|(a, b)| a == b).count();
            assert!(same < 10, "{same} of 1000 places agree, 1 is expected");
        }
    }
}

#[test]
fn an_order_is_the_same_on_every_machine_and_in_every_version() {
    let shuffle = Shuffle::new(10, 42, "web", 3);
    let order: Vec<u64> = (0..10).map(|k| shuffle.at(k)).collect();
    assert_eq!(order, [0, 9, 6, 8, 3, 5, 1, 4, 2, 7]);
}

#[test]
fn billions_of_documents_cost_no_memory() {
    let shuffle = Shuffle::new(1 << 40, 1, "web", 0);
    assert!((0..1000).all(|k| shuffle.at(k) < 1 << 40));
}

#[test]
fn mixtures_that_cannot_be_drawn_are_refused_by_source() {
    let message = |given: Vec<Source<Vec<u32>>>| Mixture::new(given, 0).unwrap_err().to_string();
    let source =
        |name: &str, weight, lengths| Source { name: name.into(), weight, documents: lengths };
    assert_eq!(message(vec![]), "no sources are given, at least one is needed");
    assert_eq!(message(vec![source("web", 1.0, vec![0, 0])]), "source \"web\" has no tokens");
    for weight in [0.0, -1.0, f64::NAN, f64::INFINITY] {
        let expected = format!("source \"web\" has weight {weight}, it must be finite and above 0");
        assert_eq!(message(vec![source("web", weight, vec![1])]), expected);
    }
    let twice = vec![source("web", 1.0, vec![1]), source("web", 1.0, vec![1])];
    assert_eq!(message(twice), "two sources are named \"web\"");
}

#[test]
fn a_state_of_other_sources_is_refused() {
    let mut mixture = Mixture::new(sources(&[(1.0, vec![1])]), 0).unwrap();
    let error = mixture.seek(&[Progress::default(); 2]).unwrap_err();
    assert!(matches!(error, Error::Progress { given: 2, expected: 1 }));
}

//! Random texts: each function gives what its twin gives.

use std::collections::BTreeSet;

use glmcore_clean::{
    Copies, Decontaminator, MinHash, QualityClassifier, TEXT_FIELDS, Training, Unit, exact_hashes,
    jaccard, minhash, near_duplicates, text_statistics,
};
use proptest::prelude::*;

use crate::twins::{
    agreement, plain_clusters, plain_jaccard, plain_kept, plain_statistics, ratio, shingle_set,
    tokens,
};

/// Text of words that repeat, with everything in it that a filter counts.
fn text() -> impl Strategy<Value = String> {
    let pieces = vec![
        "the", "The", "and", "a", "be", "lorem", "Ipsum", "of", "x1", "12", "#", "##", "...",
        "....", "\u{2026}", ".", "end.", "end.\")", "?!", "{", "}", "-", "\u{2022}", "Straße",
        "ÉCOLE", "漢", "字漢", "かな", "。", "，", "\u{3000}", "\r", "e\u{301}", "\u{a0}",
    ];
    let gaps = vec![" ", " ", " ", "\n", "\n\n", "", "\t"];
    let piece = (prop::sample::select(pieces), prop::sample::select(gaps));
    prop::collection::vec(piece, 0..80)
        .prop_map(|pieces| pieces.into_iter().flat_map(|(piece, gap)| [piece, gap]).collect())
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(300))]

    #[test]
    fn statistics_are_those_of_the_twin(texts in prop::collection::vec(text(), 0..4)) {
        for (text, values) in texts.iter().zip(text_statistics(&texts, 1)) {
            let plain = plain_statistics(text);
            prop_assert_eq!(plain.len(), TEXT_FIELDS.len());
            for ((name, plain), value) in TEXT_FIELDS.iter().zip(plain).zip(values) {
                prop_assert!((plain - value).abs() < 1e-12, "{name}: {value}, not {plain}, of {text:?}");
            }
        }
    }

    #[test]
    fn exact_hashes_are_those_of_words_joined_by_spaces(text in text(), other in text()) {
        let plain = |text: &str| xxhash_rust::xxh3::xxh3_128(text.split_whitespace().collect::<Vec<_>>().join(" ").as_bytes());
        let long = text.repeat(60) + &"word".repeat(1500) + &other;
        let expected: Vec<u128> = [&text, &other, &long].iter().map(|text| plain(text)).collect();
        prop_assert_eq!(exact_hashes(&[&text, &other, &long], 2), expected);
    }

    #[test]
    fn jaccard_is_that_of_sets_of_strings(a in text(), b in text(), length in 1_usize..6) {
        prop_assert!((jaccard(&a, &b, length) - plain_jaccard(&a, &b, length)).abs() < 1e-12);
    }

    /// Bands of one row compare every pair that agrees anywhere, so nothing is missed.
    #[test]
    fn copies_are_those_of_comparing_every_pair(
        texts in prop::collection::vec(text(), 1..12),
        again in prop::collection::vec((0_usize..12, text()), 0..8),
        threshold in 0.05_f64..1.0,
        num_threads in 1_usize..4,
    ) {
        let mut texts = texts;
        for (from, tail) in again {
            let copy = texts[from % texts.len()].clone() + " " + &tail;
            texts.push(copy);
        }
        let count = texts.len();
        let how = MinHash::new(40, 2, 3).unwrap();
        let signatures = minhash(&texts, &how, num_threads);
        let rows: Vec<&[u32]> = signatures.chunks(40).collect();
        let quality: Vec<f64> = (0..count).map(|text| f64::from(u8::try_from(text % 3).unwrap())).collect();
        let ids: Vec<u64> = (0..count as u64).map(|text| (text * 7 + 3) % 101).collect();
        let is_copy = |a: usize, b: usize| {
            rows[a].iter().any(|&row| row != u32::MAX) && agreement(rows[a], rows[b]) as f64 >= threshold * 40.0
        };
        let expected = plain_kept(&plain_clusters(count, is_copy), &quality, &ids);
        let copies = Copies::new(40, threshold).unwrap().with_bands(40, 1).unwrap();
        let kept = near_duplicates(&signatures, &copies.with_quality(&quality).with_ids(&ids), num_threads).unwrap();
        prop_assert_eq!(kept, expected);
    }

    #[test]
    fn overlaps_are_those_of_sets_of_strings(
        evals in prop::collection::vec(text(), 0..4),
        text in text(),
        ngram in 1_usize..5,
        short in 1_usize..5,
    ) {
        let min = short.min(ngram);
        let found = Decontaminator::new(&evals, Unit::Token, ngram, min).unwrap();
        let mut runs: BTreeSet<Vec<String>> = BTreeSet::new();
        for eval in &evals {
            if tokens(eval).len() >= min {
                runs.extend(shingle_set(eval, ngram));
            }
        }
        let tokens = tokens(&text);
        let mut covered = vec![false; tokens.len()];
        for length in min..=ngram {
            for (at, run) in tokens.windows(length).enumerate() {
                if runs.contains(run) {
                    covered[at..at + length].fill(true);
                }
            }
        }
        let overlaps = &found.overlaps(&[&text], 1)[0];
        prop_assert_eq!(found.num_runs(), runs.len());
        prop_assert!((overlaps.share - ratio(covered.iter().filter(|c| **c).count(), covered.len())).abs() < 1e-12);
        let inside: Vec<String> = overlaps.spans.iter().flat_map(|&(start, end)| crate::twins::tokens(&text[start..end])).collect();
        let expected: Vec<String> = tokens.into_iter().zip(covered).filter(|(_, c)| *c).map(|(token, _)| token).collect();
        prop_assert_eq!(inside, expected);
        prop_assert!(overlaps.spans.windows(2).all(|pair| pair[0].1 <= pair[1].0));
    }

    #[test]
    fn letters_overlap_where_strings_of_letters_do(eval in text(), text in text(), ngram in 1_usize..9) {
        let letters = |text: &str| -> Vec<char> { tokens(text).concat().chars().collect() };
        let runs: BTreeSet<Vec<char>> = letters(&eval).windows(ngram).map(<[char]>::to_vec).collect();
        let is_shared = letters(&text).windows(ngram).any(|run| runs.contains(run));
        let found = Decontaminator::new(&[&eval], Unit::Letter, ngram, ngram).unwrap();
        prop_assert_eq!(found.overlaps(&[&text], 1)[0].share > 0.0, is_shared);
    }

    #[test]
    fn a_classifier_survives_saving_and_no_damage_is_taken_for_one(
        texts in prop::collection::vec(text(), 2..6), place in 0_usize..1 << 20, bit in 0_u32..8,
    ) {
        let labels: Vec<bool> = (0..texts.len()).map(|text| text % 2 == 0).collect();
        let how = Training { table_bits: 8, ..Training::default() };
        let classifier = QualityClassifier::train(&texts, &labels, &how, 1).unwrap();
        let mut bytes = classifier.to_bytes();
        prop_assert_eq!(&QualityClassifier::from_bytes(&bytes).unwrap(), &classifier);
        let place = place % bytes.len();
        bytes[place] ^= 1 << bit;
        prop_assert!(QualityClassifier::from_bytes(&bytes).is_err());
        bytes.truncate(place);
        prop_assert!(QualityClassifier::from_bytes(&bytes).is_err());
    }
}

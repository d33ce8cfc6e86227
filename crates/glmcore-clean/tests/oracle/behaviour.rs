//! What no twin shows: estimates, large groups, order and threads, settings, hostile texts.

use std::collections::{BTreeMap, BTreeSet};

use glmcore_clean::{
    Copies, Decontaminator, Error, MinHash, QualityClassifier, Training, Unit, detect_language,
    exact_hashes, minhash, near_duplicates, text_statistics,
};

use crate::twins::{agreement, plain_clusters, plain_jaccard, plain_kept, random_words};

/// The mean error over 400 seeds has a standard deviation of `sqrt(J (1 - J) / 64 / 400) <= 0.0032` and each estimate one
/// of at most 0.0625: four and six of them are allowed.
#[test]
fn signatures_estimate_the_exact_similarity() {
    let mut state = 7;
    for shared in [0, 20, 100, 150, 190, 200] {
        let a = random_words(&mut state, 200, 1 << 30);
        let mut b = a.clone();
        b[shared..].clone_from_slice(&random_words(&mut state, 200 - shared, 1 << 30));
        let texts = [a.join(" "), b.join(" ")];
        let exact = plain_jaccard(&texts[0], &texts[1], 3);
        let mut sum = 0.0;
        for seed in 0..400 {
            let signatures = minhash(&texts, &MinHash::new(64, 3, seed).unwrap(), 1);
            let estimate = agreement(&signatures[..64], &signatures[64..]) as f64 / 64.0;
            assert!((estimate - exact).abs() <= 6.0 * 0.0625, "{estimate} for {exact}");
            sum += estimate;
        }
        assert!((sum / 400.0 - exact).abs() < 4.0 * 0.0032, "{} for {exact}", sum / 400.0);
    }
}

#[test]
fn a_signature_is_the_least_of_its_parts() {
    let (a, b) = ("one two three", "four five six");
    let how = MinHash::new(100, 1, 5).unwrap();
    let signatures = minhash(&[a.to_string(), b.to_string(), format!("{a} {b}")], &how, 1);
    let least: Vec<u32> =
        signatures[..100].iter().zip(&signatures[100..200]).map(|(a, b)| *a.min(b)).collect();
    assert_eq!(least, signatures[200..]);
}

/// More texts than are compared pair by pair agree in every band: two kinds that share 6 of 10 tokens.
#[test]
fn large_groups_are_told_apart() {
    let texts: Vec<String> = (0..400)
        .map(|text| format!("a b c d e f {}", if text % 2 == 0 { "g h i j" } else { "k l m n" }))
        .collect();
    let signatures = minhash(&texts, &MinHash::new(128, 1, 0).unwrap(), 2);
    let copies = Copies::new(128, 0.9).unwrap().with_bands(128, 1).unwrap();
    let kept = near_duplicates(&signatures, &copies, 2).unwrap();
    assert!(kept.iter().zip(0..).all(|(&kept, text)| kept == text % 2), "{kept:?}");
}

#[test]
fn exact_comparison_decides_where_texts_are_given() {
    let mut state = 1;
    let texts: Vec<Vec<String>> = (0..40)
        .map(|text| {
            let mut words = random_words(&mut 99, 100, 1 << 30);
            words.truncate(100 - text);
            words.extend(random_words(&mut state, text, 1 << 30));
            words
        })
        .collect();
    let texts: Vec<String> = texts.iter().map(|words| words.join(" ")).collect();
    let borrowed: Vec<&str> = texts.iter().map(String::as_str).collect();
    let signatures = minhash(&texts, &MinHash::new(256, 2, 0).unwrap(), 1);
    let copies = Copies::new(256, 0.8).unwrap().with_bands(256, 1).unwrap();
    let kept = near_duplicates(&signatures, &copies.with_texts(&borrowed, 2), 1).unwrap();
    let exact = plain_clusters(texts.len(), |a, b| plain_jaccard(&texts[a], &texts[b], 2) >= 0.8);
    assert_eq!(kept, plain_kept(&exact, &[0.0; 40], &(0..40).collect::<Vec<_>>()));
    assert!(
        BTreeSet::from_iter(&kept).len() > 1 && kept.iter().filter(|kept| **kept == 0).count() > 3
    );
}

#[test]
fn results_do_not_depend_on_threads_or_on_the_order_of_texts() {
    let mut state = 3;
    let mut texts: Vec<String> =
        (0..300).map(|_| random_words(&mut state, 30, 50).join(" ")).collect();
    for text in 0..100 {
        texts.push(texts[text * 2].clone() + " tail");
    }
    let how = MinHash::new(64, 3, 0).unwrap();
    let signatures = minhash(&texts, &how, 1);
    assert_eq!(minhash(&texts, &how, 3), signatures);
    assert_eq!(text_statistics(&texts, 3), text_statistics(&texts, 1));
    let ids: Vec<u64> = (0..400).map(|text| text * 1000).collect();
    let kept_ids = |order: &[usize], num_threads: usize| -> BTreeMap<u64, u64> {
        let signatures: Vec<u32> =
            order.iter().flat_map(|&text| &signatures[text * 64..][..64]).copied().collect();
        let ids: Vec<u64> = order.iter().map(|&text| ids[text]).collect();
        let copies = Copies::new(64, 0.7).unwrap();
        let kept = near_duplicates(&signatures, &copies.with_ids(&ids), num_threads).unwrap();
        kept.iter().zip(&ids).map(|(&kept, &id)| (id, ids[kept as usize])).collect()
    };
    let forward: Vec<usize> = (0..400).collect();
    let mixed: Vec<usize> = (0..400).map(|text| text * 7 % 400).collect();
    let first = kept_ids(&forward, 1);
    assert!(first.iter().any(|(id, kept)| id != kept));
    assert_eq!(kept_ids(&forward, 3), first);
    assert_eq!(kept_ids(&mixed, 2), first);
}

#[test]
fn bands_compare_pairs_at_the_threshold() {
    for (permutations, threshold) in [(128, 0.8), (128, 0.5), (256, 0.9), (16, 0.7), (1, 1.0)] {
        let copies = Copies::new(permutations, threshold).unwrap();
        let (bands, rows) = copies.bands();
        assert!(bands * rows <= permutations && copies.recall(threshold) >= 0.98, "{bands} {rows}");
    }
}

#[test]
fn a_classifier_learns_what_tells_texts_apart_and_learns_it_again_alike() {
    let mut state = 5;
    let mut draw = |good: bool| {
        let mut words = random_words(&mut state, 60, 400);
        let sign = random_words(&mut state, 6, 30);
        words.extend(
            sign.iter().map(|word| if good { format!("good{word}") } else { format!("bad{word}") }),
        );
        words.join(" ")
    };
    let labels: Vec<bool> = (0..400).map(|text| text % 4 == 0).collect();
    let texts: Vec<String> = labels.iter().map(|&label| draw(label)).collect();
    let unseen: Vec<String> = (0..200).map(|text| draw(text % 2 == 0)).collect();
    let classifier = QualityClassifier::train(&texts, &labels, &Training::default(), 1).unwrap();
    assert_eq!(
        QualityClassifier::train(&texts, &labels, &Training::default(), 3).unwrap(),
        classifier
    );
    let scores = classifier.scores(&unseen, 2);
    let right = scores
        .iter()
        .enumerate()
        .filter(|(text, score)| (**score > 0.5) == (text % 2 == 0))
        .count();
    assert!(right >= 190, "{right} of 200");
}

#[test]
fn wrong_settings_are_named() {
    let setting = |error: Error| error.to_string();
    assert_eq!(
        setting(MinHash::new(0, 5, 0).unwrap_err()),
        "num_permutations is 0, it must be from 1 to 4096"
    );
    assert_eq!(
        setting(MinHash::new(8, 0, 0).unwrap_err()),
        "shingle is 0, it must be from 1 to 64"
    );
    assert!(matches!(Copies::new(8, 1.5), Err(Error::Setting { name: "threshold", .. })));
    assert!(matches!(
        Copies::new(8, 0.5).unwrap().with_bands(3, 3),
        Err(Error::Setting { name: "bands", .. })
    ));
    let copies = || Copies::new(2, 0.5).unwrap();
    assert!(matches!(
        near_duplicates(&[1, 2, 3], &copies(), 1),
        Err(Error::Length { name: "signatures", .. })
    ));
    assert!(matches!(
        near_duplicates(&[1, 2, 3, 4], &copies().with_ids(&[5, 5]), 1),
        Err(Error::RepeatedId { id: 5 })
    ));
    assert!(matches!(
        near_duplicates(&[1, 2], &copies().with_quality(&[f64::NAN]), 1),
        Err(Error::NotFinite { name: "quality", index: 0, .. })
    ));
    assert!(matches!(
        Decontaminator::new(&["a"], Unit::Token, 3, 4),
        Err(Error::Setting { name: "min_units", .. })
    ));
    let how = Training::default();
    assert_eq!(
        QualityClassifier::train(&["a", "b"], &[true, true], &how, 1).unwrap_err().to_string(),
        "labels must hold both true and false, all 2 are true"
    );
}

/// Four megabytes of what is worst for each: linear time shows in that this ends at all.
#[test]
#[expect(clippy::float_cmp, reason = "the numbers are whole")]
fn hostile_texts_are_read_to_their_end() {
    let size = 1 << 22;
    let texts = [
        "a".repeat(size),
        " ".repeat(size),
        "\n".repeat(size),
        ".".repeat(size),
        "a ".repeat(size / 2),
        "{\n".repeat(size / 2),
        "漢".repeat(size / 3),
        "\\x41".repeat(size / 4),
        "\u{301}".repeat(size / 2),
    ];
    let values = text_statistics(&texts, 0);
    assert_eq!(values[0][10], size as f64);
    assert_eq!(values[4][2], (size / 2) as f64);
    assert_eq!(values[3][5], 1.0);
    assert_eq!(glmcore_clean::code_statistics(&texts, 0)[7][9], 1.0);
    assert_eq!(exact_hashes(&texts, 0)[1], exact_hashes(&texts, 0)[2]);
    assert_eq!(detect_language(&texts, 0)[6].code, "cmn");
    let signatures = minhash(&texts, &MinHash::new(16, 5, 0).unwrap(), 0);
    assert!(signatures[16..64].iter().all(|&entry| entry == u32::MAX));
    let kept = near_duplicates(&signatures, &Copies::new(16, 0.5).unwrap(), 0).unwrap();
    assert_eq!(kept[..4], [0, 1, 2, 3]);
    let found = Decontaminator::new(&["a a a"], Unit::Token, 3, 3).unwrap();
    assert_eq!(found.overlaps(&texts, 0)[4].spans, [(0, size - 1)]);
}

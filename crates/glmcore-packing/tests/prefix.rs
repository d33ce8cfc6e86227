//! Trees of samples against sets of prefixes.

#![expect(
    clippy::unwrap_used,
    clippy::cast_possible_truncation,
    clippy::cast_possible_wrap,
    clippy::cast_sign_loss,
    reason = "a wrong number fails the test"
)]

use std::collections::BTreeSet;

use glmcore_packing::{Error, PrefixForest, Ragged, group_by_prefix};
use proptest::prelude::*;

fn ragged(samples: &[Vec<i32>]) -> (Vec<i32>, Vec<i64>) {
    let mut offsets = vec![0];
    for sample in samples {
        offsets.push(offsets.last().unwrap() + sample.len() as i64);
    }
    (samples.concat(), offsets)
}

fn num_prefixes(samples: &[&Vec<i32>]) -> usize {
    let prefixes = samples.iter().flat_map(|s| (1..=s.len()).map(|len| &s[..len]));
    prefixes.collect::<BTreeSet<_>>().len()
}

/// Samples over three ids, so that many begin alike.
fn samples() -> impl Strategy<Value = Vec<Vec<i32>>> {
    prop::collection::vec(prop::collection::vec(0..3, 0..8), 0..20)
}

proptest! {
    #[test]
    fn a_forest_has_every_prefix_once_and_every_sample_as_a_path(samples in samples()) {
        let (ids, offsets) = ragged(&samples);
        let forest = PrefixForest::new(&Ragged::new(&ids, &offsets, None).unwrap()).unwrap();
        prop_assert_eq!(forest.input_ids.len(), num_prefixes(&samples.iter().collect::<Vec<_>>()));
        for (i, sample) in samples.iter().enumerate() {
            let path = &forest.place[offsets[i] as usize..offsets[i + 1] as usize];
            let mut parent = -1;
            for (position, (&token, &id)) in path.iter().zip(sample).enumerate() {
                let token = token as usize;
                prop_assert_eq!(forest.input_ids[token], id);
                prop_assert_eq!(forest.position_ids[token], position as i32);
                prop_assert_eq!(forest.parent[token], parent);
                parent = token as i32;
            }
        }
    }

    #[test]
    fn a_token_sees_exactly_its_ancestors_and_itself(samples in samples()) {
        let (ids, offsets) = ragged(&samples);
        let forest = PrefixForest::new(&Ragged::new(&ids, &offsets, None).unwrap()).unwrap();
        for query in 0..forest.input_ids.len() {
            let mut ancestors = BTreeSet::new();
            let mut token = query as i32;
            while token >= 0 {
                ancestors.insert(token as usize);
                token = forest.parent[token as usize];
            }
            for key in 0..forest.input_ids.len() {
                let seen = key <= query && query < forest.subtree_end[key] as usize;
                prop_assert_eq!(seen, ancestors.contains(&key));
            }
        }
    }

    #[test]
    fn batches_hold_every_sample_once_within_the_capacity(samples in samples(), capacity in 8_u32..40) {
        let (ids, offsets) = ragged(&samples);
        let packing = group_by_prefix(&Ragged::new(&ids, &offsets, None).unwrap(), capacity).unwrap();
        let mut seen = vec![0; samples.len()];
        for row in 0..packing.num_rows() {
            let members: Vec<_> = packing.row(row).iter().map(|&s| &samples[s as usize]).collect();
            prop_assert!(!members.is_empty());
            prop_assert!(num_prefixes(&members) <= capacity as usize);
            for &sample in packing.row(row) {
                prop_assert_eq!(packing.row_of()[sample as usize] as usize, row);
                seen[sample as usize] += 1;
            }
        }
        prop_assert!(seen.iter().all(|&count| count == 1));
    }
}

#[test]
fn a_sample_that_fits_no_batch_is_named() {
    let samples = Ragged::new(&[1, 2, 3, 4], &[0, 1, 4], None).unwrap();
    let error = Error::DocumentTooLong { index: 1, len: 3, capacity: 2 };
    assert_eq!(group_by_prefix(&samples, 2).unwrap_err(), error);
}

//! Balancing against its plain twin, the best sharing and the greedy bound.

#![expect(
    clippy::unwrap_used,
    clippy::cast_possible_truncation,
    reason = "a wrong number fails the test"
)]

use glmcore_packing::{Error, balance};
use proptest::prelude::*;

type Part = (f64, Vec<usize>);

/// The differencing method on whole lists: each sharing has a part for every rank, the busiest first.
fn difference_twin(costs: &[f64], num_ranks: usize, group: usize) -> Vec<Part> {
    let sort = |mut parts: Vec<Part>| {
        let first = |part: &Part| part.1.first().copied().unwrap_or(usize::MAX);
        parts.sort_by(|a, b| b.0.partial_cmp(&a.0).unwrap().then(first(a).cmp(&first(b))));
        parts
    };
    let mut items: Vec<usize> = (0..costs.len()).collect();
    items.sort_by(|&a, &b| costs[b].partial_cmp(&costs[a]).unwrap());
    let mut sharings: Vec<Vec<Part>> = Vec::new();
    for chunk in items.chunks(group) {
        let mut parts: Vec<Part> = chunk.iter().map(|&item| (costs[item], vec![item])).collect();
        parts.resize(num_ranks, (0.0, Vec::new()));
        sharings.push(sort(parts));
    }
    while sharings.len() > 1 {
        let spread = |sharing: &Vec<Part>| sharing[0].0 - sharing[num_ranks - 1].0;
        sharings.sort_by(|a, b| {
            spread(b).partial_cmp(&spread(a)).unwrap().then(a[0].1[0].cmp(&b[0].1[0]))
        });
        let (one, other) = (sharings.remove(0), sharings.remove(0));
        let pairs = one.into_iter().zip(other.into_iter().rev());
        let joined = pairs.map(|(a, b)| (a.0 + b.0, [a.1, b.1].concat())).collect();
        sharings.push(sort(joined));
    }
    sharings.pop().unwrap_or_default()
}

/// Costliest first, each to the least loaded rank.
fn greedy_twin(costs: &[f64], num_ranks: usize) -> Vec<u32> {
    let mut items: Vec<usize> = (0..costs.len()).collect();
    items.sort_by(|&a, &b| costs[b].partial_cmp(&costs[a]).unwrap());
    let mut loads = vec![0.0; num_ranks];
    let mut rank_of = vec![0; costs.len()];
    for item in items {
        let least = (0..num_ranks).min_by(|&a, &b| loads[a].partial_cmp(&loads[b]).unwrap());
        let rank = least.unwrap();
        loads[rank] += costs[item];
        rank_of[item] = rank as u32;
    }
    rank_of
}

fn ranks_of(parts: &[Part], num_items: usize) -> Vec<u32> {
    let mut rank_of = vec![0; num_items];
    for (rank, (_, items)) in parts.iter().enumerate() {
        for &item in items {
            rank_of[item] = rank as u32;
        }
    }
    rank_of
}

/// Work of the busiest rank; exact, since the costs of these tests are small whole numbers.
fn busiest(costs: &[f64], rank_of: &[u32], num_ranks: usize) -> f64 {
    let mut loads = vec![0.0; num_ranks];
    for (&rank, cost) in rank_of.iter().zip(costs) {
        loads[rank as usize] += cost;
    }
    loads.into_iter().fold(0.0, f64::max)
}

fn best(costs: &[f64], loads: &mut Vec<f64>) -> f64 {
    let Some((cost, rest)) = costs.split_first() else {
        return loads.iter().copied().fold(0.0, f64::max);
    };
    let mut found = f64::INFINITY;
    for rank in 0..loads.len() {
        loads[rank] += cost;
        found = found.min(best(rest, loads));
        loads[rank] -= cost;
    }
    found
}

proptest! {
    #[test]
    fn a_sharing_is_the_better_of_its_two_twins(
        costs in prop::collection::vec((0_u32..1000).prop_map(f64::from), 0..60),
        num_ranks in 1_usize..=9,
    ) {
        let shared = balance(&costs, num_ranks as u32, false).unwrap();
        let ranks = num_ranks.min(costs.len().max(1));
        let twin = ranks_of(&difference_twin(&costs, ranks, 1), costs.len());
        let greedy = greedy_twin(&costs, ranks);
        let differencing_wins = busiest(&costs, &twin, ranks) <= busiest(&costs, &greedy, ranks);
        prop_assert_eq!(shared, if differencing_wins { twin } else { greedy });
    }

    #[test]
    fn equal_counts_are_no_worse_than_differencing_and_no_swap_helps_the_busiest_rank(
        costs in prop::collection::vec((0_u32..1000).prop_map(|x| f64::from(x * x)), 0..60),
        num_ranks in 1_usize..=9,
    ) {
        let shared = balance(&costs, num_ranks as u32, true).unwrap();
        let mut counts = vec![0; num_ranks];
        let mut loads = vec![0.0; num_ranks];
        for (&rank, cost) in shared.iter().zip(&costs) {
            counts[rank as usize] += 1;
            loads[rank as usize] += cost;
        }
        prop_assert!(counts.iter().max().unwrap() - counts.iter().min().unwrap() <= 1);
        let ranks = num_ranks.min(costs.len().max(1));
        let twin = ranks_of(&difference_twin(&costs, ranks, ranks), costs.len());
        let most = busiest(&costs, &shared, num_ranks);
        prop_assert!(most <= busiest(&costs, &twin, num_ranks));
        let busy = (0..ranks).rev().max_by(|&a, &b| loads[a].partial_cmp(&loads[b]).unwrap()).unwrap_or(0);
        if loads.iter().filter(|&&load| (load - most).abs() < 0.5).count() == 1 {
            for (given, &cost) in costs.iter().enumerate().filter(|&(i, _)| shared[i] as usize == busy) {
                for (taken, &other) in costs.iter().enumerate().filter(|&(i, _)| shared[i] as usize != busy) {
                    let helps = cost > other && loads[shared[taken] as usize] + cost - other < most;
                    prop_assert!(!helps, "items {given} and {taken}");
                }
            }
        }
    }

    #[test]
    fn the_busiest_rank_keeps_the_greedy_bound(
        costs in prop::collection::vec((0_u32..50).prop_map(f64::from), 0..8),
        num_ranks in 1_usize..=4,
    ) {
        let shared = balance(&costs, num_ranks as u32, false).unwrap();
        let bound = 4.0 / 3.0 - 1.0 / (3.0 * num_ranks as f64);
        let best = best(&costs, &mut vec![0.0; num_ranks]);
        prop_assert!(busiest(&costs, &shared, num_ranks) <= bound * best + 1e-9);
    }
}

#[test]
fn differencing_finds_the_even_sharing_that_greed_misses() {
    let costs = [8.0, 7.0, 6.0, 5.0, 4.0];
    let shared = balance(&costs, 2, false).unwrap();
    assert!(busiest(&costs, &shared, 2) <= 16.0);
    assert!((busiest(&costs, &greedy_twin(&costs, 2), 2) - 17.0).abs() < 1e-9);
}

#[test]
fn costs_that_cannot_be_added_and_zero_ranks_are_refused() {
    assert_eq!(balance(&[1.0, -2.0], 2, false).unwrap_err(), Error::Cost { index: 1, cost: -2.0 });
    assert!(matches!(balance(&[f64::NAN], 2, true).unwrap_err(), Error::Cost { index: 0, .. }));
    assert_eq!(balance(&[1.0], 0, false).unwrap_err(), Error::NoRanks);
    assert_eq!(balance(&[], 3, true).unwrap(), Vec::<u32>::new());
}

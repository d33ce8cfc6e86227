//! Even work over ranks.

use std::cmp::{Ordering, Reverse};
use std::collections::BinaryHeap;

use crate::exchange::even_out;
use crate::{Error, count32};

/// No item: ends a list.
const NONE: u32 = u32::MAX;

/// Rank of each item, so that the busiest rank has little more than its share: the largest differencing
/// method (Karmarkar and Karp, 1982, for any number of ranks).
///
/// Every item begins as a sharing of its own: all its work on one rank, none on the others. The two most
/// uneven sharings are joined, the busiest rank of one with the idlest of the other and so on, until one
/// is left. Without `equal_counts` the greedy sharing (costliest item first, each to the least loaded
/// rank) is tried as well and taken where its busiest rank has less, so that the busiest rank never has
/// more than `4/3 - 1/(3 * num_ranks)` times the work of the best sharing (Graham, SIAM J. Appl. Math.
/// 17(2), 1969). With `equal_counts` a sharing begins as `num_ranks` items of neighbouring cost, one a
/// rank, so that the ranks' numbers of items differ by at most one; afterwards items of the busiest rank are
/// swapped for cheaper ones of others as long as that helps, since differencing alone cannot give a rank
/// with one very costly item the cheapest of all others.
///
/// Rank 0 is the busiest of the differencing method. Takes `O(n * num_ranks)` time at worst; ties go to
/// the earlier item.
///
/// ```
/// assert_eq!(glmcore_packing::balance(&[8.0, 7.0, 6.0, 5.0, 4.0], 2, false)?, [1, 0, 1, 0, 0]);
/// # Ok::<(), glmcore_packing::Error>(())
/// ```
///
/// # Errors
///
/// [`Error::Cost`] for the first cost that is negative, infinite or not a number, [`Error::NoRanks`],
/// [`Error::TooMany`].
pub fn balance(costs: &[f64], num_ranks: u32, equal_counts: bool) -> Result<Vec<u32>, Error> {
    if num_ranks == 0 {
        return Err(Error::NoRanks);
    }
    if let Some((index, &cost)) =
        costs.iter().enumerate().find(|(_, c)| !c.is_finite() || **c < 0.0)
    {
        return Err(Error::Cost { index, cost });
    }
    let num_items = count32("items", costs.len() as u64)?;
    let mut costliest_first: Vec<u32> = (0..num_items).collect();
    let cost = |item: u32| costs[item as usize] + 0.0; // -0.0 becomes 0.0, so that the two tie
    costliest_first.sort_by(|&a, &b| cost(b).total_cmp(&cost(a)));

    let num_ranks = num_ranks.min(num_items.max(1));
    let (busiest, mut rank_of) = difference(costs, &costliest_first, num_ranks, equal_counts);
    if equal_counts {
        even_out(costs, &mut rank_of, num_ranks);
        return Ok(rank_of);
    }
    let (greedy_busiest, greedy) = share_greedily(costs, &costliest_first, num_ranks);
    Ok(if greedy_busiest < busiest { greedy } else { rank_of })
}

/// Work and items of one rank.
#[derive(Debug, Clone, Copy)]
struct Part {
    cost: f64,
    first: u32,
    last: u32,
}

/// A sharing of some items. Ranks without items are left out.
#[derive(Debug)]
struct Sharing {
    spread: f64,
    /// From the busiest to the idlest.
    parts: Vec<Part>,
}

impl Sharing {
    fn new(mut parts: Vec<Part>, num_ranks: usize) -> Self {
        parts.sort_by(|a, b| b.cost.total_cmp(&a.cost).then(a.first.cmp(&b.first)));
        let idlest = if parts.len() < num_ranks { 0.0 } else { parts[num_ranks - 1].cost };
        Self { spread: parts[0].cost - idlest, parts }
    }

    fn first(&self) -> u32 {
        self.parts[0].first
    }
}

/// The most uneven sharing is the greatest; ties go to the lower first item.
impl Ord for Sharing {
    fn cmp(&self, other: &Self) -> Ordering {
        self.spread.total_cmp(&other.spread).then(other.first().cmp(&self.first()))
    }
}

impl PartialOrd for Sharing {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

impl PartialEq for Sharing {
    fn eq(&self, other: &Self) -> bool {
        self.cmp(other) == Ordering::Equal
    }
}

impl Eq for Sharing {}

/// The differencing method: work of the busiest rank, and the rank of each item.
fn difference(
    costs: &[f64],
    costliest_first: &[u32],
    num_ranks: u32,
    equal_counts: bool,
) -> (f64, Vec<u32>) {
    let num_ranks = num_ranks as usize;
    let mut after = vec![NONE; costs.len()];
    let alone = |&item: &u32| Part { cost: costs[item as usize] + 0.0, first: item, last: item };
    let group = if equal_counts { num_ranks } else { 1 };
    let mut sharings: BinaryHeap<Sharing> = costliest_first
        .chunks(group)
        .map(|items| Sharing::new(items.iter().map(alone).collect(), num_ranks))
        .collect();
    while sharings.len() > 1 {
        let (Some(one), Some(other)) = (sharings.pop(), sharings.pop()) else { break };
        sharings.push(join(one, &other, num_ranks, &mut after));
    }
    let mut rank_of = vec![0; costs.len()];
    let Some(last) = sharings.pop() else { return (0.0, rank_of) };
    for (rank, part) in (0..).zip(&last.parts) {
        let mut item = part.first;
        while item != NONE {
            rank_of[item as usize] = rank;
            item = after[item as usize];
        }
    }
    (last.parts[0].cost, rank_of)
}

/// Joins two sharings, the busiest rank of each with the idlest of the other.
fn join(one: Sharing, other: &Sharing, num_ranks: usize, after: &mut [u32]) -> Sharing {
    let mut parts = one.parts;
    for (place, part) in other.parts.iter().enumerate() {
        let partner = num_ranks - 1 - place;
        if partner < parts.len() {
            let joined = &mut parts[partner];
            after[joined.last as usize] = part.first;
            joined.last = part.last;
            joined.cost += part.cost;
        }
    }
    let num_alone = num_ranks.saturating_sub(parts.len()).min(other.parts.len());
    parts.extend_from_slice(&other.parts[..num_alone]);
    Sharing::new(parts, num_ranks)
}

/// Work given to a rank so far; orders by load, then by rank.
#[derive(PartialEq)]
struct Load {
    cost: f64,
    rank: u32,
}

impl Eq for Load {}

impl Ord for Load {
    fn cmp(&self, other: &Self) -> Ordering {
        self.cost.total_cmp(&other.cost).then(self.rank.cmp(&other.rank))
    }
}

impl PartialOrd for Load {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

/// Costliest first, each to the least loaded rank: work of the busiest rank, and the rank of each item.
fn share_greedily(costs: &[f64], costliest_first: &[u32], num_ranks: u32) -> (f64, Vec<u32>) {
    let mut least_loaded: BinaryHeap<_> =
        (0..num_ranks).map(|rank| Reverse(Load { cost: 0.0, rank })).collect();
    let mut rank_of = vec![0; costs.len()];
    let mut busiest = 0.0_f64;
    for &item in costliest_first {
        let Some(mut top) = least_loaded.peek_mut() else { break };
        rank_of[item as usize] = top.0.rank;
        top.0.cost += costs[item as usize] + 0.0;
        busiest = busiest.max(top.0.cost);
    }
    (busiest, rank_of)
}

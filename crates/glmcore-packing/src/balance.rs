//! Even work over ranks.

use std::cmp::{Ordering, Reverse};
use std::collections::BinaryHeap;

use crate::{Error, count32};

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

/// Rank of each item, by longest processing time first: items from the costliest to the cheapest, each
/// to the rank with the least work so far.
///
/// The busiest rank has at most `4/3 - 1/(3 * num_ranks)` times the work of the best sharing (Graham,
/// SIAM J. Appl. Math. 17(2), 1969). Ties go to the earlier item and the lower rank.
///
/// ```
/// assert_eq!(glmcore_packing::balance(&[1.0, 5.0, 4.0], 2)?, [1, 0, 1]);
/// # Ok::<(), glmcore_packing::Error>(())
/// ```
///
/// # Errors
///
/// [`Error::Cost`] for the first cost that is negative, infinite or not a number, [`Error::NoRanks`],
/// [`Error::TooMany`].
pub fn balance(costs: &[f64], num_ranks: u32) -> Result<Vec<u32>, Error> {
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
    let mut least_loaded: BinaryHeap<_> =
        (0..num_ranks.min(num_items)).map(|rank| Reverse(Load { cost: 0.0, rank })).collect();
    let mut rank_of = vec![0; costs.len()];
    for item in costliest_first {
        let Some(mut top) = least_loaded.peek_mut() else { break };
        rank_of[item as usize] = top.0.rank;
        top.0.cost += cost(item);
    }
    Ok(rank_of)
}

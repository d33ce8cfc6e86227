//! Evening out a sharing by swaps, which keep the number of items of every rank.

/// Swaps for each rank before the sharing is taken as it is. Heavy-tailed costs need a few dozen.
const SWAPS_PER_RANK: usize = 64;

/// Items of one rank, from the costliest to the cheapest, and their work.
struct Rank {
    items: Vec<u32>,
    load: f64,
}

/// Swaps an item of the busiest rank for a cheaper one of another rank, the idlest first, as long as that
/// leaves both with less than the busiest had. Of all such pairs of items the one is taken that leaves the
/// busier of the two ranks with the least.
pub(crate) fn even_out(costs: &[f64], rank_of: &mut [u32], num_ranks: u32) {
    let mut ranks: Vec<Rank> =
        (0..num_ranks).map(|_| Rank { items: Vec::new(), load: 0.0 }).collect();
    for (item, &rank) in (0..).zip(&*rank_of) {
        ranks[rank as usize].items.push(item);
        ranks[rank as usize].load += costs[item as usize];
    }
    let order = |a: &u32, b: &u32| costs[*b as usize].total_cmp(&costs[*a as usize]).then(a.cmp(b));
    for rank in &mut ranks {
        rank.items.sort_by(order);
    }
    let mut by_load: Vec<usize> = (0..ranks.len()).collect();
    for _ in 0..SWAPS_PER_RANK * ranks.len() {
        by_load.sort_by(|&a, &b| ranks[a].load.total_cmp(&ranks[b].load).then(a.cmp(&b)));
        let Some((&busiest, others)) = by_load.split_last() else { return };
        let found = others.iter().find_map(|&other| {
            best_swap(costs, &ranks[busiest], &ranks[other]).map(|swap| (other, swap))
        });
        let Some((other, (given, taken))) = found else { break };
        let difference = costs[given as usize] - costs[taken as usize];
        for (rank, lost, won) in [(busiest, given, taken), (other, taken, given)] {
            let items = &mut ranks[rank].items;
            items.retain(|&item| item != lost);
            let place = items.partition_point(|item| order(item, &won).is_lt());
            items.insert(place, won);
            rank_of[won as usize] = u32::try_from(rank).expect("ranks are 32-bit numbers");
        }
        ranks[busiest].load -= difference;
        ranks[other].load += difference;
    }
}

/// The item that the busier rank gives and the one that it takes.
fn best_swap(costs: &[f64], busier: &Rank, idler: &Rank) -> Option<(u32, u32)> {
    let gap = busier.load - idler.load;
    let mut best = None;
    let mut least = gap * (1.0 - 1e-12); // what rounding may pretend is no gain
    let mut place = 0; // the first item of the idler rank that is cheap enough for the given one
    for &given in &busier.items {
        let wanted = costs[given as usize] - gap / 2.0;
        while place < idler.items.len() && costs[idler.items[place] as usize] > wanted {
            place += 1;
        }
        for &taken in &idler.items[place.saturating_sub(1)..(place + 1).min(idler.items.len())] {
            let moved = costs[given as usize] - costs[taken as usize];
            let left = moved.max(gap - moved); // above the idler rank's load
            if moved > 0.0 && left < least {
                (best, least) = (Some((given, taken)), left);
            }
        }
    }
    best
}

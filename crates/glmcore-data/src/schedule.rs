//! Which source the next sample comes from, without counting: any place of the order in a few steps.

use std::cmp::Reverse;
use std::collections::BinaryHeap;

/// Half in fixed point with 64 bits behind the point.
const HALF: u128 = 1 << 63;

/// Interleaves sources by weight. Place `k` and the counts of the first `k` places are computed, not
/// stored: the sources are the leaves of a binary tree (Huffman's, over the weights), and each inner node
/// sends its visits left and right so that of the first `n` the left side has `n * share` rounded to the
/// nearest whole number.
///
/// A node therefore is off its share by at most half a sample plus what its parent is off, scaled by its
/// share of the parent: [`max_deviation`](Self::max_deviation) is this sum for the given weights. In a
/// Huffman tree an inner node has at most two thirds of its parent, so it is off by less than 3/2 and a
/// source by less than 2; it is 1/2 for two sources and below 1 for 4, 8, 16... equal weights. A window
/// of the order is off by at most twice as much.
///
/// ```
/// let schedule = glmcore_data::Schedule::new(&[3.0, 1.0]);
/// let order: Vec<(u16, u64)> = (0..4).map(|k| schedule.at(k)).collect();
/// assert_eq!(order, [(0, 0), (0, 1), (1, 0), (0, 2)]);
/// assert_eq!(schedule.counts(4_000_000_000), [3_000_000_000, 1_000_000_000]);
/// ```
#[derive(Debug, Clone)]
pub struct Schedule {
    num_sources: u16,
    root: Child,
    nodes: Vec<Node>,
    max_deviation: f64,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Child {
    Source(u16),
    Node(u16),
}

#[derive(Debug, Clone, Copy)]
struct Node {
    /// The left side's share in units of 2^-64.
    share: u64,
    left: Child,
    right: Child,
}

impl Node {
    /// Visits of the left side among the first `n`.
    fn left_of(&self, n: u64) -> u64 {
        let visits = (u128::from(n) * u128::from(self.share) + HALF) >> 64;
        u64::try_from(visits).expect("a share is below 1")
    }
}

/// A weight in the heap of the tree's construction; finite and positive, so its bits order as it does.
fn key(weight: f64) -> Reverse<u64> {
    Reverse(weight.to_bits())
}

impl Schedule {
    /// The order of sources with these weights, which are finite and above 0.
    ///
    /// # Panics
    ///
    /// If there is no weight, or more than 65,535.
    pub fn new(weights: &[f64]) -> Self {
        let num_sources = u16::try_from(weights.len()).expect("at most 65,535 sources");
        let mut heap: BinaryHeap<_> = (0..num_sources)
            .map(|i| (key(weights[usize::from(i)]), Reverse(Child::Source(i))))
            .collect();
        let mut nodes = Vec::new();
        let weight_of = |key: Reverse<u64>| f64::from_bits(key.0);
        while heap.len() > 1 {
            let (Some(light), Some(heavy)) = (heap.pop(), heap.pop()) else { break };
            let (left, right) = (weight_of(heavy.0), weight_of(light.0));
            let place = u16::try_from(nodes.len()).expect("fewer nodes than sources");
            nodes.push(Node {
                share: fixed_point(left / (left + right)),
                left: heavy.1.0,
                right: light.1.0,
            });
            heap.push((key(left + right), Reverse(Child::Node(place))));
        }
        let root = heap.pop().expect("at least one source").1.0;
        let mut schedule = Self { num_sources, root, nodes, max_deviation: 0.0 };
        schedule.max_deviation = schedule.deviation_below(root, 0.0);
        schedule
    }

    /// How many samples a source can be off its share of the first `k`, whatever `k` is.
    pub fn max_deviation(&self) -> f64 {
        self.max_deviation
    }

    /// Source of place `k`, and how many places before it are of the same source.
    pub fn at(&self, k: u64) -> (u16, u64) {
        let (mut child, mut k) = (self.root, k);
        loop {
            match child {
                Child::Source(source) => return (source, k),
                Child::Node(node) => {
                    let node = &self.nodes[usize::from(node)];
                    let before = node.left_of(k);
                    (child, k) = if node.left_of(k + 1) > before {
                        (node.left, before)
                    } else {
                        (node.right, k - before)
                    };
                }
            }
        }
    }

    /// Places of each source among the first `k`.
    pub fn counts(&self, k: u64) -> Vec<u64> {
        let mut counts = vec![0; self.num_sources.into()];
        let mut open = vec![(self.root, k)];
        while let Some((child, k)) = open.pop() {
            match child {
                Child::Source(source) => counts[usize::from(source)] = k,
                Child::Node(node) => {
                    let node = &self.nodes[usize::from(node)];
                    let left = node.left_of(k);
                    open.extend([(node.left, left), (node.right, k - left)]);
                }
            }
        }
        counts
    }

    fn deviation_below(&self, root: Child, deviation: f64) -> f64 {
        let mut worst = deviation;
        let mut open = vec![(root, deviation)];
        while let Some((child, deviation)) = open.pop() {
            match child {
                Child::Source(_) => worst = worst.max(deviation),
                Child::Node(node) => {
                    let node = &self.nodes[usize::from(node)];
                    let share = node.share as f64 / 2_f64.powi(64);
                    open.push((node.left, share * deviation + 0.5));
                    open.push((node.right, (1.0 - share) * deviation + 0.5));
                }
            }
        }
        worst
    }
}

/// A share from 1/2 to 1 in units of 2^-64; 1 itself becomes the largest below.
fn fixed_point(share: f64) -> u64 {
    #[expect(
        clippy::cast_possible_truncation,
        clippy::cast_sign_loss,
        reason = "from 2^63 to 2^64, and a cast of more saturates"
    )]
    let fixed = (share * 2_f64.powi(64)) as u64;
    fixed
}

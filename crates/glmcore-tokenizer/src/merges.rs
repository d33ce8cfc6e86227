//! The learned merges: which pairs of tokens become which token, and in which order.

use crate::TokenId;
use crate::hash::hash_u128;

/// A learned merge: its place in the order of merges, and the token that it makes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Merge {
    pub(crate) rank: u32,
    pub(crate) id: TokenId,
}

impl Merge {
    /// No merge: its rank is above all others.
    pub(crate) const NONE: Self = Self { rank: u32::MAX, id: u32::MAX };
}

/// Ranks must leave six bits of a word free.
pub(crate) const MAX_MERGES: usize = 1 << 26;
/// Bits of the filter: 512 KiB, which fit the second-level cache.
const FILTER_BITS: u64 = 1 << 22;

/// The merges of a vocabulary, for look-ups of which most find nothing.
#[derive(Debug)]
pub(crate) struct Merges {
    /// Tokens of single bytes.
    pub(crate) byte_ids: [TokenId; 256],
    /// Merges of two single bytes, by the bytes.
    byte_pairs: Box<[Merge]>,
    /// A bit for each hash of a pair that is there.
    filter: Box<[u64]>,
    /// Open addressing; the pair as left << 32 | right, `u64::MAX` for a free slot.
    table: Box<[(u64, Merge)]>,
    /// Pairs in the order of their ranks.
    pairs: Vec<(TokenId, TokenId, TokenId)>,
}

impl Merges {
    /// `pairs` holds left, right and merged token of each merge, in order. Where a pair stands twice the last counts,
    /// as in Hugging Face's map of merges. `rank_of` gives the rank of the merge at a place.
    pub(crate) fn new(
        byte_ids: [TokenId; 256],
        pairs: Vec<(TokenId, TokenId, TokenId)>,
        rank_of: impl Fn(usize, TokenId) -> u32,
    ) -> Self {
        let size = (pairs.len() * 3 / 2).next_power_of_two().max(16);
        let mut merges = Self {
            byte_ids,
            byte_pairs: vec![Merge::NONE; 1 << 16].into(),
            filter: vec![0; (FILTER_BITS / 64) as usize].into(),
            table: vec![(u64::MAX, Merge::NONE); size].into(),
            pairs,
        };
        for place in 0..merges.pairs.len() {
            let (left, right, id) = merges.pairs[place];
            merges.insert(left, right, Merge { rank: rank_of(place, id), id });
        }
        for left in 0..=255_u8 {
            for right in 0..=255_u8 {
                let merge = merges.get(byte_ids[usize::from(left)], byte_ids[usize::from(right)]);
                merges.byte_pairs[pair_of_bytes(left, right)] = merge;
            }
        }
        merges
    }

    fn insert(&mut self, left: TokenId, right: TokenId, merge: Merge) {
        let (key, hash) = key_and_hash(left, right);
        let bit = hash >> 42;
        self.filter[(bit / 64) as usize] |= 1 << (bit % 64);
        let mask = self.table.len() - 1;
        let mut slot = hash as usize & mask;
        while self.table[slot].0 != u64::MAX && self.table[slot].0 != key {
            slot = (slot + 1) & mask;
        }
        self.table[slot] = (key, merge);
    }

    /// The merge of two tokens, or [`Merge::NONE`].
    #[inline(always)]
    pub(crate) fn get(&self, left: TokenId, right: TokenId) -> Merge {
        let (key, hash) = key_and_hash(left, right);
        let bit = hash >> 42;
        if self.filter[(bit / 64) as usize] >> (bit % 64) & 1 == 0 {
            return Merge::NONE;
        }
        let mask = self.table.len() - 1;
        let mut slot = hash as usize & mask;
        loop {
            let (found, merge) = self.table[slot];
            if found == key {
                return merge;
            }
            if found == u64::MAX {
                return Merge::NONE;
            }
            slot = (slot + 1) & mask;
        }
    }

    /// The merge of two single bytes.
    #[inline(always)]
    pub(crate) fn of_bytes(&self, left: u8, right: u8) -> Merge {
        self.byte_pairs[pair_of_bytes(left, right)]
    }

    /// Left, right and merged token of each merge, in order.
    pub(crate) fn pairs(&self) -> &[(TokenId, TokenId, TokenId)] {
        &self.pairs
    }
}

fn pair_of_bytes(left: u8, right: u8) -> usize {
    usize::from(left) << 8 | usize::from(right)
}

#[inline(always)]
fn key_and_hash(left: TokenId, right: TokenId) -> (u64, u64) {
    let key = u64::from(left) << 32 | u64::from(right);
    (key, hash_u128(u128::from(left) | u128::from(right) << 64))
}

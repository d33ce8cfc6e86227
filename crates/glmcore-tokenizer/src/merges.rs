//! The learned merges: which pairs of tokens become which token, and in which order.
//!
//! Most of the table is far from the processor. So a look-up touches one cache line, whether it finds something or not,
//! and which one is told in advance: many look-ups can be under way at a time. (A filter of 512 KiB before the table,
//! which most look-ups need not pass, made new words slower: its own misses are waited for.)

use rustc_hash::FxHashMap;

use crate::TokenId;
use crate::memory::Table;
use crate::prefetch::prefetch;

/// A learned merge: its place in the order of merges, and the token that it makes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Merge {
    pub(crate) rank: u32,
    pub(crate) id: TokenId,
}

impl Merge {
    /// No merge: its rank is above all others.
    pub(crate) const NONE: Self = Self { rank: u32::MAX, id: 0 };
}

/// Ranks must leave six bits of a word free, and three ids with a rank must nearly fit a word of 64 bits.
pub(crate) const MAX_MERGES: usize = 1 << 22;

/// Entries that share a cache line, filled from the first. An entry holds, from the top, what the pair's place in the
/// table does not tell of the pair, the rank plus one, and the merged token; 0 is a free place.
type Bucket = [u64; 8];
/// Merges per bucket, on average at most: one bucket in fifteen is full, one merge in fifty spills, and the table stays
/// half as large as with one merge less, which counts for more.
const MERGES_PER_BUCKET: usize = 5;

/// Places are asked for so many merges before they are filled.
const AHEAD: usize = 16;

/// The merges of a vocabulary.
#[derive(Debug)]
pub(crate) struct Merges {
    /// Tokens of single bytes.
    pub(crate) byte_ids: [TokenId; 256],
    /// Merges of two single bytes, by the bytes.
    byte_pairs: Box<[Merge]>,
    table: Table<Bucket>,
    /// Merges whose buckets are full.
    spilled: FxHashMap<(TokenId, TokenId), Merge>,
    /// Bits of an id, of a rank plus one, and of a bucket's place.
    id_bits: u32,
    rank_bits: u32,
    bucket_bits: u32,
    /// Left, right and merged token in the order of ranks.
    pairs: Vec<(TokenId, TokenId, TokenId)>,
}

/// Where a pair would stand.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Place {
    bucket: u32,
    /// What an entry of this pair has at its top.
    tag: u64,
}

impl Place {
    /// A place to begin with, which is looked at in vain.
    pub(crate) const NOWHERE: Self = Self { bucket: 0, tag: 0 };
}

impl Merges {
    /// `pairs` holds left, right and merged token of each merge, in order. Where a pair stands twice the last counts,
    /// as in Hugging Face's map of merges. `rank_of` gives the rank of the merge at a place, below [`MAX_MERGES`].
    pub(crate) fn new(
        byte_ids: &[TokenId; 256],
        pairs: Vec<(TokenId, TokenId, TokenId)>,
        num_tokens: usize,
        rank_of: impl Fn(usize, TokenId) -> u32,
    ) -> Self {
        let bits = |count: usize| usize::BITS - count.leading_zeros();
        let id_bits = bits(num_tokens).max(8);
        let highest = pairs
            .iter()
            .enumerate()
            .map(|(place, &(_, _, id))| rank_of(place, id))
            .max()
            .unwrap_or(0);
        let rank_bits = bits(highest as usize + 1);
        // A pair has two ids; what the place does not tell of them must fit beside rank and id.
        let bucket_bits = bits(pairs.len() / MERGES_PER_BUCKET)
            .max((3 * id_bits + rank_bits).saturating_sub(64))
            .max(1);
        let mut merges = Self {
            byte_ids: *byte_ids,
            byte_pairs: vec![Merge::NONE; 1 << 16].into(),
            table: Table::zeroed(1 << bucket_bits),
            spilled: FxHashMap::default(),
            id_bits,
            rank_bits,
            bucket_bits,
            pairs,
        };
        merges.insert_all(rank_of);
        merges.note_byte_pairs();
        merges
    }

    fn note_byte_pairs(&mut self) {
        let bytes: FxHashMap<TokenId, u8> = self.byte_ids.iter().copied().zip(0..=255).collect();
        let highest = self.byte_ids.iter().copied().max().unwrap_or(0);
        let of_bytes = self.pairs.iter().filter(|(left, right, _)| *left.max(right) <= highest);
        for &(left, right, _) in of_bytes {
            if let (Some(&first), Some(&second)) = (bytes.get(&left), bytes.get(&right)) {
                self.byte_pairs[pair_of_bytes(first, second)] = self.get(left, right);
            }
        }
    }

    fn insert_all(&mut self, rank_of: impl Fn(usize, TokenId) -> u32) {
        let mut places = [Place::NOWHERE; AHEAD];
        // Places are asked for as they are found, and filled a round later.
        for at in 0..self.pairs.len() + AHEAD {
            let slot = at % AHEAD;
            if let Some(number) = at.checked_sub(AHEAD) {
                let (_, _, id) = self.pairs[number];
                self.insert(places[slot], number, Merge { rank: rank_of(number, id), id });
            }
            if let Some(&(left, right, _)) = self.pairs.get(at) {
                places[slot] = self.place(left, right);
                self.prefetch(places[slot]);
            }
        }
    }

    /// Enters the merge of the pair `pairs[number]`, the place of which is `place`.
    #[inline(always)]
    fn insert(&mut self, place: Place, number: usize, merge: Merge) {
        let shift = self.tag_shift();
        let bucket = &mut self.table.as_mut_slice()[place.bucket as usize];
        // No branches on how full a bucket is: they cannot be foretold. Entries of one tag are of one pair; a free place
        // may look like one of them, and is then the first free one.
        let is_tag = |entry: &u64| *entry >> shift == place.tag;
        let filled = bucket.iter().map(|&entry| usize::from(entry != 0)).sum::<usize>();
        let same = bucket.iter().map(|entry| usize::from(is_tag(entry))).sum::<usize>();
        let at = if same == 0 { filled } else { bucket.iter().position(is_tag).unwrap_or(filled) };
        if let Some(entry) = bucket.get_mut(at) {
            let rank = u64::from(merge.rank + 1);
            *entry = place.tag << shift | rank << self.id_bits | u64::from(merge.id);
        } else {
            let (left, right, _) = self.pairs[number];
            self.spilled.insert((left, right), merge);
        }
    }

    fn tag_shift(&self) -> u32 {
        self.id_bits + self.rank_bits
    }

    /// A mixture of the pair's bits that can be undone.
    #[inline(always)]
    fn mix(&self, left: TokenId, right: TokenId) -> u64 {
        let mask = u64::MAX >> (64 - 2 * self.id_bits);
        let pair = u64::from(left) << self.id_bits | u64::from(right);
        let mixed = pair.wrapping_mul(0x9e37_79b9_7f4a_7c15) & mask;
        let mixed = (mixed ^ mixed >> self.id_bits).wrapping_mul(0xd6e8_feb8_6659_fd93) & mask;
        mixed ^ mixed >> self.id_bits
    }

    /// Where the pair stands if it is there: the low part of its mixture is the bucket, the high part the tag. So pairs
    /// in one bucket have different tags.
    #[inline(always)]
    pub(crate) fn place(&self, left: TokenId, right: TokenId) -> Place {
        let mixed = self.mix(left, right);
        let bucket = mixed & ((1 << self.bucket_bits) - 1);
        Place { bucket: bucket as u32, tag: mixed >> self.bucket_bits }
    }

    /// Brings the place near.
    #[inline(always)]
    pub(crate) fn prefetch(&self, place: Place) {
        prefetch(self.table.as_slice(), place.bucket as usize);
    }

    /// The merge of the pair whose place this is, or [`Merge::NONE`].
    #[inline(always)]
    pub(crate) fn at(&self, place: Place, pair: impl FnOnce() -> (TokenId, TokenId)) -> Merge {
        let bucket = &self.table.as_slice()[place.bucket as usize];
        let shift = self.tag_shift();
        let found = bucket
            .iter()
            .fold(0, |found, &entry| found | if entry >> shift == place.tag { entry } else { 0 });
        if bucket[bucket.len() - 1] != 0 && found == 0 {
            return self.spilled.get(&pair()).copied().unwrap_or(Merge::NONE);
        }
        // Where nothing was found the rank is that of no merge.
        let rank = (found >> self.id_bits & ((1 << self.rank_bits) - 1)) as u32;
        Merge { rank: rank.wrapping_sub(1), id: (found & ((1 << self.id_bits) - 1)) as TokenId }
    }

    /// The merge of two tokens, or [`Merge::NONE`].
    #[inline(always)]
    pub(crate) fn get(&self, left: TokenId, right: TokenId) -> Merge {
        self.at(self.place(left, right), || (left, right))
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

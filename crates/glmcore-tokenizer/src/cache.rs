//! Tokens of words that were seen before: a hash table in which most look-ups touch one cache line.
//!
//! A word of up to 15 bytes is its own key, so nothing needs to be compared beside it. Up to four tokens stand in the
//! entry. Longer words are found by hash and then compared; what has no room in an entry stands outside the table, the
//! tokens of a word and its bytes side by side.

use bytemuck::{Pod, Zeroable};

use crate::hash::hash_u128;
use crate::key::Key;
use crate::memory::Table;
use crate::prefetch::prefetch;
use crate::{TokenId, vocabulary::Vocabulary};

const MAX_INLINE_IDS: usize = 4;
/// Entries of 32 bytes: the table grows to 32 MiB.
const MAX_ENTRIES: usize = 1 << 20;
const MIN_ENTRIES: usize = 1 << 12;
/// The table begins with so many places for each token: where it is large enough at once it never grows, and few words
/// are pushed out of their bucket.
const PLACES_PER_TOKEN: usize = 6;
/// What stands outside the table may take so many numbers of 32 bits, 20 MiB.
const MAX_OUTSIDE: usize = 5 << 20;
/// Numbers that may be read behind a word's ids, so that they can be copied by so many.
const OUTSIDE_STEP: usize = 8;
/// A word that finds no place in so many buckets is not remembered: an adversary's words cannot make look-ups slow.
const MAX_BUCKETS_SEARCHED: usize = 64;

/// Buckets are asked for so many words before they are seeded.
const SEEDED_AHEAD: usize = 16;

/// Stands for the place of tokens that are not known yet.
const AWAITED: u32 = u32::MAX;

const ID_BITS: u32 = 24;

/// A word and its tokens. The top byte of `ids[0]` counts them; 0 tells that they stand outside, `ids[2]` of them from
/// `ids[1]` on, and behind them the `ids[3]` bytes of a long word.
#[derive(Debug, Clone, Copy, Zeroable, Pod)]
#[repr(C)]
struct Entry {
    key: u128,
    ids: [TokenId; MAX_INLINE_IDS],
}

/// Two entries fill a cache line.
type Bucket = [Entry; 2];

/// Whether two strings of the same length, 16 bytes at least, are equal. Words are short: a call of the general
/// comparison costs more than comparing them.
#[inline(always)]
fn is_equal(one: &[u8], other: &[u8]) -> bool {
    let number = |bytes: &[u8]| u128::from_ne_bytes(bytes.try_into().expect("16 bytes"));
    let (Some(last), Some(other_last)) = (one.last_chunk::<16>(), other.last_chunk::<16>()) else {
        return one == other;
    };
    last == other_last
        && one
            .chunks_exact(16)
            .zip(other.chunks_exact(16))
            .all(|(one, other)| number(one) == number(other))
}

/// What a table entry tells of a word's tokens.
#[derive(Clone, Copy)]
pub(crate) struct Entered<'c>(&'c [TokenId; MAX_INLINE_IDS]);

impl Entered<'_> {
    /// Number of tokens that stand in the entry; 0 if they stand outside.
    #[inline(always)]
    pub(crate) fn count(self) -> usize {
        (self.0[0] >> ID_BITS) as usize
    }

    /// Writes four ids, of which the first [`Self::count`] count.
    #[inline(always)]
    pub(crate) fn write(self, ids: &mut [TokenId; MAX_INLINE_IDS]) {
        *ids = *self.0;
        ids[0] = self.0[0] & ((1 << ID_BITS) - 1);
    }
}

/// Tokens that stand outside the table: some numbers more than there are ids.
#[derive(Clone, Copy)]
pub(crate) struct OutsideIds<'c> {
    padded: &'c [TokenId],
    len: usize,
}

impl OutsideIds<'_> {
    /// The ids.
    pub(crate) fn as_slice(&self) -> &[TokenId] {
        &self.padded[..self.len]
    }

    /// Number of ids.
    #[inline(always)]
    pub(crate) fn len(&self) -> usize {
        self.len
    }

    /// Writes the ids, and up to seven numbers more, to the beginning of `place`, which has room for all.
    #[inline(always)]
    pub(crate) fn write(&self, place: &mut [TokenId]) {
        let from = self.padded.chunks_exact(OUTSIDE_STEP).take(self.len.div_ceil(OUTSIDE_STEP));
        for (to, from) in place.chunks_exact_mut(OUTSIDE_STEP).zip(from) {
            to.copy_from_slice(from);
        }
    }
}

/// What is known of a word whose tokens do not stand in the table.
pub(crate) enum Outside<'c> {
    Ids(OutsideIds<'c>),
    /// The tokens are awaited, under this number.
    Awaited(u32),
    /// The entry is that of another word with the same hash.
    OtherWord,
}

/// An entry that awaits its tokens, by bucket and side; `None` where there was no room.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Slot(Option<(u32, u32)>);

/// Words and their tokens, bounded.
#[derive(Debug)]
pub(crate) struct WordCache {
    table: Table<Bucket>,
    mask: usize,
    all_entered: bool,
    num_entries: usize,
    /// Ids of a word and its bytes, then those of the next; zeros at the end.
    outside: Vec<u32>,
}

impl WordCache {
    /// A cache that knows the words that are tokens themselves, if `seeded`.
    pub(crate) fn new(vocabulary: &Vocabulary, seeded: bool) -> Self {
        let num_entries = vocabulary.num_learned() * PLACES_PER_TOKEN;
        let mut cache =
            Self::with_entries(num_entries.next_power_of_two().clamp(MIN_ENTRIES, MAX_ENTRIES));
        if seeded {
            cache.seed(vocabulary);
        }
        cache
    }

    fn with_entries(num_entries: usize) -> Self {
        Self {
            table: Table::zeroed(num_entries / 2),
            all_entered: true,
            mask: num_entries / 2 - 1,
            num_entries: 0,
            outside: vec![0; OUTSIDE_STEP],
        }
    }

    fn seed(&mut self, vocabulary: &Vocabulary) {
        let words = || vocabulary.learned().filter(|(_, token)| !token.is_empty());
        // Buckets are asked for before they are needed: the table is far from the processor.
        let mut ahead = words().map(|(_, token)| Key::of(token, 0, token.len()));
        ahead.by_ref().take(SEEDED_AHEAD).for_each(|key| self.prefetch(key));
        for (id, token) in words() {
            if let Some(key) = ahead.next() {
                self.prefetch(key);
            }
            self.insert(Key::of(token, 0, token.len()), token, &[id]);
        }
    }

    #[inline(always)]
    fn buckets(&self) -> &[Bucket] {
        self.table.as_slice()
    }

    /// Whether every token that may be a word of its own is known, so that a word which is not found is none.
    #[inline(always)]
    pub(crate) fn knows_all_tokens(&self) -> bool {
        self.all_entered
    }

    /// Brings the key's bucket near.
    #[inline(always)]
    pub(crate) fn prefetch(&self, key: Key) {
        prefetch(self.buckets(), key.hash as usize & self.mask);
    }

    /// What is known of the word with this key.
    #[inline(always)]
    pub(crate) fn find(&self, key: Key) -> Option<Entered<'_>> {
        let bucket = &self.buckets()[key.hash as usize & self.mask];
        if bucket[0].key == key.key {
            Some(Entered(&bucket[0].ids))
        } else if bucket[1].key == key.key {
            Some(Entered(&bucket[1].ids))
        } else if bucket[1].key == 0 {
            None
        } else {
            self.find_further(key)
        }
    }

    /// Brings what stands outside the table for a long word near, if the table knows the word.
    #[inline(always)]
    pub(crate) fn prefetch_outside(&self, key: Key) {
        if let Some(Entered(&[count, start, ..])) = self.find(key)
            && count == 0
        {
            // A word's ids and bytes lie on two cache lines mostly.
            prefetch(&self.outside, start as usize);
            prefetch(&self.outside, (start as usize).wrapping_add(64 / size_of::<u32>()));
        }
    }

    /// Tokens of a word that do not stand in the table. `is_word` tells whether the awaited word of a number is the same.
    #[inline(always)]
    pub(crate) fn outside(
        &self,
        key: Key,
        entered: Entered<'_>,
        word: &[u8],
        is_word: impl Fn(u32) -> bool,
    ) -> Outside<'_> {
        let [_, start, len, num_bytes] = *entered.0;
        if start == AWAITED {
            return if !key.is_long() || is_word(len) {
                Outside::Awaited(len)
            } else {
                Outside::OtherWord
            };
        }
        let (padded, len) = (&self.outside[start as usize..], len as usize);
        let is_same = !key.is_long()
            || (num_bytes as usize == word.len()
                && is_equal(&bytemuck::cast_slice(&padded[len..])[..word.len()], word));
        if is_same { Outside::Ids(OutsideIds { padded, len }) } else { Outside::OtherWord }
    }

    #[inline(never)]
    fn find_further(&self, key: Key) -> Option<Entered<'_>> {
        let buckets = self.buckets();
        for step in 1..MAX_BUCKETS_SEARCHED {
            for entry in &buckets[(key.hash as usize + step) & self.mask] {
                if entry.key == key.key {
                    return Some(Entered(&entry.ids));
                }
                if entry.key == 0 {
                    return None;
                }
            }
        }
        None
    }

    /// Remembers the tokens of a word that was not found.
    pub(crate) fn insert(&mut self, key: Key, word: &[u8], ids: &[TokenId]) {
        let slot = self.reserve(key, 0);
        self.fill(slot, word, ids);
    }

    /// Makes a place for the tokens of a word that was not found; until they are there it is awaited, as `number`.
    #[inline]
    pub(crate) fn reserve(&mut self, key: Key, number: u32) -> Slot {
        if key.is_uncached() {
            return Slot(None);
        }
        let mask = self.mask;
        let buckets = self.table.as_mut_slice();
        for step in 0..MAX_BUCKETS_SEARCHED {
            let place = (key.hash as usize + step) & mask;
            for (side, entry) in buckets[place].iter_mut().enumerate() {
                if entry.key == key.key {
                    return Slot(None); // another long word has the same hash
                }
                if entry.key == 0 {
                    *entry = Entry { key: key.key, ids: [0, AWAITED, number, 0] };
                    self.num_entries += 1;
                    return Slot(Some((place as u32, side as u32)));
                }
            }
        }
        Slot(None)
    }

    /// Enters the tokens of a word where a place was made for them.
    #[inline]
    pub(crate) fn fill(&mut self, slot: Slot, word: &[u8], ids: &[TokenId]) {
        let Slot(Some((place, side))) = slot else {
            self.all_entered &= ids.len() > 1; // a token without an entry is looked for in the vocabulary
            return;
        };
        let entry = &mut self.table.as_mut_slice()[place as usize][side as usize];
        let is_long = Key::is_of_long(entry.key);
        if ids.len() <= MAX_INLINE_IDS && !is_long {
            entry.ids = [0; MAX_INLINE_IDS];
            entry.ids[..ids.len()].copy_from_slice(ids);
            entry.ids[0] |= (ids.len() as u32) << ID_BITS;
            return;
        }
        let start = self.outside.len() - OUTSIDE_STEP;
        entry.ids = [0, start as u32, ids.len() as u32, word.len() as u32];
        self.outside.truncate(start);
        self.outside.extend_from_slice(ids);
        if is_long {
            let mut chunks = word.chunks_exact(4);
            let number = |chunk: &[u8]| u32::from_ne_bytes(chunk.try_into().expect("4 bytes"));
            self.outside.extend(chunks.by_ref().map(number));
            let mut last = [0; 4];
            last[..chunks.remainder().len()].copy_from_slice(chunks.remainder());
            self.outside.push(u32::from_ne_bytes(last));
        }
        self.outside.extend_from_slice(&[0; OUTSIDE_STEP]);
    }

    /// Makes room if there is little: the table doubles up to its bound, then starts anew. To be called between texts
    /// or batches of words.
    #[inline]
    pub(crate) fn make_room(&mut self, vocabulary: &Vocabulary, seeded: bool) {
        let capacity = (self.mask + 1) * 2;
        if self.num_entries * 10 > capacity * 7 || self.outside.len() > MAX_OUTSIDE {
            self.grow_or_clear(vocabulary, seeded);
        }
    }

    #[cold]
    fn grow_or_clear(&mut self, vocabulary: &Vocabulary, seeded: bool) {
        let capacity = (self.mask + 1) * 2;
        if capacity < MAX_ENTRIES && self.outside.len() <= MAX_OUTSIDE {
            let mut larger = Self::with_entries(capacity * 2);
            larger.all_entered = self.all_entered;
            larger.copy_entries(self);
            larger.outside = std::mem::take(&mut self.outside);
            *self = larger;
        } else {
            self.table.as_mut_slice().fill(Bucket::zeroed());
            self.num_entries = 0;
            self.all_entered = true;
            self.outside.clear();
            self.outside.resize(OUTSIDE_STEP, 0);
            if seeded {
                self.seed(vocabulary);
            }
        }
    }

    fn copy_entries(&mut self, other: &Self) {
        let mask = self.mask;
        let buckets = self.table.as_mut_slice();
        for entry in other.buckets().iter().flatten().filter(|entry| entry.key != 0) {
            let hash =
                if Key::is_of_long(entry.key) { entry.key as u64 } else { hash_u128(entry.key) };
            let free = (0..MAX_BUCKETS_SEARCHED)
                .flat_map(|step| [0, 1].map(|side| ((hash as usize + step) & mask, side)))
                .find(|&(bucket, side)| buckets[bucket][side].key == 0);
            if let Some((bucket, side)) = free {
                buckets[bucket][side] = *entry;
                self.num_entries += 1;
            } else {
                self.all_entered = false;
            }
        }
    }
}

#[cfg(test)]
mod tests;

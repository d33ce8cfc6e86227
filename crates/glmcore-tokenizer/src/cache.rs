//! Tokens of words that were seen before: a hash table in which most look-ups touch one cache line.
//!
//! A word of up to 15 bytes is its own key, so nothing needs to be compared beside it. Up to four tokens stand in the
//! entry. Longer words are found by hash and then compared, longer lists of tokens stand outside.

use bytemuck::{Pod, Zeroable};
use memmap2::MmapMut;

use crate::hash::{hash_bytes, hash_u128};
use crate::prefetch::prefetch;
use crate::{TokenId, vocabulary::Vocabulary};

/// Words of more bytes are merged anew each time.
const MAX_CACHED_BYTES: usize = 256;
/// Words up to this length are their own key.
const MAX_KEY_BYTES: usize = 15;
const MAX_INLINE_IDS: usize = 4;
/// Entries of 32 bytes: the table grows to 32 MiB.
const MAX_ENTRIES: usize = 1 << 20;
const MIN_ENTRIES: usize = 1 << 12;
/// What stands outside the table may take so many ids and so many bytes.
const MAX_OUTSIDE: usize = 1 << 22;
/// A word that finds no place in so many buckets is not remembered: an adversary's words cannot make look-ups slow.
const MAX_BUCKETS_SEARCHED: usize = 8;

const ID_BITS: u32 = 24;
const LONG: u128 = 0xff << 120;

/// A word and its tokens. The top byte of `ids[0]` counts them; 0 tells that they stand outside, `ids[2]` of them from
/// `ids[1]` on, and a long word's bytes from `ids[3]` on.
#[derive(Debug, Clone, Copy, Zeroable, Pod)]
#[repr(C)]
struct Entry {
    key: u128,
    ids: [TokenId; MAX_INLINE_IDS],
}

/// Two entries fill a cache line.
type Bucket = [Entry; 2];

/// A word's key and place in the table.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct Key {
    key: u128,
    hash: u64,
}

/// A word too long to be remembered; no entry has this key.
const UNCACHED: Key = Key { key: 0xfe << 120, hash: 0 };

impl Key {
    /// Key of the word `text[start..end]`, which is not empty.
    #[inline(always)]
    pub(crate) fn of(text: &[u8], start: usize, end: usize) -> Self {
        let len = end - start;
        if len > MAX_KEY_BYTES {
            return Self::of_long(&text[start..end]);
        }
        let word = match text.get(start..start + 16) {
            Some(bytes) => {
                u128::from_le_bytes(bytes.try_into().expect("16 bytes")) & (u128::MAX >> (128 - 8 * len))
            }
            None => last_word(&text[start..end]),
        };
        let key = word | (len as u128) << 120;
        Self { key, hash: hash_u128(key) }
    }

    #[inline(never)]
    fn of_long(word: &[u8]) -> Self {
        if word.len() > MAX_CACHED_BYTES {
            return UNCACHED;
        }
        let hash = hash_bytes(word);
        Self { key: u128::from(hash) | LONG, hash }
    }

    fn is_long(self) -> bool {
        self.key >> 120 == LONG >> 120
    }
}

/// A word so near the end of the text that 16 bytes cannot be read.
#[inline(never)]
fn last_word(word: &[u8]) -> u128 {
    let mut bytes = [0; 16];
    bytes[..word.len()].copy_from_slice(word);
    u128::from_le_bytes(bytes)
}

/// Tokens that a look-up has found.
pub(crate) enum Found<'c> {
    /// So many of the four.
    Few([TokenId; MAX_INLINE_IDS], usize),
    Many(&'c [TokenId]),
    Nothing,
}

/// Words and their tokens, bounded.
#[derive(Debug)]
pub(crate) struct WordCache {
    table: MmapMut,
    mask: usize,
    num_entries: usize,
    ids: Vec<TokenId>,
    bytes: Vec<u8>,
}

impl WordCache {
    /// A cache that knows the words that are tokens themselves, if `seeded`.
    pub(crate) fn new(vocabulary: &Vocabulary, seeded: bool) -> Self {
        let num_entries = vocabulary.num_learned() * 3;
        let mut cache = Self::with_entries(num_entries.next_power_of_two().clamp(MIN_ENTRIES, MAX_ENTRIES));
        if seeded {
            cache.seed(vocabulary);
        }
        cache
    }

    fn with_entries(num_entries: usize) -> Self {
        Self {
            table: zeroed(num_entries * size_of::<Entry>()),
            mask: num_entries / 2 - 1,
            num_entries: 0,
            ids: Vec::new(),
            bytes: Vec::new(),
        }
    }

    fn seed(&mut self, vocabulary: &Vocabulary) {
        for (id, token) in vocabulary.learned() {
            if !token.is_empty() && token.len() <= MAX_CACHED_BYTES {
                self.insert(Key::of(token, 0, token.len()), token, &[id]);
            }
        }
    }

    #[inline(always)]
    fn buckets(&self) -> &[Bucket] {
        bytemuck::cast_slice(&self.table)
    }

    /// Brings the key's bucket near.
    #[inline(always)]
    pub(crate) fn prefetch(&self, key: Key) {
        prefetch(self.buckets(), key.hash as usize & self.mask);
    }

    /// Tokens of the word with this key.
    #[inline(always)]
    pub(crate) fn find(&self, key: Key, word: impl FnOnce() -> (usize, usize), text: &[u8]) -> Found<'_> {
        let bucket = &self.buckets()[key.hash as usize & self.mask];
        let ids = if bucket[0].key == key.key {
            bucket[0].ids
        } else if bucket[1].key == key.key {
            bucket[1].ids
        } else {
            match self.find_further(key) {
                Some(ids) => ids,
                None => return Found::Nothing,
            }
        };
        let count = (ids[0] >> ID_BITS) as usize;
        if count > 0 {
            return Found::Few([ids[0] & ((1 << ID_BITS) - 1), ids[1], ids[2], ids[3]], count);
        }
        let (start, end) = word();
        self.find_outside(key, ids, &text[start..end])
    }

    #[inline(never)]
    fn find_outside(&self, key: Key, ids: [u32; 4], word: &[u8]) -> Found<'_> {
        let same = !key.is_long() || self.bytes.get(ids[3] as usize..).is_some_and(|bytes| bytes.starts_with(word));
        if same { Found::Many(&self.ids[ids[1] as usize..][..ids[2] as usize]) } else { Found::Nothing }
    }

    #[inline(never)]
    fn find_further(&self, key: Key) -> Option<[TokenId; MAX_INLINE_IDS]> {
        let buckets = self.buckets();
        for step in 0..MAX_BUCKETS_SEARCHED {
            for entry in &buckets[(key.hash as usize + step) & self.mask] {
                if entry.key == key.key {
                    return Some(entry.ids);
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
        if key.key == UNCACHED.key || ids.is_empty() {
            return;
        }
        let mut stored = [0; MAX_INLINE_IDS];
        if ids.len() <= MAX_INLINE_IDS && !key.is_long() {
            stored[..ids.len()].copy_from_slice(ids);
            stored[0] |= (ids.len() as u32) << ID_BITS;
        } else {
            stored = [0, self.ids.len() as u32, ids.len() as u32, self.bytes.len() as u32];
        }
        let mask = self.mask;
        let buckets: &mut [Bucket] = bytemuck::cast_slice_mut(&mut self.table);
        for step in 0..MAX_BUCKETS_SEARCHED {
            for entry in &mut buckets[(key.hash as usize + step) & mask] {
                if entry.key == key.key {
                    return; // another long word with the same hash
                }
                if entry.key == 0 {
                    *entry = Entry { key: key.key, ids: stored };
                    self.num_entries += 1;
                    if stored[0] == 0 {
                        self.ids.extend_from_slice(ids);
                        if key.is_long() {
                            self.bytes.extend_from_slice(word);
                        }
                    }
                    return;
                }
            }
        }
    }

    /// Makes room if there is little: the table doubles up to its bound, then starts anew. To be called between texts
    /// or batches of words.
    #[inline]
    pub(crate) fn make_room(&mut self, vocabulary: &Vocabulary, seeded: bool) {
        let capacity = (self.mask + 1) * 2;
        if self.num_entries * 2 > capacity || self.ids.len() > MAX_OUTSIDE || self.bytes.len() > MAX_OUTSIDE {
            self.grow_or_clear(vocabulary, seeded);
        }
    }

    #[cold]
    fn grow_or_clear(&mut self, vocabulary: &Vocabulary, seeded: bool) {
        let capacity = (self.mask + 1) * 2;
        if capacity < MAX_ENTRIES && self.ids.len() <= MAX_OUTSIDE && self.bytes.len() <= MAX_OUTSIDE {
            let mut larger = Self::with_entries(capacity * 2);
            larger.copy_entries(self);
            larger.ids = std::mem::take(&mut self.ids);
            larger.bytes = std::mem::take(&mut self.bytes);
            *self = larger;
        } else {
            *self = Self::with_entries(capacity);
            if seeded {
                self.seed(vocabulary);
            }
        }
    }

    fn copy_entries(&mut self, other: &Self) {
        let mask = self.mask;
        let buckets: &mut [Bucket] = bytemuck::cast_slice_mut(&mut self.table);
        for entry in other.buckets().iter().flatten().filter(|entry| entry.key != 0) {
            let long = entry.key >> 120 == LONG >> 120;
            let hash = if long { entry.key as u64 } else { hash_u128(entry.key) };
            let free = (0..MAX_BUCKETS_SEARCHED)
                .flat_map(|step| [0, 1].map(|side| ((hash as usize + step) & mask, side)))
                .find(|&(bucket, side)| buckets[bucket][side].key == 0);
            if let Some((bucket, side)) = free {
                buckets[bucket][side] = *entry;
                self.num_entries += 1;
            }
        }
    }
}

/// Zeroed memory on large pages where the system has them: a table of this size misses the small ones' look-aside buffer.
fn zeroed(len: usize) -> MmapMut {
    let memory = MmapMut::map_anon(len).expect("the system gives memory");
    #[cfg(target_os = "linux")]
    if len >= 1 << 21 {
        // A hint: without large pages the table is slower, not wrong.
        drop(memory.advise(memmap2::Advice::HugePage));
    }
    memory
}

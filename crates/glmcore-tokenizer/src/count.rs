//! How often each word stands in a corpus.

use bytemuck::{Pod, Zeroable};

use crate::hash::{hash_bytes, hash_u128};
use crate::memory::Table;
use crate::prefetch::prefetch;
use crate::split::{BATCH, Cuts, Instructions, Known, Splitter, Task, dispatch};

/// Words up to this length stand in their entry.
const MAX_KEY_BYTES: usize = 15;
const LONG: u128 = 0xff << 120;
const MIN_ENTRIES: usize = 1 << 16;

/// A word and its count. Longer words have their hash as key and their bytes outside.
#[derive(Debug, Clone, Copy, Zeroable, Pod)]
#[repr(C)]
struct Entry {
    key: u128,
    count: u64,
    start: u32,
    len: u32,
}

/// Counts of distinct words: 32 bytes for each slot, of which half may be taken, and the bytes of words longer than 15.
#[derive(Debug)]
pub(crate) struct WordCounts {
    table: Table<Entry>,
    len: usize,
    bytes: Vec<u8>,
}

impl WordCounts {
    pub(crate) fn new() -> Self {
        Self { table: Table::zeroed(MIN_ENTRIES), len: 0, bytes: Vec::new() }
    }

    /// Number of distinct words.
    pub(crate) fn len(&self) -> usize {
        self.len
    }

    /// Adds the words of `text`.
    pub(crate) fn add_text(&mut self, splitter: &Splitter, text: &str) {
        match splitter {
            Splitter::Known(known) => dispatch(Count { counts: self, known: *known, text }),
            Splitter::General(general) => general.for_each_word(text, &mut |start, end| {
                self.reserve(1);
                let word = &text.as_bytes()[start..end];
                let (key, hash) = key_and_hash(word);
                self.add(key, hash, word, 1);
            }),
        }
    }

    /// Adds all counts of `other`.
    pub(crate) fn add_all(&mut self, other: &Self) {
        for (word, count) in other.iter() {
            let bytes = word.as_slice();
            self.reserve(1);
            let (key, hash) = key_and_hash(bytes);
            self.add(key, hash, bytes, count);
        }
    }

    /// Each word with its count, in no meaningful order.
    pub(crate) fn iter(&self) -> impl Iterator<Item = (Word<'_>, u64)> {
        self.table.as_slice().iter().filter(|entry| entry.count > 0).map(|entry| {
            let word = if entry.key >> 120 == LONG >> 120 {
                Word::Long(&self.bytes[entry.start as usize..][..entry.len as usize])
            } else {
                Word::Short(entry.key.to_le_bytes())
            };
            (word, entry.count)
        })
    }

    /// Makes room for so many more words.
    fn reserve(&mut self, more: usize) {
        let capacity = self.table.as_slice().len();
        if (self.len + more) * 2 <= capacity {
            return;
        }
        let mut larger = Table::<Entry>::zeroed(capacity * 2);
        let slots = larger.as_mut_slice();
        for entry in self.table.as_slice().iter().filter(|entry| entry.count > 0) {
            let hash = if entry.key >> 120 == LONG >> 120 {
                entry.key as u64
            } else {
                hash_u128(entry.key)
            };
            let mut slot = hash as usize & (slots.len() - 1);
            while slots[slot].count > 0 {
                slot = (slot + 1) & (slots.len() - 1);
            }
            slots[slot] = *entry;
        }
        self.table = larger;
    }

    #[inline(always)]
    fn add(&mut self, key: u128, hash: u64, word: &[u8], count: u64) {
        let slots = self.table.as_mut_slice();
        let mask = slots.len() - 1;
        let mut slot = hash as usize & mask;
        loop {
            let entry = &mut slots[slot];
            if entry.count == 0 {
                *entry = Entry { key, count, start: 0, len: word.len() as u32 };
                if word.len() > MAX_KEY_BYTES {
                    entry.start =
                        u32::try_from(self.bytes.len()).expect("long words have fewer than 4 GiB");
                    self.bytes.extend_from_slice(word);
                }
                self.len += 1;
                return;
            }
            if entry.key == key
                && (word.len() <= MAX_KEY_BYTES
                    || self.bytes[entry.start as usize..][..entry.len as usize] == *word)
            {
                entry.count += count;
                return;
            }
            slot = (slot + 1) & mask;
        }
    }
}

/// A counted word.
pub(crate) enum Word<'w> {
    /// Its bytes, and their number in the last byte.
    Short([u8; 16]),
    Long(&'w [u8]),
}

impl Word<'_> {
    pub(crate) fn as_slice(&self) -> &[u8] {
        match self {
            Self::Short(bytes) => &bytes[..usize::from(bytes[15])],
            Self::Long(bytes) => bytes,
        }
    }
}

fn key_and_hash(word: &[u8]) -> (u128, u64) {
    if word.len() > MAX_KEY_BYTES {
        let hash = hash_bytes(word);
        return (u128::from(hash) | LONG, hash);
    }
    let mut bytes = [0; 16];
    bytes[..word.len()].copy_from_slice(word);
    bytes[15] = word.len() as u8;
    let key = u128::from_le_bytes(bytes);
    (key, hash_u128(key))
}

/// The words of a text, to be counted.
struct Count<'a> {
    counts: &'a mut WordCounts,
    known: Known,
    text: &'a str,
}

impl Task for Count<'_> {
    #[inline(always)]
    fn run<I: Instructions>(self, instructions: I) {
        let Self { counts, known, text } = self;
        let bytes = text.as_bytes();
        let mut cuts = Cuts::new(known, text);
        let mut ends = [0; BATCH];
        let mut keys = [(0_u128, 0_u64); BATCH];
        let mut batch_start = 0;
        loop {
            let count = cuts.fill(instructions, &mut ends);
            if count == 0 {
                return;
            }
            counts.reserve(count);
            let mask = counts.table.as_slice().len() - 1;
            let mut start = batch_start;
            for (key, &end) in keys[..count].iter_mut().zip(&ends[..count]) {
                *key = key_and_hash(&bytes[start..end]);
                prefetch(counts.table.as_slice(), key.1 as usize & mask);
                start = end;
            }
            start = batch_start;
            for (&(key, hash), &end) in keys[..count].iter().zip(&ends[..count]) {
                counts.add(key, hash, &bytes[start..end], 1);
                start = end;
            }
            batch_start = start;
        }
    }
}

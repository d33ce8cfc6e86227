//! Keys of words in the table of words that were seen before: up to 15 bytes a word is its own key.

use crate::hash::{hash_bytes, hash_u128};

/// Words of more bytes are merged anew each time.
const MAX_CACHED_BYTES: usize = 1024;
/// Words up to this length are their own key.
const MAX_KEY_BYTES: usize = 15;
const LONG: u128 = 0xff << 120;

/// A word's key and place in the table.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct Key {
    pub(crate) key: u128,
    pub(crate) hash: u64,
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
                u128::from_le_bytes(bytes.try_into().expect("16 bytes"))
                    & (u128::MAX >> (128 - 8 * len))
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

    /// Whether the word must be compared, since the key does not tell it from all others.
    #[inline(always)]
    pub(crate) fn is_long(self) -> bool {
        Self::is_of_long(self.key)
    }

    /// Whether a key is that of a long word, which holds the word's hash in its low half.
    #[inline(always)]
    pub(crate) fn is_of_long(key: u128) -> bool {
        key >> 120 == LONG >> 120
    }

    /// Whether the word is too long to be remembered.
    pub(crate) fn is_uncached(self) -> bool {
        self.key == UNCACHED.key
    }
}

/// A word so near the end of the text that 16 bytes cannot be read.
#[inline(never)]
fn last_word(word: &[u8]) -> u128 {
    let mut bytes = [0; 16];
    bytes[..word.len()].copy_from_slice(word);
    u128::from_le_bytes(bytes)
}

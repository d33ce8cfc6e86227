//! Hashes that are equal for equal texts.

use xxhash_rust::xxh3::Xxh3;

use crate::threads::map_texts;

/// Bytes gathered before they are hashed.
const BUFFER: usize = 1 << 12;

/// 128 bits of each text, equal for texts that differ in white space only.
///
/// It is XXH3-128 (seed 0) of the text's UTF-8 with every run of Unicode white space replaced by one space and none at
/// the ends. Case, punctuation and the Unicode form of accents count. By chance two of n different texts share a hash
/// with probability `n^2 / 2^129`: below 1e-18 for ten billion texts.
pub fn exact_hashes<T: AsRef<str> + Sync>(texts: &[T], num_threads: usize) -> Vec<u128> {
    map_texts(texts, num_threads, || Vec::with_capacity(BUFFER + 1), exact_hash)
}

fn exact_hash(buffer: &mut Vec<u8>, text: &str) -> u128 {
    let mut hasher = Xxh3::new();
    buffer.clear();
    let mut first = true;
    for word in text.split_whitespace() {
        if !first {
            buffer.push(b' ');
        }
        first = false;
        if word.len() > BUFFER - buffer.len().min(BUFFER) {
            hasher.update(buffer);
            buffer.clear();
        }
        if word.len() > BUFFER {
            hasher.update(word.as_bytes());
        } else {
            buffer.extend_from_slice(word.as_bytes());
        }
    }
    hasher.update(buffer);
    hasher.digest128()
}

//! The byte-level alphabet: how tokenizer.json writes arbitrary bytes as printable characters.
//!
//! Printable Latin-1 characters stand for themselves; the other 68 bytes take the code points from 256 on.

use std::sync::LazyLock;

use rustc_hash::FxHashMap;

static CHAR_OF: LazyLock<[char; 256]> = LazyLock::new(|| {
    let mut next = 256_u32;
    std::array::from_fn(|byte| {
        let byte = u8::try_from(byte).expect("the array has 256 entries");
        if matches!(byte, b'!'..=b'~' | 0xa1..=0xac | 0xae..=0xff) {
            return char::from(byte);
        }
        next += 1;
        char::from_u32(next - 1).expect("code points 256 to 323 are characters")
    })
});

static BYTE_OF: LazyLock<FxHashMap<char, u8>> =
    LazyLock::new(|| (0..=255).map(|byte| (CHAR_OF[usize::from(byte)], byte)).collect());

/// `bytes` in the alphabet.
pub(crate) fn to_text(bytes: &[u8]) -> String {
    bytes.iter().map(|&byte| CHAR_OF[usize::from(byte)]).collect()
}

/// The bytes that `text` stands for, or `None` if it leaves the alphabet.
pub(crate) fn to_bytes(text: &str) -> Option<Vec<u8>> {
    text.chars().map(|c| BYTE_OF.get(&c).copied()).collect()
}

/// The 256 bytes in the order of their characters, which is the order of their ids.
pub(crate) fn alphabet() -> Vec<u8> {
    let mut bytes: Vec<u8> = (0..=255).collect();
    bytes.sort_by_key(|&byte| CHAR_OF[usize::from(byte)]);
    bytes
}

//! The byte-level alphabet: how tokenizer.json writes arbitrary bytes as printable characters.
//!
//! Printable Latin-1 characters stand for themselves; the other 68 bytes take the code points from 256 on.

use std::sync::LazyLock;

/// Code points of the alphabet lie below this.
const NUM_CODES: usize = 256 + 68;

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

static BYTE_OF: LazyLock<[Option<u8>; NUM_CODES]> = LazyLock::new(|| {
    let mut bytes = [None; NUM_CODES];
    for (&c, byte) in CHAR_OF.iter().zip(0..=255) {
        bytes[c as usize] = Some(byte);
    }
    bytes
});

/// `bytes` in the alphabet.
pub(crate) fn to_text(bytes: &[u8]) -> String {
    bytes.iter().map(|&byte| CHAR_OF[usize::from(byte)]).collect()
}

/// Appends the bytes that `text` stands for; false if it leaves the alphabet, with some of them appended.
pub(crate) fn push_bytes(text: &str, bytes: &mut Vec<u8>) -> bool {
    let byte_of = &*BYTE_OF;
    text.chars().all(|c| {
        let byte = byte_of.get(c as usize).copied().flatten();
        bytes.extend(byte);
        byte.is_some()
    })
}

/// The 256 bytes in the order of their characters, which is the order of their ids.
pub(crate) fn alphabet() -> Vec<u8> {
    let mut bytes: Vec<u8> = (0..=255).collect();
    bytes.sort_by_key(|&byte| CHAR_OF[usize::from(byte)]);
    bytes
}

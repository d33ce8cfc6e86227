//! Tokens: the words that duplicates and overlap are measured in.
//!
//! A token is a longest run of letters and numbers, in lower case, or one character of a script that puts no spaces
//! between words (Han, Kana, Thai, ...). All other characters part tokens and are left out.

use crate::characters::{Classes, TOKEN, UNSPACED, UPPER};
use crate::hash::{START, mix, step};

/// Lower case of the letters and digits below U+0080; 0 for what parts tokens, 1 for the first byte of other characters.
static LOWER: [u8; 256] = {
    let mut table = [1; 256];
    let mut c = 0_u8;
    while c < 128 {
        table[c as usize] = if c.is_ascii_alphanumeric() { c.to_ascii_lowercase() } else { 0 };
        c += 1;
    }
    table
};

/// Gives the hash, the first byte and the end of each token of `text`.
#[inline]
pub(crate) fn for_each_token(text: &str, mut token: impl FnMut(u64, usize, usize)) {
    let classes = Classes::get();
    let bytes = text.as_bytes();
    let mut at = 0;
    let mut hash = START;
    let mut start = usize::MAX; // no token is open
    while at < bytes.len() {
        let lower = LOWER[usize::from(bytes[at])];
        if lower > 1 {
            if start == usize::MAX {
                start = at;
            }
            hash = step(hash, lower.into());
            at += 1;
            continue;
        }
        let (c, class, len) = if lower == 0 { ('\0', 0, 1) } else { classes.next(text, at) };
        if class & (TOKEN | UNSPACED) == TOKEN {
            if start == usize::MAX {
                start = at;
            }
            hash = add_lower(hash, c, class);
        } else {
            if start != usize::MAX {
                token(mix(hash), start, at);
                start = usize::MAX;
                hash = START;
            }
            if class & UNSPACED != 0 {
                token(mix(step(START, c.into())), at, at + len);
            }
        }
        at += len;
    }
    if start != usize::MAX {
        token(mix(hash), start, at);
    }
}

/// Gives the hash, the first byte and the end of each letter and number of `text`, in lower case.
#[inline]
pub(crate) fn for_each_letter(text: &str, mut letter: impl FnMut(u64, usize, usize)) {
    let classes = Classes::get();
    for (at, c) in text.char_indices() {
        let class = classes.of(c);
        if class & TOKEN != 0 {
            letter(mix(add_lower(START, c, class)), at, at + c.len_utf8());
        }
    }
}

#[inline]
fn add_lower(hash: u64, c: char, class: u8) -> u64 {
    if class & UPPER == 0 {
        step(hash, c.into())
    } else {
        c.to_lowercase().fold(hash, |hash, c| step(hash, c.into()))
    }
}

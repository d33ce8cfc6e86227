//! Normal form C, and where its text came from.

use std::borrow::Cow;

use unicode_normalization::char::canonical_combining_class;
use unicode_normalization::{IsNormalized, UnicodeNormalization, is_nfc_quick};

/// `text` in normal form C.
pub(crate) fn nfc(text: &str) -> Cow<'_, str> {
    if text.is_ascii() || is_nfc_quick(text.chars()) == IsNormalized::Yes {
        Cow::Borrowed(text)
    } else {
        Cow::Owned(text.nfc().collect())
    }
}

/// Stretches of a text that normalisation treats on their own, as (end before, end after), in bytes.
pub(crate) fn nfc_stretches(text: &str) -> Vec<(usize, usize)> {
    let mut ends = Vec::new();
    let (mut start, mut normalized) = (0, 0);
    let mut close = |start: usize, end: usize| {
        normalized += text[start..end].nfc().map(char::len_utf8).sum::<usize>();
        ends.push((end, normalized));
    };
    for (at, c) in text.char_indices() {
        if at > start && is_inert(c) {
            close(start, at);
            start = at;
        }
    }
    if start < text.len() {
        close(start, text.len());
    }
    ends
}

/// Whether what stands before `c` cannot change it, nor it what stands before.
fn is_inert(c: char) -> bool {
    canonical_combining_class(c) == 0 && is_nfc_quick(std::iter::once(c)) == IsNormalized::Yes
}

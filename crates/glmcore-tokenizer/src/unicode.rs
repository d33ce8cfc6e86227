//! Character classes of the split patterns, as Unicode 16 defines them.

use std::sync::LazyLock;

use regex_syntax::hir::{Class, ClassUnicode, HirKind};

/// `\p{L}`.
pub(crate) const LETTER: u8 = 1;
/// `\p{N}`.
pub(crate) const NUMBER: u8 = 2;
/// `\s`, line breaks included.
pub(crate) const SPACE: u8 = 4;
/// `\r` or `\n`.
pub(crate) const BREAK: u8 = 8;
/// `\p{Lu}` or `\p{Lt}`.
pub(crate) const UPPER: u8 = 16;
/// `\p{Ll}`.
pub(crate) const LOWER: u8 = 32;
/// `\p{M}`.
pub(crate) const MARK: u8 = 64;
/// `\p{P}` or `\p{S}`.
pub(crate) const PUNCTUATION: u8 = 128;

/// Classes of every scalar value: one byte each, so a look-up is one load.
static CLASSES: LazyLock<Box<[u8]>> = LazyLock::new(|| {
    let mut classes = vec![0; 0x11_0000].into_boxed_slice();
    for (pattern, bits) in [
        (r"\p{L}", LETTER),
        (r"\p{N}", NUMBER),
        (r"\s", SPACE),
        (r"[\r\n]", BREAK),
        (r"[\p{Lu}\p{Lt}]", UPPER),
        (r"\p{Ll}", LOWER),
        (r"\p{M}", MARK),
        (r"[\p{P}\p{S}]", PUNCTUATION),
    ] {
        for range in unicode_class(pattern).ranges() {
            for place in &mut classes[range.start() as usize..=range.end() as usize] {
                *place |= bits;
            }
        }
    }
    classes
});

/// Whether `c` is `\w`: a letter, mark, digit or connector of words.
pub(crate) fn is_word(c: char) -> bool {
    static WORD: LazyLock<ClassUnicode> = LazyLock::new(|| unicode_class(r"\w"));
    let ranges = WORD.ranges();
    let after = ranges.partition_point(|range| range.start() <= c);
    after > 0 && c <= ranges[after - 1].end()
}

fn unicode_class(pattern: &str) -> ClassUnicode {
    let hir = regex_syntax::parse(pattern).expect("a constant pattern parses");
    match hir.into_kind() {
        HirKind::Class(Class::Unicode(class)) => class,
        kind => unreachable!("{pattern} is a Unicode class, not {kind:?}"),
    }
}

/// The table of classes, to be fetched once per text.
pub(crate) fn classes() -> Classes {
    Classes(&CLASSES)
}

/// Classes of characters.
#[derive(Clone, Copy)]
pub(crate) struct Classes(&'static [u8]);

impl Classes {
    /// Union of the class bits of `c`.
    #[inline]
    pub(crate) fn of(self, c: char) -> u8 {
        self.0[c as usize]
    }

    /// Class bits of the character that starts at `at`, and its length; (0, 0) at the end of the text.
    #[inline]
    pub(crate) fn at(self, text: &str, at: usize) -> (u8, usize) {
        match text.as_bytes().get(at) {
            None => (0, 0),
            Some(&byte) if byte < 0x80 => (self.0[usize::from(byte)], 1),
            Some(_) => {
                let c = text[at..].chars().next().expect("the byte starts a character");
                (self.of(c), c.len_utf8())
            }
        }
    }

    /// End of the run of characters from `at` on that have any of `wanted` and none of `refused`.
    #[inline]
    pub(crate) fn run(self, text: &str, mut at: usize, wanted: u8, refused: u8) -> usize {
        loop {
            let (class, len) = self.at(text, at);
            if len == 0 || class & wanted == 0 || class & refused != 0 {
                return at;
            }
            at += len;
        }
    }

    /// End of the run of characters from `at` on that have none of `refused`.
    #[inline]
    pub(crate) fn run_without(self, text: &str, mut at: usize, refused: u8) -> usize {
        loop {
            let (class, len) = self.at(text, at);
            if len == 0 || class & refused != 0 {
                return at;
            }
            at += len;
        }
    }
}

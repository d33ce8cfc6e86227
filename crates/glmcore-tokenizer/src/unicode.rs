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

/// Classes of every scalar value, by pages of 256 of which equal ones are stored once: the few pages of a text stay near.
struct Table {
    page_of: [u8; NUM_PAGES],
    pages: Vec<[u8; 256]>,
}

const NUM_PAGES: usize = 0x11_0000 / 256;

static CLASSES: LazyLock<Table> = LazyLock::new(|| {
    let mut classes = vec![0_u8; 0x11_0000];
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
    let mut table = Table { page_of: [0; NUM_PAGES], pages: Vec::new() };
    for (place, page) in table.page_of.iter_mut().zip(classes.chunks_exact(256)) {
        let known = table.pages.iter().position(|known| known == page).unwrap_or_else(|| {
            table.pages.push(page.try_into().expect("chunks have 256 entries"));
            table.pages.len() - 1
        });
        *place = u8::try_from(known).expect("Unicode has fewer than 256 different pages");
    }
    table
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
pub(crate) struct Classes(&'static Table);

impl Classes {
    /// Union of the class bits of `c`.
    #[inline]
    pub(crate) fn of(self, c: char) -> u8 {
        self.of_code(c as usize)
    }

    #[inline(always)]
    fn of_code(self, code: usize) -> u8 {
        self.0.pages[usize::from(self.0.page_of[code >> 8])][code & 0xff]
    }

    /// Class bits of the character that starts at `at`, and its length; (0, 0) at the end of the text.
    #[inline(always)]
    pub(crate) fn at(self, text: &str, at: usize) -> (u8, usize) {
        let bytes = text.as_bytes();
        let Some(&first) = bytes.get(at) else { return (0, 0) };
        let rest = |place: usize| usize::from(bytes[at + place] & 0x3f);
        let first = usize::from(first);
        let (code, len) = match first {
            0..0x80 => (first, 1),
            0x80..0xe0 => ((first & 0x1f) << 6 | rest(1), 2),
            0xe0..0xf0 => ((first & 0x0f) << 12 | rest(1) << 6 | rest(2), 3),
            _ => ((first & 0x07) << 18 | rest(1) << 12 | rest(2) << 6 | rest(3), 4),
        };
        (self.of_code(code), len)
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

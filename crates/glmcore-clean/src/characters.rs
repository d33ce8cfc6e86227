//! What a character is to the filters, by table.

use std::sync::LazyLock;

/// Letter (the Unicode property Alphabetic).
pub(crate) const LETTER: u8 = 1;
/// Part of a token: letter or number, or a mark that stands inside words.
pub(crate) const TOKEN: u8 = 2;
/// White space.
pub(crate) const SPACE: u8 = 4;
/// Of a script that puts no spaces between words; a token by itself.
pub(crate) const UNSPACED: u8 = 8;
/// Has another lower case.
pub(crate) const UPPER: u8 = 16;
/// Ends a sentence.
pub(crate) const TERMINAL: u8 = 32;
/// May stand between the end of a sentence and the white space: quotes and brackets.
pub(crate) const CLOSING: u8 = 64;
/// Punctuation of unspaced scripts: parts words as white space does.
pub(crate) const SEPARATOR: u8 = 128;

/// Classes of the characters below U+0080, so that most text needs no other table.
static ASCII: [u8; 128] = {
    let mut table = [0; 128];
    let mut c = 0_u8;
    while c < 128 {
        table[c as usize] = match c {
            b'a'..=b'z' => LETTER | TOKEN,
            b'A'..=b'Z' => LETTER | TOKEN | UPPER,
            b'0'..=b'9' => TOKEN,
            b'\t'..=b'\r' | b' ' => SPACE,
            b'.' | b'!' | b'?' => TERMINAL,
            b'"' | b'\'' | b')' | b']' => CLOSING,
            _ => 0,
        };
        c += 1;
    }
    table
};

/// Two levels, equal pages of 256 characters stored once.
struct Table {
    page_of: Vec<u16>,
    pages: Vec<[u8; 256]>,
}

static TABLE: LazyLock<Table> = LazyLock::new(|| {
    let mut table = Table { page_of: Vec::new(), pages: Vec::new() };
    for page in 0..=0x10ff_u32 {
        let class = |low| char::from_u32((page << 8) | low).map_or(0, classify);
        let classes: [u8; 256] =
            std::array::from_fn(|low| class(u32::try_from(low).expect("below 256")));
        let place = table.pages.iter().position(|other| *other == classes);
        let place = place.unwrap_or_else(|| {
            table.pages.push(classes);
            table.pages.len() - 1
        });
        table.page_of.push(u16::try_from(place).expect("there are 4,352 pages"));
    }
    table
});

/// Classes of characters; hold it outside of loops.
#[derive(Clone, Copy)]
pub(crate) struct Classes(&'static Table);

impl Classes {
    pub(crate) fn get() -> Self {
        Self(&TABLE)
    }

    /// The classes of `c`.
    #[inline]
    pub(crate) fn of(self, c: char) -> u8 {
        let c = c as usize;
        self.0.pages[usize::from(self.0.page_of[c >> 8])][c & 255]
    }

    /// The character of `text` that begins at byte `at`, its classes and its bytes.
    #[inline]
    pub(crate) fn next(self, text: &str, at: usize) -> (char, u8, usize) {
        let byte = text.as_bytes()[at];
        if let Some(&class) = ASCII.get(usize::from(byte)) {
            return (char::from(byte), class, 1);
        }
        let c = text[at..].chars().next().expect("there is a character left");
        (c, self.of(c), c.len_utf8())
    }
}

fn classify(c: char) -> u8 {
    if c.is_ascii() {
        return ASCII[c as usize];
    }
    let mut class = 0;
    if c.is_alphabetic() {
        class |= LETTER;
    }
    if c.is_alphanumeric() || stands_inside_words(c) {
        class |= TOKEN;
    }
    if c.is_alphanumeric() && is_unspaced(c) {
        class |= UNSPACED;
    }
    if c.is_whitespace() {
        class |= SPACE;
    }
    if c.is_uppercase() || c.to_lowercase().next() != Some(c) {
        class |= UPPER;
    }
    if matches!(c, '\u{2026}' | '。' | '！' | '？' | '｡' | '؟' | '۔' | '।' | '॥' | '։' | '።')
    {
        class |= TERMINAL;
    }
    if matches!(c, '\u{2019}' | '\u{201d}' | '»' | '」' | '』' | '）' | '】' | '》') {
        class |= CLOSING;
    }
    if matches!(c, '\u{3001}'..='\u{3003}' | '\u{3008}'..='\u{301f}' | '\u{30fb}')
        || matches!(c, '\u{ff01}'..='\u{ff0f}' | '\u{ff1a}'..='\u{ff20}' | '\u{ff3b}'..='\u{ff40}' | '\u{ff5b}'..='\u{ff65}')
    {
        class |= SEPARATOR;
    }
    class
}

/// Combining accents, joiners and the Indic vowel killers: no letters, but no ends of words either.
fn stands_inside_words(c: char) -> bool {
    matches!(c, '\u{300}'..='\u{36f}' | '\u{200c}' | '\u{200d}')
        || matches!(c as u32, 0x94d | 0x9cd | 0xa4d | 0xacd | 0xb4d | 0xbcd | 0xc4d | 0xccd | 0xd4d)
}

/// Han, Kana, Bopomofo, Thai, Lao, Myanmar, Khmer.
fn is_unspaced(c: char) -> bool {
    matches!(c as u32,
        0x2e80..=0x2fdf | 0x3005..=0x3007 | 0x3021..=0x3029 | 0x3040..=0x312f | 0x31a0..=0x31ff
        | 0x3400..=0x4dbf | 0x4e00..=0x9fff | 0xf900..=0xfaff | 0xff66..=0xff9f
        | 0x1b000..=0x1b16f | 0x20000..=0x3ffff
        | 0xe00..=0xeff | 0x1000..=0x109f | 0x1780..=0x17ff | 0xa9e0..=0xa9ff | 0xaa60..=0xaa7f)
}

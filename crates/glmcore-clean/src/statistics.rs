//! What the published filters look at in prose, in one pass over each text.

use std::ops::Range;

use xxhash_rust::xxh3::xxh3_64;

use crate::characters::{CLOSING, Classes, LETTER, SEPARATOR, SPACE, TERMINAL, UNSPACED};
use crate::hash::{START, mix, step};
use crate::repetition::{Parts, Repetition, share};
use crate::threads::map_texts;

/// Names of the numbers that [`text_statistics`] gives. docs/cleaning.md defines each.
pub const TEXT_FIELDS: [&str; 36] = [
    "num_bytes",
    "num_chars",
    "num_words",
    "num_lines",
    "num_paragraphs",
    "num_sentences",
    "num_stop_words",
    "num_curly_brackets",
    "num_lorem_ipsum",
    "mean_word_length",
    "max_word_length",
    "mean_line_length",
    "hash_word_ratio",
    "ellipsis_word_ratio",
    "newline_word_ratio",
    "alphabetic_word_share",
    "letter_share",
    "digit_share",
    "unspaced_share",
    "bullet_line_share",
    "ellipsis_line_share",
    "punctuated_line_share",
    "short_line_share",
    "duplicate_line_share",
    "duplicate_line_char_share",
    "duplicate_paragraph_share",
    "duplicate_paragraph_char_share",
    "top_2gram_char_share",
    "top_3gram_char_share",
    "top_4gram_char_share",
    "duplicate_5gram_char_share",
    "duplicate_6gram_char_share",
    "duplicate_7gram_char_share",
    "duplicate_8gram_char_share",
    "duplicate_9gram_char_share",
    "duplicate_10gram_char_share",
];

/// Gopher's stop words: a text in English has at least two of them.
const STOP_WORDS: [u64; 8] = [
    word(b"the"),
    word(b"be"),
    word(b"to"),
    word(b"of"),
    word(b"and"),
    word(b"that"),
    word(b"have"),
    word(b"with"),
];
const LOREM: u64 = word(b"lorem");
const IPSUM: u64 = word(b"ipsum");

/// The letters of a short word as a number.
const fn word(letters: &[u8]) -> u64 {
    let (mut all, mut at) = (0, 0);
    while at < letters.len() {
        all = all << 8 | letters[at] as u64;
        at += 1;
    }
    all
}

/// Lines of fewer characters are short (`FineWeb`).
const SHORT_LINE: u64 = 30;

/// The numbers named by [`TEXT_FIELDS`] for each text.
///
/// Lines, paragraphs and words past the first 131,072 of a kind are counted but not searched for copies.
pub fn text_statistics<T: AsRef<str> + Sync>(
    texts: &[T],
    num_threads: usize,
) -> Vec<[f64; TEXT_FIELDS.len()]> {
    map_texts(texts, num_threads, Counter::default, Counter::count)
}

/// Counts of one text, and memory that serves the next one too.
#[derive(Default)]
struct Counter {
    repetition: Repetition,
    lines: Parts,
    paragraphs: Parts,
    counts: Counts,
}

#[derive(Default)]
struct Counts {
    chars: u64,
    words: u64,
    word_chars: u64,
    longest_word: u64,
    letters: u64,
    digits: u64,
    unspaced: u64,
    hashes: u64,
    ellipses: u64,
    curly_brackets: u64,
    alphabetic_words: u64,
    sentences: u64,
    /// A bit for each of [`STOP_WORDS`].
    stop_words: u8,
    lorem_ipsum: u64,
    after_lorem: bool,
    newlines: u64,
    bullet_lines: u64,
    ellipsis_lines: u64,
    punctuated_lines: u64,
    short_lines: u64,
}

/// A word that is being read.
#[derive(Clone, Copy)]
struct Word {
    start: usize,
    hash: u64,
    chars: u64,
    classes: u8,
    /// Whether it ends a sentence, closing quotes and brackets aside.
    ends: bool,
}

impl Word {
    fn new(start: usize) -> Self {
        Self { start, hash: START, chars: 0, classes: 0, ends: false }
    }
}

/// A line that was read, without the white space around it.
#[derive(Default)]
struct Line {
    bytes: Range<usize>,
    /// Counted from the line's beginning.
    chars: Range<u64>,
    /// Where the next line begins.
    next: usize,
}

impl Line {
    /// Extends the line over what is no white space.
    #[inline]
    fn cover(&mut self, bytes: Range<usize>, chars: Range<u64>) {
        if self.chars.is_empty() {
            (self.bytes.start, self.chars.start) = (bytes.start, chars.start);
        }
        (self.bytes.end, self.chars.end) = (bytes.end, chars.end);
    }

    fn len(&self) -> u64 {
        self.chars.end - self.chars.start
    }
}

impl Counter {
    fn count(&mut self, text: &str) -> [f64; TEXT_FIELDS.len()] {
        self.repetition.clear();
        self.lines.clear();
        self.paragraphs.clear();
        self.counts = Counts::default();
        let mut paragraph = (0_u64, 0_u64); // hash and characters
        let mut at = 0;
        while at < text.len() {
            let line = self.line(text, at);
            at = line.next;
            if line.len() == 0 {
                self.end_paragraph(&mut paragraph);
                continue;
            }
            let written = &text[line.bytes.clone()];
            let hash = xxh3_64(written.as_bytes());
            self.lines.push(hash, line.len());
            paragraph = (mix(paragraph.0 ^ hash), paragraph.1 + line.len());
            self.counts.bullet_lines += u64::from(written.starts_with(is_bullet));
            self.counts.ellipsis_lines +=
                u64::from(written.ends_with('\u{2026}') || written.ends_with("..."));
            self.counts.punctuated_lines += u64::from(written.ends_with(ends_line));
            self.counts.short_lines += u64::from(line.len() < SHORT_LINE);
        }
        self.end_paragraph(&mut paragraph);
        self.values(text.len())
    }

    fn end_paragraph(&mut self, paragraph: &mut (u64, u64)) {
        if paragraph.1 > 0 {
            self.paragraphs.push(paragraph.0, paragraph.1);
        }
        *paragraph = (0, 0);
    }

    /// Counts the words of the line that begins at `at`.
    fn line(&mut self, text: &str, mut at: usize) -> Line {
        let classes = Classes::get();
        let bytes = text.as_bytes();
        let mut line = Line::default();
        let (mut chars, mut letters) = (0, 0);
        let mut word = Word::new(at);
        loop {
            let start = at;
            while at < bytes.len() && bytes[at].is_ascii_alphabetic() {
                word.hash = step(word.hash, bytes[at].into());
                at += 1;
            }
            if at > start {
                let more = (at - start) as u64;
                (letters, chars, word.chars) = (letters + more, chars + more, word.chars + more);
                word.classes |= LETTER;
                word.ends = false;
            }
            if at == bytes.len() {
                break;
            }
            let (c, class, len) = classes.next(text, at);
            if class & (SPACE | SEPARATOR | UNSPACED) == 0 {
                chars += 1;
                letters += u64::from(class & LETTER);
                word.hash = step(word.hash, c.into());
                word.chars += 1;
                word.classes |= class;
                word.ends = class & TERMINAL != 0 || (word.ends && class & CLOSING != 0);
                self.symbol(bytes, at, c);
                at += len;
                continue;
            }
            if word.chars > 0 {
                line.cover(word.start..at, chars - word.chars..chars);
                self.end_word(bytes, word, at);
            }
            chars += 1;
            letters += u64::from(class & LETTER);
            at += len;
            if class & SPACE == 0 {
                line.cover(at - len..at, chars - 1..chars);
                if class & UNSPACED != 0 {
                    self.unspaced_word(c, class);
                } else if class & TERMINAL != 0 {
                    self.counts.sentences += 1;
                }
            }
            word = Word::new(at);
            if c == '\n' {
                self.counts.newlines += 1;
                break;
            }
        }
        if word.chars > 0 {
            line.cover(word.start..at, chars - word.chars..chars);
            self.end_word(bytes, word, at);
        }
        self.counts.chars += chars;
        self.counts.letters += letters;
        line.next = at;
        line
    }

    /// Counts a word of one character.
    #[inline]
    fn unspaced_word(&mut self, c: char, class: u8) {
        let counts = &mut self.counts;
        counts.words += 1;
        counts.word_chars += 1;
        counts.longest_word = counts.longest_word.max(1);
        counts.alphabetic_words += u64::from(class & LETTER);
        counts.unspaced += u64::from(class & LETTER);
        counts.after_lorem = false;
        self.repetition.push(mix(step(START, c.into())), 1);
    }

    /// Counts a character that is no letter.
    #[inline]
    fn symbol(&mut self, bytes: &[u8], at: usize, c: char) {
        let counts = &mut self.counts;
        match c {
            '0'..='9' => counts.digits += 1,
            '#' => counts.hashes += 1,
            '{' | '}' => counts.curly_brackets += 1,
            '\u{2026}' => counts.ellipses += 1,
            // A run of three dots or more counts once: at its third.
            '.' => {
                let third = at > 1 && bytes[at - 2..at] == *b"..";
                counts.ellipses += u64::from(third && (at == 2 || bytes[at - 3] != b'.'));
            }
            _ => {}
        }
    }

    #[inline]
    fn end_word(&mut self, bytes: &[u8], word: Word, end: usize) {
        let counts = &mut self.counts;
        counts.words += 1;
        counts.word_chars += word.chars;
        counts.longest_word = counts.longest_word.max(word.chars);
        counts.alphabetic_words += u64::from(word.classes & LETTER);
        counts.sentences += u64::from(word.ends);
        let after_lorem = std::mem::take(&mut counts.after_lorem);
        if (2..=5).contains(&(end - word.start)) {
            // The bit that tells lower from upper case is set in all.
            match bytes[word.start..end]
                .iter()
                .fold(0, |all, &byte| all << 8 | u64::from(byte | 32))
            {
                LOREM => counts.after_lorem = true,
                IPSUM => counts.lorem_ipsum += u64::from(after_lorem),
                letters => {
                    for (bit, stop) in STOP_WORDS.iter().enumerate() {
                        counts.stop_words |= u8::from(letters == *stop) << bit;
                    }
                }
            }
        }
        self.repetition.push(mix(word.hash), word.chars);
    }

    fn values(&mut self, num_bytes: usize) -> [f64; TEXT_FIELDS.len()] {
        let repetition = self.repetition.shares();
        let lines = self.lines.shares();
        let paragraphs = self.paragraphs.shares();
        let counts = &self.counts;
        let num_lines = self.lines.count;
        let head = [
            num_bytes as f64,
            counts.chars as f64,
            counts.words as f64,
            num_lines as f64,
            self.paragraphs.count as f64,
            counts.sentences as f64,
            f64::from(counts.stop_words.count_ones()),
            counts.curly_brackets as f64,
            counts.lorem_ipsum as f64,
            share(counts.word_chars, counts.words),
            counts.longest_word as f64,
            share(self.lines.chars, num_lines),
            share(counts.hashes, counts.words),
            share(counts.ellipses, counts.words),
            share(counts.newlines, counts.words),
            share(counts.alphabetic_words, counts.words),
            share(counts.letters, counts.word_chars),
            share(counts.digits, counts.word_chars),
            share(counts.unspaced, counts.letters),
            share(counts.bullet_lines, num_lines),
            share(counts.ellipsis_lines, num_lines),
            share(counts.punctuated_lines, num_lines),
            share(counts.short_lines, num_lines),
        ];
        let mut values = [0.0; TEXT_FIELDS.len()];
        let tail = lines.iter().chain(&paragraphs).chain(&repetition.top).chain(&repetition.copies);
        for (value, known) in values.iter_mut().zip(head.iter().chain(tail)) {
            *value = *known;
        }
        values
    }
}

fn is_bullet(c: char) -> bool {
    matches!(
        c,
        '-' | '*'
            | '\u{b7}'
            | '\u{2022}'
            | '\u{2023}'
            | '\u{2043}'
            | '\u{25a0}'
            | '\u{25aa}'
            | '\u{25ab}'
            | '\u{25cb}'
            | '\u{25cf}'
            | '\u{25e6}'
    )
}

fn ends_line(c: char) -> bool {
    matches!(c, '"' | '\'' | '\u{2019}' | '\u{201d}' | '」' | '』')
        || Classes::get().of(c) & TERMINAL != 0
}

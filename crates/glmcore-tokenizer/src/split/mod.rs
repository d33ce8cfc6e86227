//! Splitting a text into the words that are merged on their own.
//!
//! The patterns of well-known tokenizers have scanners written by hand; every other pattern runs on a general engine for
//! regular expressions.

mod general;
mod instructions;
mod scan;
mod window;

pub(crate) use general::{General, Stage};
pub(crate) use instructions::{Instructions, Task, dispatch};

use crate::unicode::{Classes, classes};

/// GLM-4's pattern, which is also that of Llama 3 and of cl100k in Hugging Face's form.
pub const GLM4_PATTERN: &str = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+";
/// cl100k in tiktoken's form, which keeps white space at the end of a text together.
pub const CL100K_PATTERN: &str = r"'(?i:[sdmt]|ll|ve|re)|[^\r\n\p{L}\p{N}]?+\p{L}++|\p{N}{1,3}+| ?[^\s\p{L}\p{N}]++[\r\n]*+|\s++$|\s*[\r\n]|\s+(?!\S)|\s";
/// Qwen 2 and 3.
pub const QWEN2_PATTERN: &str = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+";
/// o200k.
pub const O200K_PATTERN: &str = r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+(?i:'s|'t|'re|'ve|'m|'ll|'d)?|[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*(?i:'s|'t|'re|'ve|'m|'ll|'d)?|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+";
/// GPT-2, which is also what Hugging Face's `ByteLevel` splits by.
pub const GPT2_PATTERN: &str =
    r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+";
/// `DeepSeek` V3 and V4 split three times.
pub const DEEPSEEK_PATTERNS: [&str; 3] = [
    r"\p{N}{1,3}",
    r"[一-龥぀-ゟ゠-ヿ]+",
    r##"[!"#$%&'()*+,\-./:;<=>?@\[\\\]^_`{|}~][A-Za-z]+|[^\r\n\p{L}\p{P}\p{S}]?[\p{L}\p{M}]+| ?[\p{P}\p{S}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"##,
];

/// A pattern with a scanner of its own.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Known {
    /// GLM-4 and its relatives.
    Words { max_digits: usize, whole_tail: bool },
    /// o200k.
    CasedWords,
    /// GPT-2.
    SpacedWords,
    /// `DeepSeek` V3.
    DeepSeek,
}

impl Known {
    /// The scanner for stages that all keep what their patterns leave out.
    pub(crate) fn of_patterns(patterns: &[&str]) -> Option<Self> {
        match *patterns {
            [GLM4_PATTERN] => Some(Self::Words { max_digits: 3, whole_tail: false }),
            [CL100K_PATTERN] => Some(Self::Words { max_digits: 3, whole_tail: true }),
            [QWEN2_PATTERN] => Some(Self::Words { max_digits: 1, whole_tail: false }),
            [O200K_PATTERN] => Some(Self::CasedWords),
            [GPT2_PATTERN] => Some(Self::SpacedWords),
            [a, b, c] if [a, b, c] == DEEPSEEK_PATTERNS => Some(Self::DeepSeek),
            _ => None,
        }
    }
}

/// How a tokenizer splits text.
#[derive(Debug)]
pub(crate) enum Splitter {
    Known(Known),
    General(General),
}

impl Splitter {
    /// Calls `visit` with the bounds of each word of `text`, in order.
    pub(crate) fn for_each_word(&self, text: &str, mut visit: impl FnMut(usize, usize)) {
        match self {
            Self::Known(known) => dispatch(Visit { known: *known, text, each: visit }),
            Self::General(general) => general.for_each_word(text, &mut visit),
        }
    }
}

/// The words of a text, to be visited.
struct Visit<'t, F> {
    known: Known,
    text: &'t str,
    each: F,
}

impl<F: FnMut(usize, usize)> Task for Visit<'_, F> {
    #[inline(always)]
    fn run<I: Instructions>(mut self, instructions: I) {
        let mut cuts = Cuts::new(self.known, self.text);
        let mut ends = [0; BATCH];
        let mut start = 0;
        loop {
            let count = cuts.fill(instructions, &mut ends);
            for &end in &ends[..count] {
                (self.each)(start, end);
                start = end;
            }
            if count == 0 {
                return;
            }
        }
    }
}

/// Ends of words asked for at a time; a window of 64 bytes always has room.
pub(crate) const BATCH: usize = 256;
const WINDOW: usize = 64;

/// The ends of the words of a text, which follow each other without a gap.
pub(crate) struct Cuts<'t> {
    known: Known,
    classes: Classes,
    text: &'t str,
    at: usize,
    /// Ends of the pieces of the first two stages of `DeepSeek`'s splitting.
    outer: usize,
    inner: usize,
}

impl<'t> Cuts<'t> {
    pub(crate) fn new(known: Known, text: &'t str) -> Self {
        Self { known, classes: classes(), text, at: 0, outer: 0, inner: 0 }
    }

    /// End of the next word, if there is one.
    #[inline]
    pub(crate) fn next_end(&mut self) -> Option<usize> {
        if self.at == self.text.len() {
            return None;
        }
        let (classes, text, at) = (self.classes, self.text, self.at);
        self.at = match self.known {
            Known::Words { max_digits, whole_tail } => {
                scan::words_with_contractions(classes, text, at, max_digits, whole_tail)
            }
            Known::CasedWords => scan::cased_words(classes, text, at),
            Known::SpacedWords => scan::spaced_words(classes, text, at),
            Known::DeepSeek => {
                if at == self.outer {
                    self.outer = scan::number_groups(classes, text, at);
                }
                if at == self.inner {
                    self.inner = scan::cjk_runs(&text[..self.outer], at);
                }
                scan::deepseek_words(classes, &text[..self.inner], at)
            }
        };
        Some(self.at)
    }

    /// Writes the ends of the next words and gives their number, 0 at the end of the text.
    #[inline(always)]
    pub(crate) fn fill<I: Instructions>(
        &mut self,
        instructions: I,
        ends: &mut [usize; BATCH],
    ) -> usize {
        match self.known {
            Known::Words { max_digits, whole_tail } if I::WIDE => {
                self.fill_by_window(instructions, ends, max_digits, whole_tail)
            }
            _ => self.fill_by_scan(ends),
        }
    }

    fn fill_by_scan(&mut self, ends: &mut [usize; BATCH]) -> usize {
        for (place, slot) in ends.iter_mut().enumerate() {
            match self.next_end() {
                Some(end) => *slot = end,
                None => return place,
            }
        }
        BATCH
    }

    #[inline(always)]
    fn fill_by_window<I: Instructions>(
        &mut self,
        instructions: I,
        ends: &mut [usize; BATCH],
        max_digits: usize,
        whole_tail: bool,
    ) -> usize {
        let mut count = 0;
        while self.at < self.text.len() && count + WINDOW <= BATCH {
            let found =
                window::cut(instructions, self.classes, self.text, self.at, max_digits, whole_tail);
            if found.ends == 0 {
                ends[count] = self.next_end().expect("text is left");
                count += 1;
                continue;
            }
            // The next window does not wait until the ends of this one are written.
            let at = self.at;
            self.at = if found.whole {
                self.text.len()
            } else {
                at + 63 - found.ends.leading_zeros() as usize
            };
            let mut left = found.ends;
            while left != 0 {
                ends[count] = at + left.trailing_zeros() as usize;
                left &= left - 1;
                count += 1;
            }
            if found.whole {
                ends[count] = self.text.len();
                count += 1;
            }
        }
        count
    }
}

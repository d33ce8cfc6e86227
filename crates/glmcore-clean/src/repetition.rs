//! Repeated runs of words: the most frequent short ones, and how much text lies inside copies of longer ones.

use crate::hash::BASE;
use crate::table::Table;

/// Words of a text that are searched for repeated runs: the first 131,072. Longer texts are rejected for their length by
/// Gopher's rules, and the bound keeps a thread's tables below 8 MiB.
pub const MAX_WORDS: usize = 1 << 17;

/// Words per run whose most frequent one is looked for.
const TOP: std::ops::RangeInclusive<usize> = 2..=4;
/// Words per run whose copies are looked for.
pub(crate) const LONGEST: usize = 10;

/// The words of a text, and memory to search them in.
#[derive(Default)]
pub(crate) struct Repetition {
    hashes: Vec<u64>,
    /// Where each word begins when words are written without spaces, in characters.
    starts: Vec<u64>,
    /// Where the last word ends.
    end: u64,
    table: Table,
    /// Places in the text whose runs of some length occur more than once.
    runs: Vec<Run>,
}

struct Run {
    at: u32,
    /// In the table.
    place: u32,
    hash: u64,
}

/// Shares of the text's characters without white space, from 0 to 1.
#[derive(Debug, Default, Clone, Copy)]
pub(crate) struct Shares {
    /// In the most frequent run of 2, 3 and 4 words.
    pub(crate) top: [f64; 3],
    /// In second and later copies of runs of 5 to 10 words.
    pub(crate) copies: [f64; 6],
}

impl Repetition {
    /// Forgets all words.
    pub(crate) fn clear(&mut self) {
        self.hashes.clear();
        self.starts.clear();
        self.end = 0;
    }

    /// Adds a word of `length` characters.
    #[inline]
    pub(crate) fn push(&mut self, hash: u64, length: u64) {
        if self.hashes.len() < MAX_WORDS {
            self.hashes.push(hash);
            self.starts.push(self.end);
            self.end += length;
        }
    }

    /// How much of the text repeats itself.
    ///
    /// A run of n + 1 words that occurs twice begins with a run of n words that occurs twice, so each length is searched
    /// only where the one before repeated itself: on prose little is left after two words.
    pub(crate) fn shares(&mut self) -> Shares {
        let mut shares = Shares::default();
        let total = self.end.max(1) as f64;
        self.starts.push(self.end);
        self.pairs();
        for length in 2..=LONGEST {
            if length > 2 {
                self.lengthen(length);
            }
            let Self { runs, table, .. } = self;
            runs.retain(|run| table.at(run.place).count > 1);
            if runs.is_empty() {
                break;
            }
            if TOP.contains(&length) {
                shares.top[length - 2] = (self.top(length) as f64 / total).min(1.0);
            } else {
                shares.copies[length - 5] = self.copies(length) as f64 / total;
            }
        }
        shares
    }

    /// Counts the runs of two words.
    fn pairs(&mut self) {
        self.table.clear(self.hashes.len());
        self.runs.clear();
        for (at, pair) in (0..).zip(self.hashes.windows(2)) {
            let hash = pair[0].wrapping_mul(BASE).wrapping_add(pair[1]);
            self.runs.push(Run { at, place: self.table.add(hash, at), hash });
        }
    }

    /// Makes each run one word longer, up to `length`, and counts it.
    fn lengthen(&mut self, length: usize) {
        let last = self.hashes.len().saturating_sub(length - 1);
        self.table.clear(self.runs.len());
        while self.runs.last().is_some_and(|run| run.at as usize >= last) {
            self.runs.pop();
        }
        for run in &mut self.runs {
            let word = self.hashes[run.at as usize + length - 1];
            run.hash = run.hash.wrapping_mul(BASE).wrapping_add(word);
            run.place = self.table.add(run.hash, run.at);
        }
    }

    /// Characters in all occurrences of the most frequent run; of the longest of those that are as frequent.
    fn top(&self, length: usize) -> u64 {
        let best = self.runs.iter().map(|run| {
            let at = run.at as usize;
            (self.table.at(run.place).count, self.starts[at + length] - self.starts[at])
        });
        best.max().map_or(0, |(count, characters)| u64::from(count) * characters)
    }

    /// Characters inside runs that occurred before, each counted once.
    fn copies(&self, length: usize) -> u64 {
        let mut characters = 0;
        let mut counted = 0; // words before this one are counted
        for run in &self.runs {
            if self.table.at(run.place).first < run.at {
                let at = run.at as usize;
                characters += self.starts[at + length] - self.starts[at.max(counted)];
                counted = at + length;
            }
        }
        characters
    }
}

/// Lines or paragraphs, and what of them was there before.
#[derive(Default)]
pub(crate) struct Parts {
    hashes: Vec<(u64, u64)>,
    table: Table,
    pub(crate) count: u64,
    pub(crate) chars: u64,
}

impl Parts {
    pub(crate) fn clear(&mut self) {
        self.hashes.clear();
        (self.count, self.chars) = (0, 0);
    }

    pub(crate) fn push(&mut self, hash: u64, chars: u64) {
        self.count += 1;
        self.chars += chars;
        if self.hashes.len() < MAX_WORDS {
            self.hashes.push((hash, chars));
        }
    }

    /// Share of second and later copies by number and by characters.
    pub(crate) fn shares(&mut self) -> [f64; 2] {
        self.table.clear(self.hashes.len());
        let (mut count, mut characters) = (0, 0);
        for (at, &(hash, chars)) in (0..).zip(&self.hashes) {
            let place = self.table.add(hash, at);
            if self.table.at(place).first < at {
                count += 1;
                characters += chars;
            }
        }
        [share(count, self.count), share(characters, self.chars)]
    }
}

/// `part / whole`; 0 of nothing.
pub(crate) fn share(part: u64, whole: u64) -> f64 {
    if whole == 0 { 0.0 } else { part as f64 / whole as f64 }
}

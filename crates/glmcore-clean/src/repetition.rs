//! Repeated runs of words: the most frequent short ones, and how much text lies inside copies of longer ones.

use crate::hash::{BASE, mix};
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
    /// Where each word begins when words are written without spaces, in characters, and where the last ends.
    starts: Vec<u64>,
    table: Table,
    /// Places in the text whose run is still searched: where it begins, its hash, its place in the table.
    runs: Vec<Run>,
}

struct Run {
    at: u32,
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
        self.starts.push(0);
    }

    /// Adds a word of `length` characters.
    #[inline]
    pub(crate) fn push(&mut self, hash: u64, length: u64) {
        if self.hashes.len() < MAX_WORDS {
            self.hashes.push(hash);
            self.starts.push(self.starts[self.starts.len() - 1] + length);
        }
    }

    /// How much of the text repeats itself.
    ///
    /// A run of n + 1 words that occurs twice begins with a run of n words that occurs twice, so each length is searched
    /// only where the one before repeated itself: on prose little is left after two words.
    pub(crate) fn shares(&mut self) -> Shares {
        let mut shares = Shares::default();
        let total = self.starts[self.hashes.len()].max(1) as f64;
        self.runs.clear();
        for (at, &hash) in (0..).zip(&self.hashes) {
            self.runs.push(Run { at, place: 0, hash });
        }
        for length in 2..=LONGEST {
            self.count(length);
            if TOP.contains(&length) {
                shares.top[length - 2] = (self.top(length) as f64 / total).min(1.0);
            } else {
                shares.copies[length - 5] = self.copies(length) as f64 / total;
            }
            let Self { runs, table, .. } = self;
            runs.retain(|run| table.at(run.place).count > 1);
            if runs.is_empty() {
                break;
            }
        }
        shares
    }

    /// Makes each run one word longer, up to `length`, and counts it.
    fn count(&mut self, length: usize) {
        let last = self.hashes.len().saturating_sub(length - 1);
        self.runs.retain(|run| (run.at as usize) < last);
        self.table.clear(self.runs.len());
        for run in &mut self.runs {
            let word = self.hashes[run.at as usize + length - 1];
            run.hash = run.hash.wrapping_mul(BASE).wrapping_add(word);
            run.place = self.table.add(mix(run.hash), run.at);
        }
    }

    /// Characters in all occurrences of the most frequent run; of the longest of those that are as frequent.
    fn top(&self, length: usize) -> u64 {
        let mut best = (1, 0);
        for run in &self.runs {
            let count = self.table.at(run.place).count;
            if count > 1 && count >= best.0 {
                let at = run.at as usize;
                best = best.max((count, self.starts[at + length] - self.starts[at]));
            }
        }
        u64::from(best.0) * best.1
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

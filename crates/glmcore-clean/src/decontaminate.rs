//! Overlap of training texts with evaluation texts.
//!
//! A training text is contaminated where it shares a run of n tokens with an evaluation text: 13 for GPT-3 (Brown et al.,
//! arXiv:2005.14165, appendix C), 8 for Llama 3 (arXiv:2407.21783, section 5.1.4). Runs are compared by 64-bit hashes: of
//! m runs of evaluation texts and t of training texts, `m t / 2^64` match by chance.

use crate::hash::{BASE, mix, power};
use crate::threads::map_texts;
use crate::tokens::{for_each_letter, for_each_token};
use crate::{Error, setting};

/// Longest run of tokens.
const MAX_NGRAM: usize = 256;

/// The runs of tokens of evaluation texts.
#[derive(Debug, Clone)]
pub struct Decontaminator {
    unit: Unit,
    /// Sets of runs by their length, the longest first.
    sets: Vec<Runs>,
    num_skipped: usize,
}

/// What runs are made of.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Unit {
    /// Runs of letters and numbers, or one character of a script without spaces between words.
    Token,
    /// Letters and numbers one by one, as in GPT-4's report (arXiv:2303.08774, appendix C): 50 of them.
    Letter,
}

impl Unit {
    #[inline]
    fn for_each(self, text: &str, unit: impl FnMut(u64, usize, usize)) {
        match self {
            Self::Token => for_each_token(text, unit),
            Self::Letter => for_each_letter(text, unit),
        }
    }
}

/// What a training text shares with the evaluation texts.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Overlaps {
    /// Share of the text's units inside shared runs, from 0 to 1.
    pub share: f64,
    /// Bytes of the text that shared runs cover, in order, apart from each other.
    pub spans: Vec<(usize, usize)>,
}

impl Decontaminator {
    /// Runs of `ngram` units of `texts`. A shorter text counts as a whole if it has `min_units`; the rest is skipped.
    ///
    /// # Errors
    ///
    /// [`Error::Setting`] unless `1 <= min_units <= ngram <= 256`.
    pub fn new<T: AsRef<str>>(
        texts: &[T],
        unit: Unit,
        ngram: usize,
        min_units: usize,
    ) -> Result<Self, Error> {
        if !(1..=MAX_NGRAM).contains(&ngram) {
            return Err(setting("ngram", ngram, "from 1 to 256"));
        }
        if !(1..=ngram).contains(&min_units) {
            return Err(setting("min_units", min_units, "at least 1 and at most ngram"));
        }
        let mut hashes: Vec<Vec<u64>> = vec![Vec::new(); ngram + 1];
        let mut num_skipped = 0;
        let mut units = Vec::new();
        for text in texts {
            units.clear();
            unit.for_each(text.as_ref(), |hash, _, _| units.push(hash));
            if units.len() < min_units {
                num_skipped += 1;
                continue;
            }
            let length = units.len().min(ngram);
            hashes[length].extend(units.windows(length).map(hash_run));
        }
        let sets = (1..).zip(hashes.drain(1..)).filter(|(_, hashes)| !hashes.is_empty());
        let mut sets: Vec<Runs> = sets.map(|(length, hashes)| Runs::new(length, &hashes)).collect();
        sets.reverse();
        Ok(Self { unit, sets, num_skipped })
    }

    /// Evaluation texts that were too short.
    pub fn num_skipped(&self) -> usize {
        self.num_skipped
    }

    /// Number of different runs.
    pub fn num_runs(&self) -> usize {
        self.sets.iter().map(|set| set.count).sum()
    }

    /// What each text shares with the evaluation texts.
    pub fn overlaps<T: AsRef<str> + Sync>(&self, texts: &[T], num_threads: usize) -> Vec<Overlaps> {
        let longest = self.sets.first().map_or(0, |set| set.length);
        map_texts(texts, num_threads, || Past::new(longest), |past, text| self.overlap(past, text))
    }

    fn overlap(&self, past: &mut Past, text: &str) -> Overlaps {
        if self.sets.is_empty() {
            return Overlaps::default();
        }
        past.clear();
        let mut spans: Vec<Span> = Vec::new();
        self.unit.for_each(text, |hash, start, end| {
            past.push(hash, start);
            let found = |set: &&Runs| past.count >= set.length && set.contains(past.run(set));
            // The sets are ordered from the longest run: a shorter one with the same end covers no more.
            if let Some(set) = self.sets.iter().find(found) {
                let first = past.count - set.length;
                add(
                    &mut spans,
                    Span {
                        bytes: (past.starts[first & past.mask], end),
                        units: (first, past.count),
                    },
                );
            }
        });
        let covered: usize = spans.iter().map(|span| span.units.1 - span.units.0).sum();
        let share = if past.count == 0 { 0.0 } else { covered as f64 / past.count as f64 };
        Overlaps { share, spans: spans.iter().map(|span| span.bytes).collect() }
    }
}

/// Where a text is covered by shared runs.
struct Span {
    bytes: (usize, usize),
    units: (usize, usize),
}

/// Adds a span that ends behind all others, joined with those it overlaps or touches.
fn add(spans: &mut Vec<Span>, mut span: Span) {
    while let Some(last) = spans.last().filter(|last| span.units.0 <= last.units.1) {
        span.bytes.0 = span.bytes.0.min(last.bytes.0);
        span.units.0 = span.units.0.min(last.units.0);
        spans.pop();
    }
    spans.push(span);
}

/// Hash of a run of tokens: a polynomial, as [`Past::run`] gives it.
fn hash_run(tokens: &[u64]) -> u64 {
    mix(tokens.iter().fold(0, |hash: u64, &token| hash.wrapping_mul(BASE).wrapping_add(token)))
}

/// The last tokens of a text: hashes of all tokens up to each, and where each begins.
struct Past {
    /// Hash of the first `count` tokens at `count & mask`.
    prefixes: Vec<u64>,
    starts: Vec<usize>,
    mask: usize,
    count: usize,
}

impl Past {
    fn new(longest: usize) -> Self {
        let len = (longest + 1).next_power_of_two();
        Self { prefixes: vec![0; len], starts: vec![0; len], mask: len - 1, count: 0 }
    }

    fn clear(&mut self) {
        self.count = 0;
        self.prefixes[0] = 0;
    }

    #[inline]
    fn push(&mut self, token: u64, start: usize) {
        self.starts[self.count & self.mask] = start;
        let hash = self.prefixes[self.count & self.mask].wrapping_mul(BASE).wrapping_add(token);
        self.count += 1;
        self.prefixes[self.count & self.mask] = hash;
    }

    /// Hash of the last tokens, as many as a run of `set` has.
    #[inline]
    fn run(&self, set: &Runs) -> u64 {
        let before = self.prefixes[(self.count - set.length) & self.mask];
        mix(self.prefixes[self.count & self.mask].wrapping_sub(before.wrapping_mul(set.power)))
    }
}

/// A set of hashes of runs of one length: a bit for each of some of their bits, asked first, and open addressing.
#[derive(Debug, Clone)]
struct Runs {
    length: usize,
    power: u64,
    count: usize,
    bits: Vec<u64>,
    places: Vec<u64>,
    has_zero: bool,
}

impl Runs {
    fn new(length: usize, hashes: &[u64]) -> Self {
        let len = (2 * hashes.len()).next_power_of_two().max(64);
        let mut set = Self {
            length,
            power: power(length),
            count: 0,
            bits: vec![0; len / 8], // 8 bits or more for each hash: 1 in 9 others is looked for in the table
            places: vec![0; len],
            has_zero: false,
        };
        for &hash in hashes {
            set.insert(hash);
        }
        set
    }

    fn insert(&mut self, hash: u64) {
        let (word, bit) = self.bit(hash);
        self.bits[word] |= bit;
        if hash == 0 {
            self.count += usize::from(!self.has_zero);
            self.has_zero = true;
            return;
        }
        let mut place = self.place(hash);
        while self.places[place] != 0 {
            if self.places[place] == hash {
                return;
            }
            place = (place + 1) & (self.places.len() - 1);
        }
        self.places[place] = hash;
        self.count += 1;
    }

    #[inline]
    fn contains(&self, hash: u64) -> bool {
        let (word, bit) = self.bit(hash);
        self.bits[word] & bit != 0 && self.is_in_table(hash)
    }

    fn is_in_table(&self, hash: u64) -> bool {
        if hash == 0 {
            return self.has_zero;
        }
        let mut place = self.place(hash);
        while self.places[place] != 0 {
            if self.places[place] == hash {
                return true;
            }
            place = (place + 1) & (self.places.len() - 1);
        }
        false
    }

    #[expect(clippy::cast_possible_truncation, reason = "the lowest bits are wanted")]
    fn place(&self, hash: u64) -> usize {
        hash as usize & (self.places.len() - 1)
    }

    /// Word and mask of a hash's bit, by its upper half.
    #[inline]
    fn bit(&self, hash: u64) -> (usize, u64) {
        let number = (hash >> 32) as usize & (64 * self.bits.len() - 1);
        (number / 64, 1 << (number % 64))
    }
}

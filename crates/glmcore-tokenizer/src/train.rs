//! Learning merges from text: count words, then merge the most frequent pair again and again.
//!
//! Ties go to the smaller pair of ids, the bytes being numbered in the order of the byte-level alphabet, so the merges
//! are those that Hugging Face's trainer learns from the same words.

use std::cmp::Reverse;
use std::collections::BinaryHeap;

use rayon::prelude::*;
use rustc_hash::FxHashMap;

use crate::byte_level::alphabet;
use crate::split::GLM4_PATTERN;
use crate::tokenizer::pretokens;
use crate::{Error, TokenId};

type Pair = (TokenId, TokenId);

/// What training has learned.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Training {
    /// Bytes of each token: the 256 single bytes, then one a merge.
    pub tokens: Vec<Vec<u8>>,
    /// Merged pairs, in order.
    pub merges: Vec<(TokenId, TokenId)>,
    /// Pattern that split the text.
    pub pattern: &'static str,
}

/// Counts the words of a corpus. Feed it all text, then take the merges.
#[derive(Debug, Default)]
pub struct Trainer {
    counts: FxHashMap<Box<str>, u64>,
}

impl Trainer {
    /// A trainer that has seen nothing.
    pub fn new() -> Self {
        Self::default()
    }

    /// Adds the words of `texts`, counted by `num_threads` threads (0 for all cores).
    ///
    /// # Panics
    ///
    /// If the operating system refuses to start threads.
    pub fn feed<T: AsRef<str> + Sync>(&mut self, texts: &[T], num_threads: usize) {
        let count = |mut counts: FxHashMap<Box<str>, u64>, text: &T| {
            for word in pretokens(text.as_ref()) {
                if let Some(count) = counts.get_mut(word) {
                    *count += 1;
                } else {
                    counts.insert(word.into(), 1);
                }
            }
            counts
        };
        let pool = rayon::ThreadPoolBuilder::new()
            .num_threads(num_threads)
            .build()
            .expect("the system starts a thread for each core");
        let parts: Vec<_> =
            pool.install(|| texts.par_iter().fold(FxHashMap::default, count).collect());
        for part in parts {
            for (word, count) in part {
                *self.counts.entry(word).or_insert(0) += count;
            }
        }
    }

    /// Number of distinct words seen.
    pub fn num_words(&self) -> usize {
        self.counts.len()
    }

    /// Ends the counting; the merges are then learned step by step.
    pub fn into_merger(self) -> Merger {
        Merger::new(self.counts)
    }

    /// Learns until there are `num_tokens` tokens.
    ///
    /// # Errors
    ///
    /// [`Error::TooLittleText`] if the words allow fewer merges.
    pub fn finish(self, num_tokens: usize) -> Result<Training, Error> {
        let mut merger = self.into_merger();
        merger.run(num_tokens);
        merger.finish(num_tokens)
    }
}

/// Learns merges, as many at a time as the caller likes.
#[derive(Debug)]
pub struct Merger {
    words: Vec<Word>,
    pair_counts: FxHashMap<Pair, i64>,
    queue: BinaryHeap<Candidate>,
    tokens: Vec<Vec<u8>>,
    id_of: FxHashMap<Vec<u8>, TokenId>,
    merges: Vec<Pair>,
}

#[derive(Debug)]
struct Word {
    ids: Vec<TokenId>,
    count: i64,
}

/// A pair that could be merged next: the most frequent first, then the smallest.
#[derive(Debug, PartialEq, Eq, PartialOrd, Ord)]
struct Candidate {
    count: i64,
    pair: Reverse<Pair>,
    /// Words that hold the pair.
    words: Vec<u32>,
}

impl Merger {
    fn new(counts: FxHashMap<Box<str>, u64>) -> Self {
        let tokens: Vec<Vec<u8>> = alphabet().into_iter().map(|byte| vec![byte]).collect();
        let id_of: FxHashMap<Vec<u8>, TokenId> = tokens.iter().cloned().zip(0..).collect();
        let words = counts
            .into_iter()
            .map(|(word, count)| Word {
                ids: word.bytes().map(|byte| id_of[[byte].as_slice()]).collect(),
                count: i64::try_from(count).expect("a corpus has fewer than 2^63 words"),
            })
            .collect();
        let mut merger = Self {
            words,
            pair_counts: FxHashMap::default(),
            queue: BinaryHeap::new(),
            tokens,
            id_of,
            merges: Vec::new(),
        };
        merger.count_pairs();
        merger
    }

    fn count_pairs(&mut self) {
        let mut words_of: FxHashMap<Pair, Vec<u32>> = FxHashMap::default();
        for (index, word) in (0_u32..).zip(&self.words) {
            for pair in word.ids.windows(2) {
                let pair = (pair[0], pair[1]);
                *self.pair_counts.entry(pair).or_insert(0) += word.count;
                note_word(&mut words_of, pair, index);
            }
        }
        self.enqueue(words_of);
    }

    fn enqueue(&mut self, words_of: FxHashMap<Pair, Vec<u32>>) {
        for (pair, words) in words_of {
            let count = self.pair_counts[&pair];
            if count > 0 {
                self.queue.push(Candidate { count, pair: Reverse(pair), words });
            }
        }
    }

    /// Learns until there are `num_tokens` tokens or no pair is left; gives the number of tokens.
    pub fn run(&mut self, num_tokens: usize) -> usize {
        while self.tokens.len() < num_tokens {
            let Some(mut best) = self.queue.pop() else { break };
            let count = self.pair_counts[&best.pair.0];
            if best.count != count {
                best.count = count; // earlier merges have eaten some of its occurrences
                if count > 0 {
                    self.queue.push(best);
                }
                continue;
            }
            self.merge(best.pair.0, &best.words);
        }
        self.tokens.len()
    }

    fn merge(&mut self, pair: Pair, words: &[u32]) {
        let bytes =
            [self.tokens[pair.0 as usize].as_slice(), &self.tokens[pair.1 as usize]].concat();
        let next = u32::try_from(self.tokens.len()).expect("ids are 32-bit");
        let id = *self.id_of.entry(bytes.clone()).or_insert(next);
        if id == next {
            self.tokens.push(bytes);
        }
        self.merges.push(pair);
        let mut words_of: FxHashMap<Pair, Vec<u32>> = FxHashMap::default();
        for &index in words {
            let word = &mut self.words[index as usize];
            merge_in_word(&mut word.ids, pair, id, |changed, sign| {
                *self.pair_counts.entry(changed).or_insert(0) += sign * word.count;
                if sign > 0 {
                    note_word(&mut words_of, changed, index);
                }
            });
        }
        self.enqueue(words_of);
    }

    /// The result, once there are `num_tokens` tokens.
    ///
    /// # Errors
    ///
    /// [`Error::TooLittleText`] if there are fewer.
    pub fn finish(self, num_tokens: usize) -> Result<Training, Error> {
        if self.tokens.len() < num_tokens {
            let possible = self.tokens.len() - 256;
            return Err(Error::TooLittleText { possible, wanted: num_tokens - 256 });
        }
        Ok(Training { tokens: self.tokens, merges: self.merges, pattern: GLM4_PATTERN })
    }
}

/// Replaces each `pair` in `ids` by `id`, leftmost first, and reports every pair that appears or disappears.
fn merge_in_word(
    ids: &mut Vec<TokenId>,
    pair: Pair,
    id: TokenId,
    mut changed: impl FnMut(Pair, i64),
) {
    let mut kept = 0;
    let mut at = 0;
    while at < ids.len() {
        if at + 1 < ids.len() && (ids[at], ids[at + 1]) == pair {
            if kept > 0 {
                changed((ids[kept - 1], pair.0), -1);
                changed((ids[kept - 1], id), 1);
            }
            if at + 2 < ids.len() {
                changed((pair.1, ids[at + 2]), -1);
                changed((id, ids[at + 2]), 1);
            }
            ids[kept] = id;
            at += 2;
        } else {
            ids[kept] = ids[at];
            at += 1;
        }
        kept += 1;
    }
    ids.truncate(kept);
}

/// Notes that word `index` holds `pair`, once; words come in ascending order.
fn note_word(words_of: &mut FxHashMap<Pair, Vec<u32>>, pair: Pair, index: u32) {
    let words = words_of.entry(pair).or_default();
    if words.last() != Some(&index) {
        words.push(index);
    }
}

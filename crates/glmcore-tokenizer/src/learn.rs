//! Merging the most frequent pair of the counted words again and again.

use std::cmp::Reverse;
use std::collections::BinaryHeap;

use rustc_hash::FxHashMap;

use crate::byte_level::alphabet;
use crate::count::WordCounts;
use crate::prefetch::prefetch;
use crate::train::{Limits, Training};
use crate::{Error, TokenId};

type Pair = (TokenId, TokenId);

/// Learns merges, as many at a time as the caller likes.
#[derive(Debug)]
pub struct Merger {
    /// Words one after the other: number of symbols, low and high half of the count, symbols. A word's place is that of
    /// its first number.
    words: Vec<u32>,
    pair_counts: FxHashMap<Pair, i64>,
    queue: BinaryHeap<Candidate>,
    tokens: Vec<Vec<u8>>,
    id_of: FxHashMap<Vec<u8>, TokenId>,
    merges: Vec<Pair>,
    limits: Limits,
    pattern: String,
    /// What the current merge changes beside each token.
    left: Neighbours,
    right: Neighbours,
}

/// Numbers before the symbols of a word.
const HEADER: usize = 3;
/// Words are asked for so long before they are needed.
const AHEAD: usize = 16;

/// A pair that could be merged next: the most frequent first, then the smallest.
#[derive(Debug, PartialEq, Eq, PartialOrd, Ord)]
struct Candidate {
    count: i64,
    pair: Reverse<Pair>,
    /// Places of the words that hold the pair.
    words: Vec<u32>,
}

/// Tokens that stand beside a pair that is merged.
#[derive(Debug, Default)]
struct Neighbours {
    /// By token: how often it stands there, of that how often it may join the new token, and the words.
    beside: Vec<Beside>,
    touched: Vec<TokenId>,
}

#[derive(Debug, Default, Clone)]
struct Beside {
    lost: i64,
    gained: i64,
    words: Vec<u32>,
}

impl Neighbours {
    #[inline(always)]
    fn add(&mut self, token: TokenId, count: i64, joins: bool, word: u32) {
        let beside = &mut self.beside[token as usize];
        if beside.lost == 0 {
            self.touched.push(token);
        }
        beside.lost += count;
        if joins {
            beside.gained += count;
            if beside.words.last() != Some(&word) {
                beside.words.push(word);
            }
        }
    }
}

impl Merger {
    pub(crate) fn new(counts: &WordCounts, limits: Limits, pattern: String) -> Self {
        let alphabet = alphabet();
        let mut id_of_byte = [0; 256];
        for (id, &byte) in (0..).zip(&alphabet) {
            id_of_byte[usize::from(byte)] = id;
        }
        let mut words = Vec::new();
        for (word, count) in counts.iter() {
            let bytes = word.as_slice();
            words.extend([bytes.len() as u32, count as u32, (count >> 32) as u32]);
            words.extend(bytes.iter().map(|&byte| id_of_byte[usize::from(byte)]));
        }
        assert!(u32::try_from(words.len()).is_ok(), "distinct words have fewer than 2^32 bytes");
        let tokens: Vec<Vec<u8>> = alphabet.into_iter().map(|byte| vec![byte]).collect();
        let id_of = tokens.iter().cloned().zip(0..).collect();
        let mut merger = Self {
            words,
            pair_counts: FxHashMap::default(),
            queue: BinaryHeap::new(),
            tokens,
            id_of,
            merges: Vec::new(),
            limits,
            pattern,
            left: Neighbours::default(),
            right: Neighbours::default(),
        };
        merger.count_pairs();
        merger
    }

    fn count_pairs(&mut self) {
        let mut counts = vec![0_i64; 1 << 16];
        let mut words_of: Vec<Vec<u32>> = vec![Vec::new(); 1 << 16];
        let mut place = 0;
        while place < self.words.len() {
            let word = WordAt::new(&self.words, place);
            for pair in word.symbols.windows(2) {
                let pair = (pair[0] << 8 | pair[1]) as usize;
                counts[pair] += word.count;
                if words_of[pair].last() != Some(&(place as u32)) {
                    words_of[pair].push(place as u32);
                }
            }
            place += HEADER + word.len;
        }
        for (pair, words) in (0..).zip(words_of).filter(|(_, words)| !words.is_empty()) {
            let (count, pair) = (counts[pair as usize], (pair >> 8, pair & 0xff));
            self.pair_counts.insert(pair, count);
            self.queue.push(Candidate { count, pair: Reverse(pair), words });
        }
    }

    /// Learns until there are `num_tokens` tokens or no pair may be merged; gives the number of tokens.
    pub fn run(&mut self, num_tokens: usize) -> usize {
        while self.tokens.len() < num_tokens {
            let Some(mut best) = self.queue.pop() else { break };
            let count = self.pair_counts.get(&best.pair.0).copied().unwrap_or(0);
            if best.count != count {
                best.count = count; // earlier merges have eaten some of its occurrences
                if count > 0 {
                    self.queue.push(best);
                }
                continue;
            }
            if count.cast_unsigned() < self.limits.min_frequency {
                self.queue.clear();
                break;
            }
            self.merge(best.pair.0, &best.words);
        }
        self.tokens.len()
    }

    /// Number of tokens so far, the 256 single bytes among them.
    pub fn num_tokens(&self) -> usize {
        self.tokens.len()
    }

    fn merge(&mut self, pair: Pair, words: &[u32]) {
        let bytes =
            [self.tokens[pair.0 as usize].as_slice(), &self.tokens[pair.1 as usize]].concat();
        let longest_neighbour = match self.limits.max_token_length {
            0 => usize::MAX,
            limit => limit.saturating_sub(bytes.len() + 1),
        };
        let next = self.tokens.len() as TokenId;
        let id = *self.id_of.entry(bytes.clone()).or_insert(next);
        if id == next {
            self.tokens.push(bytes);
        }
        self.merges.push(pair);
        for side in [&mut self.left, &mut self.right] {
            side.beside.resize_with(self.tokens.len(), Beside::default);
        }
        for (number, &place) in words.iter().enumerate() {
            if let Some(&ahead) = words.get(number + AHEAD) {
                prefetch(&self.words, ahead as usize);
            }
            self.merge_in_word(place, pair, id, longest_neighbour);
        }
        self.apply(pair, id);
    }

    /// Replaces each `pair` in a word by `id`, leftmost first.
    fn merge_in_word(&mut self, place: u32, pair: Pair, id: TokenId, longest_neighbour: usize) {
        let start = place as usize;
        let (header, rest) = self.words[start..].split_at_mut(HEADER);
        let len = header[0] as usize;
        let count = (u64::from(header[1]) | u64::from(header[2]) << 32).cast_signed();
        let symbols = &mut rest[..len];
        let joins = |tokens: &[Vec<u8>], token: TokenId| {
            longest_neighbour == usize::MAX || tokens[token as usize].len() <= longest_neighbour
        };
        let (mut kept, mut at) = (0, 0);
        while at < len {
            if at + 1 < len && (symbols[at], symbols[at + 1]) == pair {
                if kept > 0 {
                    let before = symbols[kept - 1];
                    self.left.add(before, count, joins(&self.tokens, before), place);
                }
                if at + 2 < len {
                    let behind = symbols[at + 2];
                    self.right.add(behind, count, joins(&self.tokens, behind), place);
                }
                symbols[kept] = id;
                at += 2;
            } else {
                symbols[kept] = symbols[at];
                at += 1;
            }
            kept += 1;
        }
        header[0] = kept as u32;
        // The numbers that are left over belong to no word; they are never read, since words are found by place.
    }

    /// Enters what the merge has changed: pairs with the halves of `pair` are lost, pairs with `id` gained.
    fn apply(&mut self, pair: Pair, id: TokenId) {
        let mut gained: Vec<(Pair, Vec<u32>)> = Vec::new();
        for is_left in [true, false] {
            let side = if is_left { &mut self.left } else { &mut self.right };
            for token in side.touched.drain(..) {
                let Beside { lost, gained: count, words } =
                    std::mem::take(&mut side.beside[token as usize]);
                let (old, new) = if is_left {
                    ((token, pair.0), (token, id))
                } else {
                    ((pair.1, token), (id, token))
                };
                *self.pair_counts.entry(old).or_insert(0) -= lost;
                if count > 0 {
                    *self.pair_counts.entry(new).or_insert(0) += count;
                    gained.push((new, words));
                }
            }
        }
        // A pair of the new token with itself is gained from the left and from the right.
        gained.sort_unstable_by_key(|(pair, _)| *pair);
        let mut gained = gained.into_iter().peekable();
        while let Some((pair, mut words)) = gained.next() {
            while let Some((_, more)) = gained.next_if(|(next, _)| *next == pair) {
                words.extend(more);
                words.sort_unstable();
                words.dedup();
            }
            let count = self.pair_counts[&pair];
            if count > 0 {
                self.queue.push(Candidate { count, pair: Reverse(pair), words });
            }
        }
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
        Ok(Training { tokens: self.tokens, merges: self.merges, pattern: self.pattern })
    }
}

/// A word in the list of words.
struct WordAt<'w> {
    len: usize,
    count: i64,
    symbols: &'w [u32],
}

impl<'w> WordAt<'w> {
    fn new(words: &'w [u32], place: usize) -> Self {
        let header = &words[place..place + HEADER];
        let len = header[0] as usize;
        let count = (u64::from(header[1]) | u64::from(header[2]) << 32).cast_signed();
        Self { len, count, symbols: &words[place + HEADER..][..len] }
    }
}

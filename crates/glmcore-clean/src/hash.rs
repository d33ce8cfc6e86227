//! Hashes of words and of runs of words, 64 bits.

/// Odd multipliers: fractions of the golden ratio, and the constants of splitmix64 (Steele et al., OOPSLA 2014).
const STEP: u64 = 0x9e37_79b9_7f4a_7c15;
const MIX_A: u64 = 0xbf58_476d_1ce4_e5b9;
const MIX_B: u64 = 0x94d0_49bb_1331_11eb;
/// Base of the polynomial over the words of a run.
pub(crate) const BASE: u64 = 0xd134_2543_de82_ef95;

/// Hash of no characters.
pub(crate) const START: u64 = 0xcbf2_9ce4_8422_2325;

/// Adds a character to the hash of a word.
#[inline]
pub(crate) fn step(hash: u64, character: u32) -> u64 {
    (hash ^ u64::from(character)).wrapping_mul(STEP)
}

/// Spreads every bit over all.
#[inline]
pub(crate) fn mix(mut hash: u64) -> u64 {
    hash = (hash ^ (hash >> 30)).wrapping_mul(MIX_A);
    hash = (hash ^ (hash >> 27)).wrapping_mul(MIX_B);
    hash ^ (hash >> 31)
}

/// `BASE` to the power of `exponent`.
pub(crate) fn power(exponent: usize) -> u64 {
    (0..exponent).fold(1, |power: u64, _| power.wrapping_mul(BASE))
}

/// The last words of a text, for the hash of every run of `length` of them.
pub(crate) struct Window {
    words: Vec<u64>,
    oldest: usize,
    hash: u64,
    leaving: u64,
}

impl Window {
    pub(crate) fn new(length: usize) -> Self {
        Self { words: vec![0; length], oldest: 0, hash: 0, leaving: power(length) }
    }

    /// Words of a run.
    pub(crate) fn length(&self) -> usize {
        self.words.len()
    }

    /// Forgets all words.
    pub(crate) fn clear(&mut self) {
        self.words.fill(0);
        self.oldest = 0;
        self.hash = 0;
    }

    /// Hash of the last words, `word` the newest: a polynomial in [`BASE`], not yet mixed. Before there are enough
    /// words, of all words so far.
    #[inline]
    pub(crate) fn push(&mut self, word: u64) -> u64 {
        let left = std::mem::replace(&mut self.words[self.oldest], word);
        self.oldest += 1;
        if self.oldest == self.words.len() {
            self.oldest = 0;
        }
        self.hash = self.hash.wrapping_mul(BASE).wrapping_add(word);
        self.hash = self.hash.wrapping_sub(left.wrapping_mul(self.leaving));
        self.hash
    }
}

//! `MinHash` signatures: a few numbers per text that estimate how much two texts share.
//!
//! A *shingle* is a run of tokens. The share of equal entries of two signatures estimates the Jaccard similarity of the
//! texts' sets of shingles (Broder, Compression and Complexity of Sequences 1997), with a standard deviation of
//! `sqrt(J (1 - J) / k)` for k entries.
//!
//! Entry i is the least `a_i x + b_i mod 2^32` over the 32-bit hashes x of the shingles, `a_i` odd: a permutation of the
//! 32-bit numbers. With AVX-512, 128 products per shingle are 17 % of the time of a signature, the rest is reading words
//! (18 MB of English, 2026-11-25). One permutation with densification (Shrivastava, ICML 2017), which hashes once per
//! shingle whatever k is, could save no more than that, and is less exact for texts with fewer shingles than entries.

use crate::hash::{Window, mix};
use crate::instructions::widest;
use crate::threads::map_texts;
use crate::tokens::for_each_token;
use crate::{Error, setting};

/// Most entries of a signature.
const MAX_PERMUTATIONS: usize = 4096;
/// Most tokens of a shingle.
const MAX_SHINGLE: usize = 64;
/// Entries that are computed at a time: registers of 16 numbers, four in use.
const LANES: usize = 64;
/// Shingles that are gathered before their permutations are computed.
const SHINGLES: usize = 512;

/// How signatures are made. Signatures can be compared only if they were made alike.
#[derive(Debug, Clone)]
pub struct MinHash {
    num_permutations: usize,
    shingle: usize,
    /// Factors and summands, filled up to whole [`LANES`].
    factors: Vec<[u32; LANES]>,
    summands: Vec<[u32; LANES]>,
}

impl MinHash {
    /// Signatures of `num_permutations` entries over shingles of `shingle` tokens.
    ///
    /// # Errors
    ///
    /// [`Error::Setting`] unless there are 1 to 4,096 permutations and 1 to 64 tokens.
    pub fn new(num_permutations: usize, shingle: usize, seed: u64) -> Result<Self, Error> {
        if !(1..=MAX_PERMUTATIONS).contains(&num_permutations) {
            return Err(setting("num_permutations", num_permutations, "from 1 to 4096"));
        }
        if !(1..=MAX_SHINGLE).contains(&shingle) {
            return Err(setting("shingle", shingle, "from 1 to 64"));
        }
        let groups = num_permutations.div_ceil(LANES);
        let mut state = seed;
        let mut next = || {
            state = state.wrapping_add(0x9e37_79b9_7f4a_7c15);
            u32::try_from(mix(state) >> 32).expect("32 bits are left")
        };
        let factors = (0..groups).map(|_| std::array::from_fn(|_| next() | 1)).collect();
        let summands = (0..groups).map(|_| std::array::from_fn(|_| next())).collect();
        Ok(Self { num_permutations, shingle, factors, summands })
    }

    /// Number of entries of a signature.
    pub fn num_permutations(&self) -> usize {
        self.num_permutations
    }

    /// Tokens of a shingle.
    pub fn shingle(&self) -> usize {
        self.shingle
    }

    fn sign(&self, scratch: &mut Scratch, text: &str) -> Vec<u32> {
        scratch.least.fill([u32::MAX; LANES]);
        scratch.window.clear();
        let Scratch { window, least, shingles } = scratch;
        let mut len = 0;
        for_each_shingle(text, window, |shingle| {
            shingles[len] = u32::try_from(shingle >> 32).expect("32 bits are left");
            len += 1;
            if len == SHINGLES {
                self.lower(least, shingles);
                len = 0;
            }
        });
        self.lower(least, &shingles[..len]);
        least.iter().flatten().take(self.num_permutations).copied().collect()
    }

    fn lower(&self, least: &mut [[u32; LANES]], shingles: &[u32]) {
        for ((least, factors), summands) in least.iter_mut().zip(&self.factors).zip(&self.summands)
        {
            lower(least, factors, summands, shingles);
        }
    }
}

/// Memory of a thread.
struct Scratch {
    window: Window,
    least: Vec<[u32; LANES]>,
    shingles: Vec<u32>,
}

widest! {
    /// Lowers each entry to the least permutation of a shingle.
    fn lower(least: &mut [u32; LANES], factors: &[u32; LANES], summands: &[u32; LANES], shingles: &[u32]) => lower_lanes
}

#[expect(clippy::inline_always, reason = "it has to be compiled once for each set of instructions")]
#[inline(always)]
fn lower_lanes(
    least: &mut [u32; LANES],
    factors: &[u32; LANES],
    summands: &[u32; LANES],
    shingles: &[u32],
) {
    let mut lowest = *least;
    for &shingle in shingles {
        for lane in 0..LANES {
            let permuted = factors[lane].wrapping_mul(shingle).wrapping_add(summands[lane]);
            lowest[lane] = lowest[lane].min(permuted);
        }
    }
    *least = lowest;
}

/// Gives the hash of each shingle of `text`; of all its tokens if there are fewer than a shingle has.
#[inline]
fn for_each_shingle(text: &str, window: &mut Window, mut shingle: impl FnMut(u64)) {
    let length = window.length();
    let mut tokens = 0;
    let mut last = 0;
    for_each_token(text, |token, _, _| {
        last = window.push(token);
        tokens += 1;
        if tokens >= length {
            shingle(mix(last));
        }
    });
    if (1..length).contains(&tokens) {
        shingle(mix(last));
    }
}

/// Signatures of all texts, one after the other: [`MinHash::num_permutations`] numbers for each.
///
/// A text without tokens has `u32::MAX` in every entry; [`crate::near_duplicates`] takes it for no text's copy.
pub fn minhash<T: AsRef<str> + Sync>(texts: &[T], how: &MinHash, num_threads: usize) -> Vec<u32> {
    let scratch = || Scratch {
        window: Window::new(how.shingle),
        least: vec![[u32::MAX; LANES]; how.factors.len()],
        shingles: vec![0; SHINGLES],
    };
    map_texts(texts, num_threads, scratch, |scratch, text| how.sign(scratch, text)).concat()
}

/// Exact Jaccard similarity of the sets of shingles of two texts, from 0 to 1; 0 if either has no token.
pub fn jaccard(a: &str, b: &str, shingle: usize) -> f64 {
    similarity(&shingles(a, shingle), &shingles(b, shingle))
}

/// The different shingles of a text in order of their hashes.
pub(crate) fn shingles(text: &str, shingle: usize) -> Vec<u64> {
    let mut hashes = Vec::new();
    for_each_shingle(text, &mut Window::new(shingle), |shingle| hashes.push(shingle));
    hashes.sort_unstable();
    hashes.dedup();
    hashes
}

/// Jaccard similarity of two ordered sets.
pub(crate) fn similarity(mut a: &[u64], mut b: &[u64]) -> f64 {
    let all = a.len() + b.len();
    let mut common = 0;
    while let ([first, ..], [second, ..]) = (a, b) {
        common += usize::from(first == second);
        if first <= second {
            a = &a[1..];
        }
        if second <= first {
            b = &b[1..];
        }
    }
    if all == common { 0.0 } else { common as f64 / (all - common) as f64 }
}

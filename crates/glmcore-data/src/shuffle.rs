//! A shuffled order that is computed, not stored.

use xxhash_rust::xxh3::xxh3_64_with_seed;

/// Rounds of the network. Four make a Feistel network with random round functions hard to tell from a
/// random permutation (Luby and Rackoff, SIAM J. Comput. 17(2), 1988); tiny domains need more.
const ROUNDS: usize = 12;
/// Smallest domain, in bits: on fewer, the halves are too narrow to reach every order.
const MIN_BITS: u32 = 6;

/// A random-looking permutation of `0..len`, given by a seed and a name: a Feistel network over the next
/// power of two, walked along its cycles until it lands inside (Black and Rogaway, CT-RSA 2002).
///
/// Any place costs O(1) time and the whole order no memory.
///
/// ```
/// let shuffle = glmcore_data::Shuffle::new(5, 42, "web", 0);
/// let mut order: Vec<u64> = (0..5).map(|k| shuffle.at(k)).collect();
/// order.sort_unstable();
/// assert_eq!(order, [0, 1, 2, 3, 4]);
/// ```
#[derive(Debug, Clone)]
pub struct Shuffle {
    len: u64,
    low_bits: u32,
    low_mask: u64,
    high_mask: u64,
    keys: [u64; ROUNDS],
}

impl Shuffle {
    /// The order of `len` things that belongs to a seed, a name and an epoch.
    pub fn new(len: u64, seed: u64, name: &str, epoch: u64) -> Self {
        let bits = (u64::BITS - len.saturating_sub(1).leading_zeros()).max(MIN_BITS);
        let low_bits = bits / 2;
        let named = xxh3_64_with_seed(name.as_bytes(), seed);
        let key = mix(named ^ mix(epoch ^ GOLDEN));
        let keys = std::array::from_fn(|round| {
            mix(key.wrapping_add((round as u64 + 1).wrapping_mul(GOLDEN)))
        });
        let mask = |bits: u32| u64::MAX >> (u64::BITS - bits);
        Self { len, low_bits, low_mask: mask(low_bits), high_mask: mask(bits - low_bits), keys }
    }

    /// What stands at place `k`.
    ///
    /// # Panics
    ///
    /// If `k` is not below the length.
    pub fn at(&self, k: u64) -> u64 {
        assert!(k < self.len, "place {k} of {}", self.len);
        let mut at = self.permute(k);
        while at >= self.len {
            at = self.permute(at);
        }
        at
    }

    /// The permutation of the whole power of two.
    fn permute(&self, k: u64) -> u64 {
        let (mut low, mut high) = (k & self.low_mask, k >> self.low_bits);
        for keys in self.keys.chunks_exact(2) {
            high ^= mix(low ^ keys[0]) & self.high_mask;
            low ^= mix(high ^ keys[1]) & self.low_mask;
        }
        high << self.low_bits | low
    }
}

/// 2^64 divided by the golden ratio, odd.
const GOLDEN: u64 = 0x9e37_79b9_7f4a_7c15;

/// The finalizer of `SplitMix64`: every input bit sways every output bit (Steele, Lea and Flood,
/// OOPSLA 2014).
fn mix(mut x: u64) -> u64 {
    x = (x ^ x >> 30).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    x = (x ^ x >> 27).wrapping_mul(0x94d0_49bb_1331_11eb);
    x ^ x >> 31
}

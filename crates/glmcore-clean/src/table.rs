//! A hash table of counts that is cleared and used again.

/// Odd: the upper bits of the product depend on all bits of the hash (Fibonacci hashing, Knuth, section 6.4).
const SPREAD: u64 = 0x9e37_79b9_7f4a_7c15;

/// Times that something was seen, and where first.
#[derive(Clone, Copy, Default)]
pub(crate) struct Seen {
    hash: u64,
    /// 0 for a free place.
    pub(crate) count: u32,
    pub(crate) first: u32,
}

/// Open addressing with linear steps, at most half full.
#[derive(Default)]
pub(crate) struct Table {
    places: Vec<Seen>,
    len: usize,
    /// Bits of a product that do not choose the place.
    shift: u32,
}

impl Table {
    /// Makes room for `count` different hashes and forgets all.
    pub(crate) fn clear(&mut self, count: usize) {
        self.len = (2 * count).next_power_of_two().max(16);
        self.shift = u64::BITS - self.len.trailing_zeros();
        if self.places.len() < self.len {
            self.places.resize(self.len, Seen::default());
        }
        self.places[..self.len].fill(Seen::default());
    }

    /// Counts `hash`, seen at `at`; gives its place.
    #[inline]
    pub(crate) fn add(&mut self, hash: u64, at: u32) -> u32 {
        let mask = self.len - 1;
        #[expect(clippy::cast_possible_truncation, reason = "the bits left are a place")]
        let mut place = (hash.wrapping_mul(SPREAD) >> self.shift) as usize;
        loop {
            let seen = &mut self.places[place];
            if seen.count == 0 {
                *seen = Seen { hash, count: 1, first: at };
                break;
            }
            if seen.hash == hash {
                seen.count += 1;
                break;
            }
            place = (place + 1) & mask;
        }
        u32::try_from(place).expect("a table has less than 2^32 places")
    }

    /// What is known about the hash at `place`.
    #[inline]
    pub(crate) fn at(&self, place: u32) -> Seen {
        self.places[place as usize]
    }
}

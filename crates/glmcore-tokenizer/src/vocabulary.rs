//! Tokens by id and ids by bytes.

use std::collections::VecDeque;
use std::sync::OnceLock;

use crate::hash::hash_bytes;
use crate::memory::Table;
use crate::prefetch::prefetch;
use crate::{Error, TokenId};

/// The longest token that a file may hold, in bytes.
const MAX_TOKEN_BYTES: usize = 1 << 16;
/// Ids must leave the top byte of a word free, and three of them with a rank must nearly fit a word of 64 bits.
pub(crate) const MAX_TOKENS: usize = 1 << 20;

/// The bits of a slot that hold an id + 1; those above hold bits of the hash.
const ID_MASK: u32 = (1 << 21) - 1;
/// Tokens are asked for so many look-ups before they are needed.
const AHEAD: usize = 16;

/// The bytes of every token in one array, and a hash table from bytes to id.
#[derive(Debug)]
pub(crate) struct Vocabulary {
    bytes: Vec<u8>,
    /// Token i has the bytes from `bounds[i]` to `bounds[i + 1]`.
    bounds: Vec<u32>,
    /// Open addressing; id + 1 below eleven bits of the hash, or 0 for a free slot. A compiled tokenizer has little use
    /// for it: it is made when it is first looked into.
    slots: OnceLock<Table<u32>>,
    /// Bit i: byte-pair encoding can make token i, which does not only stand in the list of ids.
    learned: Vec<u8>,
    /// Number of those.
    num_learned: usize,
}

impl Vocabulary {
    /// Takes tokens in any order; they must have the ids 0, 1, 2, ... `learned` tells which of them text can become.
    ///
    /// # Errors
    ///
    /// [`Error::Inconsistent`] for an id that is missing or given twice, equal learned tokens, a token of more than
    /// 64 KiB, more than 2^20 tokens.
    pub(crate) fn new<'t>(
        tokens: impl Iterator<Item = (TokenId, &'t [u8], bool)> + Clone,
    ) -> Result<Self, Error> {
        let len = tokens.clone().count();
        if len > MAX_TOKENS {
            return Err(Error::Inconsistent(format!("{len} tokens are more than {MAX_TOKENS}")));
        }
        let mut by_id: Vec<Option<(&[u8], bool)>> = vec![None; len];
        for (id, bytes, learned) in tokens {
            match by_id.get_mut(id as usize) {
                Some(place @ None) => *place = Some((bytes, learned)),
                Some(Some(_)) => {
                    return Err(Error::Inconsistent(format!("id {id} is given twice")));
                }
                None => {
                    return Err(Error::Inconsistent(format!(
                        "id {id} leaves a gap in the ids below it"
                    )));
                }
            }
        }
        let size = by_id.iter().flatten().map(|(bytes, _)| bytes.len()).sum::<usize>();
        let mut all = Vec::with_capacity(size);
        let mut lens = Vec::with_capacity(len);
        let mut bits = vec![0; len.div_ceil(8)];
        for (id, (bytes, learned)) in by_id.into_iter().flatten().enumerate() {
            all.extend_from_slice(bytes);
            lens.push(bytes.len());
            bits[id / 8] |= u8::from(learned) << (id % 8);
        }
        let vocabulary = Self::from_parts(all, lens.into_iter(), bits)?;
        let (slots, equal) = vocabulary.fill_slots();
        if let Some((id, other)) = equal {
            return Err(Error::Inconsistent(format!(
                "token {id} is the same as token {other}: {:?}",
                String::from_utf8_lossy(vocabulary.token(other))
            )));
        }
        Ok(Self { slots: slots.into(), ..vocabulary })
    }

    /// Takes the bytes of all tokens, the length of each, and a bit for each that is learned, no two of which are equal.
    ///
    /// # Errors
    ///
    /// [`Error::Inconsistent`] for a token of more than 64 KiB, more than 2^20 tokens, lengths that do not add up to the
    /// bytes.
    pub(crate) fn from_parts(
        bytes: Vec<u8>,
        lens: impl ExactSizeIterator<Item = usize>,
        learned: Vec<u8>,
    ) -> Result<Self, Error> {
        let len = lens.len();
        if len > MAX_TOKENS {
            return Err(Error::Inconsistent(format!("{len} tokens are more than {MAX_TOKENS}")));
        }
        let mut bounds = Vec::with_capacity(len + 1);
        let mut end = 0;
        bounds.push(0);
        for (id, len) in lens.enumerate() {
            if len > MAX_TOKEN_BYTES {
                return Err(Error::Inconsistent(format!(
                    "token {id} has {len} bytes, more than {MAX_TOKEN_BYTES}"
                )));
            }
            end += len;
            bounds.push(u32::try_from(end).map_err(|_| {
                Error::Inconsistent(format!("the first {id} tokens have {end} bytes together"))
            })?);
        }
        if end != bytes.len() {
            return Err(Error::Inconsistent(format!(
                "the tokens have {end} bytes together, {} are there",
                bytes.len()
            )));
        }
        let mut vocabulary =
            Self { bytes, bounds, slots: OnceLock::new(), learned, num_learned: 0 };
        vocabulary.num_learned = (0..len).filter(|&id| vocabulary.is_learned(id)).count();
        Ok(vocabulary)
    }

    /// The hash table of the learned tokens, and the first two that are equal, of which the later is not in it.
    fn fill_slots(&self) -> (Table<u32>, Option<(TokenId, TokenId)>) {
        let len = self.len();
        let mut table = Table::zeroed((len * 2).next_power_of_two().max(16));
        let mut equal = None;
        let mut hashes = [0; AHEAD];
        // Slots are asked for as the hashes are made, and used a round later.
        for at in 0..len + AHEAD {
            let place = at % AHEAD;
            if let Some(id) = at.checked_sub(AHEAD)
                && self.is_learned(id)
            {
                let (id, hash) = (id as TokenId, hashes[place]);
                if let Some(other) = self.find(table.as_slice(), self.token(id), hash) {
                    equal = equal.or(Some((id, other)));
                    continue;
                }
                let slots = table.as_mut_slice();
                let mask = slots.len() - 1;
                let mut slot = hash as usize & mask;
                while slots[slot] != 0 {
                    slot = (slot + 1) & mask;
                }
                slots[slot] = tag(hash) | (id + 1);
            }
            if at < len {
                hashes[place] = hash_bytes(self.token(at as TokenId));
                prefetch_slot(table.as_slice(), hashes[place]);
            }
        }
        (table, equal)
    }

    fn slots(&self) -> &[u32] {
        self.slots.get_or_init(|| self.fill_slots().0).as_slice()
    }

    /// Whether `id` is the learned token with these bytes.
    #[inline]
    pub(crate) fn is(&self, id: TokenId, bytes: &[u8]) -> bool {
        (id as usize) < self.len() && self.is_learned(id as usize) && self.token(id) == bytes
    }

    fn is_learned(&self, id: usize) -> bool {
        self.learned[id / 8] >> (id % 8) & 1 != 0
    }

    /// Number of ids.
    pub(crate) fn len(&self) -> usize {
        self.bounds.len() - 1
    }

    /// Bytes of the token `id`, which exists.
    #[inline]
    pub(crate) fn token(&self, id: TokenId) -> &[u8] {
        let id = id as usize;
        &self.bytes[self.bounds[id] as usize..self.bounds[id + 1] as usize]
    }

    /// Bytes of the token `id`.
    pub(crate) fn get(&self, id: TokenId) -> Option<&[u8]> {
        ((id as usize) < self.len()).then(|| self.token(id))
    }

    /// Id of the learned token with these bytes.
    #[inline]
    pub(crate) fn id(&self, bytes: &[u8]) -> Option<TokenId> {
        self.find(self.slots(), bytes, hash_bytes(bytes))
    }

    #[inline]
    fn find(&self, slots: &[u32], bytes: &[u8], hash: u64) -> Option<TokenId> {
        let mask = slots.len() - 1;
        let mut slot = hash as usize & mask;
        loop {
            let entry = slots[slot];
            if entry == 0 {
                return None;
            }
            let id = (entry & ID_MASK).wrapping_sub(1);
            if entry & !ID_MASK == tag(hash) && self.token(id) == bytes {
                return Some(id);
            }
            slot = (slot + 1) & mask;
        }
    }

    /// Ids of the learned tokens with these bytes, many look-ups at a time.
    pub(crate) fn ids<'b>(
        &self,
        all: impl Iterator<Item = &'b [u8]>,
    ) -> impl Iterator<Item = Option<TokenId>> {
        // Slots are asked for first, then the bounds of the token that most likely stands there, then its bytes.
        let slots = self.slots();
        let mut all = all.fuse();
        let mut queue = VecDeque::with_capacity(3 * AHEAD);
        std::iter::from_fn(move || {
            while queue.len() < 3 * AHEAD
                && let Some(bytes) = all.next()
            {
                let hash = hash_bytes(bytes);
                prefetch_slot(slots, hash);
                queue.push_back((bytes, hash));
            }
            if let Some(&(_, hash)) = queue.get(2 * AHEAD) {
                prefetch(&self.bounds, candidate(slots, hash));
            }
            if let Some(&(_, hash)) = queue.get(AHEAD) {
                prefetch(&self.bytes, self.bounds[candidate(slots, hash)] as usize);
            }
            queue.pop_front().map(|(bytes, hash)| self.find(slots, bytes, hash))
        })
    }

    /// Ids of the tokens of one byte, by the byte.
    pub(crate) fn byte_ids(&self) -> [Option<TokenId>; 256] {
        let mut ids = [None; 256];
        for (id, token) in self.learned() {
            if let [byte] = *token {
                ids[usize::from(byte)] = Some(id);
            }
        }
        ids
    }

    /// Learned tokens by id.
    pub(crate) fn learned(&self) -> impl Iterator<Item = (TokenId, &[u8])> {
        let ids = (0..self.len()).filter(|&id| self.is_learned(id)).map(|id| id as TokenId);
        ids.map(|id| (id, self.token(id)))
    }

    /// Number of tokens that text can become.
    pub(crate) fn num_learned(&self) -> usize {
        self.num_learned
    }
}

fn prefetch_slot(slots: &[u32], hash: u64) {
    prefetch(slots, hash as usize & (slots.len() - 1));
}

/// The token in the first slot of a hash, or another.
fn candidate(slots: &[u32], hash: u64) -> usize {
    (slots[hash as usize & (slots.len() - 1)] & ID_MASK).saturating_sub(1) as usize
}

#[inline(always)]
fn tag(hash: u64) -> u32 {
    (hash >> 32) as u32 & !ID_MASK
}

//! Tokens by id and ids by bytes.

use crate::hash::hash_bytes;
use crate::{Error, TokenId};

/// The longest token that a file may hold, in bytes.
const MAX_TOKEN_BYTES: usize = 1 << 16;
/// Ids must leave the top byte of a word free, and three of them with a rank must nearly fit a word of 64 bits.
pub(crate) const MAX_TOKENS: usize = 1 << 20;

/// The bytes of every token in one array, and a hash table from bytes to id.
#[derive(Debug, Default)]
pub(crate) struct Vocabulary {
    bytes: Vec<u8>,
    /// Token i has the bytes from `bounds[i]` to `bounds[i + 1]`.
    bounds: Vec<u32>,
    /// Open addressing; id + 1, or 0 for a free slot.
    slots: Vec<u32>,
    /// Tokens that byte-pair encoding can make, as opposed to those that only stand in the list of ids.
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
            if bytes.len() > MAX_TOKEN_BYTES {
                return Err(Error::Inconsistent(format!(
                    "token {id} has {} bytes, more than {MAX_TOKEN_BYTES}",
                    bytes.len()
                )));
            }
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
        if u32::try_from(size).is_err() {
            return Err(Error::Inconsistent(format!("the tokens have {size} bytes together")));
        }
        let mut vocabulary = Self {
            bytes: Vec::with_capacity(size),
            bounds: Vec::with_capacity(len + 1),
            slots: vec![0; (len * 2).next_power_of_two().max(16)],
            num_learned: 0,
        };
        vocabulary.bounds.push(0);
        for (id, place) in (0..).zip(by_id) {
            let (bytes, learned) = place.expect("as many distinct ids as places fill them all");
            if learned && !vocabulary.insert(id, bytes) {
                return Err(Error::Inconsistent(format!(
                    "token {id} is the same as token {}: {:?}",
                    vocabulary.id(bytes).expect("it is there"),
                    String::from_utf8_lossy(bytes)
                )));
            }
            vocabulary.push(bytes);
        }
        Ok(vocabulary)
    }

    fn push(&mut self, bytes: &[u8]) {
        self.bytes.extend_from_slice(bytes);
        self.bounds.push(u32::try_from(self.bytes.len()).expect("the size has been checked"));
    }

    /// Enters a token that is about to be pushed; false if it is known.
    fn insert(&mut self, id: TokenId, bytes: &[u8]) -> bool {
        let mask = self.slots.len() - 1;
        let mut slot = hash_bytes(bytes) as usize & mask;
        while self.slots[slot] != 0 {
            if self.token(self.slots[slot] - 1) == bytes {
                return false;
            }
            slot = (slot + 1) & mask;
        }
        self.slots[slot] = id + 1;
        self.num_learned += 1;
        true
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
        let mask = self.slots.len() - 1;
        let mut slot = hash_bytes(bytes) as usize & mask;
        loop {
            match self.slots[slot] {
                0 => return None,
                id if self.token(id - 1) == bytes => return Some(id - 1),
                _ => slot = (slot + 1) & mask,
            }
        }
    }

    /// Learned tokens by id.
    pub(crate) fn learned(&self) -> impl Iterator<Item = (TokenId, &[u8])> {
        let mut is_learned = vec![false; self.len()];
        for &slot in self.slots.iter().filter(|&&slot| slot != 0) {
            is_learned[slot as usize - 1] = true;
        }
        let ids = (0..).zip(is_learned).filter(|&(_, is_learned)| is_learned);
        ids.map(|(id, _)| (id, self.token(id)))
    }

    /// Number of tokens that text can become.
    pub(crate) fn num_learned(&self) -> usize {
        self.num_learned
    }
}

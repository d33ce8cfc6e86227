//! Token ids back to bytes and text.

use crate::vocabulary::Vocabulary;
use crate::{Error, TokenId, Tokenizer};

/// Tokens of up to 15 bytes in slots of 16, the last of which tells how many there are.
#[derive(Debug)]
pub(crate) struct Slots(Box<[[u8; SLOT]]>);

const SLOT: usize = 16;
/// Stands in a slot for a token that does not fit.
const LONG: u8 = u8::MAX;
/// Bytes that are gathered before they go to the output.
const GATHERED: usize = 4096;

impl Slots {
    fn new(vocabulary: &Vocabulary) -> Self {
        let slot = |id| {
            let token = vocabulary.token(id);
            let mut slot = [0; SLOT];
            if token.len() < SLOT {
                slot[..token.len()].copy_from_slice(token);
                slot[SLOT - 1] = token.len() as u8;
            } else {
                slot[SLOT - 1] = LONG;
            }
            slot
        };
        Self((0..vocabulary.len() as TokenId).map(slot).collect())
    }
}

impl Tokenizer {
    /// Bytes of `ids`, special tokens as their text.
    ///
    /// # Errors
    ///
    /// [`Error::UnknownId`] for the first id outside the vocabulary.
    pub fn decode(&self, ids: &[TokenId]) -> Result<Vec<u8>, Error> {
        self.decode_where::<false>(ids)
    }

    /// Bytes of `ids` without the tokens flagged special.
    ///
    /// # Errors
    ///
    /// [`Error::UnknownId`] for the first id outside the vocabulary.
    pub fn decode_without_special(&self, ids: &[TokenId]) -> Result<Vec<u8>, Error> {
        self.decode_where::<true>(ids)
    }

    fn decode_where<const SKIP_SPECIAL: bool>(&self, ids: &[TokenId]) -> Result<Vec<u8>, Error> {
        let Slots(slots) = self.slots.get_or_init(|| Slots::new(&self.vocabulary));
        let mut bytes = Vec::with_capacity(ids.len() * 4);
        let mut gathered = [0; GATHERED + SLOT];
        let mut len = 0;
        for (position, &id) in ids.iter().enumerate() {
            let Some(slot) = slots.get(id as usize) else {
                return Err(Error::UnknownId { id, position, vocab_size: self.vocab_size() });
            };
            if SKIP_SPECIAL && self.is_special(id) {
                continue;
            }
            let size = slot[SLOT - 1];
            if size == LONG {
                bytes.extend_from_slice(&gathered[..len]);
                bytes.extend_from_slice(self.vocabulary.token(id));
                len = 0;
                continue;
            }
            gathered[len..len + SLOT].copy_from_slice(slot);
            len += usize::from(size);
            if len >= GATHERED {
                bytes.extend_from_slice(&gathered[..len]);
                len = 0;
            }
        }
        bytes.extend_from_slice(&gathered[..len]);
        Ok(bytes)
    }
}

/// Turns tokens into text as they come, never half a character.
///
/// Bytes that can still become a character are held back; bytes that cannot are replaced by U+FFFD as
/// `String::from_utf8_lossy` does.
#[derive(Debug, Default)]
pub struct StreamDecoder {
    held: Vec<u8>,
    num_ids: usize,
}

impl StreamDecoder {
    /// A decoder at the start of a text.
    pub fn new() -> Self {
        Self::default()
    }

    /// Text that `id` completes, empty while a character is incomplete.
    ///
    /// # Errors
    ///
    /// [`Error::UnknownId`] if `id` is outside the vocabulary; the decoder is unchanged.
    pub fn push(&mut self, tokenizer: &Tokenizer, id: TokenId) -> Result<String, Error> {
        let vocab_size = tokenizer.vocab_size();
        let bytes = tokenizer.token_bytes(id).ok_or(Error::UnknownId {
            id,
            position: self.num_ids,
            vocab_size,
        })?;
        self.num_ids += 1;
        self.held.extend_from_slice(bytes);
        let complete = self.held.len() - incomplete_tail(&self.held);
        let text = String::from_utf8_lossy(&self.held[..complete]).into_owned();
        self.held.drain(..complete);
        Ok(text)
    }

    /// Text of the bytes still held back; the decoder is at the start again.
    pub fn finish(&mut self) -> String {
        self.num_ids = 0;
        let text = String::from_utf8_lossy(&self.held).into_owned();
        self.held.clear();
        text
    }
}

/// Number of bytes at the end of `bytes` that begin a character without finishing it.
fn incomplete_tail(bytes: &[u8]) -> usize {
    for len in 1..=bytes.len().min(3) {
        let tail = &bytes[bytes.len() - len..];
        if tail[0] & 0b1100_0000 == 0b1000_0000 {
            continue; // a continuation byte: the character begins earlier
        }
        let unfinished = std::str::from_utf8(tail).is_err_and(|error| error.error_len().is_none());
        return if unfinished { len } else { 0 };
    }
    0
}

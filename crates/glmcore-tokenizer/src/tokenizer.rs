//! The tokenizer: vocabulary, merges and special tokens together.

use rustc_hash::FxHashMap;

use crate::Error;
use crate::bpe::{Merge, Merges};
use crate::pretokenize::pretokens;
use crate::special::{Part, SpecialFinder};
use crate::train::Training;

/// Number of a token in the vocabulary.
pub type TokenId = u32;

/// What becomes of special tokens that stand in a text.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Special {
    /// They stay text, so no input can forge one.
    AsText,
    /// They become their ids, as Hugging Face does by default.
    Parse,
}

/// A token outside the learned vocabulary.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct AddedToken {
    /// Its text.
    pub text: String,
    /// Its id.
    pub id: TokenId,
    /// Whether decoding may skip it.
    pub special: bool,
}

/// A byte-level BPE tokenizer.
#[derive(Debug)]
pub struct Tokenizer {
    pub(crate) merges: Merges,
    /// Bytes of each token; special tokens hold their text.
    pub(crate) bytes_of: Vec<Vec<u8>>,
    /// Learned tokens by their bytes.
    pub(crate) id_of: FxHashMap<Vec<u8>, TokenId>,
    pub(crate) added: Vec<AddedToken>,
    pub(crate) ignore_merges: bool,
    finder: SpecialFinder,
}

impl Tokenizer {
    /// Puts a tokenizer together and checks that its parts fit.
    ///
    /// # Errors
    ///
    /// [`Error::Inconsistent`] if an id is missing or doubled, a byte has no token, or a merge makes none.
    pub(crate) fn new(
        vocab: FxHashMap<Vec<u8>, TokenId>,
        pairs: &[(TokenId, TokenId)],
        added: Vec<AddedToken>,
        ignore_merges: bool,
    ) -> Result<Self, Error> {
        let bytes_of = index_tokens(&vocab, &added)?;
        let byte_ids = (0..=255_u8)
            .map(|byte| {
                let id = vocab.get([byte].as_slice()).copied();
                id.ok_or_else(|| Error::Inconsistent(format!("byte {byte:#04x} has no token")))
            })
            .collect::<Result<_, _>>()?;
        let mut by_pair = FxHashMap::default();
        by_pair.reserve(pairs.len());
        for (rank, &(left, right)) in (0_u32..).zip(pairs) {
            let bytes = [bytes_of[left as usize].as_slice(), &bytes_of[right as usize]].concat();
            let Some(&id) = vocab.get(&bytes) else {
                return Err(Error::Inconsistent(format!(
                    "merge {rank} makes no token of the vocabulary"
                )));
            };
            by_pair.entry((left, right)).or_insert(Merge { rank, id });
        }
        let finder = SpecialFinder::new(added.iter().map(|token| (token.text.clone(), token.id)));
        Ok(Self {
            merges: Merges { byte_ids, by_pair },
            bytes_of,
            id_of: vocab,
            added,
            ignore_merges,
            finder,
        })
    }

    /// A tokenizer from learned merges. Special tokens take the ids after the learned ones.
    ///
    /// # Errors
    ///
    /// [`Error::Inconsistent`] if two tokens are equal.
    pub fn from_training(training: &Training, special_tokens: &[&str]) -> Result<Self, Error> {
        let mut vocab = FxHashMap::default();
        for (id, bytes) in (0..).zip(&training.tokens) {
            vocab.insert(bytes.clone(), id);
        }
        let first = u32::try_from(training.tokens.len()).expect("ids are 32-bit");
        let added = (first..)
            .zip(special_tokens)
            .enumerate()
            .map(|(index, (id, text))| AddedToken {
                text: (*text).to_owned(),
                id,
                special: index < crate::NUM_SPECIAL_FLAGGED,
            })
            .collect();
        Self::new(vocab, &training.merges, added, true)
    }

    /// Number of ids, special tokens included.
    pub fn vocab_size(&self) -> usize {
        self.bytes_of.len()
    }

    /// Tokens outside the learned vocabulary, by id.
    pub fn added_tokens(&self) -> &[AddedToken] {
        &self.added
    }

    /// Bytes of a token, or `None` outside the vocabulary.
    pub fn token_bytes(&self, id: TokenId) -> Option<&[u8]> {
        self.bytes_of.get(id as usize).map(Vec::as_slice)
    }

    /// Id of the token with exactly these bytes; a special token by its text.
    pub fn token_id(&self, bytes: &[u8]) -> Option<TokenId> {
        let added =
            self.added.iter().find(|token| token.text.as_bytes() == bytes).map(|token| token.id);
        added.or_else(|| self.id_of.get(bytes).copied())
    }

    /// Whether `id` is an added token that decoding may skip.
    pub(crate) fn is_special(&self, id: TokenId) -> bool {
        self.added.iter().any(|token| token.id == id && token.special)
    }

    /// Tokens of `text`.
    pub fn encode(&self, text: &str, special: Special) -> Vec<TokenId> {
        let mut ids = Vec::with_capacity(text.len() / 3);
        self.encode_into(text, special, &mut WordCache::default(), &mut ids);
        ids
    }

    /// Appends the tokens of `text`; `cache` remembers words between calls.
    pub(crate) fn encode_into(
        &self,
        text: &str,
        special: Special,
        cache: &mut WordCache,
        ids: &mut Vec<TokenId>,
    ) {
        match special {
            Special::AsText => self.encode_plain(text, cache, ids),
            Special::Parse => self.finder.split(text, |part| match part {
                Part::Text(text) => self.encode_plain(text, cache, ids),
                Part::Special(id) => ids.push(id),
            }),
        }
    }

    fn encode_plain(&self, text: &str, cache: &mut WordCache, ids: &mut Vec<TokenId>) {
        for word in pretokens(text) {
            let word = word.as_bytes();
            if self.ignore_merges
                && let Some(&id) = self.id_of.get(word)
            {
                ids.push(id);
                continue;
            }
            if let Some(known) = cache.get(word) {
                ids.extend_from_slice(known);
                continue;
            }
            let start = ids.len();
            self.merges.encode(word, ids);
            cache.insert(word, &ids[start..]);
        }
    }
}

/// Bytes of each id, after checking that ids are 0, 1, 2, ... without gap or repetition.
fn index_tokens(
    vocab: &FxHashMap<Vec<u8>, TokenId>,
    added: &[AddedToken],
) -> Result<Vec<Vec<u8>>, Error> {
    let learned = vocab.iter().map(|(bytes, &id)| (bytes.as_slice(), id));
    let outside = added
        .iter()
        .filter(|token| vocab.get(token.text.as_bytes()) != Some(&token.id))
        .map(|token| (token.text.as_bytes(), token.id));
    let tokens: Vec<(&[u8], TokenId)> = learned.chain(outside).collect();
    let mut bytes_of: Vec<Option<Vec<u8>>> = vec![None; tokens.len()];
    for (bytes, id) in tokens {
        match bytes_of.get_mut(id as usize) {
            Some(place @ None) => *place = Some(bytes.to_vec()),
            Some(Some(_)) => return Err(Error::Inconsistent(format!("id {id} is given twice"))),
            None => {
                return Err(Error::Inconsistent(format!(
                    "id {id} leaves a gap in the ids below it"
                )));
            }
        }
    }
    Ok(bytes_of
        .into_iter()
        .map(|bytes| bytes.expect("as many distinct ids as places fill them all"))
        .collect())
}

/// Tokens of words that were merged before, bounded.
#[derive(Debug, Default)]
pub(crate) struct WordCache {
    ids: FxHashMap<Box<[u8]>, Box<[TokenId]>>,
}

/// Longer words are rare and would fill the cache.
const MAX_CACHED_WORD_BYTES: usize = 48;
const MAX_CACHED_WORDS: usize = 1 << 16;

impl WordCache {
    fn get(&self, word: &[u8]) -> Option<&[TokenId]> {
        self.ids.get(word).map(Box::as_ref)
    }

    fn insert(&mut self, word: &[u8], ids: &[TokenId]) {
        if word.len() <= MAX_CACHED_WORD_BYTES && self.ids.len() < MAX_CACHED_WORDS {
            self.ids.insert(word.into(), ids.into());
        }
    }
}

//! One file of tokenized documents, of either format.

use std::ops::Range;
use std::path::Path;

use crate::{Error, MegatronFile, Shard, Tokens};

/// A shard of ours or a Megatron data set.
#[derive(Debug)]
pub enum TokenFile {
    /// The format of the crate doc.
    Shard(Shard),
    /// `PREFIX.bin` and `PREFIX.idx`.
    Megatron(MegatronFile),
}

macro_rules! either {
    ($file:expr, $found:ident => $value:expr) => {
        match $file {
            TokenFile::Shard($found) => $value,
            TokenFile::Megatron($found) => $value,
        }
    };
}

impl TokenFile {
    /// The file, or the index of a Megatron data set.
    pub fn path(&self) -> &Path {
        either!(self, file => file.path())
    }

    /// Number of ids in the vocabulary.
    pub fn vocab_size(&self) -> u32 {
        either!(self, file => file.vocab_size())
    }

    /// Number of documents.
    pub fn num_documents(&self) -> u64 {
        either!(self, file => file.num_documents())
    }

    /// Number of tokens.
    pub fn num_tokens(&self) -> u64 {
        either!(self, file => file.num_tokens())
    }

    /// Whether the file says which tokens are learned.
    pub fn has_loss_mask(&self) -> bool {
        match self {
            Self::Shard(shard) => shard.has_loss_mask(),
            Self::Megatron(_) => false,
        }
    }

    /// Where the tokens of a document lie among all of the file.
    ///
    /// # Errors
    ///
    /// [`Error::NoSuchDocument`], [`Error::Corrupt`].
    pub fn bounds(&self, document: u64) -> Result<Range<u64>, Error> {
        either!(self, file => file.bounds(document))
    }

    /// Number of tokens of a document.
    ///
    /// # Errors
    ///
    /// Those of [`bounds`](Self::bounds).
    pub fn length(&self, document: u64) -> Result<u32, Error> {
        let Range { start, end } = self.bounds(document)?;
        u32::try_from(end - start).map_err(|_| Error::Corrupt {
            path: self.path().to_owned(),
            place: format!("document {document}"),
            problem: format!("it has {} tokens", end - start),
        })
    }

    /// Tokens of a document, in place.
    ///
    /// # Errors
    ///
    /// Those of [`bounds`](Self::bounds).
    pub fn tokens(&self, document: u64) -> Result<Tokens<'_>, Error> {
        let bounds = self.bounds(document)?;
        Ok(either!(self, file => file.tokens_at(bounds)))
    }

    /// Source of a document; 0 in a Megatron data set.
    ///
    /// # Errors
    ///
    /// Those of [`bounds`](Self::bounds).
    pub fn source(&self, document: u64) -> Result<u16, Error> {
        match self {
            Self::Shard(shard) => shard.source(document),
            Self::Megatron(file) => file.bounds(document).map(|_| 0),
        }
    }

    /// Quality of a document; 1 in a Megatron data set.
    ///
    /// # Errors
    ///
    /// Those of [`bounds`](Self::bounds).
    pub fn quality(&self, document: u64) -> Result<f32, Error> {
        match self {
            Self::Shard(shard) => shard.quality(document),
            Self::Megatron(file) => file.bounds(document).map(|_| 1.0),
        }
    }

    /// Copies tokens from `first` on, counted through all documents, with 1 for each that is learned and
    /// 0 for the rest. Both slices say how many.
    ///
    /// # Errors
    ///
    /// [`Error::NoTokensThere`], [`Error::Corrupt`] for an id outside the vocabulary.
    ///
    /// # Panics
    ///
    /// If the slices differ in length.
    pub fn copy_at(&self, first: u64, ids: &mut [i32], mask: &mut [u8]) -> Result<(), Error> {
        assert_eq!(ids.len(), mask.len(), "each token has its mask");
        let end = first.saturating_add(ids.len() as u64);
        if end > self.num_tokens() {
            return Err(Error::NoTokensThere { first, end, num_tokens: self.num_tokens() });
        }
        let tokens = either!(self, file => file.tokens_at(first..end));
        let largest = match tokens {
            Tokens::U16(tokens) => copy_narrow(tokens, ids),
            Tokens::U32(tokens) => copy_wide(tokens, ids),
        };
        if largest >= self.vocab_size() {
            return Err(Error::Corrupt {
                path: self.path().to_owned(),
                place: format!("tokens {first} to {end}"),
                problem: format!("id {largest} in a vocabulary of {}", self.vocab_size()),
            });
        }
        match self {
            Self::Shard(shard) => shard.copy_mask(first, mask),
            Self::Megatron(_) => mask.fill(1),
        }
        Ok(())
    }

    /// Reads everything.
    ///
    /// # Errors
    ///
    /// [`Error::Corrupt`] for the first part that is damaged.
    pub fn verify(&self) -> Result<(), Error> {
        either!(self, file => file.verify())
    }
}

/// Copies and gives the largest id.
fn copy_narrow(tokens: &[u16], ids: &mut [i32]) -> u32 {
    let mut largest = 0;
    for (id, &token) in ids.iter_mut().zip(tokens) {
        *id = token.into();
        largest = largest.max(token);
    }
    largest.into()
}

/// Copies and gives the largest id, as unsigned.
fn copy_wide(tokens: &[u32], ids: &mut [i32]) -> u32 {
    let mut largest = 0;
    for (id, &token) in ids.iter_mut().zip(tokens) {
        *id = token.cast_signed();
        largest = largest.max(token);
    }
    largest
}

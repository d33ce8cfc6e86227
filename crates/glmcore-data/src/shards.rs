//! Several shards as one list of documents.

use std::path::Path;

use crate::{Error, Lengths, Shard, Tokens};

/// Shards of one vocabulary, read as one: documents are numbered through them in order.
#[derive(Debug)]
pub struct TokenShards {
    shards: Vec<Shard>,
    ends: Vec<u64>, // documents up to and including each shard
    num_tokens: u64,
}

impl TokenShards {
    /// Maps shards, in the given order.
    ///
    /// # Errors
    ///
    /// [`Error::Nothing`] for no path, [`Error::VocabMismatch`], and those of [`Shard::open`].
    pub fn open<P: AsRef<Path>>(paths: impl IntoIterator<Item = P>) -> Result<Self, Error> {
        let shards: Vec<Shard> = paths.into_iter().map(Shard::open).collect::<Result<_, _>>()?;
        let Some(expected) = shards.first().map(Shard::vocab_size) else {
            return Err(Error::Nothing { what: "shards" });
        };
        if let Some(other) = shards.iter().find(|shard| shard.vocab_size() != expected) {
            let (path, vocab_size) = (other.path().to_owned(), other.vocab_size());
            return Err(Error::VocabMismatch { path, vocab_size, expected });
        }
        let mut num_documents = 0;
        let ends = shards.iter().map(|shard| {
            num_documents += shard.num_documents();
            num_documents
        });
        let ends = ends.collect();
        let num_tokens = shards.iter().map(Shard::num_tokens).sum();
        Ok(Self { shards, ends, num_tokens })
    }

    /// The shards.
    pub fn shards(&self) -> &[Shard] {
        &self.shards
    }

    /// Number of ids in the vocabulary.
    pub fn vocab_size(&self) -> u32 {
        self.shards[0].vocab_size()
    }

    /// Whether a shard says which tokens are learned.
    pub fn has_loss_mask(&self) -> bool {
        self.shards.iter().any(Shard::has_loss_mask)
    }

    /// Tokens of a document, in place; see [`Shard::tokens`].
    ///
    /// # Errors
    ///
    /// Those of [`Shard::tokens`].
    pub fn tokens(&self, document: u64) -> Result<Tokens<'_>, Error> {
        let (shard, document) = self.locate(document)?;
        shard.tokens(document)
    }

    /// Source of a document.
    ///
    /// # Errors
    ///
    /// [`Error::NoSuchDocument`].
    pub fn source(&self, document: u64) -> Result<u16, Error> {
        let (shard, document) = self.locate(document)?;
        shard.source(document)
    }

    /// Quality of a document.
    ///
    /// # Errors
    ///
    /// [`Error::NoSuchDocument`].
    pub fn quality(&self, document: u64) -> Result<f32, Error> {
        let (shard, document) = self.locate(document)?;
        shard.quality(document)
    }

    /// Copies tokens of a document; see [`Shard::copy`].
    ///
    /// # Errors
    ///
    /// Those of [`Shard::copy`].
    pub fn copy(
        &self,
        document: u64,
        start: u32,
        ids: &mut [i32],
        mask: &mut [u8],
    ) -> Result<(), Error> {
        let (shard, document) = self.locate(document)?;
        shard.copy(document, start, ids, mask)
    }

    /// Number of tokens of every document.
    ///
    /// # Errors
    ///
    /// [`Error::Corrupt`].
    pub fn lengths(&self) -> Result<Vec<u32>, Error> {
        let lengths =
            |shard| (0..Shard::num_documents(shard)).map(move |document| shard.length(document));
        self.shards.iter().flat_map(lengths).collect()
    }

    /// Reads every byte of every shard; see [`Shard::verify`].
    ///
    /// # Errors
    ///
    /// [`Error::Corrupt`] for the first part that is damaged.
    pub fn verify(&self) -> Result<(), Error> {
        self.shards.iter().try_for_each(Shard::verify)
    }

    /// The shard of a document and its number there.
    fn locate(&self, document: u64) -> Result<(&Shard, u64), Error> {
        let shard = self.ends.partition_point(|&end| end <= document);
        let Some(found) = self.shards.get(shard) else {
            return Err(Error::NoSuchDocument { document, num_documents: self.num_documents() });
        };
        let before = if shard == 0 { 0 } else { self.ends[shard - 1] };
        Ok((found, document - before))
    }
}

impl Lengths for TokenShards {
    fn num_documents(&self) -> u64 {
        self.ends[self.ends.len() - 1]
    }

    fn num_tokens(&self) -> u64 {
        self.num_tokens
    }

    fn length(&self, document: u64) -> Result<u32, Error> {
        let (shard, document) = self.locate(document)?;
        shard.length(document)
    }
}

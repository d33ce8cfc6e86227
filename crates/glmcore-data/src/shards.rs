//! Several files as one list of documents.

use std::ops::Range;
use std::path::Path;

use crate::{Error, Lengths, Shard, TokenFile, Tokens};

/// Files of one vocabulary, read as one: documents and tokens are numbered through them in order.
#[derive(Debug)]
pub struct TokenShards {
    files: Vec<TokenFile>,
    ends: Vec<u64>,       // documents up to and including each file
    token_ends: Vec<u64>, // tokens up to and including each file
}

impl TokenShards {
    /// Maps shards, in the given order.
    ///
    /// # Errors
    ///
    /// [`Error::Nothing`] for no path, [`Error::VocabMismatch`], and those of [`Shard::open`].
    pub fn open<P: AsRef<Path>>(paths: impl IntoIterator<Item = P>) -> Result<Self, Error> {
        let shards = paths.into_iter().map(|path| Shard::open(path).map(TokenFile::Shard));
        Self::new(shards.collect::<Result<_, _>>()?)
    }

    /// Files that are open already, in the given order.
    ///
    /// # Errors
    ///
    /// [`Error::Nothing`] for no file, [`Error::VocabMismatch`].
    pub fn new(files: Vec<TokenFile>) -> Result<Self, Error> {
        let Some(expected) = files.first().map(TokenFile::vocab_size) else {
            return Err(Error::Nothing { what: "shards" });
        };
        if let Some(other) = files.iter().find(|file| file.vocab_size() != expected) {
            let (path, vocab_size) = (other.path().to_owned(), other.vocab_size());
            return Err(Error::VocabMismatch { path, vocab_size, expected });
        }
        let ends = running_sums(files.iter().map(TokenFile::num_documents));
        let token_ends = running_sums(files.iter().map(TokenFile::num_tokens));
        Ok(Self { files, ends, token_ends })
    }

    /// The files.
    pub fn files(&self) -> &[TokenFile] {
        &self.files
    }

    /// Number of ids in the vocabulary.
    pub fn vocab_size(&self) -> u32 {
        self.files[0].vocab_size()
    }

    /// Whether a shard says which tokens are learned.
    pub fn has_loss_mask(&self) -> bool {
        self.files.iter().any(TokenFile::has_loss_mask)
    }

    /// Tokens of a document, in place; see [`Shard::tokens`].
    ///
    /// # Errors
    ///
    /// Those of [`Shard::tokens`].
    pub fn tokens(&self, document: u64) -> Result<Tokens<'_>, Error> {
        let (file, document) = self.locate(document)?;
        self.files[file].tokens(document)
    }

    /// Source of a document.
    ///
    /// # Errors
    ///
    /// [`Error::NoSuchDocument`].
    pub fn source(&self, document: u64) -> Result<u16, Error> {
        let (file, document) = self.locate(document)?;
        self.files[file].source(document)
    }

    /// Quality of a document.
    ///
    /// # Errors
    ///
    /// [`Error::NoSuchDocument`].
    pub fn quality(&self, document: u64) -> Result<f32, Error> {
        let (file, document) = self.locate(document)?;
        self.files[file].quality(document)
    }

    /// Copies tokens of a document from `start` on, with 1 for each that is learned and 0 for the rest.
    /// Both slices say how many.
    ///
    /// # Errors
    ///
    /// [`Error::NoSuchDocument`], [`Error::NoSuchTokens`], [`Error::Corrupt`] for an id outside the
    /// vocabulary, too.
    ///
    /// # Panics
    ///
    /// If the slices differ in length.
    pub fn copy(
        &self,
        document: u64,
        start: u32,
        ids: &mut [i32],
        mask: &mut [u8],
    ) -> Result<(), Error> {
        let (file, place) = self.locate(document)?;
        let Range { start: first, end: last } = self.files[file].bounds(place)?;
        let end = u64::from(start) + ids.len() as u64;
        if end > last - first {
            let (start, len) = (start.into(), last - first);
            return Err(Error::NoSuchTokens { document, len, start, end });
        }
        self.files[file].copy_at(first + u64::from(start), ids, mask).map_err(|error| match error {
            Error::Corrupt { path, problem, .. } => {
                Error::Corrupt { path, place: format!("document {place}"), problem }
            }
            error => error,
        })
    }

    /// Copies tokens from `first` on, counted through all documents; see [`TokenFile::copy_at`].
    ///
    /// # Errors
    ///
    /// [`Error::NoTokensThere`], [`Error::Corrupt`].
    ///
    /// # Panics
    ///
    /// If the slices differ in length.
    pub fn copy_at(&self, first: u64, ids: &mut [i32], mask: &mut [u8]) -> Result<(), Error> {
        let end = first.saturating_add(ids.len() as u64);
        if end > self.num_tokens() {
            return Err(Error::NoTokensThere { first, end, num_tokens: self.num_tokens() });
        }
        let (mut first, mut done) = (first, 0);
        while done < ids.len() {
            let file = self.token_ends.partition_point(|&end| end <= first);
            let left = usize::try_from(self.token_ends[file] - first).unwrap_or(usize::MAX);
            let end = done + left.min(ids.len() - done);
            let place = first - before(&self.token_ends, file);
            self.files[file].copy_at(place, &mut ids[done..end], &mut mask[done..end])?;
            first += (end - done) as u64;
            done = end;
        }
        Ok(())
    }

    /// Where the tokens of a document lie among all.
    ///
    /// # Errors
    ///
    /// [`Error::NoSuchDocument`], [`Error::Corrupt`].
    pub fn bounds(&self, document: u64) -> Result<Range<u64>, Error> {
        let (file, document) = self.locate(document)?;
        let Range { start, end } = self.files[file].bounds(document)?;
        let first = before(&self.token_ends, file);
        Ok(first + start..first + end)
    }

    /// The document that a token is of, by binary search.
    ///
    /// # Errors
    ///
    /// [`Error::NoTokensThere`], [`Error::Corrupt`].
    pub fn document_at(&self, token: u64) -> Result<u64, Error> {
        if token >= self.num_tokens() {
            let (first, num_tokens) = (token, self.num_tokens());
            return Err(Error::NoTokensThere { first, end: token + 1, num_tokens });
        }
        let file = self.token_ends.partition_point(|&end| end <= token);
        let place = token - before(&self.token_ends, file);
        let (mut low, mut high) = (0, self.files[file].num_documents());
        while low < high {
            let middle = low + (high - low) / 2;
            if self.files[file].bounds(middle)?.end <= place {
                low = middle + 1;
            } else {
                high = middle;
            }
        }
        let document = before(&self.ends, file) + low;
        if self.bounds(document)?.contains(&token) {
            return Ok(document);
        }
        Err(Error::Corrupt {
            path: self.files[file].path().to_owned(),
            place: format!("entry {low} of the document index"),
            problem: format!("token {place} is of no document"),
        })
    }

    /// Number of tokens of every document.
    ///
    /// # Errors
    ///
    /// [`Error::Corrupt`].
    pub fn lengths(&self) -> Result<Vec<u32>, Error> {
        let mut lengths = Vec::new();
        for file in &self.files {
            for document in 0..file.num_documents() {
                lengths.push(file.length(document)?);
            }
        }
        Ok(lengths)
    }

    /// Reads every byte of every file; see [`TokenFile::verify`].
    ///
    /// # Errors
    ///
    /// [`Error::Corrupt`] for the first part that is damaged.
    pub fn verify(&self) -> Result<(), Error> {
        self.files.iter().try_for_each(TokenFile::verify)
    }

    /// The file of a document and its number there.
    fn locate(&self, document: u64) -> Result<(usize, u64), Error> {
        let file = self.ends.partition_point(|&end| end <= document);
        if file == self.files.len() {
            return Err(Error::NoSuchDocument { document, num_documents: self.num_documents() });
        }
        Ok((file, document - before(&self.ends, file)))
    }
}

fn running_sums(counts: impl Iterator<Item = u64>) -> Vec<u64> {
    let mut sum = 0;
    let sums = counts.map(|count| {
        sum += count;
        sum
    });
    sums.collect()
}

/// What comes before a file, given the ends of all.
fn before(ends: &[u64], file: usize) -> u64 {
    file.checked_sub(1).map_or(0, |file| ends[file])
}

impl Lengths for TokenShards {
    fn num_documents(&self) -> u64 {
        self.ends[self.ends.len() - 1]
    }

    fn num_tokens(&self) -> u64 {
        self.token_ends[self.token_ends.len() - 1]
    }

    fn length(&self, document: u64) -> Result<u32, Error> {
        let (file, document) = self.locate(document)?;
        self.files[file].length(document)
    }
}

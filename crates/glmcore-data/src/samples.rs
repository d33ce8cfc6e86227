//! Samples of one length from sources of documents end to end, in an order that no index stores.

use std::sync::Arc;

use xxhash_rust::xxh3::xxh3_64_with_seed;

use crate::mixture::check_sources;
use crate::{Error, Lengths, Schedule, Shuffle, Source, TokenShards};

/// Where a sample's tokens are.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Sample {
    /// Number of the source.
    pub source: u16,
    /// How often the source was read before.
    pub epoch: u64,
    /// First token, counted through the source's documents. A sample that reaches the source's end goes
    /// on at its beginning.
    pub first_token: u64,
}

/// Tokens of a sample that are of one document.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Stretch {
    /// Number of the source.
    pub source: u16,
    /// First token, counted through the source's documents.
    pub first_token: u64,
    /// Number of tokens.
    pub len: u32,
    /// Whether the document goes on behind the stretch.
    pub continues: bool,
}

/// The samples of a stage: sample `k` is a pure function of the sources, their weights, the seed and `k`.
///
/// The source of sample `k` and its number there come from a [`Schedule`]. A source of `t` tokens has
/// `t / sample_len` samples an epoch, in the order of its [`Shuffle`] for that epoch; they begin at a
/// place below `sample_len` that the epoch decides, so that every epoch cuts the documents elsewhere, and
/// up to `sample_len - 1` tokens are left out, other ones each time. Documents of a sample are neighbours
/// in the source, so sources with neighbours alike should be shuffled when they are written.
///
/// Finding a sample takes `O(log sources)` time and reading it a binary search in the document index;
/// nothing grows with the number of samples, and the state of a run is the number of its next sample.
#[derive(Debug, Clone)]
pub struct SampleStream {
    sources: Vec<Source<Arc<TokenShards>>>,
    schedule: Schedule,
    sample_len: u32,
    seed: u64,
}

impl SampleStream {
    /// Samples of `sample_len` tokens.
    ///
    /// # Errors
    ///
    /// Those of [`Mixture::new`](crate::Mixture::new), [`Error::SampleLength`], and
    /// [`Error::SourceTooShort`] for a source with fewer tokens than one sample.
    pub fn new(
        sources: Vec<Source<Arc<TokenShards>>>,
        sample_len: u32,
        seed: u64,
    ) -> Result<Self, Error> {
        check_sources(&sources)?;
        if sample_len == 0 || i32::try_from(sample_len).is_err() {
            return Err(Error::SampleLength { sample_len });
        }
        for source in &sources {
            let num_tokens = source.documents.num_tokens();
            if num_tokens < sample_len.into() {
                let name = source.name.clone();
                return Err(Error::SourceTooShort { name, num_tokens, sample_len });
            }
        }
        let weights: Vec<f64> = sources.iter().map(|source| source.weight).collect();
        Ok(Self { schedule: Schedule::new(&weights), sources, sample_len, seed })
    }

    /// The sources.
    pub fn sources(&self) -> &[Source<Arc<TokenShards>>] {
        &self.sources
    }

    /// Tokens of a sample.
    pub fn sample_len(&self) -> u32 {
        self.sample_len
    }

    /// The order of the sources.
    pub fn schedule(&self) -> &Schedule {
        &self.schedule
    }

    /// Samples of one epoch of a source.
    pub fn samples_per_epoch(&self, source: u16) -> u64 {
        let documents = &self.sources[usize::from(source)].documents;
        documents.num_tokens() / u64::from(self.sample_len)
    }

    /// Where sample `k` is.
    pub fn sample(&self, k: u64) -> Sample {
        let (source, count) = self.schedule.at(k);
        let (name, per_epoch) =
            (&self.sources[usize::from(source)].name, self.samples_per_epoch(source));
        let epoch = count / per_epoch;
        let place = Shuffle::new(per_epoch, self.seed, name, epoch).at(count % per_epoch);
        let len = u64::from(self.sample_len);
        let phase = xxh3_64_with_seed(
            name.as_bytes(),
            self.seed ^ xxh3_64_with_seed(&epoch.to_le_bytes(), len),
        ) % len;
        let num_tokens = self.sources[usize::from(source)].documents.num_tokens();
        Sample { source, epoch, first_token: (phase + place * len) % num_tokens }
    }

    /// Copies the tokens of sample `k` and those that follow it in its source, as many as the slices
    /// hold, with 1 for each that is learned and 0 for the rest.
    ///
    /// # Errors
    ///
    /// [`Error::Corrupt`].
    ///
    /// # Panics
    ///
    /// If the slices differ in length.
    pub fn read(&self, k: u64, ids: &mut [i32], mask: &mut [u8]) -> Result<(), Error> {
        let sample = self.sample(k);
        self.read_tokens(sample.source, sample.first_token, ids, mask)
    }

    /// Copies tokens of a source, going on at its beginning where it ends.
    ///
    /// # Errors
    ///
    /// [`Error::Corrupt`].
    ///
    /// # Panics
    ///
    /// If there is no such source, or the slices differ in length.
    pub fn read_tokens(
        &self,
        source: u16,
        first_token: u64,
        ids: &mut [i32],
        mask: &mut [u8],
    ) -> Result<(), Error> {
        let documents = &self.sources[usize::from(source)].documents;
        let (mut first, mut done) = (first_token % documents.num_tokens(), 0);
        while done < ids.len() {
            let left = usize::try_from(documents.num_tokens() - first).unwrap_or(usize::MAX);
            let end = done + left.min(ids.len() - done);
            documents.copy_at(first, &mut ids[done..end], &mut mask[done..end])?;
            (first, done) = (0, end);
        }
        Ok(())
    }

    /// The documents of sample `k`, in order.
    ///
    /// # Errors
    ///
    /// [`Error::Corrupt`].
    pub fn stretches(&self, k: u64) -> Result<Vec<Stretch>, Error> {
        let Sample { source, first_token, .. } = self.sample(k);
        let documents = &self.sources[usize::from(source)].documents;
        let mut stretches = Vec::new();
        let (mut first, mut left) = (first_token, u64::from(self.sample_len));
        let mut document = documents.document_at(first)?;
        while left > 0 {
            let bounds = documents.bounds(document)?;
            let len = left.min(bounds.end.saturating_sub(first));
            if len > 0 {
                let continues = first + len < bounds.end;
                let len = u32::try_from(len).expect("a sample's length is a 32-bit number");
                stretches.push(Stretch { source, first_token: first, len, continues });
            }
            (first, left) = (first + len, left - len);
            document += 1;
            if first == documents.num_tokens() {
                (first, document) = (0, 0);
            }
        }
        Ok(stretches)
    }
}

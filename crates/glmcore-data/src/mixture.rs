//! Drawing documents from several sources by weight.

use std::sync::Arc;

use crate::{Error, Shuffle};

/// Documents that can be drawn: how many there are, and how long each is.
pub trait Lengths {
    /// Number of documents.
    fn num_documents(&self) -> u64;

    /// Number of tokens of all documents.
    fn num_tokens(&self) -> u64;

    /// Number of tokens of one document.
    ///
    /// # Errors
    ///
    /// [`Error::NoSuchDocument`], [`Error::Corrupt`].
    fn length(&self, document: u64) -> Result<u32, Error>;
}

impl<L: Lengths + ?Sized> Lengths for Arc<L> {
    fn num_documents(&self) -> u64 {
        (**self).num_documents()
    }

    fn num_tokens(&self) -> u64 {
        (**self).num_tokens()
    }

    fn length(&self, document: u64) -> Result<u32, Error> {
        (**self).length(document)
    }
}

/// Documents with a share in a mixture. The order of its documents follows from its name, whatever other
/// sources there are.
#[derive(Debug, Clone)]
pub struct Source<L> {
    /// Unique in its mixture.
    pub name: String,
    /// Share of the tokens, relative to the other sources.
    pub weight: f64,
    /// The documents.
    pub documents: L,
}

/// How far a source is drawn.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Progress {
    /// Documents drawn, over all epochs.
    pub documents: u64,
    /// Tokens drawn, over all epochs.
    pub tokens: u64,
}

/// Documents in the order drawn.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Draws {
    /// Number of the source of each document.
    pub source: Vec<u16>,
    /// Number of each document in its source.
    pub document: Vec<u64>,
    /// Tokens of each document.
    pub length: Vec<u32>,
    /// Sum of the lengths.
    pub num_tokens: u64,
}

impl Draws {
    /// Adds documents drawn later.
    pub fn append(&mut self, mut later: Self) {
        self.source.append(&mut later.source);
        self.document.append(&mut later.document);
        self.length.append(&mut later.length);
        self.num_tokens += later.num_tokens;
    }
}

/// Draws whole documents so that each source's share of the tokens follows its weight.
///
/// The next document comes from the source with the fewest tokens per weight so far (ties to the earlier
/// source), so that after any number of draws source `i` with share `p` of all `T` tokens has at most
/// `p T` plus its own longest document, and at least `p T` minus `p` times the sum over the sources of
/// their longest documents. A source begins a new epoch, in a new order, where its documents end.
///
/// ```
/// use glmcore_data::{Mixture, Source};
///
/// let source = |name: &str, weight, lengths| Source { name: name.into(), weight, documents: lengths };
/// let sources = vec![source("web", 3.0, vec![10_u32; 50]), source("code", 1.0, vec![10; 50])];
/// let mut mixture = Mixture::new(sources, 42)?;
/// let draws = mixture.draw(400, usize::MAX)?;
/// assert_eq!(draws.source.iter().filter(|&&source| source == 0).count(), 30);
/// # Ok::<(), glmcore_data::Error>(())
/// ```
#[derive(Debug, Clone)]
pub struct Mixture<L> {
    sources: Vec<Source<L>>,
    seed: u64,
    progress: Vec<Progress>,
    epochs: Vec<(u64, Shuffle)>, // the current one of each source and its order
}

impl<L: Lengths> Mixture<L> {
    /// A mixture at its beginning.
    ///
    /// # Errors
    ///
    /// [`Error::Nothing`], [`Error::TooManySources`], [`Error::Weight`], [`Error::SameName`],
    /// [`Error::EmptySource`].
    pub fn new(sources: Vec<Source<L>>, seed: u64) -> Result<Self, Error> {
        check_sources(&sources)?;
        let progress = vec![Progress::default(); sources.len()];
        let shuffle = |source: &Source<L>| {
            (0, Shuffle::new(source.documents.num_documents(), seed, &source.name, 0))
        };
        let epochs = sources.iter().map(shuffle).collect();
        Ok(Self { sources, seed, progress, epochs })
    }

    /// The sources.
    pub fn sources(&self) -> &[Source<L>] {
        &self.sources
    }

    /// How far each source is drawn: the whole state.
    pub fn progress(&self) -> &[Progress] {
        &self.progress
    }

    /// Epoch of each source: how often all its documents were drawn.
    pub fn epochs(&self) -> Vec<u64> {
        let epoch = |(source, progress): (&Source<L>, &Progress)| {
            progress.documents / source.documents.num_documents()
        };
        self.sources.iter().zip(&self.progress).map(epoch).collect()
    }

    /// Goes to the state that [`progress`](Self::progress) gave.
    ///
    /// # Errors
    ///
    /// [`Error::Progress`] for a state of another number of sources.
    pub fn seek(&mut self, progress: &[Progress]) -> Result<(), Error> {
        if progress.len() != self.sources.len() {
            return Err(Error::Progress { given: progress.len(), expected: self.sources.len() });
        }
        self.progress.copy_from_slice(progress);
        Ok(())
    }

    /// Draws documents until they have `min_tokens` tokens or there are `max_documents` of them.
    ///
    /// # Errors
    ///
    /// [`Error::Corrupt`] where a document's length cannot be read.
    pub fn draw(&mut self, min_tokens: u64, max_documents: usize) -> Result<Draws, Error> {
        let mut tokens_per_weight: Vec<f64> = self
            .sources
            .iter()
            .zip(&self.progress)
            .map(|(source, p)| p.tokens as f64 / source.weight)
            .collect();
        let mut draws = Draws::default();
        while draws.num_tokens < min_tokens && draws.length.len() < max_documents {
            let mut next = 0_u16;
            let mut fewest = f64::INFINITY;
            for (i, &tokens) in (0..).zip(&tokens_per_weight) {
                if tokens < fewest {
                    (next, fewest) = (i, tokens);
                }
            }
            let place = usize::from(next);
            let source = &self.sources[place];
            let progress = &mut self.progress[place];
            let document = next_document(source, self.seed, *progress, &mut self.epochs[place]);
            let length = source.documents.length(document)?;
            progress.documents += 1;
            progress.tokens += u64::from(length);
            tokens_per_weight[place] = progress.tokens as f64 / source.weight;
            draws.source.push(next);
            draws.document.push(document);
            draws.length.push(length);
            draws.num_tokens += u64::from(length);
        }
        Ok(draws)
    }
}

/// Refuses sources that cannot be mixed.
pub(crate) fn check_sources<L: Lengths>(sources: &[Source<L>]) -> Result<(), Error> {
    if sources.is_empty() {
        return Err(Error::Nothing { what: "sources" });
    }
    if sources.len() > u16::MAX.into() {
        return Err(Error::TooManySources { count: sources.len() });
    }
    for (place, Source { name, weight, documents }) in sources.iter().enumerate() {
        if !weight.is_finite() || *weight <= 0.0 {
            return Err(Error::Weight { name: name.clone(), weight: *weight });
        }
        if sources[..place].iter().any(|other| other.name == *name) {
            return Err(Error::SameName { name: name.clone() });
        }
        if documents.num_tokens() == 0 {
            return Err(Error::EmptySource { name: name.clone() });
        }
    }
    Ok(())
}

/// The document that follows a state, by the order of its epoch.
fn next_document<L: Lengths>(
    source: &Source<L>,
    seed: u64,
    progress: Progress,
    (epoch, shuffle): &mut (u64, Shuffle),
) -> u64 {
    let num_documents = source.documents.num_documents();
    let now = progress.documents / num_documents;
    if now != *epoch {
        *epoch = now;
        *shuffle = Shuffle::new(num_documents, seed, &source.name, now);
    }
    shuffle.at(progress.documents % num_documents)
}

impl Lengths for Vec<u32> {
    fn num_documents(&self) -> u64 {
        self.len() as u64
    }

    fn num_tokens(&self) -> u64 {
        self.iter().map(|&length| u64::from(length)).sum()
    }

    fn length(&self, document: u64) -> Result<u32, Error> {
        let place = usize::try_from(document).ok();
        let length = place.and_then(|place| self.get(place)).copied();
        length.ok_or(Error::NoSuchDocument { document, num_documents: self.num_documents() })
    }
}

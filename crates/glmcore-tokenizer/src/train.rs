//! Learning merges from text: count words, then merge the most frequent pair again and again.
//!
//! Ties go to the smaller pair of ids, the bytes being numbered in the order of the byte-level alphabet, so the merges
//! are those that Hugging Face's trainer learns from the same words.
//!
//! Memory does not grow with the text but with its distinct words: about 64 bytes for each while counting (per thread),
//! then about 24 bytes and 12 for each of its bytes.

use std::path::Path;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Mutex, PoisonError};

use crate::count::WordCounts;
use crate::learn::Merger;
use crate::split::{GLM4_PATTERN, Splitter, Stage};
use crate::threads::on_threads;
use crate::tokenizer::splitter;
use crate::{Error, TokenId};

/// What training has learned.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Training {
    /// Bytes of each token: the 256 single bytes, then one a merge.
    pub tokens: Vec<Vec<u8>>,
    /// Merged pairs, in order.
    pub merges: Vec<(TokenId, TokenId)>,
    /// Pattern that split the text.
    pub pattern: String,
}

/// What may be learned.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Limits {
    /// Pairs that stand fewer times are not merged.
    pub min_frequency: u64,
    /// Pairs of together so many bytes, or more, are not merged; 0 for no limit. Two single bytes always may be.
    pub max_token_length: usize,
}

/// Counts the words of a corpus. Feed it all text, then take the merges.
#[derive(Debug)]
pub struct Trainer {
    pattern: String,
    splitter: Splitter,
    /// Counts of each thread.
    counts: Vec<WordCounts>,
}

/// Bytes that a thread counts in one go.
const CHUNK_BYTES: usize = 1 << 18;
/// Bytes of a file that are counted between two looks at the progress.
const PART_BYTES: usize = 1 << 25;

impl Trainer {
    /// A trainer for GLM-4's pattern that has seen nothing.
    pub fn new() -> Self {
        Self::with_pattern(GLM4_PATTERN).expect("GLM-4's pattern is known")
    }

    /// A trainer that splits text by `pattern`; what the pattern leaves out becomes words too.
    ///
    /// # Errors
    ///
    /// [`Error::Unsupported`] if the engine cannot read the pattern.
    pub fn with_pattern(pattern: &str) -> Result<Self, Error> {
        let stages = vec![Stage::new(pattern, true)?];
        Ok(Self {
            pattern: pattern.to_owned(),
            splitter: splitter(stages),
            counts: vec![WordCounts::new()],
        })
    }

    /// Adds the words of `texts`, counted by `num_threads` threads (0 for all cores).
    ///
    /// # Panics
    ///
    /// If the operating system refuses to start threads.
    pub fn feed<T: AsRef<str> + Sync>(&mut self, texts: &[T], num_threads: usize) {
        let texts: Vec<&str> = texts.iter().map(AsRef::as_ref).collect();
        self.count(&texts, num_threads);
    }

    /// Adds words of a UTF-8 file from byte `start` on, some megabytes of them, and gives the byte to go on from: the
    /// size of the file at its end. The result is that of the whole file as one text or, if `by_line`, of its lines as
    /// texts (as Hugging Face's `train` reads files).
    ///
    /// # Errors
    ///
    /// [`Error::File`] if the file cannot be read, [`Error::NotUtf8`] with the place of the first byte that is no text.
    #[expect(
        unsafe_code,
        reason = "a file that changes while it is mapped is the caller's to avoid"
    )]
    pub fn feed_file_part(
        &mut self,
        path: &Path,
        start: usize,
        by_line: bool,
        num_threads: usize,
    ) -> Result<usize, Error> {
        let failed = |source| Error::File { path: path.to_owned(), source };
        let file = std::fs::File::open(path).map_err(failed)?;
        let size = usize::try_from(file.metadata().map_err(failed)?.len())
            .expect("a file fits the address space");
        if start >= size {
            return Ok(size);
        }
        // SAFETY: the mapping is private to this call; the documentation asks for files that do not change meanwhile.
        let map = unsafe { memmap2::Mmap::map(&file) }.map_err(failed)?;
        let is_known = matches!(self.splitter, Splitter::Known(_));
        let end = if by_line || is_known { part_end(&map, start, by_line) } else { size };
        let text = std::str::from_utf8(&map[start..end]).map_err(|error| Error::NotUtf8 {
            path: path.to_owned(),
            at: start + error.valid_up_to(),
        })?;
        if by_line {
            let lines: Vec<&str> = text.split_inclusive('\n').collect();
            self.count(&lines, num_threads);
        } else if is_known {
            let mut texts = Vec::new();
            let mut rest = text;
            while !rest.is_empty() {
                let (first, after) = rest.split_at(cut_behind(rest.as_bytes(), CHUNK_BYTES, false));
                texts.push(first);
                rest = after;
            }
            self.count(&texts, num_threads);
        } else {
            self.count(&[text], num_threads);
        }
        Ok(end)
    }

    fn count(&mut self, texts: &[&str], num_threads: usize) {
        let chunks = chunks_of(texts);
        let counters: Mutex<Vec<WordCounts>> = Mutex::new(std::mem::take(&mut self.counts));
        let next = AtomicUsize::new(0);
        let lock = || counters.lock().unwrap_or_else(PoisonError::into_inner);
        on_threads(num_threads, chunks.len(), || {
            let mut counts = lock().pop().unwrap_or_else(WordCounts::new);
            while let Some(range) = chunks.get(next.fetch_add(1, Ordering::Relaxed)) {
                for text in &texts[range.clone()] {
                    counts.add_text(&self.splitter, text);
                }
            }
            lock().push(counts);
        });
        self.counts = counters.into_inner().unwrap_or_else(PoisonError::into_inner);
    }

    /// Number of distinct words seen; words that several threads have seen count for each.
    pub fn num_words(&self) -> usize {
        self.counts.iter().map(WordCounts::len).sum()
    }

    /// Ends the counting; the merges are then learned step by step.
    pub fn into_merger(self, limits: Limits) -> Merger {
        let mut counts = self.counts.into_iter();
        let mut all = counts.next().unwrap_or_else(WordCounts::new);
        for other in counts {
            all.add_all(&other);
        }
        Merger::new(&all, limits, self.pattern)
    }

    /// Learns until there are `num_tokens` tokens.
    ///
    /// # Errors
    ///
    /// [`Error::TooLittleText`] if the words allow fewer merges.
    pub fn finish(self, num_tokens: usize) -> Result<Training, Error> {
        let mut merger = self.into_merger(Limits::default());
        merger.run(num_tokens);
        merger.finish(num_tokens)
    }
}

impl Default for Trainer {
    fn default() -> Self {
        Self::new()
    }
}

/// Ranges of texts of some size together.
fn chunks_of(texts: &[&str]) -> Vec<std::ops::Range<usize>> {
    let mut chunks = Vec::new();
    let (mut first, mut size) = (0, 0);
    for (place, text) in texts.iter().enumerate() {
        size += text.len();
        if size >= CHUNK_BYTES {
            chunks.push(first..place + 1);
            (first, size) = (place + 1, 0);
        }
    }
    if first < texts.len() {
        chunks.push(first..texts.len());
    }
    chunks
}

fn part_end(bytes: &[u8], start: usize, by_line: bool) -> usize {
    start + cut_behind(&bytes[start..], PART_BYTES, by_line)
}

/// The first place from `from` on behind a line break, and before an ASCII letter or digit unless lines are texts of
/// their own: there every known pattern ends a word. Else the end.
fn cut_behind(bytes: &[u8], from: usize, by_line: bool) -> usize {
    let rest = bytes.get(from..).unwrap_or_default();
    let is_cut = |pair: &[u8]| pair[0] == b'\n' && (by_line || pair[1].is_ascii_alphanumeric());
    rest.windows(2).position(is_cut).map_or(bytes.len(), |place| from + place + 1)
}

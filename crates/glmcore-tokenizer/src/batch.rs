//! Many texts, or one long text, at once on several threads.

use std::fs::File;
use std::path::Path;
use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};

use memmap2::Mmap;

use crate::threads::on_threads;
use crate::tokenizer::{Special, Tokenizer};
use crate::{Error, TokenId};

/// Tokens of many texts, one after the other.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct EncodedBatch {
    /// All tokens.
    pub ids: Vec<TokenId>,
    /// Text i has the tokens from `offsets[i]` to `offsets[i + 1]`.
    pub offsets: Vec<usize>,
}

/// Bytes of text that a thread takes at a time: enough to be worth it, little enough that no thread ends late.
const CHUNK_BYTES: usize = 1 << 18;

/// Texts, or a piece of a long text, that one thread encodes in one go.
#[derive(Debug, Clone)]
enum Chunk {
    Texts(std::ops::Range<usize>),
    /// Bytes of a text; the last piece of it ends it.
    Piece {
        text: usize,
        bytes: std::ops::Range<usize>,
        last: bool,
    },
}

impl Tokenizer {
    /// Encodes `texts` on at most `num_threads` threads (0 for all cores). The result does not depend on their number.
    ///
    /// # Panics
    ///
    /// If the operating system refuses to start threads.
    pub fn encode_batch<T: AsRef<str> + Sync>(
        &self,
        texts: &[T],
        special: Special,
        num_threads: usize,
    ) -> EncodedBatch {
        let size: usize = texts.iter().map(|text| text.as_ref().len()).sum();
        if num_threads == 1 || size < CHUNK_BYTES {
            let mut batch =
                EncodedBatch { ids: Vec::with_capacity(size / 3 + 8), offsets: vec![0] };
            self.with_workspace(|work| {
                for text in texts {
                    self.encode_into(text.as_ref(), special, work, &mut batch.ids);
                    batch.offsets.push(batch.ids.len());
                }
            });
            return batch;
        }
        let chunks = self.chunks(texts);
        let next = AtomicUsize::new(0);
        let encoded = on_threads(num_threads, chunks.len(), || {
            let mut done = Vec::new();
            self.with_workspace(|work| {
                loop {
                    let place = next.fetch_add(1, Ordering::Relaxed);
                    let Some(chunk) = chunks.get(place) else { break };
                    let mut ids = Vec::with_capacity(CHUNK_BYTES / 3);
                    let mut lens = Vec::new();
                    match chunk {
                        Chunk::Texts(range) => {
                            for text in &texts[range.clone()] {
                                self.encode_into(text.as_ref(), special, work, &mut ids);
                                lens.push(ids.len());
                            }
                        }
                        Chunk::Piece { text, bytes, last } => {
                            self.encode_into(
                                &texts[*text].as_ref()[bytes.clone()],
                                special,
                                work,
                                &mut ids,
                            );
                            lens.extend(last.then_some(ids.len()));
                        }
                    }
                    done.push((place, ids, lens));
                }
            });
            done
        });
        let mut encoded: Vec<_> = encoded.into_iter().flatten().collect();
        encoded.sort_unstable_by_key(|&(place, ..)| place);
        let mut batch = EncodedBatch { ids: Vec::new(), offsets: vec![0] };
        let mut start = 0;
        for (_, ids, lens) in &encoded {
            batch.offsets.extend(lens.iter().map(|len| start + len));
            start += ids.len();
        }
        batch.ids = join(encoded.iter().map(|(_, ids, _)| &ids[..]), start, num_threads);
        batch
    }

    /// Encodes the UTF-8 text of a file, which is mapped, not read; at most `num_threads` threads (0 for all cores).
    ///
    /// # Errors
    ///
    /// [`Error::File`] if it cannot be opened, [`Error::NotUtf8`] with the place of the first byte that is no text.
    pub fn encode_file(
        &self,
        path: &Path,
        special: Special,
        num_threads: usize,
    ) -> Result<Vec<TokenId>, Error> {
        let part = self.encode_file_part(path, 0, usize::MAX, special, num_threads)?;
        Ok(part.0)
    }

    /// Encodes a file's text from byte `start`, which an earlier part ended at, for `min_bytes` or a little more: up to
    /// the next place where a cut changes no token, or to the end. Also gives the byte that the part ends at.
    ///
    /// # Errors
    ///
    /// As [`Tokenizer::encode_file`].
    #[expect(
        unsafe_code,
        reason = "a file that changes while it is mapped is the caller's to avoid"
    )]
    pub fn encode_file_part(
        &self,
        path: &Path,
        start: usize,
        min_bytes: usize,
        special: Special,
        num_threads: usize,
    ) -> Result<(Vec<TokenId>, usize), Error> {
        let failed = |source| Error::File { path: path.to_owned(), source };
        let file = File::open(path).map_err(failed)?;
        let size = usize::try_from(file.metadata().map_err(failed)?.len())
            .expect("a file fits the address space");
        if start >= size {
            return Ok((Vec::new(), size));
        }
        // SAFETY: the mapping is private to this call; the documentation asks for files that do not change meanwhile.
        let map = unsafe { Mmap::map(&file) }.map_err(failed)?;
        let end =
            if self.can_be_cut() { next_cut(&map, start.saturating_add(min_bytes)) } else { size };
        let text = std::str::from_utf8(&map[start..end]).map_err(|error| Error::NotUtf8 {
            path: path.to_owned(),
            at: start + error.valid_up_to(),
        })?;
        Ok((self.encode_batch(&[text], special, num_threads).ids, end))
    }

    /// Cuts the work: short texts together, long texts where a cut cannot change their tokens.
    fn chunks<T: AsRef<str>>(&self, texts: &[T]) -> Vec<Chunk> {
        let mut chunks = Vec::new();
        let (mut first, mut size) = (0, 0);
        for (place, text) in texts.iter().enumerate() {
            let text = text.as_ref();
            if text.len() > 2 * CHUNK_BYTES && self.can_be_cut() {
                if first < place {
                    chunks.push(Chunk::Texts(first..place));
                }
                let mut start = 0;
                while start < text.len() {
                    let end = next_cut(text.as_bytes(), start + CHUNK_BYTES);
                    chunks.push(Chunk::Piece {
                        text: place,
                        bytes: start..end,
                        last: end == text.len(),
                    });
                    start = end;
                }
                (first, size) = (place + 1, 0);
                continue;
            }
            size += text.len();
            if size >= CHUNK_BYTES {
                chunks.push(Chunk::Texts(first..place + 1));
                (first, size) = (place + 1, 0);
            }
        }
        if first < texts.len() {
            chunks.push(Chunk::Texts(first..texts.len()));
        }
        chunks
    }
}

/// The parts one after the other, `total` tokens, copied on the threads that the batch may use: a fresh array costs more
/// to touch first than to fill.
fn join<'a>(
    parts: impl Iterator<Item = &'a [TokenId]>,
    total: usize,
    num_threads: usize,
) -> Vec<TokenId> {
    let mut joined = vec![0; total];
    let mut rest = &mut joined[..];
    let copies: Vec<_> = parts
        .map(|part| {
            let (place, after) = std::mem::take(&mut rest).split_at_mut(part.len());
            rest = after;
            (place, part)
        })
        .collect();
    let num_copies = copies.len();
    let copies = Mutex::new(copies.into_iter());
    on_threads(num_threads, num_copies, || {
        loop {
            let next = copies.lock().expect("copying does not panic").next();
            let Some((place, part)) = next else { break };
            place.copy_from_slice(part);
        }
    });
    joined
}

/// The first place from `from` on between a line break and an ASCII letter or digit: there every known pattern ends a
/// word, whatever stands around it. Else the end.
fn next_cut(text: &[u8], from: usize) -> usize {
    let is_cut = |pair: &[u8]| pair[0] == b'\n' && pair[1].is_ascii_alphanumeric();
    let rest = text.get(from..).unwrap_or_default();
    rest.windows(2).position(is_cut).map_or(text.len(), |place| from + place + 1)
}

//! Writing one shard.

use std::fmt;
use std::fs::{self, File};
use std::io::{self, BufWriter, Seek, SeekFrom, Write};
use std::path::{Path, PathBuf};

use xxhash_rust::xxh3::{Xxh3, xxh3_64};

use crate::Error;
use crate::format::{HEADER_LEN, Header, MAX_VOCAB_SIZE, align, token_bytes};

const BUFFER_BYTES: usize = 1 << 20;

/// Writes documents to a temporary file beside the final path, and gives it that name when complete.
///
/// Tokens go to disk as they come; memory grows by 14 bytes per document and one bit per masked token.
/// A writer that is dropped unfinished removes its file. One path has one writer at a time: the
/// temporary file is `PATH.partial`, and what a killed process left of it is overwritten.
pub struct ShardWriter {
    path: PathBuf,
    partial: PathBuf,
    file: BufWriter<File>,
    finished: bool,
    vocab_size: u32,
    with_loss_mask: bool,
    checksum: Box<Xxh3>,
    scratch: Vec<u8>,
    ends: Vec<u64>, // first token of each document, and the number of tokens
    sources: Vec<u16>,
    qualities: Vec<f32>,
    mask: Vec<u8>,
}

impl ShardWriter {
    /// Begins the shard that [`finish`](Self::finish) puts at `path`.
    ///
    /// # Errors
    ///
    /// [`Error::VocabSize`], [`Error::Io`].
    pub fn create(
        path: impl AsRef<Path>,
        vocab_size: u32,
        with_loss_mask: bool,
    ) -> Result<Self, Error> {
        if !(1..=MAX_VOCAB_SIZE).contains(&vocab_size) {
            return Err(Error::VocabSize { vocab_size });
        }
        let path = path.as_ref().to_owned();
        let mut partial = path.clone().into_os_string();
        partial.push(".partial");
        let partial = PathBuf::from(partial);
        let error = |action, path: &Path| {
            let path = path.to_owned();
            move |source| Error::Io { action, path, source }
        };
        let file = File::create(&partial).map_err(error("create", &partial))?;
        let mut file = BufWriter::with_capacity(BUFFER_BYTES, file);
        file.write_all(&[0; HEADER_LEN]).map_err(error("write", &partial))?;
        Ok(Self {
            path,
            partial,
            file,
            finished: false,
            vocab_size,
            with_loss_mask,
            checksum: Box::new(Xxh3::new()),
            scratch: Vec::new(),
            ends: vec![0],
            sources: Vec::new(),
            qualities: Vec::new(),
            mask: Vec::new(),
        })
    }

    /// Number of documents so far.
    pub fn num_documents(&self) -> u64 {
        self.sources.len() as u64
    }

    /// Number of tokens so far.
    pub fn num_tokens(&self) -> u64 {
        self.ends[self.sources.len()]
    }

    /// Adds a document. In a shard with a loss mask a document without one is learned whole. After an
    /// error other than [`Error::Io`] the shard is as before.
    ///
    /// # Errors
    ///
    /// [`Error::IdOutOfRange`] for the first id outside the vocabulary, [`Error::LossMaskLength`],
    /// [`Error::UnwantedLossMask`], [`Error::DocumentTooLong`], [`Error::Io`].
    pub fn append<I: Copy + Into<i64>>(
        &mut self,
        ids: &[I],
        loss_mask: Option<&[u8]>,
        source: u16,
        quality: f32,
    ) -> Result<(), Error> {
        let document = self.num_documents();
        if u32::try_from(ids.len()).is_err() {
            return Err(Error::DocumentTooLong { document, len: ids.len() });
        }
        match loss_mask {
            Some(_) if !self.with_loss_mask => return Err(Error::UnwantedLossMask { document }),
            Some(mask) if mask.len() != ids.len() => {
                return Err(Error::LossMaskLength { document, mask: mask.len(), len: ids.len() });
            }
            _ => {}
        }
        self.encode(ids)?;
        self.checksum.update(&self.scratch);
        self.file.write_all(&self.scratch).map_err(|source| Error::Io {
            action: "write",
            path: self.partial.clone(),
            source,
        })?;

        let first = self.num_tokens();
        if self.with_loss_mask {
            self.append_mask(first, ids.len(), loss_mask);
        }
        self.ends.push(first + ids.len() as u64);
        self.sources.push(source);
        self.qualities.push(quality);
        Ok(())
    }

    /// Adds many documents without loss masks, the ids of document i from `offsets[i]` to `offsets[i + 1]`, each with
    /// `end` behind it. An error leaves the documents before it in the shard.
    ///
    /// # Errors
    ///
    /// As [`append`](Self::append).
    ///
    /// # Panics
    ///
    /// If the offsets fall or leave the ids.
    pub fn append_batch<I: Copy + Into<i64>>(
        &mut self,
        ids: &[I],
        offsets: &[usize],
        end: Option<I>,
        source: u16,
        quality: f32,
    ) -> Result<(), Error> {
        let mut document = Vec::new();
        for bounds in offsets.windows(2) {
            document.clear();
            document.extend_from_slice(&ids[bounds[0]..bounds[1]]);
            document.extend(end);
            self.append(&document, None, source, quality)?;
        }
        Ok(())
    }

    /// Writes the rest, makes the file durable and gives it its name.
    ///
    /// # Errors
    ///
    /// [`Error::Io`].
    pub fn finish(mut self) -> Result<(), Error> {
        self.complete().map_err(|source| Error::Io {
            action: "write",
            path: self.path.clone(),
            source,
        })
    }

    /// Puts the ids into `scratch` as the file stores them: one pass that checks and one that narrows, both without a
    /// branch for each id.
    fn encode<I: Copy + Into<i64>>(&mut self, ids: &[I]) -> Result<(), Error> {
        let vocab_size = self.vocab_size;
        let is_known = |id: i64| (0..i64::from(vocab_size)).contains(&id);
        if !ids.iter().fold(true, |known, &id| known & is_known(id.into())) {
            let position = ids.iter().position(|&id| !is_known(id.into()));
            let position = position.expect("an id is unknown");
            let (document, id) = (self.num_documents(), ids[position].into());
            return Err(Error::IdOutOfRange { document, position, id, vocab_size });
        }
        if token_bytes(vocab_size) == 4 {
            narrow(&mut self.scratch, ids, |[a, b, c, d, ..]| [a, b, c, d]);
        } else {
            narrow(&mut self.scratch, ids, |[a, b, ..]| [a, b]);
        }
        Ok(())
    }

    fn append_mask(&mut self, first: u64, len: usize, loss_mask: Option<&[u8]>) {
        for (token, i) in (first..).zip(0..len) {
            if token % 8 == 0 {
                self.mask.push(0);
            }
            let learned = loss_mask.is_none_or(|mask| mask[i] != 0);
            *self.mask.last_mut().expect("a byte begins every eight tokens") |=
                u8::from(learned) << (token % 8);
        }
    }

    fn complete(&mut self) -> io::Result<()> {
        let index: Vec<u8> = self.ends.iter().flat_map(|end| end.to_le_bytes()).collect();
        let sources: Vec<u8> =
            self.sources.iter().flat_map(|source| source.to_le_bytes()).collect();
        let qualities: Vec<u8> =
            self.qualities.iter().flat_map(|quality| quality.to_le_bytes()).collect();
        let mut checksums = [self.checksum.digest(), 0, 0, 0, 0];
        for (section, checksum) in
            [&index, &sources, &qualities, &self.mask].into_iter().zip(&mut checksums[1..])
        {
            *checksum = xxh3_64(section);
            let end = self.file.stream_position()?;
            let start = align(end).ok_or_else(|| io::Error::from(io::ErrorKind::FileTooLarge))?;
            self.file.write_all(&vec![
                0;
                usize::try_from(start - end)
                    .expect("less than one alignment")
            ])?;
            self.file.write_all(section)?;
        }
        let header = Header {
            vocab_size: self.vocab_size,
            num_documents: self.num_documents(),
            num_tokens: self.num_tokens(),
            has_loss_mask: self.with_loss_mask,
            checksums,
        };
        let file = &mut self.file;
        file.seek(SeekFrom::Start(0))?;
        file.write_all(&header.encode())?;
        file.flush()?;
        file.get_ref().sync_all()?;
        fs::rename(&self.partial, &self.path)?;
        self.finished = true;
        sync_folder(&self.path)
    }
}

/// Fills `bytes` with the `N` bytes that `low` gives of each id.
fn narrow<I: Copy + Into<i64>, const N: usize>(
    bytes: &mut Vec<u8>,
    ids: &[I],
    low: impl Fn([u8; 8]) -> [u8; N],
) {
    bytes.clear();
    bytes.resize(N * ids.len(), 0);
    for (place, &id) in bytes.as_chunks_mut::<N>().0.iter_mut().zip(ids) {
        *place = low(id.into().to_le_bytes());
    }
}

impl fmt::Debug for ShardWriter {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ShardWriter").field("path", &self.path).finish_non_exhaustive()
    }
}

impl Drop for ShardWriter {
    fn drop(&mut self) {
        if !self.finished {
            // Nobody reads a partial file: where removing it fails, the next writer overwrites it.
            let _ = fs::remove_file(&self.partial);
        }
    }
}

/// Makes a rename in the folder of `path` durable.
pub(crate) fn sync_folder(path: &Path) -> io::Result<()> {
    let folder =
        path.parent().filter(|folder| !folder.as_os_str().is_empty()).unwrap_or(Path::new("."));
    File::open(folder)?.sync_all()
}

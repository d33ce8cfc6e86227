//! Writing the token files of Megatron-LM.

use std::fs::{self, File};
use std::io::{self, BufWriter, Write};
use std::path::{Path, PathBuf};

use crate::megatron::{CODE_I32, CODE_U16, MAGIC, VERSION, paths};
use crate::{Error, MAX_VOCAB_SIZE};

/// Vocabularies from this size on are stored in 4 bytes a token, as Megatron does.
const WIDE_VOCAB_SIZE: u32 = 65_500;
const BUFFER_BYTES: usize = 1 << 20;

/// Writes documents, one sequence each, as `PREFIX.bin` and `PREFIX.idx`.
///
/// The index appears last and only when everything is durable; an index of that name is removed before
/// the tokens change. Memory grows by 4 bytes a document. A writer dropped unfinished removes its file.
#[derive(Debug)]
pub struct MegatronWriter {
    bin: PathBuf,
    idx: PathBuf,
    partial: PathBuf,
    file: BufWriter<File>,
    finished: bool,
    vocab_size: u32,
    scratch: Vec<u8>,
    lengths: Vec<i32>,
}

impl MegatronWriter {
    /// Begins the files of a prefix.
    ///
    /// # Errors
    ///
    /// [`Error::VocabSize`], [`Error::Io`].
    pub fn create(prefix: impl AsRef<Path>, vocab_size: u32) -> Result<Self, Error> {
        if !(1..=MAX_VOCAB_SIZE).contains(&vocab_size) {
            return Err(Error::VocabSize { vocab_size });
        }
        let (bin, idx) = paths(prefix.as_ref());
        let partial = with_ending(&bin);
        let file = File::create(&partial).map_err(|source| Error::Io {
            action: "create",
            path: partial.clone(),
            source,
        })?;
        let file = BufWriter::with_capacity(BUFFER_BYTES, file);
        let (scratch, lengths) = (Vec::new(), Vec::new());
        Ok(Self { bin, idx, partial, file, finished: false, vocab_size, scratch, lengths })
    }

    /// Adds a document. After an error other than [`Error::Io`] the files are as before.
    ///
    /// # Errors
    ///
    /// [`Error::IdOutOfRange`], [`Error::DocumentTooLong`], [`Error::Io`].
    pub fn append<I: Copy + Into<i64>>(&mut self, ids: &[I]) -> Result<(), Error> {
        let document = self.lengths.len() as u64;
        let Ok(length) = i32::try_from(ids.len()) else {
            return Err(Error::DocumentTooLong { document, len: ids.len() });
        };
        let width = if self.vocab_size < WIDE_VOCAB_SIZE { 2 } else { 4 };
        self.scratch.clear();
        for (position, &id) in ids.iter().enumerate() {
            let id: i64 = id.into();
            let Some(token) = u32::try_from(id).ok().filter(|&token| token < self.vocab_size)
            else {
                let vocab_size = self.vocab_size;
                return Err(Error::IdOutOfRange { document, position, id, vocab_size });
            };
            self.scratch.extend_from_slice(&token.to_le_bytes()[..width]);
        }
        self.file.write_all(&self.scratch).map_err(|source| Error::Io {
            action: "write",
            path: self.partial.clone(),
            source,
        })?;
        self.lengths.push(length);
        Ok(())
    }

    /// Adds many documents, the ids of document i from `offsets[i]` to `offsets[i + 1]`, each with `end` behind it. An
    /// error leaves the documents before it in the files.
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
    ) -> Result<(), Error> {
        let mut document = Vec::new();
        for bounds in offsets.windows(2) {
            document.clear();
            document.extend_from_slice(&ids[bounds[0]..bounds[1]]);
            document.extend(end);
            self.append(&document)?;
        }
        Ok(())
    }

    /// Makes both files durable and gives them their names.
    ///
    /// # Errors
    ///
    /// [`Error::Io`].
    pub fn finish(mut self) -> Result<(), Error> {
        let path = self.idx.clone();
        self.complete().map_err(|source| Error::Io { action: "write", path, source })
    }

    fn complete(&mut self) -> io::Result<()> {
        self.file.flush()?;
        self.file.get_ref().sync_all()?;
        let index_partial = with_ending(&self.idx);
        let index = File::create(&index_partial)?;
        let mut index = BufWriter::with_capacity(BUFFER_BYTES, index);
        self.write_index(&mut index)?;
        index.flush()?;
        index.get_ref().sync_all()?;
        match fs::remove_file(&self.idx) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
            _ => {}
        }
        fs::rename(&self.partial, &self.bin)?;
        self.finished = true;
        fs::rename(&index_partial, &self.idx)?;
        crate::writer::sync_folder(&self.idx)
    }

    fn write_index(&self, index: &mut impl Write) -> io::Result<()> {
        let narrow = self.vocab_size < WIDE_VOCAB_SIZE;
        let (code, width) = if narrow { (CODE_U16, 2) } else { (CODE_I32, 4) };
        let num_sequences = self.lengths.len() as u64;
        index.write_all(&MAGIC)?;
        index.write_all(&VERSION.to_le_bytes())?;
        index.write_all(&[code])?;
        index.write_all(&num_sequences.to_le_bytes())?;
        index.write_all(&(num_sequences + 1).to_le_bytes())?;
        for length in &self.lengths {
            index.write_all(&length.to_le_bytes())?;
        }
        let mut first = 0_u64;
        for &length in &self.lengths {
            index.write_all(&first.to_le_bytes())?;
            first += u64::from(length.unsigned_abs()) * width;
        }
        for bound in 0..=num_sequences {
            index.write_all(&bound.to_le_bytes())?;
        }
        Ok(())
    }
}

impl Drop for MegatronWriter {
    fn drop(&mut self) {
        if !self.finished {
            // Nobody reads partial files: where removing them fails, the next writer overwrites them.
            let _ = fs::remove_file(&self.partial);
            let _ = fs::remove_file(with_ending(&self.idx));
        }
    }
}

fn with_ending(path: &Path) -> PathBuf {
    let mut partial = path.as_os_str().to_owned();
    partial.push(".partial");
    PathBuf::from(partial)
}

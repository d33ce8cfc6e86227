//! Reading one shard.

use std::ops::Range;
use std::path::{Path, PathBuf};

use xxhash_rust::xxh3::xxh3_64;

use crate::Error;
use crate::format::{Header, Section, token_bytes};
use crate::mapped::MappedFile;

/// Tokens as the file stores them.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Tokens<'a> {
    /// Of a vocabulary of at most 65,536.
    U16(&'a [u16]),
    /// Of a larger one; ids are below 2^31.
    U32(&'a [u32]),
}

impl Tokens<'_> {
    /// Number of tokens.
    pub fn len(&self) -> usize {
        match self {
            Self::U16(ids) => ids.len(),
            Self::U32(ids) => ids.len(),
        }
    }

    /// Whether there is no token.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// The largest id, 0 for no tokens.
    pub(crate) fn max(&self) -> u32 {
        match self {
            Self::U16(ids) => ids.iter().copied().max().map_or(0, u32::from),
            Self::U32(ids) => ids.iter().copied().max().unwrap_or(0),
        }
    }
}

/// One shard, mapped into memory. Opening checks the header and the ends of the document index, whatever
/// the size of the file; [`verify`](Self::verify) checks every byte.
#[derive(Debug)]
pub struct Shard {
    path: PathBuf,
    file: MappedFile,
    header: Header,
    layout: [Range<u64>; 5],
}

impl Shard {
    /// Maps a shard.
    ///
    /// # Errors
    ///
    /// [`Error::Io`], [`Error::NotAShard`], [`Error::Version`], [`Error::Truncated`],
    /// [`Error::Corrupt`].
    pub fn open(path: impl AsRef<Path>) -> Result<Self, Error> {
        let path = path.as_ref().to_owned();
        let file = MappedFile::open(&path)?;
        let (header, layout) = Header::decode(&path, file.bytes())?;
        let shard = Self { path, file, header, layout };
        let index = shard.index();
        let last = index[index.len() - 1];
        if index[0] != 0 {
            return Err(shard.corrupt_index(0, format!("it starts at {}, not at 0", index[0])));
        }
        if last != shard.num_tokens() {
            let problem = format!("it ends at token {last} of {}", shard.num_tokens());
            return Err(shard.corrupt_index(shard.num_documents(), problem));
        }
        Ok(shard)
    }

    /// The file.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Number of ids in the vocabulary.
    pub fn vocab_size(&self) -> u32 {
        self.header.vocab_size
    }

    /// Number of documents.
    pub fn num_documents(&self) -> u64 {
        self.header.num_documents
    }

    /// Number of tokens.
    pub fn num_tokens(&self) -> u64 {
        self.header.num_tokens
    }

    /// Whether the file says which tokens are learned.
    pub fn has_loss_mask(&self) -> bool {
        self.header.has_loss_mask
    }

    /// Number of tokens of a document.
    ///
    /// # Errors
    ///
    /// [`Error::NoSuchDocument`], [`Error::Corrupt`].
    pub fn length(&self, document: u64) -> Result<u32, Error> {
        let Range { start, end } = self.bounds(document)?;
        Ok(u32::try_from(end - start).expect("bounds checks that"))
    }

    /// Tokens of a document, in place. Only [`verify`](Self::verify) looks whether they are in the
    /// vocabulary.
    ///
    /// # Errors
    ///
    /// [`Error::NoSuchDocument`], [`Error::Corrupt`].
    pub fn tokens(&self, document: u64) -> Result<Tokens<'_>, Error> {
        Ok(self.tokens_at(self.bounds(document)?))
    }

    /// Source of a document.
    ///
    /// # Errors
    ///
    /// [`Error::NoSuchDocument`].
    pub fn source(&self, document: u64) -> Result<u16, Error> {
        Ok(self.section(Section::Sources)[self.place(document)?])
    }

    /// Quality of a document.
    ///
    /// # Errors
    ///
    /// [`Error::NoSuchDocument`].
    pub fn quality(&self, document: u64) -> Result<f32, Error> {
        Ok(self.section(Section::Qualities)[self.place(document)?])
    }

    /// Reads the whole file and compares it with its checksums; checks the order of the document index
    /// and that every id is in the vocabulary.
    ///
    /// # Errors
    ///
    /// [`Error::Corrupt`] for the first part that is damaged.
    pub fn verify(&self) -> Result<(), Error> {
        let mut end = crate::format::HEADER_LEN as u64;
        for ((section, range), stored) in
            Section::ALL.into_iter().zip(&self.layout).zip(self.header.checksums)
        {
            if self.file.numbers::<u8>(&(end..range.start)).iter().any(|&byte| byte != 0) {
                let place = format!("byte {end}");
                return Err(
                    self.corrupt(place, format!("the gap before {} is not zero", section.name()))
                );
            }
            end = range.end;
            let computed = xxh3_64(self.file.numbers(range));
            if computed != stored {
                let place = format!("{} (bytes {} to {})", section.name(), range.start, range.end);
                return Err(self.corrupt(
                    place,
                    format!("the checksum is {computed:016x}, not {stored:016x}"),
                ));
            }
        }
        for document in 0..self.num_documents() {
            let tokens = self.tokens(document)?;
            if tokens.max() >= self.vocab_size() {
                let place = format!("document {document}");
                let problem =
                    format!("id {} in a vocabulary of {}", tokens.max(), self.vocab_size());
                return Err(self.corrupt(place, problem));
            }
        }
        Ok(())
    }

    /// Where the tokens of a document lie among all, checked against the file.
    ///
    /// # Errors
    ///
    /// [`Error::NoSuchDocument`], [`Error::Corrupt`].
    pub fn bounds(&self, document: u64) -> Result<Range<u64>, Error> {
        let place = self.place(document)?;
        let (start, end) = (self.index()[place], self.index()[place + 1]);
        let len = end.checked_sub(start).and_then(|len| u32::try_from(len).ok());
        if len.is_none() || end > self.num_tokens() {
            let problem = format!("it runs from token {start} to {end} of {}", self.num_tokens());
            return Err(self.corrupt_index(document, problem));
        }
        Ok(start..end)
    }

    fn place(&self, document: u64) -> Result<usize, Error> {
        let num_documents = self.num_documents();
        if document >= num_documents {
            return Err(Error::NoSuchDocument { document, num_documents });
        }
        Ok(usize::try_from(document).expect("the index of the mapped file has it"))
    }

    pub(crate) fn tokens_at(&self, tokens: Range<u64>) -> Tokens<'_> {
        let bytes = u64::from(token_bytes(self.vocab_size()));
        let first = self.layout[Section::Tokens as usize].start;
        let range = first + tokens.start * bytes..first + tokens.end * bytes;
        if bytes == 2 {
            Tokens::U16(self.file.numbers(&range))
        } else {
            Tokens::U32(self.file.numbers(&range))
        }
    }

    pub(crate) fn copy_mask(&self, first: u64, mask: &mut [u8]) {
        if !self.has_loss_mask() {
            mask.fill(1);
            return;
        }
        let bits: &[u8] = self.section(Section::LossMask);
        for (token, learned) in (first..).zip(mask) {
            let byte = bits[usize::try_from(token / 8).expect("the mapped file has it")];
            *learned = byte >> (token % 8) & 1;
        }
    }

    fn index(&self) -> &[u64] {
        self.section(Section::Index)
    }

    fn section<T: crate::mapped::Plain>(&self, section: Section) -> &[T] {
        self.file.numbers(&self.layout[section as usize])
    }

    fn corrupt_index(&self, document: u64, problem: String) -> Error {
        self.corrupt(format!("entry {document} of the document index"), problem)
    }

    fn corrupt(&self, place: String, problem: String) -> Error {
        Error::Corrupt { path: self.path.clone(), place, problem }
    }
}

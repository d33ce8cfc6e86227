//! Reading the token files of Megatron-LM: `PREFIX.bin` with the tokens, `PREFIX.idx` with the index.
//!
//! The index, all numbers little-endian and none aligned: magic `MMIDIDX\0\0`, version 1 as u64, a code
//! for the type of the tokens as u8, the numbers of sequences and of document bounds as u64, the length
//! of each sequence in tokens as i32, its first byte in the other file as i64, the document bounds as
//! sequence numbers as i64, and optionally a mode of each sequence as i8. Source: megatron-core 0.16.1,
//! `datasets/indexed_dataset.py`.

use std::ops::Range;
use std::path::{Path, PathBuf};

use crate::Error;
use crate::mapped::MappedFile;
use crate::shard::Tokens;

pub(crate) const MAGIC: [u8; 9] = *b"MMIDIDX\0\0";
pub(crate) const VERSION: u64 = 1;
pub(crate) const CODE_U16: u8 = 8;
pub(crate) const CODE_I32: u8 = 4;
const HEADER_LEN: u64 = 34;

/// The two files of a prefix.
pub(crate) fn paths(prefix: &Path) -> (PathBuf, PathBuf) {
    let with = |ending: &str| {
        let mut path = prefix.as_os_str().to_owned();
        path.push(ending);
        PathBuf::from(path)
    };
    (with(".bin"), with(".idx"))
}

/// One Megatron data set, mapped into memory. Opening checks the header and the ends of every array,
/// whatever the size of the files; [`verify`](Self::verify) checks every entry and token.
///
/// Its documents are those of the document bounds. The format has no checksums, sources, qualities or
/// loss mask: every document is of source 0 with quality 1, and every token is learned.
#[derive(Debug)]
pub struct MegatronFile {
    index_path: PathBuf,
    index: MappedFile,
    tokens: MappedFile,
    width: u64,
    vocab_size: u32,
    num_sequences: u64,
    num_documents: u64,
}

impl MegatronFile {
    /// Maps `PREFIX.bin` and `PREFIX.idx`. The files do not say which ids there are, so the caller does.
    ///
    /// # Errors
    ///
    /// [`Error::Io`], [`Error::NotMegatron`], [`Error::Version`], [`Error::TokenType`],
    /// [`Error::Truncated`], [`Error::Corrupt`], [`Error::VocabSize`].
    pub fn open(prefix: impl AsRef<Path>, vocab_size: u32) -> Result<Self, Error> {
        if !(1..=crate::MAX_VOCAB_SIZE).contains(&vocab_size) {
            return Err(Error::VocabSize { vocab_size });
        }
        let (bin, idx) = paths(prefix.as_ref());
        let index = MappedFile::open(&idx)?;
        let header = index.bytes();
        if !header.starts_with(&MAGIC) {
            return Err(Error::NotMegatron { path: idx });
        }
        let len = header.len() as u64;
        if len < HEADER_LEN {
            return Err(Error::Truncated { path: idx, len, expected: HEADER_LEN });
        }
        let version = number(header, 9);
        if version != VERSION {
            let version = u32::try_from(version).unwrap_or(u32::MAX);
            return Err(Error::Version { path: idx, version });
        }
        let width = match header[17] {
            CODE_U16 => 2,
            CODE_I32 => 4,
            code => return Err(Error::TokenType { path: idx, code }),
        };
        let (num_sequences, num_bounds) = (number(header, 18), number(header, 26));
        let without_modes = num_sequences
            .checked_mul(12)
            .zip(num_bounds.checked_mul(8))
            .and_then(|(a, b)| a.checked_add(b)?.checked_add(HEADER_LEN));
        let with_modes = without_modes.and_then(|size| size.checked_add(num_sequences));
        if without_modes != Some(len) && with_modes != Some(len) {
            let expected = without_modes.unwrap_or(u64::MAX);
            return Err(Error::Truncated { path: idx, len, expected });
        }
        let tokens = MappedFile::open(&bin)?;
        let num_documents = num_bounds.saturating_sub(1);
        let file = Self {
            index_path: idx,
            index,
            tokens,
            width,
            vocab_size,
            num_sequences,
            num_documents,
        };
        file.check_ends(&bin, num_bounds)?;
        Ok(file)
    }

    /// Checks the ends of the document bounds and that the last sequence ends where the tokens do.
    fn check_ends(&self, bin: &Path, num_bounds: u64) -> Result<(), Error> {
        if num_bounds == 0 {
            return Err(self.corrupt("the document bounds", "there are none".into()));
        }
        let (first, last) = (self.bound(0), self.bound(num_bounds - 1));
        if (first, last) != (0, self.num_sequences) {
            let problem = format!("they run from {first} to {last} of {}", self.num_sequences);
            return Err(self.corrupt("the document bounds", problem));
        }
        let expected = match self.num_sequences {
            0 => 0,
            n => self.sequence(n - 1)?.end * self.width,
        };
        let len = self.tokens.bytes().len() as u64;
        if len != expected {
            return Err(Error::Truncated { path: bin.to_owned(), len, expected });
        }
        Ok(())
    }

    /// The index file.
    pub fn path(&self) -> &Path {
        &self.index_path
    }

    /// Number of ids in the vocabulary, as given.
    pub fn vocab_size(&self) -> u32 {
        self.vocab_size
    }

    /// Number of documents.
    pub fn num_documents(&self) -> u64 {
        self.num_documents
    }

    /// Number of tokens.
    pub fn num_tokens(&self) -> u64 {
        self.tokens.bytes().len() as u64 / self.width
    }

    /// Where the tokens of a document lie among all.
    ///
    /// # Errors
    ///
    /// [`Error::NoSuchDocument`], [`Error::Corrupt`].
    pub fn bounds(&self, document: u64) -> Result<Range<u64>, Error> {
        let num_documents = self.num_documents;
        if document >= num_documents {
            return Err(Error::NoSuchDocument { document, num_documents });
        }
        let (first, end) = (self.bound(document), self.bound(document + 1));
        if first > end || end > self.num_sequences {
            let problem = format!("sequences {first} to {end} of {}", self.num_sequences);
            return Err(self.corrupt(&format!("document {document}"), problem));
        }
        if first == end {
            let at = if first == self.num_sequences {
                self.num_tokens()
            } else {
                self.sequence(first)?.start
            };
            return Ok(at..at);
        }
        let tokens = self.sequence(first)?.start..self.sequence(end - 1)?.end;
        if tokens.start > tokens.end || tokens.end > self.num_tokens() {
            let problem = format!("tokens {tokens:?} of {}", self.num_tokens());
            return Err(self.corrupt(&format!("document {document}"), problem));
        }
        Ok(tokens)
    }

    /// Tokens of a range that [`bounds`](Self::bounds) allows, in place.
    pub(crate) fn tokens_at(&self, tokens: Range<u64>) -> Tokens<'_> {
        let bytes = tokens.start * self.width..tokens.end * self.width;
        if self.width == 2 {
            Tokens::U16(self.tokens.numbers(&bytes))
        } else {
            Tokens::U32(self.tokens.numbers(&bytes)) // a negative id is past every vocabulary
        }
    }

    /// Reads every entry of the index and every token: sequences have to follow each other without gaps.
    ///
    /// # Errors
    ///
    /// [`Error::Corrupt`] for the first that is wrong.
    pub fn verify(&self) -> Result<(), Error> {
        let mut end = 0;
        for i in 0..self.num_sequences {
            let tokens = self.sequence(i)?;
            if tokens.start != end {
                let problem =
                    format!("it begins at token {}, the one before ends at {end}", tokens.start);
                return Err(self.corrupt(&format!("sequence {i}"), problem));
            }
            end = tokens.end;
        }
        for document in 0..self.num_documents {
            let largest = self.tokens_at(self.bounds(document)?).max();
            if largest >= self.vocab_size {
                let problem = format!("id {largest} in a vocabulary of {}", self.vocab_size);
                return Err(self.corrupt(&format!("document {document}"), problem));
            }
        }
        Ok(())
    }

    /// Tokens of a sequence, which is one of the file's.
    fn sequence(&self, i: u64) -> Result<Range<u64>, Error> {
        let bytes = self.index.bytes();
        let at = |offset: u64| usize::try_from(offset).expect("the index is mapped");
        let length = at(HEADER_LEN + 4 * i);
        let length =
            u32::from_le_bytes(*bytes[length..].first_chunk().expect("the size was checked"));
        let first = number(bytes, at(HEADER_LEN + 4 * self.num_sequences + 8 * i));
        let start = first / self.width;
        let end =
            start.checked_add(length.into()).filter(|end| end.checked_mul(self.width).is_some());
        match end {
            Some(end) if i32::try_from(length).is_ok() && first.is_multiple_of(self.width) => {
                Ok(start..end)
            }
            _ => Err(self
                .corrupt(&format!("sequence {i}"), format!("length {length}, first byte {first}"))),
        }
    }

    fn bound(&self, i: u64) -> u64 {
        let at = HEADER_LEN + 12 * self.num_sequences + 8 * i;
        number(self.index.bytes(), usize::try_from(at).expect("the index is mapped"))
    }

    pub(crate) fn corrupt(&self, place: &str, problem: String) -> Error {
        Error::Corrupt { path: self.index_path.clone(), place: place.to_owned(), problem }
    }
}

fn number(bytes: &[u8], at: usize) -> u64 {
    u64::from_le_bytes(*bytes[at..].first_chunk().expect("the size of the index was checked"))
}

//! The header of a shard: what it holds and where each section lies. The crate doc has the layout.

use std::ops::Range;
use std::path::Path;

use xxhash_rust::xxh3::xxh3_64;

use crate::Error;

/// Version of the file format.
pub const VERSION: u32 = 1;
/// Largest vocabulary size: ids have to fit int32.
pub const MAX_VOCAB_SIZE: u32 = i32::MAX as u32;

pub(crate) const HEADER_LEN: usize = 256;
const MAGIC: [u8; 8] = *b"GLMTOKEN";
const ALIGNMENT: u64 = 64;
const FLAG_LOSS_MASK: u64 = 1;
const SECTIONS_START: usize = 48;
const SECTION_LEN: usize = 24;
const SECTIONS_END: usize = SECTIONS_START + SECTION_LEN * Section::ALL.len();
const CHECKSUM_START: usize = HEADER_LEN - 8;

/// The parts of a shard, in file order.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Section {
    Tokens,
    Index,
    Sources,
    Qualities,
    LossMask,
}

impl Section {
    pub(crate) const ALL: [Self; 5] =
        [Self::Tokens, Self::Index, Self::Sources, Self::Qualities, Self::LossMask];

    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Tokens => "the tokens",
            Self::Index => "the document index",
            Self::Sources => "the sources",
            Self::Qualities => "the qualities",
            Self::LossMask => "the loss mask",
        }
    }
}

/// What the header says, less the section offsets, which follow from it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Header {
    pub(crate) vocab_size: u32,
    pub(crate) num_documents: u64,
    pub(crate) num_tokens: u64,
    pub(crate) has_loss_mask: bool,
    pub(crate) checksums: [u64; 5],
}

/// Bytes of one token in a shard of this vocabulary.
pub(crate) fn token_bytes(vocab_size: u32) -> u32 {
    if vocab_size <= 1 << 16 { 2 } else { 4 }
}

/// The next place where a section may start.
pub(crate) fn align(offset: u64) -> Option<u64> {
    offset.checked_next_multiple_of(ALIGNMENT)
}

impl Header {
    /// Bytes of each section in the file; `None` where the counts are past any file size.
    pub(crate) fn layout(&self) -> Option<[Range<u64>; 5]> {
        let mask_bytes = if self.has_loss_mask { self.num_tokens.div_ceil(8) } else { 0 };
        let sizes = [
            self.num_tokens.checked_mul(token_bytes(self.vocab_size).into())?,
            self.num_documents.checked_add(1)?.checked_mul(8)?,
            self.num_documents.checked_mul(2)?,
            self.num_documents.checked_mul(4)?,
            mask_bytes,
        ];
        let mut end = HEADER_LEN as u64;
        let mut layout = [const { 0..0 }; 5];
        for (bytes, size) in layout.iter_mut().zip(sizes) {
            let start = align(end)?;
            end = start.checked_add(size)?;
            *bytes = start..end;
        }
        Some(layout)
    }

    pub(crate) fn encode(&self) -> [u8; HEADER_LEN] {
        let layout = self.layout().expect("the sections were written to a file");
        let mut header = [0; HEADER_LEN];
        header[..8].copy_from_slice(&MAGIC);
        header[8..12].copy_from_slice(&VERSION.to_le_bytes());
        header[12..16].copy_from_slice(&token_bytes(self.vocab_size).to_le_bytes());
        let flags = if self.has_loss_mask { FLAG_LOSS_MASK } else { 0 };
        let mut fields = vec![self.vocab_size.into(), self.num_documents, self.num_tokens, flags];
        for (bytes, checksum) in layout.iter().zip(self.checksums) {
            fields.extend([bytes.start, bytes.end - bytes.start, checksum]);
        }
        for (place, field) in header[16..SECTIONS_END].chunks_exact_mut(8).zip(fields) {
            place.copy_from_slice(&field.to_le_bytes());
        }
        let checksum = xxh3_64(&header[..CHECKSUM_START]);
        header[CHECKSUM_START..].copy_from_slice(&checksum.to_le_bytes());
        header
    }

    /// Reads the header at the start of a file of any content; gives the layout, too.
    pub(crate) fn decode(path: &Path, file: &[u8]) -> Result<(Self, [Range<u64>; 5]), Error> {
        let Some(header) = file.first_chunk::<HEADER_LEN>() else {
            let path = path.to_owned();
            return Err(Error::Truncated {
                path,
                len: file.len() as u64,
                expected: HEADER_LEN as u64,
            });
        };
        if header[..8] != MAGIC {
            return Err(Error::NotAShard { path: path.to_owned() });
        }
        let version = u32_at(header, 8);
        if version != VERSION {
            return Err(Error::Version { path: path.to_owned(), version });
        }
        let corrupt = |place: &str, problem: String| {
            Err(Error::Corrupt { path: path.to_owned(), place: place.to_owned(), problem })
        };
        let (stored, computed) =
            (u64_at(header, CHECKSUM_START), xxh3_64(&header[..CHECKSUM_START]));
        if stored != computed {
            return corrupt(
                "the header",
                format!("its checksum is {computed:016x}, not {stored:016x}"),
            );
        }
        let vocab_size = u64_at(header, 16);
        let Some(vocab_size) =
            u32::try_from(vocab_size).ok().filter(|size| (1..=MAX_VOCAB_SIZE).contains(size))
        else {
            return corrupt("byte 16 (vocabulary size)", format!("it is {vocab_size}"));
        };
        let width = u32_at(header, 12);
        if width != token_bytes(vocab_size) {
            return corrupt(
                "byte 12 (bytes per token)",
                format!("{width} for a vocabulary of {vocab_size}"),
            );
        }
        let flags = u64_at(header, 40);
        if flags & !FLAG_LOSS_MASK != 0
            || header[SECTIONS_END..CHECKSUM_START].iter().any(|&b| b != 0)
        {
            return corrupt(
                "the header",
                "it uses fields that this version does not know".to_owned(),
            );
        }
        let section = |i: usize| SECTIONS_START + SECTION_LEN * i;
        let decoded = Self {
            vocab_size,
            num_documents: u64_at(header, 24),
            num_tokens: u64_at(header, 32),
            has_loss_mask: flags & FLAG_LOSS_MASK != 0,
            checksums: std::array::from_fn(|i| u64_at(header, section(i) + 16)),
        };
        let Some(layout) = decoded.layout() else {
            return corrupt("byte 24 (counts)", "they are past any file size".to_owned());
        };
        for (i, bytes) in layout.iter().enumerate() {
            let stored = (u64_at(header, section(i)), u64_at(header, section(i) + 8));
            if stored != (bytes.start, bytes.end - bytes.start) {
                let place = format!("byte {} ({})", section(i), Section::ALL[i].name());
                return corrupt(
                    &place,
                    format!("offset and size {stored:?} do not fit the counts"),
                );
            }
        }
        let expected = layout[4].end;
        if file.len() as u64 != expected {
            return Err(Error::Truncated {
                path: path.to_owned(),
                len: file.len() as u64,
                expected,
            });
        }
        Ok((decoded, layout))
    }
}

fn u32_at(header: &[u8; HEADER_LEN], at: usize) -> u32 {
    u32::from_le_bytes(*header[at..].first_chunk().expect("fields lie in the header"))
}

fn u64_at(header: &[u8; HEADER_LEN], at: usize) -> u64 {
    u64::from_le_bytes(*header[at..].first_chunk().expect("fields lie in the header"))
}

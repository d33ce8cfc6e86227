//! Our own form of a tokenizer, which loads in a fraction of the time.
//!
//! All numbers are little-endian. After the magic word and the checksum of what follows: the length of a JSON header,
//! the header (everything but tokens and merges), the length of each token, a bit for each learned one, the bytes of
//! all tokens, and left, right and merged token of each merge.

use std::fs::File;
use std::path::Path;

use memmap2::MmapOptions;
use serde::{Deserialize, Serialize};
use xxhash_rust::xxh3::xxh3_64;

use super::MAX_FILE_BYTES;
use crate::added::AddedToken;
use crate::split::Stage;
use crate::tokenizer::{Definition, Template, Tokenizer};
use crate::vocabulary::Vocabulary;
use crate::{Error, TokenId};

const MAGIC: &[u8; 8] = b"glmctok1";
const PREAMBLE: usize = 16;

#[derive(Serialize, Deserialize)]
#[expect(clippy::struct_excessive_bools, reason = "each is a property of its own")]
struct Header {
    num_tokens: usize,
    num_token_bytes: usize,
    num_merges: usize,
    rank_by_id: bool,
    added: Vec<Added>,
    /// Pattern of each stage, and whether it keeps gaps.
    stages: Vec<(String, bool)>,
    add_prefix_space: bool,
    nfc: bool,
    ignore_merges: bool,
    before: Vec<TokenId>,
    after: Vec<TokenId>,
}

/// An added token: text, id, and the flags special, `single_word`, lstrip, rstrip, normalized.
#[derive(Serialize, Deserialize)]
struct Added(String, TokenId, [bool; 5]);

impl Tokenizer {
    /// The compiled form.
    pub fn to_compiled(&self) -> Vec<u8> {
        let tokens: Vec<&[u8]> =
            (0..self.vocab_size() as TokenId).map(|id| self.vocabulary.token(id)).collect();
        let header = Header {
            num_tokens: tokens.len(),
            num_token_bytes: tokens.iter().map(|token| token.len()).sum(),
            num_merges: self.merges.pairs().len(),
            rank_by_id: self.rank_by_id,
            added: self
                .added
                .tokens()
                .iter()
                .map(|token| {
                    let AddedToken { special, single_word, lstrip, rstrip, normalized, .. } =
                        *token;
                    Added(
                        token.text.clone(),
                        token.id,
                        [special, single_word, lstrip, rstrip, normalized],
                    )
                })
                .collect(),
            stages: self.stages.clone(),
            add_prefix_space: self.add_prefix_space,
            nfc: self.nfc,
            ignore_merges: self.ignore_merges,
            before: self.template.before.clone(),
            after: self.template.after.clone(),
        };
        let header = serde_json::to_vec(&header).expect("plain values are valid JSON");
        let mut body = Vec::new();
        push(&mut body, header.len() as u32);
        body.extend_from_slice(&header);
        for token in &tokens {
            push(&mut body, token.len() as u32);
        }
        let mut learned = vec![0_u8; tokens.len().div_ceil(8)];
        for (id, _) in self.vocabulary.learned() {
            learned[id as usize / 8] |= 1 << (id % 8);
        }
        body.extend_from_slice(&learned);
        body.extend(tokens.iter().copied().flatten());
        for &(left, right, id) in self.merges.pairs() {
            for number in [left, right, id] {
                push(&mut body, number);
            }
        }
        [MAGIC.as_slice(), &xxh3_64(&body).to_le_bytes(), &body].concat()
    }

    /// Reads the compiled form. The file is mapped while this lasts, and must not change meanwhile.
    ///
    /// # Errors
    ///
    /// [`Error::File`] and [`Error::FileTooLarge`] for a file that cannot be read, and those of
    /// [`Tokenizer::from_compiled`].
    #[expect(
        unsafe_code,
        reason = "a file that changes while it is mapped is the caller's to avoid"
    )]
    pub fn from_compiled_file(path: &Path) -> Result<Self, Error> {
        let failed = |source| Error::File { path: path.to_owned(), source };
        let file = File::open(path).map_err(failed)?;
        let size = file.metadata().map_err(failed)?.len();
        if size > MAX_FILE_BYTES {
            return Err(Error::FileTooLarge { path: path.to_owned(), size, limit: MAX_FILE_BYTES });
        }
        if size == 0 {
            return Self::from_compiled(&[]);
        }
        // SAFETY: the mapping is private to this call; the documentation asks for files that do not change meanwhile.
        let map = unsafe { MmapOptions::new().populate().map(&file) }.map_err(failed)?;
        Self::from_compiled(&map)
    }

    /// Reads the bytes of a compiled tokenizer.
    ///
    /// # Errors
    ///
    /// [`Error::Damaged`] where they are not what was written; the errors of [`Tokenizer::from_json`].
    pub fn from_compiled(bytes: &[u8]) -> Result<Self, Error> {
        if !bytes.starts_with(MAGIC) {
            return Err(Error::Damaged("it does not begin with glmctok1"));
        }
        let body =
            bytes.get(PREAMBLE..).ok_or(Error::Damaged("it ends within its first 16 bytes"))?;
        if bytes[MAGIC.len()..PREAMBLE] != xxh3_64(body).to_le_bytes() {
            return Err(Error::Damaged("its checksum is not that of its bytes"));
        }
        let mut rest = body;
        let header_len = take(&mut rest, 4)?;
        let header_len = u32::from_le_bytes(header_len.try_into().expect("4 bytes")) as usize;
        let header: Header = serde_json::from_slice(take(&mut rest, header_len)?)?;
        let too_large = || Error::Damaged("a count is too large");
        let lens = take(&mut rest, header.num_tokens.checked_mul(4).ok_or_else(too_large)?)?;
        let learned = take(&mut rest, header.num_tokens.div_ceil(8))?;
        let tokens = take(&mut rest, header.num_token_bytes)?;
        let merges = take(&mut rest, header.num_merges.checked_mul(12).ok_or_else(too_large)?)?;
        let lens = numbers(lens).map(|len| len as usize);
        let vocabulary = Vocabulary::from_parts(tokens.to_vec(), lens, learned.to_vec())?;
        let merges: Vec<_> = merges
            .chunks_exact(12)
            .map(|merge| {
                let [left, right, id] = [0, 4, 8]
                    .map(|at| u32::from_le_bytes(merge[at..at + 4].try_into().expect("4 bytes")));
                (left, right, id)
            })
            .collect();
        let num_tokens = vocabulary.len() as TokenId;
        if merges.iter().any(|&(left, right, id)| left.max(right).max(id) >= num_tokens) {
            return Err(Error::Damaged("a merge names an id outside the vocabulary"));
        }
        let added = header.added.into_iter().map(|Added(text, id, flags)| {
            let [special, single_word, lstrip, rstrip, normalized] = flags;
            AddedToken { text, id, special, single_word, lstrip, rstrip, normalized }
        });
        let added: Vec<AddedToken> = added.collect();
        let named = added
            .iter()
            .map(|token| token.id)
            .chain(header.before.iter().chain(&header.after).copied());
        if named.max().is_some_and(|id| id >= num_tokens) {
            return Err(Error::Damaged("an added token has an id outside the vocabulary"));
        }
        let stages =
            header.stages.iter().map(|(pattern, keep_gaps)| Stage::new(pattern, *keep_gaps));
        Self::new(Definition {
            vocabulary,
            merges,
            rank_by_id: header.rank_by_id,
            added,
            stages: stages.collect::<Result<_, _>>()?,
            add_prefix_space: header.add_prefix_space,
            nfc: header.nfc,
            ignore_merges: header.ignore_merges,
            template: Template { before: header.before, after: header.after },
        })
    }
}

fn push(bytes: &mut Vec<u8>, number: u32) {
    bytes.extend_from_slice(&number.to_le_bytes());
}

fn numbers(bytes: &[u8]) -> impl ExactSizeIterator<Item = u32> {
    bytes.chunks_exact(4).map(|number| u32::from_le_bytes(number.try_into().expect("4 bytes")))
}

fn take<'b>(rest: &mut &'b [u8], len: usize) -> Result<&'b [u8], Error> {
    let (taken, left) = rest.split_at_checked(len).ok_or(Error::Damaged("it ends too early"))?;
    *rest = left;
    Ok(taken)
}

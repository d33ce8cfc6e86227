//! Rank files of tiktoken: a token in base64 and its rank on each line.

use std::path::Path;

use super::read;
use crate::added::AddedToken;
use crate::split::Stage;
use crate::tokenizer::{Definition, Template, Tokenizer};
use crate::vocabulary::Vocabulary;
use crate::{Error, TokenId};

impl Tokenizer {
    /// Reads a `*.tiktoken` file, which says neither how text is split nor which special tokens there are.
    ///
    /// Special tokens take the ids after the ranks, in order, all flagged special.
    ///
    /// # Errors
    ///
    /// [`Error::File`] if it cannot be read; [`Error::Inconsistent`] with the line for a rank file that is damaged;
    /// [`Error::Unsupported`] for a pattern that the engine cannot read.
    pub fn from_tiktoken_file(
        path: &Path,
        pattern: &str,
        special_tokens: &[&str],
    ) -> Result<Self, Error> {
        Self::from_tiktoken(&read(path)?, pattern, special_tokens)
    }

    /// Reads the text of a `*.tiktoken` file; see [`Tokenizer::from_tiktoken_file`].
    ///
    /// # Errors
    ///
    /// As [`Tokenizer::from_tiktoken_file`].
    pub fn from_tiktoken(
        text: &str,
        pattern: &str,
        special_tokens: &[&str],
    ) -> Result<Self, Error> {
        let mut tokens: Vec<(TokenId, Vec<u8>)> = Vec::new();
        for (number, line) in (1..).zip(text.lines()).filter(|(_, line)| !line.is_empty()) {
            let damaged = |what: &str| Error::Inconsistent(format!("line {number}: {what}"));
            let (token, rank) =
                line.split_once(' ').ok_or_else(|| damaged("a token and its rank are expected"))?;
            let bytes = decode_base64(token).ok_or_else(|| damaged("the token is not base64"))?;
            let rank = rank.trim_end().parse().map_err(|_| damaged("the rank is not a number"))?;
            tokens.push((rank, bytes));
        }
        let first = tokens.len();
        let added: Vec<AddedToken> = (first..)
            .zip(special_tokens)
            .map(|(id, text)| AddedToken::new(*text, id as TokenId, true))
            .collect();
        let ranked = tokens.iter().map(|(rank, bytes)| (*rank, bytes.as_slice(), true));
        let outside = added.iter().map(|token| (token.id, token.text.as_bytes(), false));
        let vocabulary = Vocabulary::new(ranked.chain(outside))?;
        Self::new(Definition {
            merges: all_splits(&vocabulary),
            vocabulary,
            rank_by_id: true,
            added,
            // What no alternative matches is left out, as tiktoken does.
            stages: vec![Stage::new(pattern, false)?],
            add_prefix_space: false,
            nfc: false,
            ignore_merges: true,
            template: Template::default(),
        })
    }
}

/// All pairs of tokens that make a token, in the order of that token's id, then of their own ids.
fn all_splits(vocabulary: &Vocabulary) -> Vec<(TokenId, TokenId, TokenId)> {
    let mut merges = Vec::with_capacity(vocabulary.num_learned() * 2);
    for (id, token) in vocabulary.learned() {
        let first = merges.len();
        for at in 1..token.len() {
            if let Some(left) = vocabulary.id(&token[..at])
                && let Some(right) = vocabulary.id(&token[at..])
            {
                merges.push((left, right, id));
            }
        }
        merges[first..].sort_unstable();
    }
    merges
}

fn decode_base64(text: &str) -> Option<Vec<u8>> {
    let digits = text.trim_end_matches('=');
    let mut bytes = Vec::with_capacity(digits.len() * 3 / 4);
    let (mut bits, mut count) = (0_u32, 0);
    for digit in digits.bytes() {
        let value = match digit {
            b'A'..=b'Z' => digit - b'A',
            b'a'..=b'z' => digit - b'a' + 26,
            b'0'..=b'9' => digit - b'0' + 52,
            b'+' => 62,
            b'/' => 63,
            _ => return None,
        };
        bits = bits << 6 | u32::from(value);
        count += 6;
        if count >= 8 {
            count -= 8;
            bytes.push((bits >> count) as u8);
        }
    }
    (!bytes.is_empty() && count < 6).then_some(bytes)
}

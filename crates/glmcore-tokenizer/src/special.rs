//! Special tokens in text.

use crate::TokenId;

/// Finds special tokens, the leftmost first and the longest where several start together.
#[derive(Debug, Default)]
pub(crate) struct SpecialFinder {
    /// Longest first.
    tokens: Vec<(String, TokenId)>,
    /// Bytes that start a token.
    starts: Vec<u8>,
}

impl SpecialFinder {
    pub(crate) fn new(tokens: impl IntoIterator<Item = (String, TokenId)>) -> Self {
        let mut tokens: Vec<_> = tokens.into_iter().filter(|(text, _)| !text.is_empty()).collect();
        tokens.sort_by(|a, b| b.0.len().cmp(&a.0.len()).then_with(|| a.0.cmp(&b.0)));
        let mut starts: Vec<u8> = tokens.iter().map(|(text, _)| text.as_bytes()[0]).collect();
        starts.sort_unstable();
        starts.dedup();
        Self { tokens, starts }
    }

    /// Splits `text` into plain parts and special tokens, in order.
    pub(crate) fn split<'t>(&self, text: &'t str, mut visit: impl FnMut(Part<'t>)) {
        let (mut plain, mut at) = (0, 0);
        while at < text.len() {
            let found =
                self.starts.contains(&text.as_bytes()[at]).then(|| self.at(&text[at..])).flatten();
            match found {
                Some((len, id)) => {
                    if plain < at {
                        visit(Part::Text(&text[plain..at]));
                    }
                    visit(Part::Special(id));
                    at += len;
                    plain = at;
                }
                None => at += text[at..].chars().next().map_or(1, char::len_utf8),
            }
        }
        if plain < text.len() {
            visit(Part::Text(&text[plain..]));
        }
    }

    fn at(&self, text: &str) -> Option<(usize, TokenId)> {
        self.tokens
            .iter()
            .find(|(token, _)| text.starts_with(token))
            .map(|(token, id)| (token.len(), *id))
    }
}

/// A part of a text.
pub(crate) enum Part<'t> {
    Text(&'t str),
    Special(TokenId),
}

//! Added tokens: those outside the learned vocabulary, which are looked for in the text itself.

use aho_corasick::{AhoCorasick, MatchKind};

use crate::unicode::{SPACE, classes, is_word};
use crate::{Error, TokenId};

/// A token outside the learned vocabulary.
#[derive(Debug, Clone, PartialEq, Eq)]
#[expect(clippy::struct_excessive_bools, reason = "the flags of tokenizer.json")]
pub struct AddedToken {
    /// Its text.
    pub text: String,
    /// Its id.
    pub id: TokenId,
    /// Whether decoding may skip it.
    pub special: bool,
    /// Found only where no word character stands beside it.
    pub single_word: bool,
    /// Takes the white space before it.
    pub lstrip: bool,
    /// Takes the white space after it.
    pub rstrip: bool,
    /// Looked for after normalisation.
    pub normalized: bool,
}

impl AddedToken {
    /// A token that is found wherever its text stands.
    pub fn new(text: impl Into<String>, id: TokenId, special: bool) -> Self {
        Self {
            text: text.into(),
            id,
            special,
            single_word: false,
            lstrip: false,
            rstrip: false,
            normalized: false,
        }
    }
}

/// Added tokens and the automata that find them: leftmost first, the longest where several start together.
#[derive(Debug)]
pub(crate) struct AddedTokens {
    tokens: Vec<AddedToken>,
    raw: Finder,
    normalized: Finder,
}

/// Finds some of the tokens.
#[derive(Debug)]
struct Finder {
    automaton: Option<AhoCorasick>,
    /// The token of each pattern, by place.
    tokens: Vec<usize>,
}

/// A part of a text.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Part {
    /// Text between added tokens, from and to a byte.
    Text(usize, usize),
    /// An added token with the white space that it takes.
    Token(TokenId, usize, usize),
}

impl AddedTokens {
    /// `normalize` is what happens to text before the normalised tokens are looked for.
    ///
    /// # Errors
    ///
    /// [`Error::Inconsistent`] if the automata would be too large.
    pub(crate) fn new(
        tokens: Vec<AddedToken>,
        normalize: impl Fn(&str) -> String,
    ) -> Result<Self, Error> {
        let raw = Finder::new(&tokens, |token| (!token.normalized).then(|| token.text.clone()))?;
        let normalized =
            Finder::new(&tokens, |token| token.normalized.then(|| normalize(&token.text)))?;
        Ok(Self { tokens, raw, normalized })
    }

    /// The tokens, by id.
    pub(crate) fn tokens(&self) -> &[AddedToken] {
        &self.tokens
    }

    /// Parts of a text before normalisation.
    pub(crate) fn split_raw(&self, text: &str) -> Vec<Part> {
        self.raw.split(&self.tokens, text)
    }

    /// Parts of a text after normalisation.
    pub(crate) fn split_normalized(&self, text: &str) -> Vec<Part> {
        self.normalized.split(&self.tokens, text)
    }

    /// Whether no token can reach over a line break that stands before a letter or digit.
    pub(crate) fn stay_in_lines(&self) -> bool {
        self.tokens.iter().all(|token| !token.lstrip && !token.text.contains('\n'))
    }
}

impl Finder {
    fn new(
        tokens: &[AddedToken],
        text_of: impl Fn(&AddedToken) -> Option<String>,
    ) -> Result<Self, Error> {
        let (places, texts): (Vec<usize>, Vec<String>) = tokens
            .iter()
            .enumerate()
            .filter_map(|(place, token)| {
                text_of(token).filter(|text| !text.is_empty()).map(|text| (place, text))
            })
            .unzip();
        let automaton = if texts.is_empty() {
            None
        } else {
            let built = AhoCorasick::builder().match_kind(MatchKind::LeftmostLongest).build(&texts);
            Some(built.map_err(|error| Error::Inconsistent(format!("added tokens: {error}")))?)
        };
        Ok(Self { automaton, tokens: places })
    }

    fn split(&self, tokens: &[AddedToken], text: &str) -> Vec<Part> {
        let mut parts = Vec::new();
        let mut done = 0;
        for found in self.automaton.iter().flat_map(|automaton| automaton.find_iter(text)) {
            let token = &tokens[self.tokens[found.pattern().as_usize()]];
            let (mut start, mut end) = (found.start(), found.end());
            let touches_word = || ends_with_word(&text[..start]) || starts_with_word(&text[end..]);
            if token.single_word && touches_word() {
                continue;
            }
            if token.lstrip {
                start = done.max(text[..start].trim_end_matches(is_space).len());
            }
            if token.rstrip {
                end = text.len() - text[end..].trim_start_matches(is_space).len();
            }
            if done < start {
                parts.push(Part::Text(done, start));
            }
            parts.push(Part::Token(token.id, start, end));
            done = end;
        }
        if done < text.len() {
            parts.push(Part::Text(done, text.len()));
        }
        parts
    }
}

fn is_space(c: char) -> bool {
    classes().of(c) & SPACE != 0
}

fn ends_with_word(text: &str) -> bool {
    text.chars().next_back().is_some_and(is_word)
}

fn starts_with_word(text: &str) -> bool {
    text.chars().next().is_some_and(is_word)
}

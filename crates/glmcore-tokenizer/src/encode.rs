//! Text to ids, and to the places in the text that they stand for.

use std::borrow::Cow;
use std::ops::Range;

use crate::TokenId;
use crate::added::Part;
use crate::bpe;
use crate::cache::{Outside, WordCache};
use crate::key::Key;
use crate::normalize::{nfc, nfc_stretches};
use crate::split::{Splitter, dispatch};
use crate::tokenizer::{Special, Tokenizer};
use crate::words::{Words, Workspace};

/// Ids of a text and the bytes of the text that each stands for.
pub type IdsAndSpans = (Vec<TokenId>, Vec<Range<usize>>);

impl Tokenizer {
    /// Tokens of `text`.
    pub fn encode(&self, text: &str, special: Special) -> Vec<TokenId> {
        let mut ids = Vec::with_capacity(text.len() / 3 + 8);
        self.with_workspace(|work| self.encode_into(text, special, work, &mut ids));
        ids
    }

    /// Tokens of bytes of which some may be no UTF-8. Those are merged on their own, run by run, so decoding gives all
    /// bytes back. Nothing in them becomes a special token.
    pub fn encode_bytes(&self, bytes: &[u8]) -> Vec<TokenId> {
        let mut ids = Vec::with_capacity(bytes.len() / 3 + 8);
        self.with_workspace(|work| {
            for chunk in bytes.utf8_chunks() {
                self.encode_into(chunk.valid(), Special::AsText, work, &mut ids);
                if !chunk.invalid().is_empty() {
                    bpe::encode(&self.merges, &self.characters, chunk.invalid(), &mut ids);
                }
            }
        });
        ids
    }

    /// Tokens of `text` and the bytes that each stands for. A token of an added space or of characters that
    /// normalisation has changed spans the characters that it came from.
    pub fn encode_with_spans(&self, text: &str, special: Special) -> IdsAndSpans {
        let mut out = (Vec::new(), Vec::new());
        self.with_workspace(|work| {
            for part in self.raw_parts(text, special) {
                match part {
                    Part::Token(id, start, end) => {
                        out.0.push(id);
                        out.1.push(start..end);
                    }
                    Part::Text(start, end) => {
                        let cache = &mut work.cache;
                        self.spans_of_part(&text[start..end], start, special, cache, &mut out);
                    }
                }
            }
        });
        out
    }

    fn spans_of_part(
        &self,
        text: &str,
        offset: usize,
        special: Special,
        cache: &mut WordCache,
        out: &mut IdsAndSpans,
    ) {
        let origin = Origin::new(text, self.nfc);
        let normalized = self.normalize(text);
        for part in self.normalized_parts(&normalized, special) {
            let (start, end) = match part {
                Part::Token(id, start, end) => {
                    let span = origin.span(start, end);
                    out.0.push(id);
                    out.1.push(offset + span.start..offset + span.end);
                    continue;
                }
                Part::Text(start, end) => (start, end),
            };
            let spaced = self.with_prefix_space(&normalized[start..end]);
            let added = spaced.len() - (end - start);
            self.splitter.for_each_word(&spaced, |from, to| {
                let before = out.0.len();
                self.encode_word(&spaced, from, to, cache, &mut out.0);
                let mut at = from;
                for &id in &out.0[before..] {
                    let next = at + self.vocabulary.token(id).len();
                    let span = origin
                        .span(start + at.saturating_sub(added), start + next.saturating_sub(added));
                    out.1.push(offset + span.start..offset + span.end);
                    at = next;
                }
            });
        }
    }

    /// Appends the tokens of `text`; `work` remembers words between calls.
    pub(crate) fn encode_into(
        &self,
        text: &str,
        special: Special,
        work: &mut Workspace,
        ids: &mut Vec<TokenId>,
    ) {
        if special == Special::AsText {
            self.encode_words(&self.normalize(text), work, ids);
            return;
        }
        for part in self.raw_parts(text, special) {
            match part {
                Part::Token(id, ..) => ids.push(id),
                Part::Text(start, end) => {
                    let text = self.normalize(&text[start..end]);
                    for part in self.normalized_parts(&text, special) {
                        match part {
                            Part::Token(id, ..) => ids.push(id),
                            Part::Text(start, end) => {
                                self.encode_words(&text[start..end], work, ids);
                            }
                        }
                    }
                }
            }
        }
    }

    fn raw_parts(&self, text: &str, special: Special) -> Vec<Part> {
        match special {
            Special::AsText => vec![Part::Text(0, text.len())],
            Special::Parse => self.added.split_raw(text),
        }
    }

    fn normalized_parts(&self, text: &str, special: Special) -> Vec<Part> {
        match special {
            Special::AsText => vec![Part::Text(0, text.len())],
            Special::Parse => self.added.split_normalized(text),
        }
    }

    fn normalize<'t>(&self, text: &'t str) -> Cow<'t, str> {
        if self.nfc { nfc(text) } else { Cow::Borrowed(text) }
    }

    fn with_prefix_space<'t>(&self, text: &'t str) -> Cow<'t, str> {
        if self.add_prefix_space && !text.is_empty() && !text.starts_with(' ') {
            Cow::Owned(format!(" {text}"))
        } else {
            Cow::Borrowed(text)
        }
    }

    /// Appends the tokens of a text in which nothing else is to be found.
    fn encode_words(&self, text: &str, work: &mut Workspace, ids: &mut Vec<TokenId>) {
        let text = &*self.with_prefix_space(text);
        match &self.splitter {
            Splitter::Known(known) => {
                dispatch(Words { tokenizer: self, known: *known, text, work, ids });
            }
            Splitter::General(general) => {
                general.for_each_word(text, &mut |start, end| {
                    self.encode_word(text, start, end, &mut work.cache, ids);
                });
            }
        }
    }

    fn encode_word(
        &self,
        text: &str,
        start: usize,
        end: usize,
        cache: &mut WordCache,
        ids: &mut Vec<TokenId>,
    ) {
        cache.make_room(&self.vocabulary, self.ignore_merges);
        let bytes = text.as_bytes();
        let key = Key::of(bytes, start, end);
        let word = &bytes[start..end];
        if let Some(entered) = cache.find(key) {
            if entered.count() > 0 {
                let mut few = [0; 4];
                entered.write(&mut few);
                ids.extend_from_slice(&few[..entered.count()]);
                return;
            }
            // No word is awaited between batches.
            if let Outside::Ids(many) = cache.outside(key, entered, word, |_| false) {
                ids.extend_from_slice(many.as_slice());
                return;
            }
        }
        let before = ids.len();
        match self.whole_token(word, cache) {
            Some(id) => ids.push(id),
            None => bpe::encode(&self.merges, &self.characters, word, ids),
        }
        cache.insert(key, word, &ids[before..]);
    }

    /// The token that a word is as a whole, if such tokens go before the merges and the cache does not know all of them.
    #[inline]
    pub(crate) fn whole_token(&self, word: &[u8], cache: &WordCache) -> Option<TokenId> {
        if self.ignore_merges && !cache.knows_all_tokens() {
            self.vocabulary.id(word)
        } else {
            None
        }
    }
}

/// Where the bytes of a normalised text came from.
struct Origin {
    /// Ends of stretches before and after normalisation; empty if it changes nothing.
    stretches: Vec<(usize, usize)>,
}

impl Origin {
    fn new(text: &str, normalizes: bool) -> Self {
        let changes = normalizes && matches!(nfc(text), Cow::Owned(_));
        Self { stretches: if changes { nfc_stretches(text) } else { Vec::new() } }
    }

    /// Bytes of the original that the bytes from `start` to `end` came from.
    fn span(&self, start: usize, end: usize) -> Range<usize> {
        if self.stretches.is_empty() {
            return start..end;
        }
        let at = |place: usize, is_end: bool| {
            let index = self
                .stretches
                .partition_point(|&(_, after)| if is_end { after < place } else { after <= place });
            let (before_start, after_start) =
                if index == 0 { (0, 0) } else { self.stretches[index - 1] };
            let Some(&(before_end, after_end)) = self.stretches.get(index) else {
                return before_start;
            };
            match (before_end - before_start == after_end - after_start, is_end) {
                (true, _) => before_start + (place - after_start),
                (false, true) => before_end,
                (false, false) => before_start,
            }
        };
        at(start, false)..at(end, true)
    }
}

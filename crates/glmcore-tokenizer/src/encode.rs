//! Text to ids: words are looked up two hundred at a time, so that memory is asked for long before it is needed.

use std::borrow::Cow;
use std::ops::Range;

use crate::added::Part;
use crate::cache::{Found, Key, WordCache};
use crate::normalize::{nfc, nfc_stretches};
use crate::split::{BATCH, Cuts, Instructions, Known, Splitter, Task, dispatch};
use crate::tokenizer::{Special, Tokenizer};
use crate::{TokenId, bpe};

/// Ids of a text and the bytes of the text that each stands for.
pub type IdsAndSpans = (Vec<TokenId>, Vec<Range<usize>>);

impl Tokenizer {
    /// Tokens of `text`.
    pub fn encode(&self, text: &str, special: Special) -> Vec<TokenId> {
        let mut ids = Vec::with_capacity(text.len() / 3 + 8);
        self.with_cache(|cache| self.encode_into(text, special, cache, &mut ids));
        ids
    }

    /// Tokens of bytes of which some may be no UTF-8. Those are merged on their own, run by run, so decoding gives all
    /// bytes back. Nothing in them becomes a special token.
    pub fn encode_bytes(&self, bytes: &[u8]) -> Vec<TokenId> {
        let mut ids = Vec::with_capacity(bytes.len() / 3 + 8);
        self.with_cache(|cache| {
            for chunk in bytes.utf8_chunks() {
                self.encode_into(chunk.valid(), Special::AsText, cache, &mut ids);
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
        self.with_cache(|cache| {
            for part in self.raw_parts(text, special) {
                match part {
                    Part::Token(id, start, end) => {
                        out.0.push(id);
                        out.1.push(start..end);
                    }
                    Part::Text(start, end) => self.spans_of_part(&text[start..end], start, special, cache, &mut out),
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
                    let span = origin.span(start + at.saturating_sub(added), start + next.saturating_sub(added));
                    out.1.push(offset + span.start..offset + span.end);
                    at = next;
                }
            });
        }
    }

    /// Appends the tokens of `text`; `cache` remembers words between calls.
    pub(crate) fn encode_into(
        &self,
        text: &str,
        special: Special,
        cache: &mut WordCache,
        ids: &mut Vec<TokenId>,
    ) {
        if special == Special::AsText {
            self.encode_words(&self.normalize(text), cache, ids);
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
                            Part::Text(start, end) => self.encode_words(&text[start..end], cache, ids),
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
    fn encode_words(&self, text: &str, cache: &mut WordCache, ids: &mut Vec<TokenId>) {
        let text = &*self.with_prefix_space(text);
        match &self.splitter {
            Splitter::Known(known) => {
                dispatch(Words { tokenizer: self, known: *known, text, cache, ids });
            }
            Splitter::General(general) => {
                general.for_each_word(text, &mut |start, end| self.encode_word(text, start, end, cache, ids));
            }
        }
    }

    fn encode_word(&self, text: &str, start: usize, end: usize, cache: &mut WordCache, ids: &mut Vec<TokenId>) {
        cache.make_room(&self.vocabulary, self.ignore_merges);
        let bytes = text.as_bytes();
        let key = Key::of(bytes, start, end);
        match cache.find(key, || (start, end), bytes) {
            Found::Few(few, count) => ids.extend_from_slice(&few[..count]),
            Found::Many(many) => ids.extend_from_slice(many),
            Found::Nothing => self.merge_word(key, &bytes[start..end], cache, ids),
        }
    }

    /// Appends the tokens of a word that the cache does not know.
    #[inline(always)]
    fn merge_word(&self, key: Key, word: &[u8], cache: &mut WordCache, ids: &mut Vec<TokenId>) {
        let before = ids.len();
        match self.vocabulary_entry(word) {
            Some(id) => ids.push(id),
            None => bpe::encode(&self.merges, &self.characters, word, ids),
        }
        cache.insert(key, word, &ids[before..]);
    }

    /// The token that a word is as a whole. The cache is seeded with all but those that are too long for it.
    #[inline(always)]
    fn vocabulary_entry(&self, word: &[u8]) -> Option<TokenId> {
        let longest = self.longest_token;
        if self.ignore_merges && word.len() > 15 && word.len() <= longest { self.vocabulary.id(word) } else { None }
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
            let index = self.stretches.partition_point(|&(_, after)| if is_end { after < place } else { after <= place });
            let (before_start, after_start) = if index == 0 { (0, 0) } else { self.stretches[index - 1] };
            let Some(&(before_end, after_end)) = self.stretches.get(index) else { return before_start };
            match (before_end - before_start == after_end - after_start, is_end) {
                (true, _) => before_start + (place - after_start),
                (false, true) => before_end,
                (false, false) => before_start,
            }
        };
        at(start, false)..at(end, true)
    }
}

/// The words of a text, to be turned into ids.
struct Words<'a> {
    tokenizer: &'a Tokenizer,
    known: Known,
    text: &'a str,
    cache: &'a mut WordCache,
    ids: &'a mut Vec<TokenId>,
}

/// Ids of a batch of words that each have four at most.
struct Staged {
    ids: [TokenId; 4 * BATCH + 4],
    len: usize,
}

impl Staged {
    #[inline(always)]
    fn push(&mut self, few: [TokenId; 4], count: usize) {
        self.ids[self.len..self.len + 4].copy_from_slice(&few);
        self.len += count;
    }

    #[inline(always)]
    fn flush(&mut self, ids: &mut Vec<TokenId>) {
        ids.extend_from_slice(&self.ids[..self.len]);
        self.len = 0;
    }
}

impl Task for Words<'_> {
    #[inline(always)]
    fn run<I: Instructions>(self, instructions: I) {
        let Self { tokenizer, known, text, cache, ids } = self;
        let bytes = text.as_bytes();
        let mut cuts = Cuts::new(known, text);
        let mut ends = [0; BATCH];
        let mut keys = [Key::default(); BATCH];
        let mut staged = Staged { ids: [0; 4 * BATCH + 4], len: 0 };
        let mut batch_start = 0;
        loop {
            let count = cuts.fill(instructions, &mut ends);
            if count == 0 {
                return;
            }
            cache.make_room(&tokenizer.vocabulary, tokenizer.ignore_merges);
            let mut start = batch_start;
            for (key, &end) in keys[..count].iter_mut().zip(&ends[..count]) {
                *key = Key::of(bytes, start, end);
                cache.prefetch(*key);
                start = end;
            }
            start = batch_start;
            for (&key, &end) in keys[..count].iter().zip(&ends[..count]) {
                match cache.find(key, || (start, end), bytes) {
                    Found::Few(few, count) => staged.push(few, count),
                    Found::Many(many) => {
                        staged.flush(ids);
                        ids.extend_from_slice(many);
                    }
                    Found::Nothing => {
                        staged.flush(ids);
                        tokenizer.merge_word(key, &bytes[start..end], cache, ids);
                    }
                }
                start = end;
            }
            staged.flush(ids);
            batch_start = start;
        }
    }
}

//! Text to ids: words are looked up two hundred at a time, so that memory is asked for long before it is needed.

use std::borrow::Cow;
use std::ops::Range;

use crate::TokenId;
use crate::added::Part;
use crate::bpe::{self, Merger};
use crate::cache::{Entered, Key, WordCache};
use crate::normalize::{nfc, nfc_stretches};
use crate::split::{BATCH, Cuts, Instructions, Known, Splitter, Task, dispatch};
use crate::tokenizer::{Special, Tokenizer};

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
                    Part::Text(start, end) => {
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
                            Part::Text(start, end) => {
                                self.encode_words(&text[start..end], cache, ids);
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
    fn encode_words(&self, text: &str, cache: &mut WordCache, ids: &mut Vec<TokenId>) {
        let text = &*self.with_prefix_space(text);
        match &self.splitter {
            Splitter::Known(known) => {
                dispatch(Words { tokenizer: self, known: *known, text, cache, ids });
            }
            Splitter::General(general) => {
                general.for_each_word(text, &mut |start, end| {
                    self.encode_word(text, start, end, cache, ids);
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
            if let Some(many) = cache.outside(key, entered, word) {
                ids.extend_from_slice(many);
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
    fn whole_token(&self, word: &[u8], cache: &WordCache) -> Option<TokenId> {
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

/// The words of a text, to be turned into ids.
struct Words<'a> {
    tokenizer: &'a Tokenizer,
    known: Known,
    text: &'a str,
    cache: &'a mut WordCache,
    ids: &'a mut Vec<TokenId>,
}

/// Ids of a batch of words.
struct Batch {
    /// Ids of the words that have four at most, one after the other.
    few: [TokenId; 4 * BATCH + 4],
    num_few: usize,
    /// Ids of the others.
    many: Vec<TokenId>,
    /// The others: how many of `few` stand before, and the range in `many`.
    others: Vec<(usize, usize, usize)>,
    /// Words that must be merged: key, start and end in the text, number among the others.
    unknown: Vec<(Key, usize, usize, usize)>,
}

impl Batch {
    fn new() -> Self {
        Self {
            few: [0; 4 * BATCH + 4],
            num_few: 0,
            many: Vec::new(),
            others: Vec::new(),
            unknown: Vec::new(),
        }
    }

    #[inline(always)]
    fn push_few(&mut self, entered: Entered<'_>) {
        let place = self.few[self.num_few..].first_chunk_mut().expect("each word has at most four");
        entered.write(place);
        self.num_few += entered.count();
    }

    #[inline(never)]
    fn push_other(&mut self, found: Option<&[TokenId]>, key: Key, start: usize, end: usize) {
        let first = self.many.len();
        match found {
            Some(ids) => self.many.extend_from_slice(ids),
            None => self.unknown.push((key, start, end, self.others.len())),
        }
        self.others.push((self.num_few, first, self.many.len()));
    }

    /// Appends all ids in order and starts anew.
    #[inline(always)]
    fn flush(&mut self, ids: &mut Vec<TokenId>) {
        let mut done = 0;
        for &(before, first, end) in &self.others {
            ids.extend_from_slice(&self.few[done..before]);
            ids.extend_from_slice(&self.many[first..end]);
            done = before;
        }
        ids.extend_from_slice(&self.few[done..self.num_few]);
        self.num_few = 0;
        self.many.clear();
        self.others.clear();
        self.unknown.clear();
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
        let mut batch = Batch::new();
        let mut merger = Merger::new(&tokenizer.merges, &tokenizer.characters);
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
                match cache.find(key) {
                    Some(entered) if entered.count() > 0 => batch.push_few(entered),
                    Some(entered) => batch.push_other(
                        cache.outside(key, entered, &bytes[start..end]),
                        key,
                        start,
                        end,
                    ),
                    None => batch.push_other(None, key, start, end),
                }
                start = end;
            }
            batch_start = start;
            if !batch.unknown.is_empty() {
                tokenizer.merge_unknown(bytes, &mut batch, &mut merger, cache);
            }
            batch.flush(ids);
        }
    }
}

impl Tokenizer {
    /// Finds the ids of the words that the cache does not know, and makes them known.
    #[inline(always)]
    fn merge_unknown(
        &self,
        text: &[u8],
        batch: &mut Batch,
        merger: &mut Merger<'_>,
        cache: &mut WordCache,
    ) {
        let Batch { many, others, unknown, .. } = batch;
        if self.ignore_merges && !cache.knows_all_tokens() {
            unknown.retain(|&(_, start, end, other)| {
                let whole = self.vocabulary.id(&text[start..end]);
                many.extend(whole);
                others[other].1 = many.len() - usize::from(whole.is_some());
                others[other].2 = many.len();
                whole.is_none()
            });
        }
        let mut first = many.len();
        let word = |number: usize| {
            let (_, start, end, _): (Key, usize, usize, usize) = unknown[number];
            &text[start..end]
        };
        merger.merge(unknown.len(), word, many, |number, many| {
            let (key, _, _, other) = unknown[number];
            others[other].1 = first;
            others[other].2 = many.len();
            cache.insert(key, word(number), &many[first..]);
            first = many.len();
        });
    }
}

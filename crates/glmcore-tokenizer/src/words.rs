//! The words of a text, looked up hundreds at a time, so that memory is asked for long before it is needed, and merged
//! dozens at a time where they are new, so that merges wait for memory together.

use crate::TokenId;
use crate::bpe::Lanes;
use crate::cache::{Entered, Outside, OutsideIds, Slot, WordCache};
use crate::key::Key;
use crate::split::{BATCH, Cuts, Instructions, Known, Task};
use crate::tokenizer::Tokenizer;
use crate::vocabulary::Vocabulary;

/// What the encoding of texts remembers and what it works in, kept from text to text.
#[derive(Debug)]
pub(crate) struct Workspace {
    pub(crate) cache: WordCache,
    batch: Batch,
    lanes: Lanes,
}

impl Workspace {
    /// `seeded`: the cache knows the words that are tokens themselves.
    pub(crate) fn new(vocabulary: &Vocabulary, seeded: bool) -> Self {
        Self { cache: WordCache::new(vocabulary, seeded), batch: Batch::new(), lanes: Lanes::new() }
    }
}

/// The words of a text, to be turned into ids.
pub(crate) struct Words<'a> {
    pub(crate) tokenizer: &'a Tokenizer,
    pub(crate) known: Known,
    pub(crate) text: &'a str,
    pub(crate) work: &'a mut Workspace,
    pub(crate) ids: &'a mut Vec<TokenId>,
}

/// New words are merged when there are so many, or when so many words have been looked up, or at the end of the text.
const MANY_NEW: usize = 256;
const MANY_WORDS: usize = 8 * BATCH;
/// So many ids are few, and so many of those are many together.
const FEW: usize = 24;
const MANY_FEW: usize = 4 * MANY_WORDS;

/// Words whose ids have not yet been written out.
#[derive(Debug)]
struct Batch {
    ends: [usize; BATCH],
    keys: [Key; BATCH],
    /// Places of the words of a batch whose ids stand outside the table of words.
    long: [u8; BATCH],
    /// Ids of the words that have few, one after the other.
    few: Box<[TokenId]>,
    num_few: usize,
    num_words: usize,
    /// Ids of the others.
    many: Vec<TokenId>,
    others: Vec<Other>,
    new: Vec<New>,
}

/// A word whose ids stand in `many`.
#[derive(Debug, Clone, Copy)]
struct Other {
    /// So many of `few` stand before it.
    before: u32,
    /// Its range in `many`; if the first is [`NEW`], the second is its number among the new words.
    ids: (u32, u32),
}

const NEW: u32 = u32::MAX;

/// A word that must be merged.
#[derive(Debug, Clone, Copy)]
struct New {
    start: usize,
    end: usize,
    /// Where the cache awaits its ids.
    slot: Slot,
    /// Its range in `many` once it is merged.
    ids: (u32, u32),
}

impl Batch {
    fn new() -> Self {
        Self {
            ends: [0; BATCH],
            keys: [Key::default(); BATCH],
            long: [0; BATCH],
            few: vec![0; MANY_FEW + BATCH * FEW + FEW].into(),
            num_few: 0,
            num_words: 0,
            many: Vec::new(),
            others: Vec::new(),
            new: Vec::new(),
        }
    }

    #[inline(always)]
    fn push_few(&mut self, entered: Entered<'_>) {
        let place = self.few[self.num_few..].first_chunk_mut().expect("no batch has more");
        entered.write(place);
        self.num_few += entered.count();
    }

    fn push_range(&mut self, ids: (u32, u32)) {
        self.others.push(Other { before: self.num_few as u32, ids });
    }

    #[inline(always)]
    fn push_outside(&mut self, ids: OutsideIds<'_>) {
        if ids.len() <= FEW {
            ids.write(&mut self.few[self.num_few..][..FEW]);
            self.num_few += ids.len();
        } else {
            self.push_many(ids.as_slice());
        }
    }

    fn push_many(&mut self, ids: &[TokenId]) {
        let first = self.many.len() as u32;
        self.many.extend_from_slice(ids);
        self.push_range((first, self.many.len() as u32));
    }

    /// Appends all ids in order and starts anew.
    #[inline(always)]
    fn flush(&mut self, ids: &mut Vec<TokenId>) {
        let mut done = 0;
        for &Other { before, ids: (first, end) } in &self.others {
            let (first, end) = if first == NEW { self.new[end as usize].ids } else { (first, end) };
            ids.extend_from_slice(&self.few[done..before as usize]);
            ids.extend_from_slice(&self.many[first as usize..end as usize]);
            done = before as usize;
        }
        ids.extend_from_slice(&self.few[done..self.num_few]);
        self.num_few = 0;
        self.num_words = 0;
        self.many.clear();
        self.others.clear();
        self.new.clear();
    }
}

impl Task for Words<'_> {
    #[inline(always)]
    fn run<I: Instructions>(self, instructions: I) {
        let Self { tokenizer, known, text, work: Workspace { cache, batch, lanes }, ids } = self;
        let bytes = text.as_bytes();
        let mut cuts = Cuts::new(known, text);
        let mut batch_start = 0;
        loop {
            let count = cuts.fill(instructions, &mut batch.ends);
            if batch.new.is_empty() {
                cache.make_room(&tokenizer.vocabulary, tokenizer.ignore_merges);
            }
            let mut start = batch_start;
            let mut num_long = 0;
            for (place, &end) in batch.ends[..count].iter().enumerate() {
                let key = Key::of(bytes, start, end);
                batch.keys[place] = key;
                cache.prefetch(key);
                batch.long[num_long] = place as u8;
                num_long += usize::from(key.is_long());
                start = end;
            }
            for &place in &batch.long[..num_long] {
                cache.prefetch_outside(batch.keys[usize::from(place)]);
            }
            start = batch_start;
            for place in 0..count {
                let (key, end) = (batch.keys[place], batch.ends[place]);
                match cache.find(key) {
                    Some(entered) if entered.count() > 0 => batch.push_few(entered),
                    Some(entered) if push_known(bytes, start, end, key, entered, cache, batch) => {}
                    _ => tokenizer.push_new(bytes, start, end, key, cache, batch),
                }
                start = end;
            }
            batch_start = start;
            batch.num_words += count;
            let is_full = batch.num_words > MANY_WORDS - BATCH || batch.num_few > MANY_FEW;
            if count == 0 || batch.new.len() >= MANY_NEW || is_full {
                if !batch.new.is_empty() {
                    tokenizer.merge_new(bytes, batch, lanes, cache);
                }
                batch.flush(ids);
            }
            if count == 0 {
                return;
            }
        }
    }
}

/// Enters a word of which the cache knows ids that do not stand in the table; false if they are another word's.
#[inline(always)]
fn push_known(
    text: &[u8],
    start: usize,
    end: usize,
    key: Key,
    entered: Entered<'_>,
    cache: &WordCache,
    batch: &mut Batch,
) -> bool {
    let word = &text[start..end];
    let is_word = |number: u32| {
        let new = batch.new[number as usize];
        &text[new.start..new.end] == word
    };
    match cache.outside(key, entered, word, is_word) {
        Outside::Ids(ids) => batch.push_outside(ids),
        Outside::Awaited(number) => batch.push_range((NEW, number)),
        Outside::OtherWord => return false,
    }
    true
}

impl Tokenizer {
    /// Enters a word that must be merged, or is a token that the cache does not know.
    #[inline(never)]
    fn push_new(
        &self,
        text: &[u8],
        start: usize,
        end: usize,
        key: Key,
        cache: &mut WordCache,
        batch: &mut Batch,
    ) {
        let word = &text[start..end];
        if let Some(id) = self.whole_token(word, cache) {
            return batch.push_many(&[id]);
        }
        let number = batch.new.len() as u32;
        batch.push_range((NEW, number));
        batch.new.push(New { start, end, slot: cache.reserve(key, number), ids: (0, 0) });
    }

    /// Finds the ids of the new words, and makes them known.
    #[inline(always)]
    fn merge_new(&self, text: &[u8], batch: &mut Batch, lanes: &mut Lanes, cache: &mut WordCache) {
        let Batch { many, new, .. } = batch;
        let words = &new.clone();
        let word = |number: usize| &text[words[number].start..words[number].end];
        let mut first = many.len();
        lanes.merge(&self.merges, &self.characters, words.len(), word, many, |number, many| {
            new[number].ids = (first as u32, many.len() as u32);
            cache.fill(words[number].slot, word(number), &many[first..]);
            first = many.len();
        });
    }
}

//! Where merging may begin with whole characters instead of bytes.
//!
//! A character of two or three bytes may stand as one symbol from the start if that cannot change the result:
//!
//! 1. merging its bytes alone gives one token, the last merge of which has rank r;
//! 2. every merge that makes a token in which the character stands whole, beside others, has a rank above r: so the
//!    character is whole before anything can happen to it as a whole;
//! 3. no token crosses a border of the character and leaves out a part of it: so nothing else can happen to its parts.
//!
//! Vocabularies learned by byte-pair encoding fulfil (2) nearly always; what does not is found here and starts from bytes.

use rustc_hash::FxHashSet;

use crate::TokenId;
use crate::merges::{Merge, Merges};
use crate::vocabulary::Vocabulary;

/// Code points of up to three bytes.
const NUM_CODES: usize = 1 << 16;
const NOT_WHOLE: TokenId = u32::MAX;

/// Tokens of characters that may stand whole from the start.
#[derive(Debug)]
pub(crate) struct Characters {
    /// By code point; [`NOT_WHOLE`] where the character starts from its bytes.
    whole: Box<[TokenId]>,
    /// Borders, by last byte before and first byte after, over which a token reaches for a part of a character.
    crossed: Box<[u64; 1024]>,
    /// The same by the two bytes on each side that the token holds, 0 where it holds one only.
    crossings: FxHashSet<[u8; 4]>,
}

impl Characters {
    /// `rank_of` gives the rank of the merge at a place that makes a token.
    pub(crate) fn new(
        vocabulary: &Vocabulary,
        merges: &Merges,
        rank_of: impl Fn(usize, TokenId) -> u32,
    ) -> Self {
        let mut characters = Self {
            whole: vec![NOT_WHOLE; NUM_CODES].into(),
            crossed: Box::new([0; 1024]),
            crossings: FxHashSet::default(),
        };
        let mut last_rank = vec![0_u32; NUM_CODES];
        for (id, token) in vocabulary.learned() {
            if let Some(code) = code_of(token)
                && let Some(rank) = rank_of_character(merges, token, id)
            {
                characters.whole[code] = id;
                last_rank[code] = rank;
            }
        }
        // The lowest rank of the merges that make a token.
        let mut ranks = vec![Merge::NONE.rank; vocabulary.len()];
        for (place, &(_, _, id)) in merges.pairs().iter().enumerate() {
            let lowest = &mut ranks[id as usize];
            *lowest = rank_of(place, id).min(*lowest);
        }
        for (id, token) in vocabulary.learned() {
            let rank = ranks[id as usize];
            if rank != Merge::NONE.rank && !token.is_ascii() {
                characters.restrict(token, rank, &last_rank);
            }
        }
        characters
    }

    /// Takes note of the merges that make `token`, the lowest of rank `rank`.
    fn restrict(&mut self, token: &[u8], rank: u32, last_rank: &[u32]) {
        let mut start = 0;
        while start < token.len() {
            let end = character_end(token, start);
            let character = &token[start..end];
            let complete = match character.len() {
                1 => character.is_ascii(),
                2 | 3 => code_of(character).is_some(),
                _ => std::str::from_utf8(character).is_ok(),
            };
            if !complete {
                // A part of a character: what it touches inside the token is a border that is crossed.
                if start > 0 {
                    self.cross(token, start);
                }
                if end < token.len() {
                    self.cross(token, end);
                }
            } else if character.len() < token.len()
                && let Some(code) = code_of(character)
                && self.whole[code] != NOT_WHOLE
                && rank <= last_rank[code]
            {
                self.whole[code] = NOT_WHOLE;
            }
            start = end;
        }
    }

    fn cross(&mut self, token: &[u8], at: usize) {
        let (before, after) = (token[at - 1], token[at]);
        let border = usize::from(before) << 8 | usize::from(after);
        self.crossed[border / 64] |= 1 << (border % 64);
        let further =
            |place: Option<usize>| place.and_then(|place| token.get(place)).copied().unwrap_or(0);
        self.crossings.insert([further(at.checked_sub(2)), before, after, further(Some(at + 1))]);
    }

    /// Whether a token may cross the border at `at` and hold a part of a character only.
    #[inline(always)]
    fn is_crossed(&self, piece: &[u8], at: usize) -> bool {
        let border = usize::from(piece[at - 1]) << 8 | usize::from(piece[at]);
        self.crossed[border / 64] >> (border % 64) & 1 != 0 && self.is_crossed_exactly(piece, at)
    }

    #[inline(never)]
    fn is_crossed_exactly(&self, piece: &[u8], at: usize) -> bool {
        let before = [at.checked_sub(2).map_or(0, |place| piece[place]), 0];
        let after = [piece.get(at + 1).copied().unwrap_or(0), 0];
        before.into_iter().any(|before| {
            after
                .into_iter()
                .any(|after| self.crossings.contains(&[before, piece[at - 1], piece[at], after]))
        })
    }

    /// Calls `push` with each symbol from which the merging of `piece` may begin.
    #[inline(always)]
    pub(crate) fn symbols(&self, merges: &Merges, piece: &[u8], mut push: impl FnMut(TokenId)) {
        let mut start = 0;
        let mut crossed_before = false;
        while start < piece.len() {
            let end = character_end(piece, start);
            let crossed_behind = end < piece.len() && self.is_crossed(piece, end);
            let code =
                if crossed_before || crossed_behind { None } else { code_of(&piece[start..end]) };
            match code.map(|code| self.whole[code]) {
                Some(id) if id != NOT_WHOLE => push(id),
                _ => {
                    for &byte in &piece[start..end] {
                        push(merges.byte_ids[usize::from(byte)]);
                    }
                }
            }
            start = end;
            crossed_before = crossed_behind;
        }
    }
}

/// End of the run that starts at `start`: a byte and the continuation bytes after it, three at most.
#[inline(always)]
fn character_end(bytes: &[u8], start: usize) -> usize {
    let mut end = start + 1;
    if bytes[start] >= 0xc0 {
        let longest = match bytes[start] {
            0xc0..=0xdf => 2,
            0xe0..=0xef => 3,
            _ => 4,
        };
        while end < bytes.len() && end < start + longest && bytes[end] & 0xc0 == 0x80 {
            end += 1;
        }
    }
    end
}

/// Code point of a character of two or three bytes.
#[inline(always)]
fn code_of(bytes: &[u8]) -> Option<usize> {
    match *bytes {
        [a @ 0xc2..=0xdf, b] => Some(usize::from(a & 0x1f) << 6 | usize::from(b & 0x3f)),
        [a @ 0xe0..=0xef, b, c] => {
            let code =
                usize::from(a & 0x0f) << 12 | usize::from(b & 0x3f) << 6 | usize::from(c & 0x3f);
            (code >= 0x800 && !(0xd800..0xe000).contains(&code)).then_some(code)
        }
        _ => None,
    }
}

/// Highest rank among the merges that turn the bytes of a character into its token, if they do.
fn rank_of_character(merges: &Merges, character: &[u8], id: TokenId) -> Option<u32> {
    let merge_bytes = |first: u8, second: u8| merges.of_bytes(first, second);
    let byte = |byte: u8| merges.byte_ids[usize::from(byte)];
    let (first, last) = match *character {
        [a, b] => (merge_bytes(a, b), None),
        [a, b, c] => {
            let (left, right) = (merge_bytes(a, b), merge_bytes(b, c));
            // The lower rank goes first, the left of equal ones.
            if left.rank <= right.rank {
                (left, Some(merges.get(left.id, byte(c))))
            } else {
                (right, Some(merges.get(byte(a), right.id)))
            }
        }
        _ => return None,
    };
    let end = last.unwrap_or(first);
    (first != Merge::NONE && end != Merge::NONE && end.id == id).then_some(first.rank.max(end.rank))
}

//! The merge loop: the lowest-ranked pair is merged, leftmost first, until none is left.
//!
//! Short pieces keep their symbols in place and scan for the lowest rank, many pieces at a time; for long ones see
//! [`crate::long`].

use crate::TokenId;
use crate::characters::Characters;
use crate::long::encode_long;
use crate::merges::{Merge, Merges, Place};

/// Pieces of so many symbols fit the bits of a word.
const MAX_SCANNED: usize = 64;
/// Pieces that are merged at the same time, so that their look-ups wait for memory together.
const GROUP: usize = 16;

/// Pieces that are being merged.
#[derive(Debug)]
pub(crate) struct Lanes(Box<[Lane; GROUP]>);

impl Lanes {
    pub(crate) fn new() -> Self {
        Self(Box::new([Lane::EMPTY; GROUP]))
    }

    /// Merges `count` pieces, which need not be UTF-8, and calls `done` with the number of each when its tokens have been
    /// appended to `ids`; in any order.
    #[inline(always)]
    pub(crate) fn merge<'p>(
        &mut self,
        merges: &Merges,
        characters: &Characters,
        count: usize,
        piece: impl Fn(usize) -> &'p [u8],
        ids: &mut Vec<TokenId>,
        mut done: impl FnMut(usize, &mut Vec<TokenId>),
    ) {
        let lanes = &mut self.0;
        let mut next = 0;
        // Lanes at work come first.
        let mut order: [u8; GROUP] = std::array::from_fn(|place| place as u8);
        let mut num_running = 0;
        loop {
            while num_running < GROUP && next < count {
                let lane = &mut lanes[usize::from(order[num_running]) % GROUP];
                if lane.take(merges, characters, piece(next)) {
                    lane.number = next;
                    num_running += 1;
                } else {
                    encode_long(merges, characters, piece(next), ids);
                    done(next, ids);
                }
                next += 1;
            }
            if num_running == 0 {
                return;
            }
            for &lane in &order[..num_running] {
                lanes[usize::from(lane) % GROUP].look_up(merges);
            }
            let mut place = 0;
            while place < num_running {
                let lane = &mut lanes[usize::from(order[place]) % GROUP];
                if lane.merge_lowest(merges) {
                    place += 1;
                } else {
                    lane.emit(ids);
                    done(lane.number, ids);
                    num_running -= 1;
                    order.swap(place, num_running);
                }
            }
        }
    }
}

/// Appends the tokens of one piece.
pub(crate) fn encode(
    merges: &Merges,
    characters: &Characters,
    piece: &[u8],
    ids: &mut Vec<TokenId>,
) {
    let mut lane = Lane::EMPTY;
    if !lane.take(merges, characters, piece) {
        encode_long(merges, characters, piece, ids);
        return;
    }
    lane.look_up(merges);
    while lane.merge_lowest(merges) {
        lane.look_up(merges);
    }
    lane.emit(ids);
}

/// Symbols of a short piece. Those that are merged into their left neighbour stay where they are, dead.
#[derive(Debug, Clone, Copy)]
struct Lane {
    ids: [TokenId; MAX_SCANNED],
    /// Rank of the pair that starts at a symbol, with the symbol's place in the low bits: the least is the leftmost of
    /// the lowest rank. One place more than there are symbols takes what is of no use.
    keys: [u32; MAX_SCANNED + 1],
    /// What the pair that starts at a symbol becomes.
    merged: [TokenId; MAX_SCANNED + 1],
    /// Places that still begin a symbol.
    alive: u64,
    len: usize,
    /// Pairs that are being looked up, by their left halves.
    awaited: [(Place, usize, usize); 2],
    /// All pairs are being looked up.
    all_awaited: bool,
    /// Number of the piece.
    number: usize,
}

/// Keys from here on belong to no merge.
const NO_MERGE: u32 = u32::MAX << 6;
const NOWHERE: usize = MAX_SCANNED;

#[inline(always)]
fn key(merge: Merge, place: usize) -> u32 {
    merge.rank << 6 | place as u32
}

impl Lane {
    const EMPTY: Self = Self {
        ids: [0; MAX_SCANNED],
        keys: [NO_MERGE; MAX_SCANNED + 1],
        merged: [0; MAX_SCANNED + 1],
        alive: 0,
        len: 0,
        awaited: [(Place::NOWHERE, NOWHERE, 0); 2],
        all_awaited: false,
        number: 0,
    };

    /// Takes the symbols of a piece; false, and nothing taken, if there are too many. Bytes are looked up at once,
    /// characters asked for.
    #[inline(always)]
    fn take(&mut self, merges: &Merges, characters: &Characters, piece: &[u8]) -> bool {
        self.keys = [NO_MERGE; MAX_SCANNED + 1];
        self.alive = 0;
        self.len = 0;
        self.all_awaited = false;
        self.awaited = [(Place::NOWHERE, NOWHERE, 0); 2];
        if piece.is_ascii() {
            if piece.len() > MAX_SCANNED {
                return false;
            }
            self.len = piece.len();
            for (id, &byte) in self.ids.iter_mut().zip(piece) {
                *id = merges.byte_ids[usize::from(byte)];
            }
            for place in 0..self.len.saturating_sub(1) {
                let merge = merges.of_bytes(piece[place], piece[place + 1]);
                self.keys[place] = key(merge, place);
                self.merged[place] = merge.id;
            }
        } else {
            // A character of three bytes is mostly one symbol.
            if piece.len() > 3 * MAX_SCANNED {
                return false;
            }
            let mut len = 0;
            characters.symbols(merges, piece, |id| {
                if let Some(place) = self.ids.get_mut(len) {
                    *place = id;
                }
                len += 1;
            });
            if len > MAX_SCANNED {
                return false;
            }
            self.len = len;
            self.all_awaited = true;
            for pair in self.ids[..len].windows(2) {
                merges.prefetch(merges.place(pair[0], pair[1]));
            }
        }
        self.alive = if self.len == 0 { 0 } else { u64::MAX >> (64 - self.len) };
        true
    }

    /// Looks up the pairs that have been asked for.
    #[inline(always)]
    fn look_up(&mut self, merges: &Merges) {
        if self.all_awaited {
            self.all_awaited = false;
            for place in 0..self.len - 1 {
                let merge = merges.get(self.ids[place], self.ids[place + 1]);
                self.keys[place] = key(merge, place);
                self.merged[place] = merge.id;
            }
            return;
        }
        for (place, left, right) in self.awaited {
            let merge = merges.at(place, || (self.ids[left & 63], self.ids[right]));
            self.keys[left] = key(merge, left);
            self.merged[left] = merge.id;
        }
    }

    /// Merges the pair of the lowest rank and asks for the pairs that this makes; false if there is none.
    #[inline(always)]
    fn merge_lowest(&mut self, merges: &Merges) -> bool {
        let scanned = self.len.next_multiple_of(16).min(MAX_SCANNED);
        let lowest = self.keys[..scanned].iter().copied().fold(u32::MAX, u32::min);
        if lowest >= NO_MERGE {
            return false;
        }
        let place = (lowest & 63) as usize;
        let id = self.merged[place];
        self.ids[place] = id;
        let behind = self.alive & (u64::MAX << place << 1);
        let right = behind & behind.wrapping_neg(); // a pair has a right half
        self.alive &= !right;
        self.keys[place] = NO_MERGE;
        self.keys[right.trailing_zeros() as usize & 63] = NO_MERGE;
        let next = (behind & !right).trailing_zeros() as usize;
        let before = self.alive & !(u64::MAX << place);
        let previous = 63_usize.wrapping_sub(before.leading_zeros() as usize);
        self.awaited = [
            Self::ask(merges, &self.ids, place, next, next < MAX_SCANNED),
            Self::ask(merges, &self.ids, previous, place, before != 0),
        ];
        true
    }

    #[inline(always)]
    fn ask(
        merges: &Merges,
        ids: &[TokenId; MAX_SCANNED],
        left: usize,
        right: usize,
        there: bool,
    ) -> (Place, usize, usize) {
        let place = merges.place(ids[left & 63], ids[right & 63]);
        merges.prefetch(place);
        (place, if there { left } else { NOWHERE }, right & 63)
    }

    #[inline(always)]
    fn emit(&self, ids: &mut Vec<TokenId>) {
        let mut left = self.alive;
        while left != 0 {
            ids.push(self.ids[left.trailing_zeros() as usize]);
            left &= left - 1;
        }
    }
}

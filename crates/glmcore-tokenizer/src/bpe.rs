//! The merge loop: the lowest-ranked pair is merged, leftmost first, until none is left.
//!
//! Short pieces keep their symbols in place and scan for the lowest rank; long ones queue the places of each rank.

use std::cmp::Reverse;
use std::collections::BinaryHeap;

use rustc_hash::FxHashMap;

use crate::TokenId;
use crate::characters::Characters;
use crate::merges::{Merge, Merges};

/// Pieces of so many symbols fit the bits of a word.
const MAX_SCANNED: usize = 64;

/// Appends the tokens of `piece`, which need not be UTF-8.
#[inline(always)]
pub(crate) fn encode(merges: &Merges, characters: &Characters, piece: &[u8], ids: &mut Vec<TokenId>) {
    if piece.len() <= MAX_SCANNED {
        let mut scanned = Scanned::new();
        scanned.fill(merges, characters, piece);
        scanned.merge(merges);
        scanned.emit(ids);
    } else {
        encode_long(merges, characters, piece, ids);
    }
}

/// Symbols of a short piece.
struct Scanned {
    ids: [TokenId; MAX_SCANNED],
    /// Rank of the pair that starts at a symbol, with the symbol's place in the low bits: the least is the leftmost of
    /// the lowest rank.
    keys: [u32; MAX_SCANNED],
    /// What the pair that starts at a symbol becomes.
    merged: [TokenId; MAX_SCANNED],
    /// Places that still begin a symbol.
    alive: u64,
    len: usize,
}

const NO_MERGE: u32 = u32::MAX;

#[inline(always)]
fn key(merge: Merge, place: usize) -> u32 {
    if merge == Merge::NONE { NO_MERGE } else { merge.rank << 6 | place as u32 }
}

impl Scanned {
    #[inline(always)]
    fn new() -> Self {
        Self {
            ids: [0; MAX_SCANNED],
            keys: [NO_MERGE; MAX_SCANNED],
            merged: [0; MAX_SCANNED],
            alive: 0,
            len: 0,
        }
    }

    #[inline(always)]
    fn fill(&mut self, merges: &Merges, characters: &Characters, piece: &[u8]) {
        if piece.is_ascii() {
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
            let mut len = 0;
            characters.symbols(merges, piece, |id| {
                self.ids[len] = id;
                len += 1;
            });
            self.len = len;
            for place in 0..len - 1 {
                self.look_up(merges, place, place + 1);
            }
        }
        self.alive = u64::MAX >> (64 - self.len.max(1));
    }

    #[inline(always)]
    fn look_up(&mut self, merges: &Merges, left: usize, right: usize) {
        let merge = merges.get(self.ids[left], self.ids[right]);
        self.keys[left] = key(merge, left);
        self.merged[left] = merge.id;
    }

    #[inline(always)]
    fn merge(&mut self, merges: &Merges) {
        let scanned = self.len.next_multiple_of(16).min(MAX_SCANNED);
        loop {
            let lowest = self.keys[..scanned].iter().copied().fold(NO_MERGE, u32::min);
            if lowest == NO_MERGE {
                return;
            }
            let place = (lowest & 63) as usize;
            let after = self.alive & (u64::MAX << place << 1);
            let right = after.trailing_zeros() as usize; // a pair has a right half
            self.alive &= !(1 << right);
            self.ids[place] = self.merged[place];
            self.keys[right & 63] = NO_MERGE;
            let next = after & after.wrapping_sub(1);
            if next == 0 {
                self.keys[place] = NO_MERGE;
            } else {
                self.look_up(merges, place, next.trailing_zeros() as usize);
            }
            let before = self.alive & !(u64::MAX << place);
            if before != 0 {
                self.look_up(merges, 63 - before.leading_zeros() as usize, place);
            }
        }
    }

    #[inline(always)]
    fn emit(&self, ids: &mut Vec<TokenId>) {
        let mut left = self.alive;
        if self.len == 0 {
            return;
        }
        while left != 0 {
            ids.push(self.ids[left.trailing_zeros() as usize]);
            left &= left - 1;
        }
    }
}

const END: u32 = u32::MAX;

/// A symbol of a long piece, linked to its neighbours.
#[derive(Clone, Copy)]
struct Symbol {
    id: TokenId,
    previous: u32,
    next: u32,
    /// What the pair that starts here becomes, and when.
    merge: Merge,
}

/// Symbols that have become part of their left neighbour.
const DEAD: TokenId = u32::MAX;

/// Places of the pairs of each rank. Whole ranks are taken at a time, so that the queue holds ranks and not places.
#[derive(Default)]
struct Places {
    ranks: BinaryHeap<Reverse<u32>>,
    of_rank: FxHashMap<u32, Vec<u32>>,
}

impl Places {
    fn add(&mut self, rank: u32, place: u32) {
        let places = self.of_rank.entry(rank).or_default();
        if places.is_empty() {
            self.ranks.push(Reverse(rank));
        }
        places.push(place);
    }
}

#[inline(never)]
fn encode_long(merges: &Merges, characters: &Characters, piece: &[u8], ids: &mut Vec<TokenId>) {
    let mut symbols: Vec<Symbol> = Vec::with_capacity(piece.len());
    characters.symbols(merges, piece, |id| {
        let place = symbols.len() as u32;
        symbols.push(Symbol { id, previous: place.wrapping_sub(1), next: place + 1, merge: Merge::NONE });
    });
    if let Some(last) = symbols.last_mut() {
        last.next = END;
    }
    let mut places = Places::default();
    let mut known = (DEAD, DEAD, Merge::NONE); // a run of one character asks for one pair again and again
    let mut look_up = |left: TokenId, right: TokenId| {
        if (known.0, known.1) != (left, right) {
            known = (left, right, merges.get(left, right));
        }
        known.2
    };
    for left in 0..symbols.len() - 1 {
        let merge = look_up(symbols[left].id, symbols[left + 1].id);
        symbols[left].merge = merge;
        if merge != Merge::NONE {
            places.add(merge.rank, left as u32);
        }
    }
    while let Some(Reverse(rank)) = places.ranks.pop() {
        let mut of_rank = places.of_rank.remove(&rank).expect("a queued rank has places");
        if !of_rank.is_sorted() {
            of_rank.sort_unstable();
        }
        let mut done = 0;
        let mut overtaken = false; // a new pair has a lower rank and goes first
        while done < of_rank.len() && !overtaken {
            let place = of_rank[done] as usize;
            done += 1;
            let Symbol { id, previous, next, merge } = symbols[place];
            if id == DEAD || merge.rank != rank {
                continue; // one of the two has been merged since
            }
            let after = symbols[next as usize].next;
            symbols[next as usize].id = DEAD;
            let mut merge_after = Merge::NONE;
            if after != END {
                symbols[after as usize].previous = place as u32;
                merge_after = look_up(merge.id, symbols[after as usize].id);
                if merge_after != Merge::NONE {
                    places.add(merge_after.rank, place as u32);
                    overtaken |= merge_after.rank < rank;
                }
            }
            symbols[place] = Symbol { id: merge.id, previous, next: after, merge: merge_after };
            if previous != END {
                let before = look_up(symbols[previous as usize].id, merge.id);
                symbols[previous as usize].merge = before;
                if before != Merge::NONE {
                    places.add(before.rank, previous);
                    overtaken |= before.rank < rank;
                }
            }
        }
        if done < of_rank.len() {
            of_rank.drain(..done);
            places.ranks.push(Reverse(rank));
            places.of_rank.insert(rank, of_rank);
        }
    }
    ids.extend(symbols.iter().filter(|symbol| symbol.id != DEAD).map(|symbol| symbol.id));
}

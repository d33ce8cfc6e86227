//! The merge loop: a scan for short pieces, a heap for long ones.

use std::cmp::Reverse;
use std::collections::BinaryHeap;

use rustc_hash::FxHashMap;

use crate::TokenId;

/// Pieces up to this many bytes are merged by scanning for the best pair: quadratic, but without allocation.
const MAX_SCANNED_BYTES: usize = 64;

/// A learned merge: its place in the order of merges, and the token that it makes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Merge {
    pub(crate) rank: u32,
    pub(crate) id: TokenId,
}

/// The merges of a vocabulary and the tokens of single bytes.
#[derive(Debug, Default)]
pub(crate) struct Merges {
    pub(crate) byte_ids: Vec<TokenId>,
    pub(crate) by_pair: FxHashMap<(TokenId, TokenId), Merge>,
}

impl Merges {
    fn get(&self, left: TokenId, right: TokenId) -> Option<Merge> {
        self.by_pair.get(&(left, right)).copied()
    }

    /// Appends the tokens of `piece`: the lowest-ranked pair is merged, leftmost first, until none is left.
    pub(crate) fn encode(&self, piece: &[u8], ids: &mut Vec<TokenId>) {
        if piece.len() <= MAX_SCANNED_BYTES {
            self.encode_by_scan(piece, ids);
        } else {
            self.encode_by_heap(piece, ids);
        }
    }

    fn encode_by_scan(&self, piece: &[u8], ids: &mut Vec<TokenId>) {
        let mut symbols = [0; MAX_SCANNED_BYTES];
        let mut ranks = [u32::MAX; MAX_SCANNED_BYTES]; // rank of the pair that starts here
        let mut len = piece.len();
        for (symbol, &byte) in symbols.iter_mut().zip(piece) {
            *symbol = self.byte_ids[usize::from(byte)];
        }
        let rank_at = |symbols: &[TokenId], at: usize| {
            self.get(symbols[at], symbols[at + 1]).map_or(u32::MAX, |merge| merge.rank)
        };
        for (at, rank) in ranks[..len.saturating_sub(1)].iter_mut().enumerate() {
            *rank = rank_at(&symbols, at);
        }
        while len > 1 {
            let (best, &rank) = ranks[..len - 1]
                .iter()
                .enumerate()
                .min_by_key(|&(_, rank)| rank)
                .expect("a pair is left");
            if rank == u32::MAX {
                break;
            }
            let merge =
                self.get(symbols[best], symbols[best + 1]).expect("a ranked pair has a merge");
            symbols[best] = merge.id;
            symbols.copy_within(best + 2..len, best + 1);
            ranks.copy_within(best + 2..len, best + 1);
            len -= 1;
            ranks[len - 1] = u32::MAX;
            if best + 1 < len {
                ranks[best] = rank_at(&symbols, best);
            }
            if best > 0 {
                ranks[best - 1] = rank_at(&symbols, best - 1);
            }
        }
        ids.extend_from_slice(&symbols[..len]);
    }

    fn encode_by_heap(&self, piece: &[u8], ids: &mut Vec<TokenId>) {
        let mut list = SymbolList::new(piece.iter().map(|&byte| self.byte_ids[usize::from(byte)]));
        let mut heap = BinaryHeap::new(); // (rank, left place, left id, right id), lowest first
        let push = |heap: &mut BinaryHeap<_>, list: &SymbolList, left: usize| {
            let Some(right) = list.next(left) else { return };
            let pair = (list.ids[left], list.ids[right]);
            if let Some(merge) = self.get(pair.0, pair.1) {
                heap.push(Reverse((merge.rank, left, pair.0, pair.1)));
            }
        };
        for left in 0..piece.len() {
            push(&mut heap, &list, left);
        }
        while let Some(Reverse((_, left, left_id, right_id))) = heap.pop() {
            let Some(right) = list.next(left) else { continue };
            if !list.alive[left] || list.ids[left] != left_id || list.ids[right] != right_id {
                continue; // one of the two has been merged since
            }
            list.ids[left] = self.get(left_id, right_id).expect("a queued pair has a merge").id;
            list.remove(right);
            push(&mut heap, &list, left);
            if let Some(before) = list.previous(left) {
                push(&mut heap, &list, before);
            }
        }
        ids.extend((0..piece.len()).filter(|&at| list.alive[at]).map(|at| list.ids[at]));
    }
}

/// A doubly linked list over fixed places.
struct SymbolList {
    ids: Vec<TokenId>,
    alive: Vec<bool>,
    next: Vec<usize>,
    previous: Vec<usize>,
}

const NONE: usize = usize::MAX;

impl SymbolList {
    fn new(ids: impl Iterator<Item = TokenId>) -> Self {
        let ids: Vec<TokenId> = ids.collect();
        let len = ids.len();
        Self {
            ids,
            alive: vec![true; len],
            next: (1..=len).map(|at| if at == len { NONE } else { at }).collect(),
            previous: (0..len).map(|at| at.wrapping_sub(1)).collect(),
        }
    }

    fn next(&self, at: usize) -> Option<usize> {
        Some(self.next[at]).filter(|&next| next != NONE)
    }

    fn previous(&self, at: usize) -> Option<usize> {
        Some(self.previous[at]).filter(|&previous| previous != NONE)
    }

    fn remove(&mut self, at: usize) {
        self.alive[at] = false;
        let (previous, next) = (self.previous[at], self.next[at]);
        self.next[previous] = next; // only right halves are removed, so there is a left neighbour
        if next != NONE {
            self.previous[next] = previous;
        }
    }
}

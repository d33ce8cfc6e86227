//! The merge loop for long pieces, in time that grows with their length and the logarithm of the number of ranks.
//!
//! While the lowest rank stands at many places, as in runs and repetitions, the whole piece is swept; what is left is a
//! linked list, with the places of each rank in a queue.

use std::cmp::Reverse;
use std::collections::BinaryHeap;

use rustc_hash::FxHashMap;

use crate::TokenId;
use crate::characters::Characters;
use crate::merges::{Merge, Merges};
use crate::prefetch::prefetch;

/// Sweeping a symbol costs about so much less than taking a pair from the queue.
const SWEEP_ADVANTAGE: usize = 24;

/// Appends the tokens of a piece.
#[inline(never)]
pub(crate) fn encode_long(
    merges: &Merges,
    characters: &Characters,
    piece: &[u8],
    ids: &mut Vec<TokenId>,
) {
    let mut pairs = Pairs::new(merges);
    let mut dense = Dense::new(characters, &mut pairs, piece);
    while dense.sweep(&mut pairs) {}
    if dense.ranks.iter().all(|&rank| rank == NO_RANK) {
        ids.extend_from_slice(&dense.ids);
    } else {
        List::new(dense).merge(&mut pairs, ids);
    }
}

const NO_RANK: u32 = Merge::NONE.rank;

/// Look-ups that remember the last answers: runs ask for the same few pairs again and again.
struct Pairs<'m> {
    merges: &'m Merges,
    last: [(TokenId, TokenId, Merge); 4],
    oldest: usize,
}

impl<'m> Pairs<'m> {
    fn new(merges: &'m Merges) -> Self {
        Self { merges, last: [(TokenId::MAX, TokenId::MAX, Merge::NONE); 4], oldest: 0 }
    }

    #[inline(always)]
    fn get(&mut self, left: TokenId, right: TokenId) -> Merge {
        for &(known_left, known_right, merge) in &self.last {
            if (known_left, known_right) == (left, right) {
                return merge;
            }
        }
        let merge = self.merges.get(left, right);
        self.last[self.oldest] = (left, right, merge);
        self.oldest = (self.oldest + 1) % self.last.len();
        merge
    }
}

/// Symbols without gaps.
struct Dense {
    ids: Vec<TokenId>,
    /// Rank of the pair that starts at each symbol.
    ranks: Vec<u32>,
}

impl Dense {
    fn new(characters: &Characters, pairs: &mut Pairs<'_>, piece: &[u8]) -> Self {
        let mut ids = Vec::with_capacity(piece.len());
        if piece.is_ascii() {
            ids.extend(piece.iter().map(|&byte| pairs.merges.byte_ids[usize::from(byte)]));
        } else {
            characters.symbols(pairs.merges, piece, |id| ids.push(id));
        }
        let mut ranks = Vec::with_capacity(ids.len());
        ranks.extend(ids.windows(2).map(|pair| pairs.get(pair[0], pair[1]).rank));
        ranks.push(NO_RANK);
        Self { ids, ranks }
    }

    /// Merges the lowest rank everywhere in one pass, if it stands at enough places; false if it does not.
    fn sweep(&mut self, pairs: &mut Pairs<'_>) -> bool {
        let lowest = self.ranks.iter().copied().fold(NO_RANK, u32::min);
        if lowest == NO_RANK {
            return false;
        }
        let count = self.ranks.iter().filter(|&&rank| rank == lowest).count();
        if count * SWEEP_ADVANTAGE < self.ids.len() {
            return false;
        }
        let (mut kept, mut at) = (0, 0);
        while at < self.ids.len() {
            if self.ranks[at] != lowest {
                self.ids[kept] = self.ids[at];
                self.ranks[kept] = self.ranks[at];
                kept += 1;
                at += 1;
                continue;
            }
            let id = pairs.get(self.ids[at], self.ids[at + 1]).id;
            let before = if kept > 0 { pairs.get(self.ids[kept - 1], id).rank } else { NO_RANK };
            at += 2;
            let behind =
                if at < self.ids.len() { pairs.get(id, self.ids[at]).rank } else { NO_RANK };
            if kept > 0 {
                self.ranks[kept - 1] = before;
            }
            self.ids[kept] = id;
            self.ranks[kept] = behind;
            kept += 1;
            if before.min(behind) < lowest {
                break; // a new pair has a lower rank and goes first
            }
            // The pair before the next symbol has changed if that symbol is merged in its turn: it is set then.
        }
        let rest = self.ids.len() - at;
        self.ids.copy_within(at.., kept);
        self.ranks.copy_within(at.., kept);
        self.ids.truncate(kept + rest);
        self.ranks.truncate(kept + rest);
        true
    }
}

/// Places are asked for so many merges before they are needed, the pairs that a merge makes a few merges before.
const AHEAD: usize = 12;
const PAIRS_AHEAD: usize = 5;
const END: u32 = u32::MAX;
/// Symbols that have become part of their left neighbour.
const DEAD: TokenId = TokenId::MAX;

/// A symbol, linked to its neighbours.
#[derive(Clone, Copy)]
struct Symbol {
    id: TokenId,
    previous: u32,
    next: u32,
    /// Rank of the pair that starts here.
    rank: u32,
}

/// Symbols of which few are merged at a time.
struct List {
    symbols: Vec<Symbol>,
    places: Places,
}

/// Places of the pairs of each rank; the queue holds ranks, not places.
#[derive(Default)]
struct Places {
    ranks: BinaryHeap<Reverse<u32>>,
    list_of: FxHashMap<u32, usize>,
    lists: Vec<Vec<u32>>,
    free: Vec<usize>,
}

impl Places {
    fn add(&mut self, rank: u32, place: u32) {
        let list = *self.list_of.entry(rank).or_insert_with(|| {
            self.ranks.push(Reverse(rank));
            self.free.pop().unwrap_or_else(|| {
                self.lists.push(Vec::new());
                self.lists.len() - 1
            })
        });
        self.lists[list].push(place);
    }

    /// The lowest rank and its places, in order.
    fn take_lowest(&mut self) -> Option<(u32, Vec<u32>)> {
        let Reverse(rank) = self.ranks.pop()?;
        let list = self.list_of.remove(&rank).expect("a queued rank has places");
        self.free.push(list);
        let mut places = std::mem::take(&mut self.lists[list]);
        if !places.is_sorted() {
            places.sort_unstable();
        }
        Some((rank, places))
    }
}

impl List {
    fn new(dense: Dense) -> Self {
        let len = dense.ids.len() as u32;
        let mut places = Places::default();
        let symbols = (0..len).zip(dense.ids).zip(dense.ranks).map(|((place, id), rank)| {
            if rank != NO_RANK {
                places.add(rank, place);
            }
            Symbol {
                id,
                previous: place.wrapping_sub(1),
                next: if place + 1 == len { END } else { place + 1 },
                rank,
            }
        });
        let symbols = symbols.collect();
        Self { symbols, places }
    }

    fn merge(mut self, pairs: &mut Pairs<'_>, ids: &mut Vec<TokenId>) {
        while let Some((rank, of_rank)) = self.places.take_lowest() {
            let made = self.token_of(&of_rank, rank, pairs);
            for (done, &place) in of_rank.iter().enumerate() {
                if let Some(&ahead) = of_rank.get(done + AHEAD) {
                    prefetch(&self.symbols, ahead as usize);
                }
                if let Some(&ahead) = of_rank.get(done + PAIRS_AHEAD) {
                    self.ask_for_pairs(ahead, made, pairs.merges);
                }
                if self.merge_at(place, rank, pairs) < rank {
                    // A new pair has a lower rank and goes first.
                    for &place in &of_rank[done + 1..] {
                        self.places.add(rank, place);
                    }
                    break;
                }
            }
        }
        ids.extend(self.symbols.iter().filter(|symbol| symbol.id != DEAD).map(|symbol| symbol.id));
    }

    /// The token that the pairs of a rank become, if one of them is still there.
    fn token_of(&self, places: &[u32], rank: u32, pairs: &mut Pairs<'_>) -> TokenId {
        let left = places.iter().map(|&place| self.symbols[place as usize]);
        left.into_iter()
            .find(|left| left.id != DEAD && left.rank == rank)
            .map_or(DEAD, |left| pairs.get(left.id, self.symbols[left.next as usize].id).id)
    }

    /// Brings the pairs near that come about when `made` stands for the pair at `place`; what has changed since does no
    /// harm.
    #[inline(always)]
    fn ask_for_pairs(&self, place: u32, made: TokenId, merges: &Merges) {
        let left = self.symbols[place as usize];
        let Some(right) = self.symbols.get(left.next as usize) else { return };
        if let Some(next) = self.symbols.get(right.next as usize) {
            merges.prefetch(merges.place(made, next.id));
        }
        if let Some(previous) = self.symbols.get(left.previous as usize) {
            merges.prefetch(merges.place(previous.id, made));
        }
    }

    /// Merges the pair at `place` if it still has this rank; gives the lowest rank that this makes.
    fn merge_at(&mut self, place: u32, rank: u32, pairs: &mut Pairs<'_>) -> u32 {
        let left = self.symbols[place as usize];
        if left.id == DEAD || left.rank != rank {
            return NO_RANK; // one of the two has been merged since
        }
        let right = self.symbols[left.next as usize];
        let id = pairs.get(left.id, right.id).id;
        self.symbols[left.next as usize].id = DEAD;
        let mut behind = NO_RANK;
        if right.next != END {
            let next = &mut self.symbols[right.next as usize];
            next.previous = place;
            behind = pairs.get(id, next.id).rank;
            if behind != NO_RANK {
                self.places.add(behind, place);
            }
        }
        self.symbols[place as usize] =
            Symbol { id, previous: left.previous, next: right.next, rank: behind };
        let mut before = NO_RANK;
        if left.previous != END {
            let previous = &mut self.symbols[left.previous as usize];
            before = pairs.get(previous.id, id).rank;
            previous.rank = before;
            if before != NO_RANK {
                self.places.add(before, left.previous);
            }
        }
        before.min(behind)
    }
}

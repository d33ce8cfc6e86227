//! Best fit for documents that never end: a bounded buffer, full rows.

use crate::too_long::check_lengths;
use crate::{Error, Piece, Pieces, TooLong, check_capacity, count32};

/// No slot: ends a list.
const NONE: u32 = u32::MAX;
/// Most free tokens for which two buffered pieces are sought that fill a row exactly: 128 words of bits,
/// about 100 ns. More is left to the next pieces of the row.
const MAX_PAIR_TOKENS: u32 = 1 << 14;

/// What a stream packed so far.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct StreamReport {
    /// Rows given out.
    pub num_rows: u64,
    /// Tokens of padding in them.
    pub num_padding_tokens: u64,
    /// Pieces whose end was cropped to fill a row.
    pub num_cropped: u64,
    /// Tokens that are in no row: cropped, or beyond a row in a document that was truncated or dropped.
    pub num_lost_tokens: u64,
    /// Documents longer than a row.
    pub num_too_long: u64,
}

/// A buffered piece in the list of its length and in the list of all, from the oldest to the newest.
#[derive(Debug, Clone, Copy)]
struct Slot {
    piece: Piece,
    next: u32,
    older: u32,
    newer: u32,
}

/// Packs documents as they come, with at most `window` pieces waiting.
///
/// A row begins with the piece that waits longest, so that no piece waits for more than `window` rows.
/// It goes on with the oldest piece, if that fits, else with the longest that fits; before each step the
/// buffer is searched for one piece, then for two, that fill the row exactly, and the two nearest in
/// length are taken, since long and short pieces are hard to replace. Where nothing fits the rest of the
/// row is padding, or with `crop` the head of the shortest piece, whose tail is lost.
///
/// Documents are numbered in the order given, modulo 2^32; only those in the buffer can come up again.
/// Everything is deterministic, and the state is [`waiting`](Self::waiting): a new stream that
/// [`resume`](Self::resume)s from it goes on as this one would.
///
/// ```
/// use glmcore_packing::{BestFitStream, TooLong};
///
/// let mut stream = BestFitStream::new(8, 4, TooLong::Split, false)?;
/// let rows = stream.push(&[5, 4, 4, 3])?; // the buffer is full: a row leaves
/// assert_eq!(rows.len(), [5, 3]);
/// assert_eq!(stream.finish().len(), [4, 4]);
/// # Ok::<(), glmcore_packing::Error>(())
/// ```
#[derive(Debug, Clone)]
pub struct BestFitStream {
    capacity: u32,
    window: usize,
    too_long: TooLong,
    crop: bool,
    slots: Vec<Slot>,
    unused: Vec<u32>,
    num_waiting: usize,
    oldest: u32,
    newest: u32,
    lengths: Lengths,
    next_doc: u32,
    report: StreamReport,
}

impl BestFitStream {
    /// An empty stream.
    ///
    /// # Errors
    ///
    /// [`Error::Capacity`], [`Error::Window`].
    pub fn new(capacity: u32, window: u32, too_long: TooLong, crop: bool) -> Result<Self, Error> {
        check_capacity(capacity)?;
        if window == 0 || window == u32::MAX {
            return Err(Error::Window { window });
        }
        Ok(Self {
            capacity,
            window: window as usize,
            too_long,
            crop,
            slots: Vec::new(),
            unused: Vec::new(),
            num_waiting: 0,
            oldest: NONE,
            newest: NONE,
            lengths: Lengths::new(capacity),
            next_doc: 0,
            report: StreamReport::default(),
        })
    }

    /// Puts an empty stream where another was: the pieces that waited, and how many documents it had
    /// been given.
    ///
    /// # Errors
    ///
    /// [`Error::DocumentTooLong`] for a piece longer than a row, [`Error::Window`] for more pieces than
    /// wait.
    pub fn resume(&mut self, waiting: &[Piece], next_doc: u32) -> Result<(), Error> {
        let lengths: Vec<u32> = waiting.iter().map(|piece| piece.len).collect();
        check_lengths(&lengths, self.capacity)?;
        if self.num_waiting + waiting.len() >= self.window {
            return Err(Error::Window { window: u32::try_from(self.window).unwrap_or(u32::MAX) });
        }
        waiting.iter().filter(|piece| piece.len > 0).for_each(|&piece| self.insert(piece));
        self.next_doc = next_doc;
        Ok(())
    }

    /// Pieces in the buffer, from the oldest to the newest.
    pub fn waiting(&self) -> Vec<Piece> {
        let mut pieces = Vec::with_capacity(self.num_waiting);
        let mut slot = self.oldest;
        while slot != NONE {
            let Slot { piece, newer, .. } = self.slots[slot as usize];
            pieces.push(piece);
            slot = newer;
        }
        pieces
    }

    /// Number of the next document, modulo 2^32.
    pub fn next_doc(&self) -> u32 {
        self.next_doc
    }

    /// What was packed so far.
    pub fn report(&self) -> StreamReport {
        self.report
    }

    /// Adds documents; gives the rows that leave the buffer.
    ///
    /// # Errors
    ///
    /// [`Error::DocumentTooLong`] where that is the caller's choice, [`Error::TooMany`]; the stream is
    /// then as before.
    pub fn push(&mut self, lengths: &[u32]) -> Result<Pieces, Error> {
        if self.too_long == TooLong::Error {
            check_lengths(lengths, self.capacity)?;
        }
        let capacity = self.capacity;
        let num_pieces = lengths.iter().map(|&len| u64::from(len.div_ceil(capacity))).sum::<u64>();
        let most = count32("pieces", num_pieces + self.num_waiting as u64)? as usize;
        let mut rows = Pieces::with_capacity(most, most / 2);
        for &len in lengths {
            let (pieces, lost) = self.too_long.cut(self.next_doc, len, capacity);
            self.next_doc = self.next_doc.wrapping_add(1);
            self.report.num_lost_tokens += u64::from(lost);
            self.report.num_too_long += u64::from(len > capacity);
            for piece in pieces {
                self.insert(piece);
                if self.num_waiting >= self.window {
                    self.build_row(&mut rows, self.crop);
                }
            }
        }
        Ok(rows)
    }

    /// The rows of all pieces that wait; nothing is cropped any more.
    pub fn finish(&mut self) -> Pieces {
        let mut rows = Pieces::with_capacity(self.num_waiting, self.num_waiting / 2);
        while self.num_waiting > 0 {
            self.build_row(&mut rows, false);
        }
        rows
    }

    fn build_row(&mut self, rows: &mut Pieces, crop: bool) {
        let mut free = self.capacity;
        let mut take = |stream: &mut Self, len: u32| {
            rows.push(stream.remove(len));
            free -= len;
            free
        };
        let mut left = take(self, self.slots[self.oldest as usize].piece.len);
        while left > 0 && self.num_waiting > 0 {
            let oldest = self.slots[self.oldest as usize].piece.len;
            left = if self.lengths.has(left) {
                take(self, left)
            } else if let Some(len) = self.lengths.pair(left) {
                take(self, left - len);
                take(self, len)
            } else if oldest <= left {
                take(self, oldest)
            } else if let Some(len) = self.lengths.longest_at_most(left) {
                take(self, len)
            } else {
                break;
            };
        }
        match self.lengths.shortest().filter(|_| crop && left > 0) {
            Some(len) => {
                rows.push(Piece { len: left, ..self.remove(len) });
                self.report.num_cropped += 1;
                self.report.num_lost_tokens += u64::from(len - left);
            }
            None => self.report.num_padding_tokens += u64::from(left),
        }
        self.report.num_rows += 1;
        rows.end_row();
    }

    fn insert(&mut self, piece: Piece) {
        let new = Slot { piece, next: NONE, older: self.newest, newer: NONE };
        let slot = if let Some(slot) = self.unused.pop() {
            self.slots[slot as usize] = new;
            slot
        } else {
            self.slots.push(new);
            u32::try_from(self.slots.len() - 1).expect("the window is a 32-bit number")
        };
        match self.newest {
            NONE => self.oldest = slot,
            newest => self.slots[newest as usize].newer = slot,
        }
        self.newest = slot;
        self.num_waiting += 1;
        if let Some(last) = self.lengths.append(piece.len, slot) {
            self.slots[last as usize].next = slot;
        }
    }

    /// Takes the oldest piece of a length out.
    fn remove(&mut self, len: u32) -> Piece {
        let slot = self.lengths.first[len as usize];
        let Slot { piece, next, older, newer } = self.slots[slot as usize];
        self.lengths.take_first(len, next);
        match older {
            NONE => self.oldest = newer,
            older => self.slots[older as usize].newer = newer,
        }
        match newer {
            NONE => self.newest = older,
            newer => self.slots[newer as usize].older = older,
        }
        self.num_waiting -= 1;
        self.unused.push(slot);
        piece
    }
}

/// Which lengths are in the buffer, as bits in both directions, and the slots of each.
#[derive(Debug, Clone)]
struct Lengths {
    capacity: u32,
    first: Vec<u32>,
    last: Vec<u32>,
    /// Bit `len` is set.
    present: Vec<u64>,
    /// Bit `capacity - len` is set, so that lengths `a` and `b` with `a + b = free` stand at a fixed
    /// distance from each other.
    mirrored: Vec<u64>,
}

impl Lengths {
    fn new(capacity: u32) -> Self {
        let num_lengths = capacity as usize + 1;
        let words = num_lengths / 64 + 2; // one more, so that two neighbours can be read at once
        Self {
            capacity,
            first: vec![NONE; num_lengths],
            last: vec![NONE; num_lengths],
            present: vec![0; words],
            mirrored: vec![0; words],
        }
    }

    /// Adds a slot behind those of its length; gives the one before it.
    fn append(&mut self, len: u32, slot: u32) -> Option<u32> {
        let last = std::mem::replace(&mut self.last[len as usize], slot);
        if self.first[len as usize] != NONE {
            return Some(last);
        }
        self.first[len as usize] = slot;
        self.flip(len);
        None
    }

    fn take_first(&mut self, len: u32, next: u32) {
        self.first[len as usize] = next;
        if next == NONE {
            self.flip(len);
        }
    }

    fn flip(&mut self, len: u32) {
        self.present[len as usize / 64] ^= 1 << (len % 64);
        let mirror = self.capacity - len;
        self.mirrored[mirror as usize / 64] ^= 1 << (mirror % 64);
    }

    fn has(&self, len: u32) -> bool {
        self.present[len as usize / 64] >> (len % 64) & 1 == 1
    }

    /// The shorter of two lengths with `free` tokens together that are in the buffer as two pieces; of
    /// several pairs the one nearest in length.
    fn pair(&self, free: u32) -> Option<u32> {
        if free > MAX_PAIR_TOKENS {
            return None;
        }
        let half = free / 2;
        let shift = self.capacity - free; // bit `a` of `present` meets bit `a + shift` of `mirrored`
        for word in (0..=half as usize / 64).rev() {
            let at = word * 64 + shift as usize;
            let (low, offset) = (at / 64, at % 64);
            // Two shifts, since one by 64 places is no shift at all.
            let partners =
                self.mirrored[low] >> offset | self.mirrored[low + 1] << 1 << (63 - offset);
            let mut both = self.present[word] & partners;
            if word == half as usize / 64 {
                both &= u64::MAX >> (63 - half % 64);
                let twice = self.first[half as usize] != self.last[half as usize];
                if free.is_multiple_of(2) && !twice {
                    both &= !(1 << (half % 64));
                }
            }
            if both != 0 {
                return Some(word_start(word) + 63 - both.leading_zeros());
            }
        }
        None
    }

    fn longest_at_most(&self, free: u32) -> Option<u32> {
        let top = free as usize / 64;
        let mut bits = self.present[top] & u64::MAX >> (63 - free % 64);
        for word in (0..=top).rev() {
            if bits != 0 {
                return Some(word_start(word) + 63 - bits.leading_zeros());
            }
            bits = self.present[word.checked_sub(1)?];
        }
        None
    }

    fn shortest(&self) -> Option<u32> {
        let word = self.present.iter().position(|&bits| bits != 0)?;
        Some(word_start(word) + self.present[word].trailing_zeros())
    }
}

/// The length of a word's lowest bit.
fn word_start(word: usize) -> u32 {
    u32::try_from(word * 64).expect("lengths are 32-bit numbers")
}

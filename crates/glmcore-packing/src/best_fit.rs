//! Best-fit decreasing: whole documents, as few rows as the method gives, in linear time.

use std::sync::OnceLock;

use crate::too_long::cut_all;
use crate::{Error, Piece, Pieces, TooLong, check_capacity, count32};

/// No row: ends a list.
const NONE: u32 = u32::MAX;

/// A row for every document.
#[derive(Debug, Clone)]
pub struct Packing {
    order: Vec<u32>,
    row_offsets: Vec<u32>,
    row_of: OnceLock<Vec<u32>>, // made when asked for: its writes are scattered, and filling needs it not
}

/// Packings are equal if their rows are.
impl PartialEq for Packing {
    fn eq(&self, other: &Self) -> bool {
        (&self.order, &self.row_offsets) == (&other.order, &other.row_offsets)
    }
}

impl Eq for Packing {}

impl Packing {
    pub(crate) fn from_parts(order: Vec<u32>, row_offsets: Vec<u32>) -> Self {
        Self { order, row_offsets, row_of: OnceLock::new() }
    }

    /// Row of each document. The first call goes through all documents.
    pub fn row_of(&self) -> &[u32] {
        self.row_of.get_or_init(|| {
            let mut row_of = vec![0; self.order.len()];
            for (row, bounds) in (0..).zip(self.row_offsets.windows(2)) {
                for &doc in &self.order[bounds[0] as usize..bounds[1] as usize] {
                    row_of[doc as usize] = row;
                }
            }
            row_of
        })
    }

    /// Documents by row, then by position in the row (longest first).
    pub fn order(&self) -> &[u32] {
        &self.order
    }

    /// Where each row starts in [`order`](Self::order), and at the end the number of documents.
    pub fn row_offsets(&self) -> &[u32] {
        &self.row_offsets
    }

    /// Number of rows in use.
    pub fn num_rows(&self) -> usize {
        self.row_offsets.len() - 1
    }

    /// Documents of one row.
    ///
    /// # Panics
    ///
    /// If `row` is not below [`num_rows`](Self::num_rows).
    pub fn row(&self, row: usize) -> &[u32] {
        &self.order[self.row_offsets[row] as usize..self.row_offsets[row + 1] as usize]
    }

    /// The same rows as pieces, each piece a whole document; empty documents leave no piece.
    ///
    /// # Errors
    ///
    /// [`Error::DocumentCount`] unless `lengths` has one length per packed document.
    pub fn pieces(&self, lengths: &[u32]) -> Result<Pieces, Error> {
        if lengths.len() != self.order.len() {
            return Err(Error::DocumentCount { packed: self.order.len(), given: lengths.len() });
        }
        let mut pieces = Pieces::with_capacity(self.order.len(), self.num_rows());
        for row in 0..self.num_rows() {
            for &doc in self.row(row) {
                pieces.push(Piece { doc, start: 0, len: lengths[doc as usize] });
            }
            pieces.end_row();
        }
        Ok(pieces)
    }
}

/// Packs documents by best-fit decreasing: longest first, each into the fullest row it fits.
///
/// Uses at most `11/9 * OPT + 4` rows (Johnson et al., SIAM J. Comput. 3(4), 1974). Ties go to the
/// earlier document and the lower row number; within a row the longest document comes first.
///
/// Lengths come down one by one, so a row that is left with fewer free tokens than the current length
/// waits in the list of its free space until the lengths reach it, and no row enters a list that is
/// already in use. Each list is therefore sorted once, and the lists in use form a stack with the
/// fullest rows on top: `O(n + capacity)` steps plus the sorting of short lists.
///
/// # Errors
///
/// [`Error::DocumentTooLong`] for the first document longer than `capacity`, [`Error::Capacity`],
/// [`Error::TooMany`].
pub fn pack_best_fit(lengths: &[u32], capacity: u32) -> Result<Packing, Error> {
    check_capacity(capacity)?;
    let num_documents = count32("documents", lengths.len() as u64)?;
    let longest = lengths.iter().copied().max().unwrap_or(0);
    if longest > capacity {
        let index = lengths.iter().take_while(|&&len| len <= capacity).count();
        return Err(Error::DocumentTooLong { index, len: lengths[index], capacity });
    }

    let (docs, group_ends) = sort_longest_first(lengths, longest);
    let mut rows = Vec::with_capacity(docs.len()); // row of docs[i]
    let mut open = OpenRows::new(capacity);
    let mut placed = 0;
    for len in (1..=longest).rev() {
        open.allow(len);
        let end = group_ends[len as usize];
        while placed < end {
            let (free, row) = open.take_fullest().unwrap_or_else(|| open.new_row());
            // Once it holds one document of this length, the row is the fullest that takes another.
            let count = (free / len).min(end - placed);
            placed += count;
            rows.resize(placed as usize, row);
            open.num_documents[row as usize] += count;
            open.put_back(free - count * len, row, len);
        }
    }
    if placed < num_documents {
        let row = open.fullest().unwrap_or_else(|| open.new_row().1); // of the empty documents
        rows.resize(docs.len(), row);
        open.num_documents[row as usize] += num_documents - placed;
    }
    Ok(group_by_row(&docs, &rows, &open.num_documents))
}

/// Packs documents by best-fit decreasing; `too_long` says what happens to those longer than a row.
///
/// [`Pieces::loss`] counts them and the tokens that they lose.
///
/// ```
/// use glmcore_packing::{TooLong, pack_documents};
///
/// let pieces = pack_documents(&[20, 4], 8, TooLong::Split)?;
/// assert_eq!(pieces.num_rows(), 3);
/// assert_eq!(pieces.len(), [8, 8, 4, 4]);
/// assert_eq!(pack_documents(&[20, 4], 8, TooLong::Truncate)?.loss().num_lost_tokens, 12);
/// # Ok::<(), glmcore_packing::Error>(())
/// ```
///
/// # Errors
///
/// [`Error::DocumentTooLong`] with [`TooLong::Error`], [`Error::Capacity`], [`Error::TooMany`].
pub fn pack_documents(lengths: &[u32], capacity: u32, too_long: TooLong) -> Result<Pieces, Error> {
    check_capacity(capacity)?;
    let longest = lengths.iter().copied().max().unwrap_or(0);
    if (1..=capacity).contains(&longest) {
        return pack_best_fit(lengths, capacity)?.pieces(lengths); // nothing to cut: a third of the time
    }
    let (cut, loss) = cut_all(lengths, capacity, too_long)?;
    let cut_lengths: Vec<u32> = cut.iter().map(|piece| piece.len).collect();
    let packing = pack_best_fit(&cut_lengths, capacity)?;
    let mut pieces = Pieces::with_capacity(cut.len(), packing.num_rows());
    for row in 0..packing.num_rows() {
        for &index in packing.row(row) {
            pieces.push(cut[index as usize]);
        }
        pieces.end_row();
    }
    Ok(pieces.with_loss(loss))
}

/// Counting sort: documents from the longest to the shortest, ties in order, and for each length where
/// its documents end.
fn sort_longest_first(lengths: &[u32], longest: u32) -> (Vec<u32>, Vec<u32>) {
    let mut next = vec![0; longest as usize + 1];
    for &len in lengths {
        next[len as usize] += 1;
    }
    let mut start = 0;
    for count in next.iter_mut().rev() {
        start += std::mem::replace(count, start);
    }
    let mut docs = vec![0; lengths.len()];
    for (doc, &len) in (0..).zip(lengths) {
        let place = &mut next[len as usize];
        docs[*place as usize] = doc;
        *place += 1;
    }
    (docs, next)
}

/// Counting sort of the placed documents by row; keeps the order of placement within a row.
fn group_by_row(docs: &[u32], rows: &[u32], num_documents: &[u32]) -> Packing {
    let mut row_offsets = Vec::with_capacity(num_documents.len() + 1);
    let mut end = 0;
    row_offsets.push(0);
    row_offsets.extend(num_documents.iter().map(|count| {
        end += count;
        end
    }));
    let mut next = row_offsets.clone();
    let mut order = vec![0; docs.len()];
    for (&doc, &row) in docs.iter().zip(rows) {
        let place = &mut next[row as usize];
        order[*place as usize] = doc;
        *place += 1;
    }
    Packing::from_parts(order, row_offsets)
}

/// Rows with the tokens they have free, while lengths come down.
struct OpenRows {
    capacity: u32,
    /// First row of the list of each free space.
    first: Vec<u32>,
    /// The row after each row in its list.
    next: Vec<u32>,
    /// Documents in each row.
    num_documents: Vec<u32>,
    /// Free spaces, the smallest on top, whose rows the current length fits; their lists are sorted.
    usable: Vec<u32>,
    scratch: Vec<u32>,
}

impl OpenRows {
    fn new(capacity: u32) -> Self {
        Self {
            capacity,
            first: vec![NONE; capacity as usize + 1],
            next: Vec::new(),
            num_documents: Vec::new(),
            usable: Vec::new(),
            scratch: Vec::new(),
        }
    }

    /// Makes the rows with exactly `len` tokens free usable: the fullest that take this length.
    fn allow(&mut self, len: u32) {
        if self.first[len as usize] != NONE {
            self.sort(len);
            self.usable.push(len);
        }
    }

    /// Puts the rows of one list in rising order.
    fn sort(&mut self, free: u32) {
        self.scratch.clear();
        let mut row = self.first[free as usize];
        while row != NONE {
            self.scratch.push(row);
            row = self.next[row as usize];
        }
        self.scratch.sort_unstable_by(|a, b| b.cmp(a));
        let mut after = NONE;
        for &row in &self.scratch {
            self.next[row as usize] = after;
            after = row;
        }
        self.first[free as usize] = after;
    }

    /// Takes out the lowest of the fullest usable rows, with its free tokens.
    fn take_fullest(&mut self) -> Option<(u32, u32)> {
        let free = *self.usable.last()?;
        let row = self.first[free as usize];
        self.first[free as usize] = self.next[row as usize];
        if self.first[free as usize] == NONE {
            self.usable.pop();
        }
        Some((free, row))
    }

    /// The lowest of the fullest rows, once the lengths are down to zero.
    fn fullest(&mut self) -> Option<u32> {
        self.allow(0);
        self.take_fullest().map(|(_, row)| row)
    }

    /// An empty row: its free tokens and its number.
    fn new_row(&mut self) -> (u32, u32) {
        self.next.push(NONE);
        self.num_documents.push(0);
        (
            self.capacity,
            u32::try_from(self.next.len() - 1)
                .expect("a row holds a document, and those fit 32 bits"),
        )
    }

    /// Puts a row back with fewer tokens free. If `len` still fits, no usable row is as full: this one
    /// was the fullest before it took documents.
    fn put_back(&mut self, free: u32, row: u32, len: u32) {
        if free >= len {
            debug_assert_eq!(self.first[free as usize], NONE);
            self.usable.push(free);
        }
        self.next[row as usize] = self.first[free as usize];
        self.first[free as usize] = row;
    }
}

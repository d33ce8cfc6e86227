//! Samples that share prefixes, as trees: every prefix is there once.

use crate::{Error, Packing, Ragged, check_capacity, count32};

/// Samples laid out as trees of tokens, in depth-first order.
///
/// A token's children follow it, each with all that is below it, before its next sibling: the tokens that
/// may see token `k` are `k..subtree_end[k]`.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct PrefixForest {
    /// Token ids.
    pub input_ids: Vec<i32>,
    /// Place of each token in its samples, from 0.
    pub position_ids: Vec<i32>,
    /// Place in the forest of the token before each; -1 for a first token.
    pub parent: Vec<i32>,
    /// End of each token's subtree, the token itself included.
    pub subtree_end: Vec<i32>,
    /// Place in the forest of every token of every sample, sample after sample.
    pub place: Vec<i32>,
}

impl PrefixForest {
    /// Lays out samples; two share a token where they are equal up to and including it.
    ///
    /// Trees and branches are in lexicographic order of their ids, whatever the order of the samples.
    /// Takes a sort of the samples and one pass over their tokens.
    ///
    /// ```
    /// use glmcore_packing::{PrefixForest, Ragged};
    ///
    /// let samples = Ragged::new(&[5, 6, 7, 5, 6, 8, 9], &[0, 3, 7], None)?;
    /// let forest = PrefixForest::new(&samples)?;
    /// assert_eq!(forest.input_ids, [5, 6, 7, 8, 9]);
    /// assert_eq!(forest.parent, [-1, 0, 1, 1, 3]);
    /// assert_eq!(forest.place, [0, 1, 2, 0, 1, 3, 4]);
    /// # Ok::<(), glmcore_packing::Error>(())
    /// ```
    ///
    /// # Errors
    ///
    /// [`Error::TooMany`] for more tokens than int32 numbers.
    pub fn new(samples: &Ragged<'_>) -> Result<Self, Error> {
        let num_tokens = samples.num_tokens();
        if i32::try_from(num_tokens).is_err() {
            return Err(Error::TooMany { what: "tokens", count: num_tokens as u64 });
        }
        let mut forest = Self { place: vec![0; num_tokens], ..Self::default() };
        let mut path: Vec<i32> = Vec::new(); // places of the sample before, from its first token
        let mut before: &[i32] = &[];
        for sample in lexicographic(samples)? {
            let ids = samples.document(sample as usize);
            let shared = common_prefix(before, ids);
            forest.close(&mut path, shared);
            for (&id, position) in ids.iter().zip(0_i32..).skip(shared) {
                path.push(int32(forest.input_ids.len()));
                forest.input_ids.push(id);
                forest.position_ids.push(position);
                forest.parent.push(if position == 0 { -1 } else { path[path.len() - 2] });
                forest.subtree_end.push(0); // known once the path leaves it
            }
            forest.place[samples.tokens_of(sample as usize)].copy_from_slice(&path);
            before = ids;
        }
        forest.close(&mut path, 0);
        Ok(forest)
    }

    /// Ends the subtrees of a path's tokens from a depth on.
    fn close(&mut self, path: &mut Vec<i32>, depth: usize) {
        let end = int32(self.input_ids.len());
        for token in path.drain(depth..) {
            self.subtree_end[usize::try_from(token).expect("places are not negative")] = end;
        }
    }
}

/// Samples grouped into batches whose forests have at most `capacity` tokens: in lexicographic order, so
/// that samples with long common prefixes come together, a new batch where the next sample's own tokens
/// do not fit any more.
///
/// # Errors
///
/// [`Error::DocumentTooLong`] for a sample that fits no batch, [`Error::Capacity`], [`Error::TooMany`].
pub fn group_by_prefix(samples: &Ragged<'_>, capacity: u32) -> Result<Packing, Error> {
    check_capacity(capacity)?;
    let order = lexicographic(samples)?;
    let mut row_offsets = vec![0];
    let mut used = 0;
    let mut before: &[i32] = &[];
    for (place, &sample) in (0..).zip(&order) {
        let ids = samples.document(sample as usize);
        let len = count32("tokens of one sample", ids.len() as u64)?;
        if len > capacity {
            return Err(Error::DocumentTooLong { index: sample as usize, len, capacity });
        }
        let own = ids.len() - common_prefix(before, ids);
        if used + own > capacity as usize {
            row_offsets.push(place);
            used = ids.len();
        } else {
            used += own;
        }
        before = ids;
    }
    if !order.is_empty() {
        row_offsets.push(count32("samples", order.len() as u64)?);
    }
    Ok(Packing::from_parts(order, row_offsets))
}

/// Samples in the order of their ids; equal ones stay in order.
fn lexicographic(samples: &Ragged<'_>) -> Result<Vec<u32>, Error> {
    let num_samples = count32("samples", samples.num_documents() as u64)?;
    let mut order: Vec<u32> = (0..num_samples).collect();
    order.sort_by(|&a, &b| samples.document(a as usize).cmp(samples.document(b as usize)));
    Ok(order)
}

fn common_prefix(one: &[i32], other: &[i32]) -> usize {
    one.iter().zip(other).take_while(|(a, b)| a == b).count()
}

fn int32(place: usize) -> i32 {
    i32::try_from(place).expect("tokens were counted to fit int32")
}

//! Which experts the tokens of a step have chosen, for whoever wants to route them alike again.

use crate::experts::{FeedForward, Scratch};

/// Where the choices of a step go, `[T, L, K]` for the `L` layers that have experts to choose from.
#[derive(Debug)]
pub(crate) struct Record<'a> {
    pub(crate) chosen: &'a mut [u16],
    pub(crate) num_layers: usize,
    pub(crate) top_k: usize,
    /// Layers that have been recorded.
    pub(crate) done: usize,
}

impl Record<'_> {
    /// Takes down what the tokens have just chosen in a layer; nothing if it has no choice.
    pub(crate) fn add(&mut self, layer: &FeedForward<'_>, scratch: &Scratch) {
        if !matches!(layer, FeedForward::Sparse(_)) {
            return;
        }
        let of_token = self.num_layers * self.top_k;
        let rows = self.chosen.chunks_exact_mut(of_token);
        for (row, chosen) in rows.zip(scratch.chosen.chunks_exact(self.top_k)) {
            let place = &mut row[self.done * self.top_k..][..self.top_k];
            for (place, &(expert, _)) in place.iter_mut().zip(chosen) {
                *place =
                    u16::try_from(expert).expect("a model that records has at most 2^16 experts");
            }
        }
        self.done += 1;
    }
}

//! Whole rollouts into the buffer in one call.

use glmcore_trajectory::{Buffer, Commit, Error, Tokens};
use numpy::{Element, PyReadonlyArray1};
use pyo3::prelude::*;
use pyo3::pybacked::PyBackedBytes;

use crate::error::TrajectoryError;

/// Tokens, policy version, and whether a turn ends with them.
type Span = (usize, u64, bool);

/// A rollout, its spans, its reward if it has not failed, why it ended, and what comes out with it.
#[derive(FromPyObject)]
pub(crate) struct WholeRollout(u64, Vec<Span>, Option<f64>, String, PyBackedBytes);

impl WholeRollout {
    /// Tokens of all spans.
    pub(crate) fn num_tokens(&self) -> usize {
        self.1.iter().map(|span| span.0).sum()
    }
}

/// Ids, loss mask and log-probabilities of the rollouts, one after the other.
pub(crate) type Columns<'a> = (&'a [i32], &'a [u8], &'a [f32]);

pub(crate) fn slice<'a, T: Element>(array: &'a PyReadonlyArray1<'_, T>) -> PyResult<&'a [T]> {
    array.as_slice().map_err(|_| {
        TrajectoryError::new_err("arrays must be C-contiguous: pass np.ascontiguousarray(...)")
    })
}

/// Appends each rollout's tokens span by span, and ends it. The columns have as many values as the spans say.
pub(crate) fn write(
    buffer: &Buffer,
    (ids, loss_mask, logprobs): Columns<'_>,
    rollouts: &[WholeRollout],
) -> Result<(), Error> {
    let mut start = 0;
    for WholeRollout(rollout, spans, reward, reason, extra) in rollouts {
        for &(len, policy_version, ends_turn) in spans {
            let span = start..start + len;
            start = span.end;
            let tokens = Tokens {
                ids: &ids[span.clone()],
                loss_mask: &loss_mask[span.clone()],
                logprobs: &logprobs[span],
                policy_version,
                ends_turn,
            };
            buffer.append_tokens(*rollout, &tokens)?;
        }
        match reward {
            Some(reward) => buffer.finish(*rollout, *reward, reason, extra, Commit::Later)?,
            None => buffer.fail(*rollout, reason, Commit::Later)?,
        }
    }
    Ok(())
}

//! The record of what was consumed in which order, to repeat a run whose timing cannot be repeated.

use crate::codec::{Reader, Writer};
use crate::event::{decode_outcome, encode_outcome};
use crate::trajectory::{Group, Outcome};
use crate::{GroupId, RolloutId};

/// A consumed lease. Leases stand in the order of acknowledgement; those acknowledged together, as they were taken.
#[derive(Debug, Clone, PartialEq)]
pub struct Taken {
    /// Version of the trainer that took it.
    pub policy_version: u64,
    /// The checkpoint that the acknowledgement named; empty if none.
    pub checkpoint: String,
    /// Its groups.
    pub groups: Vec<TakenGroup>,
}

/// A consumed group.
#[derive(Debug, Clone, PartialEq)]
pub struct TakenGroup {
    /// Its number.
    pub id: GroupId,
    /// Its task.
    pub task: String,
    /// Version at its admission.
    pub policy_version: u64,
    /// Its rollouts.
    pub rollouts: Vec<TakenRollout>,
}

/// A consumed rollout, without its tokens.
#[derive(Debug, Clone, PartialEq)]
pub struct TakenRollout {
    /// Its number.
    pub id: RolloutId,
    /// How it ended.
    pub outcome: Outcome,
    /// Runs of tokens of one version: length and version.
    pub spans: Vec<(u64, u64)>,
}

pub(crate) fn encode<'a>(
    out: &mut Writer<'_>,
    version: u64,
    checkpoint: &str,
    groups: impl ExactSizeIterator<Item = &'a Group>,
) {
    out.u64(version).text(checkpoint).u64(groups.len() as u64);
    for group in groups {
        out.u64(group.id).text(&group.task).u64(group.policy_version);
        out.u64(group.rollouts.len() as u64);
        for rollout in &group.rollouts {
            encode_outcome(out.u64(rollout.id), &rollout.outcome);
            out.pairs(rollout.spans().into_iter());
        }
    }
}

pub(crate) fn decode(bytes: &[u8]) -> Option<Taken> {
    let mut from = Reader { rest: bytes };
    let (policy_version, checkpoint) = (from.u64()?, from.text()?.to_owned());
    let groups = (0..from.len()?).map(|_| decode_group(&mut from)).collect::<Option<_>>()?;
    Some(Taken { policy_version, checkpoint, groups })
}

fn decode_group(from: &mut Reader<'_>) -> Option<TakenGroup> {
    let (id, task, policy_version) = (from.u64()?, from.text()?.to_owned(), from.u64()?);
    let rollout = |from: &mut Reader<'_>| {
        let (id, outcome) = (from.u64()?, decode_outcome(from)?);
        Some(TakenRollout { id, outcome, spans: from.pairs()? })
    };
    let rollouts = (0..from.len()?).map(|_| rollout(from)).collect::<Option<_>>()?;
    Some(TakenGroup { id, task, policy_version, rollouts })
}

//! What happens to the buffer, as it stands in the log.

use std::borrow::Cow;
use std::collections::BTreeMap;
use std::time::Duration;

use crate::codec::{Reader, Writer};
use crate::tasks::TaskStats;
use crate::trajectory::{Group, Outcome, Rollout};
use crate::{GroupId, LeaseId, RolloutId};

/// A change that survives a restart.
#[derive(Debug, Clone, PartialEq)]
pub(crate) enum Event<'a> {
    /// First event of a segment: what older segments say that is not about a group or a task.
    Begin(Cow<'a, Totals>),
    /// A group with all that is known of it: an admission, or a copy that lets older segments go.
    Group(Cow<'a, Group>),
    Append(Append<'a>),
    /// A running rollout begins anew.
    Restart {
        rollout: RolloutId,
    },
    End {
        rollout: RolloutId,
        outcome: Cow<'a, Outcome>,
        extra: Cow<'a, [u8]>,
    },
    Discard {
        group: GroupId,
    },
    /// A checkpoint that is about to be completed contains these leases.
    Prepare {
        checkpoint: Cow<'a, str>,
        leases: Cow<'a, [Lent]>,
    },
    Release {
        leases: Cow<'a, [LeaseId]>,
    },
    Ack(Cow<'a, Ack>),
    /// The trainer goes on from this version.
    Clock {
        version: u64,
    },
    /// All counts of a task.
    Task {
        task: Cow<'a, str>,
        stats: TaskStats,
    },
}

/// Sums over the buffer's life.
#[derive(Debug, Clone, Default, PartialEq)]
pub(crate) struct Totals {
    pub(crate) next_group: GroupId,
    pub(crate) next_rollout: RolloutId,
    pub(crate) next_lease: LeaseId,
    pub(crate) consumed_groups: u64,
    pub(crate) failed_rollouts: u64,
    /// Last version whose groups were acknowledged, and how many were taken then.
    pub(crate) clock: Option<(u64, u64)>,
    /// Length of the record of the order up to the last acknowledgement.
    pub(crate) order_bytes: u64,
    /// Trained tokens by staleness.
    pub(crate) staleness: BTreeMap<u64, u64>,
    /// Leases that a checkpoint may contain.
    pub(crate) prepared: Vec<(String, Vec<Lent>)>,
}

#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Append<'a> {
    pub(crate) rollout: RolloutId,
    pub(crate) version: i32,
    pub(crate) ends_turn: bool,
    pub(crate) ids: Cow<'a, [i32]>,
    pub(crate) loss_mask: Cow<'a, [u8]>,
    pub(crate) logprobs: Cow<'a, [f32]>,
}

/// A lease, as the log knows it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Lent {
    pub(crate) id: LeaseId,
    pub(crate) version: u64,
    pub(crate) groups: Vec<GroupId>,
}

/// Leases that a complete checkpoint contains.
#[derive(Debug, Clone, Default, PartialEq)]
pub(crate) struct Ack {
    pub(crate) leases: Vec<LeaseId>,
    pub(crate) groups: Vec<GroupId>,
    pub(crate) clock: Option<(u64, u64)>,
    pub(crate) order_bytes: u64,
    /// Tokens by staleness that this adds.
    pub(crate) staleness: BTreeMap<u64, u64>,
}

impl Event<'_> {
    pub(crate) fn encode(&self, out: &mut Writer<'_>) {
        match self {
            Self::Begin(totals) => encode_totals(out.u8(0), totals),
            Self::Group(group) => encode_group(out.u8(1), group),
            Self::Append(append) => {
                out.u8(2)
                    .u64(append.rollout)
                    .u64(append.version.cast_unsigned().into())
                    .u8(append.ends_turn.into())
                    .array(&append.ids)
                    .array(&append.loss_mask)
                    .array(&append.logprobs);
            }
            Self::Restart { rollout } => {
                out.u8(3).u64(*rollout);
            }
            Self::End { rollout, outcome, extra } => {
                encode_outcome(out.u8(4).u64(*rollout), outcome);
                out.array(extra);
            }
            Self::Discard { group } => {
                out.u8(5).u64(*group);
            }
            Self::Prepare { checkpoint, leases } => encode_lent(out.u8(6), checkpoint, leases),
            Self::Release { leases } => {
                out.u8(7).array(leases);
            }
            Self::Ack(ack) => {
                out.u8(8).array(&ack.leases).array(&ack.groups);
                encode_clock(out, ack.clock);
                out.u64(ack.order_bytes).pairs(ack.staleness.iter().map(|(&s, &n)| (s, n)));
            }
            Self::Clock { version } => {
                out.u8(9).u64(*version);
            }
            Self::Task { task, stats } => {
                out.u8(10)
                    .text(task)
                    .u64(stats.attempts)
                    .u64(stats.passes)
                    .u64(stats.failures)
                    .u64(stats.reward_sum.to_bits());
            }
        }
    }

    /// The event in `bytes`, or `None` if they are not one.
    pub(crate) fn decode(bytes: &[u8]) -> Option<Event<'static>> {
        let mut from = Reader { rest: bytes };
        let event = match from.u8()? {
            0 => Event::Begin(Cow::Owned(decode_totals(&mut from)?)),
            1 => Event::Group(Cow::Owned(decode_group(&mut from)?)),
            2 => Event::Append(decode_append(&mut from)?),
            3 => Event::Restart { rollout: from.u64()? },
            4 => Event::End {
                rollout: from.u64()?,
                outcome: Cow::Owned(decode_outcome(&mut from)?),
                extra: Cow::Owned(from.array()?),
            },
            5 => Event::Discard { group: from.u64()? },
            6 => {
                let (checkpoint, leases) = decode_lent(&mut from)?;
                Event::Prepare { checkpoint: checkpoint.into(), leases: leases.into() }
            }
            7 => Event::Release { leases: Cow::Owned(from.array()?) },
            8 => Event::Ack(Cow::Owned(Ack {
                leases: from.array()?,
                groups: from.array()?,
                clock: from.pairs::<Vec<_>>()?.pop(),
                order_bytes: from.u64()?,
                staleness: from.pairs()?,
            })),
            9 => Event::Clock { version: from.u64()? },
            10 => Event::Task {
                task: from.text()?.to_owned().into(),
                stats: TaskStats {
                    attempts: from.u64()?,
                    passes: from.u64()?,
                    failures: from.u64()?,
                    reward_sum: f64::from_bits(from.u64()?),
                },
            },
            _ => return None,
        };
        from.rest.is_empty().then_some(event)
    }
}

fn encode_totals(out: &mut Writer<'_>, totals: &Totals) {
    out.u64(totals.next_group).u64(totals.next_rollout).u64(totals.next_lease);
    out.u64(totals.consumed_groups).u64(totals.failed_rollouts);
    encode_clock(out, totals.clock);
    out.u64(totals.order_bytes).pairs(totals.staleness.iter().map(|(&s, &n)| (s, n)));
    out.u64(totals.prepared.len() as u64);
    for (checkpoint, leases) in &totals.prepared {
        encode_lent(out, checkpoint, leases);
    }
}

fn decode_totals(from: &mut Reader<'_>) -> Option<Totals> {
    Some(Totals {
        next_group: from.u64()?,
        next_rollout: from.u64()?,
        next_lease: from.u64()?,
        consumed_groups: from.u64()?,
        failed_rollouts: from.u64()?,
        clock: from.pairs::<Vec<_>>()?.pop(),
        order_bytes: from.u64()?,
        staleness: from.pairs()?,
        prepared: (0..from.len()?).map(|_| decode_lent(from)).collect::<Option<_>>()?,
    })
}

fn encode_clock(out: &mut Writer<'_>, clock: Option<(u64, u64)>) {
    out.pairs(clock.into_iter());
}

fn encode_lent(out: &mut Writer<'_>, checkpoint: &str, leases: &[Lent]) {
    out.text(checkpoint).u64(leases.len() as u64);
    for lease in leases {
        out.u64(lease.id).u64(lease.version).array(&lease.groups);
    }
}

fn decode_lent(from: &mut Reader<'_>) -> Option<(String, Vec<Lent>)> {
    let checkpoint = from.text()?.to_owned();
    let one = |from: &mut Reader<'_>| {
        Some(Lent { id: from.u64()?, version: from.u64()?, groups: from.array()? })
    };
    let leases = (0..from.len()?).map(|_| one(from)).collect::<Option<_>>()?;
    Some((checkpoint, leases))
}

fn decode_append(from: &mut Reader<'_>) -> Option<Append<'static>> {
    let append = Append {
        rollout: from.u64()?,
        version: i32::try_from(from.u64()?).ok()?,
        ends_turn: from.u8()? != 0,
        ids: Cow::Owned(from.array()?),
        loss_mask: Cow::Owned(from.array()?),
        logprobs: Cow::Owned(from.array()?),
    };
    let fits =
        append.loss_mask.len() == append.ids.len() && append.logprobs.len() == append.ids.len();
    fits.then_some(append)
}

pub(crate) fn encode_outcome(out: &mut Writer<'_>, outcome: &Outcome) {
    match outcome {
        Outcome::Running => out.u8(0),
        Outcome::Finished { reward, reason } => out.u8(1).u64(reward.to_bits()).text(reason),
        Outcome::Failed { reason } => out.u8(2).text(reason),
    };
}

pub(crate) fn decode_outcome(from: &mut Reader<'_>) -> Option<Outcome> {
    Some(match from.u8()? {
        0 => Outcome::Running,
        1 => Outcome::Finished {
            reward: f64::from_bits(from.u64()?),
            reason: from.text()?.to_owned(),
        },
        2 => Outcome::Failed { reason: from.text()?.to_owned() },
        _ => return None,
    })
}

fn encode_group(out: &mut Writer<'_>, group: &Group) {
    let timeout =
        group.rollout_timeout.map(|timeout| u64::try_from(timeout.as_micros()).unwrap_or(u64::MAX));
    out.u64(group.id).text(&group.task).u64(group.policy_version);
    out.u64(group.priority.cast_unsigned()).option(group.max_tokens).option(timeout);
    out.u64(group.rollouts.len() as u64);
    for rollout in &group.rollouts {
        out.u64(rollout.id).array(&rollout.ids).array(&rollout.loss_mask).array(&rollout.logprobs);
        out.pairs(rollout.spans().into_iter()).array(&rollout.turns);
        encode_outcome(out, &rollout.outcome);
        out.array(&rollout.extra);
    }
}

fn decode_group(from: &mut Reader<'_>) -> Option<Group> {
    Some(Group {
        id: from.u64()?,
        task: from.text()?.to_owned(),
        policy_version: from.u64()?,
        priority: from.u64()?.cast_signed(),
        max_tokens: from.option()?.0,
        rollout_timeout: from.option()?.0.map(Duration::from_micros),
        rollouts: (0..from.len()?).map(|_| decode_rollout(from)).collect::<Option<_>>()?,
    })
}

fn decode_rollout(from: &mut Reader<'_>) -> Option<Rollout> {
    let (id, ids) = (from.u64()?, from.array()?);
    let (loss_mask, logprobs) = (from.array()?, from.array()?);
    let mut versions = Vec::new();
    for (len, version) in from.pairs::<Vec<_>>()? {
        let end = versions.len().checked_add(usize::try_from(len).ok()?)?;
        versions.resize((end <= ids.len()).then_some(end)?, i32::try_from(version).ok()?);
    }
    let (turns, outcome) = (from.array()?, decode_outcome(from)?);
    let rollout =
        Rollout { id, ids, loss_mask, logprobs, versions, turns, outcome, extra: from.array()? };
    let len = rollout.ids.len();
    let fits =
        [rollout.loss_mask.len(), rollout.logprobs.len(), rollout.versions.len()] == [len; 3];
    fits.then_some(rollout)
}

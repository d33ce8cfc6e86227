//! What happens to the buffer, as it stands in the log.

use crate::trajectory::{Outcome, Rollout};
use crate::{GroupId, RolloutId};

/// A change that survives a restart.
#[derive(Debug, Clone, PartialEq)]
pub(crate) enum Event {
    /// First event of a segment: the numbers that come next, so that older segments may go.
    Begin {
        next_group: GroupId,
        next_rollout: RolloutId,
    },
    Admit {
        group: GroupId,
        first_rollout: RolloutId,
        num_rollouts: u32,
        policy_version: u64,
        task: String,
    },
    /// A rollout has ended, with all its tokens.
    End(Rollout),
    Discard {
        group: GroupId,
    },
    Ack {
        groups: Vec<GroupId>,
    },
}

impl Event {
    pub(crate) fn encode(&self) -> Vec<u8> {
        let mut out = Writer::default();
        match self {
            Self::Begin { next_group, next_rollout } => {
                out.bytes.push(0);
                out.u64(*next_group).u64(*next_rollout);
            }
            Self::Admit { group, first_rollout, num_rollouts, policy_version, task } => {
                out.bytes.push(1);
                out.u64(*group)
                    .u64(*first_rollout)
                    .u64((*num_rollouts).into())
                    .u64(*policy_version)
                    .text(task);
            }
            Self::End(rollout) => {
                out.bytes.push(2);
                out.rollout(rollout);
            }
            Self::Discard { group } => {
                out.bytes.push(3);
                out.u64(*group);
            }
            Self::Ack { groups } => {
                out.bytes.push(4);
                out.array(groups, u64::to_le_bytes);
            }
        }
        out.bytes
    }

    /// The event in `bytes`, or `None` if they are not one.
    pub(crate) fn decode(bytes: &[u8]) -> Option<Self> {
        let (&tag, rest) = bytes.split_first()?;
        let mut from = Reader { rest };
        let event = match tag {
            0 => Self::Begin { next_group: from.u64()?, next_rollout: from.u64()? },
            1 => Self::Admit {
                group: from.u64()?,
                first_rollout: from.u64()?,
                num_rollouts: from.u64()?.try_into().ok()?,
                policy_version: from.u64()?,
                task: from.text()?,
            },
            2 => Self::End(from.rollout()?),
            3 => Self::Discard { group: from.u64()? },
            4 => Self::Ack { groups: from.array(u64::from_le_bytes)? },
            _ => return None,
        };
        from.rest.is_empty().then_some(event)
    }
}

#[derive(Default)]
struct Writer {
    bytes: Vec<u8>,
}

impl Writer {
    fn u64(&mut self, value: u64) -> &mut Self {
        self.bytes.extend_from_slice(&value.to_le_bytes());
        self
    }

    fn text(&mut self, text: &str) -> &mut Self {
        self.u64(text.len() as u64).bytes.extend_from_slice(text.as_bytes());
        self
    }

    fn array<T: Copy, const N: usize>(
        &mut self,
        values: &[T],
        to_bytes: impl Fn(T) -> [u8; N],
    ) -> &mut Self {
        self.u64(values.len() as u64)
            .bytes
            .extend(values.iter().flat_map(|&value| to_bytes(value)));
        self
    }

    fn rollout(&mut self, rollout: &Rollout) {
        self.u64(rollout.id)
            .array(&rollout.ids, i32::to_le_bytes)
            .array(&rollout.loss_mask, u8::to_le_bytes)
            .array(&rollout.logprobs, f32::to_le_bytes)
            .array(&rollout.versions, u64::to_le_bytes);
        match &rollout.outcome {
            Outcome::Running => unreachable!("only rollouts that have ended are logged"),
            Outcome::Finished { reward, reason } => self.u64(0).u64(reward.to_bits()).text(reason),
            Outcome::Failed { reason } => self.u64(1).text(reason),
        };
    }
}

struct Reader<'a> {
    rest: &'a [u8],
}

impl Reader<'_> {
    fn u64(&mut self) -> Option<u64> {
        let (bytes, rest) = self.rest.split_first_chunk()?;
        self.rest = rest;
        Some(u64::from_le_bytes(*bytes))
    }

    fn take(&mut self, len: usize) -> Option<&[u8]> {
        let (bytes, rest) = self.rest.split_at_checked(len)?;
        self.rest = rest;
        Some(bytes)
    }

    fn text(&mut self) -> Option<String> {
        let len = self.u64()?.try_into().ok()?;
        String::from_utf8(self.take(len)?.to_vec()).ok()
    }

    fn array<T, const N: usize>(&mut self, from_bytes: impl Fn([u8; N]) -> T) -> Option<Vec<T>> {
        let len: usize = self.u64()?.try_into().ok()?;
        let bytes = self.take(len.checked_mul(N)?)?;
        Some(bytes.as_chunks().0.iter().map(|&chunk| from_bytes(chunk)).collect())
    }

    fn rollout(&mut self) -> Option<Rollout> {
        let (id, ids) = (self.u64()?, self.array(i32::from_le_bytes)?);
        let (loss_mask, logprobs) =
            (self.array(u8::from_le_bytes)?, self.array(f32::from_le_bytes)?);
        let versions = self.array(u64::from_le_bytes)?;
        let outcome = match self.u64()? {
            0 => Outcome::Finished { reward: f64::from_bits(self.u64()?), reason: self.text()? },
            1 => Outcome::Failed { reason: self.text()? },
            _ => return None,
        };
        let fits =
            [loss_mask.len(), logprobs.len(), versions.len()].iter().all(|&len| len == ids.len());
        fits.then_some(Rollout { id, ids, loss_mask, logprobs, versions, outcome })
    }
}

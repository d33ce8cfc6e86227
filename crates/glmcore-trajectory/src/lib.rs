//! What reinforcement learning remembers between sampling and training.
//!
//! A *group* holds the rollouts of one task. The buffer owns it from admission to acknowledged consumption:
//!
//! 1. [`Buffer::admit`] makes a group, or refuses it if it could be trained on when it is too old;
//! 2. [`Buffer::append_tokens`] adds sampled tokens with their log-probabilities and the version of the weights;
//! 3. [`Buffer::finish`] or [`Buffer::fail`] ends a rollout;
//! 4. [`Buffer::take`] leases the oldest groups once all their rollouts have ended;
//! 5. [`Buffer::ack`] forgets them. What was leased and not acknowledged is leased again after a restart, in the same
//!    order.
//!
//! The *staleness* of a token is the version that trains on it minus the version that sampled it.
//!
//! ```
//! use glmcore_trajectory::{Buffer, Limits, Outcome, Tokens};
//!
//! let buffer = Buffer::in_memory(Limits { capacity: 8, max_staleness: 0, groups_per_step: 1 })?;
//! let group = buffer.admit("2 + 2", 1, 0)?;
//! let rollout = buffer.rollouts(group)?.start;
//! buffer.append_tokens(rollout, &Tokens { ids: &[4], loss_mask: &[1], logprobs: &[-0.1] }, 0)?;
//! buffer.finish(rollout, 1.0, "stop")?;
//! let lease = buffer.take(1, 0, None)?.expect("the group is complete");
//! assert_eq!(lease[0].rollouts[0].outcome, Outcome::Finished { reward: 1.0, reason: "stop".into() });
//! buffer.ack(&[group])?;
//! # Ok::<(), glmcore_trajectory::Error>(())
//! ```
#![forbid(unsafe_code)]
#![warn(missing_docs)]

mod buffer;
mod event;
mod log;
mod state;
mod trajectory;

use std::path::PathBuf;

pub use buffer::Buffer;
pub use state::{GroupInfo, GroupState, Limits, Stats};
pub use trajectory::{Group, Outcome, Rollout, Tokens};

/// Number of a group, rising with admission.
pub type GroupId = u64;
/// Number of a rollout.
pub type RolloutId = u64;

/// Why the buffer refuses a call or cannot be opened.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
#[expect(missing_docs, reason = "the messages name every field")]
pub enum Error {
    /// The group could be trained on when its tokens are too old.
    #[error(
        "a group of version {policy_version} could be trained at version {trained_at}, past max_staleness {max_staleness}: \
         {outstanding} groups wait before it"
    )]
    WouldBeStale { policy_version: u64, trained_at: u64, max_staleness: u64, outstanding: usize },
    /// Too many rollouts wait.
    #[error("{outstanding} rollouts wait and {wanted} more would pass the capacity of {capacity}")]
    Full { outstanding: usize, wanted: usize, capacity: usize },
    /// A group needs a rollout.
    #[error("a group needs at least one rollout")]
    EmptyGroup,
    /// There is no such group, or it has been consumed.
    #[error("group {0} does not exist or has been consumed")]
    NoSuchGroup(GroupId),
    /// There is no such rollout, or its group has been consumed.
    #[error("rollout {0} does not exist or its group has been consumed")]
    NoSuchRollout(RolloutId),
    /// The rollout has ended.
    #[error("rollout {0} has ended")]
    Ended(RolloutId),
    /// Arrays of one call differ in length.
    #[error("{ids} ids come with {loss_mask} loss mask entries and {logprobs} log-probabilities")]
    Lengths { ids: usize, loss_mask: usize, logprobs: usize },
    /// Weights never go back during a rollout.
    #[error("rollout {rollout} is at version {latest}, version {given} cannot follow")]
    VersionWentBack { rollout: RolloutId, latest: u64, given: u64 },
    /// A reward that cannot be averaged.
    #[error("reward {reward} of rollout {rollout} is not finite")]
    Reward { rollout: RolloutId, reward: f64 },
    /// Taking fewer groups than promised would let the others grow stale.
    #[error("{wanted} groups are fewer than the groups_per_step of {groups_per_step}")]
    TooFewGroups { wanted: usize, groups_per_step: usize },
    /// A group that is due is too old.
    #[error(
        "group {group} has tokens of version {oldest}, trained at {policy_version} they pass max_staleness {max_staleness}"
    )]
    Stale { group: GroupId, oldest: u64, policy_version: u64, max_staleness: u64 },
    /// A group is leased already, or not at all, where the call needs the other.
    #[error("group {group} is {state}")]
    WrongState { group: GroupId, state: &'static str },
    /// A limit that makes no sense.
    #[error("{what} must be at least 1")]
    Limit { what: &'static str },
    /// The log is damaged before its end.
    #[error("{path}: damaged at byte {offset}")]
    Damaged { path: PathBuf, offset: u64 },
    /// Another process has the buffer.
    #[error("another process has {0} open")]
    Locked(PathBuf),
    /// The operating system failed.
    #[error("{path}: {source}")]
    Io { path: PathBuf, source: std::io::Error },
}

//! What reinforcement learning remembers between sampling and training.
//!
//! A *group* holds the rollouts of one task. The buffer owns it from admission to acknowledged consumption:
//!
//! 1. [`Buffer::admit`] makes a group, or refuses it if it could be trained on when it is too old;
//! 2. [`Buffer::append_tokens`] adds sampled tokens with their log-probabilities and the version of the weights;
//! 3. [`Buffer::finish`] or [`Buffer::fail`] ends a rollout, or its time limit does;
//! 4. [`Buffer::take`] leases a batch of groups once all their rollouts have ended;
//! 5. [`Buffer::ack`] forgets them, once a checkpoint contains what they were used for.
//!
//! **Staleness.** That of a token is the version that trains on it minus the version that sampled it, where versions
//! count optimiser steps; a group counts by its oldest token. It never exceeds `max_staleness`, no group is dropped for
//! its age, and none is passed over for ever: a group is admitted only if it and all others fit into the batches that
//! the trainer takes until they are due, and a batch goes out only if those that it leaves still fit. Where a slow group
//! is due, [`Buffer::take`] waits for it.
//!
//! **Durability.** With [`Commit::Wait`] a call returns once its record is on disk; callers share the waiting. After a
//! crash nothing that a call had returned for is lost. [`Buffer::prepare`] before a checkpoint is completed and
//! [`Buffer::recover`] after a crash see to it that nothing is trained on twice.
//!
//! ```
//! use glmcore_trajectory::{Admission, Buffer, Commit, Options, Outcome, Tokens};
//!
//! let buffer = Buffer::in_memory(Options::new(8, 0))?;
//! let group = buffer.admit(&Admission::new("2 + 2", 1, 0), None, Commit::Wait)?;
//! let rollout = buffer.rollouts(group)?.start;
//! let (ids, loss_mask, logprobs) = (&[4], &[1], &[-0.1]);
//! buffer.append_tokens(rollout, &Tokens { ids, loss_mask, logprobs, policy_version: 0, ends_turn: true })?;
//! buffer.finish(rollout, 1.0, "stop", b"", Commit::Wait)?;
//! let lease = buffer.take(1, 0, None)?.expect("the group is complete");
//! assert_eq!(lease.groups[0].rollouts[0].outcome, Outcome::Finished { reward: 1.0, reason: "stop".into() });
//! buffer.ack(&[lease.id], None)?;
//! # Ok::<(), glmcore_trajectory::Error>(())
//! ```
#![forbid(unsafe_code)]
#![warn(missing_docs)]

#[cfg(target_endian = "big")]
compile_error!("the log is little-endian and read as it is: big-endian machines are not supported");

mod buffer;
mod calls;
mod codec;
mod compact;
mod consume;
mod deadlines;
mod event;
mod frame;
mod inspect;
mod journal;
mod log;
mod options;
mod order;
mod schedule;
mod shared;
mod state;
mod stats;
mod tasks;
mod trajectory;

use std::path::PathBuf;

pub use buffer::Buffer;
pub use consume::Lease;
pub use options::{Admission, Commit, Options, Order};
pub use order::{Taken, TakenGroup, TakenRollout};
pub use stats::{GroupInfo, GroupState, RunningRollout, Stats};
pub use tasks::TaskStats;
pub use trajectory::{Group, Outcome, Rollout, Tokens};

/// Number of a group, rising with admission.
pub type GroupId = u64;
/// Number of a rollout.
pub type RolloutId = u64;
/// Number of a lease.
pub type LeaseId = u64;

/// Why the buffer refuses a call or cannot be opened.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
#[expect(missing_docs, reason = "the messages name every field")]
pub enum Error {
    /// Not all groups could be trained in time. Newer weights help, waiting with the same does not.
    #[error(
        "a group of version {policy_version} could be trained past max_staleness {max_staleness}: the trainer is at \
         version {trainer} or later and {waiting} groups wait"
    )]
    WouldBeStale { policy_version: u64, trainer: u64, max_staleness: u64, waiting: usize },
    /// There is no room.
    #[error("{held} {what} are held and {wanted} more would pass the capacity of {capacity}")]
    Full { what: &'static str, held: u64, wanted: u64, capacity: u64 },
    /// Without a limit nobody knows how many tokens a rollout will need.
    #[error("a buffer with capacity_tokens admits only groups with max_tokens")]
    NoTokenLimit,
    /// A group needs a rollout.
    #[error("a group needs at least one rollout")]
    EmptyGroup,
    /// There is no such group, or it has been consumed.
    #[error("group {0} does not exist or has been consumed")]
    NoSuchGroup(GroupId),
    /// There is no such rollout, or its group has been consumed.
    #[error("rollout {0} does not exist or its group has been consumed")]
    NoSuchRollout(RolloutId),
    /// The lease has been acknowledged or given back.
    #[error("lease {0} has been acknowledged or given back")]
    NoSuchLease(LeaseId),
    /// The rollout has ended.
    #[error("rollout {0} has ended")]
    Ended(RolloutId),
    /// Arrays of one call differ in length.
    #[error("{ids} ids come with {loss_mask} loss mask entries and {logprobs} log-probabilities")]
    Lengths { ids: usize, loss_mask: usize, logprobs: usize },
    /// A value that no sampler gives.
    #[error("{what} is at position {at}")]
    Value { what: &'static str, at: usize },
    /// A rollout grows past its limit.
    #[error("rollout {rollout} would have {len} tokens, more than its limit of {max_tokens}")]
    TooLong { rollout: RolloutId, len: u64, max_tokens: u64 },
    /// Versions are kept in 31 bits.
    #[error("version {0} is larger than 2^31 - 1")]
    Version(u64),
    /// Weights never go back during a rollout.
    #[error("rollout {rollout} is at version {latest}, version {given} cannot follow")]
    VersionWentBack { rollout: RolloutId, latest: u64, given: u64 },
    /// A reward that cannot be averaged.
    #[error("reward {reward} of rollout {rollout} is not finite")]
    Reward { rollout: RolloutId, reward: f64 },
    /// The groups that a batch would leave could not all be trained in time.
    #[error(
        "{wanted} groups are too few at version {version}: {needed} have to be taken, or others would pass max_staleness"
    )]
    TooFewGroups { wanted: usize, version: u64, needed: u64 },
    /// So many groups are never admitted at once.
    #[error("{wanted} groups never wait at once: max_staleness and groups_per_step admit {most}")]
    TooManyGroups { wanted: usize, most: u64 },
    /// The trainer has gone past a group.
    #[error(
        "a group has to be taken at version {due} or before: at version {version} it would pass max_staleness {max_staleness}"
    )]
    Stale { due: u64, version: u64, max_staleness: u64 },
    /// The groups asked for leave no place for others that are due.
    #[error("other groups have to be taken at version {version}, or they would pass max_staleness")]
    OthersAreDue { version: u64 },
    /// The group is leased.
    #[error("group {0} is leased")]
    Leased(GroupId),
    /// It is not known whether leased groups were trained on.
    #[error(
        "groups may be in checkpoint {checkpoint:?}: call recover with the checkpoint that the trainer goes on from"
    )]
    Unresolved { checkpoint: String },
    /// A lease is in one checkpoint at most.
    #[error("the lease was prepared for checkpoint {prepared:?}, not for {given:?}")]
    OtherCheckpoint { prepared: String, given: String },
    /// A limit that makes no sense.
    #[error("{what} must be at least 1")]
    Limit { what: &'static str },
    /// The last update of a batch would be too late for every token.
    #[error(
        "updates_per_step {updates_per_step} needs a max_staleness of one less at least, not {max_staleness}"
    )]
    UpdatesAreStale { updates_per_step: u64, max_staleness: u64 },
    /// The order is recorded on disk only.
    #[error("a buffer in memory records no order: open one in a directory")]
    NoOrder,
    /// The log is damaged, not only cut short by a crash.
    #[error("{path}: damaged at byte {offset}")]
    Damaged { path: PathBuf, offset: u64 },
    /// Another process has the buffer.
    #[error("another process has {0} open")]
    Locked(PathBuf),
    /// An earlier write failed. What was acknowledged is on disk; open the buffer again once the cause is gone.
    #[error("the log cannot be written since an earlier error: {0}")]
    Stopped(String),
    /// The operating system failed.
    #[error("{path}: {source}")]
    Io { path: PathBuf, source: std::io::Error },
}

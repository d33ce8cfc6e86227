//! What a buffer may hold, how old it may get and in which order it gives groups out.

use std::time::Duration;

use crate::Error;

/// Which of the groups that may go next a lease prefers.
///
/// Whatever the order, a lease takes a group in time for `max_staleness`: no group is passed over for ever.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Order {
    /// Complete groups, those that would be too old first come first. Fast groups pass slow ones as long as these have
    /// time left.
    #[default]
    Deadline,
    /// Strictly as admitted, waiting for slow groups: which groups a batch has depends on no timing.
    Fifo,
    /// Complete groups, the highest priority first, then as with [`Order::Deadline`].
    Priority,
}

/// How a buffer is bounded.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Options {
    /// Most rollouts of groups that have not been consumed.
    pub capacity: usize,
    /// Most tokens of those rollouts; a running rollout counts with the most it may get.
    pub capacity_tokens: Option<u64>,
    /// Most versions between sampling a token and the last optimiser step on it.
    pub max_staleness: u64,
    /// Groups that the trainer takes for each batch.
    pub groups_per_step: usize,
    /// Optimiser steps on a batch: the version of the next batch is this much higher.
    pub updates_per_step: u64,
    /// Order of leases.
    pub order: Order,
    /// A finished rollout passes with this reward or more.
    pub pass_reward: f64,
    /// A segment of the log is closed when it is larger.
    pub segment_bytes: u64,
}

impl Options {
    /// The usual options with these bounds.
    pub fn new(capacity: usize, max_staleness: u64) -> Self {
        Self {
            capacity,
            capacity_tokens: None,
            max_staleness,
            groups_per_step: 1,
            updates_per_step: 1,
            order: Order::default(),
            pass_reward: 1.0,
            segment_bytes: 16 << 20,
        }
    }

    pub(crate) fn check(&self) -> Result<(), Error> {
        let positive = [
            ("capacity", self.capacity as u64),
            ("capacity_tokens", self.capacity_tokens.unwrap_or(1)),
            ("groups_per_step", self.groups_per_step as u64),
            ("updates_per_step", self.updates_per_step),
            ("segment_bytes", self.segment_bytes),
        ];
        if let Some(&(what, _)) = positive.iter().find(|(_, value)| *value == 0) {
            return Err(Error::Limit { what });
        }
        if self.updates_per_step - 1 > self.max_staleness {
            let (updates_per_step, max_staleness) = (self.updates_per_step, self.max_staleness);
            return Err(Error::UpdatesAreStale { updates_per_step, max_staleness });
        }
        Ok(())
    }
}

/// A group to be admitted.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Admission<'a> {
    /// The task; statistics are kept by it.
    pub task: &'a str,
    /// Attempts at it.
    pub num_rollouts: u32,
    /// Version of the weights that its first tokens may come from.
    pub policy_version: u64,
    /// Higher goes first in [`Order::Priority`].
    pub priority: i64,
    /// Most tokens of each rollout.
    pub max_tokens: Option<u64>,
    /// Rollouts that have not ended after this time fail.
    pub rollout_timeout: Option<Duration>,
}

impl<'a> Admission<'a> {
    /// An admission without priority, token limit and time limit.
    pub fn new(task: &'a str, num_rollouts: u32, policy_version: u64) -> Self {
        Self {
            task,
            num_rollouts,
            policy_version,
            priority: 0,
            max_tokens: None,
            rollout_timeout: None,
        }
    }
}

/// When a call that changes the log returns.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Commit {
    /// Once its record is on disk.
    Wait,
    /// At once; the record is on disk with the next call that waits, or [`Buffer::flush`](crate::Buffer::flush).
    Later,
}

//! What the buffer says about itself.

use std::collections::BTreeMap;

use crate::state::{Held, State};
use crate::{GroupId, RolloutId};

/// Where a group stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum GroupState {
    /// A rollout is still running.
    Running,
    /// All rollouts have ended.
    Ready,
    /// The trainer has it and has not acknowledged it.
    Leased,
}

/// A line about a group.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct GroupInfo {
    /// Its number.
    pub id: GroupId,
    /// Version at admission.
    pub policy_version: u64,
    /// Last version of the trainer that may take it.
    pub due_version: u64,
    /// Rollouts in all.
    pub num_rollouts: usize,
    /// Rollouts that have ended.
    pub num_done: usize,
    /// Where it stands.
    pub state: GroupState,
    /// The task.
    pub task: String,
}

/// A line about a rollout that has not ended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RunningRollout {
    /// Its number.
    pub id: RolloutId,
    /// Its group.
    pub group: GroupId,
    /// Tokens so far.
    pub num_tokens: usize,
    /// The task.
    pub task: String,
}

/// What the buffer holds now, and counts over its life.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Stats {
    /// Groups with a running rollout.
    pub running_groups: usize,
    /// Complete groups.
    pub ready_groups: usize,
    /// Leased groups.
    pub leased_groups: usize,
    /// Rollouts of all of them.
    pub rollouts: usize,
    /// Tokens of all of them.
    pub tokens: usize,
    /// Groups acknowledged.
    pub consumed_groups: u64,
    /// Rollouts that failed.
    pub failed_rollouts: u64,
    /// Acknowledged tokens that the policy sampled, by staleness in the last update of their batch.
    pub staleness: BTreeMap<u64, u64>,
    /// Size of the log.
    pub bytes_on_disk: u64,
    /// Times that callers waited for the disk since the buffer was opened; fewer than calls where these share one.
    pub commits: u64,
}

impl State {
    pub(crate) fn groups(&self) -> Vec<GroupInfo> {
        self.held.values().map(Held::info).collect()
    }

    pub(crate) fn running_rollouts(&self) -> Vec<RunningRollout> {
        let running = self.held.values().filter(|held| held.num_running > 0);
        let line = |held: &Held, rollout: &crate::Rollout| RunningRollout {
            id: rollout.id,
            group: held.group.id,
            num_tokens: rollout.ids.len(),
            task: held.group.task.clone(),
        };
        let lines = running.flat_map(|held| {
            let rollouts = held.group.rollouts.iter().filter(|rollout| rollout.is_running());
            rollouts.map(move |rollout| line(held, rollout))
        });
        lines.collect()
    }

    pub(crate) fn stats(&self) -> Stats {
        let mut stats = Stats {
            rollouts: self.num_rollouts,
            consumed_groups: self.totals.consumed_groups,
            failed_rollouts: self.totals.failed_rollouts,
            staleness: self.totals.staleness.clone(),
            ..Stats::default()
        };
        for held in self.held.values() {
            match held.state() {
                GroupState::Running => stats.running_groups += 1,
                GroupState::Ready => stats.ready_groups += 1,
                GroupState::Leased => stats.leased_groups += 1,
            }
            stats.tokens += held.group.rollouts.iter().map(|r| r.ids.len()).sum::<usize>();
        }
        stats
    }
}

impl Held {
    fn state(&self) -> GroupState {
        match (self.lease, self.num_running) {
            (Some(_), _) => GroupState::Leased,
            (None, 0) => GroupState::Ready,
            (None, _) => GroupState::Running,
        }
    }

    fn info(&self) -> GroupInfo {
        GroupInfo {
            id: self.group.id,
            policy_version: self.group.policy_version,
            due_version: self.due,
            num_rollouts: self.group.rollouts.len(),
            num_done: self.group.rollouts.len() - self.num_running,
            state: self.state(),
            task: self.group.task.clone(),
        }
    }
}

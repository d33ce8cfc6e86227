//! One rollout: its tokens and how it ended; and the group that it belongs to.

use std::time::Duration;

use crate::{Error, GroupId, RolloutId};

/// Tokens to append, one entry each in every array.
#[derive(Debug, Clone, Copy)]
pub struct Tokens<'a> {
    /// Token ids, not negative.
    pub ids: &'a [i32],
    /// 1 for tokens that the policy sampled, 0 for what it was given.
    pub loss_mask: &'a [u8],
    /// Log-probability of each token when it was sampled; 0 for what was given.
    pub logprobs: &'a [f32],
    /// Version of the weights that sampled them.
    pub policy_version: u64,
    /// Whether a turn ends with them.
    pub ends_turn: bool,
}

impl Tokens<'_> {
    /// Refuses arrays that do not fit each other and values that no sampler gives.
    pub(crate) fn check(&self) -> Result<(), Error> {
        let (ids, loss_mask, logprobs) =
            (self.ids.len(), self.loss_mask.len(), self.logprobs.len());
        if loss_mask != ids || logprobs != ids {
            return Err(Error::Lengths { ids, loss_mask, logprobs });
        }
        // One pass without a branch each; the place is looked for only if there is one.
        let negative = self.ids.iter().fold(0, |all, &id| all | id) < 0;
        let odd = self.loss_mask.iter().fold(0, |all, &mask| all | mask) > 1;
        let not_finite = self.logprobs.iter().fold(false, |any, &x| any | !is_finite(x));
        let wrong = |what, at: Option<usize>| match at {
            Some(at) => Err(Error::Value { what, at }),
            None => Ok(()),
        };
        if negative {
            wrong("a negative id", self.ids.iter().position(|&id| id < 0))?;
        }
        if odd {
            wrong("a loss mask other than 0 and 1", self.loss_mask.iter().position(|&m| m > 1))?;
        }
        if not_finite {
            wrong(
                "a log-probability that is not finite",
                self.logprobs.iter().position(|&x| !is_finite(x)),
            )?;
        }
        Ok(())
    }
}

/// Whether the exponent is not all ones; vectorises where `f32::is_finite` in a fold does not.
fn is_finite(x: f32) -> bool {
    x.to_bits() & 0x7f80_0000 != 0x7f80_0000
}

/// How a rollout stands.
#[derive(Debug, Clone, PartialEq)]
pub enum Outcome {
    /// Tokens may come.
    Running,
    /// It ended by itself.
    Finished {
        /// Reward.
        reward: f64,
        /// Why it ended: `stop`, `length`, ...
        reason: String,
    },
    /// It could not be brought to an end; the trainer learns why.
    Failed {
        /// What went wrong.
        reason: String,
    },
}

/// One attempt at a task.
#[derive(Debug, Clone, PartialEq)]
pub struct Rollout {
    /// Its number.
    pub id: RolloutId,
    /// Token ids.
    pub ids: Vec<i32>,
    /// 1 where the policy sampled the token.
    pub loss_mask: Vec<u8>,
    /// Log-probability of each token when sampled.
    pub logprobs: Vec<f32>,
    /// Version of the weights that each token came from, never falling.
    pub versions: Vec<i32>,
    /// Where turns begin and the last one ends: 0, the ends of turns, and the number of tokens once ended.
    pub turns: Vec<i32>,
    /// How it ended.
    pub outcome: Outcome,
    /// What the producer wants kept with it.
    pub extra: Vec<u8>,
}

impl Rollout {
    pub(crate) fn new(id: RolloutId) -> Self {
        Self {
            id,
            ids: Vec::new(),
            loss_mask: Vec::new(),
            logprobs: Vec::new(),
            versions: Vec::new(),
            turns: vec![0],
            outcome: Outcome::Running,
            extra: Vec::new(),
        }
    }

    /// Whether tokens may come.
    pub fn is_running(&self) -> bool {
        self.outcome == Outcome::Running
    }

    /// Adds tokens that have been checked.
    pub(crate) fn append(
        &mut self,
        ids: &[i32],
        loss_mask: &[u8],
        logprobs: &[f32],
        version: i32,
        ends_turn: bool,
    ) {
        self.ids.extend_from_slice(ids);
        self.loss_mask.extend_from_slice(loss_mask);
        self.logprobs.extend_from_slice(logprobs);
        self.versions.resize(self.ids.len(), version);
        if ends_turn {
            self.end_turn();
        }
    }

    fn end_turn(&mut self) {
        let len = i32::try_from(self.ids.len()).expect("a rollout has less than 2^31 tokens");
        if self.turns.last() != Some(&len) {
            self.turns.push(len);
        }
    }

    pub(crate) fn end(&mut self, outcome: Outcome, extra: Vec<u8>) {
        self.end_turn();
        self.outcome = outcome;
        self.extra = extra;
    }

    /// Runs of tokens of one version: length and version.
    pub fn spans(&self) -> Vec<(u64, u64)> {
        let runs = self.versions.chunk_by(|a, b| a == b);
        runs.map(|run| (run.len() as u64, u64::try_from(run[0]).unwrap_or(0))).collect()
    }
}

/// The rollouts of one task.
#[derive(Debug, Clone, PartialEq)]
pub struct Group {
    /// Its number.
    pub id: GroupId,
    /// The task, as the caller wrote it.
    pub task: String,
    /// Version of the weights at admission.
    pub policy_version: u64,
    /// Higher goes first in [`Order::Priority`](crate::Order::Priority).
    pub priority: i64,
    /// Most tokens of each rollout.
    pub max_tokens: Option<u64>,
    /// Rollouts that have not ended after this time fail.
    pub rollout_timeout: Option<Duration>,
    /// All attempts, by number.
    pub rollouts: Vec<Rollout>,
}

impl Group {
    /// Whether every rollout has ended.
    pub fn is_complete(&self) -> bool {
        self.rollouts.iter().all(|rollout| !rollout.is_running())
    }

    /// Version of the oldest token; that of admission where there is none.
    pub fn oldest_version(&self) -> u64 {
        let first = self.rollouts.iter().filter_map(|rollout| rollout.versions.first());
        let oldest = first.min().and_then(|&version| u64::try_from(version).ok());
        oldest.unwrap_or(self.policy_version)
    }
}

//! One rollout: its tokens and how it ended.

use crate::{Error, GroupId, RolloutId};

/// Tokens to append, one entry each.
#[derive(Debug, Clone, Copy)]
pub struct Tokens<'a> {
    /// Token ids.
    pub ids: &'a [i32],
    /// 1 for tokens that the policy sampled, 0 for what it was given.
    pub loss_mask: &'a [u8],
    /// Log-probability of each token when it was sampled; 0 for what was given.
    pub logprobs: &'a [f32],
}

impl Tokens<'_> {
    pub(crate) fn check(&self) -> Result<(), Error> {
        let (ids, loss_mask, logprobs) =
            (self.ids.len(), self.loss_mask.len(), self.logprobs.len());
        if loss_mask == ids && logprobs == ids {
            Ok(())
        } else {
            Err(Error::Lengths { ids, loss_mask, logprobs })
        }
    }
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
    /// Version of the weights that each token came from.
    pub versions: Vec<u64>,
    /// How it ended.
    pub outcome: Outcome,
}

impl Rollout {
    pub(crate) fn new(id: RolloutId) -> Self {
        Self {
            id,
            ids: Vec::new(),
            loss_mask: Vec::new(),
            logprobs: Vec::new(),
            versions: Vec::new(),
            outcome: Outcome::Running,
        }
    }

    pub(crate) fn append(&mut self, tokens: &Tokens<'_>, version: u64) -> Result<(), Error> {
        tokens.check()?;
        self.check_running()?;
        if let Some(&latest) = self.versions.last().filter(|&&latest| latest > version) {
            return Err(Error::VersionWentBack { rollout: self.id, latest, given: version });
        }
        self.ids.extend_from_slice(tokens.ids);
        self.loss_mask.extend(tokens.loss_mask.iter().map(|&mask| u8::from(mask != 0)));
        self.logprobs.extend_from_slice(tokens.logprobs);
        self.versions.resize(self.ids.len(), version);
        Ok(())
    }

    pub(crate) fn check_running(&self) -> Result<(), Error> {
        if self.outcome == Outcome::Running { Ok(()) } else { Err(Error::Ended(self.id)) }
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
    /// All attempts, by number.
    pub rollouts: Vec<Rollout>,
}

impl Group {
    /// Whether every rollout has ended.
    pub fn is_complete(&self) -> bool {
        self.rollouts.iter().all(|rollout| rollout.outcome != Outcome::Running)
    }

    /// Version of the oldest token; that of admission where there is none.
    pub fn oldest_version(&self) -> u64 {
        let first = self.rollouts.iter().filter_map(|rollout| rollout.versions.first());
        first.copied().fold(self.policy_version, u64::min)
    }
}

//! When running rollouts fail by themselves.

use std::collections::{BTreeSet, HashMap};
use std::time::Instant;

use crate::RolloutId;

/// Deadlines of running rollouts, earliest first.
#[derive(Debug, Default)]
pub(crate) struct Deadlines {
    by_time: BTreeSet<(Instant, RolloutId)>,
    of: HashMap<RolloutId, Instant>,
}

impl Deadlines {
    /// Sets or moves a deadline; `None` lifts it.
    pub(crate) fn set(&mut self, rollout: RolloutId, deadline: Option<Instant>) {
        if self.of.is_empty() && deadline.is_none() {
            return;
        }
        if let Some(before) = self.of.remove(&rollout) {
            self.by_time.remove(&(before, rollout));
        }
        if let Some(deadline) = deadline {
            self.of.insert(rollout, deadline);
            self.by_time.insert((deadline, rollout));
        }
    }

    pub(crate) fn next(&self) -> Option<Instant> {
        self.by_time.first().map(|&(deadline, _)| deadline)
    }

    /// The rollouts whose deadline has passed.
    pub(crate) fn passed(&self, now: Instant) -> Vec<RolloutId> {
        self.by_time.iter().take_while(|&&(at, _)| at <= now).map(|&(_, rollout)| rollout).collect()
    }
}

//! How often each task was tried and solved.

/// Counts of one task's rollouts, of all groups that were ever admitted.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub struct TaskStats {
    /// Rollouts that finished with a reward.
    pub attempts: u64,
    /// Those with a reward of `pass_reward` or more.
    pub passes: u64,
    /// Rollouts that failed.
    pub failures: u64,
    /// Sum of the rewards.
    pub reward_sum: f64,
}

impl TaskStats {
    /// Probability that at least one of `k` attempts passes, without bias; `None` for more than were made.
    ///
    /// `1 - C(n - c, k) / C(n, k)` with `c` passes of `n` attempts: Chen et al., arXiv:2107.03374, section 2.1.
    pub fn pass_at(&self, k: u64) -> Option<f64> {
        if k > self.attempts {
            return None;
        }
        let wrong = self.attempts - self.passes;
        if wrong < k {
            return Some(1.0);
        }
        let none = (wrong + 1..=self.attempts).map(|n| 1.0 - k as f64 / n as f64).product::<f64>();
        Some(1.0 - none)
    }
}

//! Which groups have to be trained by when, and the test that keeps all of them on time.
//!
//! Time is the version of the trainer. It moves only when the trainer takes a batch: `groups_per_step` groups (B) at
//! versions c, c + k, c + 2k, ... with k = `updates_per_step`. A group whose oldest token is of version s may be taken
//! up to its *due* version d = s + `max_staleness` - (k - 1); the last of the k updates then has staleness
//! `max_staleness`. Groups are unit jobs with deadlines, so by Hall's theorem all of them can be on time exactly if for
//! every d no more than `slots(d)` groups are due by d, where `slots(d)` is what is left of the batch at c plus B for
//! each later batch up to d. [`Schedule::room`] admits only what keeps this true and [`Schedule::plan`] lets a batch go
//! only if it stays true for those that it leaves.

use std::collections::BTreeMap;

use crate::Error;
use crate::options::Options;

#[derive(Debug)]
pub(crate) struct Schedule {
    groups_per_step: u64,
    updates_per_step: u64,
    max_staleness: u64,
    /// Due version of the groups that nobody has taken, and how many have it.
    dues: BTreeMap<u64, u64>,
    /// Groups taken at each version, of open leases and of the last version that was acknowledged.
    taken: BTreeMap<u64, u64>,
    /// Newest weights that a producer has named. The trainer has left the versions before.
    seen: u64,
}

/// Version of the trainer and what is left of its batch.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Clock {
    version: u64,
    left: u64,
}

impl Schedule {
    pub(crate) fn new(options: &Options) -> Self {
        Self {
            groups_per_step: options.groups_per_step as u64,
            updates_per_step: options.updates_per_step,
            max_staleness: options.max_staleness,
            dues: BTreeMap::new(),
            taken: BTreeMap::new(),
            seen: 0,
        }
    }

    /// Last version at which a group with tokens of version `oldest` may be taken.
    pub(crate) fn due(&self, oldest: u64) -> u64 {
        oldest.saturating_add(self.max_staleness - (self.updates_per_step - 1))
    }

    /// Staleness of a token of version `sampled` in the last update of the batch taken at `version`.
    pub(crate) fn staleness(&self, sampled: u64, version: u64) -> u64 {
        (version + self.updates_per_step - 1).saturating_sub(sampled)
    }

    pub(crate) fn add(&mut self, due: u64) {
        *self.dues.entry(due).or_default() += 1;
    }

    pub(crate) fn remove(&mut self, due: u64) {
        let count = self.dues.get_mut(&due).expect("only what was added is removed");
        *count -= 1;
        if *count == 0 {
            self.dues.remove(&due);
        }
    }

    pub(crate) fn see(&mut self, version: u64) {
        self.seen = self.seen.max(version);
    }

    /// The trainer starts anew, so the versions that producers have named may be ahead of it.
    pub(crate) fn forget_seen(&mut self) {
        self.seen = 0;
    }

    pub(crate) fn take(&mut self, version: u64, groups: u64) {
        *self.taken.entry(version).or_default() += groups;
    }

    /// Takes back that groups were taken; the trainer is at `version` again.
    pub(crate) fn release(&mut self, version: u64, groups: u64) {
        self.seen = self.seen.min(version);
        if let Some(count) = self.taken.get_mut(&version) {
            *count -= groups;
            if *count == 0 {
                self.taken.remove(&version);
            }
        }
    }

    /// Forgets what was taken before `version`, of which a checkpoint tells; `groups` were taken then at least.
    pub(crate) fn acknowledge(&mut self, version: u64, groups: u64) {
        self.taken = self.taken.split_off(&version);
        let taken = self.taken.entry(version).or_default();
        *taken = groups.max(*taken);
    }

    /// The trainer goes on from `version`, whatever it did before.
    pub(crate) fn restart(&mut self, version: u64) {
        self.taken = BTreeMap::from([(version, 0)]);
        self.seen = 0;
    }

    /// The clock if the trainer is at `version` at least: at the next version of a batch, k apart from the last.
    fn clock(&self, version: u64) -> Clock {
        match self.taken.last_key_value() {
            Some((&last, &taken)) if last >= version => {
                Clock { version: last, left: self.groups_per_step.saturating_sub(taken) }
            }
            Some((&last, _)) => {
                let batches = (version - last).div_ceil(self.updates_per_step);
                let version = last.saturating_add(batches.saturating_mul(self.updates_per_step));
                Clock { version, left: self.groups_per_step }
            }
            None => Clock { version, left: self.groups_per_step },
        }
    }

    /// Groups that the trainer takes from now up to version `due`.
    fn slots(&self, clock: Clock, due: u64) -> u64 {
        match due.checked_sub(clock.version) {
            None => 0,
            Some(versions) => {
                let batches = versions / self.updates_per_step;
                clock.left.saturating_add(batches.saturating_mul(self.groups_per_step))
            }
        }
    }

    /// Version at which the trainer is at least, once weights of `version` exist.
    pub(crate) fn now(&self, version: u64) -> u64 {
        self.clock(self.seen.max(version)).version
    }

    /// How many more groups of `version` can be admitted so that all stay on time.
    pub(crate) fn room(&self, version: u64) -> u64 {
        let clock = self.clock(self.seen.max(version));
        let due = self.due(version);
        let mut due_so_far: u64 = self.dues.range(..=due).map(|(_, count)| count).sum();
        let mut room = self.slots(clock, due).saturating_sub(due_so_far);
        for (&later, &count) in self.dues.range(due + 1..) {
            due_so_far += count;
            room = room.min(self.slots(clock, later).saturating_sub(due_so_far));
        }
        room
    }

    /// Most groups that can ever wait for one version.
    pub(crate) fn most(&self) -> u64 {
        let batches = self.due(0) / self.updates_per_step + 1;
        batches.saturating_mul(self.groups_per_step)
    }

    /// What a batch of `wanted` groups at `version` has to contain for those that it leaves to stay on time.
    ///
    /// # Errors
    ///
    /// [`Error::Stale`] if a group is too old already, [`Error::TooFewGroups`] if more have to go.
    pub(crate) fn plan(&self, wanted: usize, version: u64) -> Result<Plan, Error> {
        let mut clock = self.clock(version);
        if clock.version >= version
            && self.taken.last_key_value().is_none_or(|(&last, _)| last <= version)
        {
            // The batch of now; one before the last adds to what was taken then and leaves the clock.
            clock = Clock { version, left: clock.left.saturating_sub(wanted as u64) };
        }
        let (mut due_so_far, mut needs) = (0_u64, Vec::with_capacity(self.dues.len()));
        for (&due, &count) in &self.dues {
            if due < version {
                return Err(Error::Stale { due, version, max_staleness: self.max_staleness });
            }
            due_so_far += count;
            needs.push((due, due_so_far.saturating_sub(self.slots(clock, due))));
        }
        let needed = needs.iter().map(|&(_, need)| need).max().unwrap_or(0);
        if needed > wanted as u64 {
            return Err(Error::TooFewGroups { wanted, version, needed });
        }
        Ok(Plan { left: wanted as u64, needs })
    }
}

/// What is still to be chosen for a batch.
#[derive(Debug, Clone)]
pub(crate) struct Plan {
    left: u64,
    /// Due versions, rising, and how many of those chosen have to be due by then.
    needs: Vec<(u64, u64)>,
}

impl Plan {
    /// Chooses a group unless the rest of the batch is needed for groups that are due before it.
    ///
    /// A group that is passed over stays so: what is needed before it and what is left then fall together.
    pub(crate) fn choose(&mut self, due: u64) -> bool {
        let before = self.needs.partition_point(|&(other, _)| other < due);
        let needed = self.needs[..before].iter().map(|&(_, need)| need).max().unwrap_or(0);
        if needed >= self.left {
            return false;
        }
        for (_, need) in &mut self.needs[before..] {
            *need = need.saturating_sub(1);
        }
        self.left -= 1;
        true
    }

    pub(crate) fn is_full(&self) -> bool {
        self.left == 0
    }
}

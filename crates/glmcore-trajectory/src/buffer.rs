//! The buffer: contents and log behind one lock.

use std::ops::Range;
use std::path::Path;
use std::sync::{Condvar, Mutex, MutexGuard};
use std::time::{Duration, Instant};

use crate::event::Event;
use crate::log::Log;
use crate::state::{GroupInfo, Limits, State, Stats};
use crate::trajectory::{Group, Outcome, Tokens};
use crate::{Error, GroupId, RolloutId};

/// A buffer that any number of threads of one process share.
pub struct Buffer {
    limits: Limits,
    inner: Mutex<Inner>,
    /// Signalled when a group becomes complete.
    completed: Condvar,
}

struct Inner {
    state: State,
    log: Option<Log>,
}

impl Buffer {
    /// A buffer whose contents end with the process.
    ///
    /// # Errors
    ///
    /// [`Error::Limit`].
    pub fn in_memory(limits: Limits) -> Result<Self, Error> {
        Self::new(limits, State::default(), None)
    }

    /// The buffer in `directory`, made if it is not there; nobody else may have it open.
    ///
    /// Rollouts that were running when the last owner ended have no tokens; leases that were not acknowledged are open.
    ///
    /// # Errors
    ///
    /// [`Error::Limit`], [`Error::Locked`], [`Error::Damaged`], [`Error::Io`].
    pub fn open(directory: &Path, limits: Limits) -> Result<Self, Error> {
        let mut state = State::default();
        let mut log = Log::open(directory, |segment, event| state.apply(segment, event))?;
        if log.is_new() {
            log.append(&state.begin())?;
        }
        Self::new(limits, state, Some(log))
    }

    fn new(limits: Limits, state: State, log: Option<Log>) -> Result<Self, Error> {
        for (what, limit) in
            [("capacity", limits.capacity), ("groups_per_step", limits.groups_per_step)]
        {
            if limit == 0 {
                return Err(Error::Limit { what });
            }
        }
        Ok(Self { limits, inner: Mutex::new(Inner { state, log }), completed: Condvar::new() })
    }

    fn lock(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().expect("no holder of the lock panics")
    }

    /// Makes a group of `num_rollouts` attempts at `task`, sampled from weights of `policy_version` or later.
    ///
    /// Groups are consumed in the order of admission, `groups_per_step` for each version, so the version at which a new
    /// group is trained is known at once; a group that would be too old by then is refused.
    ///
    /// # Errors
    ///
    /// [`Error::WouldBeStale`], [`Error::Full`], [`Error::EmptyGroup`], [`Error::Io`].
    pub fn admit(
        &self,
        task: &str,
        num_rollouts: u32,
        policy_version: u64,
    ) -> Result<GroupId, Error> {
        let mut inner = self.lock();
        let event = inner.state.admit(&self.limits, task, num_rollouts, policy_version)?;
        let Event::Admit { group, .. } = event else { unreachable!("an admission was made") };
        inner.commit(event)?;
        Ok(group)
    }

    /// Numbers of a group's rollouts.
    ///
    /// # Errors
    ///
    /// [`Error::NoSuchGroup`].
    pub fn rollouts(&self, group: GroupId) -> Result<Range<RolloutId>, Error> {
        self.lock().state.rollouts(group)
    }

    /// Adds tokens to a running rollout. They are durable once the rollout ends.
    ///
    /// # Errors
    ///
    /// [`Error::NoSuchRollout`], [`Error::Ended`], [`Error::Lengths`], [`Error::VersionWentBack`].
    pub fn append_tokens(
        &self,
        rollout: RolloutId,
        tokens: &Tokens<'_>,
        policy_version: u64,
    ) -> Result<(), Error> {
        self.lock().state.append(rollout, tokens, policy_version)
    }

    /// Ends a rollout with a reward.
    ///
    /// # Errors
    ///
    /// [`Error::NoSuchRollout`], [`Error::Ended`], [`Error::Reward`], [`Error::Io`].
    pub fn finish(&self, rollout: RolloutId, reward: f64, reason: &str) -> Result<(), Error> {
        if !reward.is_finite() {
            return Err(Error::Reward { rollout, reward });
        }
        self.end(rollout, Outcome::Finished { reward, reason: reason.to_owned() })
    }

    /// Ends a rollout that cannot go on; the trainer is told why.
    ///
    /// # Errors
    ///
    /// [`Error::NoSuchRollout`], [`Error::Ended`], [`Error::Io`].
    pub fn fail(&self, rollout: RolloutId, reason: &str) -> Result<(), Error> {
        self.end(rollout, Outcome::Failed { reason: reason.to_owned() })
    }

    fn end(&self, rollout: RolloutId, outcome: Outcome) -> Result<(), Error> {
        let mut inner = self.lock();
        let event = inner.state.end(rollout, outcome)?;
        inner.commit(event)?;
        if inner.state.is_complete(rollout) {
            inner.sync()?;
            self.completed.notify_all();
        }
        Ok(())
    }

    /// Forgets a group that is not leased.
    ///
    /// # Errors
    ///
    /// [`Error::NoSuchGroup`], [`Error::WrongState`], [`Error::Io`].
    pub fn discard(&self, group: GroupId) -> Result<(), Error> {
        let mut inner = self.lock();
        let event = inner.state.discard(group)?;
        inner.commit(event)?;
        inner.sync()
    }

    /// Leases the oldest `num_groups` groups for training at `policy_version`, waiting until they are complete.
    ///
    /// Gives `None` if they are not complete after `timeout`; without one it waits for ever.
    ///
    /// # Errors
    ///
    /// [`Error::TooFewGroups`], [`Error::Stale`].
    pub fn take(
        &self,
        num_groups: usize,
        policy_version: u64,
        timeout: Option<Duration>,
    ) -> Result<Option<Vec<Group>>, Error> {
        let groups_per_step = self.limits.groups_per_step;
        if num_groups < groups_per_step {
            return Err(Error::TooFewGroups { wanted: num_groups, groups_per_step });
        }
        let deadline = timeout.map(|timeout| Instant::now() + timeout);
        let mut inner = self.lock();
        loop {
            if let Some(groups) = inner.state.take(&self.limits, num_groups, policy_version)? {
                return Ok(Some(groups));
            }
            let wait = deadline.map(|deadline| deadline.saturating_duration_since(Instant::now()));
            inner = match wait {
                Some(Duration::ZERO) => return Ok(None),
                Some(wait) => {
                    self.completed
                        .wait_timeout(inner, wait)
                        .expect("no holder of the lock panics")
                        .0
                }
                None => self.completed.wait(inner).expect("no holder of the lock panics"),
            };
        }
    }

    /// Makes the consumption of leased groups durable; all of them or, on an error, none.
    ///
    /// # Errors
    ///
    /// [`Error::NoSuchGroup`] (also for a second acknowledgement), [`Error::WrongState`], [`Error::Io`].
    pub fn ack(&self, groups: &[GroupId]) -> Result<(), Error> {
        let mut inner = self.lock();
        inner.state.check_leased(groups)?;
        inner.commit(Event::Ack { groups: groups.to_vec() })?;
        inner.sync()?;
        inner.compact()
    }

    /// Gives leased groups back, to be taken again.
    ///
    /// # Errors
    ///
    /// [`Error::NoSuchGroup`], [`Error::WrongState`].
    pub fn release(&self, groups: &[GroupId]) -> Result<(), Error> {
        let mut inner = self.lock();
        inner.state.check_leased(groups)?;
        inner.state.release(groups);
        self.completed.notify_all();
        Ok(())
    }

    /// A line about each group that has not been consumed, in the order of admission.
    pub fn groups(&self) -> Vec<GroupInfo> {
        self.lock().state.groups()
    }

    /// Counts.
    pub fn stats(&self) -> Stats {
        let inner = self.lock();
        let bytes_on_disk = inner.log.as_ref().map_or(0, Log::bytes_on_disk);
        Stats { bytes_on_disk, ..inner.state.stats() }
    }
}

impl Inner {
    /// Logs an event, then applies it.
    fn commit(&mut self, event: Event) -> Result<(), Error> {
        let mut segment = 0;
        if let Some(log) = &mut self.log {
            if log.is_full() {
                log.rotate()?;
                log.append(&self.state.begin())?;
            }
            log.append(&event)?;
            segment = log.segment();
        }
        self.state.apply(segment, event);
        Ok(())
    }

    fn sync(&self) -> Result<(), Error> {
        self.log.as_ref().map_or(Ok(()), Log::sync)
    }

    /// Removes segments that hold nothing but consumed groups.
    fn compact(&mut self) -> Result<(), Error> {
        let oldest = self.state.oldest_segment();
        let Some(log) = &mut self.log else { return Ok(()) };
        let open = log.segment();
        log.remove_before(oldest.unwrap_or(open))
    }
}

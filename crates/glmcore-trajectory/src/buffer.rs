//! The buffer: contents and log behind one lock, and those who wait for them.

use std::borrow::Cow;
use std::ops::Range;
use std::path::Path;
use std::sync::{Condvar, Mutex};
use std::time::{Duration, Instant};

use crate::deadlines::Deadlines;
use crate::event::Event;
use crate::journal::Journal;
use crate::log::Files;
use crate::options::{Admission, Commit, Options};
use crate::shared::Inner;
use crate::state::State;
use crate::trajectory::{Outcome, Tokens};
use crate::{Error, GroupId, RolloutId};

/// A buffer that any number of threads of one process share.
pub struct Buffer {
    pub(crate) inner: Mutex<Inner>,
    /// Signalled when a group becomes complete, comes back or goes.
    pub(crate) ready: Condvar,
    /// Signalled when there is room for more rollouts.
    pub(crate) room: Condvar,
    /// Signalled when a write is over.
    pub(crate) written: Condvar,
}

impl Buffer {
    /// A buffer whose contents end with the process.
    ///
    /// # Errors
    ///
    /// [`Error::Limit`], [`Error::UpdatesAreStale`].
    pub fn in_memory(options: Options) -> Result<Self, Error> {
        options.check()?;
        Ok(Self::new(State::new(options), None))
    }

    /// The buffer in `directory`, made if it is not there; nobody else may have it open.
    ///
    /// Rollouts that were running when the last owner ended are running, with the tokens that were on disk and their
    /// time limits anew. Leases that were not acknowledged are open; if a checkpoint may contain some of them, see
    /// [`Buffer::recover`].
    ///
    /// # Errors
    ///
    /// [`Error::Limit`], [`Error::UpdatesAreStale`], [`Error::Locked`], [`Error::Damaged`], [`Error::Io`].
    pub fn open(directory: &Path, options: Options) -> Result<Self, Error> {
        options.check()?;
        let mut state = State::new(options);
        let (files, segments) = Files::open(directory, |place, event| {
            state.apply(place, event);
            state.totals.order_bytes
        })?;
        for lease in state.leases.values_mut() {
            lease.unresolved = true;
        }
        let order_bytes = state.totals.order_bytes;
        let mut journal = Journal::new(files, segments, order_bytes, options.segment_bytes);
        journal.begin(&state);
        let buffer = Self::new(state, Some(journal));
        buffer.flush()?;
        Ok(buffer)
    }

    fn new(state: State, journal: Option<Journal>) -> Self {
        let mut deadlines = Deadlines::default();
        for held in state.held.values() {
            let limit = held.group.rollout_timeout.map(|timeout| Instant::now() + timeout);
            for rollout in held.group.rollouts.iter().filter(|rollout| rollout.is_running()) {
                deadlines.set(rollout.id, limit);
            }
        }
        let inner = Mutex::new(Inner { state, journal, deadlines });
        let (ready, room, written) = Default::default();
        Self { inner, ready, room, written }
    }

    /// Makes a group of attempts at a task.
    ///
    /// It is admitted only if it and all other groups can be trained before they are too old (see the crate's page);
    /// waiting does not help then, newer weights do. For room it waits up to `timeout`, without one for ever.
    ///
    /// # Errors
    ///
    /// [`Error::WouldBeStale`], [`Error::Full`], [`Error::EmptyGroup`], [`Error::NoTokenLimit`], [`Error::Version`],
    /// [`Error::Io`], [`Error::Stopped`].
    pub fn admit(
        &self,
        admission: &Admission<'_>,
        timeout: Option<Duration>,
        commit: Commit,
    ) -> Result<GroupId, Error> {
        let until = timeout.map(|timeout| Instant::now() + timeout);
        let mut inner = self.lock();
        let group = loop {
            match inner.state.admit(admission) {
                Err(full @ Error::Full { .. }) => {
                    let still;
                    (inner, still) = Self::wait(&self.room, inner, until);
                    if !still {
                        return Err(full);
                    }
                }
                result => break result?,
            }
        };
        let id = group.id;
        let limit = group.rollout_timeout.map(|timeout| Instant::now() + timeout);
        for rollout in &group.rollouts {
            inner.deadlines.set(rollout.id, limit);
        }
        inner.record(Event::Group(Cow::Owned(group)))?;
        self.ready.notify_all(); // someone may wait until this very deadline
        self.settle(inner, commit).map(|()| id)
    }

    /// How many groups of this version [`Buffer::admit`] would not refuse for their age.
    pub fn room(&self, policy_version: u64) -> u64 {
        self.lock().state.room(policy_version)
    }

    /// Numbers of a group's rollouts.
    ///
    /// # Errors
    ///
    /// [`Error::NoSuchGroup`].
    pub fn rollouts(&self, group: GroupId) -> Result<Range<RolloutId>, Error> {
        self.lock().state.rollouts(group)
    }

    /// Adds tokens to a running rollout. They are on disk once the rollout has ended, or earlier.
    ///
    /// # Errors
    ///
    /// [`Error::NoSuchRollout`], [`Error::Ended`], [`Error::Lengths`], [`Error::Value`], [`Error::VersionWentBack`],
    /// [`Error::TooLong`], [`Error::Version`], [`Error::Io`], [`Error::Stopped`].
    pub fn append_tokens(&self, rollout: RolloutId, tokens: &Tokens<'_>) -> Result<(), Error> {
        let mut inner = self.lock();
        let append = inner.state.check_append(rollout, tokens)?;
        inner.record(Event::Append(append))?;
        self.settle(inner, Commit::Later)
    }

    /// Ends a rollout with a reward and bytes that come out with it.
    ///
    /// # Errors
    ///
    /// [`Error::NoSuchRollout`], [`Error::Ended`], [`Error::Reward`], [`Error::Io`], [`Error::Stopped`].
    pub fn finish(
        &self,
        rollout: RolloutId,
        reward: f64,
        reason: &str,
        extra: &[u8],
        commit: Commit,
    ) -> Result<(), Error> {
        if !reward.is_finite() {
            return Err(Error::Reward { rollout, reward });
        }
        let outcome = Outcome::Finished { reward, reason: reason.to_owned() };
        let mut inner = self.lock();
        self.end(&mut inner, rollout, outcome, extra)?;
        self.settle(inner, commit)
    }

    /// Ends a rollout that cannot go on; the trainer is told why.
    ///
    /// # Errors
    ///
    /// [`Error::NoSuchRollout`], [`Error::Ended`], [`Error::Io`], [`Error::Stopped`].
    pub fn fail(&self, rollout: RolloutId, reason: &str, commit: Commit) -> Result<(), Error> {
        let mut inner = self.lock();
        self.end(&mut inner, rollout, Outcome::Failed { reason: reason.to_owned() }, &[])?;
        self.settle(inner, commit)
    }

    pub(crate) fn end(
        &self,
        inner: &mut Inner,
        rollout: RolloutId,
        outcome: Outcome,
        extra: &[u8],
    ) -> Result<(), Error> {
        let event = inner.state.end_of(rollout, outcome, extra)?;
        inner.record(event)?;
        inner.deadlines.set(rollout, None);
        let (held, _) = inner.state.rollout(rollout)?;
        if held.num_running == 0 {
            self.ready.notify_all();
        }
        self.room.notify_all(); // it may have been shorter than it might have been
        Ok(())
    }

    /// Drops the tokens of a running rollout, to begin anew.
    ///
    /// # Errors
    ///
    /// [`Error::NoSuchRollout`], [`Error::Ended`], [`Error::Io`], [`Error::Stopped`].
    pub fn restart(&self, rollout: RolloutId) -> Result<(), Error> {
        let mut inner = self.lock();
        inner.state.running(rollout)?;
        inner.record(Event::Restart { rollout })?;
        self.settle(inner, Commit::Later)
    }

    /// Lets a running rollout fail if it has not ended in this time from now; `None` lifts its limit.
    ///
    /// # Errors
    ///
    /// [`Error::NoSuchRollout`], [`Error::Ended`].
    pub fn set_timeout(&self, rollout: RolloutId, timeout: Option<Duration>) -> Result<(), Error> {
        let mut inner = self.lock();
        inner.state.running(rollout)?;
        inner.deadlines.set(rollout, timeout.map(|timeout| Instant::now() + timeout));
        self.ready.notify_all();
        Ok(())
    }

    /// Forgets a group that is not leased. Its rollouts stay in the counts of its task.
    ///
    /// # Errors
    ///
    /// [`Error::NoSuchGroup`], [`Error::Leased`], [`Error::Io`], [`Error::Stopped`].
    pub fn discard(&self, group: GroupId, commit: Commit) -> Result<(), Error> {
        let mut inner = self.lock();
        let event = inner.state.discard(group)?;
        let rollouts = inner.state.rollouts(group)?;
        inner.record(event)?;
        rollouts.for_each(|rollout| inner.deadlines.set(rollout, None));
        inner.compact();
        self.room.notify_all();
        self.ready.notify_all();
        self.settle(inner, commit)
    }

    /// Waits until all that was recorded is on disk.
    ///
    /// # Errors
    ///
    /// [`Error::Io`], [`Error::Stopped`].
    pub fn flush(&self) -> Result<(), Error> {
        self.settle(self.lock(), Commit::Wait)
    }
}

impl Drop for Buffer {
    fn drop(&mut self) {
        let _ = self.flush(); // whoever needs to know has waited
    }
}

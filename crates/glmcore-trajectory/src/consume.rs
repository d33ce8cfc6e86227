//! The side of the trainer: leases, checkpoints and acknowledgement.

use std::sync::Arc;
use std::time::{Duration, Instant};

use crate::buffer::Buffer;
use crate::event::Event;
use crate::options::Commit;
use crate::shared::Inner;
use crate::state::State;
use crate::trajectory::{Group, Outcome};
use crate::{Error, GroupId, LeaseId};

/// Groups handed out for training, by number.
#[derive(Debug, Clone, PartialEq)]
pub struct Lease {
    /// Its number.
    pub id: LeaseId,
    /// Version of the trainer that took it.
    pub policy_version: u64,
    /// The groups, shared with the buffer.
    pub groups: Vec<Arc<Group>>,
}

impl Buffer {
    /// Leases `num_groups` groups for training at `policy_version`, waiting until they are complete.
    ///
    /// Which groups is a matter of [`Order`](crate::Order), as far as all others can still be trained in time; where a
    /// slow group cannot wait any longer, this waits for it. Gives `None` if there is no such batch after `timeout`.
    ///
    /// # Errors
    ///
    /// [`Error::TooFewGroups`], [`Error::TooManyGroups`], [`Error::Stale`], [`Error::Unresolved`], [`Error::Io`],
    /// [`Error::Stopped`].
    pub fn take(
        &self,
        num_groups: usize,
        policy_version: u64,
        timeout: Option<Duration>,
    ) -> Result<Option<Lease>, Error> {
        self.take_when(policy_version, timeout, |state| state.choose(num_groups, policy_version))
    }

    /// Leases exactly these groups, waiting until they are admitted and complete.
    ///
    /// # Errors
    ///
    /// As [`Buffer::take`], and [`Error::NoSuchGroup`], [`Error::Leased`], [`Error::OthersAreDue`].
    pub fn take_these(
        &self,
        groups: &[GroupId],
        policy_version: u64,
        timeout: Option<Duration>,
    ) -> Result<Option<Lease>, Error> {
        self.take_when(policy_version, timeout, |state| state.choose_these(groups, policy_version))
    }

    fn take_when(
        &self,
        policy_version: u64,
        timeout: Option<Duration>,
        choose: impl Fn(&State) -> Result<Option<Vec<GroupId>>, Error>,
    ) -> Result<Option<Lease>, Error> {
        let until = timeout.map(|timeout| Instant::now() + timeout);
        let mut inner = self.lock();
        loop {
            self.expire(&mut inner)?;
            if let Some(groups) = choose(&inner.state)? {
                let (id, groups) = inner.state.take(groups, policy_version);
                self.room.notify_all();
                return Ok(Some(Lease { id, policy_version, groups }));
            }
            if until.is_some_and(|until| until <= Instant::now()) {
                return Ok(None);
            }
            let earliest = [until, inner.deadlines.next()].into_iter().flatten().min();
            inner = Self::wait(&self.ready, inner, earliest).0;
        }
    }

    /// Fails the rollouts whose time is over.
    pub(crate) fn expire(&self, inner: &mut Inner) -> Result<(), Error> {
        if inner.deadlines.next().is_none() {
            return Ok(());
        }
        for rollout in inner.deadlines.passed(Instant::now()) {
            let reason = "it did not end within its time limit".to_owned();
            self.end(inner, rollout, Outcome::Failed { reason }, &[])?;
        }
        Ok(())
    }

    /// States durably that the checkpoint that is about to be completed contains these leases.
    ///
    /// If the process ends before they are acknowledged, [`Buffer::recover`] tells by the checkpoint that the trainer
    /// has whether they were consumed.
    ///
    /// # Errors
    ///
    /// [`Error::NoSuchLease`], [`Error::Io`], [`Error::Stopped`].
    pub fn prepare(&self, leases: &[LeaseId], checkpoint: &str) -> Result<(), Error> {
        let mut inner = self.lock();
        let event = inner.state.prepare(leases, checkpoint)?;
        inner.record(event)?;
        self.settle(inner, Commit::Wait)
    }

    /// Makes the consumption of leases durable, all of them or, on an error, none; their groups are forgotten.
    ///
    /// # Errors
    ///
    /// [`Error::NoSuchLease`] (also for a second acknowledgement), [`Error::OtherCheckpoint`], [`Error::Io`],
    /// [`Error::Stopped`].
    pub fn ack(&self, leases: &[LeaseId], checkpoint: Option<&str>) -> Result<(), Error> {
        let mut inner = self.lock();
        inner.acknowledge(leases, checkpoint)?;
        inner.compact();
        self.room.notify_all();
        self.settle(inner, Commit::Wait)
    }

    /// Gives leases back, to be taken again.
    ///
    /// # Errors
    ///
    /// [`Error::NoSuchLease`], [`Error::Io`], [`Error::Stopped`].
    pub fn release(&self, leases: &[LeaseId]) -> Result<(), Error> {
        let mut inner = self.lock();
        let event = inner.state.release_of(leases)?;
        inner.record(event)?;
        self.ready.notify_all();
        self.settle(inner, Commit::Later)
    }

    /// The trainer goes on from `checkpoint`: leases that it contains are consumed, all others are given back.
    ///
    /// With `policy_version` the buffer takes it that the trainer is at this version, which has to be said only if the
    /// checkpoint is not the newest one.
    ///
    /// # Errors
    ///
    /// [`Error::Io`], [`Error::Stopped`].
    pub fn recover(
        &self,
        checkpoint: Option<&str>,
        policy_version: Option<u64>,
    ) -> Result<(), Error> {
        let mut inner = self.lock();
        let (consumed, returned): (Vec<_>, Vec<_>) =
            inner.state.leases.iter().partition(|(_, lease)| {
                lease.prepared.is_some() && lease.prepared.as_deref() == checkpoint
            });
        let ids = |leases: Vec<(&LeaseId, _)>| leases.into_iter().map(|(&id, _)| id).collect();
        let (consumed, returned): (Vec<LeaseId>, Vec<LeaseId>) = (ids(consumed), ids(returned));
        if !consumed.is_empty() {
            inner.acknowledge(&consumed, checkpoint)?;
        }
        if !returned.is_empty() {
            inner.record(Event::Release { leases: returned.into() })?;
        }
        inner.state.schedule.forget_seen();
        if let Some(version) = policy_version {
            inner.record(Event::Clock { version })?;
        }
        inner.compact();
        self.room.notify_all();
        self.ready.notify_all();
        self.settle(inner, Commit::Wait)
    }
}

//! The lock of a buffer, and how what is recorded under it gets to the disk.

use std::borrow::Cow;
use std::sync::{Condvar, MutexGuard};
use std::time::Instant;

use crate::buffer::Buffer;
use crate::deadlines::Deadlines;
use crate::event::Event;
use crate::journal::Journal;
use crate::options::Commit;
use crate::state::{Place, State};
use crate::{Error, LeaseId, compact, order};

pub(crate) struct Inner {
    pub(crate) state: State,
    pub(crate) journal: Option<Journal>,
    pub(crate) deadlines: Deadlines,
}

pub(crate) type Guard<'a> = MutexGuard<'a, Inner>;

impl Buffer {
    pub(crate) fn lock(&self) -> Guard<'_> {
        self.inner.lock().expect("no holder of the lock panics")
    }

    /// Waits until `condition` is signalled or `until` has come; gives whether it has not.
    pub(crate) fn wait<'a>(
        condition: &Condvar,
        inner: Guard<'a>,
        until: Option<Instant>,
    ) -> (Guard<'a>, bool) {
        let Some(until) = until else {
            return (condition.wait(inner).expect("no holder of the lock panics"), true);
        };
        let left = until.saturating_duration_since(Instant::now());
        let waited = condition.wait_timeout(inner, left).expect("no holder of the lock panics");
        (waited.0, !left.is_zero())
    }

    /// Sees to it that what was recorded gets to the disk as the caller wants it.
    pub(crate) fn settle(&self, inner: Guard<'_>, commit: Commit) -> Result<(), Error> {
        let is_large = inner.journal.as_ref().is_some_and(Journal::is_large);
        match commit {
            Commit::Wait => self.advance(inner, true).map(drop),
            Commit::Later if is_large => self.advance(inner, false).map(drop),
            Commit::Later => Ok(()),
        }
    }

    /// Waits until all that is recorded now is written and, with `sync`, on disk; one of those who wait does it.
    pub(crate) fn advance<'a>(
        &'a self,
        mut inner: Guard<'a>,
        sync: bool,
    ) -> Result<Guard<'a>, Error> {
        let Some(target) = inner.journal.as_ref().map(|journal| journal.recorded) else {
            return Ok(inner);
        };
        loop {
            let journal = inner.journal.as_mut().expect("a buffer keeps its log");
            if journal.has(target, sync) {
                return Ok(inner);
            }
            if let Some(reason) = &journal.failed {
                return Err(Error::Stopped(reason.clone()));
            }
            let Some(mut files) = journal.files.take() else {
                inner = Self::wait(&self.written, inner, None).0;
                continue;
            };
            let batch = journal.take_batch(sync);
            drop(inner);
            let result = batch.write(&mut files, sync);
            inner = self.lock();
            let journal = inner.journal.as_mut().expect("a buffer keeps its log");
            journal.files = Some(files);
            self.written.notify_all();
            if let Err(error) = result {
                journal.failed = Some(error.to_string());
                return Err(error);
            }
            journal.put_back(batch, sync);
        }
    }
}

impl Inner {
    /// Logs an event, then applies it.
    pub(crate) fn record(&mut self, event: Event<'_>) -> Result<(), Error> {
        let mut place = Place::default();
        if let Some(journal) = &mut self.journal {
            if let Some(reason) = &journal.failed {
                return Err(Error::Stopped(reason.clone()));
            }
            place = journal.record(&self.state, &event);
        }
        self.state.apply(place, event);
        Ok(())
    }

    pub(crate) fn acknowledge(
        &mut self,
        leases: &[LeaseId],
        checkpoint: Option<&str>,
    ) -> Result<(), Error> {
        let mut ack = self.state.ack(leases, checkpoint)?;
        if let Some(journal) = &mut self.journal {
            for id in leases {
                let lease = &self.state.leases[id];
                let groups = lease.groups.iter().map(|group| &*self.state.held[group].group);
                journal.record_order(|out| {
                    order::encode(out, lease.version, checkpoint.unwrap_or(""), groups);
                });
            }
            ack.order_bytes = journal.order_bytes;
        }
        self.record(Event::Ack(Cow::Owned(ack)))
    }

    pub(crate) fn compact(&mut self) {
        if let Some(journal) = &mut self.journal {
            compact::compact(&mut self.state, journal);
        }
    }
}

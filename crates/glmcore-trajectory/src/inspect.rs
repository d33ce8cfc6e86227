//! What a buffer holds and has held.

use crate::buffer::Buffer;
use crate::stats::{GroupInfo, RunningRollout, Stats};
use crate::tasks::TaskStats;
use crate::trajectory::Rollout;
use crate::{Error, GroupId, RolloutId, frame, order};

impl Buffer {
    /// A line about each group that has not been consumed, in the order of admission.
    ///
    /// # Errors
    ///
    /// [`Error::Io`], [`Error::Stopped`].
    pub fn groups(&self) -> Result<Vec<GroupInfo>, Error> {
        let mut inner = self.lock();
        self.expire(&mut inner)?;
        Ok(inner.state.groups())
    }

    /// A line about each rollout that has not ended, which after a start is what has to be sampled again or further.
    ///
    /// # Errors
    ///
    /// [`Error::Io`], [`Error::Stopped`].
    pub fn running(&self) -> Result<Vec<RunningRollout>, Error> {
        let mut inner = self.lock();
        self.expire(&mut inner)?;
        Ok(inner.state.running_rollouts())
    }

    /// A copy of a rollout as it is now, with its group and its task.
    ///
    /// # Errors
    ///
    /// [`Error::NoSuchRollout`].
    pub fn rollout(&self, rollout: RolloutId) -> Result<(GroupId, String, Rollout), Error> {
        let inner = self.lock();
        let (held, rollout) = inner.state.rollout(rollout)?;
        Ok((held.group.id, held.group.task.clone(), rollout.clone()))
    }

    /// Counts.
    pub fn stats(&self) -> Stats {
        let inner = self.lock();
        let stats = inner.state.stats();
        match &inner.journal {
            Some(journal) => {
                Stats { bytes_on_disk: journal.bytes(), commits: journal.commits, ..stats }
            }
            None => stats,
        }
    }

    /// How often a task was tried and solved; `None` if never.
    pub fn task_stats(&self, task: &str) -> Option<TaskStats> {
        self.lock().state.tasks.get(task).map(|task| task.stats)
    }

    /// How often each task was tried and solved, in no order.
    pub fn tasks(&self) -> Vec<(String, TaskStats)> {
        let inner = self.lock();
        inner.state.tasks.iter().map(|(name, task)| (name.clone(), task.stats)).collect()
    }

    /// What was consumed, in order.
    ///
    /// # Errors
    ///
    /// [`Error::NoOrder`] for a buffer in memory, [`Error::Damaged`], [`Error::Io`], [`Error::Stopped`].
    pub fn order(&self) -> Result<Vec<order::Taken>, Error> {
        let mut inner = self.lock();
        let files = loop {
            let journal = inner.journal.as_ref().ok_or(Error::NoOrder)?;
            match &journal.files {
                Some(files) => break files,
                None => inner = Self::wait(&self.written, inner, None).0,
            }
        };
        let (bytes, path) = (files.read_order()?, files.order_path());
        let (mut at, mut taken) = (0, Vec::new());
        while at < bytes.len() {
            let body = frame::read(&bytes, 0, at);
            let entry = body.clone().and_then(|body| order::decode(&bytes[body]));
            let (Some(body), Some(entry)) = (body, entry) else {
                return Err(Error::Damaged { path, offset: at as u64 });
            };
            taken.push(entry);
            at = body.end;
        }
        Ok(taken)
    }
}

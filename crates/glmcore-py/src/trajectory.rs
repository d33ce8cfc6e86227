//! Binding of `glmcore-trajectory`: the buffer. Leases and samples are in `lease.rs`.

use std::path::PathBuf;
use std::sync::{Arc, RwLock};
use std::time::{Duration, Instant};

use glmcore_trajectory::{Admission, Buffer, Commit, Error, GroupState, Options, Order, Tokens};
use numpy::PyReadonlyArray1;
use pyo3::exceptions::PyValueError;
use pyo3::prelude::*;

use crate::error::{OrRaise, TrajectoryError};
use crate::lease::{CoreLease, SampleRow, sample_row};
use crate::rollouts::{WholeRollout, slice, write};

/// How long a waiting call goes without looking for signals.
const SIGNAL_CHECK: Duration = Duration::from_millis(100);

/// The buffer of trajectories.
#[pyclass(frozen, name = "CoreTrajectoryBuffer", module = "glmcore._core")]
struct PyTrajectoryBuffer {
    /// None once closed.
    inner: RwLock<Option<Arc<Buffer>>>,
}

impl PyTrajectoryBuffer {
    fn buffer(&self) -> PyResult<Arc<Buffer>> {
        let inner = self.inner.read().expect("no holder panics");
        inner.clone().ok_or_else(|| TrajectoryError::new_err("the buffer has been closed"))
    }

    /// A call without the GIL.
    fn call<T: Send>(
        &self,
        py: Python<'_>,
        call: impl FnOnce(&Buffer) -> Result<T, Error> + Send,
    ) -> PyResult<T> {
        let buffer = self.buffer()?;
        py.detach(|| call(&buffer)).or_raise()
    }
}

/// Group, version at admission, due version, rollouts, ended rollouts, state, task.
type GroupLine = (u64, u64, u64, usize, usize, &'static str, String);

/// Attempts, passes, failures and sum of rewards of a task.
type Counts = (u64, u64, u64, f64);

/// Rollout, its end (a reward or why it failed), and runs of tokens of one version.
type TakenRolloutLine = (u64, Option<f64>, Option<String>, Vec<(u64, u64)>);

/// Group, task, version at admission, rollouts.
type TakenGroupLine = (u64, String, u64, Vec<TakenRolloutLine>);

#[pymethods]
impl PyTrajectoryBuffer {
    /// The buffer in a directory, or in memory for None.
    #[new]
    #[expect(clippy::too_many_arguments, reason = "each is an option of the Python class")]
    fn new(
        py: Python<'_>,
        directory: Option<PathBuf>,
        capacity: usize,
        capacity_tokens: Option<u64>,
        max_staleness: u64,
        groups_per_step: usize,
        updates_per_step: u64,
        order: &str,
        pass_reward: f64,
        segment_bytes: u64,
    ) -> PyResult<Self> {
        let order = match order {
            "deadline" => Order::Deadline,
            "fifo" => Order::Fifo,
            "priority" => Order::Priority,
            other => {
                let message = format!("order {other:?} is none of deadline, fifo and priority");
                return Err(TrajectoryError::new_err(message));
            }
        };
        let options = Options {
            capacity,
            capacity_tokens,
            max_staleness,
            groups_per_step,
            updates_per_step,
            order,
            pass_reward,
            segment_bytes,
        };
        let inner = py.detach(|| match directory {
            Some(directory) => Buffer::open(&directory, options),
            None => Buffer::in_memory(options),
        });
        Ok(Self { inner: RwLock::new(Some(Arc::new(inner.or_raise()?))) })
    }

    /// Make a group of rollouts of one task; gives its number. Waits for room up to `timeout` seconds.
    #[expect(clippy::too_many_arguments, reason = "each is an argument of the Python method")]
    fn admit(
        &self,
        py: Python<'_>,
        task: &str,
        num_rollouts: u32,
        policy_version: u64,
        priority: i64,
        max_tokens: Option<u64>,
        rollout_timeout: Option<f64>,
        timeout: Option<f64>,
        sync: bool,
    ) -> PyResult<u64> {
        let buffer = self.buffer()?;
        let rollout_timeout = seconds(rollout_timeout)?;
        let admission =
            Admission { task, num_rollouts, policy_version, priority, max_tokens, rollout_timeout };
        let mut last = None;
        let group = in_slices(py, timeout, |slice| {
            match buffer.admit(&admission, Some(slice), commit(sync)) {
                Err(full @ Error::Full { .. }) => {
                    last = Some(full);
                    Ok(None)
                }
                result => result.map(Some),
            }
        })?;
        match (group, last) {
            (Some(group), _) => Ok(group),
            (None, Some(error)) => Err(error).or_raise(),
            (None, None) => unreachable!("an admission is tried once at least"),
        }
    }

    /// How many groups of a version would not be refused for their age.
    fn room(&self, policy_version: u64) -> PyResult<u64> {
        Ok(self.buffer()?.room(policy_version))
    }

    /// Numbers of a group's rollouts.
    fn rollouts(&self, group_id: u64) -> PyResult<Vec<u64>> {
        Ok(self.buffer()?.rollouts(group_id).or_raise()?.collect())
    }

    /// Add tokens to a running rollout.
    #[expect(clippy::too_many_arguments, reason = "each is an argument of the Python method")]
    fn append_tokens(
        &self,
        py: Python<'_>,
        rollout_id: u64,
        ids: PyReadonlyArray1<'_, i32>,
        loss_mask: PyReadonlyArray1<'_, u8>,
        logprobs: PyReadonlyArray1<'_, f32>,
        policy_version: u64,
        ends_turn: bool,
    ) -> PyResult<()> {
        let tokens = Tokens {
            ids: slice(&ids)?,
            loss_mask: slice(&loss_mask)?,
            logprobs: slice(&logprobs)?,
            policy_version,
            ends_turn,
        };
        self.call(py, |buffer| buffer.append_tokens(rollout_id, &tokens))
    }

    /// Write whole rollouts, whose tokens lie one after the other in the arrays.
    fn write(
        &self,
        py: Python<'_>,
        ids: PyReadonlyArray1<'_, i32>,
        loss_mask: PyReadonlyArray1<'_, u8>,
        logprobs: PyReadonlyArray1<'_, f32>,
        rollouts: Vec<WholeRollout>,
    ) -> PyResult<()> {
        let columns = (slice(&ids)?, slice(&loss_mask)?, slice(&logprobs)?);
        let told = rollouts.iter().map(WholeRollout::num_tokens).sum::<usize>();
        if [columns.0.len(), columns.1.len(), columns.2.len()] != [told; 3] {
            return Err(TrajectoryError::new_err(format!(
                "the spans have {told} tokens, the arrays another number"
            )));
        }
        self.call(py, |buffer| write(buffer, columns, &rollouts))
    }

    /// End a rollout with a reward.
    fn finish(
        &self,
        py: Python<'_>,
        rollout_id: u64,
        reward: f64,
        finish_reason: &str,
        extra: &[u8],
        sync: bool,
    ) -> PyResult<()> {
        self.call(py, |buffer| {
            buffer.finish(rollout_id, reward, finish_reason, extra, commit(sync))
        })
    }

    /// End a rollout that cannot go on.
    fn fail(&self, py: Python<'_>, rollout_id: u64, reason: &str, sync: bool) -> PyResult<()> {
        self.call(py, |buffer| buffer.fail(rollout_id, reason, commit(sync)))
    }

    /// Drop the tokens of a running rollout.
    fn restart(&self, py: Python<'_>, rollout_id: u64) -> PyResult<()> {
        self.call(py, |buffer| buffer.restart(rollout_id))
    }

    /// Let a running rollout fail if it has not ended in so many seconds from now.
    fn set_timeout(&self, py: Python<'_>, rollout_id: u64, timeout: Option<f64>) -> PyResult<()> {
        let timeout = seconds(timeout)?;
        self.call(py, |buffer| buffer.set_timeout(rollout_id, timeout))
    }

    /// Forget a group that is not leased.
    fn discard(&self, py: Python<'_>, group_id: u64) -> PyResult<()> {
        self.call(py, |buffer| buffer.discard(group_id, Commit::Wait))
    }

    /// Lease a batch once complete, or exactly these groups; None if there is none after `timeout` seconds.
    fn take(
        &self,
        py: Python<'_>,
        num_groups: usize,
        policy_version: u64,
        timeout: Option<f64>,
        group_ids: Option<Vec<u64>>,
    ) -> PyResult<Option<CoreLease>> {
        let buffer = self.buffer()?;
        let lease = in_slices(py, timeout, |slice| match &group_ids {
            Some(groups) => buffer.take_these(groups, policy_version, Some(slice)),
            None => buffer.take(num_groups, policy_version, Some(slice)),
        });
        Ok(lease?.map(CoreLease::new))
    }

    /// State that the checkpoint that is about to be completed contains these leases.
    fn prepare(&self, py: Python<'_>, lease_ids: Vec<u64>, checkpoint: &str) -> PyResult<()> {
        self.call(py, |buffer| buffer.prepare(&lease_ids, checkpoint))
    }

    /// Make the consumption of leases durable.
    fn ack(&self, py: Python<'_>, lease_ids: Vec<u64>, checkpoint: Option<&str>) -> PyResult<()> {
        self.call(py, |buffer| buffer.ack(&lease_ids, checkpoint))
    }

    /// Give leases back.
    fn release(&self, py: Python<'_>, lease_ids: Vec<u64>) -> PyResult<()> {
        self.call(py, |buffer| buffer.release(&lease_ids))
    }

    /// Go on from a checkpoint: leases that it contains are consumed, all others given back.
    fn recover(
        &self,
        py: Python<'_>,
        checkpoint: Option<&str>,
        policy_version: Option<u64>,
    ) -> PyResult<()> {
        self.call(py, |buffer| buffer.recover(checkpoint, policy_version))
    }

    /// Wait until everything is on disk.
    fn flush(&self, py: Python<'_>) -> PyResult<()> {
        self.call(py, Buffer::flush)
    }

    /// A line about each group that has not been consumed.
    fn groups(&self, py: Python<'_>) -> PyResult<Vec<GroupLine>> {
        let line = |info: glmcore_trajectory::GroupInfo| {
            let state = match info.state {
                GroupState::Running => "running",
                GroupState::Ready => "ready",
                GroupState::Leased => "leased",
            };
            let (num_rollouts, num_done) = (info.num_rollouts, info.num_done);
            (
                info.id,
                info.policy_version,
                info.due_version,
                num_rollouts,
                num_done,
                state,
                info.task,
            )
        };
        Ok(self.call(py, Buffer::groups)?.into_iter().map(line).collect())
    }

    /// Rollout, group, tokens so far and task of each rollout that has not ended.
    fn running(&self, py: Python<'_>) -> PyResult<Vec<(u64, u64, usize, String)>> {
        let running = self.call(py, Buffer::running)?.into_iter();
        Ok(running.map(|line| (line.id, line.group, line.num_tokens, line.task)).collect())
    }

    /// A copy of a rollout as it is now.
    fn sample<'py>(&self, py: Python<'py>, rollout_id: u64) -> PyResult<SampleRow<'py>> {
        let (group, task, rollout) = self.call(py, |buffer| buffer.rollout(rollout_id))?;
        sample_row(py, group, &task, rollout)
    }

    /// Counts by name, and trained tokens by staleness.
    #[expect(clippy::type_complexity, reason = "the wrapper names the parts")]
    fn stats(&self) -> PyResult<(Vec<(&'static str, u64)>, Vec<(u64, u64)>)> {
        let stats = self.buffer()?.stats();
        let counts = vec![
            ("running_groups", stats.running_groups as u64),
            ("ready_groups", stats.ready_groups as u64),
            ("leased_groups", stats.leased_groups as u64),
            ("rollouts", stats.rollouts as u64),
            ("tokens", stats.tokens as u64),
            ("consumed_groups", stats.consumed_groups),
            ("failed_rollouts", stats.failed_rollouts),
            ("max_staleness_seen", stats.staleness.keys().next_back().copied().unwrap_or(0)),
            ("bytes_on_disk", stats.bytes_on_disk),
            ("commits", stats.commits),
        ];
        Ok((counts, stats.staleness.into_iter().collect()))
    }

    /// Attempts, passes, failures and sum of rewards of a task, or None.
    fn task_stats(&self, task: &str) -> PyResult<Option<Counts>> {
        Ok(self.buffer()?.task_stats(task).map(counts))
    }

    /// The same of all tasks.
    fn tasks(&self) -> PyResult<Vec<(String, Counts)>> {
        let tasks = self.buffer()?.tasks().into_iter();
        Ok(tasks.map(|(task, stats)| (task, counts(stats))).collect())
    }

    /// Version, checkpoint and groups of each consumed lease, in order.
    fn order(&self, py: Python<'_>) -> PyResult<Vec<(u64, String, Vec<TakenGroupLine>)>> {
        let lines = self.call(py, Buffer::order)?.into_iter().map(|taken| {
            let groups = taken.groups.into_iter().map(taken_group).collect();
            (taken.policy_version, taken.checkpoint, groups)
        });
        Ok(lines.collect())
    }

    /// Let the directory go once everything is on disk. Further calls are errors.
    fn close(&self, py: Python<'_>) -> PyResult<()> {
        let Some(buffer) = self.inner.write().expect("no holder panics").take() else {
            return Ok(());
        };
        py.detach(|| buffer.flush()).or_raise()
    }
}

fn taken_group(group: glmcore_trajectory::TakenGroup) -> TakenGroupLine {
    let rollout = |rollout: glmcore_trajectory::TakenRollout| {
        let (reward, failed) = match rollout.outcome {
            glmcore_trajectory::Outcome::Finished { reward, .. } => (Some(reward), None),
            glmcore_trajectory::Outcome::Failed { reason } => (None, Some(reason)),
            glmcore_trajectory::Outcome::Running => (None, None),
        };
        (rollout.id, reward, failed, rollout.spans)
    };
    let rollouts = group.rollouts.into_iter().map(rollout).collect();
    (group.id, group.task, group.policy_version, rollouts)
}

fn counts(stats: glmcore_trajectory::TaskStats) -> Counts {
    (stats.attempts, stats.passes, stats.failures, stats.reward_sum)
}

fn commit(sync: bool) -> Commit {
    if sync { Commit::Wait } else { Commit::Later }
}

fn seconds(timeout: Option<f64>) -> PyResult<Option<Duration>> {
    let convert = |seconds: f64| {
        Duration::try_from_secs_f64(seconds.max(0.0))
            .map_err(|_| PyValueError::new_err(format!("{seconds} s is no time limit")))
    };
    timeout.map(convert).transpose()
}

/// Waits without the GIL in slices, looking for signals in between.
fn in_slices<T: Send>(
    py: Python<'_>,
    timeout: Option<f64>,
    mut call: impl FnMut(Duration) -> Result<Option<T>, Error> + Send,
) -> PyResult<Option<T>> {
    let until = seconds(timeout)?.map(|timeout| Instant::now() + timeout);
    loop {
        let left = until.map(|until| until.saturating_duration_since(Instant::now()));
        let slice = left.unwrap_or(SIGNAL_CHECK).min(SIGNAL_CHECK);
        if let Some(found) = py.detach(|| call(slice)).or_raise()? {
            return Ok(Some(found));
        }
        py.check_signals()?;
        if left == Some(Duration::ZERO) {
            return Ok(None);
        }
    }
}

pub(crate) fn register(module: &Bound<'_, PyModule>) -> PyResult<()> {
    module.add_class::<PyTrajectoryBuffer>()
}

//! Binding of `glmcore-trajectory`.

use std::path::PathBuf;
use std::sync::{Arc, RwLock};
use std::time::{Duration, Instant};

use glmcore_trajectory::{Buffer, Group, GroupState, Limits, Outcome, Rollout, Tokens};
use numpy::{IntoPyArray, PyArray1, PyReadonlyArray1};
use pyo3::prelude::*;

use crate::error::{OrRaise, TrajectoryError};

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
}

/// Group, version at admission, rollouts, ended rollouts, state, task.
type GroupLine = (u64, u64, usize, usize, &'static str, String);

/// Group, rollout, task, ids, loss mask, log-probabilities, versions, reward, finish reason, failure.
type SampleRow<'py> = (
    u64,
    u64,
    String,
    Bound<'py, PyArray1<i32>>,
    Bound<'py, PyArray1<u8>>,
    Bound<'py, PyArray1<f32>>,
    Bound<'py, PyArray1<i32>>,
    f64,
    Option<String>,
    Option<String>,
);

#[pymethods]
impl PyTrajectoryBuffer {
    /// The buffer in a directory, or in memory for None.
    #[new]
    fn new(
        py: Python<'_>,
        directory: Option<PathBuf>,
        capacity: usize,
        max_staleness: u64,
        groups_per_step: usize,
    ) -> PyResult<Self> {
        let limits = Limits { capacity, max_staleness, groups_per_step };
        let inner = py.detach(|| match directory {
            Some(directory) => Buffer::open(&directory, limits),
            None => Buffer::in_memory(limits),
        });
        Ok(Self { inner: RwLock::new(Some(Arc::new(inner.or_raise()?))) })
    }

    /// Make a group of rollouts of one task; gives its number.
    fn admit(
        &self,
        py: Python<'_>,
        task: &str,
        num_rollouts: u32,
        policy_version: u64,
    ) -> PyResult<u64> {
        let buffer = self.buffer()?;
        py.detach(|| buffer.admit(task, num_rollouts, policy_version)).or_raise()
    }

    /// Numbers of a group's rollouts.
    fn rollouts(&self, group_id: u64) -> PyResult<Vec<u64>> {
        Ok(self.buffer()?.rollouts(group_id).or_raise()?.collect())
    }

    /// Add tokens to a running rollout.
    fn append_tokens(
        &self,
        py: Python<'_>,
        rollout_id: u64,
        ids: PyReadonlyArray1<'_, i32>,
        loss_mask: PyReadonlyArray1<'_, u8>,
        logprobs: PyReadonlyArray1<'_, f32>,
        policy_version: u64,
    ) -> PyResult<()> {
        let strided = |_| {
            TrajectoryError::new_err("arrays must be C-contiguous: pass np.ascontiguousarray(...)")
        };
        let tokens = Tokens {
            ids: ids.as_slice().map_err(strided)?,
            loss_mask: loss_mask.as_slice().map_err(strided)?,
            logprobs: logprobs.as_slice().map_err(strided)?,
        };
        let buffer = self.buffer()?;
        py.detach(|| buffer.append_tokens(rollout_id, &tokens, policy_version)).or_raise()
    }

    /// End a rollout with a reward.
    fn finish(
        &self,
        py: Python<'_>,
        rollout_id: u64,
        reward: f64,
        finish_reason: &str,
    ) -> PyResult<()> {
        let buffer = self.buffer()?;
        py.detach(|| buffer.finish(rollout_id, reward, finish_reason)).or_raise()
    }

    /// End a rollout that cannot go on.
    fn fail(&self, py: Python<'_>, rollout_id: u64, reason: &str) -> PyResult<()> {
        let buffer = self.buffer()?;
        py.detach(|| buffer.fail(rollout_id, reason)).or_raise()
    }

    /// Forget a group that is not leased.
    fn discard(&self, py: Python<'_>, group_id: u64) -> PyResult<()> {
        let buffer = self.buffer()?;
        py.detach(|| buffer.discard(group_id)).or_raise()
    }

    /// Lease the oldest groups once complete; None if they are not after `timeout` seconds.
    fn take<'py>(
        &self,
        py: Python<'py>,
        num_groups: usize,
        policy_version: u64,
        timeout: Option<f64>,
    ) -> PyResult<Option<Vec<SampleRow<'py>>>> {
        let buffer = self.buffer()?;
        let deadline =
            timeout.map(|seconds| Instant::now() + Duration::from_secs_f64(seconds.max(0.0)));
        loop {
            let left = deadline.map(|deadline| deadline.saturating_duration_since(Instant::now()));
            let wait = left.unwrap_or(SIGNAL_CHECK).min(SIGNAL_CHECK);
            if let Some(groups) =
                py.detach(|| buffer.take(num_groups, policy_version, Some(wait))).or_raise()?
            {
                return Ok(Some(groups.into_iter().flat_map(|group| rows(py, group)).collect()));
            }
            py.check_signals()?;
            if left == Some(Duration::ZERO) {
                return Ok(None);
            }
        }
    }

    /// Make the consumption of leased groups durable.
    fn ack(&self, py: Python<'_>, group_ids: Vec<u64>) -> PyResult<()> {
        let buffer = self.buffer()?;
        py.detach(|| buffer.ack(&group_ids)).or_raise()
    }

    /// Give leased groups back.
    fn release(&self, group_ids: Vec<u64>) -> PyResult<()> {
        self.buffer()?.release(&group_ids).or_raise()
    }

    /// A line about each group that has not been consumed.
    fn groups(&self) -> PyResult<Vec<GroupLine>> {
        let line = |info: glmcore_trajectory::GroupInfo| {
            let state = match info.state {
                GroupState::Running => "running",
                GroupState::Ready => "ready",
                GroupState::Leased => "leased",
            };
            (info.id, info.policy_version, info.num_rollouts, info.num_done, state, info.task)
        };
        Ok(self.buffer()?.groups().into_iter().map(line).collect())
    }

    /// Counts by name.
    fn stats(&self) -> PyResult<Vec<(&'static str, u64)>> {
        let stats = self.buffer()?.stats();
        Ok(vec![
            ("running_groups", stats.running_groups as u64),
            ("ready_groups", stats.ready_groups as u64),
            ("leased_groups", stats.leased_groups as u64),
            ("rollouts", stats.rollouts as u64),
            ("tokens", stats.tokens as u64),
            ("consumed_groups", stats.consumed_groups),
            ("failed_rollouts", stats.failed_rollouts),
            ("max_staleness_seen", stats.max_staleness_seen),
            ("bytes_on_disk", stats.bytes_on_disk),
        ])
    }

    /// Let the directory go. Further calls are errors.
    fn close(&self) {
        *self.inner.write().expect("no holder panics") = None;
    }
}

fn rows(py: Python<'_>, group: Group) -> impl Iterator<Item = SampleRow<'_>> {
    let Group { id, task, rollouts, .. } = group;
    rollouts.into_iter().map(move |rollout| row(py, id, task.clone(), rollout))
}

fn row(py: Python<'_>, group: u64, task: String, rollout: Rollout) -> SampleRow<'_> {
    let versions: Vec<i32> = rollout
        .versions
        .iter()
        .map(|&version| i32::try_from(version).unwrap_or(i32::MAX))
        .collect();
    let (reward, finish_reason, failed) = match rollout.outcome {
        Outcome::Finished { reward, reason } => (reward, Some(reason), None),
        Outcome::Failed { reason } => (0.0, None, Some(reason)),
        Outcome::Running => unreachable!("only complete groups are leased"),
    };
    (
        group,
        rollout.id,
        task,
        rollout.ids.into_pyarray(py),
        rollout.loss_mask.into_pyarray(py),
        rollout.logprobs.into_pyarray(py),
        versions.into_pyarray(py),
        reward,
        finish_reason,
        failed,
    )
}

pub(crate) fn register(module: &Bound<'_, PyModule>) -> PyResult<()> {
    module.add_class::<PyTrajectoryBuffer>()
}

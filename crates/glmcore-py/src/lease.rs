//! Binding of `glmcore-trajectory`: leases, whose samples are views of the memory that the buffer filled.

use std::sync::Arc;

use glmcore_trajectory::{Group, Lease, Outcome, Rollout};
use numpy::PyArray1;
use pyo3::prelude::*;
use pyo3::types::{PyBytes, PyString};

use crate::view::view;

/// Groups handed out for training.
#[pyclass(frozen, module = "glmcore._core")]
pub(crate) struct CoreLease(Lease);

/// Keeps the memory of rollouts alive for the arrays that look at it.
#[pyclass(frozen, module = "glmcore._core")]
struct CoreRollouts(Owned);

enum Owned {
    Group(Arc<Group>),
    Rollout(Box<Rollout>),
}

impl CoreRollouts {
    fn rollouts(&self) -> &[Rollout] {
        match &self.0 {
            Owned::Group(group) => &group.rollouts,
            Owned::Rollout(rollout) => std::slice::from_ref(rollout),
        }
    }
}

/// Ids, loss mask, log-probabilities, versions, turns.
type Arrays<'py> = (
    Bound<'py, PyArray1<i32>>,
    Bound<'py, PyArray1<u8>>,
    Bound<'py, PyArray1<f32>>,
    Bound<'py, PyArray1<i32>>,
    Bound<'py, PyArray1<i32>>,
);

/// Group, rollout, task, arrays, reward, finish reason, failure, extra: in the order of the fields of `Sample`.
pub(crate) type SampleRow<'py> = (
    u64,
    u64,
    Bound<'py, PyString>,
    Bound<'py, PyArray1<i32>>,
    Bound<'py, PyArray1<u8>>,
    Bound<'py, PyArray1<f32>>,
    Bound<'py, PyArray1<i32>>,
    f64,
    Option<Bound<'py, PyString>>,
    Option<Bound<'py, PyString>>,
    Bound<'py, PyArray1<i32>>,
    Bound<'py, PyBytes>,
);

#[pymethods]
impl CoreLease {
    /// Its number.
    #[getter]
    fn id(&self) -> u64 {
        self.0.id
    }

    /// Version of the trainer that took it.
    #[getter]
    fn policy_version(&self) -> u64 {
        self.0.policy_version
    }

    /// Numbers of its groups.
    #[getter]
    fn group_ids(&self) -> Vec<u64> {
        self.0.groups.iter().map(|group| group.id).collect()
    }

    /// All rollouts, group by group.
    fn samples<'py>(&self, py: Python<'py>) -> PyResult<Vec<SampleRow<'py>>> {
        let mut rows = Vec::with_capacity(self.0.groups.iter().map(|g| g.rollouts.len()).sum());
        for group in &self.0.groups {
            let owner = Bound::new(py, CoreRollouts(Owned::Group(group.clone())))?;
            let task = PyString::new(py, &group.task);
            rows.extend((0..group.rollouts.len()).map(|index| row(&owner, index, group.id, &task)));
        }
        Ok(rows)
    }
}

impl CoreLease {
    pub(crate) fn new(lease: Lease) -> Self {
        Self(lease)
    }
}

/// A rollout that nobody else has.
pub(crate) fn sample_row<'py>(
    py: Python<'py>,
    group: u64,
    task: &str,
    rollout: Rollout,
) -> PyResult<SampleRow<'py>> {
    let owner = Bound::new(py, CoreRollouts(Owned::Rollout(Box::new(rollout))))?;
    Ok(row(&owner, 0, group, &PyString::new(py, task)))
}

fn row<'py>(
    owner: &Bound<'py, CoreRollouts>,
    index: usize,
    group: u64,
    task: &Bound<'py, PyString>,
) -> SampleRow<'py> {
    let py = owner.py();
    let rollout = &owner.get().rollouts()[index];
    let text = |text: &str| Some(PyString::intern(py, text)); // there are few reasons
    let (reward, finish_reason, failed) = match &rollout.outcome {
        Outcome::Finished { reward, reason } => (*reward, text(reason), None),
        Outcome::Failed { reason } => (0.0, None, Some(PyString::new(py, reason))),
        Outcome::Running => (0.0, None, None),
    };
    let (ids, loss_mask, logprobs, versions, turns) = arrays(owner, rollout);
    let extra = PyBytes::new(py, &rollout.extra);
    let (task, id) = (task.clone(), rollout.id);
    (
        group,
        id,
        task,
        ids,
        loss_mask,
        logprobs,
        versions,
        reward,
        finish_reason,
        failed,
        turns,
        extra,
    )
}

fn arrays<'py>(owner: &Bound<'py, CoreRollouts>, rollout: &Rollout) -> Arrays<'py> {
    let keep = || owner.clone().into_any();
    // SAFETY: the owner holds the rollout, frozen, and a group that is leased does not change any more.
    unsafe {
        (
            view(&rollout.ids, keep()),
            view(&rollout.loss_mask, keep()),
            view(&rollout.logprobs, keep()),
            view(&rollout.versions, keep()),
            view(&rollout.turns, keep()),
        )
    }
}

pub(crate) fn register(module: &Bound<'_, PyModule>) -> PyResult<()> {
    module.add_class::<CoreLease>()
}

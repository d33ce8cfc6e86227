//! Binding of the Megatron writer of `glmcore-data`.

use std::path::PathBuf;
use std::sync::{Mutex, PoisonError};

use glmcore_data::MegatronWriter;
use numpy::PyReadonlyArray1;
use pyo3::prelude::*;

use crate::error::{DataError, OrRaise};
use crate::json_lines::bounds;

/// Writes one Megatron data set.
#[pyclass(frozen, module = "glmcore._core")]
struct CoreMegatronWriter(Mutex<Option<MegatronWriter>>); // none once finished or dropped

#[pymethods]
impl CoreMegatronWriter {
    /// Begin a data set.
    #[new]
    fn new(prefix: PathBuf, vocab_size: u32) -> PyResult<Self> {
        let writer = MegatronWriter::create(prefix, vocab_size).or_raise()?;
        Ok(Self(Mutex::new(Some(writer))))
    }

    /// Add a document.
    fn append(&self, py: Python<'_>, ids: PyReadonlyArray1<'_, i64>) -> PyResult<()> {
        let ids = ids.as_slice().map_err(|_| {
            DataError::new_err("ids must be C-contiguous: pass np.ascontiguousarray(ids)")
        })?;
        py.detach(|| match &mut *self.0.lock().unwrap_or_else(PoisonError::into_inner) {
            Some(writer) => writer.append(ids).or_raise(),
            None => Err(closed()),
        })
    }

    /// Add many documents, each with `end` behind it.
    fn append_batch(
        &self,
        py: Python<'_>,
        ids: PyReadonlyArray1<'_, i32>,
        offsets: PyReadonlyArray1<'_, i64>,
        end: Option<i32>,
    ) -> PyResult<()> {
        let ids = ids.as_slice().map_err(|_| {
            DataError::new_err("ids must be C-contiguous: pass np.ascontiguousarray(ids)")
        })?;
        let offsets = bounds(&offsets, ids.len())?;
        py.detach(|| match &mut *self.0.lock().unwrap_or_else(PoisonError::into_inner) {
            Some(writer) => writer.append_batch(ids, &offsets, end).or_raise(),
            None => Err(closed()),
        })
    }

    /// Complete the files and give them their names.
    fn finish(&self, py: Python<'_>) -> PyResult<()> {
        py.detach(|| match self.take() {
            Some(writer) => writer.finish().or_raise(),
            None => Err(closed()),
        })
    }

    /// Remove what was written, unless finished.
    fn abort(&self, py: Python<'_>) {
        py.detach(|| drop(self.take()));
    }
}

impl CoreMegatronWriter {
    fn take(&self) -> Option<MegatronWriter> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).take()
    }
}

fn closed() -> PyErr {
    DataError::new_err("the data set is closed: create another MegatronWriter")
}

pub(crate) fn register(module: &Bound<'_, PyModule>) -> PyResult<()> {
    module.add_class::<CoreMegatronWriter>()
}

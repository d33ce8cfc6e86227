//! XXH3 of 128 bits: a checksum at the speed of memory for what must not change on the way.

use std::sync::{Mutex, MutexGuard};

use numpy::PyReadonlyArray1;
use pyo3::exceptions::PyValueError;
use pyo3::prelude::*;
use xxhash_rust::xxh3::Xxh3;

/// XXH3-128 of the bytes that were given to it.
#[pyclass(name = "Xxh3", module = "glmcore._core", frozen)]
pub(crate) struct PyXxh3(Mutex<Xxh3>);

impl PyXxh3 {
    pub(crate) fn lock(&self) -> MutexGuard<'_, Xxh3> {
        self.0.lock().expect("no holder of the lock panics")
    }
}

#[pymethods]
impl PyXxh3 {
    #[new]
    fn new() -> Self {
        Self(Mutex::new(Xxh3::new()))
    }

    /// Add bytes, C-contiguous.
    fn update(&self, py: Python<'_>, data: PyReadonlyArray1<'_, u8>) -> PyResult<()> {
        let bytes =
            data.as_slice().map_err(|_| PyValueError::new_err("data must be C-contiguous"))?;
        py.detach(|| self.lock().update(bytes));
        Ok(())
    }

    /// 32 hexadecimal digits, as `xxh128sum` prints them.
    fn hexdigest(&self) -> String {
        format!("{:032x}", self.lock().digest128())
    }
}

pub(crate) fn register(module: &Bound<'_, PyModule>) -> PyResult<()> {
    module.add_class::<PyXxh3>()
}

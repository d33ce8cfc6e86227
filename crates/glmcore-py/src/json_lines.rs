//! Binding of the JSON lines of `glmcore-data`, from which the tokenizer is fed without Python strings between.

use std::path::PathBuf;

use glmcore_data::JsonLines;
use glmcore_tokenizer::{EncodedBatch, Special};
use numpy::{IntoPyArray, PyArray1, PyReadonlyArray1};
use pyo3::prelude::*;

use crate::error::{DataError, OrRaise};
use crate::tokenizer::PyTokenizer;

/// A file of JSON objects with a text each.
#[pyclass(frozen, module = "glmcore._core")]
struct CoreJsonLines(JsonLines);

/// Ids of texts, their bounds, and the byte where the lines end.
type EncodedLines<'py> = (Bound<'py, PyArray1<i32>>, Bound<'py, PyArray1<i64>>, usize);

#[pymethods]
impl CoreJsonLines {
    /// Map a file.
    #[new]
    fn new(path: PathBuf, field: String) -> PyResult<Self> {
        JsonLines::open(path, field).or_raise().map(Self)
    }

    /// Bytes of the file.
    #[getter]
    fn num_bytes(&self) -> usize {
        self.0.num_bytes()
    }

    /// Ids of the texts of the lines from byte `start` on that hold `min_bytes`, on `num_threads` threads.
    fn encode<'py>(
        &self,
        py: Python<'py>,
        tokenizer: &PyTokenizer,
        start: usize,
        min_bytes: usize,
        num_threads: usize,
    ) -> PyResult<EncodedLines<'py>> {
        let tokenizer = tokenizer.shared();
        let (batch, end) = py.detach(|| {
            let end = self.0.end_of_lines(start, min_bytes);
            let texts = self.0.texts(start..end, num_threads).or_raise()?;
            let texts: Vec<&str> = texts.iter().collect();
            PyResult::Ok((tokenizer.encode_batch(&texts, Special::AsText, num_threads), end))
        })?;
        let EncodedBatch { ids, offsets } = batch;
        let place = |offset| i64::try_from(offset).expect("memory is below 2^63");
        let offsets: Vec<i64> = offsets.into_iter().map(place).collect();
        let ids: Vec<i32> = bytemuck::cast_vec(ids); // vocabularies are below 2^24
        Ok((ids.into_pyarray(py), offsets.into_pyarray(py), end))
    }
}

/// Bounds of the documents of a batch, which rise within `num_ids`.
pub(crate) fn bounds(offsets: &PyReadonlyArray1<'_, i64>, num_ids: usize) -> PyResult<Vec<usize>> {
    let offsets = offsets.as_array();
    let wrong = || DataError::new_err("offsets must not fall, from 0 up to the number of ids");
    let bounds: Result<Vec<usize>, _> = offsets.iter().map(|&at| usize::try_from(at)).collect();
    let bounds = bounds.map_err(|_| wrong())?;
    if bounds.is_sorted() && bounds.last().is_none_or(|&last| last <= num_ids) {
        Ok(bounds)
    } else {
        Err(wrong())
    }
}

pub(crate) fn register(module: &Bound<'_, PyModule>) -> PyResult<()> {
    module.add_class::<CoreJsonLines>()
}

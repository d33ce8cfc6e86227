//! Binding of the streaming best fit of `glmcore-packing`.

use std::sync::{Mutex, MutexGuard, PoisonError};

use glmcore_packing::{BestFitStream, Piece};
use numpy::{IntoPyArray, PyArray1, PyReadonlyArray1};
use pyo3::prelude::*;

use crate::error::{OrRaise, PackingError};
use crate::packing::{Pieces, contiguous, count, parse_too_long};

/// Document, start and length of pieces.
type PieceArrays<'py> =
    (Bound<'py, PyArray1<u32>>, Bound<'py, PyArray1<u32>>, Bound<'py, PyArray1<u32>>);

/// Packs documents that keep coming.
#[pyclass(frozen, module = "glmcore._core")]
struct CoreBestFitStream(Mutex<BestFitStream>);

#[pymethods]
impl CoreBestFitStream {
    /// An empty stream.
    #[new]
    fn new(capacity: i64, window: i64, too_long: &str, crop: bool) -> PyResult<Self> {
        let (capacity, window) = (count("capacity", capacity)?, count("window", window)?);
        let stream = BestFitStream::new(capacity, window, parse_too_long(too_long)?, crop);
        stream.or_raise().map(|stream| Self(Mutex::new(stream)))
    }

    /// Add documents; gives the rows that leave the buffer.
    fn push(&self, py: Python<'_>, lengths: PyReadonlyArray1<'_, u32>) -> PyResult<Pieces> {
        let lengths = contiguous(&lengths, "lengths")?;
        py.detach(|| self.lock().push(lengths)).or_raise().map(Pieces)
    }

    /// The rows of all pieces that wait.
    fn finish(&self, py: Python<'_>) -> Pieces {
        Pieces(py.detach(|| self.lock().finish()))
    }

    /// Pieces in the buffer, from the oldest to the newest.
    fn waiting<'py>(&self, py: Python<'py>) -> PieceArrays<'py> {
        let pieces = py.detach(|| self.lock().waiting());
        let array =
            |part: fn(&Piece) -> u32| pieces.iter().map(part).collect::<Vec<_>>().into_pyarray(py);
        (array(|piece| piece.doc), array(|piece| piece.start), array(|piece| piece.len))
    }

    /// Put an empty stream where another was.
    fn resume(
        &self,
        doc: PyReadonlyArray1<'_, u32>,
        start: PyReadonlyArray1<'_, u32>,
        length: PyReadonlyArray1<'_, u32>,
        next_doc: u32,
    ) -> PyResult<()> {
        let (doc, start) = (contiguous(&doc, "doc")?, contiguous(&start, "start")?);
        let length = contiguous(&length, "length")?;
        if doc.len() != start.len() || doc.len() != length.len() {
            return Err(PackingError::new_err("doc, start and length must be of one size"));
        }
        let pieces: Vec<Piece> = doc
            .iter()
            .zip(start)
            .zip(length)
            .map(|((&doc, &start), &len)| Piece { doc, start, len })
            .collect();
        self.lock().resume(&pieces, next_doc).or_raise()
    }

    /// Number of the next document, modulo 2^32.
    #[getter]
    fn next_doc(&self) -> u32 {
        self.lock().next_doc()
    }

    /// Rows, padding tokens, cropped pieces, lost tokens and documents longer than a row, so far.
    fn report(&self) -> (u64, u64, u64, u64, u64) {
        let report = self.lock().report();
        (
            report.num_rows,
            report.num_padding_tokens,
            report.num_cropped,
            report.num_lost_tokens,
            report.num_too_long,
        )
    }
}

impl CoreBestFitStream {
    fn lock(&self) -> MutexGuard<'_, BestFitStream> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

pub(crate) fn register(module: &Bound<'_, PyModule>) -> PyResult<()> {
    module.add_class::<CoreBestFitStream>()
}

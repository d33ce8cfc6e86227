//! Binding of `glmcore-packing`.

use glmcore_packing::{PackedBatch, Pieces, Ragged};
use numpy::{IntoPyArray, PyArray1, PyReadonlyArray1, PyUntypedArrayMethods};
use pyo3::prelude::*;

use crate::data::PyShards;
use crate::error::{OrRaise, PackingError};

/// Pieces of documents by row.
#[pyclass(frozen, name = "CorePieces", module = "glmcore._core")]
struct PyPieces {
    inner: Pieces,
}

#[pymethods]
impl PyPieces {
    /// Number of rows.
    #[getter]
    fn num_rows(&self) -> usize {
        self.inner.num_rows()
    }

    /// Document, first token and length of each piece, and where each row starts among them.
    fn arrays<'py>(&self, py: Python<'py>) -> [Bound<'py, PyArray1<u32>>; 4] {
        let pieces = &self.inner;
        [pieces.doc(), pieces.start(), pieces.len(), pieces.row_offsets()]
            .map(|array| array.to_vec().into_pyarray(py))
    }

    /// The given rows, in the given order.
    fn select_rows(&self, rows: PyReadonlyArray1<'_, u32>) -> PyResult<Self> {
        let inner = self.inner.select_rows(slice(&rows, "rows")?).or_raise()?;
        Ok(Self { inner })
    }

    /// The batch of some rows, with documents end to end in `ids`.
    fn fill<'py>(
        &self,
        py: Python<'py>,
        documents: Documents<'py>,
        rows: (usize, usize),
        capacity: u32,
        pad_id: i32,
    ) -> PyResult<Arrays<'py>> {
        let (ids, offsets, loss_mask) = documents;
        let mask = loss_mask.as_ref().map(|mask| slice(mask, "loss_mask")).transpose()?;
        let documents =
            Ragged::new(slice(&ids, "ids")?, slice(&offsets, "offsets")?, mask).or_raise()?;
        let copy = |piece, ids: &mut [i32], mask: &mut [u8]| documents.copy(piece, ids, mask);
        let batch = py
            .detach(|| glmcore_packing::fill(&self.inner, rows.0..rows.1, capacity, pad_id, copy))
            .or_raise()?;
        Ok(arrays(py, batch))
    }

    /// The batch of some rows, with document i being document `document[i]` of `shards[source[i]]`.
    #[expect(clippy::too_many_arguments, reason = "a binding passes what Python has")]
    fn fill_from_shards<'py>(
        &self,
        py: Python<'py>,
        shards: Vec<PyRef<'py, PyShards>>,
        source: PyReadonlyArray1<'py, u16>,
        document: PyReadonlyArray1<'py, u64>,
        rows: (usize, usize),
        capacity: u32,
        pad_id: i32,
    ) -> PyResult<Arrays<'py>> {
        let (source, document) = (slice(&source, "source")?, slice(&document, "document")?);
        let shards: Vec<_> = shards.iter().map(|shards| &*shards.inner).collect();
        let copy = |piece: glmcore_packing::Piece, ids: &mut [i32], mask: &mut [u8]| {
            let drawn = piece.doc as usize;
            let shards = shards[usize::from(source[drawn])];
            shards.copy(document[drawn], piece.start, ids, mask).map_err(FillError::Data)
        };
        let batch = py
            .detach(|| glmcore_packing::fill(&self.inner, rows.0..rows.1, capacity, pad_id, copy));
        let batch = batch.map_err(|error| match error {
            FillError::Packing(error) => Err::<(), _>(error).or_raise().expect_err("an error"),
            FillError::Data(error) => Err::<(), _>(error).or_raise().expect_err("an error"),
        })?;
        Ok(arrays(py, batch))
    }
}

/// Ids of all documents, their bounds, and which are learned.
type Documents<'py> =
    (PyReadonlyArray1<'py, i32>, PyReadonlyArray1<'py, i64>, Option<PyReadonlyArray1<'py, u8>>);

/// `input_ids`, `labels`, `position_ids`, `loss_mask`, `cu_seqlens`, `max_seqlen`.
type Arrays<'py> = (
    Bound<'py, PyArray1<i32>>,
    Bound<'py, PyArray1<i32>>,
    Bound<'py, PyArray1<i32>>,
    Bound<'py, PyArray1<u8>>,
    Bound<'py, PyArray1<i32>>,
    i32,
);

/// What can go wrong when rows are filled from shards.
enum FillError {
    Packing(glmcore_packing::Error),
    Data(glmcore_data::Error),
}

impl From<glmcore_packing::Error> for FillError {
    fn from(error: glmcore_packing::Error) -> Self {
        Self::Packing(error)
    }
}

fn arrays(py: Python<'_>, batch: PackedBatch) -> Arrays<'_> {
    (
        batch.input_ids.into_pyarray(py),
        batch.labels.into_pyarray(py),
        batch.position_ids.into_pyarray(py),
        batch.loss_mask.into_pyarray(py),
        batch.cu_seqlens.into_pyarray(py),
        batch.max_seqlen,
    )
}

fn slice<'a, T: numpy::Element>(
    array: &'a PyReadonlyArray1<'_, T>,
    name: &str,
) -> PyResult<&'a [T]> {
    debug_assert_eq!(array.ndim(), 1);
    array.as_slice().map_err(|_| {
        PackingError::new_err(format!(
            "{name} must be C-contiguous: pass np.ascontiguousarray({name})"
        ))
    })
}

/// Row of each document, documents by row, pieces: best-fit decreasing.
type Packed<'py> = (Bound<'py, PyArray1<u32>>, Bound<'py, PyArray1<u32>>, PyPieces);

/// Pack whole documents by best-fit decreasing.
#[pyfunction]
fn pack_best_fit<'py>(
    py: Python<'py>,
    lengths: PyReadonlyArray1<'py, u32>,
    capacity: u32,
) -> PyResult<Packed<'py>> {
    let lengths = slice(&lengths, "lengths")?;
    let (packing, pieces) = py
        .detach(|| {
            let packing = glmcore_packing::pack_best_fit(lengths, capacity)?;
            let pieces = packing.pieces(lengths)?;
            Ok::<_, glmcore_packing::Error>((packing, pieces))
        })
        .or_raise()?;
    let (row_of, order) = (packing.row_of().to_vec(), packing.order().to_vec());
    Ok((row_of.into_pyarray(py), order.into_pyarray(py), PyPieces { inner: pieces }))
}

/// Pack by best-fit decreasing after cutting documents longer than `capacity`.
#[pyfunction]
fn pack_best_fit_split(
    py: Python<'_>,
    lengths: PyReadonlyArray1<'_, u32>,
    capacity: u32,
) -> PyResult<PyPieces> {
    let lengths = slice(&lengths, "lengths")?;
    let inner = py.detach(|| glmcore_packing::pack_best_fit_split(lengths, capacity)).or_raise()?;
    Ok(PyPieces { inner })
}

/// Lay documents end to end and cut at every row's end.
#[pyfunction]
fn pack_concat(
    py: Python<'_>,
    lengths: PyReadonlyArray1<'_, u32>,
    capacity: u32,
) -> PyResult<PyPieces> {
    let lengths = slice(&lengths, "lengths")?;
    let inner = py.detach(|| glmcore_packing::pack_concat(lengths, capacity)).or_raise()?;
    Ok(PyPieces { inner })
}

/// Rank of each item, the costliest first to the rank with the least work.
#[pyfunction]
fn balance<'py>(
    py: Python<'py>,
    costs: PyReadonlyArray1<'py, f64>,
    num_ranks: u32,
) -> PyResult<Bound<'py, PyArray1<u32>>> {
    let costs = slice(&costs, "costs")?;
    Ok(py.detach(|| glmcore_packing::balance(costs, num_ranks)).or_raise()?.into_pyarray(py))
}

pub(crate) fn register(module: &Bound<'_, PyModule>) -> PyResult<()> {
    module.add_class::<PyPieces>()?;
    module.add_function(wrap_pyfunction!(pack_best_fit, module)?)?;
    module.add_function(wrap_pyfunction!(pack_best_fit_split, module)?)?;
    module.add_function(wrap_pyfunction!(pack_concat, module)?)?;
    module.add_function(wrap_pyfunction!(balance, module)?)
}

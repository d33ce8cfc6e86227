//! Binding of `glmcore-packing`.

use glmcore_packing::{PackedBatch, Ragged};
use numpy::{Element, IntoPyArray, PyArray1, PyReadonlyArray1};
use pyo3::prelude::*;

use crate::error::{OrRaise, PackingError};
use crate::view::view;

/// Input ids, labels, position ids, loss mask, document bounds and longest segment.
pub(crate) type BatchArrays<'py> = (
    Bound<'py, PyArray1<i32>>,
    Bound<'py, PyArray1<i32>>,
    Bound<'py, PyArray1<i32>>,
    Bound<'py, PyArray1<u8>>,
    Bound<'py, PyArray1<i32>>,
    i32,
);

/// A row for every document.
#[pyclass(frozen, module = "glmcore._core")]
struct Packing(glmcore_packing::Packing);

#[pymethods]
impl Packing {
    /// Row of each document.
    #[getter]
    fn row_of<'py>(slf: &Bound<'py, Self>) -> Bound<'py, PyArray1<u32>> {
        // SAFETY: the class is frozen and its vectors never change.
        unsafe { view(slf.get().0.row_of(), slf.clone().into_any()) }
    }

    /// Documents by row, then by position in the row.
    #[getter]
    fn order<'py>(slf: &Bound<'py, Self>) -> Bound<'py, PyArray1<u32>> {
        // SAFETY: the class is frozen and its vectors never change.
        unsafe { view(slf.get().0.order(), slf.clone().into_any()) }
    }

    /// Where each row starts in `order`, and at the end the number of documents.
    #[getter]
    fn row_offsets<'py>(slf: &Bound<'py, Self>) -> Bound<'py, PyArray1<u32>> {
        // SAFETY: the class is frozen and its vectors never change.
        unsafe { view(slf.get().0.row_offsets(), slf.clone().into_any()) }
    }

    /// Number of rows in use.
    #[getter]
    fn num_rows(&self) -> usize {
        self.0.num_rows()
    }
}

/// Pieces of documents by row.
#[pyclass(frozen, module = "glmcore._core")]
pub(crate) struct Pieces(pub(crate) glmcore_packing::Pieces);

#[pymethods]
impl Pieces {
    /// Document of each piece.
    #[getter]
    fn doc<'py>(slf: &Bound<'py, Self>) -> Bound<'py, PyArray1<u32>> {
        // SAFETY: the class is frozen and its vectors never change.
        unsafe { view(slf.get().0.doc(), slf.clone().into_any()) }
    }

    /// First token of each piece within its document.
    #[getter]
    fn start<'py>(slf: &Bound<'py, Self>) -> Bound<'py, PyArray1<u32>> {
        // SAFETY: the class is frozen and its vectors never change.
        unsafe { view(slf.get().0.start(), slf.clone().into_any()) }
    }

    /// Number of tokens of each piece.
    #[getter]
    fn length<'py>(slf: &Bound<'py, Self>) -> Bound<'py, PyArray1<u32>> {
        // SAFETY: the class is frozen and its vectors never change.
        unsafe { view(slf.get().0.len(), slf.clone().into_any()) }
    }

    /// Where each row starts among the pieces, and at the end the number of pieces.
    #[getter]
    fn row_offsets<'py>(slf: &Bound<'py, Self>) -> Bound<'py, PyArray1<u32>> {
        // SAFETY: the class is frozen and its vectors never change.
        unsafe { view(slf.get().0.row_offsets(), slf.clone().into_any()) }
    }

    /// Number of rows.
    #[getter]
    fn num_rows(&self) -> usize {
        self.0.num_rows()
    }

    /// The given rows, in the given order.
    fn select_rows(&self, py: Python<'_>, rows: PyReadonlyArray1<'_, u32>) -> PyResult<Self> {
        let rows = contiguous(&rows, "rows")?;
        py.detach(|| self.0.select_rows(rows)).or_raise().map(Self)
    }
}

/// Either kind of packing.
#[derive(FromPyObject)]
enum AnyPacking<'py> {
    Whole(Bound<'py, Packing>),
    Cut(Bound<'py, Pieces>),
}

/// Rows by best-fit decreasing.
#[pyfunction]
fn pack_best_fit(
    py: Python<'_>,
    lengths: PyReadonlyArray1<'_, u32>,
    capacity: i64,
) -> PyResult<Packing> {
    let (lengths, capacity) = (contiguous(&lengths, "lengths")?, count("capacity", capacity)?);
    py.detach(|| glmcore_packing::pack_best_fit(lengths, capacity)).or_raise().map(Packing)
}

/// Rows by best-fit decreasing, longer documents cut.
#[pyfunction]
fn pack_best_fit_split(
    py: Python<'_>,
    lengths: PyReadonlyArray1<'_, u32>,
    capacity: i64,
) -> PyResult<Pieces> {
    let (lengths, capacity) = (contiguous(&lengths, "lengths")?, count("capacity", capacity)?);
    py.detach(|| glmcore_packing::pack_best_fit_split(lengths, capacity)).or_raise().map(Pieces)
}

/// Documents end to end, cut at every row's end.
#[pyfunction]
fn pack_concat(
    py: Python<'_>,
    lengths: PyReadonlyArray1<'_, u32>,
    capacity: i64,
) -> PyResult<Pieces> {
    let (lengths, capacity) = (contiguous(&lengths, "lengths")?, count("capacity", capacity)?);
    py.detach(|| glmcore_packing::pack_concat(lengths, capacity)).or_raise().map(Pieces)
}

/// Rank of each item.
#[pyfunction]
fn balance<'py>(
    py: Python<'py>,
    costs: PyReadonlyArray1<'py, f64>,
    num_ranks: i64,
) -> PyResult<Bound<'py, PyArray1<u32>>> {
    let (costs, num_ranks) = (contiguous(&costs, "costs")?, count("num_ranks", num_ranks)?);
    Ok(py.detach(|| glmcore_packing::balance(costs, num_ranks)).or_raise()?.into_pyarray(py))
}

/// Arrays of all rows of a packing.
#[pyfunction]
fn fill<'py>(
    py: Python<'py>,
    ids: PyReadonlyArray1<'py, i32>,
    offsets: PyReadonlyArray1<'py, i64>,
    loss_mask: Option<PyReadonlyArray1<'py, u8>>,
    packing: AnyPacking<'py>,
    capacity: i64,
    pad_id: i32,
) -> PyResult<BatchArrays<'py>> {
    let (ids, offsets) = (contiguous(&ids, "ids")?, contiguous(&offsets, "offsets")?);
    let loss_mask = loss_mask.as_ref().map(|mask| contiguous(mask, "loss_mask")).transpose()?;
    let capacity = count("capacity", capacity)?;
    let fill = |ragged: Ragged<'_>, pieces: &glmcore_packing::Pieces| {
        glmcore_packing::fill(pieces, 0..pieces.num_rows(), capacity, pad_id, |piece, ids, mask| {
            ragged.copy(piece, ids, mask)
        })
    };
    let batch = match &packing {
        AnyPacking::Whole(packing) => {
            let packing = &packing.get().0;
            py.detach(|| {
                let ragged = Ragged::new(ids, offsets, loss_mask)?;
                fill(ragged, &packing.pieces(&ragged.lengths()?)?)
            })
        }
        AnyPacking::Cut(pieces) => {
            let pieces = &pieces.get().0;
            py.detach(|| fill(Ragged::new(ids, offsets, loss_mask)?, pieces))
        }
    };
    batch.or_raise().map(|batch| batch_arrays(py, batch))
}

/// Moves a batch into numpy.
pub(crate) fn batch_arrays(py: Python<'_>, batch: PackedBatch) -> BatchArrays<'_> {
    (
        batch.input_ids.into_pyarray(py),
        batch.labels.into_pyarray(py),
        batch.position_ids.into_pyarray(py),
        batch.loss_mask.into_pyarray(py),
        batch.cu_seqlens.into_pyarray(py),
        batch.max_seqlen,
    )
}

/// A count that Rust takes in 32 bits.
pub(crate) fn count(name: &str, value: i64) -> PyResult<u32> {
    u32::try_from(value).map_err(|_| {
        PackingError::new_err(format!("{name} is {value}, it must be from 0 to {}", u32::MAX))
    })
}

fn contiguous<'a, T: Element>(array: &'a PyReadonlyArray1<'_, T>, name: &str) -> PyResult<&'a [T]> {
    array.as_slice().map_err(|_| {
        PackingError::new_err(format!(
            "{name} must be C-contiguous: pass np.ascontiguousarray({name})"
        ))
    })
}

pub(crate) fn register(module: &Bound<'_, PyModule>) -> PyResult<()> {
    module.add_class::<Packing>()?;
    module.add_class::<Pieces>()?;
    module.add_function(wrap_pyfunction!(pack_best_fit, module)?)?;
    module.add_function(wrap_pyfunction!(pack_best_fit_split, module)?)?;
    module.add_function(wrap_pyfunction!(pack_concat, module)?)?;
    module.add_function(wrap_pyfunction!(balance, module)?)?;
    module.add_function(wrap_pyfunction!(fill, module)?)
}

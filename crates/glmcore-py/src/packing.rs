//! Binding of `glmcore-packing`.

use std::ops::Range;

use glmcore_packing::{PackedBatch, Piece, PrefixForest, Ragged, TooLong};
use numpy::{Element, IntoPyArray, PyArray1, PyReadonlyArray1, PyReadwriteArray1};
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

/// Input ids, labels, position ids and loss mask to write to.
pub(crate) type OutArrays<'py> = (
    PyReadwriteArray1<'py, i32>,
    PyReadwriteArray1<'py, i32>,
    PyReadwriteArray1<'py, i32>,
    PyReadwriteArray1<'py, u8>,
);

/// Ids, positions, parents and subtree ends of a forest's tokens, and the place of every sample's tokens.
type ForestArrays<'py> = (
    Bound<'py, PyArray1<i32>>,
    Bound<'py, PyArray1<i32>>,
    Bound<'py, PyArray1<i32>>,
    Bound<'py, PyArray1<i32>>,
    Bound<'py, PyArray1<i32>>,
);

/// A row for every document.
#[pyclass(frozen, module = "glmcore._core")]
struct Packing(glmcore_packing::Packing);

#[pymethods]
impl Packing {
    /// Row of each document.
    #[getter]
    fn row_of<'py>(slf: &Bound<'py, Self>) -> Bound<'py, PyArray1<u32>> {
        let packing = &slf.get().0;
        slf.py().detach(|| packing.row_of()); // the first call makes it
        // SAFETY: the class is frozen, and the vector never changes once it is made.
        unsafe { view(packing.row_of(), slf.clone().into_any()) }
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

    /// Documents longer than a row, in the packing that the rows are from.
    #[getter]
    fn num_too_long(&self) -> u32 {
        self.0.loss().num_too_long
    }

    /// Tokens of those that are in no row.
    #[getter]
    fn num_lost_tokens(&self) -> u64 {
        self.0.loss().num_lost_tokens
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

/// Rows by best-fit decreasing, longer documents treated as chosen.
#[pyfunction]
fn pack_documents(
    py: Python<'_>,
    lengths: PyReadonlyArray1<'_, u32>,
    capacity: i64,
    too_long: &str,
) -> PyResult<Pieces> {
    let (lengths, capacity) = (contiguous(&lengths, "lengths")?, count("capacity", capacity)?);
    let too_long = parse_too_long(too_long)?;
    py.detach(|| glmcore_packing::pack_documents(lengths, capacity, too_long))
        .or_raise()
        .map(Pieces)
}

/// The caller's choice by its name.
pub(crate) fn parse_too_long(name: &str) -> PyResult<TooLong> {
    Ok(match name {
        "error" => TooLong::Error,
        "split" => TooLong::Split,
        "truncate" => TooLong::Truncate,
        "drop" => TooLong::Drop,
        _ => {
            return Err(PackingError::new_err(format!(
                "too_long is {name:?}, it must be 'error', 'split', 'truncate' or 'drop'"
            )));
        }
    })
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
    equal_counts: bool,
) -> PyResult<Bound<'py, PyArray1<u32>>> {
    let (costs, num_ranks) = (contiguous(&costs, "costs")?, count("num_ranks", num_ranks)?);
    let rank_of = py.detach(|| glmcore_packing::balance(costs, num_ranks, equal_counts));
    Ok(rank_of.or_raise()?.into_pyarray(py))
}

/// Arrays of all rows of a packing.
#[pyfunction]
#[expect(clippy::too_many_arguments, reason = "the Python wrapper groups them")]
fn fill<'py>(
    py: Python<'py>,
    ids: PyReadonlyArray1<'py, i32>,
    offsets: PyReadonlyArray1<'py, i64>,
    loss_mask: Option<PyReadonlyArray1<'py, u8>>,
    packing: AnyPacking<'py>,
    capacity: i64,
    pad_id: i32,
    out: Option<OutArrays<'py>>,
) -> PyResult<BatchArrays<'py>> {
    let (ids, offsets) = (contiguous(&ids, "ids")?, contiguous(&offsets, "offsets")?);
    let loss_mask = loss_mask.as_ref().map(|mask| contiguous(mask, "loss_mask")).transpose()?;
    let capacity = count("capacity", capacity)?;
    let ragged = py.detach(|| Ragged::new(ids, offsets, loss_mask)).or_raise()?;
    let whole;
    let pieces = match &packing {
        AnyPacking::Whole(packing) => {
            let packing = &packing.get().0;
            whole = py.detach(|| packing.pieces(&ragged.lengths()?)).or_raise()?;
            &whole
        }
        AnyPacking::Cut(pieces) => &pieces.get().0,
    };
    let rows = 0..pieces.num_rows();
    let copy = |piece: Piece, ids: &mut [i32], mask: &mut [u8]| ragged.copy(piece, ids, mask);
    fill_arrays(py, pieces, rows, (capacity, pad_id), out, copy, |_| Ok(()))
}

/// Fills rows into `out`, or into new arrays; `adjust` then gets the labels.
pub(crate) fn fill_arrays<'py, E>(
    py: Python<'py>,
    pieces: &glmcore_packing::Pieces,
    rows: Range<usize>,
    (capacity, pad_id): (u32, i32),
    out: Option<OutArrays<'py>>,
    copy: impl FnMut(Piece, &mut [i32], &mut [u8]) -> Result<(), E> + Send,
    adjust: impl FnOnce(&mut [i32]) -> Result<(), E> + Send,
) -> PyResult<BatchArrays<'py>>
where
    E: From<glmcore_packing::Error> + Send,
    Result<PackedBatch, E>: OrRaise<PackedBatch>,
    Result<glmcore_packing::Bounds, E>: OrRaise<glmcore_packing::Bounds>,
{
    let Some((mut input_ids, mut labels, mut position_ids, mut loss_mask)) = out else {
        let batch = py.detach(|| {
            let mut batch = glmcore_packing::fill(pieces, rows, capacity, pad_id, copy)?;
            adjust(&mut batch.labels).map(|()| batch)
        });
        return batch.or_raise().map(|batch| batch_arrays(py, batch));
    };
    let mut arrays = glmcore_packing::BatchArrays {
        input_ids: writable(&mut input_ids, "out.input_ids")?,
        labels: writable(&mut labels, "out.labels")?,
        position_ids: writable(&mut position_ids, "out.position_ids")?,
        loss_mask: writable(&mut loss_mask, "out.loss_mask")?,
    };
    let bounds = py.detach(|| {
        let bounds = glmcore_packing::fill_into(pieces, rows, capacity, pad_id, &mut arrays, copy)?;
        adjust(arrays.labels).map(|()| bounds)
    });
    let bounds = bounds.or_raise()?;
    let (ids, labels, positions): (&Bound<'py, _>, &Bound<'py, _>, &Bound<'py, _>) =
        (&input_ids, &labels, &position_ids);
    let mask: &Bound<'py, PyArray1<u8>> = &loss_mask;
    let cu_seqlens = bounds.cu_seqlens.into_pyarray(py);
    Ok((
        ids.clone(),
        labels.clone(),
        positions.clone(),
        mask.clone(),
        cu_seqlens,
        bounds.max_seqlen,
    ))
}

/// Samples that share prefixes, as trees of tokens.
#[pyfunction]
fn share_prefixes<'py>(
    py: Python<'py>,
    ids: PyReadonlyArray1<'py, i32>,
    offsets: PyReadonlyArray1<'py, i64>,
) -> PyResult<ForestArrays<'py>> {
    let (ids, offsets) = (contiguous(&ids, "ids")?, contiguous(&offsets, "offsets")?);
    let forest = py.detach(|| PrefixForest::new(&Ragged::new(ids, offsets, None)?)).or_raise()?;
    Ok((
        forest.input_ids.into_pyarray(py),
        forest.position_ids.into_pyarray(py),
        forest.parent.into_pyarray(py),
        forest.subtree_end.into_pyarray(py),
        forest.place.into_pyarray(py),
    ))
}

/// Samples by batch, those with common prefixes together.
#[pyfunction]
fn group_by_prefix(
    py: Python<'_>,
    ids: PyReadonlyArray1<'_, i32>,
    offsets: PyReadonlyArray1<'_, i64>,
    capacity: i64,
) -> PyResult<Packing> {
    let (ids, offsets) = (contiguous(&ids, "ids")?, contiguous(&offsets, "offsets")?);
    let capacity = count("capacity", capacity)?;
    let packing =
        py.detach(|| glmcore_packing::group_by_prefix(&Ragged::new(ids, offsets, None)?, capacity));
    packing.or_raise().map(Packing)
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

pub(crate) fn contiguous<'a, T: Element>(
    array: &'a PyReadonlyArray1<'_, T>,
    name: &str,
) -> PyResult<&'a [T]> {
    array.as_slice().map_err(|_| {
        PackingError::new_err(format!(
            "{name} must be C-contiguous: pass np.ascontiguousarray({name})"
        ))
    })
}

fn writable<'a, T: Element>(
    array: &'a mut PyReadwriteArray1<'_, T>,
    name: &str,
) -> PyResult<&'a mut [T]> {
    array
        .as_slice_mut()
        .map_err(|_| PackingError::new_err(format!("{name} must be C-contiguous memory")))
}

pub(crate) fn register(module: &Bound<'_, PyModule>) -> PyResult<()> {
    module.add_class::<Packing>()?;
    module.add_class::<Pieces>()?;
    module.add_function(wrap_pyfunction!(pack_best_fit, module)?)?;
    module.add_function(wrap_pyfunction!(pack_documents, module)?)?;
    module.add_function(wrap_pyfunction!(share_prefixes, module)?)?;
    module.add_function(wrap_pyfunction!(group_by_prefix, module)?)?;
    module.add_function(wrap_pyfunction!(pack_concat, module)?)?;
    module.add_function(wrap_pyfunction!(balance, module)?)?;
    module.add_function(wrap_pyfunction!(fill, module)?)
}

//! Weights on their way to engines, many tensors a call: a model may have thousands of small ones.

use glmcore_fp8::{Blocks, Element, Error, Matrix, Quantizer, ScaleFormat, dequantize};
use half::bf16;
use half::slice::HalfBitsSliceExt;
use numpy::{PyReadonlyArray2, PyReadonlyArrayDyn, PyReadwriteArray2};
use pyo3::prelude::*;
use xxhash_rust::xxh3::Xxh3;

use crate::checksum::PyXxh3;
use crate::error::{Fp8Error, OrRaise};

/// Values that are rounded, quantised and summed up at a time: they stay in the cache between these.
const SLAB_VALUES: usize = 1 << 18;

/// A matrix of float32 or of bfloat16's bits.
#[derive(FromPyObject)]
enum Source<'py> {
    Wide(PyReadonlyArray2<'py, f32>),
    Bits(PyReadonlyArray2<'py, u16>),
}

/// Where a matrix of float32 or of bfloat16's bits goes.
#[derive(FromPyObject)]
enum Target<'py> {
    Wide(PyReadwriteArray2<'py, f32>),
    Bits(PyReadwriteArray2<'py, u16>),
}

/// Numbers of float32 or of bfloat16's bits, of any shape.
#[derive(FromPyObject)]
enum Floats<'py> {
    Wide(PyReadonlyArrayDyn<'py, f32>),
    Bits(PyReadonlyArrayDyn<'py, u16>),
}

/// Values, codes, scales, and the checksum of what the codes mean.
type Published<'py> =
    (Source<'py>, PyReadwriteArray2<'py, u8>, PyReadwriteArray2<'py, f32>, Py<PyXxh3>);

/// Codes, scales, and where their values go.
type Received<'py> = (PyReadonlyArray2<'py, u8>, PyReadonlyArray2<'py, f32>, Target<'py>);

/// Memory that the tensors of a call use in turn.
#[derive(Default)]
struct Scratch {
    rounded: Vec<bf16>,
    held: Vec<bf16>,
    wide: Vec<f32>,
}

/// Rows of whole blocks that are worked on at a time.
fn slab_rows(columns: usize, block_rows: usize) -> usize {
    (SLAB_VALUES / columns.max(1) / block_rows).max(1) * block_rows
}

fn widen(from: &[bf16], to: &mut Vec<f32>) {
    to.clear();
    to.extend(from.iter().map(|&value| Element::to_f32(value)));
}

/// Quantises a matrix as bfloat16 has it, and adds what its codes mean, in float32, to a checksum.
fn publish(
    values: &Values<'_>,
    columns: usize,
    quantizer: &Quantizer,
    block: (usize, usize),
    (q, scales): (&mut [u8], &mut [f32]),
    checksum: &mut Xxh3,
    scratch: &mut Scratch,
) -> Result<(), (usize, Error)> {
    if q.is_empty() {
        return Ok(());
    }
    let rows = slab_rows(columns, block.0);
    let grid_columns = columns.div_ceil(block.1);
    let (slab, scales_of_slab) = (rows * columns, rows / block.0 * grid_columns);
    let slabs = q.chunks_mut(slab).zip(scales.chunks_mut(scales_of_slab));
    for (index, (q, scales)) in slabs.enumerate() {
        let range = index * slab..index * slab + q.len();
        let rounded = match *values {
            Values::Wide(values) => {
                scratch.rounded.clear();
                scratch
                    .rounded
                    .extend(values[range].iter().map(|&v| <bf16 as Element>::from_f32(v)));
                &scratch.rounded[..]
            }
            Values::Bits(values) => &values[range],
        };
        let count = q.len() / columns;
        let blocks = quantizer.blocks;
        let at = |error| (index * rows, error);
        let matrix = Matrix::new(rounded, count, columns).map_err(at)?;
        quantizer.quantize_into(matrix, q, scales).map_err(at)?;
        scratch.held.resize(q.len(), bf16::ZERO);
        let codes = Matrix::new(&*q, count, columns).map_err(at)?;
        dequantize(codes, scales, blocks, &mut scratch.held).map_err(at)?;
        widen(&scratch.held, &mut scratch.wide);
        checksum.update(bytemuck::cast_slice(&scratch.wide));
    }
    Ok(())
}

/// Borrowed values of a `Source` or of `Floats`.
enum Values<'a> {
    Wide(&'a [f32]),
    Bits(&'a [bf16]),
}

fn strided<E>(_: E) -> PyErr {
    Fp8Error::new_err("arrays must be C-contiguous")
}

/// Quantise matrices and add what their codes mean to checksums; gives the place of what cannot be quantised: number of
/// the matrix, first row of the part, and why.
#[pyfunction]
#[expect(clippy::needless_pass_by_value, reason = "pyo3 extracts owned values")]
fn fp8_publish(
    py: Python<'_>,
    mut matrices: Vec<Published<'_>>,
    block: (usize, usize),
    ue8m0: bool,
) -> PyResult<Option<(usize, usize, String)>> {
    let format = if ue8m0 { ScaleFormat::Ue8m0 } else { ScaleFormat::Float32 };
    let blocks = Blocks::new(block.0, block.1).or_raise()?;
    let quantizer = Quantizer { format, ..Quantizer::of_weights(blocks) };
    let mut work = Vec::with_capacity(matrices.len());
    for (source, q, scales, checksum) in &mut matrices {
        let (values, columns) = match source {
            Source::Wide(array) => {
                (Values::Wide(array.as_slice().map_err(strided)?), array.as_array().ncols())
            }
            Source::Bits(array) => (
                Values::Bits(array.as_slice().map_err(strided)?.reinterpret_cast()),
                array.as_array().ncols(),
            ),
        };
        let out = (q.as_slice_mut().map_err(strided)?, scales.as_slice_mut().map_err(strided)?);
        let len = match values {
            Values::Wide(values) => values.len(),
            Values::Bits(values) => values.len(),
        };
        if out.0.len() != len {
            return Err(Fp8Error::new_err("codes must have the shape of the values"));
        }
        work.push((values, columns, out, checksum.get()));
    }
    let failed = py.detach(|| {
        let mut scratch = Scratch::default();
        for (index, (values, columns, out, checksum)) in work.into_iter().enumerate() {
            let mut checksum = checksum.lock();
            publish(&values, columns, &quantizer, block, out, &mut checksum, &mut scratch)
                .map_err(|(row, error)| (index, row, error.to_string()))?;
        }
        Ok(())
    });
    Ok(failed.err())
}

/// Turn codes and scales into bfloat16 values, in the targets' types.
#[pyfunction]
#[expect(clippy::needless_pass_by_value, reason = "pyo3 extracts owned values")]
fn fp8_receive(
    py: Python<'_>,
    mut matrices: Vec<Received<'_>>,
    block: (usize, usize),
) -> PyResult<()> {
    enum Out<'a> {
        Wide(&'a mut [f32]),
        Bits(&'a mut [bf16]),
    }
    let blocks = Blocks::new(block.0, block.1).or_raise()?;
    let mut work = Vec::with_capacity(matrices.len());
    for (q, scales, target) in &mut matrices {
        let (rows, columns) = q.as_array().dim();
        let codes = Matrix::new(q.as_slice().map_err(strided)?, rows, columns).or_raise()?;
        let out = match target {
            Target::Wide(array) => Out::Wide(array.as_slice_mut().map_err(strided)?),
            Target::Bits(array) => {
                Out::Bits(array.as_slice_mut().map_err(strided)?.reinterpret_cast_mut())
            }
        };
        work.push((codes, rows * columns, scales.as_slice().map_err(strided)?, out));
    }
    py.detach(|| {
        let mut held: Vec<bf16> = Vec::new();
        work.into_iter().try_for_each(|(codes, len, scales, out)| match out {
            Out::Bits(out) => dequantize(codes, scales, blocks, out),
            Out::Wide(out) => {
                held.resize(len, bf16::ZERO);
                dequantize(codes, scales, blocks, &mut held)?;
                for (to, &value) in out.iter_mut().zip(&held) {
                    *to = Element::to_f32(value);
                }
                Ok(())
            }
        })
    })
    .or_raise()
}

/// Add the float32 values of arrays to checksums.
#[pyfunction]
#[expect(clippy::needless_pass_by_value, reason = "pyo3 extracts owned values")]
fn add_floats(py: Python<'_>, arrays: Vec<(Floats<'_>, Py<PyXxh3>)>) -> PyResult<()> {
    let mut work = Vec::with_capacity(arrays.len());
    for (array, checksum) in &arrays {
        let values = match array {
            Floats::Wide(array) => Values::Wide(array.as_slice().map_err(strided)?),
            Floats::Bits(array) => {
                Values::Bits(array.as_slice().map_err(strided)?.reinterpret_cast())
            }
        };
        work.push((values, checksum.get()));
    }
    py.detach(|| {
        let mut wide = Vec::new();
        for (values, checksum) in work {
            let mut checksum = checksum.lock();
            match values {
                Values::Wide(values) => checksum.update(bytemuck::cast_slice(values)),
                Values::Bits(values) => {
                    for part in values.chunks(SLAB_VALUES) {
                        widen(part, &mut wide);
                        checksum.update(bytemuck::cast_slice(&wide));
                    }
                }
            }
        }
    });
    Ok(())
}

pub(crate) fn register(module: &Bound<'_, PyModule>) -> PyResult<()> {
    module.add_function(wrap_pyfunction!(fp8_publish, module)?)?;
    module.add_function(wrap_pyfunction!(fp8_receive, module)?)?;
    module.add_function(wrap_pyfunction!(add_floats, module)?)
}

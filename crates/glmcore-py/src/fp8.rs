//! Binding of `glmcore-fp8`. Half-precision numbers cross as their 16 bits; results go into arrays of the caller's.

use glmcore_fp8::{Blocks, Element, Matrix, NotFinite, Quantizer, ScaleFormat, dequantize};
use half::slice::HalfBitsSliceExt;
use half::{bf16, f16};
use numpy::{Element as NumpyElement, PyReadonlyArray2, PyReadwriteArray2};
use pyo3::prelude::*;

use crate::error::{Fp8Error, OrRaise};

/// How a call quantises: rows and columns of a block, floor, powers of two as scales, NaN and infinity let through.
type Request = ((usize, usize), f32, bool, bool);

fn quantize<T: Element>(
    py: Python<'_>,
    values: &[T],
    (rows, columns): (usize, usize),
    q: &mut PyReadwriteArray2<'_, u8>,
    scale: &mut PyReadwriteArray2<'_, f32>,
    ((block_rows, block_columns), floor, ue8m0, propagate): Request,
) -> PyResult<()> {
    let quantizer = Quantizer {
        floor,
        format: if ue8m0 { ScaleFormat::Ue8m0 } else { ScaleFormat::Float32 },
        not_finite: if propagate { NotFinite::Propagate } else { NotFinite::Refuse },
        ..Quantizer::of_weights(Blocks::new(block_rows, block_columns).or_raise()?)
    };
    let matrix = Matrix::new(values, rows, columns).or_raise()?;
    let (q, scale) = (writable("q", q)?, writable("scale_inv", scale)?);
    py.detach(|| quantizer.quantize_into(matrix, q, scale)).or_raise()
}

fn contiguous<'a, T: NumpyElement>(
    what: &str,
    array: &'a PyReadonlyArray2<'_, T>,
) -> PyResult<&'a [T]> {
    array.as_slice().map_err(|_| not_contiguous(what))
}

fn writable<'a, T: NumpyElement>(
    what: &str,
    array: &'a mut PyReadwriteArray2<'_, T>,
) -> PyResult<&'a mut [T]> {
    array.as_slice_mut().map_err(|_| not_contiguous(what))
}

fn not_contiguous(what: &str) -> PyErr {
    Fp8Error::new_err(format!("{what} must be C-contiguous: pass np.ascontiguousarray({what})"))
}

/// Quantise a float32 matrix.
#[pyfunction]
fn fp8_quantize_f32<'py>(
    py: Python<'py>,
    w: PyReadonlyArray2<'py, f32>,
    mut q: PyReadwriteArray2<'py, u8>,
    mut scale: PyReadwriteArray2<'py, f32>,
    request: Request,
) -> PyResult<()> {
    quantize(py, contiguous("w", &w)?, w.as_array().dim(), &mut q, &mut scale, request)
}

/// Quantise a matrix of float16 or, with `bfloat16`, bfloat16 bits.
#[pyfunction]
fn fp8_quantize_bits<'py>(
    py: Python<'py>,
    w: PyReadonlyArray2<'py, u16>,
    bfloat16: bool,
    mut q: PyReadwriteArray2<'py, u8>,
    mut scale: PyReadwriteArray2<'py, f32>,
    request: Request,
) -> PyResult<()> {
    let (bits, dim) = (contiguous("w", &w)?, w.as_array().dim());
    if bfloat16 {
        quantize::<bf16>(py, bits.reinterpret_cast(), dim, &mut q, &mut scale, request)
    } else {
        quantize::<f16>(py, bits.reinterpret_cast(), dim, &mut q, &mut scale, request)
    }
}

fn codes_times_scales<T: Element>(
    py: Python<'_>,
    q: &PyReadonlyArray2<'_, u8>,
    scale: &PyReadonlyArray2<'_, f32>,
    block: (usize, usize),
    out: &mut [T],
) -> PyResult<()> {
    let (rows, columns) = q.as_array().dim();
    let matrix = Matrix::new(contiguous("q", q)?, rows, columns).or_raise()?;
    let blocks = Blocks::new(block.0, block.1).or_raise()?;
    let scale = contiguous("scale_inv", scale)?;
    py.detach(|| dequantize(matrix, scale, blocks, out)).or_raise()
}

/// Codes times scales into a float32 matrix.
#[pyfunction]
fn fp8_dequantize_f32<'py>(
    py: Python<'py>,
    q: PyReadonlyArray2<'py, u8>,
    scale: PyReadonlyArray2<'py, f32>,
    block: (usize, usize),
    mut out: PyReadwriteArray2<'py, f32>,
) -> PyResult<()> {
    codes_times_scales(py, &q, &scale, block, writable("out", &mut out)?)
}

/// Codes times scales into a matrix of float16 or, with `bfloat16`, bfloat16 bits.
#[pyfunction]
fn fp8_dequantize_bits<'py>(
    py: Python<'py>,
    q: PyReadonlyArray2<'py, u8>,
    scale: PyReadonlyArray2<'py, f32>,
    block: (usize, usize),
    bfloat16: bool,
    mut out: PyReadwriteArray2<'py, u16>,
) -> PyResult<()> {
    let bits = writable("out", &mut out)?;
    if bfloat16 {
        let out: &mut [bf16] = bits.reinterpret_cast_mut();
        codes_times_scales(py, &q, &scale, block, out)
    } else {
        let out: &mut [f16] = bits.reinterpret_cast_mut();
        codes_times_scales(py, &q, &scale, block, out)
    }
}

pub(crate) fn register(module: &Bound<'_, PyModule>) -> PyResult<()> {
    module.add_function(wrap_pyfunction!(fp8_quantize_f32, module)?)?;
    module.add_function(wrap_pyfunction!(fp8_quantize_bits, module)?)?;
    module.add_function(wrap_pyfunction!(fp8_dequantize_f32, module)?)?;
    module.add_function(wrap_pyfunction!(fp8_dequantize_bits, module)?)
}

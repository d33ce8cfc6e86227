//! Binding of `glmcore-fp8`. Half-precision numbers cross as their 16 bits.

use glmcore_fp8::{Element, Matrix, ScaleFormat};
use half::slice::HalfBitsSliceExt;
use half::{bf16, f16};
use numpy::{
    Element as NumpyElement, IntoPyArray, PyArray1, PyArray2, PyArrayMethods, PyReadonlyArray1,
    PyReadonlyArray2,
};
use pyo3::prelude::*;

use crate::error::{Fp8Error, OrRaise};

/// Codes, shaped as the input, and the scales row after row.
type Quantized<'py> = (Bound<'py, PyArray2<u8>>, Bound<'py, PyArray1<f32>>);

/// How a call wants its blocks.
struct Blocks {
    shape: (usize, usize),
    floor: f32,
    format: ScaleFormat,
}

impl Blocks {
    fn new(shape: (usize, usize), floor: f32, ue8m0: bool) -> Self {
        Self { shape, floor, format: if ue8m0 { ScaleFormat::Ue8m0 } else { ScaleFormat::Float32 } }
    }

    fn quantize<'py, T: Element>(
        &self,
        py: Python<'py>,
        values: &[T],
        (rows, columns): (usize, usize),
    ) -> PyResult<Quantized<'py>> {
        let quantize = || {
            glmcore_fp8::quantize(
                Matrix::new(values, rows, columns)?,
                self.shape,
                self.floor,
                self.format,
            )
        };
        let (q, scale) = py.detach(quantize).or_raise()?;
        Ok((q.into_pyarray(py).reshape([rows, columns])?, scale.into_pyarray(py)))
    }
}

fn contiguous<'a, T: NumpyElement>(w: &'a PyReadonlyArray2<'_, T>) -> PyResult<&'a [T]> {
    w.as_slice().map_err(|_| {
        Fp8Error::new_err("the matrix must be C-contiguous: pass np.ascontiguousarray(w)")
    })
}

/// Quantise a float32 matrix; gives codes and scales.
#[pyfunction]
fn fp8_quantize_f32<'py>(
    py: Python<'py>,
    w: PyReadonlyArray2<'py, f32>,
    block: (usize, usize),
    floor: f32,
    ue8m0: bool,
) -> PyResult<Quantized<'py>> {
    Blocks::new(block, floor, ue8m0).quantize(py, contiguous(&w)?, w.as_array().dim())
}

/// Quantise a matrix of float16 or, with `bfloat16`, bfloat16 bits; gives codes and scales.
#[pyfunction]
fn fp8_quantize_bits<'py>(
    py: Python<'py>,
    w: PyReadonlyArray2<'py, u16>,
    bfloat16: bool,
    block: (usize, usize),
    floor: f32,
    ue8m0: bool,
) -> PyResult<Quantized<'py>> {
    let (bits, dim) = (contiguous(&w)?, w.as_array().dim());
    let blocks = Blocks::new(block, floor, ue8m0);
    if bfloat16 {
        blocks.quantize::<bf16>(py, bits.reinterpret_cast(), dim)
    } else {
        blocks.quantize::<f16>(py, bits.reinterpret_cast(), dim)
    }
}

/// Codes times scales as float32.
#[pyfunction]
fn fp8_dequantize<'py>(
    py: Python<'py>,
    q: PyReadonlyArray2<'py, u8>,
    scale: PyReadonlyArray1<'py, f32>,
    block: (usize, usize),
) -> PyResult<Bound<'py, PyArray2<f32>>> {
    let (rows, columns) = q.as_array().dim();
    let codes = contiguous(&q)?;
    let scale = scale.as_slice().map_err(|_| {
        Fp8Error::new_err("scale_inv must be C-contiguous: pass np.ascontiguousarray(scale_inv)")
    })?;
    let out = py
        .detach(|| {
            let mut out = vec![0.0_f32; codes.len()];
            glmcore_fp8::dequantize(codes, scale, (rows, columns), block, &mut out).map(|()| out)
        })
        .or_raise()?;
    out.into_pyarray(py).reshape([rows, columns])
}

pub(crate) fn register(module: &Bound<'_, PyModule>) -> PyResult<()> {
    module.add_function(wrap_pyfunction!(fp8_quantize_f32, module)?)?;
    module.add_function(wrap_pyfunction!(fp8_quantize_bits, module)?)?;
    module.add_function(wrap_pyfunction!(fp8_dequantize, module)?)
}

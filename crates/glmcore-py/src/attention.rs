//! Binding of `glmcore-attention`. Numbers of bfloat16 cross as their 16 bits; results go into arrays of the caller's.

use glmcore_attention::{Element, Gradients, Shape, backward, forward};
use half::bf16;
use half::slice::HalfBitsSliceExt;
use numpy::{Element as NumpyElement, PyReadonlyArray1, PyReadwriteArray1};
use pyo3::exceptions::PyValueError;
use pyo3::prelude::*;

type In<'py, T> = PyReadonlyArray1<'py, T>;
type Out<'py, T> = PyReadwriteArray1<'py, T>;

/// What every call is told: bounds of the documents, heads, key-value heads and channels, threads.
type Batch<'py> = (In<'py, i32>, (usize, usize, usize), usize);

fn shape_of((num_heads, num_kv_heads, head_dim): (usize, usize, usize)) -> Shape {
    Shape { num_heads, num_kv_heads, head_dim }
}

fn values<'a, T: NumpyElement>(array: &'a In<'_, T>) -> PyResult<&'a [T]> {
    array.as_slice().map_err(|_| PyValueError::new_err("arrays must be C-contiguous"))
}

fn writable<'a, T: NumpyElement>(array: &'a mut Out<'_, T>) -> PyResult<&'a mut [T]> {
    array.as_slice_mut().map_err(|_| PyValueError::new_err("arrays must be C-contiguous"))
}

fn attend<T: Element>(
    py: Python<'_>,
    [query, key, value]: [&[T]; 3],
    batch: &Batch<'_>,
    out: &mut [T],
    log_sum: &mut [T::Real],
) -> PyResult<()> {
    let (bounds, shape, threads) = (values(&batch.0)?, shape_of(batch.1), batch.2);
    py.detach(|| forward(query, key, value, bounds, shape, threads, out, log_sum))
        .map_err(|error| PyValueError::new_err(error.to_string()))
}

fn go_back<T: Element>(
    py: Python<'_>,
    given: Gradients<'_, T>,
    batch: &Batch<'_>,
    grads: [&mut [T]; 3],
) -> PyResult<()> {
    let (bounds, shape, threads) = (values(&batch.0)?, shape_of(batch.1), batch.2);
    py.detach(|| backward(given, bounds, shape, threads, grads))
        .map_err(|error| PyValueError::new_err(error.to_string()))
}

macro_rules! bind {
    ($forward:ident, $backward:ident, $memory:ty, $real:ty, $read:expr, $write:expr) => {
        /// Attention within documents: query, key and value, the batch, the result and its logarithms.
        #[pyfunction]
        fn $forward<'py>(
            py: Python<'py>,
            inputs: (In<'py, $memory>, In<'py, $memory>, In<'py, $memory>),
            batch: Batch<'py>,
            mut out: Out<'py, $memory>,
            mut log_sum: Out<'py, $real>,
        ) -> PyResult<()> {
            let inputs = [&inputs.0, &inputs.1, &inputs.2];
            let [query, key, value] = [values(inputs[0])?, values(inputs[1])?, values(inputs[2])?].map($read);
            attend(py, [query, key, value], &batch, $write(writable(&mut out)?), writable(&mut log_sum)?)
        }

        /// Its gradients: query, key, value, result and the result's gradient; logarithms; the batch; the gradients.
        #[pyfunction]
        fn $backward<'py>(
            py: Python<'py>,
            inputs: (In<'py, $memory>, In<'py, $memory>, In<'py, $memory>, In<'py, $memory>, In<'py, $memory>),
            log_sum: In<'py, $real>,
            batch: Batch<'py>,
            mut grads: (Out<'py, $memory>, Out<'py, $memory>, Out<'py, $memory>),
        ) -> PyResult<()> {
            let given = Gradients {
                query: $read(values(&inputs.0)?),
                key: $read(values(&inputs.1)?),
                value: $read(values(&inputs.2)?),
                out: $read(values(&inputs.3)?),
                grad: $read(values(&inputs.4)?),
                log_sum: values(&log_sum)?,
            };
            let grads = [writable(&mut grads.0)?, writable(&mut grads.1)?, writable(&mut grads.2)?].map($write);
            go_back(py, given, &batch, grads)
        }
    };
}

fn same<T>(values: &[T]) -> &[T] {
    values
}

fn same_mut<T>(values: &mut [T]) -> &mut [T] {
    values
}

fn half(bits: &[u16]) -> &[bf16] {
    bits.reinterpret_cast()
}

fn half_mut(bits: &mut [u16]) -> &mut [bf16] {
    bits.reinterpret_cast_mut()
}

bind!(attention_forward_f32, attention_backward_f32, f32, f32, same, same_mut);
bind!(attention_forward_f64, attention_backward_f64, f64, f64, same, same_mut);
bind!(attention_forward_bf16, attention_backward_bf16, u16, f32, half, half_mut);

pub(crate) fn register(module: &Bound<'_, PyModule>) -> PyResult<()> {
    module.add_function(wrap_pyfunction!(attention_forward_f32, module)?)?;
    module.add_function(wrap_pyfunction!(attention_backward_f32, module)?)?;
    module.add_function(wrap_pyfunction!(attention_forward_f64, module)?)?;
    module.add_function(wrap_pyfunction!(attention_backward_f64, module)?)?;
    module.add_function(wrap_pyfunction!(attention_forward_bf16, module)?)?;
    module.add_function(wrap_pyfunction!(attention_backward_bf16, module)?)
}

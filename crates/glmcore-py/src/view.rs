//! Numpy arrays over memory that a Rust object owns.

use numpy::ndarray::ArrayView1;
use numpy::npyffi::NPY_ARRAY_WRITEABLE;
use numpy::{Element, PyArray1, PyUntypedArrayMethods};
use pyo3::prelude::*;

/// A read-only array over `values` that keeps `owner` alive.
///
/// # Safety
///
/// `values` has to stay in place and unchanged as long as `owner` lives.
pub(crate) unsafe fn view<'py, T: Element>(
    values: &[T],
    owner: Bound<'py, PyAny>,
) -> Bound<'py, PyArray1<T>> {
    // SAFETY: the array holds a reference to `owner`, and the caller vouches for the values until then.
    let array = unsafe { PyArray1::borrow_from_array(&ArrayView1::from(values), owner) };
    // SAFETY: nobody else has seen the array yet. `make_nonwriteable` would look into a table of borrows.
    unsafe { (*array.as_array_ptr()).fields.flags &= !NPY_ARRAY_WRITEABLE };
    array
}

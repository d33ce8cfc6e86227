//! Lists of token ids for Python. Making an integer object for each id of a text would take longer than encoding it: there
//! is one for each id of the vocabulary, made once.

use std::sync::OnceLock;

use pyo3::ffi;
use pyo3::prelude::*;
use pyo3::types::{PyInt, PyList};

/// Lists up to this length are not worth a table of integers.
const SHORT_LIST: usize = 256;
/// Integers are asked for so many ids before their references are counted, and their places twice as many.
const AHEAD: usize = 12;

/// A Python integer for each id, made for the first long list.
pub(crate) struct Integers(OnceLock<Vec<Py<PyInt>>>);

impl Integers {
    pub(crate) const fn new() -> Self {
        Self(OnceLock::new())
    }

    /// A list of ids, all below `vocab_size`, which is always the same.
    pub(crate) fn list<'py>(
        &self,
        py: Python<'py>,
        ids: &[u32],
        vocab_size: usize,
    ) -> PyResult<Bound<'py, PyList>> {
        if ids.len() <= SHORT_LIST && self.0.get().is_none() {
            return PyList::new(py, ids);
        }
        let integers = self.0.get_or_init(|| {
            let integer = |id: usize| PyInt::new(py, id).unbind();
            (0..vocab_size).map(integer).collect()
        });
        let len = isize::try_from(ids.len()).expect("memory is below 2^63");
        // SAFETY: the interpreter is held; a new list or an error comes back.
        let list = unsafe { Bound::from_owned_ptr_or_err(py, ffi::PyList_New(len)) }?;
        for (place, &id) in (0..len).zip(ids) {
            let at = place.cast_unsigned();
            if let Some(&[later, ..]) = ids.get(at + 2 * AHEAD..) {
                prefetch(&raw const integers[later as usize]);
            }
            if let Some(&[soon, ..]) = ids.get(at + AHEAD..) {
                prefetch(integers[soon as usize].as_ptr());
            }
            let integer = integers[id as usize].clone_ref(py).into_ptr();
            // SAFETY: the list is new and has this place; it takes over the reference.
            unsafe { ffi::PyList_SetItem(list.as_ptr(), place, integer) };
        }
        Ok(list.cast_into()?)
    }
}

/// Asks for the cache line at an address; does nothing where there is no such instruction.
#[inline]
fn prefetch<T>(address: *const T) {
    let _ = address;
    #[cfg(target_arch = "x86_64")]
    {
        use std::arch::x86_64::{_MM_HINT_T0, _mm_prefetch};
        // SAFETY: a prefetch reads nothing and never faults, whatever the address.
        unsafe { _mm_prefetch::<_MM_HINT_T0>(address.cast()) };
    }
}

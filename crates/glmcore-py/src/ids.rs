//! Token ids from Python.

use numpy::PyReadonlyArray1;
use pyo3::prelude::*;
use pyo3::types::PyList;

use crate::error::TokenizerError;

/// Ids from Python: an array is taken as it stands, everything else is copied.
pub(crate) enum Ids<'py> {
    Array(PyReadonlyArray1<'py, i32>),
    Copied(Vec<u32>),
}

impl<'py> Ids<'py> {
    /// Ids of an array, a list or anything that gives integers.
    pub(crate) fn of(ids: &Bound<'py, PyAny>) -> PyResult<Self> {
        if let Ok(array) = ids.extract::<PyReadonlyArray1<'py, i32>>() {
            return match array.as_slice() {
                Ok(_) => Ok(Self::Array(array)),
                Err(_) => Ok(Self::Copied(
                    array.as_array().iter().map(|&id| id.cast_unsigned()).collect(),
                )),
            };
        }
        let to_id = |position: usize, id: &Bound<'_, PyAny>| {
            let id: i64 = id.extract().map_err(|_| not_ids())?;
            u32::try_from(id).map_err(|_| not_an_id(id, position))
        };
        if let Ok(list) = ids.cast::<PyList>() {
            let ids = list.iter().enumerate().map(|(position, id)| to_id(position, &id));
            return Ok(Self::Copied(ids.collect::<PyResult<_>>()?));
        }
        let mut copied = Vec::with_capacity(ids.len().unwrap_or(0));
        for (position, id) in ids.try_iter().map_err(|_| not_ids())?.enumerate() {
            copied.push(to_id(position, &id?)?);
        }
        Ok(Self::Copied(copied))
    }

    /// All of them.
    pub(crate) fn as_slice(&self) -> &[u32] {
        match self {
            // A negative id becomes one that no vocabulary has.
            Self::Array(array) => {
                bytemuck::cast_slice(array.as_slice().expect("this has been checked"))
            }
            Self::Copied(ids) => ids,
        }
    }
}

fn not_ids() -> PyErr {
    TokenizerError::new_err("ids must be a flat sequence of integers")
}

pub(crate) fn not_an_id(id: i64, position: usize) -> PyErr {
    TokenizerError::new_err(format!("token id {id} at position {position} is not an id"))
}

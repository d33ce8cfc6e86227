//! The only place where a Rust error becomes a Python exception.

pyo3::import_exception!(glmcore.errors, DataError);
pyo3::import_exception!(glmcore.errors, Fp8Error);
pyo3::import_exception!(glmcore.errors, PackingError);
pyo3::import_exception!(glmcore.errors, TokenizerError);
pyo3::import_exception!(glmcore.errors, TrajectoryError);

/// Turns the error of a crate into the Python class that stands for it.
pub(crate) trait OrRaise<T> {
    fn or_raise(self) -> pyo3::PyResult<T>;
}

impl<T> OrRaise<T> for Result<T, glmcore_tokenizer::Error> {
    fn or_raise(self) -> pyo3::PyResult<T> {
        self.map_err(|error| TokenizerError::new_err(error.to_string()))
    }
}

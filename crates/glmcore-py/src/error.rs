//! The only place where a Rust error becomes a Python exception.

pyo3::import_exception!(glmcore.errors, BufferFullError);
pyo3::import_exception!(glmcore.errors, DataError);
pyo3::import_exception!(glmcore.errors, Fp8Error);
pyo3::import_exception!(glmcore.errors, PackingError);
pyo3::import_exception!(glmcore.errors, RequestError);
pyo3::import_exception!(glmcore.errors, StaleError);
pyo3::import_exception!(glmcore.errors, TokenizerError);
pyo3::import_exception!(glmcore.errors, TrajectoryError);

/// Turns the error of a crate into the Python class that stands for it.
pub(crate) trait OrRaise<T> {
    fn or_raise(self) -> pyo3::PyResult<T>;
}

macro_rules! raise_as {
    ($($error:ty => $class:ident),* $(,)?) => {$(
        impl<T> OrRaise<T> for Result<T, $error> {
            fn or_raise(self) -> pyo3::PyResult<T> {
                self.map_err(|error| $class::new_err(error.to_string()))
            }
        }
    )*};
}

raise_as! {
    glmcore_chat::Error => RequestError,
    glmcore_clean::Error => DataError,
    glmcore_data::Error => DataError,
    glmcore_fp8::Error => Fp8Error,
    glmcore_packing::Error => PackingError,
    glmcore_tokenizer::Error => TokenizerError,
}

impl<T> OrRaise<T> for Result<T, glmcore_trajectory::Error> {
    fn or_raise(self) -> pyo3::PyResult<T> {
        use glmcore_trajectory::Error;
        self.map_err(|error| match error {
            Error::Full { .. } => BufferFullError::new_err(error.to_string()),
            Error::WouldBeStale { .. } => StaleError::new_err(error.to_string()),
            _ => TrajectoryError::new_err(error.to_string()),
        })
    }
}

//! The only place where a Rust error becomes a Python exception.

pyo3::import_exception!(glmcore.errors, DataError);
pyo3::import_exception!(glmcore.errors, Fp8Error);
pyo3::import_exception!(glmcore.errors, PackingError);
pyo3::import_exception!(glmcore.errors, TokenizerError);
pyo3::import_exception!(glmcore.errors, TrajectoryError);

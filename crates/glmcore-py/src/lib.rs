//! The Python face of the glmcore crates: `glmcore._core`.
//!
//! No algorithm lives here. A function converts its arguments, releases the interpreter, calls a
//! crate and moves the result out.
#![expect(clippy::needless_pass_by_value, reason = "PyO3 extracts arguments by value")]

mod attention;
mod chat;
mod checksum;
mod clean;
mod data;
mod decode;
mod error;
mod fp8;
mod ids;
mod json_lines;
mod lease;
mod megatron;
mod packing;
mod rollouts;
mod samples;
mod stream;
mod tokenizer;
mod trainer;
mod trajectory;
mod view;
mod weights;

use pyo3::prelude::*;

/// The compiled core. Import `glmcore`, not this module.
#[pymodule(gil_used = false)]
fn _core(module: &Bound<'_, PyModule>) -> PyResult<()> {
    module.add("__version__", env!("CARGO_PKG_VERSION"))?;
    attention::register(module)?;
    tokenizer::register(module)?;
    trainer::register(module)?;
    chat::register(module)?;
    checksum::register(module)?;
    clean::register(module)?;
    data::register(module)?;
    json_lines::register(module)?;
    decode::register(module)?;
    megatron::register(module)?;
    samples::register(module)?;
    packing::register(module)?;
    stream::register(module)?;
    lease::register(module)?;
    trajectory::register(module)?;
    fp8::register(module)?;
    weights::register(module)
}

//! Binding of `glmcore-data`.

use std::path::PathBuf;
use std::sync::{Arc, Mutex};

use glmcore_data::{Lengths, Mixture, ShardWriter, Shuffle, Source, TokenShards, Tokens};
use numpy::{IntoPyArray, PyArray1, PyReadonlyArray1};
use pyo3::prelude::*;

use crate::error::{DataError, OrRaise};

/// Writes one token shard; the file appears when it is finished.
#[pyclass(frozen, name = "CoreShardWriter", module = "glmcore._core")]
struct PyShardWriter {
    /// None once finished or abandoned.
    inner: Mutex<Option<ShardWriter>>,
}

#[pymethods]
impl PyShardWriter {
    /// A writer to `path`.
    #[new]
    fn new(path: PathBuf, vocab_size: u32, with_loss_mask: bool) -> PyResult<Self> {
        let writer = ShardWriter::create(path, vocab_size, with_loss_mask).or_raise()?;
        Ok(Self { inner: Mutex::new(Some(writer)) })
    }

    /// Add a document.
    fn append(
        &self,
        py: Python<'_>,
        ids: PyReadonlyArray1<'_, i32>,
        loss_mask: Option<PyReadonlyArray1<'_, u8>>,
        source: u16,
        quality: f32,
    ) -> PyResult<()> {
        let strided =
            |_| DataError::new_err("arrays must be C-contiguous: pass np.ascontiguousarray(...)");
        let ids = ids.as_slice().map_err(strided)?;
        let loss_mask =
            loss_mask.as_ref().map(|mask| mask.as_slice().map_err(strided)).transpose()?;
        py.detach(|| match &mut *self.inner.lock().expect("no holder panics") {
            Some(writer) => writer.append(ids, loss_mask, source, quality).or_raise(),
            None => Err(DataError::new_err("the shard has been finished")),
        })
    }

    /// Make the file durable under its name.
    fn finish(&self, py: Python<'_>) -> PyResult<()> {
        let writer = self.inner.lock().expect("no holder panics").take();
        let writer = writer.ok_or_else(|| DataError::new_err("the shard has been finished"))?;
        py.detach(|| writer.finish()).or_raise()
    }

    /// Drop what was written.
    fn abandon(&self) {
        self.inner.lock().expect("no holder panics").take();
    }
}

/// Shards of one vocabulary, memory-mapped, as one list of documents.
#[pyclass(frozen, name = "CoreShards", module = "glmcore._core")]
pub(crate) struct PyShards {
    pub(crate) inner: Arc<TokenShards>,
}

#[pymethods]
impl PyShards {
    /// Map the files.
    #[new]
    fn new(py: Python<'_>, paths: Vec<PathBuf>) -> PyResult<Self> {
        let inner = py.detach(|| TokenShards::open(paths)).or_raise()?;
        Ok(Self { inner: Arc::new(inner) })
    }

    /// Number of documents.
    #[getter]
    fn num_documents(&self) -> u64 {
        self.inner.num_documents()
    }

    /// Number of tokens.
    #[getter]
    fn num_tokens(&self) -> u64 {
        self.inner.num_tokens()
    }

    /// Number of ids in the vocabulary.
    #[getter]
    fn vocab_size(&self) -> u32 {
        self.inner.vocab_size()
    }

    /// Tokens of each document.
    fn lengths<'py>(&self, py: Python<'py>) -> PyResult<Bound<'py, PyArray1<u32>>> {
        Ok(py.detach(|| self.inner.lengths()).or_raise()?.into_pyarray(py))
    }

    /// Ids of a document, widened from the file.
    fn tokens<'py>(&self, py: Python<'py>, document: u64) -> PyResult<Bound<'py, PyArray1<i32>>> {
        let widen = |id: u32| i32::try_from(id).expect("vocabularies are below 2^31");
        let ids: Vec<i32> = match self.inner.tokens(document).or_raise()? {
            Tokens::U16(ids) => ids.iter().map(|&id| i32::from(id)).collect(),
            Tokens::U32(ids) => ids.iter().map(|&id| widen(id)).collect(),
        };
        Ok(ids.into_pyarray(py))
    }

    /// 1 for each token of a document that is learned.
    fn loss_mask<'py>(&self, py: Python<'py>, document: u64) -> PyResult<Bound<'py, PyArray1<u8>>> {
        let length = self.inner.length(document).or_raise()? as usize;
        let (mut ids, mut mask) = (vec![0; length], vec![0; length]);
        self.inner.copy(document, 0, &mut ids, &mut mask).or_raise()?;
        Ok(mask.into_pyarray(py))
    }

    /// Check every checksum.
    fn verify(&self, py: Python<'_>) -> PyResult<()> {
        py.detach(|| self.inner.verify()).or_raise()
    }
}

/// Source, document and length of each draw.
type Draws<'py> = (Bound<'py, PyArray1<u16>>, Bound<'py, PyArray1<u64>>, Bound<'py, PyArray1<u32>>);

/// Draws documents from several sources by weight.
#[pyclass(frozen, name = "CoreMixture", module = "glmcore._core")]
struct PyMixture {
    inner: Mutex<Mixture<Arc<TokenShards>>>,
}

#[pymethods]
impl PyMixture {
    /// A mixture at its beginning.
    #[new]
    fn new(sources: Vec<(String, f64, PyRef<'_, PyShards>)>, seed: u64) -> PyResult<Self> {
        let sources = sources
            .into_iter()
            .map(|(name, weight, shards)| Source {
                name,
                weight,
                documents: Arc::clone(&shards.inner),
            })
            .collect();
        Ok(Self { inner: Mutex::new(Mixture::new(sources, seed).or_raise()?) })
    }

    /// Draw documents until they have `min_tokens` tokens.
    fn draw<'py>(&self, py: Python<'py>, min_tokens: u64) -> PyResult<Draws<'py>> {
        let draws = py
            .detach(|| self.inner.lock().expect("no holder panics").draw(min_tokens, usize::MAX))
            .or_raise()?;
        Ok((
            draws.source.into_pyarray(py),
            draws.document.into_pyarray(py),
            draws.length.into_pyarray(py),
        ))
    }

    /// How often all documents of each source were drawn.
    fn epochs(&self) -> Vec<u64> {
        self.inner.lock().expect("no holder panics").epochs()
    }
}

/// The first `count` places of the shuffled order of `len` things that belongs to `seed` and `name`.
#[pyfunction]
fn shuffled(
    py: Python<'_>,
    len: u32,
    count: u32,
    seed: u64,
    name: &str,
) -> PyResult<Py<PyArray1<u32>>> {
    if count > len {
        return Err(DataError::new_err(format!("cannot take {count} of {len}")));
    }
    let order: Vec<u32> = py.detach(|| {
        let shuffle = Shuffle::new(len.into(), seed, name, 0);
        (0..u64::from(count)).map(|k| u32::try_from(shuffle.at(k)).expect("below len")).collect()
    });
    Ok(order.into_pyarray(py).unbind())
}

pub(crate) fn register(module: &Bound<'_, PyModule>) -> PyResult<()> {
    module.add_class::<PyShardWriter>()?;
    module.add_class::<PyShards>()?;
    module.add_class::<PyMixture>()?;
    module.add_function(wrap_pyfunction!(shuffled, module)?)
}

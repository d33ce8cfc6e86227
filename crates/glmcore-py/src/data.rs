//! Binding of `glmcore-data`.

use std::path::PathBuf;
use std::sync::{Arc, Mutex, PoisonError};

use glmcore_data::{
    Draws, Lengths, MegatronFile, Mixture, Progress, ShardWriter, Shuffle, Source, TokenFile,
    TokenShards, Tokens,
};
use glmcore_packing::Piece;
use numpy::{Element, IntoPyArray, PyArray1, PyReadonlyArray1};
use pyo3::prelude::*;

use crate::error::{DataError, OrRaise, PackingError};
use crate::json_lines::bounds;
use crate::packing::{BatchArrays, OutArrays, Pieces, count, fill_arrays};
use crate::view::view;

/// Documents drawn between two looks at Ctrl-C: about 20 ms.
const DRAWS_PER_CHUNK: usize = 100_000;

/// Writes one shard.
#[pyclass(frozen, module = "glmcore._core")]
struct CoreShardWriter(Mutex<Option<ShardWriter>>); // none once finished or dropped

/// Token ids of either width.
#[derive(FromPyObject)]
enum Ids<'py> {
    Narrow(PyReadonlyArray1<'py, i32>),
    Wide(PyReadonlyArray1<'py, i64>),
}

#[pymethods]
impl CoreShardWriter {
    /// Begin a shard.
    #[new]
    fn new(path: PathBuf, vocab_size: u32, with_loss_mask: bool) -> PyResult<Self> {
        let writer = ShardWriter::create(path, vocab_size, with_loss_mask).or_raise()?;
        Ok(Self(Mutex::new(Some(writer))))
    }

    /// Add a document.
    fn append(
        &self,
        py: Python<'_>,
        ids: Ids<'_>,
        loss_mask: Option<PyReadonlyArray1<'_, u8>>,
        source: u16,
        quality: f32,
    ) -> PyResult<()> {
        let mask = loss_mask.as_ref().map(|mask| contiguous(mask, "loss_mask")).transpose()?;
        match &ids {
            Ids::Narrow(ids) => {
                let ids = contiguous(ids, "ids")?;
                self.with(py, |writer| writer.append(ids, mask, source, quality))
            }
            Ids::Wide(ids) => {
                let ids = contiguous(ids, "ids")?;
                self.with(py, |writer| writer.append(ids, mask, source, quality))
            }
        }
    }

    /// Add many documents, each with `end` behind it.
    fn append_batch(
        &self,
        py: Python<'_>,
        ids: PyReadonlyArray1<'_, i32>,
        offsets: PyReadonlyArray1<'_, i64>,
        end: Option<i32>,
        source: u16,
        quality: f32,
    ) -> PyResult<()> {
        let ids = contiguous(&ids, "ids")?;
        let offsets = bounds(&offsets, ids.len())?;
        self.with(py, |writer| writer.append_batch(ids, &offsets, end, source, quality))
    }

    /// Complete the file and give it its name.
    fn finish(&self, py: Python<'_>) -> PyResult<()> {
        match py.detach(|| self.take()) {
            Some(writer) => py.detach(|| writer.finish()).or_raise(),
            None => Err(closed()),
        }
    }

    /// Remove what was written, unless finished.
    fn abort(&self, py: Python<'_>) {
        py.detach(|| drop(self.take()));
    }

    /// Number of documents so far.
    #[getter]
    fn num_documents(&self, py: Python<'_>) -> PyResult<u64> {
        self.with(py, |writer| Ok(writer.num_documents()))
    }

    /// Number of tokens so far.
    #[getter]
    fn num_tokens(&self, py: Python<'_>) -> PyResult<u64> {
        self.with(py, |writer| Ok(writer.num_tokens()))
    }
}

impl CoreShardWriter {
    fn with<T: Send>(
        &self,
        py: Python<'_>,
        call: impl FnOnce(&mut ShardWriter) -> Result<T, glmcore_data::Error> + Send,
    ) -> PyResult<T> {
        py.detach(|| match &mut *self.0.lock().unwrap_or_else(PoisonError::into_inner) {
            Some(writer) => call(writer).or_raise(),
            None => Err(closed()),
        })
    }

    fn take(&self) -> Option<ShardWriter> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).take()
    }
}

fn closed() -> PyErr {
    DataError::new_err("the shard is closed: create another ShardWriter")
}

/// Shards of one vocabulary, read as one.
#[pyclass(frozen, module = "glmcore._core")]
pub(crate) struct CoreShards(pub(crate) Arc<TokenShards>);

#[pymethods]
impl CoreShards {
    /// Map shards.
    #[new]
    fn new(py: Python<'_>, paths: Vec<PathBuf>) -> PyResult<Self> {
        py.detach(|| TokenShards::open(paths)).or_raise().map(|shards| Self(Arc::new(shards)))
    }

    /// Map Megatron data sets.
    #[staticmethod]
    fn open_megatron(py: Python<'_>, prefixes: Vec<PathBuf>, vocab_size: u32) -> PyResult<Self> {
        let shards = py.detach(|| {
            let open = |prefix| MegatronFile::open(prefix, vocab_size).map(TokenFile::Megatron);
            TokenShards::new(prefixes.into_iter().map(open).collect::<Result<_, _>>()?)
        });
        shards.or_raise().map(|shards| Self(Arc::new(shards)))
    }

    /// Number of documents.
    fn __len__(&self) -> usize {
        usize::try_from(self.0.num_documents())
            .expect("every document has an index entry in memory")
    }

    /// Number of tokens of all documents.
    #[getter]
    fn num_tokens(&self) -> u64 {
        self.0.num_tokens()
    }

    /// Number of ids in the vocabulary.
    #[getter]
    fn vocab_size(&self) -> u32 {
        self.0.vocab_size()
    }

    /// Whether a shard says which tokens are learned.
    #[getter]
    fn has_loss_mask(&self) -> bool {
        self.0.has_loss_mask()
    }

    /// Token ids of a document, in place.
    fn tokens<'py>(slf: &Bound<'py, Self>, document: u64) -> PyResult<Bound<'py, PyAny>> {
        let owner = slf.clone().into_any();
        Ok(match slf.get().0.tokens(document).or_raise()? {
            // SAFETY: the mapping lives in the frozen owner, and shards are never written again.
            Tokens::U16(ids) => unsafe { view(ids, owner) }.into_any(),
            Tokens::U32(ids) => {
                // SAFETY: i32 has the layout of u32 and no invalid values; the slice is the same memory.
                let ids =
                    unsafe { std::slice::from_raw_parts(ids.as_ptr().cast::<i32>(), ids.len()) };
                // SAFETY: the mapping lives in the frozen owner, and shards are never written again.
                unsafe { view(ids, owner) }.into_any()
            }
        })
    }

    /// 1 for each token of a document that is learned, 0 for the rest.
    fn loss_mask<'py>(&self, py: Python<'py>, document: u64) -> PyResult<Bound<'py, PyArray1<u8>>> {
        let mask = py.detach(|| {
            let len = self.0.length(document)? as usize;
            let mut mask = vec![0; len];
            self.0.copy(document, 0, &mut vec![0; len], &mut mask).map(|()| mask)
        });
        mask.or_raise().map(|mask| mask.into_pyarray(py))
    }

    /// Source of a document.
    fn source(&self, document: u64) -> PyResult<u16> {
        self.0.source(document).or_raise()
    }

    /// Quality of a document.
    fn quality(&self, document: u64) -> PyResult<f32> {
        self.0.quality(document).or_raise()
    }

    /// Number of tokens of every document.
    fn lengths<'py>(&self, py: Python<'py>) -> PyResult<Bound<'py, PyArray1<u32>>> {
        py.detach(|| self.0.lengths()).or_raise().map(|lengths| lengths.into_pyarray(py))
    }

    /// Check every byte.
    fn verify(&self, py: Python<'_>) -> PyResult<()> {
        for file in self.0.files() {
            py.detach(|| file.verify()).or_raise()?;
            py.check_signals()?;
        }
        Ok(())
    }
}

/// Documents drawn from a mixture, and where their tokens are.
#[pyclass(frozen, module = "glmcore._core")]
struct CoreDraws {
    draws: Draws,
    shards: Vec<Arc<TokenShards>>,
}

#[pymethods]
impl CoreDraws {
    /// Number of the source of each document.
    #[getter]
    fn source<'py>(slf: &Bound<'py, Self>) -> Bound<'py, PyArray1<u16>> {
        // SAFETY: the class is frozen and its vectors never change.
        unsafe { view(&slf.get().draws.source, slf.clone().into_any()) }
    }

    /// Number of each document in its source.
    #[getter]
    fn document<'py>(slf: &Bound<'py, Self>) -> Bound<'py, PyArray1<u64>> {
        // SAFETY: the class is frozen and its vectors never change.
        unsafe { view(&slf.get().draws.document, slf.clone().into_any()) }
    }

    /// Number of tokens of each document.
    #[getter]
    fn length<'py>(slf: &Bound<'py, Self>) -> Bound<'py, PyArray1<u32>> {
        // SAFETY: the class is frozen and its vectors never change.
        unsafe { view(&slf.get().draws.length, slf.clone().into_any()) }
    }

    /// Arrays of some rows of a packing of these documents.
    #[expect(clippy::too_many_arguments, reason = "the Python wrapper groups them")]
    fn fill<'py>(
        &self,
        py: Python<'py>,
        pieces: &Bound<'py, Pieces>,
        first_row: usize,
        num_rows: usize,
        capacity: i64,
        pad_id: i32,
        out: Option<OutArrays<'py>>,
    ) -> PyResult<BatchArrays<'py>> {
        let (pieces, capacity) = (&pieces.get().0, count("capacity", capacity)?);
        let rows = first_row..first_row.saturating_add(num_rows);
        let copy = |piece: Piece, ids: &mut [i32], mask: &mut [u8]| self.copy(piece, ids, mask);
        fill_arrays(py, pieces, rows, (capacity, pad_id), out, copy, |_| Ok(()))
    }
}

impl CoreDraws {
    fn copy(&self, piece: Piece, ids: &mut [i32], mask: &mut [u8]) -> Result<(), FillError> {
        let draw = piece.doc as usize;
        let Some(&source) = self.draws.source.get(draw) else {
            let (packed, given) = (draw + 1, self.draws.source.len());
            return Err(glmcore_packing::Error::DocumentCount { packed, given }.into());
        };
        let document = self.draws.document[draw];
        self.shards[usize::from(source)]
            .copy(document, piece.start, ids, mask)
            .map_err(FillError::Data)
    }
}

/// What can go wrong while rows are filled from shards.
pub(crate) enum FillError {
    Packing(glmcore_packing::Error),
    Data(glmcore_data::Error),
}

impl<T> OrRaise<T> for Result<T, FillError> {
    fn or_raise(self) -> PyResult<T> {
        self.map_err(|error| match error {
            FillError::Packing(error) => PackingError::new_err(error.to_string()),
            FillError::Data(error) => DataError::new_err(error.to_string()),
        })
    }
}

impl From<glmcore_packing::Error> for FillError {
    fn from(error: glmcore_packing::Error) -> Self {
        Self::Packing(error)
    }
}

/// Sources of a mixture from their parts.
pub(crate) fn sources(
    names: Vec<String>,
    weights: Vec<f64>,
    shards: Vec<Bound<'_, CoreShards>>,
) -> Vec<Source<Arc<TokenShards>>> {
    let parts = names.into_iter().zip(weights).zip(shards);
    let source = |((name, weight), shards): ((String, f64), Bound<'_, CoreShards>)| Source {
        name,
        weight,
        documents: shards.get().0.clone(),
    };
    parts.map(source).collect()
}

/// Documents of a mixture from a state on, until there are enough tokens. The state is, for each source,
/// how many documents and tokens were drawn.
#[pyfunction]
fn draw(
    py: Python<'_>,
    names: Vec<String>,
    weights: Vec<f64>,
    shards: Vec<Bound<'_, CoreShards>>,
    seed: u64,
    min_tokens: u64,
    progress: Vec<(u64, u64)>,
) -> PyResult<CoreDraws> {
    let sources = sources(names, weights, shards);
    let shards = sources.iter().map(|source| source.documents.clone()).collect();
    let mut mixture = Mixture::new(sources, seed).or_raise()?;
    if !progress.is_empty() {
        let state = |(documents, tokens)| Progress { documents, tokens };
        mixture.seek(&progress.into_iter().map(state).collect::<Vec<_>>()).or_raise()?;
    }
    let mut draws = Draws::default();
    while draws.num_tokens < min_tokens {
        let missing = min_tokens - draws.num_tokens;
        draws.append(py.detach(|| mixture.draw(missing, DRAWS_PER_CHUNK)).or_raise()?);
        py.check_signals()?;
    }
    Ok(CoreDraws { draws, shards })
}

/// The numbers below `len` in the order that belongs to a seed and a name.
#[pyfunction]
fn shuffled<'py>(py: Python<'py>, len: u32, seed: u64, name: &str) -> Bound<'py, PyArray1<u32>> {
    let order: Vec<u32> = py.detach(|| {
        let shuffle = Shuffle::new(len.into(), seed, name, 0);
        let at = |k: u32| u32::try_from(shuffle.at(k.into())).expect("places are below the length");
        (0..len).map(at).collect()
    });
    order.into_pyarray(py)
}

fn contiguous<'a, T: Element>(array: &'a PyReadonlyArray1<'_, T>, name: &str) -> PyResult<&'a [T]> {
    array.as_slice().map_err(|_| {
        DataError::new_err(format!(
            "{name} must be C-contiguous: pass np.ascontiguousarray({name})"
        ))
    })
}

pub(crate) fn register(module: &Bound<'_, PyModule>) -> PyResult<()> {
    module.add_class::<CoreShardWriter>()?;
    module.add_class::<CoreShards>()?;
    module.add_class::<CoreDraws>()?;
    module.add_function(wrap_pyfunction!(draw, module)?)?;
    module.add_function(wrap_pyfunction!(shuffled, module)?)
}

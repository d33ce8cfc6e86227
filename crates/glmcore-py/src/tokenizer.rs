//! Binding of `glmcore-tokenizer`.

use std::sync::{Arc, Mutex};

use glmcore_tokenizer::{
    EncodedBatch, GLM4_SPECIAL_TOKENS, Merger, Special, StreamDecoder, Tokenizer, Trainer,
    encode_batch,
};
use numpy::{IntoPyArray, PyArray1, PyReadonlyArray1};
use pyo3::prelude::*;
use pyo3::types::PyBytes;

use crate::error::{OrRaise, TokenizerError};

/// A byte-level BPE tokenizer.
#[pyclass(frozen, name = "CoreTokenizer", module = "glmcore._core")]
struct PyTokenizer {
    inner: Arc<Tokenizer>,
}

/// Ids of a batch and the bounds of its texts.
type FlatBatch<'py> = (Bound<'py, PyArray1<i32>>, Bound<'py, PyArray1<i64>>);

#[pymethods]
impl PyTokenizer {
    /// Read the text of a tokenizer.json.
    #[staticmethod]
    fn from_json(py: Python<'_>, text: &str) -> PyResult<Self> {
        let inner = py.detach(|| Tokenizer::from_json(text)).or_raise()?;
        Ok(Self { inner: Arc::new(inner) })
    }

    /// The text of a tokenizer.json.
    fn to_json(&self, py: Python<'_>) -> String {
        py.detach(|| self.inner.to_json())
    }

    /// Ids of `text`; special tokens in it stay text unless `parse_special`.
    fn encode<'py>(
        &self,
        py: Python<'py>,
        text: &str,
        parse_special: bool,
    ) -> Bound<'py, PyArray1<i32>> {
        let ids = py.detach(|| signed(self.inner.encode(text, special(parse_special))));
        ids.into_pyarray(py)
    }

    /// Ids of all texts and the bounds of each.
    fn encode_batch<'py>(
        &self,
        py: Python<'py>,
        texts: Vec<String>,
        parse_special: bool,
        num_threads: usize,
    ) -> FlatBatch<'py> {
        let (ids, offsets) = py.detach(|| {
            let EncodedBatch { ids, offsets } =
                encode_batch(&self.inner, &texts, special(parse_special), num_threads);
            let offsets: Vec<i64> = offsets
                .into_iter()
                .map(|offset| i64::try_from(offset).expect("memory is below 2^63"))
                .collect();
            (signed(ids), offsets)
        });
        (ids.into_pyarray(py), offsets.into_pyarray(py))
    }

    /// Bytes of `ids`, without the tokens flagged special if `skip_special`.
    fn decode<'py>(
        &self,
        py: Python<'py>,
        ids: PyReadonlyArray1<'py, i32>,
        skip_special: bool,
    ) -> PyResult<Bound<'py, PyBytes>> {
        let ids = ids.as_slice().map_err(|_| {
            TokenizerError::new_err("ids must be C-contiguous: pass np.ascontiguousarray(ids)")
        })?;
        let bytes = py.detach(|| {
            let ids = unsigned(ids)?;
            let decoded = if skip_special {
                self.inner.decode_without_special(&ids)
            } else {
                self.inner.decode(&ids)
            };
            decoded.or_raise()
        })?;
        Ok(PyBytes::new(py, &bytes))
    }

    /// Number of ids, special tokens included.
    #[getter]
    fn vocab_size(&self) -> usize {
        self.inner.vocab_size()
    }

    /// Text of each added token, by id.
    #[getter]
    fn added_tokens(&self) -> Vec<String> {
        self.inner.added_tokens().iter().map(|token| token.text.clone()).collect()
    }

    /// Id of the token with exactly these bytes.
    fn token_to_id(&self, token: &[u8]) -> Option<u32> {
        self.inner.token_id(token)
    }

    /// Bytes of a token.
    fn id_to_bytes<'py>(&self, py: Python<'py>, id: u32) -> Option<Bound<'py, PyBytes>> {
        self.inner.token_bytes(id).map(|bytes| PyBytes::new(py, bytes))
    }
}

/// Text from tokens as they come.
#[pyclass(frozen, name = "CoreStreamDecoder", module = "glmcore._core")]
struct PyStreamDecoder {
    tokenizer: Arc<Tokenizer>,
    inner: Mutex<StreamDecoder>,
}

#[pymethods]
impl PyStreamDecoder {
    /// A decoder at the start of a text.
    #[new]
    fn new(tokenizer: &PyTokenizer) -> Self {
        Self { tokenizer: Arc::clone(&tokenizer.inner), inner: Mutex::new(StreamDecoder::new()) }
    }

    /// Text that `id` completes.
    fn push(&self, id: i64) -> PyResult<String> {
        let [id] = unsigned(&[id])?.try_into().expect("one id gives one id");
        self.inner.lock().expect("no holder panics").push(&self.tokenizer, id).or_raise()
    }

    /// Text of the bytes still held back.
    fn finish(&self) -> String {
        self.inner.lock().expect("no holder panics").finish()
    }
}

/// Learns merges: feed all text, then merge in as many steps as the caller likes.
#[pyclass(frozen, name = "CoreTrainer", module = "glmcore._core")]
struct PyTrainer {
    state: Mutex<State>,
}

enum State {
    Counting(Trainer),
    Merging(Merger),
    Finished,
}

#[pymethods]
impl PyTrainer {
    /// A trainer that has seen nothing.
    #[new]
    fn new() -> Self {
        Self { state: Mutex::new(State::Counting(Trainer::new())) }
    }

    /// Count the words of `texts`.
    fn feed(&self, py: Python<'_>, texts: Vec<String>, num_threads: usize) -> PyResult<()> {
        py.detach(|| match &mut *self.state.lock().expect("no holder panics") {
            State::Counting(trainer) => {
                trainer.feed(&texts, num_threads);
                Ok(())
            }
            _ => Err(TokenizerError::new_err("text must be fed before the first merge")),
        })
    }

    /// Learn until there are `num_tokens` tokens or no pair is left; gives the number of tokens.
    fn merge_up_to(&self, py: Python<'_>, num_tokens: usize) -> PyResult<usize> {
        py.detach(|| {
            let mut state = self.state.lock().expect("no holder panics");
            if let State::Counting(trainer) = &mut *state {
                *state = State::Merging(std::mem::take(trainer).into_merger());
            }
            match &mut *state {
                State::Merging(merger) => Ok(merger.run(num_tokens)),
                _ => Err(TokenizerError::new_err("training has been finished")),
            }
        })
    }

    /// The tokenizer with `vocab_size` ids, the last of them the special tokens.
    fn finish(
        &self,
        py: Python<'_>,
        vocab_size: usize,
        special_tokens: Vec<String>,
    ) -> PyResult<PyTokenizer> {
        py.detach(|| {
            let mut state = self.state.lock().expect("no holder panics");
            let merger = match std::mem::replace(&mut *state, State::Finished) {
                State::Counting(trainer) => trainer.into_merger(),
                State::Merging(merger) => merger,
                State::Finished => {
                    return Err(TokenizerError::new_err("training has been finished"));
                }
            };
            let num_special = special_tokens.len();
            let Some(learned) =
                vocab_size.checked_sub(num_special).filter(|&learned| learned >= 256)
            else {
                return Err(glmcore_tokenizer::Error::VocabularyTooSmall {
                    vocab_size,
                    num_special,
                })
                .or_raise();
            };
            let training = merger.finish(learned).or_raise()?;
            let special: Vec<&str> = special_tokens.iter().map(String::as_str).collect();
            Ok(PyTokenizer {
                inner: Arc::new(Tokenizer::from_training(&training, &special).or_raise()?),
            })
        })
    }
}

fn special(parse: bool) -> Special {
    if parse { Special::Parse } else { Special::AsText }
}

fn signed(ids: Vec<u32>) -> Vec<i32> {
    ids.into_iter().map(|id| i32::try_from(id).expect("vocabularies are below 2^31")).collect()
}

fn unsigned<I: Copy + Into<i64>>(ids: &[I]) -> PyResult<Vec<u32>> {
    let convert = |(position, &id): (usize, &I)| {
        let id: i64 = id.into();
        u32::try_from(id).map_err(|_| {
            TokenizerError::new_err(format!("token id {id} at position {position} is not an id"))
        })
    };
    ids.iter().enumerate().map(convert).collect()
}

pub(crate) fn register(module: &Bound<'_, PyModule>) -> PyResult<()> {
    module.add("GLM4_SPECIAL_TOKENS", GLM4_SPECIAL_TOKENS.to_vec())?;
    module.add_class::<PyTokenizer>()?;
    module.add_class::<PyStreamDecoder>()?;
    module.add_class::<PyTrainer>()
}

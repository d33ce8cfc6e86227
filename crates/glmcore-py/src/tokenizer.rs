//! Binding of `glmcore-tokenizer`.

use std::borrow::Cow;
use std::ops::Range;
use std::path::PathBuf;
use std::sync::{Arc, Mutex};

use glmcore_tokenizer::{
    AddedToken, CL100K_PATTERN, EncodedBatch, GLM4_PATTERN, GLM4_SPECIAL_TOKENS, GPT2_PATTERN,
    O200K_PATTERN, QWEN2_PATTERN, Special, StreamDecoder, Tokenizer,
};
use numpy::ndarray::Array2;
use numpy::{IntoPyArray, PyArray1, PyArray2, PyReadonlyArray1};
use pyo3::intern;
use pyo3::prelude::*;
use pyo3::types::{IntoPyDict, PyBytes, PyList, PyString};

use crate::error::{OrRaise, TokenizerError};
use crate::ids::{Ids, not_an_id};
use crate::integers::Integers;

/// A byte-level BPE tokenizer.
#[pyclass(frozen, name = "CoreTokenizer", module = "glmcore._core")]
pub(crate) struct PyTokenizer {
    inner: Arc<Tokenizer>,
    integers: Integers,
}

/// Ids of a batch and the bounds of its texts.
type FlatBatch<'py> = (Bound<'py, PyArray1<i32>>, Bound<'py, PyArray1<i64>>);
/// Ids of a text and where each begins and ends in it.
type IdsAndSpans<'py> = (Bound<'py, PyArray1<i32>>, Bound<'py, PyArray2<i64>>);

impl PyTokenizer {
    /// The tokenizer itself.
    pub(crate) fn shared(&self) -> Arc<Tokenizer> {
        Arc::clone(&self.inner)
    }

    pub(crate) fn new(inner: Tokenizer) -> Self {
        Self { inner: Arc::new(inner), integers: Integers::new() }
    }

    fn decode_to_bytes(&self, ids: &[u32], skip_special: bool) -> PyResult<Vec<u8>> {
        let decoded = if skip_special {
            self.inner.decode_without_special(ids)
        } else {
            self.inner.decode(ids)
        };
        decoded.or_raise()
    }
}

#[pymethods]
impl PyTokenizer {
    /// Read the text of a tokenizer.json.
    #[staticmethod]
    fn from_json(py: Python<'_>, text: &str) -> PyResult<Self> {
        py.detach(|| Tokenizer::from_json(text)).or_raise().map(Self::new)
    }

    /// Read a tokenizer.json.
    #[staticmethod]
    fn from_json_file(py: Python<'_>, path: PathBuf) -> PyResult<Self> {
        py.detach(|| Tokenizer::from_json_file(&path)).or_raise().map(Self::new)
    }

    /// Read a rank file of tiktoken.
    #[staticmethod]
    fn from_tiktoken_file(
        py: Python<'_>,
        path: PathBuf,
        pattern: &str,
        special_tokens: Vec<String>,
    ) -> PyResult<Self> {
        let special: Vec<&str> = special_tokens.iter().map(String::as_str).collect();
        py.detach(|| Tokenizer::from_tiktoken_file(&path, pattern, &special))
            .or_raise()
            .map(Self::new)
    }

    /// Read the compiled form.
    #[staticmethod]
    fn from_compiled_file(py: Python<'_>, path: PathBuf) -> PyResult<Self> {
        py.detach(|| Tokenizer::from_compiled_file(&path)).or_raise().map(Self::new)
    }

    /// The text of a tokenizer.json.
    fn to_json(&self, py: Python<'_>) -> String {
        py.detach(|| self.inner.to_json())
    }

    /// The compiled form.
    fn to_compiled<'py>(&self, py: Python<'py>) -> Bound<'py, PyBytes> {
        let bytes = py.detach(|| self.inner.to_compiled());
        PyBytes::new(py, &bytes)
    }

    /// Ids of `text`; added tokens in it stay text unless `parse_special`.
    fn encode<'py>(
        &self,
        py: Python<'py>,
        text: &Bound<'py, PyString>,
        parse_special: bool,
    ) -> Bound<'py, PyArray1<i32>> {
        let text = to_str(text);
        let ids = py.detach(|| self.inner.encode(&text, special(parse_special)));
        signed(ids).into_pyarray(py)
    }

    /// Ids of `text` as a list.
    fn encode_to_list<'py>(
        &self,
        py: Python<'py>,
        text: &Bound<'py, PyString>,
        parse_special: bool,
    ) -> PyResult<Bound<'py, PyList>> {
        let text = to_str(text);
        let ids = py.detach(|| self.inner.encode(&text, special(parse_special)));
        self.integers.list(py, &ids, self.inner.vocab_size())
    }

    /// Ids of bytes of which some may be no UTF-8.
    fn encode_bytes<'py>(&self, py: Python<'py>, data: &[u8]) -> Bound<'py, PyArray1<i32>> {
        let ids = py.detach(|| self.inner.encode_bytes(data));
        signed(ids).into_pyarray(py)
    }

    /// Ids of a part of a file's text from byte `start` on, and the byte it ends at.
    fn encode_file_part<'py>(
        &self,
        py: Python<'py>,
        path: PathBuf,
        start: usize,
        min_bytes: usize,
        parse_special: bool,
        num_threads: usize,
    ) -> PyResult<(Bound<'py, PyArray1<i32>>, usize)> {
        let special = special(parse_special);
        let (ids, end) = py
            .detach(|| self.inner.encode_file_part(&path, start, min_bytes, special, num_threads))
            .or_raise()?;
        Ok((signed(ids).into_pyarray(py), end))
    }

    /// Ids of `text` and where each begins and ends in it: in characters if `characters`, else in bytes of UTF-8.
    fn encode_with_offsets<'py>(
        &self,
        py: Python<'py>,
        text: &Bound<'py, PyString>,
        parse_special: bool,
        characters: bool,
    ) -> IdsAndSpans<'py> {
        let text = to_str(text);
        let (ids, spans) = py.detach(|| {
            let (ids, mut spans) = self.inner.encode_with_spans(&text, special(parse_special));
            if characters && !text.is_ascii() {
                to_characters(&text, &mut spans);
            }
            (ids, spans)
        });
        let place = |at: usize| i64::try_from(at).expect("memory is below 2^63");
        let spans = Array2::from_shape_fn((ids.len(), 2), |(token, side)| {
            place(if side == 0 { spans[token].start } else { spans[token].end })
        });
        (signed(ids).into_pyarray(py), spans.into_pyarray(py))
    }

    /// Ids of all texts and the bounds of each.
    fn encode_batch<'py>(
        &self,
        py: Python<'py>,
        texts: Vec<Bound<'py, PyString>>,
        parse_special: bool,
        num_threads: usize,
    ) -> PyResult<FlatBatch<'py>> {
        let texts: Vec<Text<'_, '_>> = texts.iter().map(Text::of).collect::<PyResult<_>>()?;
        let texts: Vec<&str> = texts.iter().map(Text::as_str).collect();
        let EncodedBatch { ids, offsets } =
            py.detach(|| self.inner.encode_batch(&texts, special(parse_special), num_threads));
        let place = |offset| i64::try_from(offset).expect("memory is below 2^63");
        let offsets: Vec<i64> = offsets.into_iter().map(place).collect();
        Ok((signed(ids).into_pyarray(py), offsets.into_pyarray(py)))
    }

    /// Bytes of `ids`, without the tokens flagged special if `skip_special`.
    fn decode<'py>(
        &self,
        py: Python<'py>,
        ids: &Bound<'py, PyAny>,
        skip_special: bool,
    ) -> PyResult<Bound<'py, PyBytes>> {
        let ids = Ids::of(ids)?;
        let slice = ids.as_slice();
        let bytes = py.detach(|| self.decode_to_bytes(slice, skip_special))?;
        Ok(PyBytes::new(py, &bytes))
    }

    /// Text of `ids`, bytes that are no UTF-8 as U+FFFD.
    fn decode_to_text<'py>(
        &self,
        py: Python<'py>,
        ids: &Bound<'py, PyAny>,
        skip_special: bool,
    ) -> PyResult<Bound<'py, PyString>> {
        let ids = Ids::of(ids)?;
        let slice = ids.as_slice();
        let bytes = py.detach(|| self.decode_to_bytes(slice, skip_special))?;
        to_text(py, &bytes)
    }

    /// Text of each item of a batch.
    fn decode_batch<'py>(
        &self,
        py: Python<'py>,
        ids: &Bound<'py, PyAny>,
        offsets: PyReadonlyArray1<'py, i64>,
        skip_special: bool,
    ) -> PyResult<Bound<'py, PyList>> {
        let ids = Ids::of(ids)?;
        let list = PyList::empty(py);
        for bounds in offsets.as_array().windows(2) {
            let item = usize::try_from(bounds[0]).ok().zip(usize::try_from(bounds[1]).ok());
            let item =
                item.and_then(|(start, end)| ids.as_slice().get(start..end)).ok_or_else(|| {
                    TokenizerError::new_err(format!(
                        "offsets {} to {} leave the ids",
                        bounds[0], bounds[1]
                    ))
                })?;
            let bytes = self.decode_to_bytes(item, skip_special)?;
            list.append(to_text(py, &bytes)?)?;
        }
        Ok(list)
    }

    /// Number of ids, added tokens included.
    #[getter]
    fn vocab_size(&self) -> usize {
        self.inner.vocab_size()
    }

    /// Text, id and flag of each added token.
    #[getter]
    fn added_tokens(&self) -> Vec<(String, u32, bool)> {
        let entry = |token: &AddedToken| (token.text.clone(), token.id, token.special);
        self.inner.added_tokens().iter().map(entry).collect()
    }

    /// Ids that the post-processor puts before and after a text.
    #[getter]
    fn template(&self) -> (Vec<u32>, Vec<u32>) {
        let template = self.inner.template();
        (template.before.clone(), template.after.clone())
    }

    /// Patterns that split text, in order.
    #[getter]
    fn patterns(&self) -> Vec<String> {
        self.inner.patterns().map(str::to_owned).collect()
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

/// Text of bytes. Python reads them once and replaces what is no UTF-8 as `String::from_utf8_lossy` does, which would be a
/// second reading.
fn to_text<'py>(py: Python<'py>, bytes: &[u8]) -> PyResult<Bound<'py, PyString>> {
    let bytes = PyBytes::new(py, bytes);
    PyString::from_encoded_object(&bytes, Some(c"utf-8"), Some(c"replace"))
}

/// A text of a batch. Python would keep the UTF-8 of every string that is not ASCII as long as the string lives, which
/// takes a copy and twice the memory: it is made here and goes with the call.
enum Text<'t, 'py> {
    InPlace(&'t str),
    Made(Bound<'py, PyBytes>),
    Replaced(String),
}

impl<'t, 'py> Text<'t, 'py> {
    fn of(text: &'t Bound<'py, PyString>) -> PyResult<Self> {
        if text.call_method0(intern!(text.py(), "isascii"))?.is_truthy()? {
            return Ok(Self::InPlace(text.to_str()?));
        }
        // Lone surrogates cannot be encoded.
        Ok(text
            .encode_utf8()
            .map_or_else(|_| Self::Replaced(text.to_string_lossy().into_owned()), Self::Made))
    }

    fn as_str(&self) -> &str {
        match self {
            Self::InPlace(text) => text,
            // SAFETY: Python has just encoded them as UTF-8, and bytes do not change.
            Self::Made(bytes) => unsafe { std::str::from_utf8_unchecked(bytes.as_bytes()) },
            Self::Replaced(text) => text,
        }
    }
}

/// The UTF-8 of a string; lone surrogates, which no UTF-8 can hold, become U+FFFD.
pub(crate) fn to_str<'t>(text: &'t Bound<'_, PyString>) -> Cow<'t, str> {
    text.to_str().map_or_else(|_| text.to_string_lossy(), Cow::Borrowed)
}

/// Turns bytes of UTF-8 into characters; a token that holds a part of a character spans all of it.
fn to_characters(text: &str, spans: &mut [Range<usize>]) {
    let mut number_of = vec![0; text.len() + 1]; // number of the character that a byte belongs to
    let mut count = 0;
    for (at, c) in text.char_indices() {
        number_of[at..at + c.len_utf8()].fill(count);
        count += 1;
    }
    number_of[text.len()] = count;
    for span in spans {
        let end = if span.start >= span.end {
            number_of[span.start]
        } else {
            number_of[span.end - 1] + 1
        };
        *span = number_of[span.start]..end;
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
        let id = u32::try_from(id).map_err(|_| not_an_id(id, 0))?;
        self.inner.lock().expect("no holder panics").push(&self.tokenizer, id).or_raise()
    }

    /// Text of the bytes still held back.
    fn finish(&self) -> String {
        self.inner.lock().expect("no holder panics").finish()
    }
}

fn special(parse: bool) -> Special {
    if parse { Special::Parse } else { Special::AsText }
}

fn signed(ids: Vec<u32>) -> Vec<i32> {
    bytemuck::cast_vec(ids) // vocabularies are below 2^24
}

pub(crate) fn register(module: &Bound<'_, PyModule>) -> PyResult<()> {
    module.add("GLM4_SPECIAL_TOKENS", GLM4_SPECIAL_TOKENS.to_vec())?;
    let patterns = [
        ("glm4", GLM4_PATTERN),
        ("cl100k", CL100K_PATTERN),
        ("o200k", O200K_PATTERN),
        ("qwen2", QWEN2_PATTERN),
        ("gpt2", GPT2_PATTERN),
    ];
    module.add("PATTERNS", patterns.into_py_dict(module.py())?)?;
    module.add_class::<PyTokenizer>()?;
    module.add_class::<PyStreamDecoder>()
}

//! Binding of `glmcore-clean`.

use std::borrow::Cow;

use glmcore_clean::{
    CODE_FIELDS, Clustering, Copies, Decontaminator, MinHash, QualityClassifier, TEXT_FIELDS,
    Training, Unit,
};
use numpy::ndarray::Array2;
use numpy::{IntoPyArray, PyArray1, PyArray2, PyReadonlyArray1, PyReadonlyArray2};
use pyo3::prelude::*;
use pyo3::types::{PyBytes, PyList, PyString};

use crate::error::{DataError, OrRaise};
use crate::tokenizer::to_str;

/// Bytes of text between two looks at whether Ctrl-C was pressed: a quarter of a second of the slowest function.
const BYTES_PER_CHUNK: usize = 8 << 20;

type Texts<'py> = Vec<Bound<'py, PyString>>;

/// Runs `work` on one chunk of the texts after the other without the interpreter, looking for Ctrl-C in between.
fn by_chunks<R: Send>(
    py: Python<'_>,
    texts: &Texts<'_>,
    work: impl Fn(&[Cow<'_, str>]) -> Vec<R> + Sync,
) -> PyResult<Vec<R>> {
    let mut results = Vec::new();
    let mut chunk = Vec::new();
    let mut bytes = 0;
    for (index, text) in texts.iter().enumerate() {
        chunk.push(to_str(text));
        bytes += chunk[chunk.len() - 1].len();
        if bytes >= BYTES_PER_CHUNK || index + 1 == texts.len() {
            results.extend(py.detach(|| work(&chunk)));
            py.check_signals()?;
            chunk.clear();
            bytes = 0;
        }
    }
    Ok(results)
}

/// Rows of numbers as a matrix.
fn matrix<T: numpy::Element, const N: usize>(
    py: Python<'_>,
    rows: Vec<[T; N]>,
) -> Bound<'_, PyArray2<T>> {
    let count = rows.len();
    let values = rows.into_iter().flatten().collect();
    Array2::from_shape_vec((count, N), values).expect("whole rows").into_pyarray(py)
}

/// Numbers about prose, one row for each text and one column for each of `TEXT_FIELDS`.
#[pyfunction]
fn text_statistics<'py>(
    py: Python<'py>,
    texts: Texts<'py>,
    num_threads: usize,
) -> PyResult<Bound<'py, PyArray2<f64>>> {
    by_chunks(py, &texts, |texts| glmcore_clean::text_statistics(texts, num_threads))
        .map(|rows| matrix(py, rows))
}

/// Numbers about source files, one row for each text and one column for each of `CODE_FIELDS`.
#[pyfunction]
fn code_statistics<'py>(
    py: Python<'py>,
    texts: Texts<'py>,
    num_threads: usize,
) -> PyResult<Bound<'py, PyArray2<f64>>> {
    by_chunks(py, &texts, |texts| glmcore_clean::code_statistics(texts, num_threads))
        .map(|rows| matrix(py, rows))
}

/// Codes and scripts of languages, and how sure they are.
type Languages<'py> = (Bound<'py, PyList>, Bound<'py, PyList>, Bound<'py, PyArray1<f64>>);

/// Language and script of each text.
#[pyfunction]
fn detect_language<'py>(
    py: Python<'py>,
    texts: Texts<'py>,
    num_threads: usize,
) -> PyResult<Languages<'py>> {
    let found = by_chunks(py, &texts, |texts| glmcore_clean::detect_language(texts, num_threads))?;
    let codes = PyList::new(py, found.iter().map(|found| PyString::intern(py, found.code)))?;
    let scripts = PyList::new(py, found.iter().map(|found| PyString::intern(py, found.script)))?;
    let confidence: Vec<f64> = found.iter().map(|found| found.confidence).collect();
    Ok((codes, scripts, confidence.into_pyarray(py)))
}

/// Upper and lower half of the 128-bit hash of each text.
#[pyfunction]
fn exact_hashes<'py>(
    py: Python<'py>,
    texts: Texts<'py>,
    num_threads: usize,
) -> PyResult<Bound<'py, PyArray2<u64>>> {
    let half = |hash: u128| u64::try_from(hash & u128::from(u64::MAX)).expect("64 bits are left");
    by_chunks(py, &texts, |texts| glmcore_clean::exact_hashes(texts, num_threads))
        .map(|hashes| matrix(py, hashes.into_iter().map(|h| [half(h >> 64), half(h)]).collect()))
}

/// `MinHash` signature of each text.
#[pyfunction]
fn minhash<'py>(
    py: Python<'py>,
    texts: Texts<'py>,
    num_permutations: usize,
    shingle: usize,
    seed: u64,
    num_threads: usize,
) -> PyResult<Bound<'py, PyArray2<u32>>> {
    let how = MinHash::new(num_permutations, shingle, seed).or_raise()?;
    let rows = by_chunks(py, &texts, |texts| glmcore_clean::minhash(texts, &how, num_threads))?;
    let shape = (texts.len(), num_permutations);
    Ok(Array2::from_shape_vec(shape, rows).expect("whole rows").into_pyarray(py))
}

/// Text that is kept in place of each text.
#[pyfunction]
#[expect(clippy::too_many_arguments, reason = "the Python face names them")]
fn near_duplicates<'py>(
    py: Python<'py>,
    signatures: PyReadonlyArray2<'py, u32>,
    threshold: f64,
    bands: Option<(usize, usize)>,
    quality: Option<PyReadonlyArray1<'py, f64>>,
    ids: Option<PyReadonlyArray1<'py, u64>>,
    texts: Option<Texts<'py>>,
    shingle: usize,
    num_threads: usize,
) -> PyResult<Bound<'py, PyArray1<u32>>> {
    let num_permutations = signatures.as_array().ncols();
    let contiguous = |name| DataError::new_err(format!("{name} must be C-contiguous"));
    let values = signatures.as_slice().map_err(|_| contiguous("signatures"))?;
    let mut how = Copies::new(num_permutations, threshold).or_raise()?;
    if let Some((bands, rows)) = bands {
        how = how.with_bands(bands, rows).or_raise()?;
    }
    if let Some(quality) = &quality {
        how = how.with_quality(quality.as_slice().map_err(|_| contiguous("quality"))?);
    }
    if let Some(ids) = &ids {
        how = how.with_ids(ids.as_slice().map_err(|_| contiguous("ids"))?);
    }
    let texts: Option<Vec<Cow<'_, str>>> = texts.as_ref().map(|t| t.iter().map(to_str).collect());
    let texts: Option<Vec<&str>> = texts.as_ref().map(|t| t.iter().map(Cow::as_ref).collect());
    if let Some(texts) = &texts {
        how = how.with_texts(texts, shingle);
    }
    let mut clustering = py.detach(|| Clustering::new(values, &how)).or_raise()?;
    while py.detach(|| clustering.step(num_threads)) {
        py.check_signals()?;
    }
    Ok(py.detach(|| clustering.finish()).into_pyarray(py))
}

/// Number of bands and rows for a threshold, and the probability that a pair at the threshold is compared.
#[pyfunction]
fn lsh_bands(num_permutations: usize, threshold: f64) -> PyResult<(usize, usize, f64)> {
    let how = Copies::new(num_permutations, threshold).or_raise()?;
    let (bands, rows) = how.bands();
    Ok((bands, rows, how.recall(threshold)))
}

/// Exact Jaccard similarity of the shingles of two texts.
#[pyfunction]
fn jaccard(
    py: Python<'_>,
    a: &Bound<'_, PyString>,
    b: &Bound<'_, PyString>,
    shingle: usize,
) -> PyResult<f64> {
    MinHash::new(1, shingle, 0).or_raise()?; // checks the shingle
    let (a, b) = (to_str(a), to_str(b));
    Ok(py.detach(|| glmcore_clean::jaccard(&a, &b, shingle)))
}

/// Shares, bounds of each text's spans, and spans.
type OverlapArrays<'py> =
    (Bound<'py, PyArray1<f64>>, Bound<'py, PyArray1<i64>>, Bound<'py, PyArray2<i64>>);

/// Runs of tokens of evaluation texts.
#[pyclass(frozen, module = "glmcore._core")]
struct CoreDecontaminator(Decontaminator);

#[pymethods]
impl CoreDecontaminator {
    #[new]
    fn new(
        py: Python<'_>,
        texts: Texts<'_>,
        letters: bool,
        ngram: usize,
        min_units: usize,
    ) -> PyResult<Self> {
        let texts: Vec<Cow<'_, str>> = texts.iter().map(to_str).collect();
        let unit = if letters { Unit::Letter } else { Unit::Token };
        py.detach(|| Decontaminator::new(&texts, unit, ngram, min_units)).or_raise().map(Self)
    }

    /// Evaluation texts that were too short.
    #[getter]
    fn num_skipped(&self) -> usize {
        self.0.num_skipped()
    }

    /// Number of different runs.
    #[getter]
    fn num_runs(&self) -> usize {
        self.0.num_runs()
    }

    /// Share of each text inside shared runs, and where they are, in characters.
    fn overlaps<'py>(
        &self,
        py: Python<'py>,
        texts: Texts<'py>,
        num_threads: usize,
    ) -> PyResult<OverlapArrays<'py>> {
        let found = by_chunks(py, &texts, |texts| {
            let mut found = self.0.overlaps(texts, num_threads);
            for (text, found) in texts.iter().zip(&mut found) {
                to_characters(text, &mut found.spans);
            }
            found
        })?;
        let place = |at: usize| i64::try_from(at).expect("memory is below 2^63");
        let mut offsets = vec![0];
        let mut spans = Vec::new();
        for found in &found {
            spans.extend(found.spans.iter().map(|&(start, end)| [place(start), place(end)]));
            offsets.push(place(spans.len()));
        }
        let share: Vec<f64> = found.iter().map(|found| found.share).collect();
        Ok((share.into_pyarray(py), offsets.into_pyarray(py), matrix(py, spans)))
    }
}

/// Turns bytes of UTF-8 into characters; the spans are in order.
fn to_characters(text: &str, spans: &mut [(usize, usize)]) {
    let (mut byte, mut character) = (0, 0);
    let mut count_to = |at: usize| {
        character += text[byte..at].chars().count();
        byte = at;
        character
    };
    for span in spans {
        *span = (count_to(span.0), count_to(span.1));
    }
}

/// A linear classifier over hashed runs of tokens.
#[pyclass(frozen, module = "glmcore._core")]
struct CoreQualityClassifier(QualityClassifier);

#[pymethods]
impl CoreQualityClassifier {
    /// Learn from texts labelled true or false.
    #[staticmethod]
    #[expect(clippy::too_many_arguments, reason = "the Python face names them")]
    fn train(
        py: Python<'_>,
        texts: Texts<'_>,
        labels: PyReadonlyArray1<'_, bool>,
        table_bits: u32,
        max_run: u32,
        epochs: u32,
        learning_rate: f64,
        seed: u64,
        num_threads: usize,
    ) -> PyResult<Self> {
        let texts: Vec<Cow<'_, str>> = texts.iter().map(to_str).collect();
        let labels = labels.as_array().to_vec();
        let how = Training { table_bits, max_run, epochs, learning_rate, seed };
        py.detach(|| QualityClassifier::train(&texts, &labels, &how, num_threads))
            .or_raise()
            .map(Self)
    }

    /// Read the form of `to_bytes`.
    #[staticmethod]
    fn from_bytes(data: &[u8]) -> PyResult<Self> {
        QualityClassifier::from_bytes(data).or_raise().map(Self)
    }

    /// Bytes to save.
    fn to_bytes<'py>(&self, py: Python<'py>) -> Bound<'py, PyBytes> {
        PyBytes::new(py, &self.0.to_bytes())
    }

    /// Likelihood of the label true for each text.
    fn scores<'py>(
        &self,
        py: Python<'py>,
        texts: Texts<'py>,
        num_threads: usize,
    ) -> PyResult<Bound<'py, PyArray1<f64>>> {
        by_chunks(py, &texts, |texts| self.0.scores(texts, num_threads))
            .map(|scores| scores.into_pyarray(py))
    }
}

pub(crate) fn register(module: &Bound<'_, PyModule>) -> PyResult<()> {
    module.add("TEXT_FIELDS", TEXT_FIELDS.to_vec())?;
    module.add("CODE_FIELDS", CODE_FIELDS.to_vec())?;
    module.add_class::<CoreDecontaminator>()?;
    module.add_class::<CoreQualityClassifier>()?;
    module.add_function(wrap_pyfunction!(text_statistics, module)?)?;
    module.add_function(wrap_pyfunction!(code_statistics, module)?)?;
    module.add_function(wrap_pyfunction!(detect_language, module)?)?;
    module.add_function(wrap_pyfunction!(exact_hashes, module)?)?;
    module.add_function(wrap_pyfunction!(minhash, module)?)?;
    module.add_function(wrap_pyfunction!(near_duplicates, module)?)?;
    module.add_function(wrap_pyfunction!(lsh_bands, module)?)?;
    module.add_function(wrap_pyfunction!(jaccard, module)?)
}

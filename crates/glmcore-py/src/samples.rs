//! Binding of the sample stream of `glmcore-data`.

use glmcore_data::{SampleStream, Stretch};
use glmcore_packing::{Piece, Pieces};
use numpy::{IntoPyArray, PyArray2, PyArrayMethods, PyReadwriteArray2};
use pyo3::prelude::*;

use crate::data::{CoreShards, FillError, sources};
use crate::error::{DataError, OrRaise, PackingError};
use crate::packing::{BatchArrays, OutArrays, fill_arrays};

/// Samples of one length from a mixture; sample k is a pure function of the seed and k.
#[pyclass(frozen, module = "glmcore._core")]
struct CoreSamples(SampleStream);

#[pymethods]
impl CoreSamples {
    /// A stream of samples.
    #[new]
    fn new(
        names: Vec<String>,
        weights: Vec<f64>,
        shards: Vec<Bound<'_, CoreShards>>,
        sample_len: u32,
        seed: u64,
    ) -> PyResult<Self> {
        SampleStream::new(sources(names, weights, shards), sample_len, seed).or_raise().map(Self)
    }

    /// How many samples a source can be off its share.
    #[getter]
    fn max_deviation(&self) -> f64 {
        self.0.schedule().max_deviation()
    }

    /// Samples of one epoch of each source.
    #[getter]
    fn samples_per_epoch(&self) -> Vec<u64> {
        let sources = u16::try_from(self.0.sources().len()).expect("the stream counted them");
        (0..sources).map(|source| self.0.samples_per_epoch(source)).collect()
    }

    /// Samples of each source among the first `k`.
    fn counts(&self, k: u64) -> Vec<u64> {
        self.0.schedule().counts(k)
    }

    /// Source, epoch and first token of sample `k`.
    fn sample(&self, k: u64) -> (u16, u64, u64) {
        let sample = self.0.sample(k);
        (sample.source, sample.epoch, sample.first_token)
    }

    /// Ids of some samples, `len` tokens of each.
    fn tokens<'py>(
        &self,
        py: Python<'py>,
        first: u64,
        count: usize,
        len: usize,
        out: Option<PyReadwriteArray2<'py, i32>>,
    ) -> PyResult<Bound<'py, PyArray2<i32>>> {
        let Some(mut out) = out else {
            let mut ids = vec![0; count.saturating_mul(len)];
            py.detach(|| self.read(first, len, &mut ids)).or_raise()?;
            return ids.into_pyarray(py).reshape([count, len]);
        };
        let array: &Bound<'py, PyArray2<i32>> = &out;
        let array = array.clone();
        let ids = out
            .as_slice_mut()
            .ok()
            .filter(|ids| count.checked_mul(len) == Some(ids.len()))
            .ok_or_else(|| {
            DataError::new_err(format!("out must be C-contiguous [{count}, {len}]"))
        })?;
        py.detach(|| self.read(first, len, ids)).or_raise()?;
        Ok(array)
    }

    /// Arrays of some samples, a row each.
    fn fill<'py>(
        &self,
        py: Python<'py>,
        first: u64,
        count: u32,
        pad_id: i32,
        out: Option<OutArrays<'py>>,
    ) -> PyResult<BatchArrays<'py>> {
        let capacity = self.0.sample_len();
        if count.checked_mul(capacity).is_none_or(|n| i32::try_from(n).is_err()) {
            let error =
                glmcore_packing::Error::BatchTooLarge { num_rows: count as usize, capacity };
            return Err(PackingError::new_err(error.to_string()));
        }
        let (rows, pieces) = py.detach(|| self.rows(first, count)).or_raise()?;
        let stretches: Vec<&Stretch> = rows.iter().flatten().collect();
        let copy = |piece: Piece, ids: &mut [i32], mask: &mut [u8]| {
            let stretch = stretches[piece.doc as usize];
            self.0
                .read_tokens(stretch.source, stretch.first_token, ids, mask)
                .map_err(FillError::Data)
        };
        let adjust = |labels: &mut [i32]| self.label_ends(&rows, labels).map_err(FillError::Data);
        let num_rows = 0..pieces.num_rows();
        fill_arrays(py, &pieces, num_rows, (capacity, pad_id), out, copy, adjust)
    }
}

impl CoreSamples {
    fn read(&self, first: u64, len: usize, ids: &mut [i32]) -> Result<(), glmcore_data::Error> {
        let mut mask = vec![0; len];
        for (k, ids) in (first..).zip(ids.chunks_exact_mut(len.max(1))) {
            self.0.read(k, ids, &mut mask)?;
        }
        Ok(())
    }

    /// The documents of samples, and the same as pieces that are numbered through.
    fn rows(&self, first: u64, count: u32) -> Result<(Vec<Vec<Stretch>>, Pieces), FillError> {
        let rows: Vec<Vec<Stretch>> = (first..first.saturating_add(count.into()))
            .map(|k| self.0.stretches(k))
            .collect::<Result<_, _>>()
            .map_err(FillError::Data)?;
        let mut docs = 0..;
        let pieces = rows.iter().map(|row| {
            let piece = |stretch: &Stretch| Piece {
                doc: docs.next().expect("the numbers do not end"),
                start: 0,
                len: stretch.len,
            };
            row.iter().map(piece).collect::<Vec<_>>()
        });
        let pieces = Pieces::from_rows(pieces)?;
        Ok((rows, pieces))
    }

    /// Labels the last token of each row whose document goes on with the token behind the row.
    fn label_ends(
        &self,
        rows: &[Vec<Stretch>],
        labels: &mut [i32],
    ) -> Result<(), glmcore_data::Error> {
        let row_len = self.0.sample_len() as usize;
        for (row, labels) in rows.iter().zip(labels.chunks_exact_mut(row_len)) {
            let (Some(last), Some(label)) = (row.last(), labels.last_mut()) else { continue };
            if last.continues {
                let (mut id, mut learned) = ([0], [0]);
                let next = last.first_token + u64::from(last.len);
                self.0.read_tokens(last.source, next, &mut id, &mut learned)?;
                if learned[0] != 0 {
                    *label = id[0];
                }
            }
        }
        Ok(())
    }
}

pub(crate) fn register(module: &Bound<'_, PyModule>) -> PyResult<()> {
    module.add_class::<CoreSamples>()
}

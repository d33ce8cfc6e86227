//! Binding of `glmcore-decode`. Weights and caches stay in the memory of whoever made them.

use glmcore_decode::{
    Attention, Cache, Experts, FeedForward, Layer, Linear, Mlp, Model, Shape, Step, Wishes, draw,
    multiply, run, run_recorded,
};
use numpy::{PyArray1, PyArrayMethods, PyReadonlyArray1, PyReadwriteArray1};
use pyo3::exceptions::PyValueError;
use pyo3::prelude::*;

type In<'py, T> = PyReadonlyArray1<'py, T>;
type Out<'py, T> = PyReadwriteArray1<'py, T>;
/// Ids, bounds, lengths, tables and wanted rows.
type StepArrays<'py> = (In<'py, i32>, In<'py, i32>, In<'py, i32>, In<'py, i32>, In<'py, i32>);
type Array = Py<PyArray1<f32>>;

/// Sizes and constants, read from attributes of these names.
#[derive(FromPyObject)]
struct Sizes {
    hidden: usize,
    num_heads: usize,
    num_kv_heads: usize,
    head_dim: usize,
    scale: f32,
    eps: f32,
    top_k: usize,
    num_groups: usize,
    top_groups: usize,
    normalise: bool,
    routed_scale: f32,
    half_rotary: usize,
}

/// A layer's arrays, read from attributes of these names.
#[derive(FromPyObject)]
struct LayerArrays {
    input_norm: Array,
    query: (Array, Option<Array>),
    key: (Array, Option<Array>),
    value: (Array, Option<Array>),
    output: Array,
    norms: Option<(Array, Array)>,
    post_norm: Array,
    /// Router, correction, gate and up of the experts, down of the experts.
    experts: Option<(Array, Array, Array, Array)>,
    /// Gate, up and down of the dense network or the shared expert.
    mlp: (Array, Array, Array),
}

/// Arrays that are being read.
struct Reading<'py>(Vec<In<'py, f32>>);

/// A model whose weights are arrays of somebody else's.
#[pyclass(module = "glmcore._core", frozen)]
struct DecodeModel {
    sizes: Sizes,
    embedding: Array,
    norm: Array,
    layers: Vec<LayerArrays>,
}

impl<'py> Reading<'py> {
    fn push(&mut self, py: Python<'py>, array: &Array) {
        self.0.push(array.bind(py).readonly());
    }
}

impl LayerArrays {
    /// All arrays in the order in which `layer` takes them.
    fn arrays(&self) -> Vec<&Array> {
        let mut arrays = vec![&self.input_norm, &self.query.0, &self.key.0, &self.value.0];
        arrays.extend([&self.query.1, &self.key.1, &self.value.1].into_iter().flatten());
        arrays.push(&self.output);
        arrays.extend(self.norms.iter().flat_map(|(query, key)| [query, key]));
        arrays.push(&self.post_norm);
        arrays.extend(self.experts.iter().flat_map(|(a, b, c, d)| [a, b, c, d]));
        arrays.extend([&self.mlp.0, &self.mlp.1, &self.mlp.2]);
        arrays
    }

    fn layer<'a>(&self, sizes: &Sizes, mut next: impl FnMut() -> &'a [f32]) -> Layer<'a> {
        let (hidden, attended) = (sizes.hidden, sizes.num_heads * sizes.head_dim);
        let input_norm = next();
        let weights = [next(), next(), next()];
        let mut bias = |array: &(Array, Option<Array>)| array.1.is_some().then(&mut next);
        let biases = [bias(&self.query), bias(&self.key), bias(&self.value)];
        let linear = |i: usize| Linear { weight: weights[i], bias: biases[i], inputs: hidden };
        let output = Linear { weight: next(), bias: None, inputs: attended };
        let norms = self.norms.is_some().then(|| (next(), next()));
        let attention =
            Attention { query: linear(0), key: linear(1), value: linear(2), output, norms };
        let post_norm = next();
        let experts = self.experts.is_some().then(|| [next(), next(), next(), next()]);
        let (gate, up, down) = (next(), next(), next());
        let plain = |weight, inputs| Linear { weight, bias: None, inputs };
        let mlp = Mlp {
            gate: plain(gate, hidden),
            up: plain(up, hidden),
            down: plain(down, down.len() / hidden),
        };
        let feed_forward = match experts {
            None => FeedForward::Dense(mlp),
            Some([router, correction, gate_up, down]) => FeedForward::Sparse(Experts {
                router: plain(router, hidden),
                correction,
                gate_up,
                down,
                shared: mlp,
            }),
        };
        Layer { input_norm, attention, post_norm, feed_forward }
    }
}

fn values<'a, T: numpy::Element>(array: &'a In<'_, T>) -> PyResult<&'a [T]> {
    array.as_slice().map_err(|_| PyValueError::new_err("arrays must be C-contiguous"))
}

fn writable<'a, T: numpy::Element>(array: &'a mut Out<'_, T>) -> PyResult<&'a mut [T]> {
    array.as_slice_mut().map_err(|_| PyValueError::new_err("arrays must be C-contiguous"))
}

#[pymethods]
impl DecodeModel {
    #[new]
    fn new(sizes: Sizes, embedding: Array, norm: Array, layers: Vec<LayerArrays>) -> Self {
        Self { sizes, embedding, norm, layers }
    }

    /// Ids, bounds, lengths, tables and wanted rows of a step; cosines and sines; caches; the hidden states; the experts
    /// of each token, `[T, L, K]`, if they are wanted.
    fn run<'py>(
        &self,
        py: Python<'py>,
        step: StepArrays<'py>,
        angles: (In<'py, f32>, In<'py, f32>),
        mut caches: Vec<(Out<'py, f32>, Out<'py, f32>)>,
        mut out: Out<'py, f32>,
        mut chosen: Option<Out<'py, u16>>,
    ) -> PyResult<()> {
        let mut reading = Reading(Vec::new());
        reading.push(py, &self.embedding);
        reading.push(py, &self.norm);
        for layer in &self.layers {
            for array in layer.arrays() {
                reading.push(py, array);
            }
        }
        let slices = reading.0.iter().map(values).collect::<PyResult<Vec<_>>>()?;
        let mut next = slices[2..].iter().copied();
        let mut next = || next.next().expect("as many as `arrays` gave");
        let layers = self.layers.iter().map(|layer| layer.layer(&self.sizes, &mut next)).collect();
        let model = Model { shape: self.shape(), embedding: slices[0], layers, norm: slices[1] };
        let step = Step {
            ids: values(&step.0)?,
            cu_queries: values(&step.1)?,
            lengths: values(&step.2)?,
            tables: values(&step.3)?,
            rows: values(&step.4)?,
            angles: (values(&angles.0)?, values(&angles.1)?),
            half_rotary: self.sizes.half_rotary,
        };
        let mut caches = caches
            .iter_mut()
            .map(|(keys, of)| Ok(Cache { keys: writable(keys)?, values: writable(of)? }))
            .collect::<PyResult<Vec<_>>>()?;
        let out = writable(&mut out)?;
        let chosen = chosen.as_mut().map(writable).transpose()?;
        py.detach(|| match chosen {
            Some(chosen) => run_recorded(&model, &step, &mut caches, out, chosen),
            None => run(&model, &step, &mut caches, out),
        })
        .map_err(|error| PyValueError::new_err(error.to_string()))
    }
}

impl DecodeModel {
    fn shape(&self) -> Shape {
        let sizes = &self.sizes;
        Shape {
            hidden: sizes.hidden,
            num_heads: sizes.num_heads,
            num_kv_heads: sizes.num_kv_heads,
            head_dim: sizes.head_dim,
            scale: sizes.scale,
            eps: sizes.eps,
            top_k: sizes.top_k,
            num_groups: sizes.num_groups,
            top_groups: sizes.top_groups,
            normalise: sizes.normalise,
            routed_scale: sizes.routed_scale,
        }
    }
}

/// `out = x weight^T`, where no row knows of the others.
#[pyfunction]
fn decode_linear<'py>(
    py: Python<'py>,
    weight: In<'py, f32>,
    inputs: usize,
    x: In<'py, f32>,
    mut out: Out<'py, f32>,
) -> PyResult<()> {
    let (weight, x, out) = (values(&weight)?, values(&x)?, writable(&mut out)?);
    py.detach(|| multiply(Linear { weight, bias: None, inputs }, x, out))
        .map_err(|error| PyValueError::new_err(error.to_string()))
}

/// Temperatures, `top_k`, `top_p`, `min_p` and random numbers of sequences.
type WishArrays<'py> = (In<'py, f32>, In<'py, i64>, In<'py, f32>, In<'py, f32>, In<'py, f64>);

/// A token of each row of scores, and its log-probability.
#[pyfunction]
fn decode_draw<'py>(
    py: Python<'py>,
    scores: In<'py, f32>,
    wishes: WishArrays<'py>,
    mut tokens: Out<'py, i64>,
    mut logprobs: Out<'py, f32>,
) -> PyResult<()> {
    let scores = values(&scores)?;
    let wishes = Wishes {
        temperature: values(&wishes.0)?,
        top_k: values(&wishes.1)?,
        top_p: values(&wishes.2)?,
        min_p: values(&wishes.3)?,
        uniform: values(&wishes.4)?,
    };
    let (tokens, logprobs) = (writable(&mut tokens)?, writable(&mut logprobs)?);
    py.detach(|| draw(scores, wishes, tokens, logprobs))
        .map_err(|error| PyValueError::new_err(error.to_string()))
}

pub(crate) fn register(module: &Bound<'_, PyModule>) -> PyResult<()> {
    module.add_class::<DecodeModel>()?;
    module.add_function(wrap_pyfunction!(decode_draw, module)?)?;
    module.add_function(wrap_pyfunction!(decode_linear, module)?)
}

//! A linear classifier over hashed runs of tokens, learned from labelled texts.
//!
//! As in fastText (Joulin et al., arXiv:1607.01759) a text is the bag of its tokens and runs of up to `max_run` tokens,
//! hashed into a table of weights; unlike there the table holds one number per entry, since two classes need no more.
//! The score is `1 / (1 + exp(-(bias + sum of weights / sqrt(number of features))))`.

use xxhash_rust::xxh3::xxh3_64;

use crate::hash::{BASE, mix};
use crate::threads::map_texts;
use crate::tokens::for_each_token;
use crate::{Error, setting};

/// First bytes of a saved classifier; the last is the version of the format.
const MAGIC: [u8; 8] = *b"GLMQUAL\x01";
/// Bytes before the weights: magic, table bits, longest run, bias, zero.
const HEADER: usize = 24;
/// Tokens of a text that are looked at.
const MAX_TOKENS: usize = 4096;

/// How a classifier learns.
#[derive(Debug, Clone, PartialEq)]
pub struct Training {
    /// Base-2 logarithm of the number of weights, from 8 to 28: 18 is a file of 1 MiB.
    pub table_bits: u32,
    /// Longest run of tokens, from 1 to 5.
    pub max_run: u32,
    /// Times that each text is seen.
    pub epochs: u32,
    /// Step of `AdaGrad`, above 0.
    pub learning_rate: f64,
    /// Of the order in which texts are seen.
    pub seed: u64,
}

impl Default for Training {
    fn default() -> Self {
        Self { table_bits: 18, max_run: 2, epochs: 5, learning_rate: 0.1, seed: 0 }
    }
}

/// Weights by hashed features.
#[derive(Debug, Clone, PartialEq)]
pub struct QualityClassifier {
    max_run: u32,
    bias: f32,
    weights: Vec<f32>,
}

impl QualityClassifier {
    /// Learns to tell texts labelled true from the rest by logistic regression: `AdaGrad` (Duchi et al., JMLR 2011), one
    /// text at a time in an order drawn from the seed, both labels with the same weight. The same texts give the same
    /// classifier.
    ///
    /// # Errors
    ///
    /// [`Error::Setting`] for a setting out of range, [`Error::Length`] unless there is a label for each text,
    /// [`Error::OneLabel`].
    pub fn train<T: AsRef<str> + Sync>(
        texts: &[T],
        labels: &[bool],
        how: &Training,
        num_threads: usize,
    ) -> Result<Self, Error> {
        check(how)?;
        if texts.len() != labels.len() {
            return Err(Error::Length { name: "labels", len: labels.len(), expected: texts.len() });
        }
        let num_good = labels.iter().filter(|&&label| label).count();
        if num_good == 0 || num_good == labels.len() {
            return Err(Error::OneLabel { count: labels.len(), label: num_good > 0 });
        }
        let empty =
            Self { max_run: how.max_run, bias: 0.0, weights: vec![0.0; 1 << how.table_bits] };
        let bags = map_texts(texts, num_threads, Vec::new, |scratch, text| {
            empty.features(text, scratch);
            scratch.clone()
        });
        let weight_of = |label: bool| {
            let of_label = if label { num_good } else { labels.len() - num_good };
            labels.len() as f64 / (2 * of_label) as f64
        };
        let mut learner = Learner::new(empty, how.learning_rate);
        let mut order: Vec<usize> = (0..texts.len()).collect();
        for epoch in 0..u64::from(how.epochs) {
            shuffle(&mut order, how.seed.wrapping_add(epoch.wrapping_mul(BASE)));
            for &text in &order {
                learner.learn(&bags[text], labels[text], weight_of(labels[text]));
            }
        }
        Ok(learner.classifier)
    }

    /// Likelihood that each text is one of those labelled true, from 0 to 1.
    pub fn scores<T: AsRef<str> + Sync>(&self, texts: &[T], num_threads: usize) -> Vec<f64> {
        map_texts(texts, num_threads, Vec::new, |features, text| {
            self.features(text, features);
            logistic(self.margin(features))
        })
    }

    /// The form that [`QualityClassifier::from_bytes`] reads: header, weights in little-endian f32, XXH3-64 of both.
    pub fn to_bytes(&self) -> Vec<u8> {
        let mut bytes = Vec::with_capacity(HEADER + 4 * self.weights.len() + 8);
        bytes.extend(MAGIC);
        bytes.extend(self.weights.len().trailing_zeros().to_le_bytes());
        bytes.extend(self.max_run.to_le_bytes());
        bytes.extend(self.bias.to_le_bytes());
        bytes.extend([0; 4]);
        for weight in &self.weights {
            bytes.extend(weight.to_le_bytes());
        }
        let checksum = xxh3_64(&bytes);
        bytes.extend(checksum.to_le_bytes());
        bytes
    }

    /// Reads what [`QualityClassifier::to_bytes`] wrote.
    ///
    /// # Errors
    ///
    /// [`Error::NotAClassifier`] for any other bytes.
    pub fn from_bytes(bytes: &[u8]) -> Result<Self, Error> {
        let refuse = |problem: String| Error::NotAClassifier { problem };
        let Some((body, checksum)) = bytes.split_last_chunk::<8>() else {
            return Err(refuse(format!("it has {} bytes", bytes.len())));
        };
        if body.len() < HEADER || body[..8] != MAGIC {
            return Err(refuse("its first bytes are others".into()));
        }
        if u64::from_le_bytes(*checksum) != xxh3_64(body) {
            return Err(refuse("its checksum is wrong: it is damaged or cut short".into()));
        }
        let four = |at: usize| [body[at], body[at + 1], body[at + 2], body[at + 3]];
        let (table_bits, max_run) = (u32::from_le_bytes(four(8)), u32::from_le_bytes(four(12)));
        let settings = Training { table_bits, max_run, ..Training::default() };
        check(&settings).map_err(|error| refuse(error.to_string()))?;
        let expected = HEADER + (4 << table_bits);
        if body.len() != expected {
            return Err(refuse(format!("it has {} bytes, not {expected}", body.len())));
        }
        let weights: Vec<f32> =
            (HEADER..expected).step_by(4).map(|at| f32::from_le_bytes(four(at))).collect();
        let bias = f32::from_le_bytes(four(16));
        if !bias.is_finite() || weights.iter().any(|weight| !weight.is_finite()) {
            return Err(refuse("a weight is no number".into()));
        }
        Ok(Self { max_run, bias, weights })
    }

    /// Places of the weights of a text's features, each as often as it occurs.
    fn features(&self, text: &str, features: &mut Vec<u32>) {
        features.clear();
        let mask = u32::try_from(self.weights.len() - 1).expect("at most 28 bits");
        let mut last = [0_u64; 5];
        let mut tokens = 0;
        for_each_token(text, |token, _, _| {
            if tokens >= MAX_TOKENS {
                return;
            }
            last.rotate_right(1);
            last[0] = token;
            tokens += 1;
            let mut hash = 0_u64;
            for &token in last.iter().take(tokens.min(self.max_run as usize)) {
                hash = mix(hash.wrapping_mul(BASE).wrapping_add(token));
                features.push(u32::try_from(hash >> 32).expect("32 bits are left") & mask);
            }
        });
    }

    fn margin(&self, features: &[u32]) -> f64 {
        let sum: f64 = features.iter().map(|&place| f64::from(self.weights[place as usize])).sum();
        f64::from(self.bias) + sum * scale(features)
    }
}

fn check(how: &Training) -> Result<(), Error> {
    if !(8..=28).contains(&how.table_bits) {
        return Err(setting("table_bits", how.table_bits, "from 8 to 28"));
    }
    if !(1..=5).contains(&how.max_run) {
        return Err(setting("max_run", how.max_run, "from 1 to 5"));
    }
    if how.epochs == 0 {
        return Err(setting("epochs", 0, "at least 1"));
    }
    if !(how.learning_rate > 0.0 && how.learning_rate.is_finite()) {
        return Err(setting("learning_rate", how.learning_rate, "above 0"));
    }
    Ok(())
}

/// What each feature of a text counts: a text of different features has length 1.
fn scale(features: &[u32]) -> f64 {
    1.0 / (features.len().max(1) as f64).sqrt()
}

fn logistic(margin: f64) -> f64 {
    1.0 / (1.0 + (-margin).exp())
}

/// `AdaGrad`: a weight's step shrinks with the squares of the slopes it has seen.
struct Learner {
    classifier: QualityClassifier,
    squares: Vec<f32>,
    bias_square: f64,
    rate: f64,
}

impl Learner {
    fn new(classifier: QualityClassifier, rate: f64) -> Self {
        let squares = vec![0.0; classifier.weights.len()];
        Self { classifier, squares, bias_square: 0.0, rate }
    }

    #[expect(clippy::cast_possible_truncation, reason = "weights are kept in f32")]
    fn learn(&mut self, features: &[u32], label: bool, weight: f64) {
        let slope =
            weight * (logistic(self.classifier.margin(features)) - f64::from(u8::from(label)));
        let scaled = slope * scale(features);
        for &place in features {
            let square = &mut self.squares[place as usize];
            *square += (scaled * scaled) as f32;
            if *square > 0.0 {
                let step = self.rate * scaled / f64::from(*square).sqrt();
                self.classifier.weights[place as usize] -= step as f32;
            }
        }
        self.bias_square += slope * slope;
        if self.bias_square > 0.0 {
            self.classifier.bias -= (self.rate * slope / self.bias_square.sqrt()) as f32;
        }
    }
}

/// Fisher and Yates's shuffle.
fn shuffle(order: &mut [usize], seed: u64) {
    let mut state = seed;
    for last in (1..order.len()).rev() {
        state = state.wrapping_add(BASE);
        let below = (u128::from(mix(state)) * (last as u128 + 1)) >> 64;
        order.swap(last, usize::try_from(below).expect("at most last"));
    }
}

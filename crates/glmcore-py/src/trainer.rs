//! Binding of the trainer of `glmcore-tokenizer`.

use std::borrow::Cow;
use std::path::PathBuf;
use std::sync::Mutex;

use glmcore_tokenizer::{Limits, Merger, Tokenizer, Trainer};
use pyo3::prelude::*;
use pyo3::types::PyString;

use crate::error::{OrRaise, TokenizerError};
use crate::tokenizer::{PyTokenizer, to_str};

/// Learns merges: feed all text, then merge in as many steps as the caller likes.
#[pyclass(frozen, name = "CoreTrainer", module = "glmcore._core")]
struct PyTrainer {
    state: Mutex<State>,
    limits: Limits,
}

enum State {
    Counting(Trainer),
    Merging(Box<Merger>),
    Finished,
}

impl PyTrainer {
    fn counting<R>(&self, work: impl FnOnce(&mut Trainer) -> PyResult<R>) -> PyResult<R> {
        match &mut *self.state.lock().expect("no holder panics") {
            State::Counting(trainer) => work(trainer),
            _ => Err(TokenizerError::new_err("text must be fed before the first merge")),
        }
    }
}

#[pymethods]
impl PyTrainer {
    /// A trainer that has seen nothing; `max_token_length` 0 sets no limit.
    #[new]
    fn new(pattern: &str, min_frequency: u64, max_token_length: usize) -> PyResult<Self> {
        let trainer = Trainer::with_pattern(pattern).or_raise()?;
        Ok(Self {
            state: Mutex::new(State::Counting(trainer)),
            limits: Limits { min_frequency, max_token_length },
        })
    }

    /// Count the words of `texts`.
    fn feed(
        &self,
        py: Python<'_>,
        texts: Vec<Bound<'_, PyString>>,
        num_threads: usize,
    ) -> PyResult<()> {
        let texts: Vec<Cow<'_, str>> = texts.iter().map(to_str).collect();
        py.detach(|| {
            self.counting(|trainer| {
                trainer.feed(&texts, num_threads);
                Ok(())
            })
        })
    }

    /// Count words of a file from byte `start` on; gives the byte to go on from.
    fn feed_file_part(
        &self,
        py: Python<'_>,
        path: PathBuf,
        start: usize,
        by_line: bool,
        num_threads: usize,
    ) -> PyResult<usize> {
        py.detach(|| {
            self.counting(|trainer| {
                trainer.feed_file_part(&path, start, by_line, num_threads).or_raise()
            })
        })
    }

    /// Learn until there are `num_tokens` tokens or no pair is left; gives the number of tokens.
    fn merge_up_to(&self, py: Python<'_>, num_tokens: usize) -> PyResult<usize> {
        py.detach(|| {
            let mut state = self.state.lock().expect("no holder panics");
            if let State::Counting(trainer) = &mut *state {
                *state = State::Merging(Box::new(std::mem::take(trainer).into_merger(self.limits)));
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
                State::Counting(trainer) => Box::new(trainer.into_merger(self.limits)),
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
            // Limits may leave less to learn; without them too little text is an error.
            let learned = if self.limits == Limits::default() {
                learned
            } else {
                learned.min(merger.num_tokens())
            };
            let training = merger.finish(learned).or_raise()?;
            let special: Vec<&str> = special_tokens.iter().map(String::as_str).collect();
            Tokenizer::from_training(&training, &special).or_raise().map(PyTokenizer::new)
        })
    }
}

pub(crate) fn register(module: &Bound<'_, PyModule>) -> PyResult<()> {
    module.add_class::<PyTrainer>()
}

//! Any split pattern, on an engine for regular expressions with look-around.

use fancy_regex::{Regex, RegexBuilder};

use crate::Error;

/// One step of splitting: matches become words, and so does what stands between them, unless it is dropped.
#[derive(Debug)]
pub(crate) struct Stage {
    pattern: String,
    regex: Regex,
    keep_gaps: bool,
}

impl Stage {
    /// # Errors
    ///
    /// [`Error::Unsupported`] if the engine cannot read the pattern.
    pub(crate) fn new(pattern: &str, keep_gaps: bool) -> Result<Self, Error> {
        let regex =
            RegexBuilder::new(pattern).backtrack_limit(usize::MAX).build().map_err(|error| {
                Error::Unsupported {
                    component: "split pattern",
                    value: format!("{pattern:?}: {error}"),
                }
            })?;
        Ok(Self { pattern: pattern.to_owned(), regex, keep_gaps })
    }

    pub(crate) fn pattern(&self) -> &str {
        &self.pattern
    }

    pub(crate) fn keeps_gaps(&self) -> bool {
        self.keep_gaps
    }

    /// Bounds of the words of `text`.
    fn for_each_word(&self, text: &str, visit: &mut dyn FnMut(usize, usize)) {
        let mut done = 0;
        let gap = |from: usize, to: usize, visit: &mut dyn FnMut(usize, usize)| {
            if self.keep_gaps && from < to {
                visit(from, to);
            }
        };
        for found in self.regex.find_iter(text) {
            // The engine gives up where its own stack is exhausted; the rest is then one word.
            let Ok(found) = found else { break };
            gap(done, found.start(), visit);
            if found.start() < found.end() {
                visit(found.start(), found.end());
            }
            done = found.end();
        }
        gap(done, text.len(), visit);
    }
}

/// Stages one after the other, each splitting the words of the one before.
#[derive(Debug)]
pub(crate) struct General {
    pub(crate) stages: Vec<Stage>,
}

impl General {
    pub(crate) fn for_each_word(&self, text: &str, visit: &mut dyn FnMut(usize, usize)) {
        split(&self.stages, text, 0, visit);
    }
}

fn split(stages: &[Stage], text: &str, offset: usize, visit: &mut dyn FnMut(usize, usize)) {
    match stages {
        [] if text.is_empty() => {}
        [] => visit(offset, offset + text.len()),
        [first, rest @ ..] => first.for_each_word(text, &mut |start, end| {
            split(rest, &text[start..end], offset + start, visit);
        }),
    }
}

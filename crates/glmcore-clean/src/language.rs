//! The language and the script of a text.

use whatlang::{Detector, Script};

use crate::threads::map_texts;

/// Bytes of a text that are looked at: more changes the answer no more, and time stays short for any text.
const SAMPLE: usize = 2048;
/// Pieces that the sample is taken in, spread over the text, so that a foreign head does not decide.
const PIECES: usize = 4;

/// Language and script of a text.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Language {
    /// ISO 639-3 code, such as `eng` or `cmn`; empty for a text without letters.
    pub code: &'static str,
    /// Name of the script that most letters belong to, such as `Latin`; empty for a text without letters.
    pub script: &'static str,
    /// How far the language is ahead of the next likely one, from 0 to 1. It is no probability.
    pub confidence: f64,
}

/// Language and script of each text, by Unicode ranges and then by letters and trigrams (69 languages, crate `whatlang`).
///
/// Texts up to 2 KiB are looked at as a whole, longer ones in four pieces spread over the text.
pub fn detect_language<T: AsRef<str> + Sync>(texts: &[T], num_threads: usize) -> Vec<Language> {
    let scratch = || (Detector::new(), String::with_capacity(SAMPLE + 64));
    map_texts(texts, num_threads, scratch, |(detector, sample), text| {
        detect(detector, sampled(sample, text))
    })
}

fn detect(detector: &Detector, text: &str) -> Language {
    detector.detect(text).map_or(Language { code: "", script: "", confidence: 0.0 }, |info| {
        Language {
            code: info.lang().code(),
            script: name(info.script()),
            confidence: info.confidence(),
        }
    })
}

fn name(script: Script) -> &'static str {
    Script::all().iter().find(|&&other| other == script).map_or("", Script::name)
}

/// Pieces of `text`, each from and to a place between characters, joined by spaces.
fn sampled<'a>(sample: &'a mut String, text: &'a str) -> &'a str {
    if text.len() <= SAMPLE {
        return text;
    }
    sample.clear();
    let piece = SAMPLE / PIECES;
    let between = |mut at: usize| {
        while !text.is_char_boundary(at) {
            at += 1;
        }
        at
    };
    for number in 0..PIECES {
        let start = (text.len() - piece) / (PIECES - 1) * number;
        let (start, end) = (between(start), between(start + piece));
        sample.push_str(&text[start..end]);
        sample.push(' ');
    }
    sample
}

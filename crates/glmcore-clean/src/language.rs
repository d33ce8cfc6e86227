//! The language and the script of a text.

use whatlang::{Detector, Script};

use crate::characters::{Classes, LETTER, UNSPACED};
use crate::threads::map_texts;

/// Bytes of a text that are looked at: more changes the answer no more, and time stays short for any text.
const SAMPLE: usize = 2048;
/// Pieces that the sample is taken in, spread over the text, so that a foreign head does not decide.
const PIECES: usize = 4;
/// What a letter counts beside a Latin one: names, commands and code in Latin letters stand inside texts of other
/// scripts, and a character of a script without spaces stands for about as much as four letters.
const UNSPACED_WEIGHT: usize = 4;
const OTHER_WEIGHT: usize = 2;

/// Language and script of a text.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Language {
    /// ISO 639-3 code, such as `eng` or `cmn`; empty for a text without letters.
    pub code: &'static str,
    /// Name of the script that decides, such as `Latin`; empty for a text without letters.
    pub script: &'static str,
    /// How far the language is ahead of the next likely one, from 0 to 1. It is no probability.
    pub confidence: f64,
}

/// Language and script of each text, by Unicode ranges and then by letters and trigrams (69 languages, crate `whatlang`).
///
/// Texts up to 2 KiB are looked at as a whole, longer ones in four pieces spread over the text. Latin letters are left
/// out where the other letters outweigh them: a character of a script without spaces between words counts four times,
/// one of another script twice.
pub fn detect_language<T: AsRef<str> + Sync>(texts: &[T], num_threads: usize) -> Vec<Language> {
    let scratch =
        || (Detector::new(), String::with_capacity(SAMPLE + 64), String::with_capacity(SAMPLE));
    map_texts(texts, num_threads, scratch, |(detector, sample, others), text| {
        let text = sampled(sample, text);
        detect(detector, without_latin(others, text).unwrap_or(text))
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

/// `text` without Latin letters, if others outweigh them.
fn without_latin<'a>(others: &'a mut String, text: &str) -> Option<&'a str> {
    if text.is_ascii() {
        return None;
    }
    let classes = Classes::get();
    let (mut latin, mut other) = (0, 0);
    others.clear();
    for c in text.chars() {
        let class = classes.of(c);
        if class & LETTER == 0 {
            others.push(c);
        } else if is_latin(c) {
            latin += 1;
        } else {
            other += if class & UNSPACED == 0 { OTHER_WEIGHT } else { UNSPACED_WEIGHT };
            others.push(c);
        }
    }
    (other > latin).then_some(others)
}

fn is_latin(c: char) -> bool {
    matches!(c as u32, 0x41..=0x5a | 0x61..=0x7a | 0xaa | 0xba | 0xc0..=0x24f | 0x1e00..=0x1eff)
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

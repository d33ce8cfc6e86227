//! Texts out of JSON lines: one field of each object, the rest skipped unread.

use std::fmt;
use std::io;
use std::ops::Range;
use std::path::{Path, PathBuf};
use std::thread;

use memchr::{memchr, memchr_iter};
use serde_json::Deserializer;
use serde_json::de::SliceRead;

use crate::Error;
use crate::json_scan::field_text;
use crate::json_text::FieldText;
use crate::mapped::MappedFile;

/// A file of JSON objects, one a line, each with a text.
///
/// The file is mapped and must not change meanwhile. Blank lines hold nothing.
#[derive(Debug)]
pub struct JsonLines {
    path: PathBuf,
    file: Option<MappedFile>, // none of an empty file, which cannot be mapped
    field: String,
}

/// Texts, one behind the other in memory.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Texts {
    text: String,
    ends: Vec<usize>,
}

impl Texts {
    /// The texts in order.
    pub fn iter(&self) -> impl Iterator<Item = &str> {
        let starts = std::iter::once(0).chain(self.ends.iter().copied());
        starts.zip(&self.ends).map(|(start, &end)| &self.text[start..end])
    }

    fn append(&mut self, other: &Self) {
        let start = self.text.len();
        self.text.push_str(&other.text);
        self.ends.extend(other.ends.iter().map(|end| start + end));
    }
}

impl JsonLines {
    /// Maps a file; the texts are the strings under `field`.
    ///
    /// # Errors
    ///
    /// [`Error::Io`].
    pub fn open(path: impl AsRef<Path>, field: impl Into<String>) -> Result<Self, Error> {
        let path = path.as_ref().to_owned();
        let error = |source| Error::Io { action: "open", path: path.clone(), source };
        let about = path.metadata().map_err(error)?;
        if about.is_dir() {
            return Err(error(io::ErrorKind::IsADirectory.into()));
        }
        let is_empty = about.len() == 0;
        let file = if is_empty { None } else { Some(MappedFile::open(&path)?) };
        Ok(Self { path, file, field: field.into() })
    }

    /// Bytes of the file.
    pub fn num_bytes(&self) -> usize {
        self.bytes().len()
    }

    /// Where the lines end that begin at `start` and hold `min_bytes` or as little more as can be.
    pub fn end_of_lines(&self, start: usize, min_bytes: usize) -> usize {
        let bytes = self.bytes();
        let from = start.saturating_add(min_bytes.max(1)).min(bytes.len());
        if from == bytes.len() || bytes[from - 1] == b'\n' {
            return from;
        }
        memchr(b'\n', &bytes[from..]).map_or(bytes.len(), |place| from + place + 1)
    }

    /// Texts of the lines in `range`, which begins and ends where lines do, read by `num_threads` threads (at least 1).
    ///
    /// # Errors
    ///
    /// [`Error::Line`] for the first line that is no JSON object with a string in the field.
    ///
    /// # Panics
    ///
    /// If the range leaves the file, or the operating system refuses to start threads.
    pub fn texts(&self, range: Range<usize>, num_threads: usize) -> Result<Texts, Error> {
        let share = range.len().div_ceil(num_threads.max(1));
        let mut parts = Vec::new();
        let mut start = range.start;
        while start < range.end {
            let end = self.end_of_lines(start, share).min(range.end);
            parts.push(start..end);
            start = end;
        }
        let Some((first, others)) = parts.split_first() else { return Ok(Texts::default()) };
        thread::scope(|scope| {
            let others: Vec<_> =
                others.iter().map(|part| scope.spawn(|| self.read(part.clone()))).collect();
            let mut texts = self.read(first.clone());
            for part in others {
                let part = part.join().expect("reading does not panic");
                texts = texts.and_then(|mut texts| {
                    texts.append(&part?);
                    Ok(texts)
                });
            }
            texts
        })
    }

    /// The texts of a stretch of lines.
    fn read(&self, range: Range<usize>) -> Result<Texts, Error> {
        let bytes = &self.bytes()[..range.end];
        let mut out = vec![0; range.len() + 8]; // a text has at most as many bytes as its line
        let (mut len, mut ends, mut starts) = (0, Vec::new(), Vec::new());
        let mut start = range.start;
        while start < range.end {
            let end = memchr(b'\n', &bytes[start..]).map_or(range.end, |place| start + place);
            let line = &bytes[start..end];
            if !line.trim_ascii().is_empty() {
                len += match field_text(line, self.field.as_bytes(), &mut out[len..]) {
                    Some(more) => more,
                    None => self
                        .read_any(line, &mut out[len..])
                        .map_err(|error| self.error(start, &error))?,
                };
                ends.push(len);
                starts.push(start);
            }
            start = end + 1;
        }
        out.truncate(len);
        let text = String::from_utf8(out).map_err(|error| {
            let line = ends.partition_point(|&end| end <= error.utf8_error().valid_up_to());
            self.error(starts[line], &"the text is no UTF-8")
        })?;
        // Two broken texts may together be whole.
        if let Some(line) = ends.iter().position(|&end| !text.is_char_boundary(end)) {
            return Err(self.error(starts[line], &"the text is no UTF-8"));
        }
        Ok(Texts { text, ends })
    }

    fn read_any(&self, line: &[u8], out: &mut [u8]) -> serde_json::Result<usize> {
        let mut text = String::new();
        let mut json = Deserializer::new(SliceRead::new(line));
        FieldText { field: &self.field, text: &mut text }.read(&mut json)?;
        json.end()?;
        out[..text.len()].copy_from_slice(text.as_bytes());
        Ok(text.len())
    }

    fn error(&self, start: usize, error: &impl fmt::Display) -> Error {
        let line = 1 + memchr_iter(b'\n', &self.bytes()[..start]).count();
        // The place that serde names counts lines of the line alone.
        let problem = error.to_string().replace("line 1 column", "column");
        Error::Line { path: self.path.clone(), line, problem }
    }

    fn bytes(&self) -> &[u8] {
        self.file.as_ref().map_or(&[], MappedFile::bytes)
    }
}

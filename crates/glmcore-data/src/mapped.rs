//! A file in memory, and numbers in its bytes: the only unsafe code of the crate.

use std::fs::File;
use std::ops::Range;
use std::path::Path;

use memmap2::Mmap;

use crate::Error;

/// A number that any bytes are a valid value of.
pub(crate) trait Plain: Copy {}
impl Plain for u8 {}
impl Plain for u16 {}
impl Plain for u32 {}
impl Plain for u64 {}
impl Plain for f32 {}

/// A whole file, mapped for reading.
#[derive(Debug)]
pub(crate) struct MappedFile(Mmap);

impl MappedFile {
    /// Maps a file. It must not be changed in place while mapped: shards are replaced, never rewritten.
    pub(crate) fn open(path: &Path) -> Result<Self, Error> {
        let error = |action| move |source| Error::Io { action, path: path.to_owned(), source };
        let file = File::open(path).map_err(error("open"))?;
        let is_file = file.metadata().map_err(error("read"))?.is_file();
        if !is_file {
            return Err(Error::NotAShard { path: path.to_owned() });
        }
        // SAFETY: the mapping is read-only and private to this value. Shards appear by rename and are
        // never written again, so the bytes do not change while mapped.
        let map = unsafe { Mmap::map(&file) }.map_err(error("map"))?;
        Ok(Self(map))
    }

    pub(crate) fn bytes(&self) -> &[u8] {
        &self.0
    }

    /// Numbers in a range of bytes that the header was checked to describe: inside the file, aligned to
    /// 64 bytes, and a whole number of values long.
    ///
    /// # Panics
    ///
    /// If the range is not so.
    pub(crate) fn numbers<T: Plain>(&self, range: &Range<u64>) -> &[T] {
        let at = |offset| usize::try_from(offset).expect("the range lies in a mapped file");
        let bytes = &self.0[at(range.start)..at(range.end)];
        // SAFETY: `Plain` types have no padding and no invalid values, and `align_to` returns only
        // aligned values inside `bytes`, whose lifetime the result keeps.
        let (before, numbers, after) = unsafe { bytes.align_to::<T>() };
        assert!(before.is_empty() && after.is_empty(), "sections are aligned and whole");
        numbers
    }
}

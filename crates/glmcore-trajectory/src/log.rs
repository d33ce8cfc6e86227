//! The append-only log: segments of checksummed records.
//!
//! A record is its length (u32), the CRC-32 of its bytes (u32), and the bytes of an [`Event`]; numbers are
//! little-endian. A record that the end of the last segment cuts short was never acknowledged and is dropped; any other
//! damage is an error. Every record reaches the operating system before the call returns, so a killed process loses
//! nothing; [`Log::sync`] makes it survive a power cut too.

use std::fs::{self, File, OpenOptions};
use std::io::Write;
use std::path::{Path, PathBuf};

use crate::Error;
use crate::event::Event;

/// A segment is closed when it is larger.
const SEGMENT_BYTES: u64 = 64 << 20;
const HEADER_BYTES: usize = 8;

pub(crate) struct Log {
    directory: PathBuf,
    /// Numbers of all segments, oldest first; the last one is open.
    segments: Vec<u64>,
    file: File,
    size: u64,
    /// Held, and so locked, as long as the log is open.
    _lock: File,
}

impl Log {
    /// Opens the log in `directory`, made if it is not there, and gives the events of each segment to `replay`.
    pub(crate) fn open(
        directory: &Path,
        mut replay: impl FnMut(u64, Event),
    ) -> Result<Self, Error> {
        fs::create_dir_all(directory).map_err(|source| io_error(directory, source))?;
        let lock = lock(&directory.join("lock"))?;
        let mut segments = list_segments(directory)?;
        for (place, &segment) in segments.iter().enumerate() {
            let path = segment_path(directory, segment);
            let bytes = fs::read(&path).map_err(|source| io_error(&path, source))?;
            let end = read_records(&bytes, |event| replay(segment, event));
            if end < bytes.len() {
                let is_last = place + 1 == segments.len();
                if !is_last || !is_torn(&bytes[end..]) {
                    return Err(Error::Damaged { path, offset: end as u64 });
                }
                let file = OpenOptions::new()
                    .write(true)
                    .open(&path)
                    .map_err(|source| io_error(&path, source))?;
                file.set_len(end as u64).map_err(|source| io_error(&path, source))?;
            }
        }
        if segments.is_empty() {
            segments.push(1);
        }
        let last = segments[segments.len() - 1];
        let (file, size) = open_segment(directory, last)?;
        Ok(Self { directory: directory.to_owned(), segments, file, size, _lock: lock })
    }

    /// Number of the segment that the next event goes into.
    pub(crate) fn segment(&self) -> u64 {
        self.segments[self.segments.len() - 1]
    }

    pub(crate) fn is_new(&self) -> bool {
        self.size == 0
    }

    pub(crate) fn is_full(&self) -> bool {
        self.size >= SEGMENT_BYTES
    }

    pub(crate) fn append(&mut self, event: &Event) -> Result<(), Error> {
        let bytes = event.encode();
        let mut record = Vec::with_capacity(HEADER_BYTES + bytes.len());
        let len = u32::try_from(bytes.len()).expect("a rollout has less than 4 GiB of tokens");
        record.extend_from_slice(&len.to_le_bytes());
        record.extend_from_slice(&crc32fast::hash(&bytes).to_le_bytes());
        record.extend_from_slice(&bytes);
        let path = segment_path(&self.directory, self.segment());
        if let Err(source) = self.file.write_all(&record) {
            // Half a record would make everything after it unreadable.
            let _ = self.file.set_len(self.size);
            return Err(io_error(&path, source));
        }
        self.size += record.len() as u64;
        Ok(())
    }

    pub(crate) fn sync(&self) -> Result<(), Error> {
        self.file
            .sync_data()
            .map_err(|source| io_error(&segment_path(&self.directory, self.segment()), source))
    }

    /// Closes the segment and begins the next one.
    pub(crate) fn rotate(&mut self) -> Result<(), Error> {
        self.sync()?;
        let next = self.segment() + 1;
        (self.file, self.size) = open_segment(&self.directory, next)?;
        self.segments.push(next);
        Ok(())
    }

    /// Removes the segments before `oldest_needed`, never the open one.
    pub(crate) fn remove_before(&mut self, oldest_needed: u64) -> Result<(), Error> {
        while self.segments.len() > 1 && self.segments[0] < oldest_needed {
            let path = segment_path(&self.directory, self.segments[0]);
            fs::remove_file(&path).map_err(|source| io_error(&path, source))?;
            self.segments.remove(0);
        }
        Ok(())
    }

    /// Size of all segments.
    pub(crate) fn bytes_on_disk(&self) -> u64 {
        let closed = self.segments[..self.segments.len() - 1].iter();
        closed
            .filter_map(|&n| fs::metadata(segment_path(&self.directory, n)).ok())
            .map(|m| m.len())
            .sum::<u64>()
            + self.size
    }
}

/// Gives the events of all whole records to `replay`; returns where the last of them ends.
fn read_records(bytes: &[u8], mut replay: impl FnMut(Event)) -> usize {
    let mut at = 0;
    while let Some((len, crc)) = header(&bytes[at..]) {
        let start = at + HEADER_BYTES;
        let Some(payload) = bytes.get(start..start + len) else { break };
        if crc32fast::hash(payload) != crc {
            break;
        }
        let Some(event) = Event::decode(payload) else { break };
        replay(event);
        at = start + len;
    }
    at
}

fn header(bytes: &[u8]) -> Option<(usize, u32)> {
    let (len, rest) = bytes.split_first_chunk::<4>()?;
    let (crc, _) = rest.split_first_chunk::<4>()?;
    Some((u32::from_le_bytes(*len) as usize, u32::from_le_bytes(*crc)))
}

/// Whether the bytes after the last whole record are one that was cut short, not a damaged one.
fn is_torn(rest: &[u8]) -> bool {
    header(rest).is_none_or(|(len, _)| rest.len() < HEADER_BYTES + len)
}

fn list_segments(directory: &Path) -> Result<Vec<u64>, Error> {
    let entries = fs::read_dir(directory).map_err(|source| io_error(directory, source))?;
    let mut segments = Vec::new();
    for entry in entries {
        let entry = entry.map_err(|source| io_error(directory, source))?;
        let name = entry.file_name().into_string().unwrap_or_default();
        if let Some(number) =
            name.strip_prefix("segment-").and_then(|rest| rest.strip_suffix(".log"))
        {
            segments.extend(number.parse::<u64>().ok());
        }
    }
    segments.sort_unstable();
    Ok(segments)
}

fn segment_path(directory: &Path, number: u64) -> PathBuf {
    directory.join(format!("segment-{number:08}.log"))
}

fn open_segment(directory: &Path, number: u64) -> Result<(File, u64), Error> {
    let path = segment_path(directory, number);
    let open = || {
        let file = OpenOptions::new().create(true).append(true).open(&path)?;
        File::open(directory)?.sync_all()?;
        let size = file.metadata()?.len();
        Ok((file, size))
    };
    open().map_err(|source| io_error(&path, source))
}

fn lock(path: &Path) -> Result<File, Error> {
    let file = OpenOptions::new().create(true).truncate(false).write(true).open(path);
    let file = file.map_err(|source| io_error(path, source))?;
    match file.try_lock() {
        Ok(()) => Ok(file),
        Err(fs::TryLockError::WouldBlock) => Err(Error::Locked(path.to_owned())),
        Err(fs::TryLockError::Error(source)) => Err(io_error(path, source)),
    }
}

fn io_error(path: &Path, source: std::io::Error) -> Error {
    Error::Io { path: path.to_owned(), source }
}

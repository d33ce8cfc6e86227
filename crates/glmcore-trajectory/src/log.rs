//! The files of a buffer: segments of records, how far they are on disk, and the order of consumption.
//!
//! - `segment-NNNNNNNN.log`: records ([`frame`]), appended only. A segment is on disk as a whole before the next begins.
//! - `spare-NNNNNNNN`: a segment that is not needed and becomes the next one: writing over what the system has in its
//!   cache costs a fraction of making a file grow. Its old records are of another segment, so they are never read.
//! - `synced`: segment and offset up to which the log was on disk at the last commit, with a checksum. It is written
//!   after each commit and never waited for, so it may lag after a power cut but is never ahead.
//! - `order.log`: what was consumed in which order ([`crate::order`]); on disk before the acknowledgement that names it.
//! - `lock`: locked as long as the buffer is open.
//!
//! A bad record behind the place in `synced` was never acknowledged: it is the torn end of an interrupted write and is
//! cut off. Before it, or in a segment that is not the last, it is damage.

use std::fs::{self, File, OpenOptions};
use std::io::{Read, Seek, SeekFrom, Write};
use std::path::{Path, PathBuf};

use crate::event::Event;
use crate::state::Place;
use crate::{Error, frame};

/// Segments kept for being written over.
const MAX_SPARES: usize = 4;

/// Bytes of one segment, in order.
#[derive(Debug)]
pub(crate) struct Chunk {
    pub(crate) segment: u64,
    pub(crate) bytes: Vec<u8>,
}

/// A segment and its size.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Segment {
    pub(crate) number: u64,
    pub(crate) bytes: u64,
}

#[derive(Debug)]
pub(crate) struct Files {
    directory: PathBuf,
    segment: u64,
    file: File,
    size: u64,
    synced: File,
    order: File,
    spares: Vec<PathBuf>,
    /// Held, and so locked, as long as the log is open.
    _lock: File,
}

impl Files {
    /// Opens the log in `directory`, made if it is not there, and gives its events to `replay`, which gives the length
    /// of the record of the order that they speak of.
    pub(crate) fn open(
        directory: &Path,
        mut replay: impl FnMut(Place, Event<'static>) -> u64,
    ) -> Result<(Self, Vec<Segment>), Error> {
        fs::create_dir_all(directory).map_err(|source| io_error(directory, source))?;
        let lock = lock(&directory.join("lock"))?;
        let synced_path = directory.join("synced");
        let mut synced = open_file(&synced_path)?;
        let (synced_segment, synced_offset) = read_synced(&mut synced).unwrap_or((0, 0));
        let numbers = list(directory, "segment-", ".log")?;
        let mut segments = Vec::with_capacity(numbers.len() + 1);
        let mut order_bytes = 0;
        for (place, &number) in numbers.iter().enumerate() {
            let is_last = place + 1 == numbers.len();
            if place > 0 && number != numbers[place - 1] + 1 {
                let path = segment_path(directory, numbers[place - 1] + 1);
                return Err(Error::Damaged { path, offset: 0 });
            }
            let path = segment_path(directory, number);
            let bytes = fs::read(&path).map_err(|source| io_error(&path, source))?;
            let end =
                read_events(&bytes, number, |place, event| order_bytes = replay(place, event));
            let sure = if !is_last {
                bytes.len() as u64
            } else if synced_segment == number {
                synced_offset
            } else {
                0
            };
            if (end as u64) < sure {
                return Err(Error::Damaged { path, offset: end as u64 });
            }
            if end < bytes.len() {
                set_len(&path, end as u64)?;
            }
            segments.push(Segment { number, bytes: end as u64 });
        }
        let last = segments.last().map_or(0, |segment| segment.number);
        if synced_segment > last {
            let path = segment_path(directory, synced_segment);
            return Err(Error::Damaged { path, offset: 0 });
        }
        if segments.is_empty() {
            segments.push(Segment { number: 1, bytes: 0 });
        }
        let Segment { number: segment, bytes: size } = segments[segments.len() - 1];
        let order = open_order(directory, order_bytes)?;
        let mut file = open_segment(directory, segment, None)?;
        let path = segment_path(directory, segment);
        file.seek(SeekFrom::Start(size)).map_err(|source| io_error(&path, source))?;
        let spares = list(directory, "spare-", "")?;
        let spares = spares.into_iter().map(|number| spare_path(directory, number)).collect();
        let directory = directory.to_owned();
        let mut files = Self { directory, segment, file, size, synced, order, spares, _lock: lock };
        files.sync()?; // what a crash left beyond the last commit is now acted upon
        Ok((files, segments))
    }

    /// Writes what follows in the log; with `sync` it is on disk when this returns.
    ///
    /// After an error the files end where they ended before, as far as the system allows.
    pub(crate) fn write(
        &mut self,
        chunks: &[Chunk],
        order: &[u8],
        sync: bool,
    ) -> Result<(), Error> {
        if !order.is_empty() {
            let path = self.directory.join("order.log");
            let written = self.order.write_all(order).and_then(|()| self.order.sync_data());
            written.map_err(|source| io_error(&path, source))?;
        }
        for chunk in chunks {
            if chunk.segment != self.segment {
                let path = segment_path(&self.directory, self.segment);
                self.file.set_len(self.size).map_err(|source| io_error(&path, source))?;
                self.sync()?;
                self.file = open_segment(&self.directory, chunk.segment, self.spares.pop())?;
                (self.segment, self.size) = (chunk.segment, 0);
            }
            if let Err(source) = self.file.write_all(&chunk.bytes) {
                let _ = self.file.set_len(self.size); // at the latest the next start cuts the torn end off
                return Err(io_error(&segment_path(&self.directory, self.segment), source));
            }
            self.size += chunk.bytes.len() as u64;
        }
        if sync { self.sync() } else { Ok(()) }
    }

    fn sync(&mut self) -> Result<(), Error> {
        let path = segment_path(&self.directory, self.segment);
        self.file.sync_data().map_err(|source| io_error(&path, source))?;
        let mut record = [0; 20];
        record[..8].copy_from_slice(&self.segment.to_le_bytes());
        record[8..16].copy_from_slice(&self.size.to_le_bytes());
        let check = crc32fast::hash(&record[..16]);
        record[16..].copy_from_slice(&check.to_le_bytes());
        let rewind = self.synced.seek(SeekFrom::Start(0));
        let written = rewind.and_then(|_| self.synced.write_all(&record));
        written.map_err(|source| io_error(&self.directory.join("synced"), source))
    }

    /// Lets a segment go that nothing needs.
    pub(crate) fn remove(&mut self, segment: u64) -> Result<(), Error> {
        let path = segment_path(&self.directory, segment);
        let spare = spare_path(&self.directory, segment);
        let is_wanted = self.spares.len() < MAX_SPARES;
        let remove = || {
            if is_wanted {
                fs::rename(&path, &spare)?;
            } else {
                fs::remove_file(&path)?;
            }
            File::open(&self.directory)?.sync_all() // or a later one could be gone and this one back
        };
        remove().map_err(|source| io_error(&path, source))?;
        if is_wanted {
            self.spares.push(spare);
        }
        Ok(())
    }

    /// The record of the order.
    pub(crate) fn read_order(&self) -> Result<Vec<u8>, Error> {
        let path = self.directory.join("order.log");
        fs::read(&path).map_err(|source| io_error(&path, source))
    }

    pub(crate) fn order_path(&self) -> PathBuf {
        self.directory.join("order.log")
    }
}

/// Gives the events of all whole records to `replay`; returns where the last of them ends.
fn read_events(bytes: &[u8], segment: u64, mut replay: impl FnMut(Place, Event<'static>)) -> usize {
    let mut at = 0;
    while let Some(body) = frame::read(bytes, segment, at) {
        let Some(event) = Event::decode(&bytes[body.clone()]) else { break };
        replay(Place { segment, bytes: (body.end - at) as u64 }, event);
        at = body.end;
    }
    at
}

fn read_synced(file: &mut File) -> Option<(u64, u64)> {
    let mut bytes = [0; 20];
    file.read_exact(&mut bytes).ok()?;
    let (place, check) = bytes.split_at(16);
    (crc32fast::hash(place).to_le_bytes() == check).then_some(())?;
    let (segment, offset) = place.split_at(8);
    Some((
        u64::from_le_bytes(segment.try_into().ok()?),
        u64::from_le_bytes(offset.try_into().ok()?),
    ))
}

/// Numbers in the names of files, rising.
fn list(directory: &Path, prefix: &str, suffix: &str) -> Result<Vec<u64>, Error> {
    let entries = fs::read_dir(directory).map_err(|source| io_error(directory, source))?;
    let mut numbers = Vec::new();
    for entry in entries {
        let entry = entry.map_err(|source| io_error(directory, source))?;
        let name = entry.file_name().into_string().unwrap_or_default();
        let number = name.strip_prefix(prefix).and_then(|rest| rest.strip_suffix(suffix));
        numbers.extend(number.and_then(|number| number.parse::<u64>().ok()));
    }
    numbers.sort_unstable();
    Ok(numbers)
}

fn segment_path(directory: &Path, number: u64) -> PathBuf {
    directory.join(format!("segment-{number:08}.log"))
}

fn spare_path(directory: &Path, number: u64) -> PathBuf {
    directory.join(format!("spare-{number:08}"))
}

fn open_file(path: &Path) -> Result<File, Error> {
    let options = OpenOptions::new().create(true).truncate(false).read(true).write(true).open(path);
    options.map_err(|source| io_error(path, source))
}

/// Opens a segment for writing at its beginning; a new one may be made of a spare one.
fn open_segment(directory: &Path, number: u64, spare: Option<PathBuf>) -> Result<File, Error> {
    let path = segment_path(directory, number);
    let open = || {
        if let Some(spare) = spare {
            fs::rename(spare, &path)?;
        }
        let file = OpenOptions::new().create(true).truncate(false).write(true).open(&path)?;
        File::open(directory)?.sync_all()?;
        Ok(file)
    };
    open().map_err(|source| io_error(&path, source))
}

/// Opens the record of the order and cuts off what no acknowledgement names.
fn open_order(directory: &Path, len: u64) -> Result<File, Error> {
    let path = directory.join("order.log");
    let open = || {
        let file = OpenOptions::new().create(true).append(true).open(&path)?;
        let there = file.metadata()?.len();
        file.set_len(len.min(there))?;
        Ok((file, there))
    };
    let (file, there) = open().map_err(|source| io_error(&path, source))?;
    if there < len {
        return Err(Error::Damaged { path, offset: there });
    }
    Ok(file)
}

fn set_len(path: &Path, len: u64) -> Result<(), Error> {
    let cut = || OpenOptions::new().write(true).open(path)?.set_len(len);
    cut().map_err(|source| io_error(path, source))
}

fn lock(path: &Path) -> Result<File, Error> {
    let file = open_file(path)?;
    match file.try_lock() {
        Ok(()) => Ok(file),
        Err(fs::TryLockError::WouldBlock) => Err(Error::Locked(path.to_owned())),
        Err(fs::TryLockError::Error(source)) => Err(io_error(path, source)),
    }
}

fn io_error(path: &Path, source: std::io::Error) -> Error {
    Error::Io { path: path.to_owned(), source }
}

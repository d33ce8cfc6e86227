//! Group commit: records of many callers go to disk together.
//!
//! A record is encoded into memory while the contents are locked, so the log has the order in which things happened.
//! Whoever needs it on disk first takes the files, writes all that is there, and waits for the disk with the contents
//! unlocked; those who come meanwhile wait for the next turn. There is no timer: a commit begins as soon as the one
//! before it has ended, so its interval is the time that the disk needs.

use std::borrow::Cow;
use std::collections::VecDeque;

use crate::event::Event;
use crate::frame;
use crate::log::{Chunk, Files, Segment};
use crate::state::{Place, State};

/// Records in memory past which a caller writes them even if nobody waits.
const WRITE_BYTES: u64 = 4 << 20;

#[derive(Debug)]
pub(crate) struct Journal {
    segment_bytes: u64,
    /// All segments, oldest first, with what is not written yet.
    pub(crate) segments: VecDeque<Segment>,
    /// Bytes that are not written.
    pending: Vec<Chunk>,
    /// Records of the order that are not written.
    order: Vec<u8>,
    pub(crate) order_bytes: u64,
    /// Bytes recorded, handed to the system, and on disk, since the log was opened.
    pub(crate) recorded: u64,
    written: u64,
    durable: u64,
    pub(crate) commits: u64,
    /// Segments that may go once the log is on disk up to there.
    leaving: Vec<(u64, u64)>,
    /// Why nothing can be written any more.
    pub(crate) failed: Option<String>,
    /// Taken by whoever writes.
    pub(crate) files: Option<Files>,
    spare: Vec<u8>,
}

/// What one write takes along.
#[derive(Debug)]
pub(crate) struct Batch {
    pub(crate) chunks: Vec<Chunk>,
    pub(crate) order: Vec<u8>,
    pub(crate) leaving: Vec<u64>,
    end: u64,
}

impl Journal {
    pub(crate) fn new(
        files: Files,
        segments: Vec<Segment>,
        order_bytes: u64,
        segment_bytes: u64,
    ) -> Self {
        Self {
            segment_bytes,
            segments: segments.into(),
            pending: Vec::new(),
            order: Vec::new(),
            order_bytes,
            recorded: 0,
            written: 0,
            durable: 0,
            commits: 0,
            leaving: Vec::new(),
            failed: None,
            files: Some(files),
            spare: Vec::new(),
        }
    }

    /// Encodes an event behind the others; `state` is that before it.
    pub(crate) fn record(&mut self, state: &State, event: &Event<'_>) -> Place {
        let last = self.segments[self.segments.len() - 1];
        if last.bytes >= self.segment_bytes {
            self.segments.push_back(Segment { number: last.number + 1, bytes: 0 });
        }
        self.begin(state);
        self.push(event)
    }

    /// Begins the last segment if it is empty.
    pub(crate) fn begin(&mut self, state: &State) {
        if self.segments[self.segments.len() - 1].bytes == 0 {
            self.push(&Event::Begin(Cow::Owned(state.totals())));
        }
    }

    fn push(&mut self, event: &Event<'_>) -> Place {
        let segment = self.segments.back_mut().expect("a log has a segment");
        let number = segment.number;
        if self.pending.last().is_none_or(|chunk| chunk.segment != number) {
            let bytes = std::mem::take(&mut self.spare);
            self.pending.push(Chunk { segment: number, bytes });
        }
        let out = &mut self.pending.last_mut().expect("it has just been made").bytes;
        let bytes = frame::append(out, number, segment.bytes, |out| event.encode(out));
        segment.bytes += bytes;
        self.recorded += bytes;
        Place { segment: number, bytes }
    }

    /// Adds to the record of the order.
    pub(crate) fn record_order(&mut self, encode: impl FnOnce(&mut crate::codec::Writer<'_>)) {
        self.order_bytes += frame::append(&mut self.order, 0, self.order_bytes, encode);
    }

    /// Whether all up to `end` is on disk, or only written if `sync` is false.
    pub(crate) fn has(&self, end: u64, sync: bool) -> bool {
        (if sync { self.durable } else { self.written }) >= end
    }

    pub(crate) fn is_large(&self) -> bool {
        self.recorded - self.written >= WRITE_BYTES
    }

    pub(crate) fn take_batch(&mut self, sync: bool) -> Batch {
        let durable = if sync { self.recorded } else { self.durable };
        let (leaving, staying): (Vec<_>, Vec<_>) =
            self.leaving.drain(..).partition(|&(_, end)| sync && end <= durable);
        self.leaving = staying;
        Batch {
            chunks: std::mem::take(&mut self.pending),
            order: std::mem::take(&mut self.order),
            leaving: leaving.into_iter().map(|(segment, _)| segment).collect(),
            end: self.recorded,
        }
    }

    /// Notes that a batch is written.
    pub(crate) fn put_back(&mut self, batch: Batch, sync: bool) {
        self.written = batch.end;
        if sync {
            self.durable = batch.end;
            self.commits += 1;
        }
        if let Some(chunk) = batch.chunks.into_iter().next_back() {
            self.spare = chunk.bytes;
            self.spare.clear();
        }
    }

    pub(crate) fn bytes(&self) -> u64 {
        self.segments.iter().map(|segment| segment.bytes).sum()
    }

    /// Lets the oldest segment go with the next commit.
    pub(crate) fn drop_oldest(&mut self) {
        if let Some(segment) = self.segments.pop_front() {
            self.leaving.push((segment.number, self.recorded));
        }
    }

    pub(crate) fn segment_bytes(&self) -> u64 {
        self.segment_bytes
    }
}

impl Batch {
    pub(crate) fn write(&self, files: &mut Files, sync: bool) -> Result<(), crate::Error> {
        files.write(&self.chunks, &self.order, sync)?;
        self.leaving.iter().try_for_each(|&segment| files.remove(segment))
    }
}

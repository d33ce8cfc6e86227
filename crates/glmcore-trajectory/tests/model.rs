//! The buffer against a plain twin over random calls, with crashes at any byte of what was being written.
//!
//! A crash is simulated on a copy of the directory: what was on disk at the last but one commit is sure, of what came
//! after it any prefix may be there, followed by anything. The buffer has to be what the twin was after some prefix of
//! the calls, and no call that had been acknowledged may be missing.
#![expect(clippy::unwrap_used, reason = "a test may panic")]

mod twin;

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;

use glmcore_trajectory::{Buffer, Error, Options};
use proptest::prelude::*;
use proptest::sample::Index;
use tempfile::TempDir;
use twin::{Call, Twin, call, dump};

fn options() -> Options {
    Options { groups_per_step: 2, segment_bytes: 700, ..Options::new(12, 2) }
}

type Files = BTreeMap<String, Vec<u8>>;

fn read_files(directory: &Path) -> Files {
    let read = |entry: std::io::Result<fs::DirEntry>| {
        let entry = entry.unwrap();
        (entry.file_name().into_string().unwrap(), fs::read(entry.path()).unwrap())
    };
    fs::read_dir(directory).unwrap().map(read).collect()
}

fn write_files(files: &Files) -> TempDir {
    let directory = tempfile::tempdir().unwrap();
    for (name, bytes) in files {
        fs::write(directory.path().join(name), bytes).unwrap();
    }
    directory
}

/// Bytes of the last segment that were on disk.
fn synced(files: &Files) -> usize {
    usize::try_from(u64::from_le_bytes(files["synced"][8..16].try_into().unwrap())).unwrap()
}

/// How the files may look if the machine stopped while `after` was being written, `before` being on disk.
fn torn(before: &Files, after: &Files, cut: Index, garbage: &[u8]) -> Files {
    let is_segment = |name: &&String| name.starts_with("segment");
    let mut files = before.clone();
    files.insert("order.log".into(), after["order.log"].clone());
    let last = before.keys().rfind(is_segment).cloned().unwrap_or_default();
    if !after.contains_key(&last) {
        // It was removed, which happens after the commit.
        return if cut.index(2) == 0 { before.clone() } else { after.clone() };
    }
    let new: Vec<&String> = after.keys().filter(is_segment).filter(|name| **name >= last).collect();
    let sure = synced(before);
    let written: usize = new.iter().map(|name| after[*name].len()).sum::<usize>() - sure;
    let mut left = sure + cut.index(written + 1);
    let mut last_written = last;
    for name in new {
        let bytes = &after[name][..left.min(after[name].len())];
        left -= bytes.len();
        files.insert(name.clone(), bytes.to_vec());
        last_written.clone_from(name);
        if left == 0 {
            break;
        }
    }
    // A segment that was written over still has what it had before.
    let spare = before.iter().find(|(name, _)| name.starts_with("spare")).map(|(_, bytes)| bytes);
    let stale = before.get(&last_written).or(spare).cloned().unwrap_or_default();
    let end = files.entry(last_written).or_default();
    end.extend_from_slice(garbage);
    end.extend_from_slice(stale.get(end.len()..).unwrap_or(&[]));
    files
}

/// A buffer, the twin after each call, and the files at the last two commits.
struct Run {
    directory: TempDir,
    buffer: Option<Buffer>,
    twins: Vec<Twin>,
    /// Files, and the number of calls that they are sure to contain.
    commits: [(Files, usize); 2],
}

impl Run {
    fn new() -> Self {
        let directory = tempfile::tempdir().unwrap();
        let buffer = Buffer::open(directory.path(), options()).unwrap();
        let files = read_files(directory.path());
        let commits = [(files.clone(), 0), (files, 0)];
        Self { directory, buffer: Some(buffer), twins: vec![Twin::new(options())], commits }
    }

    fn step(&mut self, call: &Call) -> Result<(), TestCaseError> {
        match call {
            Call::Reopen => {
                self.buffer = None;
                let mut twin = self.twins[self.twins.len() - 1].clone();
                twin.restart();
                self.reopen(&[twin], None)
            }
            Call::Crash { cut, garbage } => {
                let [(before, sure), (after, _)] = &self.commits;
                let files = torn(before, after, *cut, garbage);
                let restarted = |twin: &Twin| {
                    let mut twin = twin.clone();
                    twin.restart();
                    twin
                };
                let possible: Vec<Twin> = self.twins[*sure..].iter().map(restarted).collect();
                self.reopen(&possible, Some(&files))
            }
            call => {
                let mut twin = self.twins[self.twins.len() - 1].clone();
                let buffer = self.buffer.as_ref().unwrap();
                twin.step(buffer, call)?;
                self.twins.push(twin);
                let files = read_files(self.directory.path());
                if files.get("synced") != self.commits[1].0.get("synced") {
                    self.commits.swap(0, 1);
                    self.commits[1] = (files, self.twins.len() - 1);
                }
                Ok(())
            }
        }
    }

    /// Opens the buffer, from other files if given, and finds out which of the possible twins it is.
    fn reopen(&mut self, possible: &[Twin], files: Option<&Files>) -> Result<(), TestCaseError> {
        if let Some(files) = files {
            let directory = write_files(files);
            self.buffer = None;
            self.directory = directory;
        }
        let buffer = Buffer::open(self.directory.path(), options()).unwrap();
        let found = dump(&buffer);
        let twin = possible.iter().rev().find(|twin| twin.dump() == found).cloned();
        prop_assert!(
            twin.is_some(),
            "{found:#?} is none of {} twins; the last is {:#?}",
            possible.len(),
            possible[possible.len() - 1].dump()
        );
        self.buffer = Some(buffer);
        self.twins = twin.into_iter().collect();
        let files = read_files(self.directory.path());
        self.commits = [(files.clone(), 0), (files, 0)];
        Ok(())
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(192))]

    #[test]
    fn the_buffer_is_its_twin_through_calls_and_crashes(calls in prop::collection::vec(call(), 1..80)) {
        let mut run = Run::new();
        for call in &calls {
            run.step(call)?;
            let twin = &run.twins[run.twins.len() - 1];
            let found = dump(run.buffer.as_ref().unwrap());
            prop_assert_eq!(found, twin.dump(), "after {:?}", call);
        }
    }

    #[test]
    fn a_changed_byte_of_what_was_on_disk_is_noticed(
        calls in prop::collection::vec(call(), 20..60),
        at in any::<Index>(),
        bit in 0_u8..8,
    ) {
        let mut run = Run::new();
        for call in &calls {
            run.step(call)?;
        }
        run.buffer.as_ref().unwrap().flush().unwrap();
        let mut files = read_files(run.directory.path());
        let names: Vec<String> = files.keys().filter(|name| name.starts_with("segment")).cloned().collect();
        let last = &names[names.len() - 1];
        let end = synced(&files);
        files.get_mut(last).unwrap().truncate(end);
        let total: usize = names.iter().map(|name| files[name].len()).sum();
        let mut at = at.index(total);
        for name in names {
            let bytes = files.get_mut(&name).unwrap();
            if at < bytes.len() {
                bytes[at] ^= 1 << bit;
                let directory = write_files(&files);
                match Buffer::open(directory.path(), options()) {
                    Err(Error::Damaged { path, offset }) => {
                        prop_assert!(path.ends_with(&name), "{} is not {name}", path.display());
                        prop_assert!(offset <= at as u64);
                    }
                    Err(other) => prop_assert!(false, "{other}"),
                    Ok(_) => prop_assert!(false, "the change at byte {at} of {name} went unnoticed"),
                }
                break;
            }
            at -= bytes.len();
        }
    }
}

//! Megatron's files: what is written is read back, and no file makes the reader panic.

#![expect(
    clippy::unwrap_used,
    clippy::cast_possible_truncation,
    clippy::cast_sign_loss,
    reason = "a wrong number fails the test"
)]

use std::fs;
use std::path::{Path, PathBuf};

use glmcore_data::{Error, Lengths, MegatronFile, MegatronWriter, TokenFile, TokenShards};
use proptest::prelude::*;

fn write(prefix: &Path, vocab_size: u32, documents: &[Vec<u32>]) {
    let mut writer = MegatronWriter::create(prefix, vocab_size).unwrap();
    for ids in documents {
        writer.append(ids).unwrap();
    }
    writer.finish().unwrap();
}

fn open(prefix: &Path, vocab_size: u32) -> Result<TokenShards, Error> {
    TokenShards::new(vec![TokenFile::Megatron(MegatronFile::open(prefix, vocab_size)?)])
}

fn with(prefix: &Path, ending: &str) -> PathBuf {
    PathBuf::from(format!("{}{ending}", prefix.display()))
}

fn documents() -> impl Strategy<Value = Vec<Vec<u32>>> {
    prop::collection::vec(prop::collection::vec(0_u32..1000, 0..20), 0..20)
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    #[test]
    fn documents_are_read_back(documents in documents(), wide: bool) {
        let dir = tempfile::tempdir().unwrap();
        let prefix = dir.path().join("web");
        let vocab_size = if wide { 65_500 } else { 65_499 };
        write(&prefix, vocab_size, &documents);
        let shards = open(&prefix, vocab_size).unwrap();
        shards.verify().unwrap();
        prop_assert_eq!(shards.num_documents(), documents.len() as u64);
        let num_tokens = documents.iter().map(Vec::len).sum::<usize>() as u64;
        prop_assert_eq!(shards.num_tokens(), num_tokens);
        let bytes = fs::metadata(with(&prefix, ".bin")).unwrap().len();
        prop_assert_eq!(bytes, num_tokens * if wide { 4 } else { 2 });
        for (document, expected) in (0..).zip(&documents) {
            let (mut ids, mut mask) = (vec![0; expected.len()], vec![0; expected.len()]);
            shards.copy(document, 0, &mut ids, &mut mask).unwrap();
            let found: Vec<u32> = ids.iter().map(|&id| u32::try_from(id).unwrap()).collect();
            prop_assert_eq!(&found, expected);
            prop_assert!(mask.iter().all(|&learned| learned == 1));
            prop_assert_eq!(shards.bounds(document).unwrap().end - shards.bounds(document).unwrap().start, expected.len() as u64);
        }
    }

    #[test]
    fn a_changed_byte_or_a_cut_gives_an_error_or_documents_but_no_panic(
        documents in documents(), at in 0.0..1.0, value: u8, cut in prop::option::of(0.0..1.0), bin: bool,
    ) {
        let dir = tempfile::tempdir().unwrap();
        let prefix = dir.path().join("web");
        write(&prefix, 65_500, &documents);
        let path = with(&prefix, if bin { ".bin" } else { ".idx" });
        let mut bytes = fs::read(&path).unwrap();
        let place = |share: f64, len: usize| ((share * len as f64) as u32 as usize).min(len.saturating_sub(1));
        if !bytes.is_empty() {
            let at = place(at, bytes.len());
            bytes[at] = value;
        }
        if let Some(cut) = cut {
            bytes.truncate(place(cut, bytes.len()));
        }
        fs::write(&path, bytes).unwrap();
        if let Ok(shards) = open(&prefix, 65_500) {
            let _ = shards.verify();
            for document in 0..shards.num_documents().min(100) {
                if let Ok(len) = shards.length(document) {
                    let _ = shards.copy(document, 0, &mut vec![0; len as usize], &mut vec![0; len as usize]);
                }
            }
            for token in 0..shards.num_tokens() {
                let _ = shards.document_at(token);
            }
        }
    }
}

/// An index by hand: two documents, the first of two sequences, with modes.
fn index(code: u8, version: u64, lengths: &[i32], pointers: &[i64], bounds: &[i64]) -> Vec<u8> {
    let mut bytes = b"MMIDIDX\0\0".to_vec();
    bytes.extend(version.to_le_bytes());
    bytes.push(code);
    bytes.extend((lengths.len() as u64).to_le_bytes());
    bytes.extend((bounds.len() as u64).to_le_bytes());
    bytes.extend(lengths.iter().flat_map(|x| x.to_le_bytes()));
    bytes.extend(pointers.iter().flat_map(|x| x.to_le_bytes()));
    bytes.extend(bounds.iter().flat_map(|x| x.to_le_bytes()));
    bytes.extend(vec![0; lengths.len()]);
    bytes
}

fn open_index(index: &[u8], num_tokens: u16) -> Result<TokenShards, Error> {
    let dir = tempfile::tempdir().unwrap();
    let prefix = dir.path().join("web");
    let tokens: Vec<u8> = (0..num_tokens).flat_map(u16::to_le_bytes).collect();
    fs::write(with(&prefix, ".bin"), tokens).unwrap();
    fs::write(with(&prefix, ".idx"), index).unwrap();
    open(&prefix, 100)
}

#[test]
fn documents_of_several_sequences_and_modes_are_read() {
    let shards = open_index(&index(8, 1, &[2, 3, 1], &[0, 4, 10], &[0, 2, 3]), 6).unwrap();
    shards.verify().unwrap();
    assert_eq!(shards.lengths().unwrap(), [5, 1]);
    let mut ids = [0; 5];
    shards.copy(0, 0, &mut ids, &mut [0; 5]).unwrap();
    assert_eq!(ids, [0, 1, 2, 3, 4]);
    assert_eq!((shards.document_at(4).unwrap(), shards.document_at(5).unwrap()), (0, 1));
}

#[test]
fn what_is_wrong_with_a_file_is_named() {
    let good = || index(8, 1, &[2, 3, 1], &[0, 4, 10], &[0, 2, 3]);
    let message = |index: &[u8], num_tokens| open_index(index, num_tokens).unwrap_err().to_string();
    assert!(message(b"MMIDIDX", 6).contains("is not a Megatron index"));
    assert!(message(&good()[..20], 6).contains("has 20 bytes, a complete file has 34"));
    assert!(message(&good()[..50], 6).contains("was cut short"));
    assert!(message(&good(), 5).contains("has 10 bytes, a complete file has 12"));
    let changed = index(5, 1, &[2], &[0], &[0, 1]);
    assert!(message(&changed, 2).contains("has dtype code 5: only 4 (int32) and 8 (uint16)"));
    assert!(message(&index(8, 2, &[2], &[0], &[0, 1]), 2).contains("format version 2"));
    assert!(message(&index(8, 1, &[2], &[0], &[0, 2]), 2).contains("run from 0 to 2 of 1"));
    assert!(message(&index(8, 1, &[2], &[0], &[]), 2).contains("there are none"));
    assert!(message(&index(8, 1, &[-2], &[0], &[0, 1]), 2).contains("is damaged at sequence 0"));
    assert!(message(&index(8, 1, &[2], &[1], &[0, 1]), 2).contains("first byte 1"));
    let gap = open_index(&index(8, 1, &[1, 1], &[0, 4], &[0, 1, 2]), 3).unwrap();
    assert!(
        gap.verify()
            .unwrap_err()
            .to_string()
            .contains("it begins at token 2, the one before ends at 1")
    );
    let past = open_index(&index(8, 1, &[2], &[0], &[0, 1]), 2).unwrap();
    drop(past);
    assert!(matches!(MegatronFile::open("missing", 100).unwrap_err(), Error::Io { .. }));
    assert!(matches!(MegatronFile::open("missing", 0).unwrap_err(), Error::VocabSize { .. }));
}

#[test]
fn ids_outside_the_vocabulary_are_refused_by_writer_and_reader() {
    let dir = tempfile::tempdir().unwrap();
    let prefix = dir.path().join("web");
    let mut writer = MegatronWriter::create(&prefix, 100).unwrap();
    assert!(matches!(
        writer.append(&[1_i64, 100]).unwrap_err(),
        Error::IdOutOfRange { position: 1, id: 100, .. }
    ));
    writer.append(&[99_u32]).unwrap();
    writer.finish().unwrap();
    let shards = open(&prefix, 99).unwrap();
    let message = shards.copy(0, 0, &mut [0], &mut [0]).unwrap_err().to_string();
    assert!(message.contains("id 99 in a vocabulary of 99"), "{message}");
    assert!(shards.verify().is_err());
}

#[test]
fn an_unfinished_writer_leaves_nothing_and_a_new_one_replaces_the_files() {
    let dir = tempfile::tempdir().unwrap();
    let prefix = dir.path().join("web");
    let mut writer = MegatronWriter::create(&prefix, 100).unwrap();
    writer.append(&[1_u32]).unwrap();
    drop(writer);
    assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 0);
    write(&prefix, 100, &[vec![1, 2]]);
    write(&prefix, 100, &[vec![3], vec![]]);
    assert_eq!(open(&prefix, 100).unwrap().lengths().unwrap(), [1, 0]);
    assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 2);
}

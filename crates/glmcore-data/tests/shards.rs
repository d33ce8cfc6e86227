//! What is written is read, and a damaged file is an error that names its place.

#![expect(
    clippy::unwrap_used,
    clippy::cast_possible_truncation,
    clippy::cast_sign_loss,
    reason = "a wrong number fails the test"
)]

use std::fs;
use std::path::{Path, PathBuf};

use glmcore_data::{Error, Lengths, MAX_VOCAB_SIZE, Shard, ShardWriter, TokenShards, Tokens};
use proptest::prelude::*;
use tempfile::TempDir;
use xxhash_rust::xxh3::xxh3_64;

#[derive(Debug, Clone)]
struct Document {
    ids: Vec<u32>,
    mask: Option<Vec<u8>>,
    source: u16,
    quality: f32,
}

fn document(vocab_size: u32, masked: bool) -> impl Strategy<Value = Document> {
    let tokens = prop::collection::vec((0..vocab_size, 0_u8..3), 0..20);
    (tokens, any::<bool>(), any::<u16>(), 0.0_f32..1.0).prop_map(
        move |(tokens, mask, source, quality)| {
            let (ids, flags): (Vec<_>, Vec<_>) = tokens.into_iter().unzip();
            Document { ids, mask: (masked && mask).then_some(flags), source, quality }
        },
    )
}

/// A vocabulary size on either side of the width limit, whether there is a mask, and documents.
fn shard() -> impl Strategy<Value = (u32, bool, Vec<Document>)> {
    let vocab_size = prop::sample::select(vec![1, 300, 65_536, 65_537, 151_552, MAX_VOCAB_SIZE]);
    (vocab_size, any::<bool>()).prop_flat_map(|(vocab_size, masked)| {
        let documents = prop::collection::vec(document(vocab_size, masked), 0..12);
        (Just(vocab_size), Just(masked), documents)
    })
}

fn write(path: &Path, vocab_size: u32, masked: bool, documents: &[Document]) {
    let mut writer = ShardWriter::create(path, vocab_size, masked).unwrap();
    for Document { ids, mask, source, quality } in documents {
        writer.append(ids, mask.as_deref(), *source, *quality).unwrap();
    }
    writer.finish().unwrap();
}

fn ids_of(tokens: Tokens<'_>) -> Vec<u32> {
    match tokens {
        Tokens::U16(ids) => ids.iter().map(|&id| id.into()).collect(),
        Tokens::U32(ids) => ids.to_vec(),
    }
}

/// Three small documents with a loss mask, and where they lie.
fn small(vocab_size: u32) -> (TempDir, PathBuf) {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("small.tokens");
    let document = |ids: &[u32], source| Document {
        ids: ids.to_vec(),
        mask: Some(vec![1; ids.len()]),
        source,
        quality: 0.5,
    };
    let documents =
        [document(&[5, 6, 7], 1), document(&[], 2), document(&[8, 9, 10, 11, 12, 13, 14], 3)];
    write(&path, vocab_size, true, &documents);
    (dir, path)
}

/// Opens and reads everything there is; an error is the first one.
fn read_all(path: &Path) -> Result<(), Error> {
    let (shard, shards) = (Shard::open(path)?, TokenShards::open([path])?);
    for i in 0..shard.num_documents() {
        let len = shard.length(i)? as usize;
        assert_eq!(shard.tokens(i)?.len(), len);
        shards.copy(i, 0, &mut vec![0; len], &mut vec![0; len])?;
        shard.source(i)?;
        shard.quality(i)?;
    }
    Ok(())
}

/// Writes the checksum that fits a changed header.
fn sign(file: &mut [u8]) {
    let checksum = xxh3_64(&file[..248]);
    file[248..256].copy_from_slice(&checksum.to_le_bytes());
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(48))]

    #[test]
    fn documents_are_read_as_written((vocab_size, masked, documents) in shard()) {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("shard");
        write(&path, vocab_size, masked, &documents);

        let (shard, shards) = (Shard::open(&path).unwrap(), TokenShards::open([&path]).unwrap());
        shard.verify().unwrap();
        prop_assert_eq!(shard.vocab_size(), vocab_size);
        prop_assert_eq!(shard.num_documents(), documents.len() as u64);
        prop_assert_eq!(shard.num_tokens(), documents.iter().map(|d| d.ids.len() as u64).sum::<u64>());
        for (i, document) in (0..).zip(&documents) {
            let tokens = shard.tokens(i).unwrap();
            prop_assert_eq!(matches!(tokens, Tokens::U16(_)), vocab_size <= 65_536);
            prop_assert_eq!(ids_of(tokens), document.ids.clone());
            prop_assert_eq!(shard.source(i).unwrap(), document.source);
            prop_assert_eq!(shard.quality(i).unwrap().to_bits(), document.quality.to_bits());
            for start in 0..=document.ids.len() {
                let len = document.ids.len() - start;
                let (mut ids, mut mask) = (vec![0; len], vec![9; len]);
                shards.copy(i, start as u32, &mut ids, &mut mask).unwrap();
                prop_assert!(ids.iter().map(|&id| id as u32).eq(document.ids[start..].iter().copied()));
                for (place, learned) in mask.into_iter().enumerate() {
                    let twin = document.mask.as_ref().is_none_or(|mask| mask[start + place] != 0);
                    prop_assert_eq!(learned, u8::from(twin));
                }
            }
        }
    }

    #[test]
    fn several_shards_read_as_one_list(counts in prop::collection::vec(0_u32..5, 1..6)) {
        let dir = tempfile::tempdir().unwrap();
        let mut next = 0;
        let mut paths = Vec::new();
        for (number, count) in counts.iter().enumerate() {
            paths.push(dir.path().join(number.to_string()));
            let mut writer = ShardWriter::create(&paths[number], 1000, false).unwrap();
            for _ in 0..*count {
                writer.append(&vec![next; next as usize % 4], None, next as u16, 1.0).unwrap();
                next += 1;
            }
            writer.finish().unwrap();
        }
        let shards = TokenShards::open(&paths).unwrap();
        prop_assert_eq!(shards.num_documents(), u64::from(next));
        prop_assert_eq!(shards.lengths().unwrap(), (0..next).map(|i| i % 4).collect::<Vec<_>>());
        for i in 0..next {
            prop_assert_eq!(ids_of(shards.tokens(i.into()).unwrap()), vec![i; i as usize % 4]);
            prop_assert_eq!(u32::from(shards.source(i.into()).unwrap()), i);
        }
        let missing = shards.tokens(next.into()).unwrap_err();
        let is_named = matches!(missing, Error::NoSuchDocument { document, .. } if document == u64::from(next));
        prop_assert!(is_named);
    }
}

#[test]
fn every_flipped_header_byte_is_an_error_when_opening() {
    for vocab_size in [300, 70_000] {
        let (_dir, path) = small(vocab_size);
        let good = fs::read(&path).unwrap();
        for byte in 0..256 {
            for flip in [1, 0x80, 0xff] {
                let mut bad = good.clone();
                bad[byte] ^= flip;
                fs::write(&path, bad).unwrap();
                let error = Shard::open(&path).unwrap_err().to_string();
                assert!(error.contains("small.tokens"), "byte {byte}: {error}");
            }
        }
    }
}

#[test]
fn every_flipped_byte_of_the_file_is_found_by_verify() {
    let (_dir, path) = small(70_000);
    let good = fs::read(&path).unwrap();
    for byte in 256..good.len() {
        let mut bad = good.clone();
        bad[byte] ^= 0x41;
        fs::write(&path, bad).unwrap();
        let error = Shard::open(&path).and_then(|shard| shard.verify()).unwrap_err();
        assert!(matches!(error, Error::Corrupt { .. }), "byte {byte}: {error}");
        let _ = read_all(&path); // an error or not, never a panic
    }
}

#[test]
fn a_file_cut_at_any_length_or_made_longer_is_an_error() {
    let (_dir, path) = small(300);
    let mut good = fs::read(&path).unwrap();
    for len in 0..good.len() {
        fs::write(&path, &good[..len]).unwrap();
        let error = Shard::open(&path).unwrap_err();
        assert!(
            matches!(error, Error::Truncated { len: l, .. } if l == len as u64),
            "{len}: {error}"
        );
    }
    good.push(0);
    fs::write(&path, &good).unwrap();
    assert!(matches!(Shard::open(&path).unwrap_err(), Error::Truncated { .. }));
}

#[test]
fn a_signed_header_with_any_field_at_its_extremes_is_an_error_and_reads_nothing_outside() {
    let (_dir, path) = small(300);
    let good = fs::read(&path).unwrap();
    for field in (8..248).step_by(8) {
        let stored = u64::from_le_bytes(good[field..field + 8].try_into().unwrap());
        for value in [0, 1, stored ^ 2, stored + 1, stored << 32, 1 << 61, u64::MAX - 7, u64::MAX] {
            let is_checksum = (48..168).contains(&field) && (field - 48) % 24 == 16;
            if value == stored || is_checksum {
                continue; // checksums are for verify
            }
            let mut bad = good.clone();
            bad[field..field + 8].copy_from_slice(&value.to_le_bytes());
            sign(&mut bad);
            fs::write(&path, bad).unwrap();
            if field == 16 && (1..=65_536).contains(&value) {
                continue; // a smaller vocabulary: found where an id is past it
            }
            assert!(Shard::open(&path).is_err(), "field {field} = {value}");
        }
    }
}

#[test]
fn an_id_past_the_vocabulary_of_a_signed_header_is_found() {
    let (_dir, path) = small(300);
    let mut file = fs::read(&path).unwrap();
    file[16..24].copy_from_slice(&9_u64.to_le_bytes());
    sign(&mut file);
    fs::write(&path, file).unwrap();
    let message = "is damaged at document 2: id 14 in a vocabulary of 9";
    assert!(Shard::open(&path).unwrap().verify().unwrap_err().to_string().ends_with(message));
    assert!(read_all(&path).unwrap_err().to_string().ends_with(message));
}

#[test]
fn index_entries_that_point_anywhere_are_errors() {
    let (_dir, path) = small(300);
    let good = fs::read(&path).unwrap();
    let index = u64::from_le_bytes(good[72..80].try_into().unwrap()) as usize;
    for entry in 0..4 {
        for value in [4, 11, 1 << 40, 1 << 63, u64::MAX] {
            let mut bad = good.clone();
            bad[index + entry * 8..][..8].copy_from_slice(&value.to_le_bytes());
            fs::write(&path, bad).unwrap();
            match read_all(&path) {
                Err(error) => assert!(error.to_string().contains("document index"), "{error}"),
                Ok(()) => assert!(value == 4 && (1..3).contains(&entry), "entry {entry} = {value}"),
            }
        }
    }
}

#[test]
fn other_files_are_refused_by_name() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("notes.txt");
    fs::write(&path, [b'x'; 300]).unwrap();
    assert!(matches!(Shard::open(&path).unwrap_err(), Error::NotAShard { .. }));
    assert!(matches!(Shard::open(dir.path()).unwrap_err(), Error::NotAShard { .. }));
    let missing = Shard::open(dir.path().join("missing")).unwrap_err();
    assert!(matches!(missing, Error::Io { action: "open", .. }), "{missing}");
}

#[test]
fn a_later_version_is_named() {
    let (_dir, path) = small(300);
    let mut file = fs::read(&path).unwrap();
    file[8] = 2;
    sign(&mut file);
    fs::write(&path, file).unwrap();
    assert!(matches!(Shard::open(&path).unwrap_err(), Error::Version { version: 2, .. }));
}

#[test]
fn an_id_outside_the_vocabulary_names_document_and_position_and_adds_nothing() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("shard");
    let mut writer = ShardWriter::create(&path, 10, false).unwrap();
    writer.append(&[9_u32], None, 0, 1.0).unwrap();
    let error = writer.append(&[1_u32, 2, 10], None, 0, 1.0).unwrap_err();
    assert_eq!(error.to_string(), "document 1 has id 10 at position 2, ids must be from 0 to 9");
    let error = writer.append(&[-1_i32], None, 0, 1.0).unwrap_err();
    assert_eq!(error.to_string(), "document 1 has id -1 at position 0, ids must be from 0 to 9");
    writer.append(&[3_u16], None, 0, 1.0).unwrap();
    writer.finish().unwrap();
    let shard = Shard::open(&path).unwrap();
    shard.verify().unwrap();
    assert_eq!(shard.tokens(1).unwrap(), Tokens::U16(&[3]));
}

#[test]
fn masks_that_do_not_fit_are_refused() {
    let dir = tempfile::tempdir().unwrap();
    let mut without = ShardWriter::create(dir.path().join("a"), 10, false).unwrap();
    let error = without.append(&[1_u32], Some(&[1]), 0, 1.0).unwrap_err();
    assert!(matches!(error, Error::UnwantedLossMask { document: 0 }));
    let mut with = ShardWriter::create(dir.path().join("b"), 10, true).unwrap();
    let error = with.append(&[1_u32], Some(&[1, 1]), 0, 1.0).unwrap_err();
    assert!(matches!(error, Error::LossMaskLength { document: 0, mask: 2, len: 1 }));
}

#[test]
fn an_unfinished_writer_leaves_no_file_and_the_old_shard_stays() {
    let (dir, path) = small(300);
    let good = fs::read(&path).unwrap();
    let mut writer = ShardWriter::create(&path, 10, false).unwrap();
    writer.append(&vec![1_u32; 3_000_000], None, 0, 1.0).unwrap();
    drop(writer);
    assert_eq!(fs::read(&path).unwrap(), good);
    assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 1);
}

#[test]
fn vocabularies_that_int32_cannot_number_are_refused() {
    let dir = tempfile::tempdir().unwrap();
    for vocab_size in [0, MAX_VOCAB_SIZE + 1] {
        let error = ShardWriter::create(dir.path().join("a"), vocab_size, false).unwrap_err();
        assert!(matches!(error, Error::VocabSize { .. }));
    }
}

#[test]
fn shards_of_two_vocabularies_or_none_are_refused() {
    let (_a, first) = small(300);
    let (_b, second) = small(301);
    let error = TokenShards::open([first, second]).unwrap_err();
    assert!(matches!(error, Error::VocabMismatch { vocab_size: 301, expected: 300, .. }));
    let error = TokenShards::open::<&Path>([]).unwrap_err();
    assert_eq!(error.to_string(), "no shards are given, at least one is needed");
}

#[test]
fn tokens_past_the_end_of_a_document_are_refused() {
    let (_dir, path) = small(300);
    let shard = TokenShards::open([path]).unwrap();
    let error = shard.copy(0, 2, &mut [0; 2], &mut [0; 2]).unwrap_err();
    assert_eq!(error.to_string(), "document 0 has 3 tokens, there are no tokens 2 to 4");
    assert!(matches!(
        shard.tokens(3),
        Err(Error::NoSuchDocument { document: 3, num_documents: 3 })
    ));
}

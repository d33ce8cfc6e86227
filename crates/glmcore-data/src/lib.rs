//! Token shards on disk and the mixture sampler over them.
//!
//! A *shard* is one immutable file of tokenized documents: [`ShardWriter`] writes it, [`Shard`] maps it
//! into memory, [`TokenShards`] reads several as one. A [`Mixture`] draws documents from several sources
//! by weight, in a shuffled order that no index stores: document `k` of an epoch is a pure function of
//! (seed, source, epoch, `k`), and the state of a sampler is two integers per source. A [`SampleStream`]
//! gives samples of one length, sample `k` a pure function of the seed and `k` alone. Megatron's files are
//! read with [`MegatronFile`] and written with [`MegatronWriter`]. [`JsonLines`] reads the texts to be tokenised.
//!
//! ```
//! use glmcore_data::{Shard, ShardWriter, Tokens};
//!
//! # let dir = tempfile::tempdir().unwrap();
//! # let path = dir.path().join("web.tokens");
//! let mut writer = ShardWriter::create(&path, 151_552, false)?;
//! writer.append(&[9906_u32, 1917], None, 0, 1.0)?;
//! writer.finish()?;
//!
//! let shard = Shard::open(&path)?;
//! assert_eq!(shard.tokens(0)?, Tokens::U32(&[9906, 1917]));
//! # Ok::<(), glmcore_data::Error>(())
//! ```
//!
//! # File format
//!
//! All numbers are little-endian. The file is a header of 256 bytes and five sections in the order
//! below; each section starts at the next multiple of 64 bytes, gaps are zero, and the file ends where
//! the last section ends. A section's bytes follow from the counts, so the header's own offsets and
//! sizes have to agree with them.
//!
//! | bytes | header field |
//! | --- | --- |
//! | 0..8 | magic `GLMTOKEN` |
//! | 8..12 | format version, 1 |
//! | 12..16 | bytes per token: 2 if the vocabulary size is at most 65,536, else 4 |
//! | 16..24 | vocabulary size, 1 to 2,147,483,647 |
//! | 24..32 | number of documents |
//! | 32..40 | number of tokens |
//! | 40..48 | flags: bit 0 is set if there is a loss mask |
//! | 48..168 | five sections, each: offset in the file, size in bytes, xxh3-64 of its bytes |
//! | 168..248 | zero |
//! | 248..256 | xxh3-64 of bytes 0..248 |
//!
//! | section | holds |
//! | --- | --- |
//! | tokens | the ids of all documents end to end, u16 or u32 |
//! | index | first token of each document and, at the end, the number of tokens, u64 |
//! | sources | source of each document, u16 |
//! | qualities | quality of each document, f32 |
//! | loss mask | one bit per token, lowest bit first, 1 if it is learned; empty without the flag |
#![warn(missing_docs)]

#[cfg(target_endian = "big")]
compile_error!(
    "shards are little-endian and mapped as they are: big-endian machines are not supported"
);

mod error;
mod file;
mod format;
mod json_lines;
mod json_scan;
mod json_text;
mod mapped;
mod megatron;
mod megatron_writer;
mod mixture;
mod samples;
mod schedule;
mod shard;
mod shards;
mod shuffle;
mod writer;

pub use error::Error;
pub use file::TokenFile;
pub use format::{MAX_VOCAB_SIZE, VERSION};
pub use json_lines::{JsonLines, Texts};
pub use megatron::MegatronFile;
pub use megatron_writer::MegatronWriter;
pub use mixture::{Draws, Lengths, Mixture, Progress, Source};
pub use samples::{Sample, SampleStream, Stretch};
pub use schedule::Schedule;
pub use shard::{Shard, Tokens};
pub use shards::TokenShards;
pub use shuffle::Shuffle;
pub use writer::ShardWriter;

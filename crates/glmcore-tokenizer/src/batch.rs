//! Many texts at once, in parallel, into one flat array.

use rayon::prelude::*;

use crate::tokenizer::WordCache;
use crate::{Special, TokenId, Tokenizer};

/// Tokens of many texts, one after the other.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct EncodedBatch {
    /// All tokens.
    pub ids: Vec<TokenId>,
    /// Text i has the tokens from `offsets[i]` to `offsets[i + 1]`.
    pub offsets: Vec<usize>,
}

/// Encodes `texts` on `num_threads` threads (0 for all cores). The result does not depend on the number of threads.
///
/// # Panics
///
/// If the operating system refuses to start threads.
pub fn encode_batch<T: AsRef<str> + Sync>(
    tokenizer: &Tokenizer,
    texts: &[T],
    special: Special,
    num_threads: usize,
) -> EncodedBatch {
    let encode = |texts: &[T]| {
        let mut cache = WordCache::default();
        let mut batch = EncodedBatch { ids: Vec::new(), offsets: vec![0] };
        for text in texts {
            tokenizer.encode_into(text.as_ref(), special, &mut cache, &mut batch.ids);
            batch.offsets.push(batch.ids.len());
        }
        batch
    };
    if num_threads == 1 || texts.len() < 2 {
        return encode(texts);
    }
    let pool = rayon::ThreadPoolBuilder::new()
        .num_threads(num_threads)
        .build()
        .expect("the system starts a thread for each core");
    // Some pieces a thread, so that long texts do not leave the others idle.
    let chunk = texts.len().div_ceil(pool.current_num_threads() * 8).max(1);
    let parts: Vec<EncodedBatch> = pool.install(|| texts.par_chunks(chunk).map(encode).collect());
    let mut whole = EncodedBatch { ids: Vec::new(), offsets: vec![0] };
    for part in parts {
        let start = whole.ids.len();
        whole.ids.extend_from_slice(&part.ids);
        whole.offsets.extend(part.offsets[1..].iter().map(|offset| start + offset));
    }
    whole
}

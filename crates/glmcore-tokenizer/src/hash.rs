//! Hashes of short byte strings: two words multiplied into 128 bits and folded.

const LOW: u64 = 0x9e37_79b9_7f4a_7c15;
const HIGH: u64 = 0xd6e8_feb8_6659_fd93;
const LAST: u64 = 0xff51_afd7_ed55_8ccd;

/// Hash of a value of 128 bits.
#[inline(always)]
pub(crate) fn hash_u128(value: u128) -> u64 {
    fold(value as u64 ^ LOW, (value >> 64) as u64 ^ HIGH)
}

/// Hash of a string of any length.
#[inline]
pub(crate) fn hash_bytes(bytes: &[u8]) -> u64 {
    let mut chunks = bytes.chunks_exact(16);
    let mut hash = bytes.len() as u64;
    for chunk in &mut chunks {
        let chunk: [u8; 16] = chunk.try_into().expect("chunks have 16 bytes");
        hash = hash_u128(u128::from_le_bytes(chunk) ^ u128::from(hash));
    }
    let mut last = [0; 16];
    last[..chunks.remainder().len()].copy_from_slice(chunks.remainder());
    hash_u128(u128::from_le_bytes(last) ^ u128::from(hash.rotate_left(29)))
}

#[inline(always)]
fn fold(a: u64, b: u64) -> u64 {
    let product = u128::from(a) * u128::from(b);
    let folded = (product as u64) ^ (product >> 64) as u64;
    // The best bits of a product are its high ones, tables use the low ones.
    folded.wrapping_mul(LAST).rotate_left(26)
}

//! Records in a file: a header of 16 bytes, then the bytes of the record.
//!
//! The header is the length (u64), the CRC-32 of the bytes, and the CRC-32 of all this with the number of the file and
//! the offset of the record, so neither a changed length nor a record in a wrong place is taken for a good one.

use std::ops::Range;

use crate::codec::Writer;

const HEADER_BYTES: usize = 16;

/// Appends a record of the file `file` that stands at `offset` there; gives its length with the header.
pub(crate) fn append(
    out: &mut Vec<u8>,
    file: u64,
    offset: u64,
    encode: impl FnOnce(&mut Writer<'_>),
) -> u64 {
    let start = out.len();
    out.resize(start + HEADER_BYTES, 0);
    encode(&mut Writer { out });
    let (header, body) = out[start..].split_at_mut(HEADER_BYTES);
    header[..8].copy_from_slice(&(body.len() as u64).to_le_bytes());
    header[8..12].copy_from_slice(&crc32fast::hash(body).to_le_bytes());
    let check = header_check(&header[..12], file, offset);
    header[12..].copy_from_slice(&check.to_le_bytes());
    (HEADER_BYTES + body.len()) as u64
}

fn header_check(header: &[u8], file: u64, offset: u64) -> u32 {
    let mut hasher = crc32fast::Hasher::new();
    hasher.update(header);
    hasher.update(&file.to_le_bytes());
    hasher.update(&offset.to_le_bytes());
    hasher.finalize()
}

/// Where the bytes of the record at `offset` are, or `None` if there is no whole and good record.
pub(crate) fn read(file_bytes: &[u8], file: u64, offset: usize) -> Option<Range<usize>> {
    let header = file_bytes.get(offset..offset.checked_add(HEADER_BYTES)?)?;
    let check = u32::from_le_bytes(header[12..].try_into().ok()?);
    if header_check(&header[..12], file, offset as u64) != check {
        return None;
    }
    let len = usize::try_from(u64::from_le_bytes(header[..8].try_into().ok()?)).ok()?;
    let start = offset + HEADER_BYTES;
    let body = start..start.checked_add(len)?;
    let crc = u32::from_le_bytes(header[8..12].try_into().ok()?);
    (crc32fast::hash(file_bytes.get(body.clone())?) == crc).then_some(body)
}

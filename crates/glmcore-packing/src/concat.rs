//! Concatenation: documents end to end, cut wherever a row is full.

use crate::{Error, Piece, Pieces, check_capacity, count32};

/// Lays documents end to end in the given order and cuts at every row's end.
///
/// Every row but the last is full, and a document that crosses a row's end goes on as a new piece in the
/// next row. The GLM-4.5 report (arXiv:2508.06471, section 2.3) pre-trains this way and takes the random
/// cuts as augmentation.
///
/// ```
/// let pieces = glmcore_packing::pack_concat(&[5, 6], 8)?;
/// assert_eq!((pieces.doc(), pieces.start(), pieces.len()), (&[0, 1, 1][..], &[0, 0, 3][..], &[5, 3, 3][..]));
/// assert_eq!(pieces.row_offsets(), [0, 2, 3]);
/// # Ok::<(), glmcore_packing::Error>(())
/// ```
///
/// # Errors
///
/// [`Error::Capacity`], [`Error::TooMany`].
pub fn pack_concat(lengths: &[u32], capacity: u32) -> Result<Pieces, Error> {
    check_capacity(capacity)?;
    count32("documents", lengths.len() as u64)?;
    let num_tokens: u64 = lengths.iter().map(|&len| u64::from(len)).sum();
    let num_rows = num_tokens.div_ceil(capacity.into());
    count32("pieces", num_rows + lengths.len() as u64)?; // each row's end adds at most one piece

    let num_rows = count32("rows", num_rows)? as usize;
    let mut pieces = Pieces::with_capacity(lengths.len() + num_rows, num_rows);
    let mut free = capacity;
    for (doc, &len) in (0..).zip(lengths) {
        let mut start = 0;
        while start < len {
            let piece = Piece { doc, start, len: free.min(len - start) };
            pieces.push(piece);
            start += piece.len;
            free -= piece.len;
            if free == 0 {
                pieces.end_row();
                free = capacity;
            }
        }
    }
    if free < capacity {
        pieces.end_row();
    }
    Ok(pieces)
}

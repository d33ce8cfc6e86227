//! Every packing against its plain twin, and the promises about errors.

#![expect(
    clippy::unwrap_used,
    clippy::cast_possible_truncation,
    clippy::cast_sign_loss,
    reason = "a wrong number fails the test"
)]

use std::collections::BTreeSet;

use glmcore_packing::{
    BatchArrays, Error, IGNORED_LABEL, MAX_CAPACITY, Packing, Piece, Pieces, Ragged, TooLong, fill,
    fill_into, pack_best_fit, pack_concat, pack_documents,
};
use proptest::prelude::*;

/// Best-fit decreasing as one reads it in a book: the row of each document, and the order of placement.
fn best_fit_twin(lengths: &[u32], capacity: u32) -> (Vec<u32>, Vec<u32>) {
    let mut longest_first: Vec<u32> = (0..).take(lengths.len()).collect();
    longest_first.sort_by_key(|&doc| std::cmp::Reverse(lengths[doc as usize]));
    let mut row_of = vec![0; lengths.len()];
    let mut open = BTreeSet::new(); // (free tokens, row)
    let mut num_rows = 0;
    for &doc in &longest_first {
        let len = lengths[doc as usize];
        let fit = open.range((len, 0)..).next().copied();
        let (free, row) = fit.unwrap_or((capacity, num_rows));
        open.remove(&(free, row));
        open.insert((free - len, row));
        num_rows = num_rows.max(row + 1);
        row_of[doc as usize] = row;
    }
    longest_first.sort_by_key(|&doc| row_of[doc as usize]); // stable: keeps the order of placement
    (row_of, longest_first)
}

/// Token by token: token `t` of all documents end to end lies in row `t / capacity`.
fn concat_twin(lengths: &[u32], capacity: u32) -> Vec<(u32, Piece)> {
    let mut pieces: Vec<(u32, Piece)> = Vec::new();
    let mut token = 0;
    for (doc, &len) in (0..).zip(lengths) {
        for start in 0..len {
            let row = token / capacity;
            match pieces.last_mut() {
                Some((last_row, piece)) if (*last_row, piece.doc) == (row, doc) => piece.len += 1,
                _ => pieces.push((row, Piece { doc, start, len: 1 })),
            }
            token += 1;
        }
    }
    pieces
}

fn rows_of(pieces: &Pieces) -> Vec<(u32, Piece)> {
    (0..)
        .zip(0..pieces.num_rows())
        .flat_map(|(row, r)| pieces.row(r).map(move |p| (row, p)))
        .collect()
}

/// Documents with distinct tokens, every third token not learned.
fn documents(lengths: &[u32]) -> (Vec<i32>, Vec<i64>, Vec<u8>) {
    let mut offsets = vec![0];
    for &len in lengths {
        offsets.push(offsets.last().unwrap() + i64::from(len));
    }
    let ids: Vec<i32> =
        (0..i32::try_from(*offsets.last().unwrap()).unwrap()).map(|i| i + 1000).collect();
    let mask = ids.iter().map(|id| u8::from(id % 3 != 0) * 7).collect();
    (ids, offsets, mask)
}

proptest! {
    #[test]
    fn best_fit_equals_its_twin(
        lengths in prop::collection::vec(0_u32..=64, 0..200),
        capacity in 64_u32..=200,
    ) {
        let packing = pack_best_fit(&lengths, capacity).unwrap();
        let (row_of, order) = best_fit_twin(&lengths, capacity);
        prop_assert_eq!(packing.row_of(), row_of);
        prop_assert_eq!(packing.order(), order);
    }

    #[test]
    fn best_fit_equals_its_twin_where_many_documents_are_equal(
        lengths in prop::collection::vec(prop::sample::select(vec![0_u32, 1, 2, 3, 7, 10, 15, 30]), 0..300),
        capacity in 30_u32..=64,
    ) {
        let packing = pack_best_fit(&lengths, capacity).unwrap();
        let (row_of, order) = best_fit_twin(&lengths, capacity);
        prop_assert_eq!(packing.row_of(), row_of);
        prop_assert_eq!(packing.order(), order);
    }

    #[test]
    fn rows_of_a_packing_hold_each_document_once_and_no_row_overflows(
        lengths in prop::collection::vec(0_u32..=50, 0..200),
    ) {
        let packing = pack_best_fit(&lengths, 50).unwrap();
        let mut seen = vec![0; lengths.len()];
        for row in 0..packing.num_rows() {
            prop_assert!(packing.row(row).iter().map(|&doc| lengths[doc as usize]).sum::<u32>() <= 50);
            for &doc in packing.row(row) {
                prop_assert_eq!(packing.row_of()[doc as usize] as usize, row);
                seen[doc as usize] += 1;
            }
        }
        prop_assert!(seen.iter().all(|&count| count == 1));
    }

    #[test]
    fn split_best_fit_is_best_fit_of_the_cut_documents(
        lengths in prop::collection::vec(0_u32..=100, 0..60),
        capacity in 1_u32..=40,
    ) {
        let mut cut = Vec::new();
        for (doc, &len) in (0..).zip(&lengths) {
            for start in (0..len).step_by(capacity as usize) {
                cut.push(Piece { doc, start, len: capacity.min(len - start) });
            }
        }
        let cut_lengths: Vec<u32> = cut.iter().map(|piece| piece.len).collect();
        let (row_of, order) = best_fit_twin(&cut_lengths, capacity);
        let twin: Vec<_> = order.iter().map(|&i| (row_of[i as usize], cut[i as usize])).collect();
        prop_assert_eq!(rows_of(&pack_documents(&lengths, capacity, TooLong::Split).unwrap()), twin);
    }

    #[test]
    fn concat_equals_its_twin(
        lengths in prop::collection::vec(0_u32..=100, 0..60),
        capacity in 1_u32..=64,
    ) {
        let pieces = pack_concat(&lengths, capacity).unwrap();
        prop_assert_eq!(rows_of(&pieces), concat_twin(&lengths, capacity));
        prop_assert_eq!(pieces.num_rows() as u32, lengths.iter().sum::<u32>().div_ceil(capacity));
    }

    #[test]
    fn fill_writes_every_token_with_its_label_position_and_bounds(
        lengths in prop::collection::vec(0_u32..=30, 0..40),
        capacity in 1_u32..=30,
        concat in any::<bool>(),
    ) {
        let (ids, offsets, mask) = documents(&lengths);
        let ragged = Ragged::new(&ids, &offsets, Some(&mask)).unwrap();
        let pieces = if concat { pack_concat(&lengths, capacity) } else { pack_documents(&lengths, capacity, TooLong::Split) };
        let pieces = pieces.unwrap();
        let rows = 0..pieces.num_rows();
        let batch = fill::<Error>(&pieces, rows, capacity, -1, |p, i, m| ragged.copy(p, i, m)).unwrap();

        let num_tokens = pieces.num_rows() * capacity as usize;
        let mut twin_ids = vec![-1; num_tokens];
        let mut twin_labels = vec![IGNORED_LABEL; num_tokens];
        let mut twin_positions = vec![0; num_tokens];
        let mut twin_mask = vec![0; num_tokens];
        let mut bounds = vec![0];
        for row in 0..pieces.num_rows() {
            let mut at = row * capacity as usize;
            for piece in pieces.row(row) {
                let first = usize::try_from(offsets[piece.doc as usize]).unwrap() + piece.start as usize;
                for place in 0..piece.len as usize {
                    twin_ids[at] = ids[first + place];
                    twin_mask[at] = u8::from(mask[first + place] != 0);
                    twin_positions[at] = i32::try_from(place).unwrap();
                    if place + 1 < piece.len as usize && mask[first + place + 1] != 0 {
                        twin_labels[at] = ids[first + place + 1];
                    }
                    at += 1;
                }
                bounds.push(i32::try_from(at).unwrap());
            }
            for place in 0.. {
                if at == (row + 1) * capacity as usize { break; }
                twin_positions[at] = place;
                at += 1;
            }
            if *bounds.last().unwrap() as usize != at { bounds.push(i32::try_from(at).unwrap()); }
        }
        prop_assert_eq!(batch.max_seqlen, bounds.windows(2).map(|b| b[1] - b[0]).max().unwrap_or(0));
        prop_assert_eq!(batch.input_ids, twin_ids);
        prop_assert_eq!(batch.labels, twin_labels);
        prop_assert_eq!(batch.position_ids, twin_positions);
        prop_assert_eq!(batch.loss_mask, twin_mask);
        prop_assert_eq!(batch.cu_seqlens, bounds);
    }

    #[test]
    fn filling_rows_apart_gives_the_same_tokens_as_together(
        lengths in prop::collection::vec(0_u32..=30, 1..40),
        cut in 0.0..1.0,
    ) {
        let (ids, offsets, _) = documents(&lengths);
        let ragged = Ragged::new(&ids, &offsets, None).unwrap();
        let pieces = pack_concat(&lengths, 16).unwrap();
        let middle = (cut * pieces.num_rows() as f64) as usize;
        let fill = |rows| fill::<Error>(&pieces, rows, 16, 0, |p, i, m| ragged.copy(p, i, m)).unwrap();
        let (first, second) = (fill(0..middle), fill(middle..pieces.num_rows()));
        let together = fill(0..pieces.num_rows());
        prop_assert_eq!([first.input_ids, second.input_ids].concat(), together.input_ids);
        prop_assert_eq!([first.labels, second.labels].concat(), together.labels);
    }

    #[test]
    fn long_documents_are_split_truncated_or_dropped_as_chosen_and_the_loss_is_counted(
        lengths in prop::collection::vec(0_u32..=100, 0..60),
        capacity in 1_u32..=80,
    ) {
        let num_too_long = lengths.iter().filter(|&&len| len > capacity).count() as u32;
        for (too_long, keep) in [
            (TooLong::Split, None),
            (TooLong::Truncate, Some(capacity)),
            (TooLong::Drop, Some(0)),
        ] {
            let pieces = pack_documents(&lengths, capacity, too_long).unwrap();
            let mut left = lengths.clone();
            for (_, piece) in rows_of(&pieces) {
                left[piece.doc as usize] -= piece.len;
            }
            for (&len, &left) in lengths.iter().zip(&left) {
                let kept = if len > capacity { keep.unwrap_or(len) } else { len };
                prop_assert_eq!(len - left, kept);
            }
            prop_assert_eq!(pieces.loss().num_too_long, num_too_long);
            prop_assert_eq!(pieces.loss().num_lost_tokens, left.iter().map(|&n| u64::from(n)).sum::<u64>());
        }
        prop_assert_eq!(pack_documents(&lengths, capacity, TooLong::Error).is_err(), num_too_long > 0);
    }

    #[test]
    fn filling_memory_that_held_something_gives_what_fresh_memory_gives(
        lengths in prop::collection::vec(0_u32..=30, 1..40),
    ) {
        let (ids, offsets, mask) = documents(&lengths);
        let ragged = Ragged::new(&ids, &offsets, Some(&mask)).unwrap();
        let pieces = pack_documents(&lengths, 16, TooLong::Truncate).unwrap();
        let rows = 0..pieces.num_rows();
        let fresh = fill::<Error>(&pieces, rows.clone(), 16, -1, |p, i, m| ragged.copy(p, i, m)).unwrap();
        let n = fresh.input_ids.len();
        let (mut i, mut l, mut p, mut m) = (vec![77; n], vec![77; n], vec![77; n], vec![77; n]);
        let mut out = BatchArrays { input_ids: &mut i, labels: &mut l, position_ids: &mut p, loss_mask: &mut m };
        let bounds = fill_into::<Error>(&pieces, rows, 16, -1, &mut out, |p, i, m| ragged.copy(p, i, m)).unwrap();
        prop_assert_eq!(bounds.cu_seqlens, fresh.cu_seqlens);
        prop_assert_eq!((i, l, p, m), (fresh.input_ids, fresh.labels, fresh.position_ids, fresh.loss_mask));
    }

    #[test]
    fn selected_rows_are_the_rows_asked_for(
        lengths in prop::collection::vec(1_u32..=30, 1..40),
        picks in prop::collection::vec(any::<prop::sample::Index>(), 0..20),
    ) {
        let pieces = pack_concat(&lengths, 16).unwrap();
        let rows: Vec<u32> = picks.iter().map(|pick| pick.index(pieces.num_rows()) as u32).collect();
        let selected = pieces.select_rows(&rows).unwrap();
        prop_assert_eq!(selected.num_rows(), rows.len());
        for (row, &of) in rows.iter().enumerate() {
            prop_assert!(selected.row(row).eq(pieces.row(of as usize)));
        }
    }
}

#[test]
fn best_fit_equals_its_twin_on_two_hundred_thousand_documents() {
    let mut state = 1_u32;
    let mut next = || {
        state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
        state >> 8
    };
    let lengths: Vec<u32> =
        (0..200_000).map(|_| (4096 >> (next() & 7)).min(1 + next() % 4096)).collect();
    let packing = pack_best_fit(&lengths, 4096).unwrap();
    let (row_of, order) = best_fit_twin(&lengths, 4096);
    assert!(packing.row_of() == row_of && packing.order() == order);
}

#[test]
fn a_document_longer_than_a_row_is_named() {
    let error = pack_best_fit(&[3, 9, 10], 8).unwrap_err();
    assert_eq!(error, Error::DocumentTooLong { index: 1, len: 9, capacity: 8 });
    assert_eq!(error.to_string(), "document 1 has 9 tokens, more than the row capacity of 8");
}

#[test]
fn a_capacity_of_zero_or_past_the_limit_is_refused() {
    for capacity in [0, MAX_CAPACITY + 1] {
        let error = Error::Capacity { capacity };
        assert_eq!(pack_best_fit(&[], capacity).unwrap_err(), error);
        assert_eq!(pack_documents(&[], capacity, TooLong::Split).unwrap_err(), error);
        assert_eq!(pack_concat(&[], capacity).unwrap_err(), error);
    }
}

#[test]
fn the_largest_capacity_packs() {
    let packing = pack_best_fit(&[MAX_CAPACITY, 5, MAX_CAPACITY - 5], MAX_CAPACITY).unwrap();
    assert_eq!(packing.row_of(), [0, 1, 1]);
}

#[test]
fn no_documents_need_no_rows() {
    assert_eq!(pack_best_fit(&[], 8).unwrap().num_rows(), 0);
    assert_eq!(pack_concat(&[], 8).unwrap().num_rows(), 0);
}

#[test]
fn empty_documents_alone_share_one_row() {
    assert_eq!(pack_best_fit(&[0, 0], 8).unwrap().row_of(), [0, 0]);
}

#[test]
fn more_pieces_than_32_bits_count_are_refused() {
    let error = pack_concat(&[u32::MAX, u32::MAX], 1).unwrap_err();
    assert_eq!(error, Error::TooMany { what: "pieces", count: 2 * u64::from(u32::MAX) + 2 });
}

#[test]
fn pieces_of_other_documents_are_refused() {
    let packing: Packing = pack_best_fit(&[3, 4], 8).unwrap();
    assert_eq!(packing.pieces(&[3]).unwrap_err(), Error::DocumentCount { packed: 2, given: 1 });

    let ragged = Ragged::new(&[1, 2], &[0, 2], None).unwrap();
    let pieces = pack_concat(&[3], 8).unwrap();
    let error = fill::<Error>(&pieces, 0..1, 8, 0, |p, i, m| ragged.copy(p, i, m)).unwrap_err();
    assert_eq!(error, Error::PieceOutsideDocument { doc: 0, len: 2, start: 0, end: 3 });
}

#[test]
fn rows_past_the_end_and_rows_that_overflow_are_refused() {
    let pieces = pack_concat(&[9], 8).unwrap();
    let nothing = |_, _: &mut [i32], _: &mut [u8]| Ok(());
    let missing = Error::NoSuchRow { row: 2, num_rows: 2 };
    assert_eq!(fill::<Error>(&pieces, 0..3, 8, 0, nothing).unwrap_err(), missing);
    assert_eq!(pieces.select_rows(&[2]).unwrap_err(), missing);
    let overflow = Error::RowOverflow { row: 0, tokens: 8, capacity: 7 };
    assert_eq!(fill::<Error>(&pieces, 0..2, 7, 0, nothing).unwrap_err(), overflow);
}

#[test]
fn a_batch_past_int32_is_refused_before_memory_is_taken() {
    let pieces = pack_concat(&[200], 1).unwrap();
    let nothing = |_, _: &mut [i32], _: &mut [u8]| Ok(());
    let error = fill::<Error>(&pieces, 0..128, MAX_CAPACITY, 0, nothing).unwrap_err();
    assert_eq!(error, Error::BatchTooLarge { num_rows: 128, capacity: MAX_CAPACITY });
}

#[test]
fn offsets_and_masks_that_do_not_pair_with_the_tokens_are_refused() {
    let ids = [1, 2, 3];
    let offsets = |offsets: &[i64]| Ragged::new(&ids, offsets, None).unwrap_err();
    assert_eq!(offsets(&[]), Error::NoOffsets);
    assert_eq!(offsets(&[1, 3]), Error::Offsets { index: 0, offset: 1, num_tokens: 3 });
    assert_eq!(offsets(&[0, 2]), Error::Offsets { index: 1, offset: 2, num_tokens: 3 });
    assert_eq!(offsets(&[0, 2, 1, 3]), Error::Offsets { index: 2, offset: 1, num_tokens: 3 });
    let error = Ragged::new(&ids, &[0, 3], Some(&[1])).unwrap_err();
    assert_eq!(error, Error::LossMask { mask: 1, num_tokens: 3 });
}

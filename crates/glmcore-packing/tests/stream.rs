//! Streaming best fit against its plain twin, and what it promises about rows, waiting and loss.

#![expect(clippy::unwrap_used, reason = "a wrong number fails the test")]

use glmcore_packing::{BestFitStream, Error, Piece, Pieces, TooLong};
use proptest::prelude::*;

/// The rules of the stream on a plain list, oldest first: rows, cropped tokens.
fn twin(lengths: &[u32], capacity: u32, window: usize, crop: bool) -> (Vec<Vec<Piece>>, u64) {
    let mut buffer: Vec<Piece> = Vec::new();
    let mut rows = Vec::new();
    let mut lost = 0;
    for (doc, &len) in (0..).zip(lengths) {
        for start in (0..len).step_by(capacity as usize) {
            buffer.push(Piece { doc, start, len: capacity.min(len - start) });
            if buffer.len() == window {
                rows.push(row(&mut buffer, capacity, crop, &mut lost));
            }
        }
    }
    while !buffer.is_empty() {
        rows.push(row(&mut buffer, capacity, false, &mut lost));
    }
    (rows, lost)
}

fn take(buffer: &mut Vec<Piece>, len: u32) -> Piece {
    let place = buffer.iter().position(|piece| piece.len == len).unwrap();
    buffer.remove(place)
}

fn row(buffer: &mut Vec<Piece>, capacity: u32, crop: bool, lost: &mut u64) -> Vec<Piece> {
    let mut row = vec![buffer.remove(0)];
    loop {
        let free = capacity - row.iter().map(|piece| piece.len).sum::<u32>();
        if free == 0 || buffer.is_empty() {
            return row;
        }
        let has = |len| buffer.iter().any(|piece| piece.len == len);
        let count = |len| buffer.iter().filter(|piece| piece.len == len).count();
        let pair = (1..=free / 2).rev().find(|&short| {
            let long = free - short;
            if long == short { count(short) > 1 } else { has(short) && has(long) }
        });
        let longest = buffer.iter().map(|piece| piece.len).filter(|&len| len <= free).max();
        if has(free) {
            row.push(take(buffer, free));
        } else if let Some(short) = pair {
            row.push(take(buffer, free - short));
            row.push(take(buffer, short));
        } else if buffer[0].len <= free {
            row.push(buffer.remove(0));
        } else if let Some(len) = longest {
            row.push(take(buffer, len));
        } else {
            if crop {
                let shortest = buffer.iter().map(|piece| piece.len).min().unwrap();
                *lost += u64::from(shortest - free);
                row.push(Piece { len: free, ..take(buffer, shortest) });
            }
            return row;
        }
    }
}

fn rows_of(pieces: &Pieces) -> Vec<Vec<Piece>> {
    (0..pieces.num_rows()).map(|row| pieces.row(row).collect()).collect()
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(128))]

    #[test]
    fn rows_equal_the_twin_however_the_documents_come(
        lengths in prop::collection::vec(0_u32..200, 0..150),
        capacity in 1_u32..150,
        window in 1_u32..20,
        chunk in 1_usize..40,
        crop: bool,
    ) {
        let mut stream = BestFitStream::new(capacity, window, TooLong::Split, crop).unwrap();
        let mut rows = Vec::new();
        for chunk in lengths.chunks(chunk) {
            rows.extend(rows_of(&stream.push(chunk).unwrap()));
            prop_assert!(stream.waiting().len() < window as usize);
        }
        rows.extend(rows_of(&stream.finish()));
        let (expected, lost) = twin(&lengths, capacity, window as usize, crop);
        prop_assert_eq!(&rows, &expected);
        let report = stream.report();
        prop_assert_eq!(report.num_lost_tokens, lost);
        prop_assert_eq!(report.num_rows, rows.len() as u64);
        let given = lengths.iter().map(|&len| u64::from(len)).sum::<u64>();
        let filled = rows.len() as u64 * u64::from(capacity);
        prop_assert_eq!(filled, given - lost + report.num_padding_tokens);
    }

    #[test]
    fn a_resumed_stream_goes_on_as_if_never_stopped(
        lengths in prop::collection::vec(0_u32..100, 0..100),
        stop in 0_usize..100,
        capacity in 1_u32..80,
        window in 1_u32..20,
    ) {
        let (first, second) = lengths.split_at(stop.min(lengths.len()));
        let mut whole = BestFitStream::new(capacity, window, TooLong::Truncate, true).unwrap();
        whole.push(first).unwrap();
        let mut resumed = BestFitStream::new(capacity, window, TooLong::Truncate, true).unwrap();
        resumed.resume(&whole.waiting(), whole.next_doc()).unwrap();
        prop_assert_eq!(resumed.push(second).unwrap(), whole.push(second).unwrap());
        prop_assert_eq!(resumed.finish(), whole.finish());
    }

    #[test]
    fn no_piece_waits_for_more_rows_than_the_window(
        lengths in prop::collection::vec(1_u32..100, 0..200),
        window in 1_u32..20,
    ) {
        let mut stream = BestFitStream::new(100, window, TooLong::Error, false).unwrap();
        let mut rows = 0;
        let mut arrived = Vec::new();
        for &len in &lengths {
            arrived.push(rows);
            for row in rows_of(&stream.push(&[len]).unwrap()) {
                for piece in row {
                    prop_assert!(rows - arrived[piece.doc as usize] <= window);
                }
                rows += 1;
            }
        }
    }
}

#[test]
fn long_documents_are_refused_truncated_or_dropped_as_chosen() {
    let stream = |too_long| BestFitStream::new(4, 8, too_long, false).unwrap();
    let mut refusing = stream(TooLong::Error);
    let error = Error::DocumentTooLong { index: 1, len: 9, capacity: 4 };
    assert_eq!(refusing.push(&[3, 9]).unwrap_err(), error);
    assert!(refusing.waiting().is_empty());
    for (too_long, kept, lost) in [(TooLong::Truncate, vec![3, 4], 5), (TooLong::Drop, vec![3], 9)]
    {
        let mut stream = stream(too_long);
        stream.push(&[3, 9]).unwrap();
        let lengths: Vec<u32> = stream.waiting().iter().map(|piece| piece.len).collect();
        assert_eq!(lengths, kept);
        assert_eq!((stream.report().num_lost_tokens, stream.report().num_too_long), (lost, 1));
    }
}

#[test]
fn windows_and_states_that_cannot_work_are_refused() {
    let new = |window| BestFitStream::new(4, window, TooLong::Split, false);
    assert_eq!(new(0).unwrap_err(), Error::Window { window: 0 });
    let piece = |len| Piece { doc: 0, start: 0, len };
    assert_eq!(new(1).unwrap().resume(&[piece(1)], 1).unwrap_err(), Error::Window { window: 1 });
    let error = Error::DocumentTooLong { index: 0, len: 5, capacity: 4 };
    assert_eq!(new(2).unwrap().resume(&[piece(5)], 1).unwrap_err(), error);
}

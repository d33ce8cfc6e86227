//! What the buffer promises beyond its contents: who waits for whom, what is on disk, and what is refused.
#![expect(clippy::unwrap_used, reason = "a test may panic")]

use std::time::{Duration, Instant};

use glmcore_trajectory::{Admission, Buffer, Commit, Error, Options, Outcome, Tokens};

const NO_TIME: Option<Duration> = Some(Duration::ZERO);
const LONG: Option<Duration> = Some(Duration::from_secs(30));

fn memory(capacity: usize, max_staleness: u64) -> Buffer {
    Buffer::in_memory(Options::new(capacity, max_staleness)).unwrap()
}

fn admit(buffer: &Buffer, rollouts: u32, version: u64) -> u64 {
    buffer.admit(&Admission::new("task", rollouts, version), NO_TIME, Commit::Wait).unwrap()
}

fn append(buffer: &Buffer, rollout: u64, ids: &[i32], version: u64) -> Result<(), Error> {
    let (loss_mask, logprobs) = (vec![1; ids.len()], vec![-0.5; ids.len()]);
    let (loss_mask, logprobs) = (&loss_mask[..], &logprobs[..]);
    let tokens = Tokens { ids, loss_mask, logprobs, policy_version: version, ends_turn: false };
    buffer.append_tokens(rollout, &tokens)
}

fn finish(buffer: &Buffer, rollout: u64) {
    buffer.finish(rollout, 1.0, "stop", b"kept", Commit::Wait).unwrap();
}

#[test]
fn only_one_process_may_have_the_directory() {
    let directory = tempfile::tempdir().unwrap();
    let _first = Buffer::open(directory.path(), Options::new(4, 0)).unwrap();
    let second = Buffer::open(directory.path(), Options::new(4, 0));
    assert!(matches!(second, Err(Error::Locked(_))));
}

#[test]
fn a_waiting_taker_gets_the_group_that_another_thread_finishes() {
    let buffer = memory(4, 0);
    let rollout = buffer.rollouts(admit(&buffer, 1, 0)).unwrap().start;
    std::thread::scope(|scope| {
        let taker = scope.spawn(|| buffer.take(1, 0, LONG).unwrap());
        std::thread::sleep(Duration::from_millis(20));
        finish(&buffer, rollout);
        assert_eq!(taker.join().unwrap().unwrap().groups.len(), 1);
    });
    assert_eq!(buffer.take(1, 1, Some(Duration::from_millis(5))).unwrap(), None);
}

#[test]
fn admission_waits_for_room_and_gets_it_when_a_lease_is_acknowledged() {
    let buffer = memory(2, 9);
    let rollouts = buffer.rollouts(admit(&buffer, 2, 0)).unwrap();
    let admission = Admission::new("next", 1, 0);
    let full = buffer.admit(&admission, Some(Duration::from_millis(5)), Commit::Wait);
    assert!(matches!(full, Err(Error::Full { what: "rollouts", held: 2, wanted: 1, capacity: 2 })));
    std::thread::scope(|scope| {
        let producer = scope.spawn(|| buffer.admit(&admission, LONG, Commit::Wait));
        rollouts.for_each(|rollout| finish(&buffer, rollout));
        let lease = buffer.take(1, 0, NO_TIME).unwrap().unwrap();
        buffer.ack(&[lease.id], None).unwrap();
        assert_eq!(producer.join().unwrap().unwrap(), 1);
    });
}

#[test]
fn tokens_are_reserved_at_admission_and_what_is_not_used_is_given_back() {
    let options = Options { capacity_tokens: Some(10), ..Options::new(100, 9) };
    let buffer = Buffer::in_memory(options).unwrap();
    let admit = |max_tokens| {
        let admission = Admission { max_tokens, ..Admission::new("task", 1, 0) };
        buffer.admit(&admission, NO_TIME, Commit::Wait)
    };
    assert!(matches!(admit(None), Err(Error::NoTokenLimit)));
    let group = admit(Some(8)).unwrap();
    let full = admit(Some(4));
    assert!(matches!(full, Err(Error::Full { what: "tokens", held: 8, wanted: 4, capacity: 10 })));
    let rollout = buffer.rollouts(group).unwrap().start;
    append(&buffer, rollout, &[1; 5], 0).unwrap();
    let too_long = append(&buffer, rollout, &[1; 4], 0);
    assert!(matches!(too_long, Err(Error::TooLong { len: 9, max_tokens: 8, .. })));
    finish(&buffer, rollout);
    admit(Some(4)).unwrap();
}

#[test]
fn a_hung_rollout_reaches_a_waiting_trainer_as_a_failure() {
    let buffer = memory(4, 0);
    let rollout_timeout = Some(Duration::from_millis(30));
    let admission = Admission { rollout_timeout, ..Admission::new("task", 2, 0) };
    let group = buffer.admit(&admission, NO_TIME, Commit::Wait).unwrap();
    let rollouts = buffer.rollouts(group).unwrap();
    buffer.set_timeout(rollouts.start + 1, LONG).unwrap();
    let asked = Instant::now();
    std::thread::scope(|scope| {
        let taker = scope.spawn(|| buffer.take(1, 0, LONG).unwrap());
        while buffer.stats().failed_rollouts == 0 {
            std::thread::sleep(Duration::from_millis(2));
        }
        buffer.set_timeout(rollouts.start + 1, Some(Duration::from_millis(10))).unwrap();
        let lease = taker.join().unwrap().unwrap();
        for rollout in &lease.groups[0].rollouts {
            let is_late = matches!(&rollout.outcome, Outcome::Failed { reason } if reason.contains("time limit"));
            assert!(is_late, "{:?}", rollout.outcome);
        }
    });
    assert!(asked.elapsed() < Duration::from_secs(25));
    assert!(matches!(append(&buffer, rollouts.start, &[1], 0), Err(Error::Ended(_))));
}

#[test]
fn producers_share_commits() {
    let directory = tempfile::tempdir().unwrap();
    let buffer = Buffer::open(directory.path(), Options::new(1000, 1000)).unwrap();
    let rollouts: Vec<u64> = buffer.rollouts(admit(&buffer, 400, 0)).unwrap().collect();
    let before = buffer.stats().commits;
    std::thread::scope(|scope| {
        for part in rollouts.chunks(50) {
            let buffer = &buffer;
            scope.spawn(move || part.iter().for_each(|&rollout| finish(buffer, rollout)));
        }
    });
    let commits = buffer.stats().commits - before;
    assert!((1..400).contains(&commits), "{commits} commits for 400 rollouts of 8 threads");
}

#[test]
fn one_slow_group_keeps_nothing_else_on_disk_and_keeps_its_tokens() {
    let directory = tempfile::tempdir().unwrap();
    let options = Options { segment_bytes: 10_000, ..Options::new(100, 100_000) };
    let buffer = Buffer::open(directory.path(), options).unwrap();
    let slow = buffer.rollouts(admit(&buffer, 2, 0)).unwrap();
    append(&buffer, slow.start, &[1, 2, 3], 0).unwrap();
    finish(&buffer, slow.start);
    append(&buffer, slow.start + 1, &[4, 5], 0).unwrap();
    for version in 0..200 {
        let rollout = buffer.rollouts(admit(&buffer, 1, version)).unwrap().start;
        append(&buffer, rollout, &[7; 300], version).unwrap();
        finish(&buffer, rollout);
        let lease = buffer.take(1, version, NO_TIME).unwrap().unwrap();
        buffer.ack(&[lease.id], None).unwrap();
        // Each group is 2.8 kB; two segments and what is open.
        assert!(buffer.stats().bytes_on_disk < 40_000, "{}", buffer.stats().bytes_on_disk);
    }
    append(&buffer, slow.start + 1, &[6], 9).unwrap();
    drop(buffer);
    let files = std::fs::read_dir(directory.path()).unwrap().map(|entry| entry.unwrap());
    let bytes: u64 = files
        .filter(|file| file.file_name().to_str().unwrap().starts_with("segment"))
        .map(|file| file.metadata().unwrap().len())
        .sum();
    assert!(bytes < 40_000, "{bytes}");
    let buffer = Buffer::open(directory.path(), options).unwrap();
    let (_, _, first) = buffer.rollout(slow.start).unwrap();
    assert_eq!((first.ids, first.extra), (vec![1, 2, 3], b"kept".to_vec()));
    let (_, _, second) = buffer.rollout(slow.start + 1).unwrap();
    assert_eq!((second.spans(), second.ids), (vec![(2, 0), (1, 9)], vec![4, 5, 6]));
    assert_eq!(buffer.running().unwrap().len(), 1);
    assert_eq!(buffer.task_stats("task").unwrap().attempts, 201);
    assert_eq!(buffer.order().unwrap().len(), 200);
}

#[test]
fn a_lease_in_a_complete_checkpoint_is_consumed_though_the_acknowledgement_was_lost() {
    let directory = tempfile::tempdir().unwrap();
    let options = Options { groups_per_step: 1, ..Options::new(10, 5) };
    for (goes_on_from, left) in [("step 2", vec![2]), ("step 1", vec![1, 2]), ("", vec![1, 2])] {
        let place = directory.path().join(goes_on_from.replace(' ', "")).join("buffer");
        let buffer = Buffer::open(&place, options).unwrap();
        for version in 0..3 {
            let rollout = buffer.rollouts(admit(&buffer, 1, version)).unwrap().start;
            finish(&buffer, rollout);
        }
        let first = buffer.take(1, 0, NO_TIME).unwrap().unwrap();
        buffer.prepare(&[first.id], "step 1").unwrap();
        let wrong = buffer.ack(&[first.id], Some("step 7"));
        assert!(matches!(wrong, Err(Error::OtherCheckpoint { .. })));
        buffer.ack(&[first.id], Some("step 1")).unwrap();
        let second = buffer.take(1, 1, NO_TIME).unwrap().unwrap();
        buffer.prepare(&[second.id], "step 2").unwrap();
        drop(buffer);
        let buffer = Buffer::open(&place, options).unwrap();
        let unresolved = buffer.take(1, 1, NO_TIME).unwrap_err().to_string();
        assert!(
            unresolved.contains("may be in checkpoint \"step 2\": call recover"),
            "{unresolved}"
        );
        buffer.recover(Some(goes_on_from).filter(|name| !name.is_empty()), None).unwrap();
        let groups: Vec<u64> = buffer.groups().unwrap().iter().map(|group| group.id).collect();
        assert_eq!(groups, left);
        let next = buffer.take(1, 3 - left.len() as u64, NO_TIME).unwrap().unwrap();
        assert_eq!(next.groups[0].id, left[0]);
    }
}

#[test]
fn a_damaged_order_is_an_error_with_its_place() {
    let directory = tempfile::tempdir().unwrap();
    let buffer = Buffer::open(directory.path(), Options::new(10, 5)).unwrap();
    for version in 0..3 {
        finish(&buffer, buffer.rollouts(admit(&buffer, 1, version)).unwrap().start);
        let lease = buffer.take(1, version, NO_TIME).unwrap().unwrap();
        buffer.ack(&[lease.id], Some("here")).unwrap();
    }
    let order = buffer.order().unwrap();
    assert_eq!(order.iter().map(|taken| taken.groups[0].id).collect::<Vec<_>>(), [0, 1, 2]);
    assert_eq!((order[2].policy_version, &*order[2].checkpoint), (2, "here"));
    let path = directory.path().join("order.log");
    let mut bytes = std::fs::read(&path).unwrap();
    let middle = bytes.len() / 2;
    bytes[middle] ^= 4;
    std::fs::write(&path, &bytes).unwrap();
    let error = buffer.order().unwrap_err().to_string();
    assert!(error.contains("order.log: damaged at byte"), "{error}");
    drop(buffer);
    std::fs::write(&path, &bytes[..middle]).unwrap();
    let short = Buffer::open(directory.path(), Options::new(10, 5)).err().unwrap().to_string();
    assert!(short.contains(&format!("order.log: damaged at byte {middle}")), "{short}");
}

#[test]
fn the_one_writer_checks_what_it_gets() {
    let buffer = memory(4, 9);
    let rollout = buffer.rollouts(admit(&buffer, 1, 3)).unwrap().start;
    let call = |ids: &[i32], loss_mask: &[u8], logprobs: &[f32], policy_version| {
        let tokens = Tokens { ids, loss_mask, logprobs, policy_version, ends_turn: false };
        buffer.append_tokens(rollout, &tokens).unwrap_err().to_string()
    };
    assert!(call(&[1, 2], &[1], &[0.0, 0.0], 3).contains("2 ids come with 1 loss mask"));
    assert!(call(&[1, -2], &[1, 1], &[0.0, 0.0], 3).contains("a negative id is at position 1"));
    assert!(call(&[1, 2], &[1, 2], &[0.0, 0.0], 3).contains("other than 0 and 1 is at position 1"));
    for bad in [f32::NAN, f32::INFINITY, f32::NEG_INFINITY] {
        assert!(call(&[1, 2], &[1, 1], &[0.0, bad], 3).contains("not finite is at position 1"));
    }
    assert!(call(&[1], &[1], &[0.0], 2).contains("is at version 3, version 2 cannot follow"));
    assert!(call(&[1], &[1], &[0.0], 1 << 31).contains("larger than 2^31 - 1"));
    append(&buffer, rollout, &[1], 4).unwrap();
    assert!(call(&[1], &[1], &[0.0], 3).contains("is at version 4"));
    let error = buffer.finish(rollout, f64::NAN, "stop", b"", Commit::Wait).unwrap_err();
    assert!(error.to_string().contains("is not finite"));
}

#[test]
fn pass_at_k_is_the_share_of_choices_with_a_pass() {
    let buffer = memory(10, 0);
    for (place, rollout) in buffer.rollouts(admit(&buffer, 7, 0)).unwrap().enumerate() {
        match place {
            6 => buffer.fail(rollout, "lost", Commit::Wait).unwrap(),
            place => {
                let reward = f64::from(u8::from(place < 2));
                buffer.finish(rollout, reward, "stop", b"", Commit::Wait).unwrap();
            }
        }
    }
    let stats = buffer.task_stats("task").unwrap();
    assert_eq!((stats.attempts, stats.passes, stats.failures), (6, 2, 1));
    for k in 0..=6_u32 {
        let choices = (0_u32..64).filter(|choice| choice.count_ones() == k);
        let (with, all) = choices
            .fold((0, 0), |(with, all), choice| (with + u32::from(choice & 3 != 0), all + 1));
        assert!(
            (stats.pass_at(k.into()).unwrap() - f64::from(with) / f64::from(all)).abs() < 1e-12
        );
    }
    assert_eq!(stats.pass_at(7), None);
}

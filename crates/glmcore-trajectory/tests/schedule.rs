//! The promise about age: whatever the rollouts' lengths, orders and rates, no group is taken too late, dropped or
//! passed over for ever, and a trainer that keeps its pace is never refused.
#![expect(clippy::unwrap_used, reason = "a test may panic")]

use std::collections::BTreeMap;
use std::time::Duration;

use glmcore_trajectory::{Admission, Buffer, Commit, Error, Options, Order, Tokens};
use proptest::prelude::*;

const NO_TIME: Option<Duration> = Some(Duration::ZERO);

fn admit(buffer: &Buffer, version: u64, priority: i64) -> Result<u64, Error> {
    let admission = Admission { priority, ..Admission::new("task", 1, version) };
    buffer.admit(&admission, NO_TIME, Commit::Later)
}

fn sample(buffer: &Buffer, group: u64, policy_version: u64) {
    let rollout = buffer.rollouts(group).unwrap().start;
    let (ids, loss_mask, logprobs) = (&[1], &[1], &[0.0]);
    let tokens = Tokens { ids, loss_mask, logprobs, policy_version, ends_turn: false };
    buffer.append_tokens(rollout, &tokens).unwrap();
}

fn finish(buffer: &Buffer, group: u64) {
    let rollout = buffer.rollouts(group).unwrap().start;
    buffer.finish(rollout, 1.0, "stop", b"", Commit::Later).unwrap();
}

fn finish_all(buffer: &Buffer, groups: &[u64]) {
    for &group in groups {
        finish(buffer, group);
    }
}

#[derive(Debug, Clone)]
struct Setup {
    options: Options,
    /// Steps that each group takes from admission to its end, in turn.
    durations: Vec<usize>,
    /// Admissions tried at each step.
    eagerness: usize,
    /// How far behind the newest weights each producer may be, in turn.
    lags: Vec<u64>,
}

fn setup() -> impl Strategy<Value = Setup> {
    let order = prop_oneof![Just(Order::Deadline), Just(Order::Fifo), Just(Order::Priority)];
    let durations = prop::collection::vec(prop_oneof![5 => 0_usize..3, 1 => 5_usize..60], 1..20);
    let lags = prop::collection::vec(0_u64..4, 1..8);
    (0_u64..7, 1_usize..5, 1_u64..4, order, durations, 1_usize..12, lags).prop_map(
        |(max_staleness, groups_per_step, updates_per_step, order, durations, eagerness, lags)| {
            let max_staleness = max_staleness.max(updates_per_step - 1);
            let lags = [vec![0], lags].concat(); // somebody has the newest weights
            let bounds = Options::new(1000, max_staleness);
            let options = Options { groups_per_step, updates_per_step, order, ..bounds };
            Setup { options, durations, eagerness, lags }
        },
    )
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(300))]

    #[test]
    fn a_trainer_that_keeps_its_pace_is_never_refused_and_everything_is_trained_in_time(setup in setup()) {
        let Setup { options, durations, eagerness, lags } = setup;
        let buffer = Buffer::in_memory(options).unwrap();
        let (mut version, mut admitted) = (0_u64, Vec::new()); // (group, version at admission)
        let mut running: BTreeMap<u64, usize> = BTreeMap::new();
        let mut taken = BTreeMap::new();
        let mut batches = 0;
        for step in 0.. {
            for turn in 0..if batches < 30 { eagerness } else { 0 } {
                let sampled = version.saturating_sub(lags[(step + turn) % lags.len()]);
                if let Ok(group) = admit(&buffer, sampled, i64::from(step % 3 == 0)) {
                    sample(&buffer, group, sampled);
                    admitted.push((group, sampled));
                    running.insert(group, durations[admitted.len() % durations.len()]);
                }
            }
            let done: Vec<u64> = running.iter().filter(|(_, left)| **left == 0).map(|(&id, _)| id).collect();
            for group in done {
                finish(&buffer, group);
                running.remove(&group);
            }
            for left in running.values_mut() {
                *left -= 1;
            }
            // Never an error: the trainer takes whole batches at rising versions.
            if let Some(lease) = buffer.take(options.groups_per_step, version, NO_TIME).unwrap() {
                for group in &lease.groups {
                    taken.insert(group.id, version);
                }
                buffer.ack(&[lease.id], None).unwrap();
                version += options.updates_per_step;
                batches += 1;
            }
            if batches >= 30 && running.is_empty() {
                break; // fewer than a batch may be left
            }
            prop_assert!(step < 100_000, "the trainer starves");
        }
        let left = buffer.groups().unwrap().len();
        prop_assert_eq!(taken.len() + left, admitted.len());
        for (group, sampled) in admitted {
            if let Some(trained) = taken.get(&group) {
                prop_assert!(trained + options.updates_per_step - 1 <= sampled + options.max_staleness);
            }
        }
        let stats = buffer.stats();
        prop_assert!(stats.staleness.keys().all(|&staleness| staleness <= options.max_staleness));
        prop_assert_eq!(stats.staleness.values().sum::<u64>(), taken.len() as u64);
    }

    #[test]
    fn room_is_how_many_more_are_admitted(setup in setup(), version in 0_u64..4, before in 0_usize..9) {
        let buffer = Buffer::in_memory(setup.options).unwrap();
        for turn in 0..before {
            let _ = admit(&buffer, setup.lags[turn % setup.lags.len()], 0);
        }
        let room = buffer.room(version);
        for _ in 0..room {
            admit(&buffer, version, 0).unwrap();
        }
        let refused = admit(&buffer, version, 0);
        let is_stale = matches!(refused, Err(Error::WouldBeStale { .. }));
        prop_assert!(is_stale);
    }
}

fn two_a_step(max_staleness: u64, order: Order) -> Buffer {
    Buffer::in_memory(Options { groups_per_step: 2, order, ..Options::new(100, max_staleness) })
        .unwrap()
}

fn ids(lease: Option<glmcore_trajectory::Lease>) -> Option<Vec<u64>> {
    lease.map(|lease| lease.groups.iter().map(|group| group.id).collect())
}

#[test]
fn staleness_zero_is_synchronous() {
    let buffer = two_a_step(0, Order::Deadline);
    let [a, b] = [0, 1].map(|_| admit(&buffer, 0, 0).unwrap());
    let error = admit(&buffer, 0, 0).unwrap_err().to_string();
    assert!(error.contains("past max_staleness 0"), "{error}");
    finish(&buffer, b);
    assert_eq!(ids(buffer.take(2, 0, NO_TIME).unwrap()), None); // not without the slow one
    finish(&buffer, a);
    assert_eq!(ids(buffer.take(2, 0, NO_TIME).unwrap()), Some(vec![a, b]));
    admit(&buffer, 0, 0).unwrap_err(); // the next batch is of version 1
    admit(&buffer, 1, 0).unwrap();
}

#[test]
fn fast_groups_pass_slow_ones_until_these_are_due() {
    let buffer = two_a_step(1, Order::Deadline);
    let slow = admit(&buffer, 0, 0).unwrap();
    let fast: Vec<u64> = (0..3).map(|_| admit(&buffer, 0, 0).unwrap()).collect();
    finish_all(&buffer, &fast);
    assert_eq!(ids(buffer.take(2, 0, NO_TIME).unwrap()), Some(vec![fast[0], fast[1]]));
    let newer: Vec<u64> = (0..2).map(|_| admit(&buffer, 1, 0).unwrap()).collect();
    finish_all(&buffer, &newer);
    assert_eq!(ids(buffer.take(2, 1, NO_TIME).unwrap()), None); // the batch of version 1 waits for the slow group
    finish(&buffer, slow);
    assert_eq!(ids(buffer.take(2, 1, NO_TIME).unwrap()), Some(vec![slow, fast[2]]));
}

#[test]
fn first_in_first_out_depends_on_no_timing() {
    let buffer = two_a_step(2, Order::Fifo);
    let groups: Vec<u64> = (0..4).map(|_| admit(&buffer, 0, 0).unwrap()).collect();
    finish_all(&buffer, &groups[1..]);
    assert_eq!(ids(buffer.take(2, 0, NO_TIME).unwrap()), None);
    finish(&buffer, groups[0]);
    assert_eq!(ids(buffer.take(2, 0, NO_TIME).unwrap()), Some(groups[..2].to_vec()));
}

#[test]
fn priority_goes_first_but_never_at_the_cost_of_age() {
    let buffer = two_a_step(1, Order::Priority);
    let groups: Vec<u64> =
        [0, 5, 9, 7].map(|priority| admit(&buffer, 0, priority).unwrap()).to_vec();
    finish_all(&buffer, &groups);
    assert_eq!(ids(buffer.take(2, 0, NO_TIME).unwrap()), Some(groups[2..].to_vec()));
    let late = admit(&buffer, 1, 100).unwrap();
    finish(&buffer, late);
    assert_eq!(ids(buffer.take(2, 1, NO_TIME).unwrap()), Some(groups[..2].to_vec()));
}

#[test]
fn updates_within_a_batch_count() {
    let options = Options { updates_per_step: 3, ..Options::new(10, 2) };
    let buffer = Buffer::in_memory(options).unwrap();
    let group = admit(&buffer, 0, 0).unwrap();
    sample(&buffer, group, 0);
    finish(&buffer, group);
    admit(&buffer, 0, 0).unwrap_err(); // at version 3 the last update would be of version 5
    let lease = buffer.take(1, 0, NO_TIME).unwrap().unwrap();
    buffer.ack(&[lease.id], None).unwrap();
    assert_eq!(buffer.stats().staleness, BTreeMap::from([(2, 1)]));
    let error =
        Buffer::in_memory(Options { updates_per_step: 3, ..Options::new(10, 1) }).err().unwrap();
    assert!(error.to_string().contains("updates_per_step 3 needs a max_staleness"), "{error}");
}

#[test]
fn a_trainer_that_leaves_its_pace_is_refused_before_anything_is_too_old() {
    let buffer = two_a_step(1, Order::Deadline);
    let groups: Vec<u64> = (0..4).map(|_| admit(&buffer, 0, 0).unwrap()).collect();
    finish_all(&buffer, &groups);
    let error = buffer.take(1, 1, NO_TIME).unwrap_err().to_string();
    assert!(error.contains("1 groups are too few at version 1: 3 have to be taken"), "{error}");
    let error = buffer.take(2, 2, NO_TIME).unwrap_err().to_string();
    assert!(error.contains("has to be taken at version 1 or before"), "{error}");
    let error = buffer.take(9, 0, NO_TIME).unwrap_err().to_string();
    assert!(error.contains("9 groups never wait at once"), "{error}");
    assert_eq!(ids(buffer.take(4, 1, NO_TIME).unwrap()), Some(groups));
}

#[test]
fn consumers_may_share_a_batch() {
    let buffer = two_a_step(0, Order::Deadline);
    let groups: Vec<u64> = (0..2).map(|_| admit(&buffer, 0, 0).unwrap()).collect();
    finish_all(&buffer, &groups);
    assert_eq!(ids(buffer.take(1, 0, NO_TIME).unwrap()), Some(vec![groups[0]]));
    assert_eq!(ids(buffer.take(1, 0, NO_TIME).unwrap()), Some(vec![groups[1]]));
    admit(&buffer, 0, 0).unwrap_err();
}

#[test]
fn exactly_the_groups_of_a_recorded_order_can_be_taken() {
    let buffer = two_a_step(1, Order::Deadline);
    let groups: Vec<u64> = (0..3).map(|_| admit(&buffer, 0, 0).unwrap()).collect();
    assert_eq!(ids(buffer.take_these(&groups[1..], 0, NO_TIME).unwrap()), None);
    finish_all(&buffer, &groups);
    assert_eq!(
        ids(buffer.take_these(&groups[1..], 0, NO_TIME).unwrap()),
        Some(groups[1..].to_vec())
    );
    assert!(matches!(buffer.take_these(&groups[1..], 0, NO_TIME), Err(Error::Leased(_))));
    let newer: Vec<u64> = (0..2).map(|_| admit(&buffer, 1, 0).unwrap()).collect();
    finish_all(&buffer, &newer);
    assert!(matches!(
        buffer.take_these(&newer, 1, NO_TIME),
        Err(Error::OthersAreDue { version: 1 })
    ));
}

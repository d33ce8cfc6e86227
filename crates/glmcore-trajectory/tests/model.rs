//! The buffer against a plain model of what it promises, over random calls with restarts in between.
#![expect(clippy::unwrap_used, reason = "a test may panic")]

use std::collections::BTreeMap;
use std::time::Duration;

use glmcore_trajectory::{Buffer, Error, GroupState, Limits, Outcome, Tokens};
use proptest::prelude::*;

const LIMITS: Limits = Limits { capacity: 12, max_staleness: 2, groups_per_step: 2 };

#[derive(Debug, Clone)]
enum Call {
    Admit { rollouts: u32 },
    Append { rollout: usize, len: usize },
    Finish { rollout: usize },
    Fail { rollout: usize },
    Discard { group: usize },
    Take,
    Ack,
    Reopen,
}

fn call() -> impl Strategy<Value = Call> {
    prop_oneof![
        3 => (1_u32..4).prop_map(|rollouts| Call::Admit { rollouts }),
        3 => (0_usize..12, 0_usize..5).prop_map(|(rollout, len)| Call::Append { rollout, len }),
        6 => (0_usize..12).prop_map(|rollout| Call::Finish { rollout }),
        1 => (0_usize..12).prop_map(|rollout| Call::Fail { rollout }),
        1 => (0_usize..4).prop_map(|group| Call::Discard { group }),
        3 => Just(Call::Take),
        2 => Just(Call::Ack),
        1 => Just(Call::Reopen),
    ]
}

/// A group as the model knows it: its version and, for each rollout, tokens and whether it has ended.
#[derive(Debug, Clone, Default)]
struct Expected {
    version: u64,
    rollouts: BTreeMap<u64, (Vec<i32>, Option<bool>)>,
    leased: bool,
}

impl Expected {
    fn is_complete(&self) -> bool {
        self.rollouts.values().all(|(_, ended)| ended.is_some())
    }
}

#[derive(Default)]
struct Model {
    groups: BTreeMap<u64, Expected>,
    version: u64,
}

impl Model {
    fn rollout(&self, place: usize) -> Option<(u64, u64)> {
        let all: Vec<_> = self
            .groups
            .iter()
            .flat_map(|(&g, e)| e.rollouts.keys().map(move |&r| (g, r)))
            .collect();
        (!all.is_empty()).then(|| all[place % all.len()])
    }

    fn step(&mut self, buffer: &Buffer, call: &Call) -> Result<(), TestCaseError> {
        match *call {
            Call::Admit { rollouts } => self.admit(buffer, rollouts)?,
            Call::Append { rollout, len } => {
                let Some((group, rollout)) = self.rollout(rollout) else { return Ok(()) };
                let version = self.groups[&group].version;
                let (tokens, ended) =
                    self.groups.get_mut(&group).unwrap().rollouts.get_mut(&rollout).unwrap();
                let ids: Vec<i32> = (0..i32::try_from(len).unwrap()).collect();
                let (mask, logprobs) = (vec![1; len], vec![-1.0; len]);
                let new = Tokens { ids: &ids, loss_mask: &mask, logprobs: &logprobs };
                let result = buffer.append_tokens(rollout, &new, version);
                prop_assert_eq!(result.is_ok(), ended.is_none());
                if result.is_ok() {
                    tokens.extend(ids);
                }
            }
            Call::Finish { rollout } => self.end(buffer, rollout, true)?,
            Call::Fail { rollout } => self.end(buffer, rollout, false)?,
            Call::Discard { group } => {
                let Some(&id) = self.groups.keys().nth(group) else { return Ok(()) };
                prop_assert_eq!(buffer.discard(id).is_ok(), !self.groups[&id].leased);
                self.groups.retain(|&other, expected| other != id || expected.leased);
            }
            Call::Take => self.take(buffer)?,
            Call::Ack => {
                let leased: Vec<u64> =
                    self.groups.iter().filter(|(_, e)| e.leased).map(|(&id, _)| id).collect();
                buffer.ack(&leased).unwrap();
                self.groups.retain(|_, expected| !expected.leased);
                if let Some(&id) = leased.first() {
                    prop_assert!(matches!(buffer.ack(&[id]), Err(Error::NoSuchGroup(_))));
                }
            }
            Call::Reopen => unreachable!("handled by the caller, who owns the buffer"),
        }
        Ok(())
    }

    fn admit(&mut self, buffer: &Buffer, rollouts: u32) -> Result<(), TestCaseError> {
        let held: usize = self.groups.values().map(|e| e.rollouts.len()).sum();
        let waiting = self.groups.values().filter(|e| !e.leased).count() as u64;
        let fits =
            held + rollouts as usize <= LIMITS.capacity && waiting / 2 <= LIMITS.max_staleness;
        match buffer.admit("task", rollouts, self.version) {
            Ok(id) => {
                prop_assert!(fits);
                let rollouts =
                    buffer.rollouts(id).unwrap().map(|r| (r, (Vec::new(), None))).collect();
                self.groups.insert(id, Expected { version: self.version, rollouts, leased: false });
            }
            Err(error) => prop_assert!(!fits, "refused: {error}"),
        }
        Ok(())
    }

    fn end(&mut self, buffer: &Buffer, place: usize, well: bool) -> Result<(), TestCaseError> {
        let Some((group, rollout)) = self.rollout(place) else { return Ok(()) };
        let ended = &mut self.groups.get_mut(&group).unwrap().rollouts.get_mut(&rollout).unwrap().1;
        let result =
            if well { buffer.finish(rollout, 1.0, "stop") } else { buffer.fail(rollout, "why") };
        prop_assert_eq!(result.is_ok(), ended.is_none());
        ended.get_or_insert(well);
        Ok(())
    }

    fn take(&mut self, buffer: &Buffer) -> Result<(), TestCaseError> {
        let due: Vec<u64> =
            self.groups.iter().filter(|(_, e)| !e.leased).take(2).map(|(&id, _)| id).collect();
        let complete = due.len() == 2 && due.iter().all(|id| self.groups[id].is_complete());
        let oldest = due.iter().map(|id| self.groups[id].version).min().unwrap_or(self.version);
        if complete && self.version - oldest > LIMITS.max_staleness {
            let stale = matches!(
                buffer.take(2, self.version, Some(Duration::ZERO)),
                Err(Error::Stale { .. })
            );
            prop_assert!(stale);
            return Ok(());
        }
        let Some(groups) = buffer.take(2, self.version, Some(Duration::ZERO)).unwrap() else {
            prop_assert!(!complete);
            return Ok(());
        };
        prop_assert_eq!(groups.iter().map(|g| g.id).collect::<Vec<_>>(), due);
        for group in groups {
            let expected = self.groups.get_mut(&group.id).unwrap();
            expected.leased = true;
            for rollout in group.rollouts {
                let (tokens, well) = &expected.rollouts[&rollout.id];
                prop_assert_eq!(&rollout.ids, tokens);
                prop_assert_eq!(matches!(rollout.outcome, Outcome::Finished { .. }), well.unwrap());
                prop_assert!(rollout.versions.iter().all(|&version| version == expected.version));
            }
        }
        self.version += 1;
        Ok(())
    }

    /// What a restart keeps: everything but the tokens of running rollouts and the leases.
    fn restart(&mut self) {
        for expected in self.groups.values_mut() {
            expected.leased = false;
            for (tokens, ended) in expected.rollouts.values_mut() {
                if ended.is_none() {
                    tokens.clear();
                }
            }
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    #[test]
    fn the_buffer_keeps_its_promises(calls in prop::collection::vec(call(), 1..60)) {
        let directory = tempfile::tempdir().unwrap();
        let mut buffer = Buffer::open(directory.path(), LIMITS).unwrap();
        let mut model = Model::default();
        for call in &calls {
            if let Call::Reopen = call {
                drop(buffer);
                buffer = Buffer::open(directory.path(), LIMITS).unwrap();
                model.restart();
            } else {
                model.step(&buffer, call)?;
            }
            let groups = buffer.groups();
            prop_assert_eq!(groups.len(), model.groups.len());
            for info in groups {
                let expected = &model.groups[&info.id];
                let state = match (expected.leased, expected.is_complete()) {
                    (true, _) => GroupState::Leased,
                    (false, true) => GroupState::Ready,
                    (false, false) => GroupState::Running,
                };
                prop_assert_eq!(info.state, state);
            }
            prop_assert!(buffer.stats().max_staleness_seen <= LIMITS.max_staleness);
        }
    }

    #[test]
    fn a_log_cut_short_anywhere_opens_and_a_changed_byte_is_noticed(cut in any::<prop::sample::Index>(), flip in any::<prop::sample::Index>()) {
        let directory = tempfile::tempdir().unwrap();
        let buffer = Buffer::open(directory.path(), LIMITS).unwrap();
        for _ in 0..3 {
            let group = buffer.admit("task", 2, 0).unwrap();
            for rollout in buffer.rollouts(group).unwrap() {
                let tokens = Tokens { ids: &[1, 2], loss_mask: &[0, 1], logprobs: &[0.0, -1.0] };
                buffer.append_tokens(rollout, &tokens, 0).unwrap();
                buffer.finish(rollout, 0.5, "stop").unwrap();
            }
        }
        drop(buffer);
        let path = directory.path().join("segment-00000001.log");
        let bytes = std::fs::read(&path).unwrap();

        std::fs::write(&path, &bytes[..cut.index(bytes.len())]).unwrap();
        let opened = Buffer::open(directory.path(), LIMITS).unwrap();
        prop_assert!(opened.groups().len() <= 3);
        opened.discard_all();
        drop(opened);

        let mut damaged = bytes.clone();
        damaged[flip.index(bytes.len())] ^= 0x10;
        std::fs::write(&path, &damaged).unwrap();
        match Buffer::open(directory.path(), LIMITS) {
            // A length that now points past the end looks like a record cut short: what follows is lost, not wrong.
            Ok(opened) => prop_assert!(opened.stats().tokens < 12),
            Err(error) => prop_assert!(matches!(error, Error::Damaged { .. }), "{error}"),
        }
    }
}

trait DiscardAll {
    fn discard_all(&self);
}

impl DiscardAll for Buffer {
    fn discard_all(&self) {
        for info in self.groups() {
            self.discard(info.id).unwrap();
        }
    }
}

#[test]
fn only_one_process_may_have_the_directory() {
    let directory = tempfile::tempdir().unwrap();
    let _first = Buffer::open(directory.path(), LIMITS).unwrap();
    assert!(matches!(Buffer::open(directory.path(), LIMITS), Err(Error::Locked(_))));
}

#[test]
fn a_waiting_taker_gets_the_group_that_another_thread_finishes() {
    let buffer = Buffer::in_memory(Limits { groups_per_step: 1, ..LIMITS }).unwrap();
    let group = buffer.admit("task", 1, 0).unwrap();
    let rollout = buffer.rollouts(group).unwrap().start;
    std::thread::scope(|scope| {
        let taker = scope.spawn(|| buffer.take(1, 0, Some(Duration::from_secs(20))).unwrap());
        std::thread::sleep(Duration::from_millis(20));
        buffer.finish(rollout, 0.0, "stop").unwrap();
        assert_eq!(taker.join().unwrap().expect("woken").len(), 1);
    });
    assert_eq!(buffer.take(1, 1, Some(Duration::from_millis(5))).unwrap(), None);
}

#[test]
fn staleness_zero_admits_only_what_the_next_step_takes() {
    let buffer = Buffer::in_memory(Limits { max_staleness: 0, ..LIMITS }).unwrap();
    buffer.admit("a", 1, 0).unwrap();
    buffer.admit("b", 1, 0).unwrap();
    let error = buffer.admit("c", 1, 0).unwrap_err().to_string();
    assert!(error.contains("could be trained at version 1, past max_staleness 0"), "{error}");
}

#[test]
fn disk_use_is_bounded_when_groups_are_consumed() {
    let directory = tempfile::tempdir().unwrap();
    let limits = Limits { groups_per_step: 1, ..LIMITS };
    let buffer = Buffer::open(directory.path(), limits).unwrap();
    let (ids, loss_mask, logprobs) = (vec![1; 1 << 20], vec![1; 1 << 20], vec![0.0; 1 << 20]);
    for version in 0..12 {
        let group = buffer.admit("task", 1, version).unwrap();
        let rollout = buffer.rollouts(group).unwrap().start;
        let tokens = Tokens { ids: &ids, loss_mask: &loss_mask, logprobs: &logprobs };
        buffer.append_tokens(rollout, &tokens, version).unwrap();
        buffer.finish(rollout, 0.0, "stop").unwrap();
        buffer.take(1, version, None).unwrap().unwrap();
        buffer.ack(&[group]).unwrap();
        assert!(buffer.stats().bytes_on_disk < 100 << 20); // each rollout is 17 MiB, a segment 64 MiB
    }
    drop(buffer);
    let again = Buffer::open(directory.path(), limits).unwrap();
    assert!(again.admit("next", 1, 12).unwrap() >= 12);
}

#[test]
fn tokens_older_than_the_admission_are_refused() {
    let buffer = Buffer::in_memory(LIMITS).unwrap();
    let rollout = buffer.rollouts(buffer.admit("task", 1, 3).unwrap()).unwrap().start;
    let tokens = Tokens { ids: &[1], loss_mask: &[1], logprobs: &[0.0] };
    let refused = buffer.append_tokens(rollout, &tokens, 2);
    assert!(matches!(refused, Err(Error::VersionWentBack { latest: 3, given: 2, .. })));
    buffer.append_tokens(rollout, &tokens, 4).unwrap();
}

//! A plain twin of the buffer: what it holds, without files, locks and schedule tricks.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use glmcore_trajectory::{
    Admission, Buffer, Commit, Error, GroupState, Options, Outcome, TaskStats, Tokens,
};
use proptest::prelude::*;
use proptest::sample::Index;

const NO_TIME: Option<Duration> = Some(Duration::ZERO);

#[derive(Debug, Clone)]
pub(crate) enum Call {
    Admit { rollouts: u32, task: u8 },
    Append { rollout: Index, len: usize, ends_turn: bool },
    Finish { rollout: Index, reward: bool, wait: bool },
    Fail { rollout: Index },
    Restart { rollout: Index },
    Discard { group: Index },
    Take { more: usize },
    Prepare { leases: usize },
    Ack { leases: usize },
    Release,
    Recover { prepared: bool },
    Reopen,
    Crash { cut: Index, garbage: Vec<u8> },
}

pub(crate) fn call() -> impl Strategy<Value = Call> {
    prop_oneof![
        6 => (1_u32..4, 0_u8..3).prop_map(|(rollouts, task)| Call::Admit { rollouts, task }),
        5 => (any::<Index>(), 0_usize..9, any::<bool>())
            .prop_map(|(rollout, len, ends_turn)| Call::Append { rollout, len, ends_turn }),
        12 => (any::<Index>(), any::<bool>(), any::<bool>())
            .prop_map(|(rollout, reward, wait)| Call::Finish { rollout, reward, wait }),
        1 => any::<Index>().prop_map(|rollout| Call::Fail { rollout }),
        1 => any::<Index>().prop_map(|rollout| Call::Restart { rollout }),
        1 => any::<Index>().prop_map(|group| Call::Discard { group }),
        6 => (0_usize..2).prop_map(|more| Call::Take { more }),
        1 => (1_usize..3).prop_map(|leases| Call::Prepare { leases }),
        3 => (1_usize..3).prop_map(|leases| Call::Ack { leases }),
        1 => Just(Call::Release),
        1 => any::<bool>().prop_map(|prepared| Call::Recover { prepared }),
        1 => Just(Call::Reopen),
        2 => (any::<Index>(), prop::collection::vec(any::<u8>(), 0..40))
            .prop_map(|(cut, garbage)| Call::Crash { cut, garbage }),
    ]
}

#[derive(Debug, Clone, PartialEq)]
pub(crate) struct TwinRollout {
    ids: Vec<i32>,
    turns: Vec<i32>,
    outcome: Outcome,
}

#[derive(Debug, Clone, PartialEq)]
pub(crate) struct TwinGroup {
    task: String,
    version: u64,
    rollouts: BTreeMap<u64, TwinRollout>,
}

impl TwinGroup {
    fn is_complete(&self) -> bool {
        self.rollouts.values().all(|rollout| rollout.outcome != Outcome::Running)
    }
}

#[derive(Debug, Clone, PartialEq)]
struct TwinLease {
    version: u64,
    groups: BTreeSet<u64>,
    prepared: Option<String>,
}

/// All that can be seen from outside.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Dump {
    groups: BTreeMap<u64, (TwinGroup, GroupState)>,
    tasks: BTreeMap<String, TaskStats>,
    consumed: Vec<(u64, Vec<u64>)>,
    failed: u64,
    staleness: BTreeMap<u64, u64>,
}

pub(crate) fn dump(buffer: &Buffer) -> Dump {
    let stats = buffer.stats();
    let order = buffer.order().unwrap();
    let consumed: Vec<(u64, Vec<u64>)> = order
        .iter()
        .map(|taken| (taken.policy_version, taken.groups.iter().map(|group| group.id).collect()))
        .collect();
    assert_eq!(stats.consumed_groups, consumed.iter().map(|(_, groups)| groups.len() as u64).sum());
    let lines = buffer.groups().unwrap().into_iter().map(|info| {
        let rollout = |id| {
            let (_, _, rollout) = buffer.rollout(id).unwrap();
            assert_eq!(
                rollout.versions,
                vec![i32::try_from(info.policy_version).unwrap(); rollout.ids.len()]
            );
            let (ids, turns, outcome) = (rollout.ids, rollout.turns, rollout.outcome);
            (id, TwinRollout { ids, turns, outcome })
        };
        let rollouts = buffer.rollouts(info.id).unwrap().map(rollout).collect();
        (
            info.id,
            (TwinGroup { task: info.task, version: info.policy_version, rollouts }, info.state),
        )
    });
    Dump {
        groups: lines.collect(),
        tasks: buffer.tasks().into_iter().collect(),
        consumed,
        failed: stats.failed_rollouts,
        staleness: stats.staleness,
    }
}

#[derive(Debug, Clone)]
pub(crate) struct Twin {
    options: Options,
    groups: BTreeMap<u64, TwinGroup>,
    leases: BTreeMap<u64, TwinLease>,
    tasks: BTreeMap<String, TaskStats>,
    consumed: Vec<(u64, Vec<u64>)>,
    failed: u64,
    staleness: BTreeMap<u64, u64>,
    /// Version that the trainer takes the next batch at.
    version: u64,
    unresolved: bool,
}

impl Twin {
    pub(crate) fn new(options: Options) -> Self {
        Self {
            options,
            groups: BTreeMap::new(),
            leases: BTreeMap::new(),
            tasks: BTreeMap::new(),
            consumed: Vec::new(),
            failed: 0,
            staleness: BTreeMap::new(),
            version: 0,
            unresolved: false,
        }
    }

    pub(crate) fn dump(&self) -> Dump {
        let line = |(&id, group): (&u64, &TwinGroup)| {
            let state = match (self.is_leased(id), group.is_complete()) {
                (true, _) => GroupState::Leased,
                (false, true) => GroupState::Ready,
                (false, false) => GroupState::Running,
            };
            (id, (group.clone(), state))
        };
        Dump {
            groups: self.groups.iter().map(line).collect(),
            tasks: self.tasks.clone(),
            consumed: self.consumed.clone(),
            failed: self.failed,
            staleness: self.staleness.clone(),
        }
    }

    /// What a restart of the owner keeps: all but leases that no checkpoint may contain.
    pub(crate) fn restart(&mut self) {
        self.leases.retain(|_, lease| lease.prepared.is_some());
        self.unresolved = !self.leases.is_empty();
        self.version = self.consumed.iter().map(|&(version, _)| version + 1).max().unwrap_or(0);
    }

    fn is_leased(&self, group: u64) -> bool {
        self.leases.values().any(|lease| lease.groups.contains(&group))
    }

    fn waiting(&self) -> Vec<u64> {
        self.groups.keys().copied().filter(|&id| !self.is_leased(id)).collect()
    }

    fn rollout(&self, place: Index) -> Option<(u64, u64)> {
        let groups = self.groups.iter();
        let all: Vec<(u64, u64)> =
            groups.flat_map(|(&g, group)| group.rollouts.keys().map(move |&r| (g, r))).collect();
        (!all.is_empty()).then(|| all[place.index(all.len())])
    }

    fn rollout_mut(&mut self, (group, rollout): (u64, u64)) -> &mut TwinRollout {
        self.groups.get_mut(&group).unwrap().rollouts.get_mut(&rollout).unwrap()
    }

    /// Whether batches from `version` on, the first of `left` groups, take groups of these versions in time.
    fn feasible(&self, mut versions: Vec<u64>, mut version: u64, mut left: usize) -> bool {
        versions.sort_unstable();
        versions.reverse();
        while let Some(oldest) = versions.pop() {
            while left == 0 {
                (version, left) = (version + 1, self.options.groups_per_step);
            }
            if version > oldest + self.options.max_staleness {
                return false;
            }
            left -= 1;
        }
        true
    }

    pub(crate) fn step(&mut self, buffer: &Buffer, call: &Call) -> Result<(), TestCaseError> {
        match *call {
            Call::Admit { rollouts, task } => self.admit(buffer, rollouts, task)?,
            Call::Append { rollout, len, ends_turn } => {
                self.append(buffer, rollout, len, ends_turn)?;
            }
            Call::Finish { rollout, reward, wait } => {
                let reward = f64::from(u8::from(reward));
                let outcome = Outcome::Finished { reward, reason: "stop".into() };
                let commit = if wait { Commit::Wait } else { Commit::Later };
                self.end(rollout, &outcome, |id| buffer.finish(id, reward, "stop", b"", commit))?;
            }
            Call::Fail { rollout } => {
                let outcome = Outcome::Failed { reason: "why".into() };
                self.end(rollout, &outcome, |id| buffer.fail(id, "why", Commit::Later))?;
            }
            Call::Restart { rollout } => {
                let Some(place) = self.rollout(rollout) else { return Ok(()) };
                let twin = self.rollout_mut(place);
                let result = buffer.restart(place.1);
                prop_assert_eq!(result.is_ok(), twin.outcome == Outcome::Running);
                if result.is_ok() {
                    (twin.ids, twin.turns) = (Vec::new(), vec![0]);
                }
            }
            Call::Discard { group } => {
                let all: Vec<u64> = self.groups.keys().copied().collect();
                if all.is_empty() {
                    return Ok(());
                }
                let id = all[group.index(all.len())];
                let result = buffer.discard(id, Commit::Later);
                prop_assert_eq!(result.is_err(), self.is_leased(id));
                if result.is_ok() {
                    self.groups.remove(&id);
                }
            }
            Call::Take { more } => self.take(buffer, more)?,
            Call::Prepare { leases } => {
                let ids: Vec<u64> = self.leases.keys().copied().take(leases).collect();
                let name = format!("after {}", self.version);
                buffer.prepare(&ids, &name).unwrap();
                for id in ids {
                    self.leases.get_mut(&id).unwrap().prepared = Some(name.clone());
                }
            }
            Call::Ack { leases } if !self.unresolved => {
                let ids: Vec<u64> = self.leases.keys().copied().take(leases).collect();
                buffer.ack(&ids, None).unwrap();
                self.consume(&ids);
                if let Some(&id) = ids.first() {
                    prop_assert!(matches!(buffer.ack(&[id], None), Err(Error::NoSuchLease(_))));
                }
            }
            Call::Release if !self.unresolved => {
                let Some((&id, lease)) = self.leases.iter().next_back() else { return Ok(()) };
                self.version = lease.version;
                buffer.release(&[id]).unwrap();
                self.leases.remove(&id);
            }
            Call::Recover { prepared } => self.recover(buffer, prepared),
            Call::Ack { .. } | Call::Release => {}
            Call::Reopen | Call::Crash { .. } => unreachable!("handled by who owns the buffer"),
        }
        Ok(())
    }

    fn admit(&mut self, buffer: &Buffer, rollouts: u32, task: u8) -> Result<(), TestCaseError> {
        if self.unresolved {
            return Ok(()); // the version of the trainer is not known
        }
        let held: usize = self.groups.values().map(|group| group.rollouts.len()).sum();
        let mut versions: Vec<u64> =
            self.waiting().iter().map(|id| self.groups[id].version).collect();
        versions.push(self.version);
        let fits = held + rollouts as usize <= self.options.capacity
            && self.feasible(versions, self.version, self.options.groups_per_step);
        let task = format!("task {task}");
        let admission = Admission::new(&task, rollouts, self.version);
        match buffer.admit(&admission, NO_TIME, Commit::Later) {
            Ok(id) => {
                prop_assert!(fits);
                let new =
                    TwinRollout { ids: Vec::new(), turns: vec![0], outcome: Outcome::Running };
                let rollouts = buffer.rollouts(id).unwrap().map(|id| (id, new.clone())).collect();
                self.groups.insert(id, TwinGroup { task, version: self.version, rollouts });
            }
            Err(error) => prop_assert!(!fits, "refused: {error}"),
        }
        Ok(())
    }

    fn append(
        &mut self,
        buffer: &Buffer,
        rollout: Index,
        len: usize,
        ends_turn: bool,
    ) -> Result<(), TestCaseError> {
        let Some(place) = self.rollout(rollout) else { return Ok(()) };
        let policy_version = self.groups[&place.0].version;
        if policy_version > self.version {
            return Ok(()); // the trainer went back: these weights are no more
        }
        let twin = self.rollout_mut(place);
        let ids: Vec<i32> = (0..i32::try_from(len).unwrap()).collect();
        let (loss_mask, logprobs) = (&vec![1; len][..], &vec![-1.0; len][..]);
        let tokens = Tokens { ids: &ids, loss_mask, logprobs, policy_version, ends_turn };
        let result = buffer.append_tokens(place.1, &tokens);
        prop_assert_eq!(result.is_ok(), twin.outcome == Outcome::Running);
        if result.is_ok() {
            twin.ids.extend(&ids);
            let len = i32::try_from(twin.ids.len()).unwrap();
            if ends_turn && twin.turns[twin.turns.len() - 1] != len {
                twin.turns.push(len);
            }
        }
        Ok(())
    }

    fn end(
        &mut self,
        rollout: Index,
        outcome: &Outcome,
        call: impl Fn(u64) -> Result<(), Error>,
    ) -> Result<(), TestCaseError> {
        let Some(place) = self.rollout(rollout) else { return Ok(()) };
        let task = self.groups[&place.0].task.clone();
        let twin = self.rollout_mut(place);
        let result = call(place.1);
        prop_assert_eq!(result.is_ok(), twin.outcome == Outcome::Running);
        if result.is_err() {
            return Ok(());
        }
        twin.outcome = outcome.clone();
        let len = i32::try_from(twin.ids.len()).unwrap();
        if twin.turns[twin.turns.len() - 1] != len {
            twin.turns.push(len);
        }
        let stats = self.tasks.entry(task).or_default();
        if let Outcome::Finished { reward, .. } = outcome {
            stats.attempts += 1;
            stats.passes += u64::from(*reward >= 1.0);
            stats.reward_sum += reward;
        } else {
            stats.failures += 1;
            self.failed += 1;
        }
        Ok(())
    }

    fn take(&mut self, buffer: &Buffer, more: usize) -> Result<(), TestCaseError> {
        let (wanted, version) = (self.options.groups_per_step + more, self.version);
        if self.unresolved {
            let refused = buffer.take(wanted, version, NO_TIME);
            let is_unresolved = matches!(refused, Err(Error::Unresolved { .. }));
            prop_assert!(is_unresolved);
            return Ok(());
        }
        let waiting = self.waiting();
        let ready: Vec<u64> =
            waiting.iter().copied().filter(|id| self.groups[id].is_complete()).collect();
        let best = self.best(&waiting, &ready, wanted);
        let lease = buffer.take(wanted, version, NO_TIME).unwrap();
        prop_assert_eq!(
            lease.as_ref().map(|lease| lease.groups.iter().map(|group| group.id).collect()),
            best
        );
        if let Some(lease) = lease {
            let groups = lease.groups.iter().map(|group| group.id).collect();
            self.leases.insert(lease.id, TwinLease { version, groups, prepared: None });
            self.version += 1;
        }
        Ok(())
    }

    /// The first set of ready groups, those due first coming first, without which all others are still in time.
    fn best(&self, waiting: &[u64], ready: &[u64], wanted: usize) -> Option<Vec<u64>> {
        let mut ready = ready.to_vec();
        ready.sort_by_key(|id| (self.groups[id].version, *id));
        let sets = 0_u32..1 << ready.len();
        let mut sets: Vec<Vec<u64>> = sets
            .filter(|set| set.count_ones() as usize == wanted)
            .map(|set| (0..ready.len()).filter(|i| set >> i & 1 == 1).map(|i| ready[i]).collect())
            .collect();
        let rank = |id: &u64| ready.iter().position(|other| other == id);
        sets.sort_by_key(|set: &Vec<u64>| set.iter().map(rank).collect::<Vec<_>>());
        let fits = |set: &Vec<u64>| {
            let left = waiting.iter().filter(|id| !set.contains(id));
            self.feasible(left.map(|id| self.groups[id].version).collect(), self.version, 0)
        };
        let mut best = sets.into_iter().find(fits)?;
        best.sort_unstable();
        Some(best)
    }

    fn consume(&mut self, leases: &[u64]) {
        for id in leases {
            let lease = self.leases.remove(id).unwrap();
            for group in &lease.groups {
                let group = self.groups.remove(group).unwrap();
                let tokens: usize = group.rollouts.values().map(|rollout| rollout.ids.len()).sum();
                if tokens > 0 {
                    *self.staleness.entry(lease.version - group.version).or_default() +=
                        tokens as u64;
                }
            }
            self.consumed.push((lease.version, lease.groups.into_iter().collect()));
        }
    }

    /// The trainer starts again, from the oldest prepared checkpoint or from what was acknowledged.
    fn recover(&mut self, buffer: &Buffer, prepared: bool) {
        let checkpoint =
            self.leases.values().find_map(|lease| lease.prepared.clone()).filter(|_| prepared);
        let is_first = |lease: &TwinLease| lease.prepared == checkpoint && checkpoint.is_some();
        if self.leases.values().skip_while(|lease| is_first(lease)).any(is_first) {
            return; // no checkpoint contains a batch without those before it
        }
        let consumed: Vec<u64> =
            self.leases.iter().filter(|(_, lease)| is_first(lease)).map(|(&id, _)| id).collect();
        buffer.recover(checkpoint.as_deref(), None).unwrap();
        self.consume(&consumed);
        self.leases.clear();
        self.restart();
    }
}

//! The buffer's contents: what every event does to them, and which calls they allow.

use std::collections::BTreeMap;
use std::ops::Range;

use crate::event::Event;
use crate::trajectory::{Group, Outcome, Rollout, Tokens};
use crate::{Error, GroupId, RolloutId};

/// How much the buffer may hold and how old it may get.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Limits {
    /// Rollouts of groups that have not been consumed.
    pub capacity: usize,
    /// Most versions between sampling a token and training on it.
    pub max_staleness: u64,
    /// Groups that the trainer takes for each version.
    pub groups_per_step: usize,
}

/// Where a group stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum GroupState {
    /// A rollout is still running.
    Running,
    /// All rollouts have ended.
    Ready,
    /// The trainer has it and has not acknowledged it.
    Leased,
}

/// A line about a group.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct GroupInfo {
    /// Its number.
    pub id: GroupId,
    /// Version at admission.
    pub policy_version: u64,
    /// Rollouts in all.
    pub num_rollouts: usize,
    /// Rollouts that have ended.
    pub num_done: usize,
    /// Where it stands.
    pub state: GroupState,
    /// The task.
    pub task: String,
}

/// Counts over the buffer's life since it was opened, and what it holds now.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Stats {
    /// Groups with a running rollout.
    pub running_groups: usize,
    /// Complete groups.
    pub ready_groups: usize,
    /// Leased groups.
    pub leased_groups: usize,
    /// Rollouts of all of them.
    pub rollouts: usize,
    /// Tokens of all of them.
    pub tokens: usize,
    /// Groups acknowledged.
    pub consumed_groups: u64,
    /// Rollouts that failed.
    pub failed_rollouts: u64,
    /// Largest staleness of a token that was taken.
    pub max_staleness_seen: u64,
    /// Size of the log.
    pub bytes_on_disk: u64,
}

#[derive(Debug)]
struct Held {
    group: Group,
    leased: bool,
    /// Segment of its admission.
    segment: u64,
}

#[derive(Debug, Default)]
pub(crate) struct State {
    held: BTreeMap<GroupId, Held>,
    group_of: BTreeMap<RolloutId, GroupId>,
    next_group: GroupId,
    next_rollout: RolloutId,
    /// Version that the next groups taken are trained at, as far as is known.
    next_version: u64,
    consumed_groups: u64,
    failed_rollouts: u64,
    max_staleness_seen: u64,
}

impl State {
    /// Applies an event. Those of groups whose admission is no longer in the log change nothing.
    pub(crate) fn apply(&mut self, segment: u64, event: Event) {
        match event {
            Event::Begin { next_group, next_rollout } => {
                self.next_group = self.next_group.max(next_group);
                self.next_rollout = self.next_rollout.max(next_rollout);
            }
            Event::Admit { group, first_rollout, num_rollouts, policy_version, task } => {
                let rollouts = first_rollout..first_rollout + u64::from(num_rollouts);
                self.next_group = group + 1;
                self.next_rollout = rollouts.end;
                self.group_of.extend(rollouts.clone().map(|rollout| (rollout, group)));
                let rollouts = rollouts.map(Rollout::new).collect();
                let group_value = Group { id: group, task, policy_version, rollouts };
                self.held.insert(group, Held { group: group_value, leased: false, segment });
            }
            Event::End(ended) => {
                self.failed_rollouts += u64::from(matches!(ended.outcome, Outcome::Failed { .. }));
                if let Ok(rollout) = self.rollout_mut(ended.id) {
                    *rollout = ended;
                }
            }
            Event::Discard { group } => self.forget(group),
            Event::Ack { groups } => {
                self.consumed_groups += groups.len() as u64;
                for group in groups {
                    self.forget(group);
                }
            }
        }
    }

    fn forget(&mut self, group: GroupId) {
        if let Some(held) = self.held.remove(&group) {
            for rollout in held.group.rollouts {
                self.group_of.remove(&rollout.id);
            }
        }
    }

    pub(crate) fn begin(&self) -> Event {
        Event::Begin { next_group: self.next_group, next_rollout: self.next_rollout }
    }

    /// Segment of the oldest admission that is still needed.
    pub(crate) fn oldest_segment(&self) -> Option<u64> {
        self.held.values().map(|held| held.segment).min()
    }

    /// The admission of a group, if the limits allow it.
    pub(crate) fn admit(
        &self,
        limits: &Limits,
        task: &str,
        num_rollouts: u32,
        policy_version: u64,
    ) -> Result<Event, Error> {
        if num_rollouts == 0 {
            return Err(Error::EmptyGroup);
        }
        let (rollouts, wanted) = (self.group_of.len(), num_rollouts as usize);
        if rollouts + wanted > limits.capacity {
            return Err(Error::Full { outstanding: rollouts, wanted, capacity: limits.capacity });
        }
        let outstanding = self.held.values().filter(|held| !held.leased).count();
        let trained_at =
            self.next_version.max(policy_version) + (outstanding / limits.groups_per_step) as u64;
        if trained_at - policy_version > limits.max_staleness {
            let max_staleness = limits.max_staleness;
            return Err(Error::WouldBeStale {
                policy_version,
                trained_at,
                max_staleness,
                outstanding,
            });
        }
        Ok(Event::Admit {
            group: self.next_group,
            first_rollout: self.next_rollout,
            num_rollouts,
            policy_version,
            task: task.to_owned(),
        })
    }

    pub(crate) fn rollouts(&self, group: GroupId) -> Result<Range<RolloutId>, Error> {
        let rollouts = &self.held.get(&group).ok_or(Error::NoSuchGroup(group))?.group.rollouts;
        let first = rollouts[0].id;
        Ok(first..first + rollouts.len() as u64)
    }

    /// Adds tokens; none may be older than its group's admission, or the bound of the admission would not hold.
    pub(crate) fn append(
        &mut self,
        rollout: RolloutId,
        tokens: &Tokens<'_>,
        version: u64,
    ) -> Result<(), Error> {
        let group = *self.group_of.get(&rollout).ok_or(Error::NoSuchRollout(rollout))?;
        let admitted = self.held[&group].group.policy_version;
        if version < admitted {
            return Err(Error::VersionWentBack { rollout, latest: admitted, given: version });
        }
        self.rollout_mut(rollout)?.append(tokens, version)
    }

    pub(crate) fn rollout_mut(&mut self, rollout: RolloutId) -> Result<&mut Rollout, Error> {
        let group = *self.group_of.get(&rollout).ok_or(Error::NoSuchRollout(rollout))?;
        let rollouts =
            &mut self.held.get_mut(&group).ok_or(Error::NoSuchRollout(rollout))?.group.rollouts;
        let index = usize::try_from(rollout - rollouts[0].id).expect("groups are small");
        Ok(&mut rollouts[index])
    }

    /// The end of a rollout with all its tokens.
    pub(crate) fn end(&mut self, rollout: RolloutId, outcome: Outcome) -> Result<Event, Error> {
        let running = self.rollout_mut(rollout)?;
        running.check_running()?;
        Ok(Event::End(Rollout { outcome, ..running.clone() }))
    }

    pub(crate) fn is_complete(&self, rollout: RolloutId) -> bool {
        let group = self.group_of.get(&rollout).and_then(|group| self.held.get(group));
        group.is_some_and(|held| held.group.is_complete())
    }

    pub(crate) fn discard(&self, group: GroupId) -> Result<Event, Error> {
        match self.held.get(&group) {
            None => Err(Error::NoSuchGroup(group)),
            Some(held) if held.leased => Err(Error::WrongState { group, state: "leased" }),
            Some(_) => Ok(Event::Discard { group }),
        }
    }

    /// Leases the oldest `num_groups` groups for training at `policy_version`; `None` until they are complete.
    pub(crate) fn take(
        &mut self,
        limits: &Limits,
        num_groups: usize,
        policy_version: u64,
    ) -> Result<Option<Vec<Group>>, Error> {
        let waiting = self.held.values_mut().filter(|held| !held.leased).take(num_groups);
        let due: Vec<&mut Held> = waiting.take_while(|held| held.group.is_complete()).collect();
        if due.len() < num_groups {
            return Ok(None);
        }
        let mut staleness = 0;
        for held in &due {
            let oldest = held.group.oldest_version();
            staleness = staleness.max(policy_version.saturating_sub(oldest));
            if staleness > limits.max_staleness {
                let (group, max_staleness) = (held.group.id, limits.max_staleness);
                return Err(Error::Stale { group, oldest, policy_version, max_staleness });
            }
        }
        let groups = due
            .into_iter()
            .map(|held| {
                held.leased = true;
                held.group.clone()
            })
            .collect();
        self.next_version = policy_version + 1;
        self.max_staleness_seen = self.max_staleness_seen.max(staleness);
        Ok(Some(groups))
    }

    pub(crate) fn check_leased(&self, groups: &[GroupId]) -> Result<(), Error> {
        for &group in groups {
            match self.held.get(&group) {
                None => return Err(Error::NoSuchGroup(group)),
                Some(held) if !held.leased => {
                    return Err(Error::WrongState { group, state: "not leased" });
                }
                Some(_) => {}
            }
        }
        Ok(())
    }

    pub(crate) fn release(&mut self, groups: &[GroupId]) {
        for group in groups {
            if let Some(held) = self.held.get_mut(group) {
                held.leased = false;
            }
        }
    }

    pub(crate) fn groups(&self) -> Vec<GroupInfo> {
        self.held.values().map(Held::info).collect()
    }

    pub(crate) fn stats(&self) -> Stats {
        let mut stats = Stats {
            consumed_groups: self.consumed_groups,
            failed_rollouts: self.failed_rollouts,
            max_staleness_seen: self.max_staleness_seen,
            ..Stats::default()
        };
        for held in self.held.values() {
            match held.state() {
                GroupState::Running => stats.running_groups += 1,
                GroupState::Ready => stats.ready_groups += 1,
                GroupState::Leased => stats.leased_groups += 1,
            }
            stats.rollouts += held.group.rollouts.len();
            stats.tokens +=
                held.group.rollouts.iter().map(|rollout| rollout.ids.len()).sum::<usize>();
        }
        stats
    }
}

impl Held {
    fn state(&self) -> GroupState {
        match (self.leased, self.group.is_complete()) {
            (true, _) => GroupState::Leased,
            (false, true) => GroupState::Ready,
            (false, false) => GroupState::Running,
        }
    }

    fn info(&self) -> GroupInfo {
        let rollouts = &self.group.rollouts;
        GroupInfo {
            id: self.group.id,
            policy_version: self.group.policy_version,
            num_rollouts: rollouts.len(),
            num_done: rollouts.iter().filter(|rollout| rollout.outcome != Outcome::Running).count(),
            state: self.state(),
            task: self.group.task.clone(),
        }
    }
}

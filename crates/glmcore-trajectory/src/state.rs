//! The buffer's contents and what every event does to them.
//!
//! The same [`State::apply`] runs when a call is made and when the log is read again, so the contents after a restart
//! are those before it.

use std::collections::BTreeMap;
use std::collections::HashMap;
use std::ops::Range;
use std::sync::Arc;

use crate::event::{Ack, Append, Event, Lent, Totals};
use crate::options::Options;
use crate::schedule::Schedule;
use crate::tasks::TaskStats;
use crate::trajectory::{Group, Outcome, Rollout};
use crate::{Error, GroupId, LeaseId, RolloutId};

/// Where in the log an event stands.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct Place {
    pub(crate) segment: u64,
    pub(crate) bytes: u64,
}

#[derive(Debug)]
pub(crate) struct Held {
    /// Shared with leases once complete; nothing changes in it then.
    pub(crate) group: Arc<Group>,
    pub(crate) num_running: usize,
    /// Last version at which it may be taken.
    pub(crate) due: u64,
    pub(crate) lease: Option<LeaseId>,
    /// Oldest segment with an event of it, and the size of all its events.
    pub(crate) place: Place,
}

#[derive(Debug)]
pub(crate) struct Lease {
    pub(crate) version: u64,
    pub(crate) groups: Vec<GroupId>,
    /// The checkpoint that may contain it.
    pub(crate) prepared: Option<String>,
    /// Whether it was read from the log and nobody has said yet which checkpoint the trainer has.
    pub(crate) unresolved: bool,
}

#[derive(Debug)]
pub(crate) struct Task {
    pub(crate) stats: TaskStats,
    /// Oldest segment that its counts come from.
    pub(crate) segment: u64,
}

#[derive(Debug)]
pub(crate) struct State {
    pub(crate) options: Options,
    pub(crate) schedule: Schedule,
    pub(crate) held: BTreeMap<GroupId, Held>,
    /// Groups by their first rollout.
    group_of: BTreeMap<RolloutId, GroupId>,
    pub(crate) leases: BTreeMap<LeaseId, Lease>,
    pub(crate) tasks: HashMap<String, Task>,
    pub(crate) totals: Totals,
    pub(crate) num_rollouts: usize,
    /// Tokens of rollouts that have ended and the most that those running may get.
    pub(crate) num_tokens: u64,
}

impl State {
    pub(crate) fn new(options: Options) -> Self {
        Self {
            schedule: Schedule::new(&options),
            options,
            held: BTreeMap::new(),
            group_of: BTreeMap::new(),
            leases: BTreeMap::new(),
            tasks: HashMap::new(),
            totals: Totals::default(),
            num_rollouts: 0,
            num_tokens: 0,
        }
    }

    /// Applies an event. Those of groups whose admission is no longer in the log change nothing: a group that is still
    /// held follows as a whole.
    pub(crate) fn apply(&mut self, place: Place, event: Event<'_>) {
        match event {
            Event::Begin(totals) => self.begin(totals.into_owned()),
            Event::Group(group) => self.insert(place, group.into_owned()),
            Event::Append(append) => self.append(place, &append),
            Event::Restart { rollout } => {
                self.change(place, rollout, |rollout| *rollout = Rollout::new(rollout.id));
            }
            Event::End { rollout, outcome, extra } => {
                self.end(place, rollout, outcome.into_owned(), extra.into_owned());
            }
            Event::Discard { group } => self.remove(group),
            Event::Prepare { checkpoint, leases } => {
                for lent in leases.iter() {
                    self.lend(lent, Some(&checkpoint));
                }
            }
            Event::Release { leases } => {
                for lease in leases.iter() {
                    self.release(*lease);
                }
            }
            Event::Ack(ack) => self.acknowledge(&ack),
            Event::Clock { version } => {
                self.totals.clock = Some((version, 0));
                self.schedule.restart(version);
            }
            Event::Task { task, stats } => {
                self.tasks.insert(task.into_owned(), Task { stats, segment: place.segment });
            }
        }
    }

    fn begin(&mut self, totals: Totals) {
        if let Some((version, taken)) = totals.clock {
            self.schedule.restart(version);
            self.schedule.take(version, taken);
        }
        for (checkpoint, leases) in &totals.prepared {
            for lent in leases {
                self.lend(lent, Some(checkpoint));
            }
        }
        self.totals = Totals { prepared: Vec::new(), ..totals };
    }

    fn insert(&mut self, place: Place, group: Group) {
        self.remove(group.id);
        let rollouts = &group.rollouts;
        let num_running = rollouts.iter().filter(|rollout| rollout.is_running()).count();
        let oldest = if num_running == 0 { group.oldest_version() } else { group.policy_version };
        let due = self.schedule.due(oldest);
        let lease = self.leases.iter().find(|(_, lease)| lease.groups.contains(&group.id));
        let lease = lease.map(|(&id, _)| id);
        if lease.is_none() {
            self.schedule.add(due);
        }
        let Some((first, last)) = rollouts.first().zip(rollouts.last()) else { return };
        self.totals.next_group = self.totals.next_group.max(group.id + 1);
        self.totals.next_rollout = self.totals.next_rollout.max(last.id + 1);
        self.group_of.insert(first.id, group.id);
        self.num_rollouts += rollouts.len();
        self.num_tokens += rollouts.iter().map(|r| charge(r, group.max_tokens)).sum::<u64>();
        let held = Held { group: Arc::new(group), num_running, due, lease, place };
        self.held.insert(held.group.id, held);
    }

    fn append(&mut self, place: Place, append: &Append<'_>) {
        self.change(place, append.rollout, |rollout| {
            let Append { ids, loss_mask, logprobs, version, ends_turn, .. } = append;
            rollout.append(ids, loss_mask, logprobs, *version, *ends_turn);
        });
    }

    fn end(&mut self, place: Place, rollout: RolloutId, outcome: Outcome, extra: Vec<u8>) {
        let reward = match outcome {
            Outcome::Finished { reward, .. } => Some(reward),
            _ => None,
        };
        self.totals.failed_rollouts += u64::from(reward.is_none());
        let Some(group) = self.change(place, rollout, |rollout| rollout.end(outcome, extra)) else {
            return;
        };
        let held = self.held.get_mut(&group).expect("it has just been changed");
        held.num_running -= 1;
        if held.num_running == 0 {
            let due = self.schedule.due(held.group.oldest_version());
            if held.lease.is_none() {
                self.schedule.remove(held.due);
                self.schedule.add(due);
            }
            held.due = due;
        }
        let segment = held.place.segment;
        if !self.tasks.contains_key(&held.group.task) {
            let task = Task { stats: TaskStats::default(), segment };
            self.tasks.insert(held.group.task.clone(), task);
        }
        let task = self.tasks.get_mut(&held.group.task).expect("it has just been made");
        task.segment = task.segment.min(segment);
        match reward {
            Some(reward) => {
                task.stats.attempts += 1;
                task.stats.passes += u64::from(reward >= self.options.pass_reward);
                task.stats.reward_sum += reward;
            }
            None => task.stats.failures += 1,
        }
    }

    /// Changes a rollout of a group that is known; gives the group.
    fn change(
        &mut self,
        place: Place,
        rollout: RolloutId,
        change: impl FnOnce(&mut Rollout),
    ) -> Option<GroupId> {
        let group = self.group_with(rollout)?;
        let held = self.held.get_mut(&group)?;
        held.place.bytes += place.bytes;
        let group = Arc::get_mut(&mut held.group).expect("only complete groups are shared");
        let first = group.rollouts.first()?.id;
        let max_tokens = group.max_tokens;
        let rollout = group.rollouts.get_mut(usize::try_from(rollout - first).ok()?)?;
        self.num_tokens -= charge(rollout, max_tokens);
        change(rollout);
        self.num_tokens += charge(rollout, max_tokens);
        Some(group.id)
    }

    /// Marks groups as leased.
    pub(crate) fn lend(&mut self, lent: &Lent, prepared: Option<&str>) {
        let prepared = prepared.map(str::to_owned);
        self.totals.next_lease = self.totals.next_lease.max(lent.id + 1);
        if let Some(lease) = self.leases.get_mut(&lent.id) {
            lease.prepared = prepared;
            return;
        }
        for group in &lent.groups {
            if let Some(held) = self.held.get_mut(group) {
                held.lease = Some(lent.id);
                self.schedule.remove(held.due);
            }
        }
        self.schedule.take(lent.version, lent.groups.len() as u64);
        let lease = Lease {
            version: lent.version,
            groups: lent.groups.clone(),
            prepared,
            unresolved: false,
        };
        self.leases.insert(lent.id, lease);
    }

    pub(crate) fn release(&mut self, lease: LeaseId) {
        let Some(lease) = self.leases.remove(&lease) else { return };
        for group in &lease.groups {
            if let Some(held) = self.held.get_mut(group) {
                held.lease = None;
                self.schedule.add(held.due);
            }
        }
        self.schedule.release(lease.version, lease.groups.len() as u64);
    }

    fn acknowledge(&mut self, ack: &Ack) {
        for lease in &ack.leases {
            self.leases.remove(lease);
        }
        for &group in &ack.groups {
            self.remove(group);
        }
        self.totals.consumed_groups += ack.groups.len() as u64;
        self.totals.order_bytes = ack.order_bytes;
        for (&staleness, &tokens) in &ack.staleness {
            *self.totals.staleness.entry(staleness).or_default() += tokens;
        }
        if let Some((version, taken)) = ack.clock {
            self.totals.clock = ack.clock;
            self.schedule.acknowledge(version, taken);
        }
    }

    fn remove(&mut self, group: GroupId) {
        let Some(held) = self.held.remove(&group) else { return };
        if held.lease.is_none() {
            self.schedule.remove(held.due);
        }
        let rollouts = &held.group.rollouts;
        self.group_of.remove(&rollouts[0].id);
        self.num_rollouts -= rollouts.len();
        self.num_tokens -= rollouts.iter().map(|r| charge(r, held.group.max_tokens)).sum::<u64>();
    }

    /// The group that a rollout belongs to.
    pub(crate) fn group_with(&self, rollout: RolloutId) -> Option<GroupId> {
        let (first, group) = self.group_of.range(..=rollout).next_back()?;
        let len = self.held.get(group)?.group.rollouts.len() as u64;
        (rollout - first < len).then_some(*group)
    }

    pub(crate) fn group(&self, group: GroupId) -> Result<&Held, Error> {
        self.held.get(&group).ok_or(Error::NoSuchGroup(group))
    }

    pub(crate) fn rollout(&self, rollout: RolloutId) -> Result<(&Held, &Rollout), Error> {
        let group = self.group_with(rollout).ok_or(Error::NoSuchRollout(rollout))?;
        let held = self.group(group)?;
        let first = held.group.rollouts[0].id;
        let index = usize::try_from(rollout - first).expect("a group's rollouts are in memory");
        Ok((held, &held.group.rollouts[index]))
    }

    pub(crate) fn rollouts(&self, group: GroupId) -> Result<Range<RolloutId>, Error> {
        let rollouts = &self.group(group)?.group.rollouts;
        Ok(rollouts[0].id..rollouts[0].id + rollouts.len() as u64)
    }

    /// What a segment begins with.
    pub(crate) fn totals(&self) -> Totals {
        let mut prepared: BTreeMap<&str, Vec<Lent>> = BTreeMap::new();
        for (&id, lease) in &self.leases {
            if let Some(checkpoint) = &lease.prepared {
                let lent = Lent { id, version: lease.version, groups: lease.groups.clone() };
                prepared.entry(checkpoint).or_default().push(lent);
            }
        }
        let prepared = prepared.into_iter().map(|(name, leases)| (name.to_owned(), leases));
        Totals { prepared: prepared.collect(), ..self.totals.clone() }
    }
}

/// Tokens that a rollout counts for.
fn charge(rollout: &Rollout, max_tokens: Option<u64>) -> u64 {
    let len = rollout.ids.len() as u64;
    if rollout.is_running() { max_tokens.unwrap_or(len) } else { len }
}

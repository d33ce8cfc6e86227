//! What calls are allowed: each is checked against the contents and becomes an event.

use std::borrow::Cow;
use std::collections::BTreeMap;
use std::sync::Arc;

use crate::event::{Ack, Append, Event, Lent};
use crate::options::{Admission, Order};
use crate::state::{Held, State};
use crate::trajectory::{Group, Outcome, Rollout, Tokens};
use crate::{Error, GroupId, LeaseId, RolloutId};

impl State {
    /// The admission of a group, if there is room for it and it cannot get too old.
    pub(crate) fn admit(&mut self, admission: &Admission<'_>) -> Result<Group, Error> {
        let &Admission { policy_version, num_rollouts, max_tokens, .. } = admission;
        if num_rollouts == 0 {
            return Err(Error::EmptyGroup);
        }
        check_version(policy_version)?;
        if self.num_rollouts + num_rollouts as usize > self.options.capacity {
            let (what, held, wanted) = ("rollouts", self.num_rollouts as u64, num_rollouts.into());
            let capacity = self.options.capacity as u64;
            return Err(Error::Full { what, held, wanted, capacity });
        }
        if let Some(capacity) = self.options.capacity_tokens {
            let each = max_tokens.ok_or(Error::NoTokenLimit)?;
            let wanted = each.saturating_mul(num_rollouts.into());
            let held = self.num_tokens;
            if held.saturating_add(wanted) > capacity {
                return Err(Error::Full { what: "tokens", held, wanted, capacity });
            }
        }
        self.schedule.see(policy_version);
        if self.schedule.room(policy_version) == 0 {
            return Err(Error::WouldBeStale {
                policy_version,
                trainer: self.schedule.now(policy_version),
                max_staleness: self.options.max_staleness,
                waiting: self.held.values().filter(|held| held.lease.is_none()).count(),
            });
        }
        let first = self.totals.next_rollout;
        Ok(Group {
            id: self.totals.next_group,
            task: admission.task.to_owned(),
            policy_version,
            priority: admission.priority,
            max_tokens,
            rollout_timeout: admission.rollout_timeout,
            rollouts: (first..first + u64::from(num_rollouts)).map(Rollout::new).collect(),
        })
    }

    /// Groups of this version that could be admitted now, as far as their age goes.
    pub(crate) fn room(&self, policy_version: u64) -> u64 {
        self.schedule.room(policy_version)
    }

    /// Tokens for a running rollout. None may be older than the group's admission, or it would be due too late.
    pub(crate) fn check_append<'a>(
        &mut self,
        rollout: RolloutId,
        tokens: &Tokens<'a>,
    ) -> Result<Append<'a>, Error> {
        tokens.check()?;
        let version = check_version(tokens.policy_version)?;
        let (held, running) = self.running(rollout)?;
        let admitted = held.group.policy_version;
        let latest = running.versions.last().and_then(|&version| u64::try_from(version).ok());
        let latest = latest.unwrap_or(admitted);
        if tokens.policy_version < latest {
            return Err(Error::VersionWentBack { rollout, latest, given: tokens.policy_version });
        }
        let len = (running.ids.len() + tokens.ids.len()) as u64;
        let max_tokens = held.group.max_tokens.unwrap_or(i32::MAX as u64);
        if len > max_tokens {
            return Err(Error::TooLong { rollout, len, max_tokens });
        }
        self.schedule.see(tokens.policy_version);
        Ok(Append {
            rollout,
            version,
            ends_turn: tokens.ends_turn,
            ids: Cow::Borrowed(tokens.ids),
            loss_mask: Cow::Borrowed(tokens.loss_mask),
            logprobs: Cow::Borrowed(tokens.logprobs),
        })
    }

    /// A rollout that has not ended.
    pub(crate) fn running(&self, rollout: RolloutId) -> Result<(&Held, &Rollout), Error> {
        let found = self.rollout(rollout)?;
        if found.1.is_running() { Ok(found) } else { Err(Error::Ended(rollout)) }
    }

    pub(crate) fn discard(&self, group: GroupId) -> Result<Event<'static>, Error> {
        match self.group(group)?.lease {
            Some(_) => Err(Error::Leased(group)),
            None => Ok(Event::Discard { group }),
        }
    }

    /// The batch of `wanted` groups for training at `version`; `None` until it is complete.
    pub(crate) fn choose(
        &self,
        wanted: usize,
        version: u64,
    ) -> Result<Option<Vec<GroupId>>, Error> {
        self.check_resolved()?;
        if wanted as u64 > self.schedule.most() {
            return Err(Error::TooManyGroups { wanted, most: self.schedule.most() });
        }
        let mut plan = self.schedule.plan(wanted, version)?;
        let mut waiting: Vec<&Held> = self
            .held
            .values()
            .filter(|held| held.lease.is_none())
            .filter(|held| held.num_running == 0 || self.options.order == Order::Fifo)
            .collect();
        if waiting.len() < wanted {
            return Ok(None);
        }
        match self.options.order {
            Order::Fifo => {} // by number, as they are held
            Order::Deadline => waiting.sort_by_key(|held| held.due),
            Order::Priority => {
                waiting.sort_by_key(|held| (std::cmp::Reverse(held.group.priority), held.due));
            }
        }
        let mut chosen = Vec::with_capacity(wanted);
        for held in waiting {
            if plan.is_full() {
                break;
            }
            if plan.choose(held.due) {
                chosen.push(held);
            }
        }
        if !plan.is_full() || chosen.iter().any(|held| held.num_running > 0) {
            return Ok(None);
        }
        let mut groups: Vec<GroupId> = chosen.iter().map(|held| held.group.id).collect();
        groups.sort_unstable();
        Ok(Some(groups))
    }

    /// Exactly these groups, for training at `version`; `None` until all are there and complete.
    pub(crate) fn choose_these(
        &self,
        groups: &[GroupId],
        version: u64,
    ) -> Result<Option<Vec<GroupId>>, Error> {
        self.check_resolved()?;
        let mut plan = self.schedule.plan(groups.len(), version)?;
        for &group in groups {
            match self.held.get(&group) {
                None if group < self.totals.next_group => return Err(Error::NoSuchGroup(group)),
                None => return Ok(None),
                Some(held) if held.lease.is_some() => return Err(Error::Leased(group)),
                Some(held) if held.num_running > 0 => return Ok(None),
                Some(held) => {
                    if !plan.choose(held.due) {
                        return Err(Error::OthersAreDue { version });
                    }
                }
            }
        }
        let mut groups = groups.to_vec();
        groups.sort_unstable();
        Ok(Some(groups))
    }

    fn check_resolved(&self) -> Result<(), Error> {
        match self.leases.values().find(|lease| lease.unresolved) {
            Some(lease) => {
                Err(Error::Unresolved { checkpoint: lease.prepared.clone().unwrap_or_default() })
            }
            None => Ok(()),
        }
    }

    /// Leases groups that were chosen. Their tokens are never older than `max_staleness`.
    pub(crate) fn take(
        &mut self,
        groups: Vec<GroupId>,
        version: u64,
    ) -> (LeaseId, Vec<Arc<Group>>) {
        let lent = Lent { id: self.totals.next_lease, version, groups };
        self.lend(&lent, None);
        let taken: Vec<Arc<Group>> =
            lent.groups.iter().map(|group| self.held[group].group.clone()).collect();
        for group in &taken {
            let staleness = self.schedule.staleness(group.oldest_version(), version);
            assert!(
                staleness <= self.options.max_staleness,
                "group {} is taken at staleness {staleness}, past {}",
                group.id,
                self.options.max_staleness
            );
        }
        (lent.id, taken)
    }

    pub(crate) fn prepare(
        &self,
        leases: &[LeaseId],
        checkpoint: &str,
    ) -> Result<Event<'static>, Error> {
        let lent = |&id: &LeaseId| {
            let lease = self.leases.get(&id).ok_or(Error::NoSuchLease(id))?;
            Ok(Lent { id, version: lease.version, groups: lease.groups.clone() })
        };
        let leases = leases.iter().map(lent).collect::<Result<Vec<_>, Error>>()?;
        Ok(Event::Prepare { checkpoint: checkpoint.to_owned().into(), leases: leases.into() })
    }

    pub(crate) fn release_of(&self, leases: &[LeaseId]) -> Result<Event<'static>, Error> {
        for id in leases {
            self.leases.get(id).ok_or(Error::NoSuchLease(*id))?;
        }
        Ok(Event::Release { leases: leases.to_vec().into() })
    }

    /// The consumption of leases, but for the length of the record of the order.
    pub(crate) fn ack(&self, leases: &[LeaseId], checkpoint: Option<&str>) -> Result<Ack, Error> {
        let mut ack = Ack { leases: leases.to_vec(), clock: self.totals.clock, ..Ack::default() };
        for &id in leases {
            let lease = self.leases.get(&id).ok_or(Error::NoSuchLease(id))?;
            if let Some((prepared, given)) = lease.prepared.as_deref().zip(checkpoint)
                && prepared != given
            {
                let (prepared, given) = (prepared.to_owned(), given.to_owned());
                return Err(Error::OtherCheckpoint { prepared, given });
            }
            let taken = lease.groups.len() as u64;
            ack.clock = match ack.clock {
                Some((version, _)) if version > lease.version => ack.clock,
                Some((version, before)) if version == lease.version => {
                    Some((version, before + taken))
                }
                _ => Some((lease.version, taken)),
            };
            ack.groups.extend(&lease.groups);
            self.count_staleness(lease.version, &lease.groups, &mut ack.staleness);
        }
        Ok(ack)
    }

    /// Counts the tokens that the policy sampled by their staleness.
    fn count_staleness(&self, version: u64, groups: &[GroupId], into: &mut BTreeMap<u64, u64>) {
        for rollout in
            groups.iter().filter_map(|id| self.held.get(id)).flat_map(|held| &held.group.rollouts)
        {
            let mut start = 0;
            for (len, sampled) in rollout.spans() {
                let end = start + usize::try_from(len).expect("a length in memory");
                let trained: u64 =
                    rollout.loss_mask[start..end].iter().map(|&mask| u64::from(mask)).sum();
                start = end;
                if trained > 0 {
                    *into.entry(self.schedule.staleness(sampled, version)).or_default() += trained;
                }
            }
        }
    }

    /// The end of a rollout.
    pub(crate) fn end_of(
        &self,
        rollout: RolloutId,
        outcome: Outcome,
        extra: &[u8],
    ) -> Result<Event<'static>, Error> {
        self.running(rollout)?;
        Ok(Event::End { rollout, outcome: Cow::Owned(outcome), extra: extra.to_vec().into() })
    }
}

/// A version as it is kept.
fn check_version(version: u64) -> Result<i32, Error> {
    i32::try_from(version).map_err(|_| Error::Version(version))
}

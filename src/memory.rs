//! The reference store: leases in this process's memory.

use alloc::boxed::Box;
use alloc::collections::{BTreeMap, BTreeSet, VecDeque};
use alloc::vec::Vec;
use core::fmt;
use core::future;
use core::mem;
use core::task::{Context, Poll, Waker};
use core::time::Duration;
use std::collections::HashMap;
use std::sync::PoisonError;

use async_trait::async_trait;

use crate::claim::{Claim, Fence, Owner};
use crate::name::Name;
use crate::store::{
    Acquired, AsyncStore, AsyncWaiter, Capabilities, Holder, Renewed, Store, StoreError, Waiter,
};
use crate::sync::{Condvar, Mutex, MutexGuard};
use crate::time::{Clock, Timestamp};

/// Leases in this process's memory, for its threads and tasks.
///
/// Put it in an [`Arc`](std::sync::Arc) to share it. One counter numbers the grants of all
/// names, so that a free name takes no memory. The ends of the latest 1,024 grants are kept for
/// [renewals](Store::renew).
pub struct MemoryStore<C> {
    clock: C,
    state: Mutex<MemoryState>,
    freed: Condvar,
}

#[derive(Default)]
struct MemoryState {
    records: HashMap<Name, MemoryRecord>,
    /// The latest grants that have ended, oldest end first.
    ended: VecDeque<Ended>,
    ends: BTreeSet<(Timestamp, Name)>,
    grants: u64,
    waiters: HashMap<Name, BTreeMap<u64, Waker>>,
    next_waiter: u64,
    /// The waiters to wake, if a name has become free.
    freed: Option<Vec<Waker>>,
}

struct MemoryRecord {
    owner: Owner,
    fence: Fence,
    until: Option<Timestamp>,
}

/// A grant that has ended.
struct Ended {
    name: Name,
    owner: Owner,
    fence: Fence,
    how: End,
}

#[derive(Clone, Copy)]
enum End {
    Expired,
    Released,
    ForceReleased,
}

impl<C: Clock> MemoryStore<C> {
    /// Returns an empty store whose leases expire by `clock`.
    pub fn new(clock: C) -> Self {
        Self {
            clock,
            state: Mutex::default(),
            freed: Condvar::new(),
        }
    }

    /// Performs one operation on the unexpired records, at the current time.
    ///
    /// The waiters of names that have become free are woken after the operation, when the mutex is
    /// unlocked: a waker may call the store at once.
    fn operate<T>(&self, operation: impl FnOnce(&mut MemoryState, Timestamp) -> T) -> T {
        let mut state = self.lock();
        let now = self.clock.now();
        state.drop_ended(now);
        let outcome = operation(&mut state, now);
        let freed = mem::take(&mut state.freed);
        drop(state);
        if let Some(wakers) = freed {
            self.freed.notify_all();
            wakers.into_iter().for_each(Waker::wake);
        }
        outcome
    }

    fn lock(&self) -> MutexGuard<'_, MemoryState> {
        // A poisoned mutex still protects consistent records: each change is one operation.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn record_claim(&self, claim: &Claim) -> Acquired {
        self.operate(|state, now| {
            let until = claim.ttl.duration().map(|ttl| now.saturating_add(ttl));
            let fence = match state.records.get(&claim.name) {
                Some(record) if record.owner == claim.owner => record.fence,
                Some(record) => {
                    let remaining = record.until.map(|until| until.saturating_since(now));
                    return Acquired::Busy { remaining };
                }
                None => state.next_fence(),
            };
            let owner = claim.owner;
            state.set(
                &claim.name,
                MemoryRecord {
                    owner,
                    fence,
                    until,
                },
            );
            Acquired::Granted { fence: Some(fence) }
        })
    }

    fn extend_record(&self, claim: &Claim) -> bool {
        self.operate(|state, now| match state.records.get(&claim.name) {
            Some(record) if record.owner == claim.owner => {
                let until = claim.ttl.duration().map(|ttl| now.saturating_add(ttl));
                let record = MemoryRecord { until, ..*record };
                state.set(&claim.name, record);
                true
            }
            _ => false,
        })
    }

    fn renew_record(&self, claim: &Claim, fence: Option<Fence>) -> Renewed {
        self.operate(|state, now| {
            let name = &claim.name;
            let until = claim.ttl.duration().map(|ttl| now.saturating_add(ttl));
            let is_same_grant =
                |owner, granted| owner == claim.owner && fence.is_none_or(|fence| fence == granted);
            let kept = match state.records.get(name) {
                Some(record) if is_same_grant(record.owner, record.fence) => {
                    let longest = record
                        .until
                        .zip(until)
                        .map(|(before, then)| before.max(then));
                    Some((record.fence, longest))
                }
                Some(_) => None,
                None => state
                    .last_end(name)
                    .filter(|end| {
                        matches!(end.how, End::Expired) && is_same_grant(end.owner, end.fence)
                    })
                    .map(|end| (end.fence, until)),
            };
            let Some((fence, until)) = kept else {
                let mut ends = state.ended.iter().filter(|end| end.name == *name);
                let is_released = |end: &Ended| matches!(end.how, End::Released);
                return match ends.rfind(|end| is_same_grant(end.owner, end.fence)) {
                    Some(end) if is_released(end) => Renewed::Released,
                    _ => Renewed::Lost,
                };
            };
            let owner = claim.owner;
            let record = MemoryRecord {
                owner,
                fence,
                until,
            };
            state.set(name, record);
            Renewed::Granted
        })
    }

    fn remove_if(&self, name: &Name, how: End, condition: impl Fn(Owner, Fence) -> bool) -> bool {
        self.operate(|state, _| {
            if let Some(record) = state.records.get(name) {
                if !condition(record.owner, record.fence) {
                    return false;
                }
                state.end(name, how);
                return true;
            }
            // The expired lease cannot be renewed after this.
            if let Some(end) = state.last_end(name)
                && matches!(end.how, End::Expired)
                && condition(end.owner, end.fence)
            {
                end.how = how;
            }
            false
        })
    }

    fn holder(&self, name: &Name) -> Option<Holder> {
        self.operate(|state, now| {
            state.records.get(name).map(|record| {
                Holder::new(
                    Some(record.fence),
                    record.until.map(|until| until.saturating_since(now)),
                )
            })
        })
    }

    /// Returns whether `claim.owner` holds the name of `claim`.
    fn is_owner(&self, claim: &Claim) -> bool {
        self.operate(|state, _| {
            let record = state.records.get(&claim.name);
            record.is_some_and(|record| record.owner == claim.owner)
        })
    }

    /// Polls whether `name` is free; if not, registers the waker, to be called once when that may have
    /// changed.
    fn poll_free(&self, name: &Name, ticket: &mut Option<u64>, context: &Context<'_>) -> Poll<()> {
        // The waker is cloned, and the previous one dropped, while the mutex is unlocked: both may run
        // arbitrary code.
        let waker = context.waker().clone();
        let (free, before) = self.operate(|state, _| {
            if !state.records.contains_key(name) {
                return (Poll::Ready(()), None);
            }
            let ticket = *ticket.get_or_insert_with(|| {
                state.next_waiter += 1;
                state.next_waiter
            });
            let waiters = state.waiters.entry(name.clone()).or_default();
            (Poll::Pending, waiters.insert(ticket, waker))
        });
        drop(before);
        free
    }

    fn remove_waiter(&self, name: &Name, ticket: u64) {
        let removed = self.operate(|state, _| {
            let waiters = state.waiters.get_mut(name)?;
            let removed = waiters.remove(&ticket);
            if waiters.is_empty() {
                state.waiters.remove(name);
            }
            removed
        });
        drop(removed);
    }
}

impl MemoryState {
    fn next_fence(&mut self) -> Fence {
        self.grants += 1;
        Fence::new(self.grants).unwrap_or(Fence::FIRST)
    }

    fn set(&mut self, name: &Name, record: MemoryRecord) {
        self.remove(name);
        if let Some(until) = record.until {
            self.ends.insert((until, name.clone()));
        }
        self.records.insert(name.clone(), record);
    }

    fn remove(&mut self, name: &Name) -> Option<MemoryRecord> {
        let record = self.records.remove(name)?;
        if let Some(until) = record.until {
            self.ends.remove(&(until, name.clone()));
        }
        Some(record)
    }

    /// Drops the records that have expired at `now`.
    fn drop_ended(&mut self, now: Timestamp) {
        while self.ends.first().is_some_and(|(until, _)| *until <= now) {
            let Some((_, name)) = self.ends.pop_first() else {
                break;
            };
            self.end(&name, End::Expired);
        }
    }

    /// Ends the record of `name`.
    fn end(&mut self, name: &Name, how: End) {
        /// The number of ended grants that are kept.
        const MAX_ENDED: usize = 1024;

        if let Some(MemoryRecord { owner, fence, .. }) = self.remove(name) {
            if self.ended.len() == MAX_ENDED {
                self.ended.pop_front();
            }
            self.ended.push_back(Ended {
                name: name.clone(),
                owner,
                fence,
                how,
            });
        }
        self.note_freed(name);
    }

    /// Returns the end of the latest grant of `name`, if it is still recorded.
    fn last_end(&mut self, name: &Name) -> Option<&mut Ended> {
        self.ended.iter_mut().rev().find(|end| end.name == *name)
    }

    /// Records the waiters to wake because `name` is free.
    fn note_freed(&mut self, name: &Name) {
        let waiters = self.waiters.remove(name).unwrap_or_default();
        self.freed
            .get_or_insert_default()
            .extend(waiters.into_values());
    }
}

impl<C: Clock + Send + Sync> Store for MemoryStore<C> {
    fn acquire(&self, claim: &Claim) -> Result<Acquired, StoreError> {
        Ok(self.record_claim(claim))
    }

    fn extend(&self, claim: &Claim) -> Result<bool, StoreError> {
        Ok(self.extend_record(claim))
    }

    fn release(&self, claim: &Claim) -> Result<bool, StoreError> {
        let is_owner = |owner, _| owner == claim.owner;
        Ok(self.remove_if(&claim.name, End::Released, is_owner))
    }

    fn force_release(&self, name: &Name, only: Option<Fence>) -> Result<bool, StoreError> {
        let is_meant = |_, fence| only.is_none_or(|only| only == fence);
        Ok(self.remove_if(name, End::ForceReleased, is_meant))
    }

    fn holders(&self, name: &Name) -> Result<Vec<Holder>, StoreError> {
        Ok(self.holder(name).into_iter().collect())
    }

    fn capabilities(&self) -> Capabilities {
        Capabilities {
            expires: true,
            ephemeral: false,
            transfers: true,
            force_releases: true,
            fences: true,
            revives: true,
        }
    }

    fn renew(&self, claim: &Claim, fence: Option<Fence>) -> Result<Renewed, StoreError> {
        Ok(self.renew_record(claim, fence))
    }

    fn holds(&self, claim: &Claim, _fence: Option<Fence>) -> Result<bool, StoreError> {
        Ok(self.is_owner(claim))
    }

    fn detach(&self, claim: &Claim) -> Result<bool, StoreError> {
        Ok(self.is_owner(claim))
    }

    fn waiter<'s>(&'s self, claim: &Claim) -> Option<Box<dyn Waiter + 's>> {
        Some(Box::new(MemoryWaiter::new(self, claim)))
    }
}

#[async_trait]
impl<C: Clock + Send + Sync> AsyncStore for MemoryStore<C> {
    async fn acquire(&self, claim: &Claim) -> Result<Acquired, StoreError> {
        Store::acquire(self, claim)
    }

    async fn extend(&self, claim: &Claim) -> Result<bool, StoreError> {
        Store::extend(self, claim)
    }

    async fn release(&self, claim: &Claim) -> Result<bool, StoreError> {
        Store::release(self, claim)
    }

    async fn force_release(&self, name: &Name, only: Option<Fence>) -> Result<bool, StoreError> {
        Store::force_release(self, name, only)
    }

    async fn holders(&self, name: &Name) -> Result<Vec<Holder>, StoreError> {
        Store::holders(self, name)
    }

    fn capabilities(&self) -> Capabilities {
        Store::capabilities(self)
    }

    async fn renew(&self, claim: &Claim, fence: Option<Fence>) -> Result<Renewed, StoreError> {
        Store::renew(self, claim, fence)
    }

    async fn holds(&self, claim: &Claim, fence: Option<Fence>) -> Result<bool, StoreError> {
        Store::holds(self, claim, fence)
    }

    async fn detach(&self, claim: &Claim) -> Result<bool, StoreError> {
        Store::detach(self, claim)
    }

    fn waiter<'s>(&'s self, claim: &Claim) -> Option<Box<dyn AsyncWaiter + 's>> {
        Some(Box::new(MemoryWaiter::new(self, claim)))
    }
}

/// The waiter of one claim. Dropping it removes its waker.
struct MemoryWaiter<'a, C: Clock> {
    store: &'a MemoryStore<C>,
    name: Name,
    ticket: Option<u64>,
}

impl<'a, C: Clock> MemoryWaiter<'a, C> {
    fn new(store: &'a MemoryStore<C>, claim: &Claim) -> Self {
        Self {
            store,
            name: claim.name.clone(),
            ticket: None,
        }
    }
}

impl<C: Clock + Send + Sync> Waiter for MemoryWaiter<'_, C> {
    /// Waits until the name is released or its record ends.
    fn wait(&mut self, at_most: Duration) {
        let (store, name) = (self.store, &self.name);
        let held = |state: &mut MemoryState, now| {
            let record = state.records.get(name)?;
            Some((
                record.fence,
                record.until.map(|until| until.saturating_since(now)),
            ))
        };
        let Some((fence, remaining)) = store.operate(held) else {
            return;
        };
        let at_most = remaining.map_or(at_most, |left| left.min(at_most));
        let taken = |state: &mut MemoryState| {
            state
                .records
                .get(name)
                .is_some_and(|record| record.fence == fence)
        };
        let waited = store.freed.wait_timeout_while(store.lock(), at_most, taken);
        drop(waited.unwrap_or_else(PoisonError::into_inner));
    }
}

#[async_trait]
impl<C: Clock + Send + Sync> AsyncWaiter for MemoryWaiter<'_, C> {
    async fn wait(&mut self, _at_most: Duration) {
        let Self {
            store,
            name,
            ticket,
        } = self;
        future::poll_fn(|context| store.poll_free(name, ticket, context)).await;
    }
}

impl<C: Clock> Drop for MemoryWaiter<'_, C> {
    fn drop(&mut self) {
        if let Some(ticket) = self.ticket {
            self.store.remove_waiter(&self.name, ticket);
        }
    }
}

impl<C> fmt::Debug for MemoryStore<C> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("MemoryStore").finish_non_exhaustive()
    }
}

//! The state of a blocking, async or polled lock, and the effects of a store's replies on it.

use alloc::sync::Arc;
use alloc::vec::Vec;
use core::time::Duration;

use crate::acquire::Acquire;
use crate::claim::{Claim, Fence, Owner};
use crate::error::Error;
use crate::lease::{Lease, Loss};
use crate::name::Name;
use crate::renew::{Health, Renew};
use crate::retry::Retry;
use crate::serialized::SerializedLock;
use crate::shared::Shared;
use crate::store::{Abilities, Reply, Store, StoreError};
use crate::time::{Clock, Timestamp};
use crate::ttl::Ttl;

/// One acquisition's lease, shared by the lock that acquired it and its guard.
#[derive(Clone, Debug)]
pub(crate) struct Hold(Arc<Shared<Known>>);

/// The state of a lease, as recorded in this process.
#[derive(Debug)]
struct Known {
    lease: Lease,
    /// Whether the owner has released the lock.
    is_released: bool,
    /// The number of extensions that were sent, plus the number that ended.
    steps: u64,
    /// The extensions any of which the store may have applied last.
    asked: Vec<Asked>,
}

/// An extension that was sent.
#[derive(Clone, Copy, Debug)]
struct Asked {
    began: u64,
    /// The step at which its reply was received, or the wait for the reply ended.
    over: Option<u64>,
    /// The lease's expiry if this extension was applied last.
    until: Option<Timestamp>,
}

impl Known {
    fn step(&mut self) -> u64 {
        self.steps += 1;
        self.steps
    }

    /// Records that the extension that began at `began` was granted. The extensions that ended before that
    /// step have no effect any more. Any of the others may have been applied last, so the lease ends by
    /// the soonest of their expiries.
    fn granted(&mut self, began: u64) {
        let step = self.step();
        self.asked
            .retain(|other| other.over.is_none_or(|over| began < over));
        if let Some(asked) = self.asked.iter_mut().find(|it| it.began == began) {
            asked.over = Some(step);
        }
        let ends = self.asked.iter().filter_map(|asked| asked.until);
        self.lease.end_at(ends.min());
    }

    /// Records that the outcome of the extension that began at `began` stays unknown, unless its reply was
    /// received. All extensions that have ended are merged into one, because a store may fail for a long
    /// time.
    fn doubted(&mut self, began: u64) {
        let step = self.step();
        let is_on_its_way = |it: &Asked| it.began == began && it.over.is_none();
        if self.asked.iter().any(is_on_its_way) {
            let over = self
                .asked
                .extract_if(.., |it| it.over.is_some() || it.began == began);
            let until = over.filter_map(|it| it.until).min();
            self.asked.push(Asked {
                began,
                over: Some(step),
                until,
            });
        }
    }
}

impl Hold {
    pub(crate) fn new(lease: Lease) -> Self {
        Self(Arc::new(Shared::new(Known {
            lease,
            is_released: false,
            steps: 0,
            asked: Vec::new(),
        })))
    }

    pub(crate) fn lease(&self) -> Lease {
        self.0.with(|known| known.lease.clone())
    }

    /// Records that the lease was lost.
    pub(crate) fn end(&self, loss: Loss) {
        self.0.with(|known| known.lease.end(loss));
    }

    /// Records that the owner has released the lock.
    pub(crate) fn note_release(&self) {
        self.0.with(|known| known.is_released = true);
    }

    /// Returns whether this process has recorded that the owner released the lock.
    pub(crate) fn is_released(&self) -> bool {
        self.0.with(|known| known.is_released)
    }

    /// Returns the loss to report at `now` for a lock that the store reports as no longer held.
    pub(crate) fn loss(&self, now: Timestamp) -> Loss {
        let lease = self.lease();
        lease.loss().unwrap_or(if lease.is_expired(now) {
            Loss::Expired
        } else {
            Loss::Revoked
        })
    }

    /// Returns the request that extends this lease to `ttl` from `now`.
    ///
    /// # Errors
    ///
    /// [`Error::NotOwner`] when the lease has expired.
    pub(crate) fn extension(&self, ttl: Ttl, now: Timestamp) -> Result<Extension, Error> {
        let lease = self.lease();
        if lease.is_over(now) {
            return Err(Error::NotOwner {
                name: lease.name().clone(),
            });
        }
        let request = Claim {
            ttl,
            ..lease.claim().clone()
        };
        Ok(self.extending(request, now))
    }

    /// Records that `request`, to extend this lease, is sent at `sent`.
    fn extending(&self, request: Claim, sent: Timestamp) -> Extension {
        let began = self.0.with(|known| {
            known.lease.doubt(request.ttl, sent);
            let began = known.step();
            known.asked.push(Asked {
                began,
                over: None,
                until: request.ttl.duration().map(|ttl| sent.saturating_add(ttl)),
            });
            began
        });
        Extension {
            hold: self.clone(),
            request,
            began,
        }
    }

    /// Records the store's reply to a request to detach the lease from its client.
    pub(crate) fn detached(&self, reply: Result<Reply, StoreError>) -> Result<(), Error> {
        match reply? {
            Reply::Granted { .. } => {
                self.0.with(|known| known.lease.detach());
                Ok(())
            }
            Reply::Refused { .. } => Err(Error::NotOwner {
                name: self.lease().name().clone(),
            }),
        }
    }

    /// Returns the auto-renewal of this lease for a lock of `ttl`, in a store with or without `revives`.
    pub(crate) fn renew(&self, ttl: Ttl, revives: bool, now: Timestamp) -> (Renew, Exchange) {
        let mut machine = Renew::new(self.lease(), ttl, now).reviving(revives);
        if self.is_released() {
            machine.release();
        }
        let hold = self.clone();
        (
            machine,
            Exchange {
                hold,
                extension: None,
            },
        )
    }
}

/// A request in flight that extends a lease. If it is dropped without a reply, its outcome stays unknown
/// until a request that was sent later is granted.
#[derive(Debug)]
pub(crate) struct Extension {
    hold: Hold,
    request: Claim,
    began: u64,
}

impl Extension {
    pub(crate) fn request(&self) -> &Claim {
        &self.request
    }

    /// Records the store's reply.
    pub(crate) fn heard(self, reply: Result<Reply, StoreError>) -> Result<(), Error> {
        match reply? {
            Reply::Granted { .. } => {
                self.hold.0.with(|known| known.granted(self.began));
                Ok(())
            }
            Reply::Refused { .. } => Err(Error::NotOwner {
                name: self.request.name.clone(),
            }),
        }
    }
}

impl Drop for Extension {
    fn drop(&mut self) {
        self.hold.0.with(|known| known.doubted(self.began));
    }
}

/// The synchronization of a shared lease with its auto-renewal machine: an extension of either is applied
/// to the other.
#[derive(Debug)]
pub(crate) struct Exchange {
    hold: Hold,
    /// The machine's renewal in flight.
    extension: Option<Extension>,
}

impl Exchange {
    /// Updates `machine` at `now` with the changes that were made to the lease elsewhere.
    pub(crate) fn teach(&mut self, machine: &mut Renew, now: Timestamp) {
        let held = self.hold.lease();
        if held != *machine.lease() {
            machine.adopt(held, now);
        }
        if self.hold.is_released() {
            machine.release();
        }
    }

    /// Records the renewal that `machine` is about to send in the lease, or the result of that renewal.
    pub(crate) fn learn(&mut self, machine: &Renew) {
        if let Some((ttl, sent)) = machine.asks() {
            let request = Claim {
                ttl,
                ..machine.lease().claim().clone()
            };
            self.extension = Some(self.hold.extending(request, sent));
        } else if let Some(extension) = self.extension.take() {
            match machine.health() {
                Health::Renewed => self.hold.0.with(|known| known.granted(extension.began)),
                Health::Released => self.hold.note_release(),
                _ => {}
            }
        }
    }
}

/// The state of a blocking, async or polled lock: its parameters, and its latest acquisition.
#[derive(Debug)]
pub(crate) struct Holds {
    pub(crate) name: Name,
    pub(crate) ttl: Ttl,
    pub(crate) retry: Retry,
    latest: Shared<Option<Hold>>,
    /// The greatest fencing token that was granted to this lock.
    fence: Shared<Option<Fence>>,
}

impl Holds {
    pub(crate) fn new(name: Name, ttl: Ttl, retry: Retry) -> Self {
        Self {
            name,
            ttl,
            retry,
            latest: Shared::new(None),
            fence: Shared::new(None),
        }
    }

    pub(crate) fn restored(
        serialized: &SerializedLock,
        retry: Retry,
        now: Timestamp,
        wall: Duration,
    ) -> Self {
        let holds = Self::new(serialized.name().clone(), serialized.ttl(), retry);
        holds.add(serialized.lease(now, wall));
        holds
    }

    /// Returns a new acquire request for this lock, with the owner token `random`.
    pub(crate) fn acquire(&self, retry: &Retry, random: [u8; 16], now: Timestamp) -> Acquire {
        let claim = Claim {
            name: self.name.clone(),
            owner: Owner::from_bytes(random),
            ttl: self.ttl,
            ephemeral: true,
        };
        // A repeated request of the current holder gets the same grant.
        let again = self
            .latest()
            .is_some_and(|hold| hold.lease().owner() == claim.owner);
        let before = self.fence.with(|fence| *fence).filter(|_| !again);
        Acquire::new(claim, retry.clone(), now).after(before)
    }

    /// Records that `lease` was granted, and makes it the latest unless a later one was granted already.
    pub(crate) fn add(&self, lease: Lease) -> Hold {
        let fence = lease.fence();
        self.fence.with(|greatest| *greatest = fence.max(*greatest));
        let hold = Hold::new(lease);
        self.latest.with(|latest| {
            let later = latest.as_ref().and_then(|latest| latest.lease().fence());
            if fence.is_none() || later <= fence {
                *latest = Some(hold.clone());
            }
        });
        hold
    }

    /// Returns the latest acquisition's lease, which may have ended since.
    pub(crate) fn latest(&self) -> Option<Hold> {
        self.latest.with(|latest| latest.clone())
    }

    /// Returns the latest acquisition's lease, or an error if there is none.
    pub(crate) fn held(&self) -> Result<Hold, Error> {
        self.latest().ok_or_else(|| self.not_owner())
    }

    /// Records that `owner` no longer holds the lock.
    pub(crate) fn remove(&self, owner: Owner) {
        self.latest
            .with(|latest| latest.take_if(|hold| hold.lease().owner() == owner));
    }

    /// Records the store's reply to a release. After an error the lease is kept, for a retry.
    pub(crate) fn released(
        &self,
        hold: &Hold,
        reply: Result<Reply, StoreError>,
    ) -> Result<(), Error> {
        let reply = reply?;
        self.remove(hold.lease().owner());
        match reply {
            Reply::Granted { .. } => {
                hold.note_release();
                Ok(())
            }
            Reply::Refused { .. } => Err(self.not_owner()),
        }
    }

    /// Records the store's reply to a force-release, of any holder or `only` of one grant, requested when
    /// the latest lease was `before`. Returns whether a lock was force-released.
    pub(crate) fn evicted(
        &self,
        only: Option<Fence>,
        before: Option<&Hold>,
        reply: Result<Reply, StoreError>,
    ) -> Result<bool, Error> {
        let evicted = reply?.is_granted();
        if let Some(before) = before
            && (evicted || only.is_none())
        {
            // A later lease, which another thread was granted since, is kept.
            self.remove(before.lease().owner());
        }
        Ok(evicted)
    }

    /// Requests `store` to release `hold`.
    pub(crate) fn release(&self, store: &impl Store, hold: &Hold) -> Result<(), Error> {
        self.released(hold, store.release(hold.lease().claim()))
    }

    /// Requests `store` to extend `hold` to `ttl`, or the lock's own ttl, from now.
    pub(crate) fn extend(
        &self,
        store: &impl Store,
        clock: &impl Clock,
        hold: &Hold,
        ttl: Option<Ttl>,
    ) -> Result<(), Error> {
        let sent = clock.now();
        let extension = hold.extension(ttl.unwrap_or(self.ttl), sent)?;
        let reply = store.extend(extension.request());
        extension.heard(reply)
    }

    /// Requests `store` to detach the latest lease from this client, and returns that lease.
    pub(crate) fn detach(&self, store: &impl Store) -> Result<Lease, Error> {
        let hold = self.transferable(store.abilities())?;
        let lease = hold.lease();
        if lease.claim().ephemeral {
            hold.detached(store.detach(lease.claim()))?;
        }
        Ok(lease)
    }

    /// Returns whether `store` records the latest acquisition as the holder.
    pub(crate) fn is_held(&self, store: &impl Store) -> Result<bool, Error> {
        let Some(hold) = self.latest() else {
            return Ok(false);
        };
        let lease = hold.lease();
        Ok(store.holds(lease.claim(), lease.fence())?)
    }

    /// Returns the latest acquisition's lease, if a store with these capabilities allows its transfer to
    /// another client.
    pub(crate) fn transferable(&self, abilities: Abilities) -> Result<Hold, Error> {
        let hold = self.held()?;
        if !abilities.transfers {
            return Err(Error::NotSerializable {
                name: self.name.clone(),
            });
        }
        Ok(hold)
    }

    fn not_owner(&self) -> Error {
        Error::NotOwner {
            name: self.name.clone(),
        }
    }
}

/// Converts a guard's failure to release `hold` into a loss of the lock, for the code that the lock
/// protected: by `loss` if the store reported one, or by the expiry at `now`.
pub(crate) fn lost(error: Error, hold: &Hold, loss: Loss, now: Timestamp) -> Error {
    let lease = hold.lease();
    let name = lease.name().clone();
    match error {
        Error::NotOwner { .. } => Error::Lost {
            name,
            loss,
            source: None,
        },
        // The lease has expired, so the store's answer makes no difference.
        Error::Storage(why) if lease.is_expired(now) => Error::Lost {
            name,
            loss: hold.loss(now),
            source: Some(why),
        },
        other => other,
    }
}

/// Returns whether a guard whose release was refused, and would be reported as `loss`, must query the
/// store, which has these capabilities, whether the owner has released the lock before.
pub(crate) fn may_be_released(
    released: &Result<(), Error>,
    loss: Loss,
    abilities: Abilities,
) -> bool {
    let is_refused = matches!(released, Err(Error::NotOwner { .. }));
    is_refused && loss == Loss::Revoked && abilities.revives
}

//! The state of a blocking, async or polled lock, and the effects of a store's replies on it.

use alloc::sync::Arc;
use alloc::vec::Vec;
use core::mem;
use core::task::Waker;
use core::time::Duration;

use crate::acquire::Acquire;
use crate::cell::Shared;
use crate::claim::{Claim, Fence, Owner};
use crate::error::Error;
use crate::lease::{Lease, Loss};
use crate::name::Name;
use crate::renew::{Health, Renew};
use crate::retry::Retry;
use crate::serialized::SerializedLock;
use crate::store::{Capabilities, StoreError};
use crate::time::Timestamp;
use crate::ttl::Ttl;

/// One acquisition's lease, shared by the lock that acquired it and its guard.
#[derive(Clone, Debug)]
pub(crate) struct Acquisition(Arc<Shared<LeaseState>>);

/// The state of a lease, as recorded in this process.
#[derive(Debug)]
struct LeaseState {
    lease: Lease,
    /// Whether the owner has released the lock.
    is_released: bool,
    /// The tasks to wake when the owner releases the lock.
    waiting: Vec<Waker>,
    /// The number of events: each start and each end of an extension is one.
    events: u64,
    /// The extensions any of which the store may have applied last.
    sent_extensions: Vec<SentExtension>,
}

/// An extension that was sent.
#[derive(Clone, Copy, Debug)]
struct SentExtension {
    /// The event at which it was sent.
    began: u64,
    /// The event at which its reply was received, or the wait for the reply ended.
    ended: Option<u64>,
    /// The lease's expiry if this extension was applied last.
    until: Option<Timestamp>,
}

impl LeaseState {
    fn next_event(&mut self) -> u64 {
        self.events += 1;
        self.events
    }

    /// Records that the extension that began at `began` was granted. The extensions that ended before that
    /// event have no effect any more. Any of the others may have been applied last, so the lease ends by
    /// the soonest of their expiries.
    fn granted(&mut self, began: u64) {
        let event = self.next_event();
        self.sent_extensions
            .retain(|other| other.ended.is_none_or(|ended| began < ended));
        let mut all = self.sent_extensions.iter_mut();
        if let Some(granted) = all.find(|it| it.began == began) {
            granted.ended = Some(event);
        }
        let ends = self.sent_extensions.iter().filter_map(|it| it.until);
        self.lease.set_expiry(ends.min());
    }

    /// Records that the outcome of the extension that began at `began` stays unknown, unless its reply was
    /// received. All extensions that have ended are merged into one, because a store may fail for a long
    /// time.
    fn abandoned(&mut self, began: u64) {
        let event = self.next_event();
        let is_in_flight = |it: &SentExtension| it.began == began && it.ended.is_none();
        if self.sent_extensions.iter().any(is_in_flight) {
            let ended = self
                .sent_extensions
                .extract_if(.., |it| it.ended.is_some() || it.began == began);
            let until = ended.filter_map(|it| it.until).min();
            self.sent_extensions.push(SentExtension {
                began,
                ended: Some(event),
                until,
            });
        }
    }
}

impl Acquisition {
    pub(crate) fn new(lease: Lease) -> Self {
        Self(Arc::new(Shared::new(LeaseState {
            lease,
            is_released: false,
            waiting: Vec::new(),
            events: 0,
            sent_extensions: Vec::new(),
        })))
    }

    pub(crate) fn lease(&self) -> Lease {
        self.0.with(|state| state.lease.clone())
    }

    /// Records that the lease was lost.
    pub(crate) fn record_loss(&self, loss: Loss) {
        event!(
            WARN,
            self.lease().name(),
            fence = self.lease().fence().map(Fence::get),
            ?loss,
            "lost"
        );
        self.0.with(|state| state.lease.record_loss(loss));
    }

    /// Records that the owner has released the lock.
    pub(crate) fn record_release(&self) {
        let waiting = self.0.with(|state| {
            state.is_released = true;
            mem::take(&mut state.waiting)
        });
        waiting.into_iter().for_each(Waker::wake);
    }

    /// Returns whether this process has recorded that the owner released the lock; if not, wakes `waker` then.
    pub(crate) fn is_released_or_wakes(&self, waker: &Waker) -> bool {
        self.0.with(|state| {
            if !state.is_released && !state.waiting.iter().any(|known| known.will_wake(waker)) {
                state.waiting.push(waker.clone());
            }
            state.is_released
        })
    }

    /// Returns whether this process has recorded that the owner released the lock.
    pub(crate) fn is_released(&self) -> bool {
        self.0.with(|state| state.is_released)
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
        if lease.is_certainly_expired(now) {
            return Err(Error::NotOwner {
                name: lease.name().clone(),
            });
        }
        let request = lease.claim().clone().with_ttl(ttl);
        Ok(self.extending(request, now))
    }

    /// Records that `request`, to extend this lease, is sent at `sent`.
    fn extending(&self, request: Claim, sent: Timestamp) -> Extension {
        let began = self.0.with(|state| {
            state.lease.limit(request.ttl, sent);
            let began = state.next_event();
            state.sent_extensions.push(SentExtension {
                began,
                ended: None,
                until: request.ttl.duration().map(|ttl| sent.saturating_add(ttl)),
            });
            began
        });
        Extension {
            acquisition: self.clone(),
            request,
            began,
        }
    }

    /// Records the store's reply to a request to detach the lease from its client.
    pub(crate) fn record_detach(&self, reply: Result<bool, StoreError>) -> Result<(), Error> {
        if !reply? {
            return Err(Error::NotOwner {
                name: self.lease().name().clone(),
            });
        }
        self.0.with(|state| state.lease.detach());
        Ok(())
    }

    /// Returns the auto-renewal of this lease for a lock of `ttl`, in a store with or without `revives`.
    pub(crate) fn renew(&self, ttl: Ttl, revives: bool, now: Timestamp) -> (Renew, RenewalSync) {
        let mut machine = Renew::new(self.lease(), ttl, now).reviving(revives);
        if self.is_released() {
            machine.release();
        }
        let acquisition = self.clone();
        (
            machine,
            RenewalSync {
                acquisition,
                extension: None,
            },
        )
    }
}

/// A request in flight that extends a lease. If it is dropped without a reply, its outcome stays unknown
/// until a request that was sent later is granted.
#[derive(Debug)]
pub(crate) struct Extension {
    acquisition: Acquisition,
    request: Claim,
    began: u64,
}

impl Extension {
    pub(crate) fn request(&self) -> &Claim {
        &self.request
    }

    /// Records the store's reply.
    pub(crate) fn complete(self, reply: Result<bool, StoreError>) -> Result<(), Error> {
        if !reply? {
            return Err(Error::NotOwner {
                name: self.request.name.clone(),
            });
        }
        self.acquisition.0.with(|state| state.granted(self.began));
        Ok(())
    }
}

impl Drop for Extension {
    fn drop(&mut self) {
        self.acquisition.0.with(|state| state.abandoned(self.began));
    }
}

/// The synchronization of a shared lease with its auto-renewal machine: an extension of either is applied
/// to the other.
#[derive(Debug)]
pub(crate) struct RenewalSync {
    acquisition: Acquisition,
    /// The machine's renewal in flight.
    extension: Option<Extension>,
}

impl RenewalSync {
    /// Updates `machine` at `now` with the changes that were made to the lease elsewhere.
    pub(crate) fn update_machine(&mut self, machine: &mut Renew, now: Timestamp) {
        let held = self.acquisition.lease();
        if held != *machine.lease() {
            machine.adopt(held, now);
        }
        if self.acquisition.is_released() {
            machine.release();
        }
    }

    /// Records the renewal that `machine` is about to send in the lease, or the result of that renewal.
    pub(crate) fn record_renewal(&mut self, machine: &Renew) {
        if let Some((ttl, sent)) = machine.in_flight() {
            let request = machine.lease().claim().clone().with_ttl(ttl);
            self.extension = Some(self.acquisition.extending(request, sent));
        } else if let Some(extension) = self.extension.take() {
            match machine.health() {
                Health::Renewed => self
                    .acquisition
                    .0
                    .with(|state| state.granted(extension.began)),
                Health::Released => self.acquisition.record_release(),
                _ => {}
            }
        }
    }
}

/// The state of a blocking, async or polled lock: its parameters, and its latest acquisition.
#[derive(Debug)]
pub(crate) struct LockState {
    pub(crate) name: Name,
    pub(crate) ttl: Ttl,
    pub(crate) retry: Retry,
    latest: Shared<Option<Acquisition>>,
    /// The greatest fencing token that was granted to this lock.
    fence: Shared<Option<Fence>>,
}

impl LockState {
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
        let state = Self::new(serialized.name().clone(), serialized.ttl(), retry);
        state.record_grant(serialized.lease(now, wall));
        state
    }

    /// Returns a new acquire request for this lock, with the owner token `random`.
    pub(crate) fn acquire(&self, retry: &Retry, random: [u8; 16], now: Timestamp) -> Acquire {
        let claim =
            Claim::new(self.name.clone(), Owner::from_bytes(random), self.ttl).ephemeral(true);
        // A repeated request of the current holder gets the same grant.
        let again = self
            .latest()
            .is_some_and(|acquisition| acquisition.lease().owner() == claim.owner);
        let before = self.fence.with(|fence| *fence).filter(|_| !again);
        Acquire::new(claim, retry.clone(), now).after(before)
    }

    /// Records that `lease` was granted, and makes it the latest unless a later one was granted already.
    pub(crate) fn record_grant(&self, lease: Lease) -> Acquisition {
        let fence = lease.fence();
        self.fence.with(|greatest| *greatest = fence.max(*greatest));
        let acquisition = Acquisition::new(lease);
        self.latest.with(|latest| {
            let later = latest.as_ref().and_then(|latest| latest.lease().fence());
            if fence.is_none() || later <= fence {
                *latest = Some(acquisition.clone());
            }
        });
        acquisition
    }

    /// Returns the latest acquisition, whose lease may have ended since.
    pub(crate) fn latest(&self) -> Option<Acquisition> {
        self.latest.with(|latest| latest.clone())
    }

    /// Returns the latest acquisition, or an error if there is none.
    pub(crate) fn latest_or_error(&self) -> Result<Acquisition, Error> {
        self.latest().ok_or_else(|| self.not_owner())
    }

    /// Records that `owner` no longer holds the lock.
    pub(crate) fn remove(&self, owner: Owner) {
        self.latest
            .with(|latest| latest.take_if(|acquisition| acquisition.lease().owner() == owner));
    }

    /// Records the store's reply to a release. After an error the acquisition is kept, for a retry.
    pub(crate) fn record_release(
        &self,
        acquisition: &Acquisition,
        reply: Result<bool, StoreError>,
    ) -> Result<(), Error> {
        let is_released = reply?;
        self.remove(acquisition.lease().owner());
        if !is_released {
            return Err(self.not_owner());
        }
        event!(
            INFO,
            self.name,
            fence = acquisition.lease().fence().map(Fence::get),
            "released"
        );
        acquisition.record_release();
        Ok(())
    }

    /// Records the store's reply to a force-release, of any holder or `only` of one grant, requested when
    /// the latest acquisition was `before`. Returns whether a lock was force-released.
    pub(crate) fn record_force_release(
        &self,
        only: Option<Fence>,
        before: Option<&Acquisition>,
        reply: Result<bool, StoreError>,
    ) -> Result<bool, Error> {
        let is_released = reply?;
        if is_released {
            event!(
                WARN,
                self.name,
                fence = only.map(Fence::get),
                "force-released"
            );
        }
        if let Some(before) = before
            && (is_released || only.is_none())
        {
            // A later acquisition, which another thread was granted since, is kept.
            self.remove(before.lease().owner());
        }
        Ok(is_released)
    }

    /// Returns the latest acquisition, if a store with these capabilities allows its transfer to another
    /// client.
    pub(crate) fn transferable(&self, capabilities: Capabilities) -> Result<Acquisition, Error> {
        let acquisition = self.latest_or_error()?;
        if !capabilities.transfers {
            return Err(Error::NotSerializable {
                name: self.name.clone(),
            });
        }
        Ok(acquisition)
    }

    fn not_owner(&self) -> Error {
        Error::NotOwner {
            name: self.name.clone(),
        }
    }
}

/// Converts a guard's failure to release `acquisition` into a loss of the lock, for the code that the lock
/// protected: by `loss` if the store reported one, or by the expiry at `now`.
pub(crate) fn into_loss(
    error: Error,
    acquisition: &Acquisition,
    loss: Loss,
    now: Timestamp,
) -> Error {
    let lease = acquisition.lease();
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
            loss: acquisition.loss(now),
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
    capabilities: Capabilities,
) -> bool {
    let is_refused = matches!(released, Err(Error::NotOwner { .. }));
    is_refused && loss == Loss::Revoked && capabilities.revives
}

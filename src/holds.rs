//! What a lock of either colour knows of itself, and what replies make of it.

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

/// One acquisition's lease, shared by the lock that made it and the guard that holds it.
#[derive(Clone, Debug)]
pub(crate) struct Hold(Arc<Shared<Known>>);

/// What is known of a lease.
#[derive(Debug)]
struct Known {
    lease: Lease,
    /// Whether the owner has released the lock.
    is_released: bool,
    /// How often an extension was asked for, or was over.
    steps: u64,
    /// The extensions of which the store may have taken any last.
    asked: Vec<Asked>,
}

/// An extension that was asked for.
#[derive(Clone, Copy, Debug)]
struct Asked {
    began: u64,
    /// When its reply was heard, or not waited for any more.
    over: Option<u64>,
    /// When the lease ends if it is the last.
    until: Option<Timestamp>,
}

impl Known {
    fn step(&mut self) -> u64 {
        self.steps += 1;
        self.steps
    }

    /// The extension that began at `began` was granted. So whatever was over by then is of no
    /// account; of all others the one that ends the lease soonest may have been the last.
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

    /// The extension that began at `began` is not waited for any more, unless it is over. All that
    /// are become one: a store may be in trouble for long.
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

    /// Takes note that it was lost.
    pub(crate) fn end(&self, loss: Loss) {
        self.0.with(|known| known.lease.end(loss));
    }

    /// Records that the owner has released the lock.
    pub(crate) fn note_release(&self) {
        self.0.with(|known| known.is_released = true);
    }

    /// Returns whether the owner has released the lock, as far as is known in this process.
    pub(crate) fn is_released(&self) -> bool {
        self.0.with(|known| known.is_released)
    }

    /// How it was lost if that shows at `now` only by its not being held any more.
    pub(crate) fn loss(&self, now: Timestamp) -> Loss {
        let lease = self.lease();
        lease.loss().unwrap_or(if lease.is_expired(now) {
            Loss::Expired
        } else {
            Loss::Revoked
        })
    }

    /// The request that extends this hold by `ttl` at `now`, unless its time has passed.
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

    /// Takes note that `request`, to extend this hold, leaves at `sent`.
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

    /// What the store said to a request to let the lease outlive its client.
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

    /// Returns the renewal of this hold by a lock of `ttl`, in a store that `revives` or does not.
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

/// A request to extend a hold that is on its way. Dropped without a reply, it stays in doubt until
/// one that left later is granted.
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

    /// What the store said to it.
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

/// What passes between a hold and the machine that keeps it: each extension of one is the other's.
#[derive(Debug)]
pub(crate) struct Exchange {
    hold: Hold,
    /// The machine's, that is on its way.
    extension: Option<Extension>,
}

impl Exchange {
    /// Tells `machine` at `now` what else was done to the hold.
    pub(crate) fn teach(&mut self, machine: &mut Renew, now: Timestamp) {
        let held = self.hold.lease();
        if held != *machine.lease() {
            machine.adopt(held, now);
        }
        if self.hold.is_released() {
            machine.release();
        }
    }

    /// Tells the hold what `machine` asks for, before it is asked for, or what came of that.
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

/// What a lock of either colour knows: what it is, and its latest hold.
#[derive(Debug)]
pub(crate) struct Holds {
    pub(crate) name: Name,
    pub(crate) ttl: Ttl,
    pub(crate) retry: Retry,
    latest: Shared<Option<Hold>>,
    /// The greatest that was granted here.
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

    /// A new wish to hold this lock, by an owner made of `random`.
    pub(crate) fn acquire(&self, retry: &Retry, random: [u8; 16], now: Timestamp) -> Acquire {
        let claim = Claim {
            name: self.name.clone(),
            owner: Owner::from_bytes(random),
            ttl: self.ttl,
            ephemeral: true,
        };
        // Whoever holds it already, and asks again, gets the same grant.
        let again = self
            .latest()
            .is_some_and(|hold| hold.lease().owner() == claim.owner);
        let before = self.fence.with(|fence| *fence).filter(|_| !again);
        Acquire::new(claim, retry.clone(), now).after(before)
    }

    /// Notes that `lease` was granted, unless a later one is known already.
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

    /// The latest hold, whatever has become of it since.
    pub(crate) fn latest(&self) -> Option<Hold> {
        self.latest.with(|latest| latest.clone())
    }

    /// The latest hold, for something that needs one.
    pub(crate) fn held(&self) -> Result<Hold, Error> {
        self.latest().ok_or_else(|| self.not_owner())
    }

    /// Notes that `owner` holds the lock no more.
    pub(crate) fn remove(&self, owner: Owner) {
        self.latest
            .with(|latest| latest.take_if(|hold| hold.lease().owner() == owner));
    }

    /// What the store said to a release; after an error the hold is kept, to try again.
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

    /// What the store said to an eviction, of whoever held it or `only` of one grant, when the latest
    /// hold was `before`: whether there was somebody to evict.
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
            // Not a later one, which another thread was granted since.
            self.remove(before.lease().owner());
        }
        Ok(evicted)
    }

    /// Asks `store` to free what `hold` holds.
    pub(crate) fn release(&self, store: &impl Store, hold: &Hold) -> Result<(), Error> {
        self.released(hold, store.release(hold.lease().claim()))
    }

    /// Asks `store` to let `hold` last `ttl`, or the lock's own ttl, from now.
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

    /// Asks `store` to let the latest hold outlive this client, and tells what it is.
    pub(crate) fn detach(&self, store: &impl Store) -> Result<Lease, Error> {
        let hold = self.transferable(store.abilities())?;
        let lease = hold.lease();
        if lease.claim().ephemeral {
            hold.detached(store.detach(lease.claim()))?;
        }
        Ok(lease)
    }

    /// Asks `store` whether the latest hold is what is recorded.
    pub(crate) fn is_held(&self, store: &impl Store) -> Result<bool, Error> {
        let Some(hold) = self.latest() else {
            return Ok(false);
        };
        let lease = hold.lease();
        Ok(store.holds(lease.claim(), lease.fence())?)
    }

    /// The latest hold, if a store of such abilities lets it be handed to another client.
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
/// store, which has these abilities, whether the owner has released the lock before.
pub(crate) fn may_be_released(
    released: &Result<(), Error>,
    loss: Loss,
    abilities: Abilities,
) -> bool {
    let is_refused = matches!(released, Err(Error::NotOwner { .. }));
    is_refused && loss == Loss::Revoked && abilities.revives
}

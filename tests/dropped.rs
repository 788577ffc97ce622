//! Every future of a lock, dropped at every point at which it waits.
//!
//! Each thing that can be awaited of a lock is done again and again, and dropped at its first wait,
//! at its second, and so on until it comes to its end. Afterwards nothing may be left of it but what
//! a request in doubt leaves: a lease that ends by its ttl.

mod common;

use std::future::{Future, poll_fn};
use std::pin::pin;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::task::{Context, Poll, Wake, Waker};
use std::time::Duration;

use common::script::ms;
use common::world::Memory;
use common::yield_now;
use pollster::block_on;
use verrou::conformance::TestClock;
use verrou::nonblocking::{Lock, LockFactory};
use verrou::{
    Abilities, AsyncStore, Claim, Clock, Error, Fence, Holder, Loss, MemoryStore, Name, Owner,
    Renewed, Reply, Retry, RunError, Store, StoreError, Ttl,
};

/// How long the leases of the locks under test last.
const TTL: Duration = Duration::from_secs(2);

/// Where a step of the store has something to wait for.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
enum Waits {
    /// Nowhere: it is done as soon as it is asked for.
    Nowhere,
    /// On the way to the store.
    Before,
    /// On the way back.
    After,
    /// On both ways.
    Both,
}

/// A store that is waited for, and knows what was left in it.
struct Far {
    memory: Memory,
    waits: Waits,
    known: Mutex<Known>,
    /// How many wait for a lock, or for its loss, at this moment.
    waiting: AtomicUsize,
}

#[derive(Default)]
struct Known {
    /// Who has a place among those who wait.
    places: Vec<Owner>,
    /// Whose requests were dropped before their reply, and which.
    doubts: Vec<(Option<Owner>, Step)>,
    /// Whether anybody asked for an end of the lease.
    is_ended: bool,
    /// The fence of the latest grant.
    fence: Option<Fence>,
    /// What the store says to the next steps instead of their replies, after having done them.
    troubles: Vec<StoreError>,
}

#[derive(Clone, Copy, Debug, Eq, PartialEq)]
enum Step {
    Acquire,
    Extend,
    Release,
    Evict,
    Inspect,
    Detach,
}

/// Notes the doubt when it is dropped before its reply.
struct Asking<'a> {
    store: &'a Far,
    owner: Option<Owner>,
    step: Step,
    is_answered: bool,
}

impl Drop for Asking<'_> {
    fn drop(&mut self) {
        if !self.is_answered {
            let doubt = (self.owner, self.step);
            self.store.known.lock().unwrap().doubts.push(doubt);
        }
    }
}

/// Counts one who waits until it is dropped.
struct Waiting<'a>(&'a AtomicUsize);

impl<'a> Waiting<'a> {
    fn new(count: &'a AtomicUsize) -> Self {
        count.fetch_add(1, Ordering::Relaxed);
        Self(count)
    }
}

impl Drop for Waiting<'_> {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::Relaxed);
    }
}

impl Far {
    async fn step<T>(
        &self,
        owner: Option<Owner>,
        step: Step,
        take: impl FnOnce() -> Result<T, StoreError>,
    ) -> Result<T, StoreError> {
        let mut asking = Asking {
            store: self,
            owner,
            step,
            is_answered: false,
        };
        if matches!(step, Step::Release | Step::Evict) {
            self.known.lock().unwrap().is_ended = true;
        }
        if matches!(self.waits, Waits::Before | Waits::Both) {
            yield_now().await;
        }
        let reply = take();
        if matches!(self.waits, Waits::After | Waits::Both) {
            yield_now().await;
        }
        asking.is_answered = true;
        match self.known.lock().unwrap().troubles.pop() {
            Some(trouble) => Err(trouble),
            None => reply,
        }
    }

    /// Lets the next replies be lost; the last of these is said first.
    fn fail(&self, troubles: impl IntoIterator<Item = StoreError>) {
        self.known.lock().unwrap().troubles = troubles.into_iter().collect();
    }

    fn doubts(&self) -> Vec<(Option<Owner>, Step)> {
        self.known.lock().unwrap().doubts.clone()
    }

    fn holder(&self) -> Option<Holder> {
        Store::inspect(&self.memory, &name()).unwrap()
    }

    fn is_held_by(&self, owner: Owner) -> bool {
        let claim = Claim {
            name: name(),
            owner,
            ttl: Ttl::NEVER,
            ephemeral: false,
        };
        Store::holds(&self.memory, &claim, None).unwrap()
    }
}

impl AsyncStore for Far {
    async fn acquire(&self, claim: &Claim) -> Result<Reply, StoreError> {
        let take = || {
            let reply = Store::acquire(&self.memory, claim);
            if let Ok(Reply::Granted { fence }) = reply {
                let mut known = self.known.lock().unwrap();
                known.places.retain(|place| *place != claim.owner);
                known.fence = fence;
            }
            reply
        };
        self.step(Some(claim.owner), Step::Acquire, take).await
    }
    async fn extend(&self, claim: &Claim) -> Result<Reply, StoreError> {
        let take = || Store::extend(&self.memory, claim);
        self.step(Some(claim.owner), Step::Extend, take).await
    }
    async fn renew(&self, claim: &Claim, fence: Option<Fence>) -> Result<Renewed, StoreError> {
        let take = || Store::renew(&self.memory, claim, fence);
        self.step(Some(claim.owner), Step::Extend, take).await
    }
    async fn release(&self, claim: &Claim) -> Result<Reply, StoreError> {
        let take = || Store::release(&self.memory, claim);
        self.step(Some(claim.owner), Step::Release, take).await
    }
    async fn evict(&self, name: &Name, only: Option<Fence>) -> Result<Reply, StoreError> {
        let take = || Store::evict(&self.memory, name, only);
        self.step(None, Step::Evict, take).await
    }
    async fn inspect(&self, name: &Name) -> Result<Option<Holder>, StoreError> {
        let take = || Store::inspect(&self.memory, name);
        self.step(None, Step::Inspect, take).await
    }
    async fn detach(&self, claim: &Claim) -> Result<Reply, StoreError> {
        let take = || Store::detach(&self.memory, claim);
        self.step(Some(claim.owner), Step::Detach, take).await
    }
    async fn wait(&self, claim: &Claim, at_most: Duration) {
        let _waiting = Waiting::new(&self.waiting);
        {
            let mut known = self.known.lock().unwrap();
            if !known.places.contains(&claim.owner) {
                known.places.push(claim.owner);
            }
        }
        AsyncStore::wait(&self.memory, claim, at_most).await;
    }
    async fn lost(&self, claim: &Claim) {
        let _waiting = Waiting::new(&self.waiting);
        poll_fn(|_| {
            if self.is_held_by(claim.owner) {
                Poll::Pending
            } else {
                Poll::Ready(())
            }
        })
        .await;
    }
    fn give_up(&self, claim: &Claim) {
        let mut known = self.known.lock().unwrap();
        known.places.retain(|place| *place != claim.owner);
    }
    fn abilities(&self) -> Abilities {
        Store::abilities(&self.memory)
    }
}

fn name() -> Name {
    Name::new("lock").unwrap()
}

/// A lock under test, and somebody else who wants it.
struct Stage {
    clock: TestClock,
    store: Arc<Far>,
    lock: Lock<Arc<Far>, TestClock>,
    other: Lock<Memory, TestClock>,
}

impl Stage {
    fn new(waits: Waits) -> Self {
        let clock = TestClock::still();
        let memory = Arc::new(MemoryStore::new(clock.clone()));
        let store = Arc::new(Far {
            memory: Arc::clone(&memory),
            waits,
            known: Mutex::default(),
            waiting: AtomicUsize::new(0),
        });
        let locks = LockFactory::new(Arc::clone(&store), clock.clone());
        let others = LockFactory::new(memory, clock.clone());
        Self {
            lock: locks.create_lock("lock", TTL).unwrap(),
            other: others.create_lock("lock", "1h").unwrap(),
            clock,
            store,
        }
    }

    fn knows(&self) -> Option<Owner> {
        Some(self.lock.lease()?.owner())
    }

    /// What the lock counts on has to be so, unless somebody was asked to end it.
    fn counts_on_what_is(&self) {
        let doubts = self.store.doubts();
        let Some(lease) = self.lock.lease() else {
            return;
        };
        let now = self.clock.now();
        if lease.is_expired(now) || self.store.known.lock().unwrap().is_ended {
            return;
        }
        let holder = self.store.holder();
        let holder = holder.unwrap_or_else(|| panic!("{lease:?} is recorded, after {doubts:?}"));
        assert!(self.store.is_held_by(lease.owner()), "after {doubts:?}");
        if let Some(recorded) = holder.remaining {
            let counted = lease.remaining(now).expect("what ends there ends here");
            assert!(
                counted <= recorded,
                "{counted:?} is counted on, {recorded:?} recorded, after {doubts:?}"
            );
        }
    }

    /// Nobody waits for the lock; who holds it is known, or in doubt, and then its time passes; then
    /// anybody gets it.
    fn leaves_nothing_but_doubts(&self) {
        assert_eq!(self.store.waiting.load(Ordering::Relaxed), 0, "who waits");
        let doubts = self.store.doubts();
        self.store.fail([]);
        {
            let known = self.store.known.lock().unwrap();
            assert_eq!(known.places, [], "a place is left, after {doubts:?}");
        }
        self.counts_on_what_is();
        if let Some(holder) = self.store.holder() {
            let is_its = |owner: Option<Owner>| owner.is_some_and(|it| self.store.is_held_by(it));
            if is_its(self.other.lease().map(|lease| lease.owner())) {
                block_on(self.other.release()).unwrap();
            } else {
                let in_doubt = doubts.iter().any(|(of, _)| is_its(*of));
                let is_known = is_its(self.knows());
                assert!(
                    in_doubt || is_known,
                    "nobody knows of {holder:?}, after {doubts:?}"
                );
                if is_known {
                    block_on(self.lock.release()).unwrap();
                } else {
                    let left = holder.remaining.expect("an end");
                    assert!(left <= TTL, "{left:?} are left, after {doubts:?}");
                    self.clock.advance(left);
                }
            }
        }
        assert_eq!(self.store.holder(), None);
        block_on(self.other.try_acquire()).expect("anybody gets it");
        block_on(self.other.release()).unwrap();
        // The lock is as good as new.
        let before = self.store.known.lock().unwrap().fence;
        let lease = block_on(self.lock.try_acquire()).expect("it can be taken again");
        assert!(before < lease.fence(), "{before:?} before {lease:?}");
        assert!(block_on(self.lock.is_held()).unwrap());
        block_on(self.lock.release()).expect("it can be given back");
        assert_eq!(self.store.holder(), None);
    }
}

struct Nobody;

impl Wake for Nobody {
    fn wake(self: Arc<Self>) {}
}

/// Does `what` again and again, each time up to one wait more, and drops it there; `meanwhile`
/// happens before each poll. Says after how many waits it came to its end, for each way in which the
/// store can be waited for, with what `what` returned.
#[expect(
    clippy::needless_pass_by_value,
    reason = "each is written where it is passed"
)]
fn at_every_wait<T>(
    before: impl Fn(&Stage),
    what: impl AsyncFn(&Stage) -> T,
    meanwhile: impl Fn(&Stage, usize),
    check: impl Fn(&Stage, Waits, Option<T>),
) -> usize {
    let mut waited = 0;
    for waits in [Waits::Nowhere, Waits::Before, Waits::After, Waits::Both] {
        for polls in 0.. {
            assert!(polls < 200, "it comes to its end");
            let stage = Stage::new(waits);
            before(&stage);
            let nobody = Arc::new(Nobody);
            let ended = {
                let waker = Waker::from(Arc::clone(&nobody));
                let mut context = Context::from_waker(&waker);
                let mut future = pin!(what(&stage));
                (0..polls).find_map(|poll| {
                    meanwhile(&stage, poll);
                    match future.as_mut().poll(&mut context) {
                        Poll::Ready(end) => Some(end),
                        Poll::Pending => None,
                    }
                })
            };
            assert_eq!(Arc::strong_count(&nobody), 1, "its waker is gone with it");
            let is_over = ended.is_some();
            check(&stage, waits, ended);
            stage.leaves_nothing_but_doubts();
            if is_over {
                waited += polls - 1;
                break;
            }
        }
    }
    waited
}

fn nothing(_: &Stage) {}

fn nothing_happens(_: &Stage, _: usize) {}

fn held_by_another(stage: &Stage) {
    block_on(stage.other.acquire()).unwrap();
}

fn held(stage: &Stage) {
    block_on(stage.lock.acquire()).unwrap();
}

/// Fails when it ended otherwise than well.
fn is_well<T: std::fmt::Debug>(ended: Option<Result<T, Error>>) {
    if let Some(ended) = ended {
        ended.expect("a good end");
    }
}

#[test]
fn dropped_acquisition_of_a_free_lock() {
    let waits = at_every_wait(
        nothing,
        async |stage| stage.lock.acquire().await,
        nothing_happens,
        |_, _, ended| is_well(ended),
    );
    assert_eq!(waits, 4);
    let waits = at_every_wait(
        nothing,
        async |stage| stage.lock.try_acquire().await,
        nothing_happens,
        |_, _, ended| is_well(ended),
    );
    assert_eq!(waits, 4);
}

#[test]
fn dropped_acquisition_that_is_refused() {
    let is_refused = |ended: Option<Result<_, Error>>| {
        if let Some(ended) = ended {
            assert!(matches!(ended, Err(Error::Timeout { .. })), "{ended:?}");
        }
    };
    let waits = at_every_wait(
        held_by_another,
        async |stage| stage.lock.try_acquire().await,
        nothing_happens,
        |_, _, ended| is_refused(ended),
    );
    assert_eq!(waits, 4);
    let waits = at_every_wait(
        held_by_another,
        async |stage| {
            let retry = Retry::default().attempts(4).unwrap();
            stage.lock.acquire_with(&retry).await
        },
        nothing_happens,
        |_, _, ended| is_refused(ended),
    );
    assert_eq!(waits, 4 * 4 + 3 * 4, "four attempts, and three pauses");
}

/// It is given back at any moment, also the one before the drop.
#[test]
fn dropped_acquisition_that_waits() {
    let mut waits = 0;
    for freed in 0..8 {
        waits += at_every_wait(
            held_by_another,
            async |stage| stage.lock.acquire().await,
            |stage, poll| {
                if poll == freed {
                    block_on(stage.other.release()).unwrap();
                }
            },
            |_, _, ended| is_well(ended),
        );
    }
    assert!(waits > 80, "{waits}");
}

/// Another gets it as soon as whoever was first has gone, and the one after that.
#[test]
fn dropped_acquisition_with_several_waiters() {
    for freed in 0..6 {
        at_every_wait(
            held_by_another,
            async |stage| {
                let locks = LockFactory::new(Arc::clone(&stage.store), stage.clock.clone());
                let second = locks.create_lock("lock", TTL).unwrap();
                let mut first = pin!(stage.lock.acquire());
                let mut next = pin!(second.acquire());
                let mut ends = (None, None);
                poll_fn(|context| {
                    if let (None, Poll::Ready(end)) = (&ends.0, first.as_mut().poll(context)) {
                        ends.0 = Some(end);
                        return Poll::Ready(());
                    }
                    if let (None, Poll::Ready(end)) = (&ends.1, next.as_mut().poll(context)) {
                        ends.1 = Some(end);
                        return Poll::Ready(());
                    }
                    Poll::Pending
                })
                .await;
                if let Some(lease) = ends.1 {
                    lease.unwrap();
                    second.release().await.unwrap();
                }
            },
            |stage, poll| {
                if poll == freed {
                    block_on(stage.other.release()).unwrap();
                }
            },
            |_, _, _| (),
        );
    }
}

/// Replies are lost: whoever stops asking gives back what it may have been granted.
#[test]
fn dropped_acquisition_whose_replies_are_lost() {
    let lost = || StoreError::temporary("the reply was lost");
    let waits = at_every_wait(
        |stage| stage.store.fail([lost(), lost()]),
        async |stage| stage.lock.acquire().await,
        nothing_happens,
        |stage, waits, ended| {
            if ended.is_none() && waits == Waits::Nowhere {
                assert_eq!(stage.store.holder(), None, "dropped in a pause");
            }
            is_well(ended);
        },
    );
    assert_eq!(waits, 3 * 4 + 2 * 4, "three attempts, and two pauses");
    let waits = at_every_wait(
        |stage| stage.store.fail([StoreError::permanent("it is broken")]),
        async |stage| stage.lock.acquire().await,
        nothing_happens,
        |stage, _, ended| {
            if let Some(ended) = ended {
                assert!(matches!(ended, Err(Error::Storage(_))), "{ended:?}");
                assert_eq!(stage.store.holder(), None, "it was given back");
            }
        },
    );
    assert_eq!(waits, 2 * 4, "an attempt, and its undoing");
}

#[test]
fn dropped_extension() {
    for ttl in [None, Some(ms(100)), Some(ms(60_000))] {
        let ttl = ttl.map(|ttl| Ttl::new(ttl).unwrap());
        let waits = at_every_wait(
            held,
            async |stage| stage.lock.extend(ttl).await,
            nothing_happens,
            |_, _, ended| is_well(ended),
        );
        assert_eq!(waits, 4);
        at_every_wait(
            |stage| {
                held(stage);
                stage
                    .store
                    .fail([StoreError::temporary("the reply was lost")]);
            },
            async |stage| stage.lock.extend(ttl).await,
            nothing_happens,
            |_, _, _| (),
        );
    }
}

#[test]
fn dropped_release() {
    let waits = at_every_wait(
        held,
        async |stage| stage.lock.release().await,
        nothing_happens,
        |stage, waits, ended| {
            if ended.is_some() || waits == Waits::After && !stage.store.doubts().is_empty() {
                assert_eq!(stage.store.holder(), None);
            }
            is_well(ended);
        },
    );
    assert_eq!(waits, 4);
}

#[test]
fn dropped_force_release() {
    for before in [held, held_by_another] {
        let waits = at_every_wait(
            before,
            async |stage| stage.lock.force_release().await,
            nothing_happens,
            |stage, _, ended| {
                if ended.is_some() {
                    assert_eq!(stage.store.holder(), None);
                }
                is_well(ended);
            },
        );
        assert_eq!(waits, 4);
    }
}

#[test]
fn dropped_serialization() {
    let waits = at_every_wait(
        held,
        async |stage| stage.lock.serialize().await,
        nothing_happens,
        |_, _, ended| is_well(ended),
    );
    assert_eq!(waits, 4);
}

#[test]
fn dropped_query() {
    let waits = at_every_wait(
        held,
        async |stage| stage.lock.is_locked().await,
        nothing_happens,
        |_, _, ended| is_well(ended),
    );
    assert_eq!(waits, 4);
    let waits = at_every_wait(
        held,
        async |stage| stage.lock.is_held().await,
        nothing_happens,
        |_, _, ended| is_well(ended),
    );
    assert_eq!(waits, 4);
}

/// After a `run` that is dropped, the lock is free at once in a store that gives it back at once; no
/// longer taken than its ttl in any other.
fn is_given_back<T>(stage: &Stage, waits: Waits, ended: Option<&T>) {
    let doubts = stage.store.doubts();
    let was_acquiring = doubts.iter().any(|(_, step)| *step == Step::Acquire);
    let at_once = matches!(waits, Waits::Nowhere | Waits::After);
    if ended.is_some() || (at_once && !was_acquiring) {
        assert_eq!(stage.store.holder(), None, "after {doubts:?}");
    }
}

#[test]
fn dropped_run() {
    let waits = at_every_wait(
        nothing,
        async |stage| {
            let ran = stage.lock.run(async |held| {
                yield_now().await;
                held.extend(None).await.unwrap();
                yield_now().await;
                "done"
            });
            ran.await
        },
        nothing_happens,
        |stage, waits, ended| {
            is_given_back(stage, waits, ended.as_ref());
            if let Some(ended) = ended {
                assert_eq!(ended.unwrap(), "done");
            }
        },
    );
    assert_eq!(
        waits,
        3 * 4 + 2 * 4,
        "three steps, and two waits of its own"
    );
}

/// Lets the time of the machine that keeps a lease pass.
async fn outlast(stage: &Stage, ttls: u32) {
    let end = stage.clock.elapsed() + ttls * TTL;
    while stage.clock.elapsed() < end {
        yield_now().await;
    }
}

#[test]
fn dropped_run_with_auto_renewal() {
    let waits = at_every_wait(
        nothing,
        async |stage| {
            let ran = stage
                .lock
                .run(async |held| held.keep(outlast(stage, 2)).await);
            ran.await
        },
        |stage, _| stage.counts_on_what_is(),
        |stage, waits, ended| {
            is_given_back(stage, waits, ended.as_ref());
            if let Some(ended) = ended {
                ended.unwrap().unwrap();
            }
        },
    );
    assert!(
        waits > 2 * 4 + 5 * 8,
        "{waits}: two steps, and five extensions"
    );
}

/// The keeping sets the lock's own ttl again, which is a shorter one.
#[test]
fn dropped_run_with_auto_renewal_of_a_longer_lease() {
    let longer = Ttl::new(ms(60_000)).unwrap();
    let waits = at_every_wait(
        nothing,
        async |stage| {
            let ran = stage.lock.run(async |held| {
                held.extend(Some(longer)).await?;
                held.keep(outlast(stage, 1)).await
            });
            ran.await
        },
        |stage, _| stage.counts_on_what_is(),
        |stage, waits, ended| {
            is_given_back(stage, waits, ended.as_ref());
            if let Some(ended) = ended {
                ended.unwrap().unwrap();
            }
        },
    );
    assert!(waits > 0);
}

/// The work ends at each moment of the keeping; the lease is held on.
#[test]
fn dropped_run_whose_work_ends_during_auto_renewal() {
    let longer = Ttl::new(ms(60_000)).unwrap();
    for extended in [None, Some(longer)] {
        for yields in 0..12 {
            at_every_wait(
                nothing,
                async |stage| {
                    let ran = stage.lock.run(async |held| {
                        held.extend(extended).await?;
                        let kept = held.keep(async {
                            for _ in 0..yields {
                                yield_now().await;
                            }
                        });
                        kept.await?;
                        // However the last extension went.
                        stage.counts_on_what_is();
                        yield_now().await;
                        stage.counts_on_what_is();
                        Ok::<_, Error>(())
                    });
                    ran.await
                },
                |stage, _| stage.counts_on_what_is(),
                |stage, waits, ended| {
                    is_given_back(stage, waits, ended.as_ref());
                    if let Some(ended) = ended {
                        ended.unwrap().unwrap();
                    }
                },
            );
        }
    }
}

#[test]
fn dropped_run_that_loses_its_lease() {
    for revoked in 0..8 {
        at_every_wait(
            nothing,
            async |stage| {
                let ran = stage
                    .lock
                    .run(async |held| held.keep(outlast(stage, 3)).await);
                ran.await
            },
            |stage, poll| {
                if poll == revoked {
                    block_on(stage.other.force_release()).unwrap();
                }
            },
            |_, _, ended| match ended {
                // It was dropped, or revoked before it was granted.
                None | Some(Ok(Ok(()))) => {}
                Some(Err(RunError::Ended {
                    value: Err(Error::Lost { loss, .. }),
                    error: Error::Lost { loss: again, .. },
                })) => {
                    assert_eq!((loss, again), (Loss::Revoked, Loss::Revoked));
                }
                Some(ended) => panic!("{ended:?}"),
            },
        );
    }
}

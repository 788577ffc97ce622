//! The tests of every engine, in addition to the conformance suite.

use std::collections::HashSet;
use std::io::{BufRead, BufReader, Read, Write};
use std::path::PathBuf;
use std::process::{Command, Output, Stdio};
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::sync::{Arc, Mutex};
use std::thread;
use std::time::{Duration, Instant};
use std::{env, iter, mem};

use rustix::process::{Pid, Signal, kill_process};
use serde_json::{Value, json};
use verrou::blocking::LockFactory;
pub(crate) use verrou::conformance::waited;
use verrou::{Acquired, Claim, Error, Fence, Loss, Name, Owner, RunError, Store, StoreError, Ttl};
use verrou_host::{AnyStore, StoreOptions, StoreUrl, System, keep_alive};
#[cfg(feature = "tokio")]
use {
    verrou::{AsyncStore, nonblocking},
    verrou_host::{AnyAsyncStore, Tokio},
};

use crate::common::beside_tests;
use crate::proxy::Proxy;
use crate::running::{Running, descendants};
use crate::store_calls::done;

/// Longer than any operation here takes.
const LONG: Duration = Duration::from_mins(1);

/// An engine, as these tests use it.
pub(crate) trait Kind: Sync {
    /// Starts a separate server, which keeps committed data when it is killed and started again.
    fn start(&self) -> Running;

    /// Returns the URL of a store on the server at that port; `namespace` separates it from other stores there.
    fn url(&self, port: u16, namespace: &str) -> String;

    /// Returns the ttl of leases that expire while a test waits.
    fn ttl(&self) -> Duration {
        Duration::from_secs(1)
    }

    /// Returns when there is a waiter for the lock in that namespace.
    fn until_one_waits(&self, port: u16, namespace: &str);

    /// Returns how much longer than its ttl a record exists, at most.
    fn late(&self) -> Duration {
        Duration::from_millis(200)
    }
}

/// Defines a test for each of these cases, for an engine.
macro_rules! tests_of_every_engine {
    ($kind:expr) => {
        #[cfg(feature = "tokio")]
        $crate::cases::tests_of_every_engine!($kind; tasks_hold_lock_one_at_a_time, grant_of_dropped_acquire_is_released);
        $crate::cases::tests_of_every_engine!($kind;
            waiters_are_served_in_order,
            waiter_of_dropped_store_is_skipped,
            stopped_waiter_is_skipped,
            ticket_is_kept_while_owner_waits,
            retry_after_lost_answer_returns_same_grant,
            cut_connections_are_reopened,
            stopped_server_is_temporary_error,
            locks_survive_killed_server,
            thousand_waiters_share_few_connections,
            force_release_notifies_holder,
            server_of_another_kind_is_refused,
            command_works_with_server_store,
            command_waits_for_server,
            serve_notifies_waiters
        );
    };
    ($kind:expr; $($case:ident),*) => {
        $(
            #[test]
            fn $case() {
                $crate::cases::$case(&$kind);
            }
        )*
    };
}
pub(crate) use tests_of_every_engine;

pub(crate) fn open(url: &str) -> AnyStore {
    let url = url.parse().expect("a URL");
    AnyStore::open(&url, &StoreOptions::default()).expect("the server is there")
}

/// Returns the error of opening a store at `url`, with its causes.
#[track_caller]
pub(crate) fn refused(url: &str) -> String {
    let url = url.parse().expect("a URL");
    let opened = AnyStore::open(&url, &StoreOptions::default());
    let err = opened.expect_err("the server is not usable for a store");
    let causes = iter::successors(Some(&err as &dyn std::error::Error), |err| (*err).source());
    let said: Vec<_> = causes.map(ToString::to_string).collect();
    said.join(": ")
}

pub(crate) fn claim(owner: u32, ttl: Ttl) -> Claim {
    let mut bytes = [0; 16];
    bytes[..4].copy_from_slice(&owner.to_le_bytes());
    Claim::new(
        Name::new("lock").expect("a name"),
        Owner::from_bytes(bytes),
        ttl,
    )
}

fn lasting(length: Duration) -> Ttl {
    Ttl::new(length).expect("a ttl")
}

#[track_caller]
pub(crate) fn granted(reply: Result<Acquired, StoreError>) -> Option<Fence> {
    match reply {
        Ok(Acquired::Granted { fence }) => fence,
        other => panic!("expected a grant, got {other:?}"),
    }
}

/// Returns the error that ended a lease.
fn why<T>(ended: RunError<T>) -> Error {
    match ended {
        RunError::Ended { error, .. } | RunError::NotAcquired(error) => error,
    }
}

/// Returns when `is_so` is true; fails if that takes too long.
#[track_caller]
pub(crate) fn in_time(is_so: impl Fn() -> bool) {
    let began = Instant::now();
    while !is_so() {
        assert!(began.elapsed() < LONG, "the condition is not met in time");
        thread::sleep(Duration::from_millis(10));
    }
}

/// Repeats an operation while it fails with a temporary error, and returns its result.
#[track_caller]
pub(crate) fn in_the_end<T>(operation: impl Fn() -> Result<T, StoreError>) -> T {
    let began = Instant::now();
    loop {
        match operation() {
            Ok(answer) => return answer,
            Err(err) => {
                assert!(err.is_temporary(), "{err:?}");
                assert!(began.elapsed() < LONG, "{err:?}");
                thread::sleep(Duration::from_millis(10));
            }
        }
    }
}

/// Acquires the lock, when its reservation for a waiter that has left has ended.
#[cfg(feature = "postgres")]
#[track_caller]
pub(crate) fn until_granted(store: &AnyStore, claim: &Claim) -> Result<Acquired, StoreError> {
    let began = Instant::now();
    loop {
        let reply = store.acquire(claim);
        if reply.as_ref().map_or(true, |reply| reply.is_granted()) || began.elapsed() > LONG {
            return reply;
        }
        thread::sleep(Duration::from_millis(10));
    }
}

/// Waiters of several stores, each of which takes its ticket after the one before it, are served in that
/// order. A waiter that leaves the queue is skipped at once, and no newcomer overtakes the waiters.
pub(crate) fn waiters_are_served_in_order(kind: &impl Kind) {
    const STORES: usize = 4;
    const WAITERS: u32 = 16;

    let server = kind.start();
    let url = kind.url(server.port, "order");
    let stores: Vec<_> = iter::repeat_with(|| open(&url)).take(STORES).collect();
    let of = |waiter: u32| &stores[waiter as usize % STORES];
    let (holder, order) = (claim(0, Ttl::NEVER), Mutex::new(Vec::new()));
    granted(stores[0].acquire(&holder));
    let waited = |number| waited(of(number), &claim(number, Ttl::NEVER), Duration::ZERO);
    let mut waiters: Vec<_> = (1..=WAITERS)
        .map(|number| (number, waited(number)))
        .collect();
    drop(waiters.remove(4));
    thread::scope(|scope| {
        for (number, mut waiter) in waiters.into_iter().rev() {
            let (store, order) = (of(number), &order);
            scope.spawn(move || {
                let claim = claim(number, Ttl::NEVER);
                let began = Instant::now();
                while !in_the_end(|| store.acquire(&claim)).is_granted() {
                    assert!(began.elapsed() < LONG, "waiter {number} is not served");
                    waiter.wait(Duration::from_secs(20));
                }
                order.lock().unwrap().push(number);
                done(store.release(&claim));
            });
        }
        done(stores[0].release(&holder));
        let newcomer = claim(99, Ttl::NEVER);
        let reply = stores[0].acquire(&newcomer).expect("the server is there");
        assert!(!reply.is_granted() || order.lock().unwrap().len() == WAITERS as usize - 1);
        stores[0].release(&newcomer).expect("the server is there");
    });
    let order = order.into_inner().unwrap();
    let expected: Vec<_> = (1..=WAITERS).filter(|&waiter| waiter != 5).collect();
    assert_eq!(order, expected);
}

/// A lock is reserved only for a limited time for a waiter whose store was dropped.
pub(crate) fn waiter_of_dropped_store_is_skipped(kind: &impl Kind) {
    let server = kind.start();
    let url = kind.url(server.port, "gone");
    let (store, gone) = (open(&url), open(&url));
    let (holder, next) = (claim(1, Ttl::NEVER), claim(3, Ttl::NEVER));
    granted(store.acquire(&holder));
    // As after the end of its process, it does not leave the queue.
    mem::forget(waited(&gone, &claim(2, Ttl::NEVER), Duration::ZERO));
    let mut waiter = waited(&store, &next, Duration::ZERO);
    drop(gone);
    done(store.release(&holder));
    let began = Instant::now();
    while !in_the_end(|| store.acquire(&next)).is_granted() {
        assert!(began.elapsed() < LONG, "it is to be passed");
        waiter.wait(Duration::from_millis(100));
    }
}

/// A stopped waiter is skipped, and queues behind the others when it continues.
pub(crate) fn stopped_waiter_is_skipped(kind: &impl Kind) {
    let server = kind.start();
    let url = kind.url(server.port, "stopped");
    let store = open(&url);
    let holder = claim(1, Ttl::NEVER);
    // The next waiter waits once for as long as it takes, and once polls, as locks do by themselves.
    for asks_again in [false, true] {
        granted(store.acquire(&holder));
        let mut command = verrou(&url, &["run", "lock", "--", "true"]);
        let mut waiting = command.spawn().expect("it can be run");
        let process = Pid::from_child(&waiting);
        kind.until_one_waits(server.port, "stopped");
        let next = claim(2 + u32::from(asks_again), Ttl::NEVER);
        let mut waiter = waited(&store, &next, Duration::ZERO);
        kill_process(process, Signal::STOP).expect("it runs");
        done(store.release(&holder));
        let at_most = if asks_again {
            Duration::from_millis(250)
        } else {
            LONG
        };
        let began = Instant::now();
        while !in_the_end(|| store.acquire(&next)).is_granted() {
            assert!(began.elapsed() < LONG / 2, "it is to be passed");
            waiter.wait(at_most);
        }
        // Sooner than the ticket's deadline.
        let took = began.elapsed();
        assert!(took < Duration::from_secs(6), "{took:?}");
        kill_process(process, Signal::CONT).expect("it is there");
        assert!(waiting.try_wait().expect("it can be asked").is_none());
        done(store.release(&next));
        assert!(waiting.wait().expect("it ends").success());
    }
}

/// A ticket is kept as long as its owner waits, however rarely the owner calls `wait`.
pub(crate) fn ticket_is_kept_while_owner_waits(kind: &impl Kind) {
    let server = kind.start();
    let url = kind.url(server.port, "kept");
    let (store, other) = (open(&url), open(&url));
    let (holder, first, second) = (
        claim(1, Ttl::NEVER),
        claim(2, Ttl::NEVER),
        claim(3, Ttl::NEVER),
    );
    granted(store.acquire(&holder));
    let _first = waited(&store, &first, Duration::ZERO);
    // Longer than a ticket is valid without a heartbeat.
    thread::sleep(Duration::from_secs(12));
    let _second = waited(&other, &second, Duration::ZERO);
    done(store.release(&holder));
    assert!(!in_the_end(|| other.acquire(&second)).is_granted());
    granted(store.acquire(&first));
}

/// Tasks that move between threads hold the lock one at a time; some are dropped while they wait, or while they
/// hold it.
#[cfg(feature = "tokio")]
pub(crate) fn tasks_hold_lock_one_at_a_time(kind: &impl Kind) {
    const TASKS: u32 = 40;
    const PATIENCE: Duration = Duration::from_millis(30);

    /// Asserts that there is one value at a time.
    struct Inside<'a>(&'a AtomicBool);

    impl<'a> Inside<'a> {
        fn new(is_occupied: &'a AtomicBool) -> Self {
            assert!(!is_occupied.swap(true, Ordering::SeqCst), "two are inside");
            Self(is_occupied)
        }
    }

    impl Drop for Inside<'_> {
        fn drop(&mut self) {
            self.0.store(false, Ordering::SeqCst);
        }
    }

    let server = kind.start();
    // A task that is dropped while it holds the lock keeps it until the lease expires. An operation may take a
    // quarter of the ttl, so a short one fails on a busy machine.
    let (url, ttl) = (kind.url(server.port, "tasks"), 6 * kind.ttl());
    let url = url.parse().expect("a URL");
    let runtime = tokio::runtime::Runtime::new().expect("a runtime");
    runtime.block_on(async {
        let store = AnyAsyncStore::open(&url, &StoreOptions::default()).await;
        let store = store.expect("the server is there");
        let locks = nonblocking::LockFactory::new(store, Tokio);
        let is_occupied = Arc::new(AtomicBool::new(false));
        let task = |number: u32| {
            let (locks, is_occupied) = (locks.clone(), Arc::clone(&is_occupied));
            tokio::spawn(async move {
                let lock = locks.create_lock("lock", ttl).expect("a lock");
                let work = lock.run(async |held| {
                    let work = async {
                        let _inside = Inside::new(&is_occupied);
                        tokio::time::sleep(Duration::from_millis(2)).await;
                    };
                    held.keep(work).await
                });
                if number.is_multiple_of(4) {
                    tokio::time::timeout(PATIENCE, work).await.is_ok()
                } else {
                    work.await.expect("it is acquired").expect("it is kept");
                    true
                }
            })
        };
        let mut done = 0;
        for task in (0..TASKS).map(task).collect::<Vec<_>>() {
            done += u32::from(task.await.expect("it ends"));
        }
        assert!(done >= TASKS - TASKS / 4, "{done}");
    });
}

/// The grant of a dropped acquire request is released.
#[cfg(feature = "tokio")]
pub(crate) fn grant_of_dropped_acquire_is_released(kind: &impl Kind) {
    let server = kind.start();
    let url = kind.url(server.port, "dropped");
    let runtime = tokio::runtime::Runtime::new().expect("a runtime");
    let asked = url.parse().expect("a URL");
    runtime.block_on(async {
        let store = AnyAsyncStore::open(&asked, &StoreOptions::default()).await;
        let store = store.expect("it is there");
        let locks = nonblocking::LockFactory::new(store.clone(), Tokio);
        let lock = locks.create_lock("lock", "none").expect("a lock");
        for _ in 0..5 {
            server.stop();
            let soon = Duration::from_millis(50);
            let late = tokio::time::timeout(soon, Box::pin(lock.acquire())).await;
            assert!(late.is_err(), "the server is stopped");
            server.go_on();
            // Without the release, this would wait without end.
            let acquired = tokio::time::timeout(LONG, Box::pin(lock.acquire())).await;
            acquired
                .expect("the grant is released")
                .expect("it is granted");
            Box::pin(lock.release()).await.expect("it is held");
        }
        // A new request of the same owner is granted the lock, and keeps it.
        let claim = claim(1, Ttl::NEVER);
        server.stop();
        let soon = Duration::from_millis(50);
        let late = tokio::time::timeout(soon, store.acquire(&claim)).await;
        assert!(late.is_err(), "the server is stopped");
        server.go_on();
        let began = Instant::now();
        while !store.acquire(&claim).await.is_ok_and(Acquired::is_granted) {
            assert!(began.elapsed() < LONG, "it is granted");
        }
        // Longer than the default timeout.
        tokio::time::sleep(Duration::from_secs(4)).await;
        let holder = store.holders(&claim.name).await.expect("an answer").pop();
        assert!(holder.is_some() && store.holds(&claim, None).await.expect("an answer"));
    });
}

/// Many clients each increment a number that the lock guards; `add` reads and writes in two requests.
pub(crate) fn many_clients_count(
    kind: &impl Kind,
    clients: u32,
    prepare: impl FnOnce(u16),
    add: impl Fn(u16, Fence) + Sync,
) -> Running {
    let server = kind.start();
    prepare(server.port);
    // They all start at once.
    let url = format!("{}&timeout=1m", kind.url(server.port, "count"));
    let port = server.port;
    thread::scope(|scope| {
        for _ in 0..clients {
            scope.spawn(|| {
                let lock = LockFactory::new(Arc::new(open(&url)), System)
                    .create_lock("lock", "1m")
                    .expect("a lock");
                lock.run(|held| add(port, held.fence().expect("a fence")))
                    .expect("the lock is acquired, and kept");
            });
        }
    });
    server
}

/// A client that repeats a request after its answer was lost gets the same grant.
pub(crate) fn retry_after_lost_answer_returns_same_grant(kind: &impl Kind) {
    let server = kind.start();
    let proxy = Proxy::to(server.port);
    let store = open(&kind.url(proxy.port, "lost"));
    let direct = open(&kind.url(server.port, "lost"));
    // `one` outlasts the test, and has a ttl, so that it needs more requests on an engine with lease objects.
    let (one, two) = (claim(1, lasting(10 * LONG)), claim(2, Ttl::NEVER));
    // Warm the connection up, so that an operation is one request.
    let warm = granted(store.acquire(&one));
    done(store.release(&one));
    // The lost answer may be the one to a new connection's handshake instead.
    let is_lost = |error: Option<StoreError>| {
        error.map_or(0, |err| {
            assert!(err.is_temporary(), "{err:?}");
            1
        })
    };
    let mut lost = [0; 3];
    let began = Instant::now();
    while lost.iter().any(|&times| times < 3) {
        assert!(began.elapsed() < LONG, "{lost:?}");
        proxy.lose_the_next_answer();
        lost[0] += is_lost(store.acquire(&one).err());
        let held = in_the_end(|| direct.holders(&one.name));
        let held = held.first().map(|holder| holder.fence);
        let fence = granted(Ok(in_the_end(|| store.acquire(&one))));
        assert!(fence > warm);
        if let Some(held) = held {
            assert_eq!(fence, held, "it is the same grant");
        }
        assert!(!in_the_end(|| direct.acquire(&two)).is_granted());
        proxy.lose_the_next_answer();
        lost[1] += is_lost(store.extend(&one).err());
        assert!(in_the_end(|| store.extend(&one)));
        proxy.lose_the_next_answer();
        lost[2] += is_lost(store.release(&one).err());
        // This is refused if the first request has released the lock.
        in_the_end(|| store.release(&one));
        assert_eq!(in_the_end(|| direct.holders(&one.name)), []);
    }
}

/// After all connections were cut, a waiter is still served, and a holder keeps its lease.
pub(crate) fn cut_connections_are_reopened(kind: &impl Kind) {
    let server = kind.start();
    let proxy = Proxy::to(server.port);
    let (store, direct) = (
        open(&kind.url(proxy.port, "cut")),
        open(&kind.url(server.port, "cut")),
    );
    let (holder, waiter) = (claim(1, Ttl::NEVER), claim(2, Ttl::NEVER));
    granted(direct.acquire(&holder));
    thread::scope(|scope| {
        let waiting = scope.spawn(|| {
            let mut waiting = None;
            while !in_the_end(|| store.acquire(&waiter)).is_granted() {
                let waiting = waiting.get_or_insert_with(|| store.waiter(&waiter));
                let waiting = waiting.as_mut().expect("a store that can wait");
                waiting.wait(Duration::from_secs(1));
            }
        });
        for _ in 0..5 {
            proxy.cut();
            thread::sleep(Duration::from_millis(50));
        }
        done(direct.release(&holder));
        waiting.join().expect("it is served");
    });
    // The lease is kept if the server cannot be reached for less than the ttl, and lost if for longer.
    let ttl = 3 * kind.ttl();
    in_the_end(|| store.release(&waiter));
    let factory = LockFactory::new(&store, System);
    let lock = factory.create_lock("lock", ttl).expect("a lock");
    let held = lock.guard().expect("it is free");
    keep_alive(&held, || {
        proxy.cut_for_good();
        thread::sleep(ttl / 3);
        proxy.reopen();
        thread::sleep(ttl);
    })
    .expect("it is kept");
    let lost = keep_alive(&held, || {
        proxy.cut_for_good();
        let began = Instant::now();
        while !held.is_expired() {
            assert!(began.elapsed() < LONG, "the lease expires");
            thread::sleep(Duration::from_millis(10));
        }
    });
    let lost = lost.expect_err("the lease has expired");
    let lost = why(lost);
    assert!(
        matches!(
            &lost,
            Error::Lost {
                loss: Loss::Expired,
                ..
            }
        ),
        "{lost:?}"
    );
    proxy.reopen();
}

/// Each request to a stopped server fails in time; when the server continues, its state is unchanged.
pub(crate) fn stopped_server_is_temporary_error(kind: &impl Kind) {
    let server = kind.start();
    let store = open(&kind.url(server.port, "stopped"));
    let one = claim(1, lasting(Duration::from_mins(1)));
    let fence = granted(store.acquire(&one));
    server.stop();
    let began = Instant::now();
    let two = claim(2, one.ttl);
    let operations: [&dyn Fn() -> Result<(), StoreError>; 3] = [
        &|| store.acquire(&two).map(drop),
        &|| store.extend(&two).map(drop),
        &|| store.release(&two).map(drop),
    ];
    for operation in operations {
        let err = operation().expect_err("the server is stopped");
        assert!(err.is_temporary(), "{err:?}");
    }
    let took = began.elapsed();
    assert!(took < LONG / 2, "{took:?}");
    server.go_on();
    let asked = in_the_end(|| store.acquire(&one));
    assert_eq!(granted(Ok(asked)), fence);
}

/// A server that is killed and started again keeps its locks, and continues its fencing tokens.
pub(crate) fn locks_survive_killed_server(kind: &impl Kind) {
    let mut server = kind.start();
    let url = kind.url(server.port, "killed");
    let store = open(&url);
    let one = claim(1, Ttl::NEVER);
    let fence = granted(store.acquire(&one));
    server.kill();
    let err = store.extend(&one).expect_err("the server is killed");
    assert!(err.is_temporary(), "{err:?}");
    server.restart();
    assert!(!in_the_end(|| store.acquire(&claim(2, Ttl::NEVER))).is_granted());
    assert!(in_the_end(|| store.extend(&one)));
    assert!(in_the_end(|| store.release(&one)));
    assert!(granted(Ok(in_the_end(|| store.acquire(&claim(3, Ttl::NEVER))))) > fence);
}

/// A thousand waiters share a few connections, and are served in their order.
pub(crate) fn thousand_waiters_share_few_connections(kind: &impl Kind) {
    const WAITERS: u32 = 1000;
    const CONNECTIONS: usize = 4;

    let server = kind.start();
    let proxy = Proxy::to(server.port);
    let store = open(&kind.url(proxy.port, "thousand"));
    let (holder, order) = (claim(0, Ttl::NEVER), Mutex::new(Vec::new()));
    granted(store.acquire(&holder));
    let waited = |number| waited(&store, &claim(number, Ttl::NEVER), Duration::ZERO);
    let waiters: Vec<_> = (1..=WAITERS)
        .map(|number| (number, waited(number)))
        .collect();
    thread::scope(|scope| {
        for (number, mut waiter) in waiters {
            let (store, order) = (&store, &order);
            scope.spawn(move || {
                let claim = claim(number, Ttl::NEVER);
                while !in_the_end(|| store.acquire(&claim)).is_granted() {
                    waiter.wait(LONG);
                }
                order.lock().unwrap().push(number);
                in_the_end(|| store.release(&claim));
            });
        }
        done(store.release(&holder));
    });
    let order = order.into_inner().unwrap();
    assert!(order.is_sorted(), "{order:?}");
    assert_eq!(order.len(), WAITERS as usize);
    let most = proxy.most_connections();
    assert!(most <= CONNECTIONS, "{most} connections");
}

/// The holder of a force-released lock is notified at once.
pub(crate) fn force_release_notifies_holder(kind: &impl Kind) {
    let server = kind.start();
    let url = kind.url(server.port, "evicted");
    let (store, other) = (open(&url), open(&url));
    let lock = LockFactory::new(&store, System)
        .create_lock("lock", "10m")
        .expect("a lock");
    let held = lock.guard().expect("it is free");
    let lost = keep_alive(&held, || {
        assert!(other.force_release(held.lease().name(), None).unwrap());
        let began = Instant::now();
        while !held.is_expired() {
            // The next renewal is minutes away.
            assert!(
                began.elapsed() < Duration::from_secs(30),
                "the holder is notified"
            );
            thread::sleep(Duration::from_millis(1));
        }
    });
    let lost = lost.expect_err("the lease was revoked");
    let lost = why(lost);
    assert!(
        matches!(
            &lost,
            Error::Lost {
                loss: Loss::Revoked,
                ..
            }
        ),
        "{lost:?}"
    );
}

/// A server with another protocol is refused.
pub(crate) fn server_of_another_kind_is_refused(kind: &impl Kind) {
    let listener = std::net::TcpListener::bind(("127.0.0.1", 0)).expect("a free port");
    let port = listener.local_addr().expect("it has an address").port();
    thread::spawn(move || {
        for mut client in listener.incoming().flatten() {
            let _ = client.read(&mut [0; 1024]);
            let _ = client.write_all(b"HTTP/1.1 400 Bad Request\r\n\r\n");
        }
    });
    let said = refused(&kind.url(port, "wrong"));
    assert!(said.contains(&port.to_string()), "{said}");
    let said = refused(&kind.url(crate::running::free_port(), "nowhere"));
    assert!(said.contains("Connection refused"), "{said}");
    let wrong = kind.url(1, "wrong").replace("127.0.0.1", "nowhere.invalid");
    let said = refused(&wrong);
    // Whether the name lookup ends in time depends on the resolver.
    assert!(!said.contains("at this address"), "{said}");
}

/// A store at that URL, of a server at that port, does not send its password `s3cret`.
#[cfg(any(feature = "redis", feature = "etcd"))]
pub(crate) fn password_is_not_sent_unencrypted(url: impl Fn(u16) -> String) {
    let (port, received) = recorded(|_| Vec::new());
    let why = refused(&url(port));
    assert!(why.contains("tls=off") && why.contains("s://"), "{why}");
    assert!(!why.contains("s3cret"), "{why}");
    let received = received.lock().unwrap();
    assert!(
        received.is_empty(),
        "{:?}",
        String::from_utf8_lossy(&received)
    );
}

/// Starts a server that records the bytes that it receives, and answers with the result of `answer` for all bytes
/// that it has received on a connection. Returns its port and the record.
pub(crate) fn recorded(
    answer: impl Fn(&[u8]) -> Vec<u8> + Send + 'static,
) -> (u16, Arc<Mutex<Vec<u8>>>) {
    let listener = std::net::TcpListener::bind(("127.0.0.1", 0)).expect("a free port");
    let port = listener.local_addr().expect("it has an address").port();
    let received = Arc::new(Mutex::new(Vec::new()));
    let record = Arc::clone(&received);
    thread::spawn(move || {
        for mut client in listener.incoming().flatten() {
            let (mut all, mut bytes) = (Vec::new(), [0; 4096]);
            while let Ok(length @ 1..) = client.read(&mut bytes) {
                all.extend_from_slice(&bytes[..length]);
                record.lock().unwrap().extend_from_slice(&bytes[..length]);
                if client.write_all(&answer(&all)).is_err() {
                    break;
                }
            }
        }
    });
    (port, received)
}

fn verrou(url: &str, words: &[&str]) -> Command {
    let mut command = Command::new(command_path());
    command.args(["--store", url]).args(words);
    command.env_remove("VERROU_STORE").stdin(Stdio::null());
    command
}

fn ended(mut command: Command) -> Output {
    command.output().expect("the command can be run")
}

/// The command has the same results with a server as with files.
pub(crate) fn command_works_with_server_store(kind: &impl Kind) {
    let mut server = kind.start();
    let url = kind.url(server.port, "command");
    let said = |output: &Output| String::from_utf8_lossy(&output.stderr).into_owned();
    let text = |output: &Output| String::from_utf8_lossy(&output.stdout).trim().to_owned();

    let ran = ended(verrou(
        &url,
        &[
            "run",
            "lock",
            "--",
            "sh",
            "-c",
            "echo $VERROU_FENCE $VERROU_NAME; exit 3",
        ],
    ));
    assert_eq!(ran.status.code(), Some(3), "{}", said(&ran));
    assert!(text(&ran).ends_with(" lock"), "{}", text(&ran));

    let taken = ended(verrou(&url, &["acquire", "lock", "--ttl", "1m"]));
    assert_eq!(taken.status.code(), Some(0), "{}", said(&taken));
    let held = ended(verrou(&url, &["run", "lock", "--no-wait", "--", "true"]));
    assert_eq!(held.status.code(), Some(75), "{}", said(&held));
    let listed = ended(verrou(&url, &["list"]));
    assert!(
        text(&listed).contains("(verrou acquire)"),
        "{}",
        text(&listed)
    );
    let extended = ended(verrou(&url, &["extend", &text(&taken)]));
    assert_eq!(extended.status.code(), Some(0), "{}", said(&extended));
    let freed = ended(verrou(&url, &["release", &text(&extended)]));
    assert_eq!(freed.status.code(), Some(0), "{}", said(&freed));
    let again = ended(verrou(&url, &["release", &text(&extended)]));
    assert_eq!(again.status.code(), Some(77), "{}", said(&again));

    // Force-release the lock while the command runs.
    let evicted = thread::scope(|scope| {
        let running = scope.spawn(|| {
            ended(verrou(
                &url,
                &["run", "lock", "--ttl", "10m", "--", "sleep", "100"],
            ))
        });
        let store = open(&url);
        let name = Name::new("lock").expect("a name");
        let began = Instant::now();
        while store
            .holders(&name)
            .expect("the server is there")
            .pop()
            .is_none()
        {
            assert!(began.elapsed() < LONG, "the lock is acquired");
        }
        // Wait until the holder is subscribed to losses, shortly after its command starts.
        thread::sleep(Duration::from_millis(500));
        let began = Instant::now();
        let released = ended(verrou(&url, &["force-release", "lock"]));
        assert_eq!(released.status.code(), Some(0), "{}", said(&released));
        let ran = running.join().expect("it ends");
        assert!(
            began.elapsed() < Duration::from_secs(30),
            "it is notified at once"
        );
        ran
    });
    assert_eq!(evicted.status.code(), Some(76), "{}", said(&evicted));

    // Kill the server while the command runs, until the lease expires.
    let ttl = humantime::format_duration(kind.ttl()).to_string();
    let words = ["run", "lock", "--ttl", &ttl, "--", "sh", "-c"];
    let mut running = verrou(&url, &[&words[..], &["echo; exec sleep 100"]].concat());
    running.stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut running = running.spawn().expect("it can be run");
    let mut stdout = running.stdout.take().expect("it is piped");
    stdout.read_exact(&mut [0]).expect("it has the lock");
    server.kill();
    let lost = running.wait_with_output().expect("it ends");
    assert_eq!(lost.status.code(), Some(76), "{}", said(&lost));
    assert!(said(&lost).contains("lost"), "{}", said(&lost));

    let unreachable = ended(verrou(&url, &["run", "lock", "--", "true"]));
    assert_eq!(
        unreachable.status.code(),
        Some(73),
        "{}",
        said(&unreachable)
    );
}

/// With a time limit, the command waits for a server that does not answer yet; `serve` reports that an attempt may
/// succeed later.
pub(crate) fn command_waits_for_server(kind: &impl Kind) {
    let mut server = kind.start();
    let url = kind.url(server.port, "late");
    // An etcd that is killed before it has made its cluster does not start again.
    drop(open(&url));
    server.kill();
    let output = ended(verrou(&url, &["serve"]));
    assert_eq!(output.status.code(), Some(73), "{output:?}");
    let answer: Value = serde_json::from_slice(&output.stdout).expect("one line of JSON");
    assert_eq!(answer["error"]["temporary"], true, "{answer}");

    let mut run = verrou(&url, &["run", "lock", "--wait", "60s", "--", "true"]);
    let mut running = run.spawn().expect("it can be run");
    assert!(running.try_wait().expect("it can be asked").is_none());
    server.restart();
    assert!(running.wait().expect("it ends").success());
}

/// One process of `verrou serve` waits for many locks, and is notified of each.
pub(crate) fn serve_notifies_waiters(kind: &impl Kind) {
    const NAMES: u8 = 20;

    let server = kind.start();
    let url = kind.url(server.port, "served");
    let store = open(&url);
    let claims = |owner| {
        (0..NAMES).map(move |number| {
            let name = Name::new(&format!("lock {number}")).expect("a name");
            Claim::new(name, Owner::from_bytes([owner; 16]), Ttl::NEVER)
        })
    };
    for claim in claims(1) {
        granted(store.acquire(&claim));
    }
    let mut serve = verrou(&url, &["serve"]);
    let serve = serve.stdin(Stdio::piped()).stdout(Stdio::piped());
    let mut serving = serve.spawn().expect("it can be run");
    let mut requests = serving.stdin.take().expect("it is piped");
    let mut lines = BufReader::new(serving.stdout.take().expect("it is piped")).lines();
    let mut read = || -> Value {
        let line = lines.next().expect("it does not end").expect("to read");
        serde_json::from_str(&line).expect("JSON")
    };
    assert_eq!(read()["protocol"], "verrou serve");
    let claimed = |claim: &Claim| json!({ "name": claim.name.as_str(), "owner": claim.owner.to_string(), "ttl": null, "ephemeral": true });
    for (id, claim) in claims(2).enumerate() {
        let mut wait = claimed(&claim);
        wait["id"] = id.into();
        writeln!(requests, "{}", json!({ "notify": wait })).expect("to write");
    }
    let mut answers = Vec::new();
    while answers.len() < usize::from(NAMES) {
        let line = read();
        assert!(line.get("notified").is_none(), "no lock is free: {line}");
        answers.push(line);
    }
    assert!(
        answers.iter().all(|line| line["queued"] == true),
        "{answers:?}"
    );
    let own: Vec<_> = claims(2).collect();
    for (id, claim) in claims(1).enumerate() {
        // The ticket may follow the answer.
        done(store.release(&claim));
        let granted = loop {
            let line = read();
            if let Some(id) = line["notified"].as_u64() {
                let claim = claimed(&own[usize::try_from(id).expect("small")]);
                writeln!(requests, "{}", json!({ "acquire": claim })).expect("to write");
            } else if line.get("granted").is_some() {
                break line;
            }
        };
        let holder = store.holders(&claim.name).expect("an answer").pop();
        let fence = holder.and_then(|holder| holder.fence).map(Fence::get);
        assert_eq!(granted["granted"].as_u64(), fence, "lock {id}");
    }
    drop(requests);
    assert!(serving.wait().expect("it ends").success());
}

/// The environment of the command that runs under a lock does not contain the password of `url`, `s3cret`.
pub(crate) fn password_is_not_passed_to_command(url: &str) {
    let store: StoreUrl = url.parse().expect("a URL");
    let printed = format!("{store} {store:?} {:?}", open(url));
    assert!(!printed.contains("s3cret"), "{printed}");
    let scheme = url.split("://").next().expect("a scheme");
    let directory = tempfile::tempdir().expect("there is room for a directory");
    let file = directory.path().join("fence").display().to_string();
    let lock = directory.path().join("lock").display().to_string();
    for words in [
        &["run", "lock", "--", "env"][..],
        &["run", "--file", &lock, "--", "env"],
        &["fence", "check", "--file", &file, "1", "--", "env"],
    ] {
        let mut command = Command::new(command_path());
        command.env("VERROU_STORE", url).args(words);
        let output = ended(command);
        let said = [output.stdout, output.stderr].concat();
        let said = String::from_utf8_lossy(&said);
        let has_url = said.contains(&format!("VERROU_STORE={scheme}://"));
        assert!(has_url, "{said}");
        assert!(!said.contains("s3cret"), "{said}");
    }
}

/// Stops `command` and its descendants for `length`. The descendants continue first, because `command` could end
/// them if it continued at once.
fn stop_for(command: Pid, length: Duration) {
    let started = descendants(command);
    let signal = |processes: &[Pid], signal| {
        for process in processes {
            // The process may have ended.
            let _ = kill_process(*process, signal);
        }
    };
    signal(&[command], Signal::STOP);
    signal(&started, Signal::STOP);
    thread::sleep(length);
    signal(&started, Signal::CONT);
    thread::sleep(Duration::from_millis(200));
    signal(&[command], Signal::CONT);
}

/// Runs the fenced workload of Jepsen's etcd tests, on a small scale: commands that hold the lock read a list and write
/// it with one word more, and are killed and stopped; every acknowledged word is in the final list.
///
/// `script` is a shell script that uses `$WORD`, `$VERROU_FENCE` and `$PORT`, and prints `ok` when it has written.
/// `list` returns the final list. The workload runs for ten seconds, or for `VERROU_WORKLOAD_SECONDS` seconds.
pub(crate) fn acknowledged_writes_are_not_lost(
    kind: &impl Kind,
    prepare: impl FnOnce(u16),
    script: &str,
    list: impl FnOnce(u16) -> String,
) {
    const WRITERS: usize = 5;

    let seconds = env::var("VERROU_WORKLOAD_SECONDS").ok();
    let seconds = seconds
        .and_then(|seconds| seconds.parse().ok())
        .unwrap_or(10);
    let (server, over) = (kind.start(), AtomicBool::new(false));
    prepare(server.port);
    let url = kind.url(server.port, "workload");
    let script = format!("echo held; {script}");
    let ttl = humantime::format_duration(kind.ttl()).to_string();
    let (acknowledged, words) = (Mutex::new(HashSet::new()), AtomicU32::new(0));
    let faults = AtomicU32::new(0);
    thread::scope(|scope| {
        for _ in 0..WRITERS {
            scope.spawn(|| {
                while !over.load(Ordering::Relaxed) {
                    let number = words.fetch_add(1, Ordering::Relaxed);
                    let word = format!("w{number}");
                    let mut command = verrou(
                        &url,
                        &["run", "lock", "--ttl", &ttl, "--", "sh", "-c", &script],
                    );
                    command
                        .env("WORD", &word)
                        .env("PORT", server.port.to_string());
                    command.stdout(Stdio::piped()).stderr(Stdio::null());
                    let mut child = command.spawn().expect("the command can be run");
                    let process = Pid::from_child(&child);
                    let mut said = BufReader::new(child.stdout.take().expect("it is piped"));
                    // Most commands run undisturbed; the others fail at some moment, or while they hold the lock.
                    let fault = number % 5;
                    if (2..=3).contains(&fault) {
                        said.read_line(&mut String::new()).expect("it can be read");
                    }
                    if (1..=3).contains(&fault) {
                        let moment = u64::from(number * 37 % if fault == 1 { 200 } else { 40 });
                        thread::sleep(Duration::from_millis(moment));
                        faults.fetch_add(1, Ordering::Relaxed);
                    }
                    match fault {
                        // The processes that it has started continue for a while.
                        1 | 2 => drop(child.kill()),
                        3 => stop_for(process, kind.ttl() + kind.late()),
                        _ => {}
                    }
                    let mut rest = String::new();
                    said.read_to_string(&mut rest).expect("it can be read");
                    child.wait().expect("it ends");
                    if rest.contains("ok") {
                        acknowledged.lock().unwrap().insert(word);
                    }
                }
            });
        }
        thread::sleep(Duration::from_secs(seconds));
        // An engine that is slow to skip dead waiters takes longer.
        let began = Instant::now();
        while acknowledged.lock().unwrap().len() <= 5 && began.elapsed() < LONG {
            thread::sleep(Duration::from_millis(10));
        }
        over.store(true, Ordering::Relaxed);
    });
    let list = list(server.port);
    let there: HashSet<_> = list.split_whitespace().collect();
    let acknowledged = acknowledged.into_inner().unwrap();
    println!(
        "{} acknowledged, {} there, {} faults",
        acknowledged.len(),
        there.len(),
        faults.into_inner()
    );
    assert!(acknowledged.len() > 5, "hardly anything was written");
    let missing: Vec<_> = acknowledged
        .iter()
        .filter(|word| !there.contains(word.as_str()))
        .collect();
    assert!(
        missing.is_empty(),
        "{missing:?} of {} are lost",
        acknowledged.len()
    );
}

/// Returns the path of the command `verrou`, which is in another package: `cargo test --workspace` and `cargo build`
/// put it beside the tests.
pub(crate) fn command_path() -> PathBuf {
    let build = "build --package verrou-cli --features redis,postgres,etcd";
    beside_tests("verrou", build)
}

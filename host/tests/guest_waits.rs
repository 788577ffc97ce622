//! A guest waits in the queue of its host's store, is notified there, and leaves it.
#![cfg(all(feature = "wasmtime", target_os = "linux"))]

use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use pollster::block_on;
use verrou::blocking::LockFactory;
use verrou::{AsyncStore, MemoryStore, Store};
use verrou_host::component::bindings::guest::verrou::lock::locks::{
    Acquiring, HostAttempt, HostLock, Progress, Retry,
};
use verrou_host::component::locks::{Attempt, Lock, Locks, LocksView};
use verrou_host::component::wasmtime::component::{Resource, ResourceTable};
use verrou_host::component::wasmtime_wasi_io::bindings::wasi::io::poll;
use verrou_host::component::wasmtime_wasi_io::poll::DynPollable;
use verrou_host::{LeaseFileStore, StoreOptions, System};

/// Every hour, so that only a notification ends a wait in time.
const HOURLY: Retry = Retry {
    attempts: None,
    delay: Some(3_600_000_000_000),
    max_delay: None,
    timeout: None,
};

/// A guest, by the calls that it makes.
struct Guest {
    locks: Locks,
    table: ResourceTable,
}

impl Guest {
    fn new<S: Store + AsyncStore + 'static>(store: Arc<S>) -> Self {
        Self {
            locks: Locks::new(store, System),
            table: ResourceTable::new(),
        }
    }

    fn view(&mut self) -> LocksView<'_> {
        LocksView {
            locks: &mut self.locks,
            table: &mut self.table,
        }
    }

    fn lock(&mut self) -> u32 {
        let lock = self.view().create("lock".to_owned(), None);
        lock.expect("no trap").expect("a lock").rep()
    }

    fn acquire(&mut self, lock: u32) -> Option<u32> {
        let acquiring = self.view().acquire(Resource::new_own(lock), HOURLY);
        match acquiring.expect("no trap").expect("an answer") {
            Acquiring::Acquired(_) => None,
            Acquiring::Pending(attempt) => Some(attempt.rep()),
        }
    }

    fn poll(&mut self, attempt: u32) -> Progress {
        let progress = self.view().poll(Resource::<Attempt>::new_own(attempt));
        progress.expect("no trap").expect("an answer")
    }

    fn subscribe(&mut self, attempt: u32) -> Resource<DynPollable> {
        let pollable = self.view().subscribe(Resource::new_own(attempt));
        pollable.expect("no trap").expect("a store with a queue")
    }

    /// Waits as a guest does by `wasi:io/poll`.
    fn wait(&mut self, pollable: Resource<DynPollable>) {
        let waits = vec![Resource::new_borrow(pollable.rep())];
        block_on(poll::Host::poll(&mut self.table, waits)).expect("one wait");
        poll::HostPollable::drop(&mut self.table, pollable).expect("its own");
    }

    /// Acquires the lock, waiting as long as necessary.
    fn acquire_patiently(&mut self, lock: u32) {
        if let Some(attempt) = self.acquire(lock) {
            self.finish(attempt);
        }
    }

    fn finish(&mut self, attempt: u32) {
        while !matches!(self.poll(attempt), Progress::Acquired(_)) {
            let pollable = self.subscribe(attempt);
            self.wait(pollable);
        }
        self.drop_attempt(attempt);
    }

    /// Joins the queue, and makes the attempts that are due until a notification is waited for.
    fn wait_until_notified(&mut self, attempt: u32) {
        loop {
            let pollable = self.subscribe(attempt);
            let waits = vec![Resource::new_borrow(pollable.rep())];
            if !is_ready(poll::Host::poll(&mut self.table, waits)) {
                return;
            }
            assert!(matches!(self.poll(attempt), Progress::Wait(_)));
        }
    }

    fn drop_attempt(&mut self, attempt: u32) {
        HostAttempt::drop(&mut self.view(), Resource::new_own(attempt)).expect("its own");
    }

    fn release(&mut self, lock: u32) {
        let released = self.view().release(Resource::<Lock>::new_own(lock));
        released.expect("no trap").expect("its own");
    }
}

fn lease_files(directory: &Path) -> Arc<LeaseFileStore> {
    Arc::new(LeaseFileStore::open(directory, &StoreOptions::default()).expect("a store"))
}

#[test]
fn release_wakes_a_guest() {
    fn wakes<S: Store + AsyncStore + 'static>(guest: Arc<S>, other: Arc<S>) {
        let natively = LockFactory::new(other, System);
        let held = natively.create_lock("lock", "none").expect("a lock");
        held.acquire().expect("a free lock");
        let mut guest = Guest::new(guest);
        let lock = guest.lock();
        let attempt = guest.acquire(lock).expect("a held lock");
        assert!(matches!(guest.poll(attempt), Progress::Wait(_)));
        let pollable = guest.subscribe(attempt);
        thread::scope(|scope| {
            scope.spawn(|| held.release().expect("its own"));
            guest.wait(pollable);
        });
        guest.finish(attempt);
        guest.release(lock);
    }

    let store = Arc::new(MemoryStore::new(System));
    wakes(Arc::clone(&store), store);
    let directory = tempfile::tempdir().expect("a directory");
    wakes(lease_files(directory.path()), lease_files(directory.path()));
}

/// A guest that waits, and is dropped, leaves the queue at once: the waiter behind it is notified.
#[test]
fn dropped_guest_leaves_the_queue_and_its_locks() {
    let directory = tempfile::tempdir().expect("a directory");
    let native = LockFactory::new(lease_files(directory.path()), System);
    let held = native.create_lock("lock", "none").expect("a lock");
    held.acquire().expect("a free lock");
    let mut waiting = Guest::new(lease_files(directory.path()));
    let lock = waiting.lock();
    let attempt = waiting.acquire(lock).expect("a held lock");
    assert!(matches!(waiting.poll(attempt), Progress::Wait(_)));
    waiting.wait_until_notified(attempt);
    let mut behind = Guest::new(lease_files(directory.path()));
    let lock = behind.lock();
    let attempt = behind.acquire(lock).expect("a held lock");
    assert!(matches!(behind.poll(attempt), Progress::Wait(_)));
    drop(waiting);
    held.release().expect("its own");
    let began = Instant::now();
    behind.acquire_patiently(lock);
    // The hand-off reservation of a waiter that is gone would be 500 ms.
    assert!(
        began.elapsed() < Duration::from_millis(400),
        "{:?}",
        began.elapsed()
    );

    // A guest that has trapped is dropped by its host, with its locks.
    drop(behind);
    held.try_acquire()
        .expect("the lock of a dropped guest is free");
}

/// A guest that drops its attempt leaves the queue, although it keeps a pollable of it.
#[test]
fn dropped_attempt_leaves_the_queue() {
    let store = Arc::new(MemoryStore::new(System));
    let native = LockFactory::new(Arc::clone(&store), System);
    let held = native.create_lock("lock", "none").expect("a lock");
    held.acquire().expect("a free lock");
    let mut guest = Guest::new(store);
    let lock = guest.lock();
    let attempt = guest.acquire(lock).expect("a held lock");
    assert!(matches!(guest.poll(attempt), Progress::Wait(_)));
    let pollable = guest.subscribe(attempt);
    let waits = || vec![Resource::new_borrow(pollable.rep())];
    assert!(!is_ready(poll::Host::poll(&mut guest.table, waits())));
    guest.drop_attempt(attempt);
    assert!(is_ready(poll::Host::poll(&mut guest.table, waits())));
}

fn is_ready<T>(future: impl Future<Output = T>) -> bool {
    let future = std::pin::pin!(future);
    let mut context = std::task::Context::from_waker(std::task::Waker::noop());
    future.poll(&mut context).is_ready()
}

/// Three native waiters take turns; a guest beside them gets its share.
#[test]
fn guest_gets_its_share_beside_native_waiters() {
    const LENGTH: Duration = Duration::from_secs(3);

    let directory = tempfile::tempdir().expect("a directory");
    let grants = [const { AtomicU32::new(0) }; 3];
    let is_over = AtomicBool::new(false);
    let of_guest = thread::scope(|scope| {
        for count in &grants {
            scope.spawn(|| {
                let native = LockFactory::new(lease_files(directory.path()), System);
                let lock = native.create_lock("lock", "30s").expect("a lock");
                while !is_over.load(Ordering::Relaxed) {
                    lock.acquire().expect("a grant");
                    thread::sleep(Duration::from_millis(5));
                    lock.release().expect("its own");
                    count.fetch_add(1, Ordering::Relaxed);
                }
            });
        }
        let mut guest = Guest::new(lease_files(directory.path()));
        let lock = guest.lock();
        let (began, mut count) = (Instant::now(), 0);
        while began.elapsed() < LENGTH {
            guest.acquire_patiently(lock);
            thread::sleep(Duration::from_millis(5));
            guest.release(lock);
            count += 1;
        }
        is_over.store(true, Ordering::Relaxed);
        count
    });
    let natives = grants.map(AtomicU32::into_inner);
    let fair = natives.iter().sum::<u32>() / 3;
    println!("the guest had {of_guest} grants, the native waiters {natives:?}");
    assert!(of_guest * 10 >= fair * 7, "{of_guest} beside {natives:?}");
}

//! Locks in tasks that move between threads.
#![cfg(feature = "tokio")]

use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use ::tokio::task::JoinHandle;
use verrou::nonblocking::{Guard, LockFactory};
use verrou::{AsyncStore, Error, MemoryStore, Name, Retry, RunError};
use verrou_host::{AnyAsyncStore, FileLockStore, LeaseFileStore, StoreOptions, System, Tokio};

/// A hundred tasks each add one to a counter that only the lock protects.
async fn hundred_tasks_count(store: impl AsyncStore + 'static) {
    // The test does not wait for the delay, because waiters are woken.
    let retry = Retry::default().delay(Duration::from_mins(1)).unwrap();
    let locks = LockFactory::new(Arc::new(store), Tokio).retry(retry);
    let count = Arc::new(AtomicU32::new(0));
    let task = |_| {
        let (locks, count) = (locks.clone(), Arc::clone(&count));
        tokio::spawn(async move {
            let lock = locks.create_lock("lock", "none").unwrap();
            let guard = lock.guard().await.unwrap();
            let counting = async {
                let seen = count.load(Ordering::Relaxed);
                tokio::task::yield_now().await;
                count.store(seen + 1, Ordering::Relaxed);
            };
            guard.keep(counting).await.unwrap();
            guard.release().await.unwrap();
        })
    };
    for task in (0..100).map(task).collect::<Vec<_>>() {
        task.await.unwrap();
    }
    assert_eq!(count.load(Ordering::Relaxed), 100);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn hundred_tasks_count_with_every_store() {
    let directory = tempfile::tempdir().unwrap();
    let options = StoreOptions::default();
    hundred_tasks_count(MemoryStore::new(System)).await;
    hundred_tasks_count(LeaseFileStore::open(directory.path(), &options).unwrap()).await;
    hundred_tasks_count(FileLockStore::open(directory.path(), &options).unwrap()).await;
}

/// A service with a store of its configuration, which keeps a lock while it lives.
struct Service<S: AsyncStore> {
    guard: Guard<S, Tokio>,
}

impl<S: AsyncStore + Clone + 'static> Service<S> {
    async fn start(store: S) -> Result<Self, Error> {
        let lock = LockFactory::new(store, Tokio).create_lock("service", "1m")?;
        let guard = lock.guard().await?;
        Ok(Self { guard })
    }

    /// Runs in a task of its own, until its lock is lost.
    fn run(self) -> JoinHandle<Error> {
        tokio::spawn(async move { self.guard.lost().await })
    }
}

#[tokio::test]
async fn guard_of_a_store_chosen_at_run_time_moves_into_a_task() {
    let directory = tempfile::tempdir().unwrap();
    for kind in ["lease", "file"] {
        let url = format!("{kind}:{}", directory.path().join(kind).display());
        let (url, options) = (url.parse().unwrap(), StoreOptions::default());
        let store = AnyAsyncStore::open(&url, &options).await.unwrap();
        let locks = LockFactory::new(&store, Tokio);
        let other = locks.create_lock("service", "1m").unwrap();
        let running = Service::start(store.clone()).await.unwrap().run();
        assert!(other.is_locked().await.unwrap());
        if kind == "lease" {
            assert!(other.force_release(None).await.unwrap());
            let lost = running.await.unwrap();
            assert!(matches!(lost, Error::Lost { .. }), "{lost:?}");
        } else {
            running.abort();
            assert!(running.await.unwrap_err().is_cancelled());
            other.acquire().await.unwrap();
        }
    }
    let chosen: Box<dyn AsyncStore> = Box::new(MemoryStore::new(System));
    let chosen: Arc<dyn AsyncStore> = chosen.into();
    let running = Service::start(Arc::clone(&chosen)).await.unwrap().run();
    let held = chosen
        .holders(&Name::new("service").unwrap())
        .await
        .unwrap();
    assert_eq!(held.len(), 1);
    running.abort();
}

#[tokio::test]
async fn renewed_lease_outlives_its_ttl_and_lost_lease_ends_the_work() {
    let directory = tempfile::tempdir().unwrap();
    let store = LeaseFileStore::open(directory.path(), &StoreOptions::default()).unwrap();
    let locks = LockFactory::new(Arc::new(store), Tokio);
    let lock = locks.create_lock("lock", "600ms").unwrap();
    let other = locks.create_lock("lock", "1s").unwrap();
    let kept = lock.run(async |held| {
        let first_end = held.lease().ends();
        let renewed = async {
            while held.lease().ends() == first_end {
                tokio::time::sleep(Duration::from_millis(10)).await;
            }
            other.try_acquire().await
        };
        held.keep(renewed).await
    });
    let tried = kept.await.unwrap().expect("the lease is kept");
    assert!(matches!(tried, Err(Error::Timeout { .. })));

    let ended = lock.run(async |held| {
        let forced = async {
            other.force_release(None).await.unwrap();
            std::future::pending::<()>().await;
        };
        held.keep(forced).await
    });
    let Err(RunError::Ended {
        value: Err(Error::Lost { .. }),
        error: Error::Lost { .. },
    }) = ended.await
    else {
        panic!("the work is dropped when the lock is lost");
    };
}

#[tokio::test]
#[cfg(target_os = "linux")]
async fn loss_is_notified_at_once() {
    let directory = tempfile::tempdir().unwrap();
    let store = LeaseFileStore::open(directory.path(), &StoreOptions::default()).unwrap();
    let locks = LockFactory::new(Arc::new(store), Tokio);
    // The test does not wait for the renewal after a third of the ttl.
    let lock = locks.create_lock("lock", "1h").unwrap();
    let other = locks.create_lock("lock", "1h").unwrap();
    let ended = lock.run(async |held| {
        let forced = async {
            tokio::task::yield_now().await;
            other.force_release(None).await.unwrap();
            std::future::pending::<()>().await;
        };
        held.keep(forced).await
    });
    let Err(RunError::Ended {
        value: Err(Error::Lost { .. }),
        ..
    }) = ended.await
    else {
        panic!("the work is dropped when the lock is lost");
    };
}

#[tokio::test]
async fn an_acquisition_that_is_dropped_while_it_waits_leaves_nothing() {
    /// Waits for a lock that is held, and drops the waiting future at different moments.
    macro_rules! drop_waiting {
        ($store:expr) => {{
            let retry = Retry::default().delay(Duration::from_millis(1)).unwrap();
            let locks = LockFactory::new(Arc::new($store), Tokio).retry(retry);
            let holder = locks.create_lock("lock", "none").unwrap();
            for millis in 0..10 {
                holder.acquire().await.unwrap();
                let waiting = locks.create_lock("lock", "none").unwrap();
                let timeout = Duration::from_millis(millis);
                let ended = tokio::time::timeout(timeout, waiting.acquire()).await;
                assert!(ended.is_err(), "the lock is held");
                holder.release().await.unwrap();
                let next = locks.create_lock("lock", "none").unwrap();
                next.try_acquire().await.unwrap();
                next.release().await.unwrap();
            }
        }};
    }
    let directory = tempfile::tempdir().unwrap();
    let options = StoreOptions::default();
    drop_waiting!(LeaseFileStore::open(directory.path(), &options).unwrap());
    drop_waiting!(FileLockStore::open(directory.path(), &options).unwrap());
}

#[tokio::test]
#[cfg(target_os = "linux")]
async fn thousands_of_tasks_wait_without_threads_and_in_order() {
    const TASKS: usize = 3_000;

    let threads = || std::fs::read_dir("/proc/self/task").unwrap().count();
    let directory = tempfile::tempdir().unwrap();
    let store = LeaseFileStore::open(directory.path(), &StoreOptions::default()).unwrap();
    // The test does not wait for the delay, because waiters are woken.
    let retry = Retry::default().delay(Duration::from_mins(1)).unwrap();
    let locks = LockFactory::new(Arc::new(store), Tokio).retry(retry);
    let holder = locks.create_lock("lock", "none").unwrap();
    holder.acquire().await.unwrap();
    let before = threads();
    let started = Arc::new(AtomicU32::new(0));
    let tasks: Vec<_> = (0..TASKS)
        .map(|_| {
            let (locks, started) = (locks.clone(), Arc::clone(&started));
            tokio::spawn(async move {
                let lock = locks.create_lock("lock", "none").unwrap();
                started.fetch_add(1, Ordering::Relaxed);
                let lease = lock.acquire().await.unwrap();
                lock.release().await.unwrap();
                lease.fence()
            })
        })
        .collect();
    while started.load(Ordering::Relaxed) < u32::try_from(TASKS).unwrap() {
        tokio::task::yield_now().await;
    }
    // One thread serves all tasks; the others are those of concurrent tests.
    assert!(threads() < before + 20);
    holder.release().await.unwrap();
    let mut fences = Vec::new();
    for task in tasks {
        fences.push(task.await.unwrap());
    }
    assert!(
        fences.is_sorted(),
        "tasks are served in the order of their arrival"
    );
}

/// Another process is stopped inside an operation on one name's file: operations on that name wait, and
/// the thread continues with other names.
#[tokio::test]
#[cfg(target_os = "linux")]
async fn a_busy_lease_file_holds_up_no_other_task() {
    use std::fs::File;
    use std::future::poll_fn;
    use std::pin::pin;
    use std::task::Poll;

    use rustix::fs::{FlockOperation, flock};
    use verrou::{AsyncStore, Claim, Name, Owner, Store, Ttl};
    use verrou_host::FileError;

    macro_rules! is_pending {
        ($future:expr) => {
            poll_fn(|context| Poll::Ready($future.as_mut().poll(context).is_pending())).await
        };
    }
    let claim = |name: &str, owner| {
        Claim::new(
            Name::new(name).unwrap(),
            Owner::from_bytes([owner; 16]),
            Ttl::NEVER,
        )
        .ephemeral(true)
    };
    let (busy, other) = (claim("busy", 1), claim("other", 1));
    let directory = tempfile::tempdir().unwrap();
    let open = || LeaseFileStore::open(directory.path(), &StoreOptions::default()).unwrap();
    let store = open();
    assert!(Store::acquire(&store, &busy).unwrap().is_granted());
    assert!(Store::release(&store, &busy).unwrap());
    let file = std::fs::read_dir(directory.path()).unwrap();
    let mut files = file.map(|entry| entry.unwrap().path());
    let path = files.find(|path| path.extension().is_some_and(|it| it == "lease"));
    let stopped = File::open(path.unwrap()).unwrap();
    let stop = || flock(&stopped, FlockOperation::LockExclusive).unwrap();
    let go_on = || flock(&stopped, FlockOperation::Unlock).unwrap();

    stop();
    let mut acquired = pin!(AsyncStore::acquire(&store, &busy));
    assert!(is_pending!(acquired));
    assert!(
        AsyncStore::acquire(&store, &other)
            .await
            .unwrap()
            .is_granted()
    );
    assert!(is_pending!(acquired));
    go_on();
    assert!(acquired.await.unwrap().is_granted());

    stop();
    let mut extended = pin!(AsyncStore::extend(&store, &busy));
    assert!(is_pending!(extended));
    let failed = extended.await.unwrap_err();
    assert!(failed.is_temporary());
    let waited = match failed.get_ref().downcast_ref() {
        Some(FileError::Busy { waited, .. }) => *waited,
        _ => panic!("{failed:?}"),
    };
    assert!(Duration::from_millis(200) <= waited, "{waited:?}");

    // Dropping the future still releases the lock.
    let mut released = Box::pin(AsyncStore::release(&store, &busy));
    assert!(is_pending!(released));
    drop(released);
    go_on();
    let next = Store::acquire(&open(), &claim("busy", 2));
    assert!(next.unwrap().is_granted());
}

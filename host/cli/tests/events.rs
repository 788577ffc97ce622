//! Waiting without notifications of changes, because the user's inotify(7) instances are used up.
#![cfg(target_os = "linux")]

mod common;
#[path = "../../tests/common/sleepless.rs"]
mod sleepless;

use std::future::Future;
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::mpsc;
use std::task::{Context, Waker};
use std::thread;
use std::time::Duration;

use common::{KINDS, TestDir, ends_with, open_store};
use rustix::fs::inotify::{CreateFlags, init};
use sleepless::Sleepless;
use verrou::blocking::LockFactory;
use verrou::{Retry, nonblocking};
use verrou_host::{AnyAsyncStore, StoreOptions, StoreUrl, System};

/// One test for all, because the limit is that of the user.
#[test]
fn waiters_are_served_without_inotify_instances() {
    const THREADS: u32 = 4;
    const ROUNDS: u32 = 50;

    let mut used_up = Vec::new();
    while let Ok(instance) = init(CreateFlags::CLOEXEC) {
        used_up.push(instance);
    }
    for kind in KINDS {
        let dir = TestDir::new(kind);
        let stores = [(); 2].map(|()| open_store(&dir.store()));
        let (inside, done) = (AtomicU32::new(0), AtomicU32::new(0));
        thread::scope(|scope| {
            for number in 0..THREADS {
                let store = &stores[(number % 2) as usize];
                let (inside, done) = (&inside, &done);
                scope.spawn(move || {
                    let lock = LockFactory::new(store, System)
                        .create_lock("lock", "1m")
                        .unwrap();
                    for _ in 0..ROUNDS {
                        lock.run(|_| {
                            assert_eq!(inside.fetch_add(1, Ordering::SeqCst), 0);
                            inside.fetch_sub(1, Ordering::SeqCst);
                        })
                        .unwrap();
                        done.fetch_add(1, Ordering::SeqCst);
                    }
                });
            }
        });
        assert_eq!(done.into_inner(), THREADS * ROUNDS, "{kind}");
        // Other processes get no instance either.
        let (holder, _) = dir.start(&[], "echo $$ > pid; sleep 0.2");
        ends_with(&mut dir.run(&["--wait", "30s"], "true"), 0);
        drop(holder);
        tasks_are_woken(&dir.store().parse().unwrap());
    }
    drop(used_up);
}

/// Tasks of two stores, which stand for two processes, wait for a lock that is released.
fn tasks_are_woken(url: &StoreUrl) {
    let url = url.clone();
    let (sender, ended) = mpsc::channel();
    thread::spawn(move || {
        let open =
            || pollster::block_on(AnyAsyncStore::open(&url, &StoreOptions::default())).unwrap();
        let locks = [(); 4].map(|()| {
            let retry = Retry::default().delay(Duration::from_hours(1)).unwrap();
            let locks = nonblocking::LockFactory::new(open(), Sleepless).retry(retry);
            locks.create_lock("tasks", "none").unwrap()
        });
        let [held, waiting @ ..] = &locks;
        pollster::block_on(held.acquire()).unwrap();
        let mut waits: Vec<_> = waiting
            .iter()
            .map(|lock| Box::pin(lock.acquire()))
            .collect();
        for wait in &mut waits {
            let began = wait.as_mut().poll(&mut Context::from_waker(Waker::noop()));
            assert!(began.is_pending());
        }
        let mut holder = held;
        for (wait, lock) in waits.into_iter().zip(waiting) {
            pollster::block_on(holder.release()).unwrap();
            pollster::block_on(wait).unwrap();
            holder = lock;
        }
        pollster::block_on(holder.release()).unwrap();
        sender.send(()).unwrap();
    });
    let ended = ended.recv_timeout(Duration::from_secs(30));
    assert_eq!(ended, Ok(()), "all tasks have had the lock");
}

//! Waiting where the kernel tells of no changes any more, because the user has too many listeners.
#![cfg(target_os = "linux")]

mod common;

use std::sync::atomic::{AtomicU32, Ordering};
use std::thread;

use common::{KINDS, Place, ends_with};
use rustix::fs::inotify::{CreateFlags, init};
use verrou::blocking::LockFactory;
use verrou_host::{FileStore, StoreOptions, StoreUrl, System};

/// One test: what it uses up is the whole user's.
#[test]
fn waiting_goes_on_without_events() {
    const THREADS: u32 = 4;
    const ROUNDS: u32 = 50;

    let mut used_up = Vec::new();
    while let Ok(instance) = init(CreateFlags::CLOEXEC) {
        used_up.push(instance);
    }
    for kind in KINDS {
        let place = Place::new(kind);
        let url: StoreUrl = format!("{kind}:{}", place.locks().display())
            .parse()
            .unwrap();
        let stores = [(); 2].map(|()| FileStore::open(&url, &StoreOptions::default()).unwrap());
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
        // A process of its own has none either.
        let (holder, _) = place.start(&[], "echo $$ > pid; sleep 0.2");
        ends_with(&mut place.run(&["--wait", "30s"], "true"), 0);
        drop(holder);
    }
    drop(used_up);
}

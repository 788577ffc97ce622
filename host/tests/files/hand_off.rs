//! The hand-off of a released lock to its waiters.

use std::fs::{self, File};
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::time::{Duration, Instant};

use verrou::Store;
use verrou::conformance::{TestClock, waited};

use crate::lock_files::{KINDS, locks, only_file, open_with};
use crate::store_calls::{done, granted, refused};
use crate::{SECOND, claim, directory};

/// Returns stores of both kinds, two of each, that share one clock.
fn pairs(directory: &Path, clock: &TestClock) -> [[Box<dyn Store>; 2]; 2] {
    KINDS.map(|kind| [(); 2].map(|()| open_with(kind, directory, clock)))
}

#[test]
fn released_lock_is_reserved_for_the_head_waiter() {
    let (directory, clock) = (directory(), TestClock::still());
    for [here, there] in pairs(directory.path(), &clock) {
        let [held, first, second, newcomer] = [1, 2, 3, 4].map(claim);
        granted(here.acquire(&held));
        let head_waiter = waited(&there, &first, Duration::ZERO);
        let next_waiter = waited(&here, &second, Duration::ZERO);
        done(here.release(&held));
        refused(&here.acquire(&newcomer));
        refused(&here.acquire(&second));
        clock.advance(Duration::from_millis(199));
        refused(&here.acquire(&second));
        clock.advance(Duration::from_millis(1));
        refused(&here.acquire(&newcomer));
        // The head waiter does not come.
        granted(here.acquire(&second));
        next_waiter.granted();
        done(here.release(&second));
        granted(there.acquire(&first));
        head_waiter.granted();
    }
}

/// Processes that watch the file are notified of the change; unlocking alone changes no file.
#[test]
fn release_with_a_waiter_changes_the_file() {
    let directory = directory();
    let (here, there) = (locks(directory.path()), locks(directory.path()));
    granted(here.acquire(&claim(1)));
    let path = only_file(directory.path(), "lock");
    let waiter = waited(&there, &claim(2), Duration::ZERO);
    let touch = || fs::read(&path).unwrap()[1544..1552].to_owned();
    let before = touch();
    done(here.release(&claim(1)));
    assert_ne!(touch(), before);
    granted(there.acquire(&claim(2)));
    waiter.granted();
}

/// The kernel reports a write, and the end of a process, a moment before the lock is free.
#[test]
fn notified_waiter_retries_until_lock_is_free() {
    const ATTEMPTS: u32 = 10;

    let directory = directory();
    let store = locks(directory.path());
    granted(store.acquire(&claim(1)));
    done(store.release(&claim(1)));
    let path = only_file(directory.path(), "lock");
    let file = File::options().read(true).write(true).open(&path).unwrap();
    file.lock().unwrap();
    let mut waiter = store.waiter(&claim(2)).unwrap();
    let mut attempt = || {
        refused(&store.acquire(&claim(2)));
        waiter.wait(SECOND);
    };
    // After three attempts it watches the file.
    for _ in 0..3 {
        attempt();
    }
    file.write_all_at(b"touched", 1544).unwrap();
    let began = Instant::now();
    for _ in 0..ATTEMPTS {
        attempt();
    }
    // A wait without a notification takes a quarter of a second, because programs that do not use the
    // queue may have unlocked the file.
    assert!(began.elapsed() < ATTEMPTS / 2 * SECOND / 4);
    file.unlock().unwrap();
    granted(store.acquire(&claim(2)));
    waiter.granted();
}

//! The end of a lease: by a boot, with its process, by force.

use std::fs::{self, File};
use std::time::Duration;

use verrou::conformance::TestClock;
use verrou::{Fence, Store, Ttl};
use verrou_host::FileError;

use crate::lock_files::{
    BOOT_AT, KINDS, PROCESS_AT, leases, lock_file, locks, only_file, open, rewrite,
};
use crate::store_calls::{done, granted, not_done, refused};
use crate::{SECOND, claim, detached, directory, file_error};

#[test]
fn lease_ends_with_the_boot_and_its_fence_does_not() {
    let directory = directory();
    let store = leases(directory.path());
    let before = granted(store.acquire(&detached(1)));
    let path = only_file(directory.path(), "lease");
    let last_allotted = u64::from_le_bytes(
        fs::read(&path).unwrap()[1024 + 24..][..8]
            .try_into()
            .unwrap(),
    );
    rewrite(&path, BOOT_AT, &[0xab; 16]);
    assert_eq!(store.holders(&claim(1).name).unwrap().pop(), None);
    not_done(&store.extend(&detached(1)));
    let after = granted(store.acquire(&detached(2)));
    assert!(
        after > last_allotted,
        "grants up to there may have been lost with the power"
    );
    assert!(after > before);
}

#[test]
fn lease_of_another_time_namespace_never_counts_as_expired() {
    let directory = directory();
    let clock = TestClock::running();
    let (one, two) = (
        leases(directory.path()).with_clock(clock.clone()),
        leases(directory.path()).with_clock(clock.clone()),
    );
    let ttl = Ttl::new(SECOND).unwrap();
    granted(one.acquire(&claim(1).with_ttl(ttl)));
    let path = only_file(directory.path(), "lease");
    rewrite(&path, 64, &4711u64.to_le_bytes());
    clock.advance(2 * SECOND);
    refused(&two.acquire(&claim(2)));
    drop(one);
    granted(two.acquire(&detached(2).with_ttl(ttl)));
    rewrite(&path, 64, &4711u64.to_le_bytes());
    let err = two.acquire(&claim(3)).unwrap_err();
    assert!(
        matches!(file_error(&err), FileError::ForeignClock { .. }),
        "{err}"
    );
    done(two.force_release(&claim(1).name, None));
    granted(two.acquire(&claim(3)));
}

/// Process IDs are reused, and differ between namespaces.
#[test]
fn liveness_of_a_holder_does_not_depend_on_its_process_id() {
    let this = std::process::id();
    for kind in KINDS {
        let directory = directory();
        let (one, two) = (open(kind, directory.path()), open(kind, directory.path()));
        granted(one.acquire(&claim(1)));
        let path = lock_file(kind, directory.path());
        for id in [0, 1, this, 4_000_000, u32::MAX] {
            rewrite(&path, PROCESS_AT, &id.to_le_bytes());
            refused(&two.acquire(&claim(2)));
        }
        rewrite(&path, PROCESS_AT, &this.to_le_bytes());
        drop(one);
        granted(two.acquire(&claim(2)));
    }
}

/// POSIX locks of fcntl(2), which belong to a process, would be lost.
#[test]
fn a_lease_is_not_lost_when_its_file_is_opened_and_closed_elsewhere() {
    let directory = directory();
    let (one, two) = (leases(directory.path()), leases(directory.path()));
    granted(one.acquire(&claim(1)));
    drop(File::open(only_file(directory.path(), "lease")).unwrap());
    refused(&two.acquire(&claim(2)));
    done(one.release(&claim(1)));
}

/// That clock cannot be set, and counts while the machine is suspended.
#[cfg(target_os = "linux")]
#[test]
fn system_clock_is_the_time_since_boot() {
    use rustix::time::{ClockId, clock_gettime};
    use verrou::Clock;

    let since_start = || Duration::try_from(clock_gettime(ClockId::Boottime)).unwrap();
    let before = since_start();
    let now = verrou_host::System.now().since_start();
    assert!((before..=since_start()).contains(&now), "{now:?}");
}

#[test]
fn force_release_with_a_fence_affects_only_that_grant() {
    let directory = directory();
    let store = leases(directory.path());
    let seen = granted(store.acquire(&claim(1)));
    done(store.release(&claim(1)));
    let now = granted(store.acquire(&claim(2)));
    not_done(&store.force_release(&claim(1).name, Fence::new(seen)));
    done(store.force_release(&claim(1).name, Fence::new(now)));
    not_done(&store.force_release(&claim(1).name, None));
    not_done(&store.extend(&claim(2)));
    not_done(&store.release(&claim(2)));
}

#[test]
fn kernel_lock_cannot_be_force_released() {
    let directory = directory();
    let (one, two) = (locks(directory.path()), locks(directory.path()));
    granted(one.acquire(&claim(1)));
    let err = two.force_release(&claim(1).name, None).unwrap_err();
    assert!(
        matches!(file_error(&err), FileError::NotEvictable { .. }),
        "{err}"
    );
    done(one.extend(&claim(1)));
    done(one.release(&claim(1)));
    not_done(&two.force_release(&claim(1).name, None));
}

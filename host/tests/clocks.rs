//! Leases of the stores in files at any time of their clock, at any wall clock, and after another boot.
#![cfg(target_os = "linux")]

#[path = "common/lock_files.rs"]
mod lock_files;
#[path = "common/store_calls.rs"]
mod store_calls;

use std::fs;
use std::ops::ControlFlow;
use std::time::Duration;

use lock_files::{BOOT_AT, KINDS, leases, lock_file, open, open_with, rewrite};
use store_calls::{claim, done, granted, not_done, refused};
use verrou::blocking::{Host, LockFactory};
use verrou::conformance::TestClock;
use verrou::{Clock, Error, Loss, SerializedLock, Store, Ttl};
use verrou_host::System;

const HOUR: Duration = Duration::from_hours(1);

#[test]
fn shortest_and_longest_ttls_count_from_any_time_of_the_clock() {
    const SHORTEST: Duration = Duration::from_millis(1);
    // The nanoseconds of the clock at the grant, up to 34 days before the end of its range.
    const STARTS: [u64; 4] = [
        0,
        u64::MAX / 2,
        u64::MAX / 2 + 1,
        u64::MAX - 3_000_000_000_000_000,
    ];

    let ttls = [SHORTEST, Ttl::MAX].map(|ttl| Ttl::new(ttl).unwrap());
    for kind in KINDS {
        for start in STARTS {
            for ttl in [ttls[0], ttls[1], Ttl::NEVER] {
                let directory = tempfile::tempdir().unwrap();
                let clock = TestClock::still();
                let [one, two] = [(); 2].map(|()| open_with(kind, directory.path(), &clock));
                clock.advance(Duration::from_nanos(start));
                let wanted = claim("lock", 2);
                for is_ephemeral in [true, false] {
                    let what = format!("{kind}, a ttl of {ttl} at {start} ns, {is_ephemeral}");
                    let mine = claim("lock", 1).with_ttl(ttl).ephemeral(is_ephemeral);
                    let fence = granted(one.acquire(&mine));
                    let is_short = ttl == ttls[0];
                    clock.advance(if is_short { SHORTEST } else { 1000 * SHORTEST });
                    let is_free = is_short && kind == "lease";
                    let reply = two.acquire(&wanted);
                    if is_free {
                        assert!(granted(reply) > fence, "{what}");
                    } else {
                        refused(&reply);
                    }
                    assert_eq!(one.extend(&mine).unwrap(), !is_short, "{what}");
                    assert!(!two.holders(&mine.name).unwrap().is_empty() || is_short);
                    // A late release is refused, and frees a lock of the kernel.
                    assert_eq!(one.release(&mine).unwrap(), !is_short, "{what}");
                    assert_eq!(two.release(&wanted).unwrap(), is_free, "{what}");
                }
            }
        }
    }
}

/// The renewal revives the lease, unless another owner was granted the lock meanwhile.
#[test]
fn renewed_lease_survives_a_suspension_unless_it_was_granted_meanwhile() {
    const TTL: Duration = Duration::from_secs(30);
    const YEAR: Duration = Duration::from_hours(24 * 365);

    for kind in KINDS {
        for suspended in [TTL / 2, TTL, TTL + Duration::from_nanos(1), YEAR] {
            for is_wanted in [false, true] {
                let what = format!("{kind}, suspended for {suspended:?}, {is_wanted}");
                let directory = tempfile::tempdir().unwrap();
                let clock = TestClock::still();
                let [here, there] = [(); 2].map(|()| open_with(kind, directory.path(), &clock));
                let [held, other] = [&here, &there].map(|store| {
                    let locks = LockFactory::new(&**store, clock.clone());
                    locks.create_lock("lock", TTL).unwrap()
                });
                let guard = held.guard().unwrap();
                let fence = guard.fence();
                let (mut is_over, mut is_taken) = (false, false);
                let kept = guard.keep(|_, _| {
                    if is_over {
                        return ControlFlow::Break(());
                    }
                    clock.advance(suspended);
                    assert_eq!(guard.is_expired(), suspended >= TTL, "{what}");
                    is_taken = is_wanted && other.try_acquire().is_ok();
                    if is_taken {
                        other.release().unwrap();
                    }
                    is_over = true;
                    ControlFlow::Continue(())
                });
                // A lock of the kernel stays its holder's until the release.
                let may_be_taken = suspended >= TTL && kind == "lease";
                assert_eq!(is_taken, is_wanted && may_be_taken, "{what}");
                if is_taken {
                    let is_right =
                        matches!(&kept, Err(Error::Lost { loss, .. }) if *loss == Loss::Expired);
                    assert!(is_right, "{what}: {kept:?}");
                } else {
                    kept.unwrap();
                    assert!(!guard.is_expired() && guard.fence() == fence, "{what}");
                }
                assert_eq!(guard.release().is_ok(), !is_taken, "{what}");
            }
        }
    }
}

#[test]
fn wall_clock_times_of_a_record_are_only_displayed() {
    const END_AT: usize = 88;
    const GRANT_AT: usize = 96;

    let directory = tempfile::tempdir().unwrap();
    let [one, two] = [(); 2].map(|()| leases(directory.path()));
    let mine = claim("lock", 1).with_ttl(Ttl::new(HOUR).unwrap());
    let (mine, wanted) = (mine.ephemeral(false), claim("lock", 2));
    granted(one.acquire(&mine));
    let path = lock_file("lease", directory.path());
    for at in [END_AT, GRANT_AT] {
        for millis in [0, 1, u64::MAX / 2, u64::MAX, 1_763_892_000_000] {
            rewrite(&path, at, &millis.to_le_bytes());
            refused(&two.acquire(&wanted));
            not_done(&two.extend(&wanted));
            not_done(&two.release(&wanted));
            let holder = two.holders(&mine.name).unwrap().pop().expect("a holder");
            let left = holder.remaining.unwrap();
            assert!(left > Duration::from_mins(59), "{millis}: {left:?}");
            done(one.extend(&mine));
        }
    }
}

#[test]
fn lock_is_restored_whatever_the_wall_clock_showed() {
    const YEARS: i64 = i32::MAX as i64;

    let directory = tempfile::tempdir().unwrap();
    let store = leases(directory.path());
    let locks = LockFactory::new(&store, System);
    let lock = locks.create_lock("lock", "1h").unwrap();
    lock.acquire().unwrap();
    let now = System.now();
    let lease = lock.serialize().unwrap().lease(now, System.wall_clock());
    for step in [-3600, 3600, YEARS, -YEARS] {
        let wall = Duration::from_secs(System.wall_clock().as_secs().saturating_add_signed(step));
        let text = SerializedLock::new(&lease, lock.ttl(), now, wall).to_string();
        let restored = locks.restore_lock(&text.parse().unwrap());
        let extended = restored.extend(restored.ttl());
        assert!(extended.is_ok(), "{step} s: {extended:?}");
    }
    lock.release().unwrap();
}

#[test]
fn lock_of_a_live_holder_is_held_whatever_boot_its_record_names() {
    for kind in KINDS {
        for ttl in [Ttl::NEVER, Ttl::new(HOUR).unwrap()] {
            let directory = tempfile::tempdir().unwrap();
            let [one, two] = [(); 2].map(|()| open(kind, directory.path()));
            let mine = claim("lock", 1).with_ttl(ttl);
            granted(one.acquire(&mine));
            rewrite(&lock_file(kind, directory.path()), BOOT_AT, &[0xab; 16]);
            refused(&two.acquire(&claim("lock", 2)));
            assert!(!two.holders(&mine.name).unwrap().is_empty());
            done(one.extend(&mine));
            done(one.release(&mine));
        }
    }
}

/// Writes may be lost with the power, also those of the counter.
#[test]
fn only_the_fence_of_a_lock_outlives_the_boot() {
    for kind in KINDS {
        for (what, ttl, is_ephemeral, is_released) in [
            (
                "detached for an hour",
                Ttl::new(HOUR).unwrap(),
                false,
                false,
            ),
            ("detached without a ttl", Ttl::NEVER, false, false),
            ("of a dead process", Ttl::NEVER, true, false),
            ("released", Ttl::NEVER, true, true),
        ] {
            let directory = tempfile::tempdir().unwrap();
            let mine = claim("lock", 1).with_ttl(ttl).ephemeral(is_ephemeral);
            let mut last = 0;
            let store = open(kind, directory.path());
            for _ in 0..3 {
                last = granted(store.acquire(&mine));
                if is_released {
                    done(store.release(&mine));
                }
            }
            let path = lock_file(kind, directory.path());
            granted(store.acquire(&claim("other", 3)));
            drop(store);
            rewrite(&path, BOOT_AT, &[0xab; 16]);
            for name in ["lock", "lock", "another"] {
                if name == "another" {
                    fs::remove_file(directory.path().join("fences")).unwrap();
                }
                let next = granted(open(kind, directory.path()).acquire(&claim(name, 2)));
                assert!(next > last, "{kind}, {what}, {name}: {next} after {last}");
                last = next;
            }
        }
    }
}

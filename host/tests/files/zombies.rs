//! Holders that still live when their lease has expired.

use verrou::conformance::TestClock;
use verrou::{Fence, Holder, Store, Ttl};
use verrou_host::{HostStore, LeaseFileStore, StoreOptions, Zombies};

use crate::store_calls::{done, granted, not_done, refused};
use crate::{SECOND, claim, directory};

#[test]
fn a_zombie_is_taken_over_or_waited_for() {
    let directory = directory();
    let clock = TestClock::running();
    let open = |zombies| {
        let mut options = StoreOptions::default();
        options.zombies = zombies;
        options.label = Some("work".to_owned());
        let opened = LeaseFileStore::open(directory.path(), &options);
        opened.unwrap().with_clock(clock.clone())
    };
    let (zombie, patient, bold) = (
        open(Zombies::Take),
        open(Zombies::Wait),
        open(Zombies::Take),
    );
    let ttl = Ttl::new(SECOND).unwrap();
    let fence = granted(zombie.acquire(&claim(1).with_ttl(ttl)));
    clock.advance(SECOND);
    refused(&patient.acquire(&claim(2)));
    assert!(patient.holders(&claim(2).name).unwrap().pop().is_some());
    assert!(bold.holders(&claim(2).name).unwrap().pop().is_none());
    granted(bold.acquire(&claim(3)));
    let Holder {
        fence: taken,
        process,
        ..
    } = bold.taken_over(&claim(3)).expect("a zombie");
    assert_eq!(taken, Fence::new(fence));
    assert_eq!(process.unwrap().command, "work");
    done(bold.release(&claim(3)));
    assert_eq!(bold.taken_over(&claim(3)), None);

    granted(zombie.acquire(&claim(4).with_ttl(ttl)));
    clock.advance(SECOND);
    refused(&patient.acquire(&claim(2)));
    drop(zombie);
    granted(patient.acquire(&claim(2)));
    assert_eq!(patient.taken_over(&claim(2)), None);
    done(patient.release(&claim(2)));
}

#[test]
fn owner_takes_over_its_own_expired_lease_silently() {
    for zombies in [Zombies::Take, Zombies::Wait] {
        let directory = directory();
        let clock = TestClock::running();
        let mut options = StoreOptions::default();
        options.zombies = zombies;
        let store = LeaseFileStore::open(directory.path(), &options).unwrap();
        let store = store.with_clock(clock.clone());
        let ttl = Ttl::new(SECOND).unwrap();
        let late = granted(store.acquire(&claim(1).with_ttl(ttl)));
        clock.advance(SECOND);
        assert!(late < granted(store.acquire(&claim(1).with_ttl(ttl))));
        assert_eq!(store.taken_over(&claim(1)), None);
    }
}

#[test]
fn force_release_of_zombie_depends_on_zombie_policy() {
    let directory = directory();
    let clock = TestClock::running();
    let open = |zombies| {
        let mut options = StoreOptions::default();
        options.zombies = zombies;
        let opened = LeaseFileStore::open(directory.path(), &options);
        opened.unwrap().with_clock(clock.clone())
    };
    let (patient, bold) = (open(Zombies::Wait), open(Zombies::Take));
    let ttl = Ttl::new(SECOND).unwrap();
    let zombie = open(Zombies::Take);
    granted(zombie.acquire(&claim(1).with_ttl(ttl)));
    clock.advance(SECOND);
    refused(&patient.acquire(&claim(2)));
    not_done(&bold.force_release(&claim(1).name, None));
    // The lock is free for the store that waits for zombies.
    granted(patient.acquire(&claim(2)));
    done(patient.release(&claim(2)));

    granted(zombie.acquire(&claim(3).with_ttl(ttl)));
    clock.advance(SECOND);
    done(patient.force_release(&claim(3).name, None));
    granted(patient.acquire(&claim(2)));
}

//! The waits for the next renewal use `CLOCK_BOOTTIME`, which counts while the machine is suspended.
//!
//! No test can suspend the machine. `/proc/PID/fdinfo` lists the clock and the due time of a timer:
//! `timerfd_create(2)`.
#![cfg(target_os = "linux")]

mod common;

use std::fs;
use std::time::Duration;

use common::{TestDir, eventually};
use rustix::process::{Signal, kill_process};
use verrou::blocking::LockFactory;
use verrou_host::{LeaseFileStore, StoreOptions, System, keep_alive};

/// The kernel's number of `CLOCK_BOOTTIME`.
const BOOTTIME: &str = "clockid: 7";

/// Returns the seconds until each armed timer of `CLOCK_BOOTTIME` of the process `id` is due.
fn due(id: &str) -> Vec<u64> {
    let Ok(descriptors) = fs::read_dir(format!("/proc/{id}/fdinfo")) else {
        return Vec::new();
    };
    let infos = descriptors.filter_map(|it| fs::read_to_string(it.ok()?.path()).ok());
    let due = |info: String| {
        info.lines().any(|line| line == BOOTTIME).then_some(())?;
        let value = info
            .lines()
            .find_map(|line| line.strip_prefix("it_value: ("))?;
        value.split(',').next()?.parse().ok()
    };
    infos.filter_map(due).filter(|&due| due > 0).collect()
}

/// Returns whether a timer is set to the first renewal of a lease of `hours` hours.
fn is_set(id: &str, hours: u64) -> bool {
    let third = hours * 1_200;
    due(id)
        .iter()
        .any(|due| (third - 100..=third).contains(due))
}

fn store(directory: &tempfile::TempDir) -> LeaseFileStore {
    LeaseFileStore::open(directory.path(), &StoreOptions::default()).unwrap()
}

#[test]
fn keep_alive_waits_by_the_clock_of_leases() {
    let directory = tempfile::tempdir().unwrap();
    let store = store(&directory);
    let locks = LockFactory::new(&store, System);
    let long = locks.create_lock("long", "1h").unwrap();
    let held = long.guard().unwrap();
    keep_alive(&held, || {
        eventually("the timer is set", || is_set("self", 1));
    })
    .unwrap();
    // The timer expires.
    let short = locks.create_lock("short", "300ms").unwrap();
    let held = short.guard().unwrap();
    let first_end = held.lease().ends();
    let is_renewed = || eventually("the lease is renewed", || held.lease().ends() > first_end);
    keep_alive(&held, is_renewed).unwrap();
}

#[test]
fn tasks_wait_by_the_clock_of_leases() {
    use std::sync::Arc;
    use verrou::nonblocking;
    use verrou_host::Tokio;

    let directory = tempfile::tempdir().unwrap();
    let locks = nonblocking::LockFactory::new(Arc::new(store(&directory)), Tokio);
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_time()
        .build();
    runtime.unwrap().block_on(async {
        let long = locks.create_lock("long", "2h").unwrap();
        let work = async {
            // The timer is set before the work continues.
            for _ in 0..10 {
                tokio::task::yield_now().await;
            }
            eventually("the timer is set", || is_set("self", 2));
        };
        let ran = long.run(async |held| held.keep(work).await);
        ran.await.unwrap().unwrap();

        let short = locks.create_lock("short", "300ms").unwrap();
        let ran = short.run(async |held| {
            let first_end = held.lease().ends();
            let is_renewed = async {
                while held.lease().ends() == first_end {
                    tokio::task::yield_now().await;
                }
            };
            held.keep(is_renewed).await
        });
        ran.await.unwrap().unwrap();
    });
    // This part must not run in parallel, because the timer is the same.
    sleeping_tasks_share_one_timer();
}

/// Many sleeping tasks share one timer, which wakes each of them in its time.
fn sleeping_tasks_share_one_timer() {
    use verrou::nonblocking::AsyncHost;
    use verrou::{Clock, Timestamp};
    use verrou_host::Tokio;

    const MINUTE: Duration = Duration::from_mins(1);

    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .enable_time()
        .build();
    runtime.unwrap().block_on(async {
        let long: Vec<_> = (0..1_000)
            .map(|_| tokio::spawn(Tokio.sleep(MINUTE)))
            .collect();
        let short = (0..100_u64).rev().map(|at| {
            tokio::spawn(async move {
                let pause = Duration::from_millis(at);
                let end = Tokio.now().saturating_add(pause);
                Tokio.sleep(pause).await;
                assert!(end <= Tokio.now(), "it is not woken early");
            })
        });
        for task in short.collect::<Vec<_>>() {
            task.await.unwrap();
        }
        let began: Timestamp = Tokio.now();
        assert_eq!(
            due("self")
                .iter()
                .filter(|&&due| 50 < due && due <= 60)
                .count(),
            1
        );
        for task in &long {
            assert!(!task.is_finished());
            task.abort();
        }
        assert!(Tokio.now().saturating_since(began) < MINUTE);
    });
}

#[test]
fn the_command_waits_by_the_clock_of_leases() {
    let dir = TestDir::new("lease");
    let (holder, sleeper) = dir.start(&["--ttl", "1h"], "echo $$ > pid; exec sleep 1000");
    eventually("the timer is set", || is_set(&holder.id().to_string(), 1));
    kill_process(sleeper, Signal::TERM).unwrap();
    holder.end();
}

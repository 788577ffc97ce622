//! The events of `tracing` (feature `tracing`): which there are, and that none has an owner token.

mod common;

use std::io::{self, Write};
use std::ops::ControlFlow;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use common::world::{World, world};
use tracing::Level;
use tracing::subscriber::with_default;

/// Lines that a subscriber has written.
#[derive(Clone, Default)]
struct Lines(Arc<Mutex<Vec<u8>>>);

impl Write for Lines {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.0.lock().unwrap().write(bytes)
    }
    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// Returns the events of `work` up to the level `most`, one on each line.
fn events_of(most: Level, work: impl FnOnce()) -> Vec<String> {
    let lines = Lines::default();
    let written = lines.clone();
    let subscriber = tracing_subscriber::fmt()
        .with_max_level(most)
        .with_ansi(false)
        .without_time()
        .with_writer(move || lines.clone())
        .finish();
    with_default(subscriber, work);
    let text = String::from_utf8(written.0.lock().unwrap().clone()).unwrap();
    text.lines().map(|line| line.trim().to_owned()).collect()
}

#[test]
fn life_of_a_lock_has_events_without_an_owner_token() {
    let World {
        clock, blocking, ..
    } = world();
    let lock = blocking.create_lock("my\u{1b}lock", "3s").unwrap();
    let other = blocking.create_lock("my\u{1b}lock", "3s").unwrap();
    let mut owner = String::new();
    let events = events_of(Level::DEBUG, || {
        let guard = lock.guard().unwrap();
        owner = guard.lease().owner().to_string();
        other.try_acquire().unwrap_err();
        let mut renewals = 0;
        let keep = guard.keep(|_, at_most| {
            clock.advance(at_most);
            renewals += 1;
            if renewals == 2 {
                other.force_release(None).unwrap();
            }
            ControlFlow::<()>::Continue(())
        });
        keep.unwrap_err();
        drop(guard);
        lock.acquire().unwrap();
        clock.advance(Duration::from_secs(1));
        lock.release().unwrap();
    });
    let expected = [
        "INFO verrou: granted name=my\\u{1b}lock fence=1 waited_ms=0 attempts=1",
        "DEBUG verrou: held by another owner name=my\\u{1b}lock remaining_ms=3000",
        "DEBUG verrou: renewed name=my\\u{1b}lock fence=1 ttl_ms=3000",
        "WARN verrou: force-released name=my\\u{1b}lock",
        "WARN verrou: lost name=my\\u{1b}lock fence=1 loss=Revoked",
        "INFO verrou: granted name=my\\u{1b}lock fence=2 waited_ms=0 attempts=1",
        "INFO verrou: released name=my\\u{1b}lock fence=2",
    ];
    assert_eq!(events, expected);
    assert!(!events.concat().contains(&owner));
}

#[test]
fn waits_and_renewals_are_not_among_the_events_at_level_info() {
    let World {
        clock, blocking, ..
    } = world();
    let lock = blocking.create_lock("lock", "3s").unwrap();
    let other = blocking.create_lock("lock", "3s").unwrap();
    let events = events_of(Level::INFO, || {
        let guard = lock.guard().unwrap();
        other.try_acquire().unwrap_err();
        guard
            .keep(|machine, at_most| {
                clock.advance(at_most);
                match machine.health() {
                    verrou::Health::Renewed => ControlFlow::Break(()),
                    _ => ControlFlow::Continue(()),
                }
            })
            .unwrap();
    });
    assert_eq!(events.len(), 2, "{events:?}");
}

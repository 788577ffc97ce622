//! Acquires a polled lock: the state machine returns the next step, and this program does it.
//!
//! A host without threads and futures waits in this way, such as a game's frame, an interpreter's
//! event loop, or a component. `cargo run --example steps`

use std::collections::VecDeque;
use std::time::Duration;

use verrou::{Acquire, AcquireStep, Claim, MemoryStore, Name, Owner, Retry, Store, Timestamp, Ttl};
use verrou_host::System;

/// Runs an event loop that only waits for a lock, by a simulated time.
fn main() -> Result<(), Box<dyn std::error::Error>> {
    let store = MemoryStore::new(System);
    let claim = |owner: u8| -> Result<Claim, Box<dyn std::error::Error>> {
        let owner = Owner::from_bytes([owner; 16]); // a program draws 128 random bits
        Ok(Claim::new(Name::new("my-resource")?, owner, Ttl::NEVER))
    };
    Store::acquire(&store, &claim(1)?)?;

    let retry = Retry::default().delay(Duration::from_millis(100))?;
    let mut now = Timestamp::default();
    let mut waiting = Acquire::new(claim(2)?, retry, now);
    let mut events = VecDeque::from(["tick", "tick", "release", "tick"]);
    let lease = loop {
        match waiting.next(now) {
            AcquireStep::Acquire(claim) => {
                let reply = Store::acquire(&store, claim);
                waiting.received(now, reply);
            }
            AcquireStep::Release(claim) => {
                // After an error, the record that may be left expires.
                let _ = Store::release(&store, claim);
                waiting.released();
            }
            AcquireStep::Wait(_, pause) | AcquireStep::Sleep(pause) => {
                let event = events.pop_front().unwrap_or("tick");
                println!("{:>4?} {event}", now.since_start());
                if event == "release" {
                    Store::release(&store, &claim(1)?)?;
                } else {
                    now = now.saturating_add(pause);
                }
                waiting.waited(now);
            }
            AcquireStep::Done(end) => break end?,
        }
    };
    println!(
        "{:>4?} acquired, fence {:?}",
        now.since_start(),
        lease.fence()
    );
    assert_eq!(lease.owner(), Owner::from_bytes([2; 16]));
    Ok(())
}

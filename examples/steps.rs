//! Takes a lock by hand: the machine says what to do, this program does it in its own way.
//!
//! That is how a host waits that has neither threads nor futures: a game's frame, an interpreter's
//! event loop, a component. `cargo run --example steps`

use std::collections::VecDeque;
use std::time::Duration;

use verrou::{Acquire, AcquireStep, Claim, MemoryStore, Name, Owner, Retry, Store, Timestamp, Ttl};
use verrou_host::System;

/// An event loop that has nothing to do but to wait for a lock; its time is its own.
fn main() -> Result<(), Box<dyn std::error::Error>> {
    let store = MemoryStore::new(System);
    let claim = |owner: u8| -> Result<Claim, Box<dyn std::error::Error>> {
        Ok(Claim {
            name: Name::new("my-resource")?,
            owner: Owner::from_bytes([owner; 16]), // a program draws 128 random bits
            ttl: Ttl::NEVER,
            ephemeral: false,
        })
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
                waiting.heard(now, reply);
            }
            AcquireStep::Release(claim) => {
                let reply = Store::release(&store, claim);
                waiting.heard(now, reply);
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

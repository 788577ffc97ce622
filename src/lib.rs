//! Named locks with leases: one core, every host.
//!
//! A lock has a [`Name`]. A successful acquisition returns a [`Lease`]: the lock is held until its
//! holder releases it or until the lease's [`Ttl`] has passed, so that a crash never blocks a name
//! forever. Every grant carries a [`Fence`], a fencing token that grows with each grant of the name.
//! The resource that the lock guards can check the token, and reject a holder that was paused past
//! the end of its lease.
//!
//! This crate is independent of the host: it reads no clock, never sleeps and does no I/O. Its
//! functions take the time as an argument, and return what to do next. `verrou-host` provides the
//! system's clock, stores made of files, and the `verrou` command.
//!
//! # Taking a lock
//!
//! ```
//! use std::sync::Arc;
//! use verrou::{MemoryStore, blocking::LockFactory};
//! use verrou_host::System;
//!
//! let locks = LockFactory::new(Arc::new(MemoryStore::new(System)), System);
//! let lock = locks.create_lock("my-resource", "2s")?;
//! let answer = lock.run(|held| {
//!     assert!(held.fence().is_some());
//!     6 * 7
//! });
//! assert_eq!(answer.ok(), Some(42));
//! assert!(!lock.is_locked()?);
//! # Ok::<(), verrou::Error>(())
//! ```
//!
//! [`blocking`] and [`nonblocking`] provide the same lock for threads and for futures. A backend of
//! your own is one implementation of [`Store`] or [`AsyncStore`]; the feature `conformance` provides
//! the tests that it has to pass. Hosts that do their own waiting drive [`Acquire`] and [`Renew`]
//! themselves. The feature `serde` reads and writes names, fencing tokens, durations, retry policies and
//! serialized locks in human-readable forms, as for configuration files.

#![no_std]

extern crate alloc;
#[cfg(any(feature = "std", verrou_mutants))]
extern crate std;

/// Evaluates to whether a deliberate bug is switched on, or to the wrong one of two values if it is,
/// and to the right one otherwise. A bug can be switched on only in programs that are built with
/// `--cfg verrou_mutants`.
#[doc(hidden)]
#[macro_export]
#[cfg(not(verrou_mutants))]
macro_rules! mutant {
    ($name:ident) => {
        false
    };
    ($name:ident, $wrong:expr, $right:expr) => {
        $right
    };
}
#[doc(hidden)]
#[macro_export]
#[cfg(verrou_mutants)]
macro_rules! mutant {
    ($name:ident) => {
        $crate::Mutant::$name.is_on()
    };
    ($name:ident, $wrong:expr, $right:expr) => {
        if $crate::mutant!($name) {
            $wrong
        } else {
            $right
        }
    };
}

/// Records an event of the lock with a name, at a level and with fields as in `tracing::event!`: for `tracing` with that
/// feature, and for the listener of `event.rs` with the feature `js`. No field may have an owner token.
macro_rules! event {
    ($level:ident, $name:expr, $($field:tt)*) => {
        trace_event!($level, $name, $($field)*);
        listen_event!($level, $name, $($field)*);
    };
}

#[cfg(feature = "tracing")]
macro_rules! trace_event {
    ($level:ident, $name:expr, $($field:tt)*) => {
        tracing::event!(
            target: "verrou",
            tracing::Level::$level,
            name = %crate::printable::Printable($name.as_str()),
            $($field)*
        )
    };
}
#[cfg(not(feature = "tracing"))]
macro_rules! trace_event {
    ($level:ident, $name:expr, $($field:tt)*) => {
        let _ = &$name;
    };
}

#[cfg(feature = "js")]
macro_rules! listen_event {
    ($level:ident, $name:expr, $($field:tt)*) => {
        if let Some(mut event) = crate::event::Event::start(stringify!($level), $name.as_str()) {
            add_to_event!(event, $($field)*);
            event.end();
        }
    };
}
#[cfg(feature = "js")]
macro_rules! add_to_event {
    ($event:ident, $message:literal) => {
        $event.message = $message;
    };
    ($event:ident, ?$field:ident, $($more:tt)*) => {
        $event.text(stringify!($field), alloc::format!("{:?}", $field));
        add_to_event!($event, $($more)*);
    };
    ($event:ident, $field:ident = %$value:expr, $($more:tt)*) => {
        $event.text(stringify!($field), alloc::format!("{}", $value));
        add_to_event!($event, $($more)*);
    };
    ($event:ident, $field:ident = $value:expr, $($more:tt)*) => {
        $event.number(stringify!($field), $value);
        add_to_event!($event, $($more)*);
    };
}
#[cfg(not(feature = "js"))]
macro_rules! listen_event {
    ($level:ident, $name:expr, $($field:tt)*) => {
        let _ = &$name;
    };
}

// The order of dependence: a module may use modules above it in this list, never modules below it.
// `tests/layers.rs` checks that.
#[cfg(verrou_mutants)]
mod mutant;
#[cfg(feature = "std")]
mod sync;
mod printable;
#[cfg(feature = "js")]
mod event;
mod time;
mod name;
mod ttl;
mod claim;
mod store;
mod store_wrapper;
mod retry;
mod lease;
mod json;
mod serialized;
#[cfg(feature = "serde")]
mod serde_forms;
mod error;
mod acquire;
mod renew;
mod cell;
mod held_lease;
pub mod polled;
mod locks;
mod lock_api;
pub mod blocking;
pub mod nonblocking;
#[cfg(feature = "std")]
mod memory;
#[cfg(feature = "conformance")]
pub mod conformance;
#[cfg(any(feature = "component", feature = "component-async"))]
mod component;
#[cfg(feature = "js")]
mod js;

pub use acquire::{Acquire, AcquireStep};
#[doc(no_inline)]
pub use async_trait::async_trait;
pub use claim::{Claim, Fence, InvalidOwner, Mode, Owner};
pub use error::{Error, RunError};
pub use lease::{Lease, Loss};
pub use locks::Locks;
#[cfg(feature = "std")]
pub use memory::MemoryStore;
#[cfg(verrou_mutants)]
#[doc(hidden)]
pub use mutant::Mutant;
pub use name::{InvalidName, Name};
pub use printable::{Printable, is_hidden};
pub use renew::{Health, Renew, RenewStep};
pub use retry::{Backoff, InvalidRetry, Retry};
pub use serialized::{InvalidSerializedLock, SerializedLock};
pub use store::{
    Acquired, AsyncLossWatch, AsyncStore, AsyncWaiter, Capabilities, Holder, LossWatch, Process,
    Renewed, Store, StoreError, Waiter,
};
pub use store_wrapper::StoreWrapper;
pub use time::{Clock, Timestamp};
pub use ttl::{InvalidTtl, Ttl};

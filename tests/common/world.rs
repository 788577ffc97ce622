//! One memory store with blocking and async locks.

use std::sync::Arc;

use verrou::conformance::TestClock;
use verrou::{MemoryStore, blocking, nonblocking};

use super::Polled;

pub(crate) type Memory = Arc<MemoryStore<TestClock>>;

/// One store, with a blocking and an async factory of its locks.
pub(crate) struct World {
    pub(crate) clock: TestClock,
    pub(crate) memory: Memory,
    pub(crate) blocking: blocking::LockFactory<Polled<Memory>, TestClock>,
    pub(crate) awaited: nonblocking::LockFactory<Memory, TestClock>,
}

pub(crate) fn world() -> World {
    let clock = TestClock::still();
    let memory = Arc::new(MemoryStore::new(clock.clone()));
    World {
        blocking: blocking::LockFactory::new(Polled(Arc::clone(&memory)), clock.clone()),
        awaited: nonblocking::LockFactory::new(Arc::clone(&memory), clock.clone()),
        clock,
        memory,
    }
}

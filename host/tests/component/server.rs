//! The component with a server behind it.

use std::process::Command;
use std::sync::OnceLock;
use std::time::Duration;

use verrou::Fence;
use verrou::blocking::LockFactory;
use verrou::conformance;
use verrou::conformance::{Fixture, TestClock};
use verrou_host::{AnyStore, StoreOptions, System};

use crate::common::{beside_tests, done, stdout};
use crate::fixture::Namespace;
use crate::running::Running;
use crate::through::Component;

fn redis() -> String {
    static SERVER: OnceLock<Running> = OnceLock::new();

    let server = SERVER.get_or_init(|| Running::redis(&[]));
    format!("redis://127.0.0.1:{}", server.port)
}

/// A fixture on a server, whose clock no test can advance; the test's clock runs beside it.
struct Beside {
    place: Namespace,
    clock: TestClock,
}

impl Beside {
    fn new() -> Self {
        Self {
            place: Namespace::new(&redis(), "prefix"),
            clock: TestClock::running(),
        }
    }
}

impl Fixture for Beside {
    type Store = AnyStore;
    type Host = TestClock;

    fn client(&self) -> AnyStore {
        self.place.client()
    }
    fn host(&self) -> TestClock {
        self.clock.clone()
    }
    fn pass(&self, time: Duration) {
        self.place.pass(time);
    }
}

conformance!(through, Component(Beside::new()));

/// The locks of the example are those of this program.
#[test]
fn example_shares_its_locks_with_native_programs() {
    let store = format!("{}?prefix=example:", redis());
    // `cargo test` builds the example beside the tests. `cargo run` with other features would rebuild most crates.
    let mut example = Command::new(beside_tests("examples/embed_server", "build --examples"));
    example.arg(&store);
    let shown = done(example.current_dir(concat!(env!("CARGO_MANIFEST_DIR"), "/..")));
    assert!(
        stdout(&shown).contains("it holds the lock, fence Some(Fence(1))"),
        "{shown:?}"
    );
    let url = store.parse().expect("a URL");
    let store = AnyStore::open(&url, &StoreOptions::default()).expect("the server is there");
    let lock = LockFactory::new(&store, System).create_lock("my-resource", "30s");
    let fence = lock.and_then(|lock| Ok(lock.guard()?.lease().fence()));
    assert_eq!(fence.expect("it is free"), Fence::new(2));
}

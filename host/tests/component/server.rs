//! The component with a server behind it.

use std::process::Command;
use std::sync::OnceLock;
use std::time::Duration;

use verrou::Fence;
use verrou::blocking::LockFactory;
use verrou::conformance;
use verrou::conformance::{Fixture, TestClock};
use verrou_host::{AnyStore, StoreOptions, System};

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
    let tests = std::env::current_exe().expect("a path");
    let example = tests.ancestors().nth(2).expect("a directory for programs");
    let example = example.join("examples/embed_server");
    let example = || {
        let mut program = Command::new(&example);
        program.arg(&store);
        program.current_dir(concat!(env!("CARGO_MANIFEST_DIR"), "/.."));
        program
            .output()
            .expect("`cargo build --examples` builds the example")
    };
    let shown = example();
    let said = String::from_utf8_lossy(&shown.stdout);
    assert!(
        said.contains("it holds the lock, fence Some(Fence(1))"),
        "{shown:?}"
    );
    let url = store.parse().expect("a URL");
    let store = AnyStore::open(&url, &StoreOptions::default()).expect("the server is there");
    let lock = LockFactory::new(&store, System).create_lock("my-resource", "30s");
    let fence = lock.and_then(|lock| Ok(lock.guard()?.lease().fence()));
    assert_eq!(fence.expect("it is free"), Fence::new(2));
}

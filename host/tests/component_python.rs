//! Stores in Python pass the core's suite *through the component*: its locks, in wasmtime's package
//! for Python, with a dictionary or an `SQLite` file behind them. See
//! `host/python/tests/through_component.py`.
//!
//! The environment variable `VERROU_PYTHON` names an interpreter that has the package of `host/python`; `cargo xtask
//! test` installs one.

mod foreign;

use std::env;
use std::path::Path;
use std::process::Command;
use std::time::Duration;

use foreign::{Client, Foreign, not_run};
use tempfile::TempDir;
use verrou::conformance;
use verrou::conformance::{Fixture, TestClock};

conformance!(dictionary, Foreign::new(python().arg("dictionary")));
conformance!(sqlite, InDirectory::new());

/// Returns the command of the script, without the argument that names the store.
fn python() -> Command {
    let Some(python) = env::var_os("VERROU_PYTHON") else {
        not_run(
            "the tests of the stores in Python, because VERROU_PYTHON names no interpreter; \
             `cargo xtask test` installs one, and runs them",
        );
    };
    let package = Path::new(env!("CARGO_MANIFEST_DIR"));
    let mut command = Command::new(python);
    command.arg(package.join("python/tests/through_component.py"));
    command
}

/// A fixture with an `SQLite` file in a directory of its own.
struct InDirectory {
    place: Foreign,
    _directory: TempDir,
}

impl InDirectory {
    fn new() -> Self {
        let directory = tempfile::tempdir().expect("there is room for a directory");
        let file = directory.path().join("locks.sqlite");
        Self {
            place: Foreign::new(python().arg("sqlite").arg(file)),
            _directory: directory,
        }
    }
}

impl Fixture for InDirectory {
    type Store = Client;
    type Host = TestClock;

    fn client(&self) -> Client {
        self.place.client()
    }

    fn host(&self) -> TestClock {
        self.place.host()
    }

    fn pass(&self, time: Duration) {
        self.place.pass(time);
    }
}

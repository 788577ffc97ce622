//! Runs real processes of the `verrou` command; each test has a directory of its own.
#![allow(
    dead_code,
    reason = "every test file uses its own part of this, and Cargo builds it for each"
)]

use std::ffi::OsStr;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::atomic::AtomicBool;
use std::sync::{Arc, LazyLock, Once};

use rustix::process::{Pid, Signal};
use serde_json::Value;
use signal_hook::flag::register_conditional_default;
use verrou_host::{AnyStore, StoreOptions};

#[path = "../../../tests/common/mod.rs"]
mod processes;
pub(crate) mod users;
pub(crate) mod waiters;

pub(crate) use processes::*;

/// Makes the signals of a terminal end the programs that the tests start. A shell that starts the tests in the
/// background ignores these signals for all of them; a process that handles a signal does not pass an ignored
/// disposition on (execve(2)).
fn handle_signals() {
    static HANDLED: Once = Once::new();
    HANDLED.call_once(|| {
        for signal in [Signal::HUP, Signal::INT, Signal::QUIT] {
            let by_default = Arc::new(AtomicBool::new(true));
            register_conditional_default(signal.as_raw(), by_default).unwrap();
        }
    });
}

/// Returns `command`, run by strace(1) with `options`; `None` where strace(1) does not work. The log is the file
/// `trace` in the directory of the command.
pub(crate) fn traced(command: &Command, options: &[&str]) -> Option<Command> {
    static WORKS: LazyLock<bool> = LazyLock::new(|| {
        let mut strace = Command::new("strace");
        let output = strace.args(["--output", "/dev/null", "true"]).output();
        output.is_ok_and(|output| output.status.success())
    });

    if !*WORKS {
        eprintln!("strace(1) does not work here: system calls are not tested");
        return None;
    }
    let strace = [&["strace", "--output", "trace"], options].concat();
    Some(prefixed(&strace, command))
}

/// Opens the store at `url` in this process.
pub(crate) fn open_store(url: &str) -> AnyStore {
    AnyStore::open(&url.parse().unwrap(), &StoreOptions::default()).unwrap()
}

/// Returns the files of the locks in the directory of a store, in the order of their names.
pub(crate) fn lock_files(directory: &Path) -> Vec<PathBuf> {
    let entries = fs::read_dir(directory).into_iter().flatten();
    let paths = entries.map(|entry| entry.unwrap().path());
    let is_lock = |path: &PathBuf| {
        path.extension()
            .is_some_and(|extension| extension == "lease" || extension == "lock")
    };
    let mut files: Vec<_> = paths.filter(is_lock).collect();
    files.sort();
    files
}

/// Waits until the wrapper of a command handles signals; the last handler that it installs is that of SIGCONT.
pub(crate) fn listens(wrapper: &Started) {
    eventually("the wrapper handles signals", || {
        has_signal(wrapper.pid(), "SigCgt", Signal::CONT)
    });
}

/// Returns the value of a line of JSON.
#[track_caller]
pub(crate) fn json(text: &str) -> Value {
    serde_json::from_str(text).unwrap()
}

/// The kinds of store.
pub(crate) const KINDS: [&str; 2] = ["lease", "file"];

/// A test's directory, which has a store in `locks`.
pub(crate) struct TestDir {
    directory: tempfile::TempDir,
    kind: &'static str,
}

impl TestDir {
    pub(crate) fn new(kind: &'static str) -> Self {
        handle_signals();
        let directory = tempfile::tempdir().unwrap();
        Self { directory, kind }
    }

    pub(crate) fn path(&self, name: &str) -> PathBuf {
        self.directory.path().join(name)
    }

    /// Returns the directory of the store.
    pub(crate) fn locks(&self) -> PathBuf {
        self.path("locks")
    }

    pub(crate) fn store(&self) -> String {
        format!("{}:{}", self.kind, self.locks().display())
    }

    /// Returns the command `verrou`, in this directory, with this store.
    pub(crate) fn verrou<I: AsRef<OsStr>>(
        &self,
        arguments: impl IntoIterator<Item = I>,
    ) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_verrou"));
        command
            .args(arguments)
            .current_dir(self.directory.path())
            .env("VERROU_STORE", self.store())
            .env("XDG_STATE_HOME", self.path("state"))
            .env_remove("VERROU_LOCK")
            .stdin(Stdio::null());
        command
    }

    /// Returns the command `verrou run k [options] -- sh -c script`.
    pub(crate) fn run(&self, options: &[&str], script: &str) -> Command {
        let command = ["--", "sh", "-c", script];
        self.verrou(["run", "k"].iter().chain(options).chain(&command))
    }

    /// Starts the command of [`run`](Self::run), and waits until it has written its process ID to the file
    /// `pid`.
    pub(crate) fn start(&self, options: &[&str], script: &str) -> (Started, Pid) {
        let started = Started::new(&mut self.run(options, script));
        (started, self.pid())
    }

    /// Waits until the file `pid` contains a process ID, and returns it.
    pub(crate) fn pid(&self) -> Pid {
        self.pid_in("pid")
    }

    /// Waits until the file contains a process ID, and returns it.
    pub(crate) fn pid_in(&self, name: &str) -> Pid {
        let mut found = None;
        eventually("a process has written its process ID", || {
            let text = self.read(name);
            found = text
                .strip_suffix('\n')
                .and_then(|text| Pid::from_raw(text.parse().ok()?));
            found.is_some()
        });
        found.unwrap()
    }

    /// Returns the text of a file, or an empty text if the file is missing.
    pub(crate) fn read(&self, name: &str) -> String {
        fs::read_to_string(self.path(name)).unwrap_or_default()
    }

    /// Returns the number in a file, such as a fencing token.
    #[track_caller]
    pub(crate) fn number_in(&self, name: &str) -> u64 {
        self.read(name).trim().parse().unwrap()
    }

    /// Returns whether the lock `k` is held, as `verrou show` reports it.
    pub(crate) fn is_held(&self) -> bool {
        let shown = done(&mut self.verrou(["show", "k", "--json"]));
        assert_eq!(code(&shown), 0, "{}", stderr(&shown));
        stdout(&shown).contains("\"held\":true")
    }
}

//! Runs real processes of the `verrou` command; each test has a directory of its own.
#![allow(
    dead_code,
    reason = "every test file uses its own part of this, and Cargo builds it for each"
)]

use std::ffi::OsStr;
use std::fs::{self, File};
use std::io::{Read, Seek};
use std::ops::{Deref, DerefMut};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::sync::atomic::AtomicBool;
use std::sync::{Arc, Once};
use std::thread;
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal, kill_process, test_kill_process};
use signal_hook::flag::register_conditional_default;

/// Longer than any test waits for an event, on any busy machine.
const DEADLINE: Duration = Duration::from_mins(1);

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

    /// Returns whether the lock `k` is held, as `verrou show` reports it.
    pub(crate) fn is_held(&self) -> bool {
        let shown = done(&mut self.verrou(["show", "k", "--json"]));
        assert_eq!(code(&shown), 0, "{}", stderr(&shown));
        stdout(&shown).contains("\"held\":true")
    }
}

/// A process that is killed at the end of its test.
pub(crate) struct Started {
    child: Child,
    /// Standard output and error: files, because a process that outlives this one could keep pipes open.
    output: [File; 2],
}

impl Started {
    pub(crate) fn new(command: &mut Command) -> Self {
        let output = [tempfile::tempfile().unwrap(), tempfile::tempfile().unwrap()];
        let [out, err] = output.each_ref().map(|file| file.try_clone().unwrap());
        let child = command.stdout(out).stderr(err).spawn().unwrap();
        Self { child, output }
    }

    pub(crate) fn pid(&self) -> Pid {
        Pid::from_child(&self.child)
    }

    pub(crate) fn signal(&self, signal: Signal) {
        kill_process(self.pid(), signal).unwrap();
    }

    /// Waits until the process has ended, and returns its output.
    #[track_caller]
    pub(crate) fn end(mut self) -> Output {
        let mut status = None;
        eventually("a process ends", || {
            status = self.child.try_wait().unwrap();
            status.is_some()
        });
        let [stdout, stderr] = self.output.each_mut().map(|file| {
            let mut text = Vec::new();
            file.rewind().unwrap();
            file.read_to_end(&mut text).unwrap();
            text
        });
        let status = status.unwrap();
        Output {
            status,
            stdout,
            stderr,
        }
    }
}

impl Deref for Started {
    type Target = Child;
    fn deref(&self) -> &Child {
        &self.child
    }
}

impl DerefMut for Started {
    fn deref_mut(&mut self) -> &mut Child {
        &mut self.child
    }
}

impl Drop for Started {
    fn drop(&mut self) {
        // The process may have ended already.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Runs `command` to its end.
pub(crate) fn done(command: &mut Command) -> Output {
    Started::new(command).end()
}

/// Returns the exit code of a process, or -1 if a signal killed it.
pub(crate) fn code(output: &Output) -> i32 {
    output.status.code().unwrap_or(-1)
}

pub(crate) fn stdout(output: &Output) -> &str {
    std::str::from_utf8(&output.stdout).unwrap()
}

pub(crate) fn stderr(output: &Output) -> &str {
    std::str::from_utf8(&output.stderr).unwrap()
}

/// Asserts that a command ends with this exit code; a failed assertion prints its standard error.
#[track_caller]
pub(crate) fn ends_with(command: &mut Command, expected: i32) -> Output {
    let output = done(command);
    assert_eq!(
        code(&output),
        expected,
        "{command:?} printed {}",
        stderr(&output)
    );
    output
}

/// Waits until `condition` is true.
#[track_caller]
pub(crate) fn eventually(what: &str, mut condition: impl FnMut() -> bool) {
    let began = Instant::now();
    while !condition() {
        assert!(began.elapsed() < DEADLINE, "never: {what}");
        thread::sleep(Duration::from_millis(2));
    }
}

/// Returns whether the process exists and is not a zombie.
pub(crate) fn lives(pid: Pid) -> bool {
    test_kill_process(pid).is_ok() && !matches!(state(pid), Some('Z' | 'X'))
}

/// Waits until the process is stopped.
pub(crate) fn stopped(pid: Pid) {
    eventually("the process is stopped", || state(pid) == Some('T'));
}

/// Returns the state of a process by `proc_pid_stat(5)`: the letter after the name in brackets.
pub(crate) fn state(pid: Pid) -> Option<char> {
    let path = Path::new("/proc").join(pid.to_string()).join("stat");
    let stat = fs::read_to_string(path).ok()?;
    stat.rsplit_once(") ")?.1.chars().next()
}

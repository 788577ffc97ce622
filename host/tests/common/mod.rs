//! Real processes of the `verrou` command, each test with a directory of its own.
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

/// Nothing here takes this long, on however busy a machine.
const DEADLINE: Duration = Duration::from_mins(1);

/// Lets programs that the tests start be ended by the signals of a terminal, which a shell that
/// started the tests in the background lets all of them ignore: whoever handles a signal passes on
/// no disposition to ignore it (execve(2)).
fn hear_signals() {
    static HEARD: Once = Once::new();
    HEARD.call_once(|| {
        for signal in [Signal::HUP, Signal::INT, Signal::QUIT] {
            let by_default = Arc::new(AtomicBool::new(true));
            register_conditional_default(signal.as_raw(), by_default).unwrap();
        }
    });
}

/// The kinds of store.
pub(crate) const KINDS: [&str; 2] = ["lease", "file"];

/// A directory with a store in it.
pub(crate) struct Place {
    directory: tempfile::TempDir,
    kind: &'static str,
}

impl Place {
    pub(crate) fn new(kind: &'static str) -> Self {
        hear_signals();
        let directory = tempfile::tempdir().unwrap();
        Self { directory, kind }
    }

    pub(crate) fn path(&self, name: &str) -> PathBuf {
        self.directory.path().join(name)
    }

    /// The directory of the store.
    pub(crate) fn locks(&self) -> PathBuf {
        self.path("locks")
    }

    pub(crate) fn store(&self) -> String {
        format!("{}:{}", self.kind, self.locks().display())
    }

    /// `verrou`, in this directory, with this store.
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

    /// `verrou run k [options] -- sh -c script`.
    pub(crate) fn run(&self, options: &[&str], script: &str) -> Command {
        let command = ["--", "sh", "-c", script];
        self.verrou(["run", "k"].iter().chain(options).chain(&command))
    }

    /// Starts what [`run`](Self::run) says, and waits until its command has written its number
    /// to the file `pid`.
    pub(crate) fn start(&self, options: &[&str], script: &str) -> (Started, Pid) {
        let started = Started::new(&mut self.run(options, script));
        (started, self.pid())
    }

    /// The number in the file `pid`, as soon as there is one.
    pub(crate) fn pid(&self) -> Pid {
        self.pid_in("pid")
    }

    /// Waits until the file contains a process ID, and returns it.
    pub(crate) fn pid_in(&self, name: &str) -> Pid {
        let mut found = None;
        eventually("a process has written its number", || {
            let text = self.read(name);
            found = text
                .strip_suffix('\n')
                .and_then(|text| Pid::from_raw(text.parse().ok()?));
            found.is_some()
        });
        found.unwrap()
    }

    /// What a file says; nothing when it is not there.
    pub(crate) fn read(&self, name: &str) -> String {
        fs::read_to_string(self.path(name)).unwrap_or_default()
    }

    /// Whether the lock `k` is held, as `verrou show` says.
    pub(crate) fn is_held(&self) -> bool {
        let shown = done(&mut self.verrou(["show", "k", "--json"]));
        assert_eq!(code(&shown), 0, "{}", stderr(&shown));
        stdout(&shown).contains("\"held\":true")
    }
}

/// A process that is ended with its test.
pub(crate) struct Started {
    child: Child,
    /// Files and not pipes, which whoever outlives the process could keep open.
    said: [File; 2],
}

impl Started {
    pub(crate) fn new(command: &mut Command) -> Self {
        let said = [tempfile::tempfile().unwrap(), tempfile::tempfile().unwrap()];
        let [out, err] = said.each_ref().map(|file| file.try_clone().unwrap());
        let child = command.stdout(out).stderr(err).spawn().unwrap();
        Self { child, said }
    }

    pub(crate) fn pid(&self) -> Pid {
        Pid::from_child(&self.child)
    }

    pub(crate) fn signal(&self, signal: Signal) {
        kill_process(self.pid(), signal).unwrap();
    }

    /// Waits for its end.
    #[track_caller]
    pub(crate) fn end(mut self) -> Output {
        let mut status = None;
        eventually("a process ends", || {
            status = self.child.try_wait().unwrap();
            status.is_some()
        });
        let [stdout, stderr] = self.said.each_mut().map(|file| {
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
        // It has ended already, unless its test failed or had no more use for it.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Runs `command` to its end.
pub(crate) fn done(command: &mut Command) -> Output {
    Started::new(command).end()
}

/// What a process ended with, by itself.
pub(crate) fn code(output: &Output) -> i32 {
    output.status.code().unwrap_or(-1)
}

pub(crate) fn stdout(output: &Output) -> &str {
    std::str::from_utf8(&output.stdout).unwrap()
}

pub(crate) fn stderr(output: &Output) -> &str {
    std::str::from_utf8(&output.stderr).unwrap()
}

/// Asserts what a command ends with, showing what it said when it does not.
#[track_caller]
pub(crate) fn ends_with(command: &mut Command, expected: i32) -> Output {
    let output = done(command);
    assert_eq!(
        code(&output),
        expected,
        "{command:?} said {}",
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

/// Whether the process is there and runs: not a zombie that nobody has waited for yet.
pub(crate) fn lives(pid: Pid) -> bool {
    test_kill_process(pid).is_ok() && !matches!(state(pid), Some('Z' | 'X'))
}

/// Waits until the process is stopped.
pub(crate) fn stopped(pid: Pid) {
    eventually("it is stopped", || state(pid) == Some('T'));
}

/// Returns the state of a process by `proc_pid_stat(5)`: the letter after the name in brackets.
pub(crate) fn state(pid: Pid) -> Option<char> {
    let path = Path::new("/proc").join(pid.to_string()).join("stat");
    let stat = fs::read_to_string(path).ok()?;
    stat.rsplit_once(") ")?.1.chars().next()
}

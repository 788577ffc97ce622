//! Runs processes, finds programs, and reads proc(5).
#![allow(dead_code, reason = "every program of tests uses its own part of this")]

use std::env;
use std::ffi::OsStr;
use std::fs::{self, File};
use std::io::{Read, Seek};
use std::ops::{Deref, DerefMut};
use std::path::PathBuf;
use std::process::{Child, Command, Output, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal, kill_process, test_kill_process};

/// Longer than any test waits for an event, on any busy machine.
const DEADLINE: Duration = Duration::from_mins(1);

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

/// Returns `command` as the last arguments of the command `before`, without input.
pub(crate) fn prefixed(before: &[&str], command: &Command) -> Command {
    let words = before.iter().map(OsStr::new);
    let mut words = words
        .chain([command.get_program()])
        .chain(command.get_args());
    let mut prefixed = Command::new(words.next().unwrap());
    prefixed.args(words).stdin(Stdio::null());
    if let Some(directory) = command.get_current_dir() {
        prefixed.current_dir(directory);
    }
    for (name, value) in command.get_envs() {
        match value {
            Some(value) => prefixed.env(name, value),
            None => prefixed.env_remove(name),
        };
    }
    prefixed
}

/// Returns the command that runs the test `name` of this program once more.
pub(crate) fn test_process(name: &str) -> Command {
    let mut command = Command::new(this_program());
    command.args(["--exact", name, "--nocapture"]);
    command
}

/// Asserts that the process of [`test_process`] ran its test, which passed.
#[track_caller]
pub(crate) fn assert_passed(output: &Output) {
    assert!(
        output.status.success() && stdout(output).contains("1 passed"),
        "{output:?}"
    );
}

/// Returns the path of `program`, which `cargo BUILD` puts beside the tests.
#[track_caller]
pub(crate) fn beside_tests(program: &str, build: &str) -> PathBuf {
    let tests = this_program();
    let directory = tests.ancestors().nth(2).expect("a directory for programs");
    let path = directory.join(program);
    assert!(
        path.exists(),
        "{} is missing: `cargo {build}` builds it",
        path.display()
    );
    path
}

fn this_program() -> PathBuf {
    env::current_exe().expect("a path")
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

/// Waits until the process waits in poll(2).
pub(crate) fn polls(pid: Pid) {
    eventually("the process waits", || {
        let channel = fs::read_to_string(format!("/proc/{pid}/wchan"));
        channel.is_ok_and(|channel| channel.contains("poll"))
    });
}

/// Returns a field of `proc_pid_stat(5)`, counted from the state, which follows the name in brackets.
pub(crate) fn stat_field(pid: Pid, number: usize) -> Option<String> {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    let mut fields = stat.rsplit_once(") ")?.1.split(' ');
    fields.nth(number).map(str::to_owned)
}

/// Returns the letter of a process's state.
pub(crate) fn state(pid: Pid) -> Option<char> {
    stat_field(pid, 0)?.chars().next()
}

/// Returns all processes, including zombies.
pub(crate) fn all_processes() -> impl Iterator<Item = Pid> {
    let entries = fs::read_dir("/proc").unwrap();
    entries.filter_map(|entry| Pid::from_raw(entry.ok()?.file_name().to_str()?.parse().ok()?))
}

/// Returns the processes whose parent is `parent`, including zombies.
pub(crate) fn children(parent: Pid) -> Vec<Pid> {
    let number = parent.to_string();
    let is_child = |process: &Pid| stat_field(*process, 1).as_ref() == Some(&number);
    all_processes().filter(is_child).collect()
}

/// Returns the value of a field of `proc_pid_status(5)`.
pub(crate) fn status_field(pid: Pid, name: &str) -> Option<String> {
    let status = fs::read_to_string(format!("/proc/{pid}/status")).ok()?;
    let mut fields = status.lines().filter_map(|line| line.split_once(':'));
    let (_, value) = fields.find(|(field, _)| *field == name)?;
    Some(value.trim().to_owned())
}

/// Returns whether a signal mask of `proc_pid_status(5)`, such as `SigCgt`, contains `signal`.
pub(crate) fn has_signal(pid: Pid, mask: &str, signal: Signal) -> bool {
    let mask = status_field(pid, mask).map(|mask| u64::from_str_radix(&mask, 16).unwrap());
    mask.is_some_and(|mask| mask & 1 << (signal.as_raw() - 1) != 0)
}

/// Returns the number of voluntary context switches of a process.
pub(crate) fn switches(pid: Pid) -> u64 {
    let count = status_field(pid, "voluntary_ctxt_switches");
    count.unwrap().parse().unwrap()
}

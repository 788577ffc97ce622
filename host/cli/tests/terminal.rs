//! `verrou run` at a terminal: Ctrl-Z, `fg` and Ctrl-C have the same effect as without it.
#![cfg(target_os = "linux")]

mod common;

use std::fs::{self, File};
use std::io::{Read, Write};
use std::os::unix::ffi::OsStrExt;
use std::path::Path;
use std::process::{Child, Command};
use std::sync::{Arc, Mutex};
use std::thread;

use common::{TestDir, eventually, lives, polls, stat_field, state, stopped};
use rustix::process::{Pid, Signal, kill_process};
use rustix::pty::{OpenptFlags, grantpt, openpt, ptsname, unlockpt};

/// The shell's prompt.
const READY: &str = "ready> ";

/// Shells with job control.
const SHELLS: [&[&str]; 2] = [&["sh", "-i"], &["bash", "--norc", "--noprofile", "-i"]];

/// A shell with a terminal, and the input and the screen of its user.
struct Terminal {
    master: File,
    shown: Arc<Mutex<String>>,
    shell: Child,
}

impl Terminal {
    fn new(dir: &TestDir) -> Self {
        let terminal = Self::of(dir, SHELLS[0]);
        terminal.shows(READY);
        terminal
    }

    /// Starts `program` with a terminal of its own.
    fn of(dir: &TestDir, program: &[&str]) -> Self {
        let master = openpt(OpenptFlags::RDWR | OpenptFlags::NOCTTY).unwrap();
        grantpt(&master).unwrap();
        unlockpt(&master).unwrap();
        let path = ptsname(&master, Vec::new()).unwrap();
        let path = Path::new(std::ffi::OsStr::from_bytes(path.as_bytes()));
        let slave = File::options().read(true).write(true).open(path).unwrap();
        let dup = || slave.try_clone().unwrap();
        // setsid(1) makes the terminal that of the session, which the shell itself cannot do.
        let shell = Command::new("setsid")
            .args(["--ctty", "--wait"])
            .args(program)
            .current_dir(dir.path(""))
            .env("VERROU_STORE", dir.store())
            .env("verrou", env!("CARGO_BIN_EXE_verrou"))
            .env("PS1", READY)
            .env_remove("ENV")
            .stdin(dup())
            .stdout(dup())
            .stderr(dup())
            .spawn()
            .unwrap();
        let master = File::from(master);
        let shown = Arc::default();
        let (mut screen, text) = (master.try_clone().unwrap(), Arc::clone(&shown));
        thread::spawn(move || read(&mut screen, &text));
        Self {
            master,
            shown,
            shell,
        }
    }

    fn types(&self, keys: &str) {
        (&self.master).write_all(keys.as_bytes()).unwrap();
    }

    /// Waits until the screen shows `text`, and discards everything up to it.
    #[track_caller]
    fn shows(&self, text: &str) {
        eventually(&format!("the screen shows {text:?}"), || {
            let mut shown = self.shown.lock().unwrap();
            let Some(at) = shown.find(text) else {
                return false;
            };
            shown.drain(..at + text.len());
            true
        });
    }

    /// Returns whether the group of `leader` is in the terminal's foreground.
    fn has_in_foreground(&self, leader: Pid) -> bool {
        rustix::termios::tcgetpgrp(&self.master).is_ok_and(|group| group == leader)
    }
}

fn read(screen: &mut File, text: &Mutex<String>) {
    let mut bytes = [0; 1024];
    // Reading fails when the last process that has the terminal ends.
    while let Ok(count @ 1..) = screen.read(&mut bytes) {
        let shown = String::from_utf8_lossy(&bytes[..count]);
        text.lock().unwrap().push_str(&shown);
    }
}

impl Drop for Terminal {
    fn drop(&mut self) {
        if thread::panicking()
            && let Ok(shown) = self.shown.lock()
        {
            eprintln!(
                "the rest of the screen: {:?}",
                shown.get(..2000).unwrap_or(&shown)
            );
        }
        let _ = self.shell.kill();
        let _ = self.shell.wait();
    }
}

/// A command that writes its process ID to a file, and repeats its input.
const CAT: &str = "sh -c 'echo $$ > pid; exec cat'";

fn run(options: &str, command: &str) -> String {
    format!("\"$verrou\" run k {options} -- {command}")
}

#[test]
fn a_command_is_stopped_continued_and_interrupted() {
    let dir = TestDir::new("lease");
    let terminal = Terminal::new(&dir);
    terminal.types(&format!("{}\n", run("--ttl 1h", CAT)));
    let cat = dir.pid();
    terminal.types("first\n");
    terminal.shows("first\r\nfirst");

    terminal.types("\x1a");
    terminal.shows(READY);
    stopped(cat);
    assert!(!terminal.has_in_foreground(cat));
    assert!(dir.is_held());

    terminal.types("fg\n");
    eventually("the command has the terminal again", || {
        terminal.has_in_foreground(cat)
    });
    terminal.types("second\n");
    terminal.shows("second\r\nsecond");

    terminal.types("\x03");
    terminal.shows(READY);
    terminal.types("echo code=$?\n");
    terminal.shows("\ncode=130");
    assert!(!lives(cat) && !dir.is_held());
}

#[test]
fn a_command_in_the_background_waits_for_the_terminal() {
    let dir = TestDir::new("lease");
    let terminal = Terminal::new(&dir);
    terminal.types(&format!("{} &\n", run("--ttl 1h", CAT)));
    let cat = dir.pid();
    stopped(cat);
    stopped(parent(cat));
    terminal.types("fg\n");
    eventually("the command has the terminal", || {
        terminal.has_in_foreground(cat)
    });
    terminal.types("words\n");
    terminal.shows("words\r\nwords");
    terminal.types("\x04");
    terminal.shows(READY);
    terminal.types("echo code=$?\n");
    terminal.shows("\ncode=0");
}

#[test]
fn a_command_that_was_stopped_too_long_is_not_continued() {
    let dir = TestDir::new("lease");
    let terminal = Terminal::new(&dir);
    let command = "sh -c 'echo $$ > pid; cat; : > went-on'";
    terminal.types(&format!("{}\n", run("--ttl 300ms", command)));
    let command = dir.pid();
    // A shell that is stopped while it starts cat(1) by vfork(2) would not count as stopped: it waits for cat(1).
    terminal.types("words\n");
    terminal.shows("words\r\nwords");
    terminal.types("\x1a");
    terminal.shows(READY);
    common::ends_with(&mut dir.run(&["--wait", "50s"], "true"), 0);
    terminal.types("fg\n");
    terminal.shows("E_LOCK_LOST");
    terminal.shows(READY);
    terminal.types("echo code=$?\n");
    terminal.shows("\ncode=76");
    assert!(!lives(command) && !dir.path("went-on").exists());
}

#[test]
fn command_that_was_stopped_too_long_goes_on_where_the_loss_is_ignored() {
    let dir = TestDir::new("lease");
    let terminal = Terminal::new(&dir);
    let options = "--ttl 300ms --on-lost ignore";
    terminal.types(&format!("{}\n", run(options, CAT)));
    let cat = dir.pid();
    terminal.types("first\n");
    terminal.shows("first\r\nfirst");
    terminal.types("\x1a");
    terminal.shows(READY);
    stopped(cat);
    common::ends_with(&mut dir.run(&["--wait", "50s"], "true"), 0);
    terminal.types("fg\n");
    terminal.shows("continues without it");
    eventually("the command has the terminal again", || {
        terminal.has_in_foreground(cat)
    });
    terminal.types("second\n");
    terminal.shows("second\r\nsecond");
    terminal.types("\x04");
    terminal.shows(READY);
    terminal.types("echo code=$?\n");
    terminal.shows("\ncode=76");
    assert!(!lives(cat));
}

#[test]
fn command_that_ends_while_the_wrapper_is_stopped_leaves_the_terminal_to_the_shell() {
    for shell in SHELLS {
        let dir = TestDir::new("lease");
        let terminal = Terminal::of(&dir, shell);
        terminal.shows(READY);
        let waits_for_it = "sh -c 'echo $$ > pid; until test -e go; do sleep 0.02; done'";
        terminal.types(&format!("{}\n", run("--ttl 1h", waits_for_it)));
        let command = dir.pid();
        let wrapper = parent(command);
        polls(wrapper);
        assert!(terminal.has_in_foreground(command));
        kill_process(wrapper, Signal::STOP).unwrap();
        terminal.shows(READY);
        fs::write(dir.path("go"), "").unwrap();
        eventually("the command has ended", || state(command) == Some('Z'));
        kill_process(wrapper, Signal::CONT).unwrap();
        eventually("the wrapper ends", || !lives(wrapper));
        terminal.types("echo $((6 * 7)) > answer; cat answer\n");
        terminal.shows("42\r\n");
        terminal.shows(READY);
    }
}

#[test]
fn interrupt_after_a_loss_does_not_replace_the_exit_code() {
    let dir = TestDir::new("lease");
    let terminal = Terminal::new(&dir);
    let ignores = "sh -c 'trap \"\" TERM; echo $$ > pid; exec sleep 1000'";
    let options = "--ttl 1h --grace 1h --on-lost term";
    terminal.types(&format!("{}\n", run(options, ignores)));
    let sleep = dir.pid();
    eventually("the command has the terminal", || {
        terminal.has_in_foreground(sleep)
    });
    common::ends_with(&mut dir.verrou(["force-release", "k"]), 0);
    terminal.shows("SIGTERM");
    terminal.types("\x03");
    terminal.shows(READY);
    terminal.types("echo code=$?\n");
    terminal.shows("\ncode=76");
    assert!(!lives(sleep));
}

fn parent(process: Pid) -> Pid {
    number(process, 1)
}

fn group(process: Pid) -> Pid {
    number(process, 2)
}

/// Returns the process ID in a field of [`stat_field`].
fn number(process: Pid, field: usize) -> Pid {
    let number = stat_field(process, field).unwrap();
    Pid::from_raw(number.parse().unwrap()).unwrap()
}

#[test]
fn stop_signal_to_the_wrapper_stops_both() {
    let dir = TestDir::new("lease");
    let terminal = Terminal::new(&dir);
    terminal.types(&format!("{}\n", run("--ttl 1h", CAT)));
    let cat = dir.pid();
    terminal.types("words\n");
    terminal.shows("words\r\nwords");
    let wrapper = parent(cat);
    polls(wrapper);
    kill_process(wrapper, Signal::TSTP).unwrap();
    terminal.shows(READY);
    stopped(cat);
    stopped(wrapper);
    terminal.types("fg\n");
    eventually("the command has the terminal again", || {
        terminal.has_in_foreground(cat)
    });
    terminal.types("\x04");
    terminal.shows(READY);
}

#[test]
fn an_interrupted_command_ends_the_script_that_runs_it() {
    let dir = TestDir::new("lease");
    let terminal = Terminal::new(&dir);
    fs::write(
        dir.path("script"),
        format!("{}\n: > went-on\n", run("", CAT)),
    )
    .unwrap();
    terminal.types("sh script\n");
    let cat = dir.pid();
    eventually("the command has the terminal", || {
        terminal.has_in_foreground(cat)
    });
    terminal.types("\x03");
    terminal.shows(READY);
    terminal.types("echo code=$?\n");
    terminal.shows("\ncode=130");
    assert!(!dir.path("went-on").exists());
}

#[test]
fn wait_notice_is_shown_at_a_terminal() {
    let dir = TestDir::new("lease");
    let script = "echo $$ > pid; until test -e go; do sleep 0.02; done";
    let (holder, _) = dir.start(&[], script);
    let terminal = Terminal::new(&dir);
    terminal.types(&format!("{}\n", run("", "echo granted")));
    terminal.shows("waiting for the lock `k`: held by process");
    fs::write(dir.path("go"), "").unwrap();
    terminal.shows("\ngranted");
    holder.end();
}

#[test]
fn a_pipeline_keeps_its_terminal() {
    let dir = TestDir::new("lease");
    let terminal = Terminal::new(&dir);
    let command = "sh -c 'echo $$ > pid; exec sleep 1000'";
    let reader = "sh -c 'read words < /dev/tty; echo read=$words; kill $(cat pid)'";
    terminal.types(&format!("{} | {reader}\n", run("", command)));
    let command = dir.pid();
    terminal.types("words\n");
    terminal.shows("\nread=words");
    terminal.shows(READY);
    assert!(!lives(command));
}

#[test]
fn a_script_keeps_its_terminal_from_what_it_runs_in_the_background() {
    let dir = TestDir::new("lease");
    let terminal = Terminal::new(&dir);
    let script = "\"$verrou\" run k -- sh -c 'echo $$ > pid; exec sleep 1000' &\nread words\necho read=$words\nkill $!\nwait\n";
    fs::write(dir.path("script"), script).unwrap();
    terminal.types("sh script\n");
    let sleep = dir.pid();
    assert!(!terminal.has_in_foreground(sleep));
    terminal.types("words\n");
    terminal.shows("\nread=words");
    terminal.shows(READY);
    // A signal before `verrou` forwards signals ends it alone; its guardian then ends the command.
    eventually("the command ends", || !lives(sleep));
}

/// Commands that hold a lock while another command runs: `verrou run`, and flock(1).
const HOLDERS: [&str; 3] = [
    "\"$verrou\" run k --",
    "\"$verrou\" fence check --file fence 7 --",
    "flock lockfile",
];

#[test]
fn redirected_command_is_lent_the_terminal_it_asks_for() {
    for shell in SHELLS {
        for holder in HOLDERS {
            let dir = TestDir::new("lease");
            let terminal = Terminal::of(&dir, shell);
            terminal.shows(READY);
            for asks in [
                "sh -c 'read a; echo got $a' | tee log",
                "sh -c 'read a < /dev/tty; echo got $a' < /dev/null",
                "sh -c 'read a < /dev/tty; echo got $a' < /dev/null | cat",
            ] {
                terminal.types(&format!("{holder} {asks}\n"));
                terminal.types("words\n");
                terminal.shows("got words\r\n");
                terminal.shows(READY);
            }
            // `stty` configures the terminal, and reads nothing.
            terminal.types(&format!("{holder} stty -echo | cat\n"));
            terminal.shows(READY);
        }
    }
}

#[test]
fn redirected_command_is_stopped_and_continued_with_its_pipeline() {
    for shell in SHELLS {
        let dir = TestDir::new("lease");
        let terminal = Terminal::of(&dir, shell);
        terminal.shows(READY);
        let sleep = "sh -c 'echo $$ > pid; exec sleep 1000'";
        let reader = "sh -c 'echo $$ > reader; exec cat'";
        terminal.types(&format!("{} | {reader}\n", run("--ttl 1h", sleep)));
        let job = [dir.pid(), parent(dir.pid()), dir.pid_in("reader")];
        polls(job[1]);
        for continues in ["bg", "fg"] {
            terminal.types("\x1a");
            terminal.shows(READY);
            job.into_iter().for_each(stopped);
            terminal.types(&format!("{continues}\n"));
            if continues == "bg" {
                terminal.shows(READY);
            }
            eventually("all processes continue", || {
                job.iter().all(|one| state(*one) == Some('S'))
            });
            if continues == "bg" {
                terminal.types("fg\n");
                eventually("the job is in the foreground", || {
                    terminal.has_in_foreground(group(job[1]))
                });
            }
        }
        assert!(dir.is_held());
        terminal.types("\x03");
        terminal.shows(READY);
        assert!(!job.into_iter().any(lives) && !dir.is_held());
    }
}

#[test]
fn command_that_was_lent_the_terminal_is_stopped_and_continued_with_its_pipeline() {
    for shell in SHELLS {
        let dir = TestDir::new("lease");
        let terminal = Terminal::of(&dir, shell);
        terminal.shows(READY);
        let asks = "sh -c 'echo $$ > pid; read a; read b; echo read $a $b'";
        let reader = "sh -c 'echo $$ > reader; exec cat'";
        terminal.types(&format!("{} | {reader}\n", run("--ttl 1h", asks)));
        let asking = dir.pid();
        let job = [asking, parent(asking), dir.pid_in("reader")];
        // The SIGCONT that follows would undo an earlier stop from the terminal.
        eventually("the command reads from the terminal", || {
            terminal.has_in_foreground(asking) && state(asking) == Some('S')
        });
        terminal.types("\x1a");
        terminal.shows(READY);
        job.into_iter().for_each(stopped);
        terminal.types("fg\n");
        eventually("the command has the terminal again", || {
            terminal.has_in_foreground(asking)
        });
        terminal.types("some\nwords\n");
        terminal.shows("\nread some words");
        terminal.shows(READY);
    }
}

#[test]
fn neighbour_of_a_command_gets_the_terminal_back() {
    let dir = TestDir::new("lease");
    let terminal = Terminal::new(&dir);
    let asks = "sh -c 'read a; echo $a; exec sleep 1000'";
    let reader = "sh -c 'read a; read b < /dev/tty; echo read $a $b; stty sane < /dev/tty; kill 0'";
    terminal.types(&format!("{} | {reader}\n", run("", asks)));
    terminal.types("some\n");
    terminal.types("words\n");
    terminal.shows("\nread some words");
    terminal.shows(READY);
    eventually("the lock is free", || !dir.is_held());
}

#[test]
fn two_commands_of_a_pipeline_share_the_terminal() {
    let dir = TestDir::new("lease");
    // dash counts a process that was stopped and continued as stopped once the others have ended.
    let terminal = Terminal::of(&dir, SHELLS[1]);
    terminal.shows(READY);
    let first = "\"$verrou\" run a -- sh -c 'read x; echo $x; read z; echo $z'";
    let second =
        "\"$verrou\" run b -- sh -c 'read x; read y < /dev/tty; echo now; read z; echo $x $y $z'";
    terminal.types(&format!("{first} | {second}\n"));
    terminal.types("one\n");
    terminal.types("two\n");
    terminal.types("three\n");
    terminal.shows("now\r\n");
    terminal.shows(READY);
}

#[test]
fn command_is_stopped_with_a_neighbour_that_asks_from_the_background() {
    let dir = TestDir::new("lease");
    let terminal = Terminal::new(&dir);
    let sleep = "sh -c 'echo $$ > pid; exec sleep 1000'";
    let reader = "sh -c 'until test -e go; do sleep 0.02; done; read a < /dev/tty; echo read $a'";
    terminal.types(&format!("{} | {reader} &\n", run("--ttl 1h", sleep)));
    let sleep = dir.pid();
    polls(parent(sleep));
    fs::write(dir.path("go"), "").unwrap();
    stopped(sleep);
    stopped(parent(sleep));
    terminal.types("fg\n");
    terminal.types("words\n");
    terminal.shows("\nread words");
    eventually("the command continues", || state(sleep) == Some('S'));
    terminal.types("\x03");
    terminal.shows(READY);
    assert!(!lives(sleep));
}

#[test]
fn command_that_suspends_itself_returns_the_terminal() {
    let dir = TestDir::new("lease");
    let terminal = Terminal::new(&dir);
    let suspends = "sh -c 'echo $$ > pid; kill -STOP $$; echo went on'";
    terminal.types(&format!("{}\n", run("--ttl 1h", suspends)));
    terminal.shows(READY);
    stopped(dir.pid());
    terminal.types("fg\n");
    terminal.shows("\nwent on");
    terminal.shows(READY);
}

#[test]
fn foreground_command_without_a_shell_is_not_stopped() {
    let dir = TestDir::new("lease");
    let program = [env!("CARGO_BIN_EXE_verrou"), "run", "k", "--", "sh", "-c"];
    let script = "echo $$ > pid; exec cat";
    let terminal = Terminal::of(&dir, &[&program[..], &[script]].concat());
    let cat = dir.pid();
    terminal.types("some\n");
    terminal.shows("some\r\nsome");
    terminal.types("\x1a");
    terminal.types("words\n");
    terminal.shows("words\r\nwords");
    assert!(lives(cat));
}

#[test]
fn background_command_without_a_shell_is_left_stopped() {
    let dir = TestDir::new("lease");
    let terminal = Terminal::new(&dir);
    let asks = "sh -c 'echo $$ > pid; read a < /dev/tty'";
    fs::write(dir.path("script"), format!("{} &\n", run("--ttl 1h", asks))).unwrap();
    terminal.types("sh script\n");
    terminal.shows(READY);
    let asking = dir.pid();
    let wrapper = parent(asking);
    stopped(asking);
    polls(wrapper);
    let before = writes(wrapper);
    for _ in 0..10 {
        assert!(dir.is_held());
    }
    assert_eq!(state(asking), Some('T'));
    // The wrapper writes one byte, to its guardian.
    assert!(writes(wrapper) <= before + 1, "nothing has changed");
    kill_process(wrapper, Signal::TERM).unwrap();
    eventually("the command and the wrapper end", || {
        !lives(asking) && !lives(wrapper)
    });
    assert!(!dir.is_held());
}

#[test]
fn command_that_is_to_end_is_lent_the_terminal_it_asks_for() {
    let dir = TestDir::new("lease");
    let terminal = Terminal::new(&dir);
    let script = "trap 'read a < /dev/tty; echo ended: $a; exit' TERM
        echo $$ > pid; while :; do sleep 0.05; done";
    fs::write(dir.path("script"), script).unwrap();
    let options = "--ttl 1h --grace 1h";
    terminal.types(&format!("{} < /dev/null\n", run(options, "sh script")));
    dir.pid();
    common::ends_with(&mut dir.verrou(["force-release", "k"]), 0);
    terminal.shows("SIGTERM");
    terminal.types("words\n");
    terminal.shows("ended: words\r\n");
    terminal.shows(READY);
}

#[test]
fn background_job_ends_its_command_also_where_it_may_not_write() {
    let dir = TestDir::new("lease");
    let terminal = Terminal::new(&dir);
    let sleep = "sh -c 'echo $$ > pid; exec sleep 1000'";
    terminal.types(&format!("stty tostop; {} &\n", run("--ttl 1h", sleep)));
    let sleep = dir.pid();
    polls(parent(sleep));
    common::ends_with(&mut dir.verrou(["force-release", "k"]), 0);
    terminal.shows("E_LOCK_LOST");
    eventually("the command ends", || !lives(sleep));
}

/// Returns the number of write calls of a process, by `proc_pid_io(5)`.
fn writes(process: Pid) -> u64 {
    let counts = fs::read_to_string(format!("/proc/{process}/io")).unwrap();
    let count = counts.lines().find_map(|line| line.strip_prefix("syscw: "));
    count.unwrap().parse().unwrap()
}

//! A command that has dropped root cannot affect the lock by the descriptors that it inherits.
#![cfg(target_os = "linux")]

mod common;

use std::fs;
use std::path::Path;
use std::process::Command;

use common::{KINDS, Started, TestDir, code, done, ends_with, eventually, lives, stderr, stdout};
use rustix::process::{Pid, Signal, geteuid, kill_process};

/// Drops root, as a daemon's worker does, and attacks the lock by every inherited descriptor of a pipe or file, and
/// the guardian. With the argument `daemon` a process of another session attacks, too, and then prints
/// its process ID; it ends when the directory of the test is removed. Prints `done`. Ends with 7 after
/// SIGTERM, unless it has the argument `stubborn`.
const ATTACK: &str = r"
import ctypes, fcntl, os, signal, stat, struct, sys, time
libc = ctypes.CDLL(None)
F_OFD_SETLK, PTRACE_ATTACH, PR_SET_DUMPABLE = 37, 16, 4
os.setgroups([])
os.setresgid(65534, 65534, 65534)
os.setresuid(65534, 65534, 65534)
# As after exec(2): it may look at its own descriptors in /proc.
libc.prctl(PR_SET_DUMPABLE, 1, 0, 0, 0)
fds = []
for fd in map(int, os.listdir('/proc/self/fd')):
    try:
        # A lock on a device, such as /dev/null, would block other programs.
        kind = stat.S_IFMT(os.fstat(fd).st_mode)
        if fd >= 3 and kind in (stat.S_IFREG, stat.S_IFIFO):
            fds.append(fd)
    except OSError:
        pass

def lock(fd, kind, start, length):
    fcntl.fcntl(fd, F_OFD_SETLK, struct.pack('hhqqi4x', kind, 0, start, length, 0))

def posix(fd, kind):
    fcntl.fcntl(fd, fcntl.F_SETLK, struct.pack('hhqqi4x', kind, 0, 0, 0, 0))

def reopened(fd, how):
    again = os.open('/proc/self/fd/%d' % fd, how | os.O_NONBLOCK)
    if os.fstat(again).st_size:
        os.pwrite(again, b'\xff' * 4096, 0)
    fcntl.flock(again, fcntl.LOCK_EX | fcntl.LOCK_NB)

def attack(keeps=False):
    for fd in fds:
        os.set_blocking(fd, False)
        for attempt in (
            lambda: os.pwrite(fd, b'\xff' * 24, 0),
            lambda: os.pwrite(fd, b'\xff' * 1024, 512),
            lambda: os.write(fd, b'\xff' * 65536),
            lambda: os.ftruncate(fd, 0),
            lambda: os.fchmod(fd, 0o666),
            lambda: os.link('/proc/self/fd/%d' % fd, '/tmp/verrou-linked', follow_symlinks=True),
            lambda: reopened(fd, os.O_RDWR),
            lambda: reopened(fd, os.O_RDONLY),
            lambda: lock(fd, fcntl.F_UNLCK, 0, 0),
            lambda: posix(fd, fcntl.F_UNLCK),
            lambda: fcntl.flock(fd, fcntl.LOCK_UN),
            lambda: keeps and fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB),
            lambda: keeps and lock(fd, fcntl.F_RDLCK, 0, 0),
            lambda: keeps and posix(fd, fcntl.F_RDLCK),
        ):
            try:
                attempt()
            except OSError:
                pass
    for process in filter(str.isdigit, os.listdir('/proc')):
        process = int(process)
        try:
            if process not in (os.getpid(), int(sys.argv[1])) and os.getpgid(process) == os.getpgid(int(sys.argv[1])):
                libc.ptrace(PTRACE_ATTACH, process, None, None)
                os.kill(process, signal.SIGKILL)
        except OSError:
            pass

stays = sys.argv[1:] == ['stubborn']
signal.signal(signal.SIGTERM, signal.SIG_IGN if stays else lambda *_: os._exit(7))
sys.argv[1:] = [str(os.getpid())] + sys.argv[1:]
attack()
if sys.argv[2:] == ['daemon'] and os.fork() == 0:
    os.setsid()
    attack(keeps=True)
    print('daemon', os.getpid(), flush=True)
    while os.path.exists('said'):
        time.sleep(0.1)
    os._exit(0)
print('done', flush=True)
# A signal just before `signal.pause` would not end it.
while True:
    time.sleep(0.1)
";

/// A way to hold a lock or a gate while a command runs, and to try it without waiting.
#[derive(Clone, Copy, Debug)]
enum Way {
    Run(&'static str),
    File,
    Gate,
}

const WAYS: [Way; 4] = [Way::Run("lease"), Way::Run("file"), Way::File, Way::Gate];

impl Way {
    fn dir(self) -> TestDir {
        TestDir::new(match self {
            Self::Run(kind) => kind,
            Self::File | Self::Gate => "file",
        })
    }

    fn command(self, dir: &TestDir, options: &[&str], command: &[&str]) -> Command {
        let words = match self {
            Self::Run(_) => &["run", "k", "--ttl", "1h"][..],
            Self::File => &["run", "--file", "exact"],
            Self::Gate => &["fence", "check", "--file", "gate", "7"],
        };
        let words = words.iter().chain(options).chain(&["--"]).chain(command);
        dir.verrou(words)
    }

    /// Tries the lock or the gate, and asserts the exit code.
    #[track_caller]
    fn ends_with(self, dir: &TestDir, expected: i32) {
        ends_with(&mut self.command(dir, &["--no-wait"], &["true"]), expected);
    }
}

/// Starts [`ATTACK`] as another user. Returns the process of `verrou`, and that of the attacker when the attack is
/// done; `None` where this test cannot run.
fn attacked(way: Way, dir: &TestDir, options: &[&str], argument: &str) -> Option<(Started, Pid)> {
    if !geteuid().is_root() {
        eprintln!("only root can change its user: a command of another user is not tested");
        return None;
    }
    fs::write(dir.path("exact"), "mine").unwrap();
    let script = format!("echo $$ > pid; exec python3 -c \"$1\" {argument} > said");
    let command = ["sh", "-c", &script, "sh", ATTACK];
    let started = Started::new(&mut way.command(dir, options, &command));
    eventually("the attack is done", || dir.read("said").contains("done"));
    Some((started, dir.pid()))
}

#[test]
fn unprivileged_command_cannot_unlock_what_it_runs_under() {
    for way in WAYS {
        for options in [&[][..], &["--close"]] {
            let dir = way.dir();
            let Some((holder, attacker)) = attacked(way, &dir, options, "") else {
                return;
            };
            way.ends_with(&dir, 75);
            kill_process(attacker, Signal::TERM).unwrap();
            let output = holder.end();
            assert_eq!(code(&output), 7, "{way:?}: {}", stderr(&output));
            way.ends_with(&dir, 0);
            assert_eq!(dir.read("exact"), "mine");
        }
    }
}

#[test]
fn unprivileged_process_that_is_left_behind_blocks_no_lock() {
    for way in WAYS {
        let dir = way.dir();
        let Some((holder, attacker)) = attacked(way, &dir, &[], "daemon") else {
            return;
        };
        eventually("the daemon attacks", || dir.read("said").contains("daemon"));
        kill_process(attacker, Signal::TERM).unwrap();
        assert_eq!(code(&holder.end()), 7);
        let said = dir.read("said");
        let daemon = said.lines().find_map(|line| line.strip_prefix("daemon "));
        let daemon = Pid::from_raw(daemon.unwrap().parse().unwrap()).unwrap();
        assert!(lives(daemon));
        for _ in 0..3 {
            way.ends_with(&dir, 0);
        }
        kill_process(daemon, Signal::KILL).unwrap();
    }
}

/// Returns a script that ends with 0 if the process has ended, reaped or not.
fn gone(process: Pid) -> String {
    format!("! grep '^State:.[^ZX]' /proc/{process}/status")
}

/// The guardian keeps the lock: with the death signal alone, the attacker would continue without the lock.
#[test]
fn killed_wrapper_of_an_unprivileged_command_keeps_the_lock_until_that_has_ended() {
    for way in WAYS {
        let dir = way.dir();
        let Some((holder, attacker)) = attacked(way, &dir, &[], "stubborn") else {
            return;
        };
        holder.signal(Signal::KILL);
        holder.end();
        way.ends_with(&dir, 75);
        assert!(lives(attacker), "it ends after the grace");
        let gone = gone(attacker);
        let next = ["sh", "-c", &gone];
        ends_with(&mut way.command(&dir, &["--wait", "50s"], &next), 0);
    }
}

/// Prints the numbers of the open descriptors.
const LIST: &str = "import os
for fd in sorted(map(int, os.listdir('/proc/self/fd'))):
    try:
        os.fstat(fd)
        print(fd)
    except OSError:
        pass";

#[test]
fn closed_command_inherits_nothing() {
    for way in WAYS {
        let dir = way.dir();
        let mut alone = Command::new("python3");
        let alone = ends_with(alone.args(["-c", LIST]), 0);
        for close in ["--close", "-o"] {
            let mut run = way.command(&dir, &[close], &["python3", "-c", LIST]);
            let output = ends_with(&mut run, 0);
            assert_eq!(stdout(&output), stdout(&alone), "{way:?}");
        }
        let output = ends_with(&mut way.command(&dir, &[], &["python3", "-c", LIST]), 0);
        assert_ne!(
            stdout(&output),
            stdout(&alone),
            "the test detects a descriptor"
        );
    }
}

/// Ignores SIGTERM, and leaves a process behind in another session.
const STUBBORN: &str = "trap '' TERM; setsid sleep 1000 & echo $! > left; echo $$ > pid; \
                        while :; do sleep 0.05; done";

#[test]
fn lock_of_a_killed_wrapper_lasts_as_long_as_the_commands_processes() {
    for way in WAYS {
        for close in [false, true] {
            let dir = way.dir();
            let grace: &[&str] = match way {
                Way::Gate => &[],
                _ => &["--grace", "200ms"],
            };
            let close_option: &[&str] = if close { &["--close"] } else { &[] };
            let options: Vec<_> = grace.iter().chain(close_option).copied().collect();
            let command = ["sh", "-c", STUBBORN];
            let holder = Started::new(&mut way.command(&dir, &options, &command));
            let command = dir.pid();
            let left = dir.pid_in("left");
            holder.signal(Signal::KILL);
            holder.end();
            assert!(lives(command), "it ignores SIGTERM");
            way.ends_with(&dir, 75);
            let gone = gone(command);
            if close {
                // Only the group counts.
                let next = ["sh", "-c", &gone];
                ends_with(&mut way.command(&dir, &["--wait", "50s"], &next), 0);
                assert!(lives(left));
                kill_process(left, Signal::KILL).unwrap();
                continue;
            }
            eventually("the group is killed", || !lives(command));
            way.ends_with(&dir, 75);
            assert!(lives(left), "it has inherited the pipe");
            kill_process(left, Signal::KILL).unwrap();
            ends_with(&mut way.command(&dir, &["--wait", "50s"], &["true"]), 0);
        }
    }
}

/// The wrapper is killed before it has read the guardian's process ID, or shortly after.
#[test]
fn wrapper_that_is_killed_at_once_leaves_no_worker() {
    let dir = TestDir::new("lease");
    let script = "sleep 1000 & echo $! > one; echo $$ > pid; wait";
    for _ in 0..100 {
        let (wrapper, _) = dir.start(&["--grace", "1h", "--zombie", "wait"], script);
        wrapper.signal(Signal::KILL);
        wrapper.end();
        let worker = dir.pid_in("one");
        eventually("the worker ends", || !lives(worker));
        fs::remove_file(dir.path("pid")).unwrap();
    }
}

/// The wrapper is killed before or shortly after it starts its command.
#[test]
fn wrapper_that_is_killed_at_any_moment_leaves_no_command_without_the_lock() {
    for kind in KINDS {
        let dir = TestDir::new(kind);
        // Detects two commands at the same time, because the directory can be created once.
        let script = "mkdir one || echo two > two; sleep 0.02; rmdir one";
        for number in 0..60_u64 {
            let mut run = dir.run(&["--wait", "50s", "--grace", "1h"], script);
            let started = Started::new(&mut run);
            std::thread::sleep(std::time::Duration::from_micros(number * 50));
            started.signal(Signal::KILL);
            let _ = started.end();
            // The command of the killed wrapper may have been ended before `rmdir`.
            let clean = "rmdir one 2> /dev/null; mkdir one && rmdir one || echo two > two";
            ends_with(
                &mut dir.run(&["--wait", "50s", "--zombie", "wait"], clean),
                0,
            );
            assert!(!Path::new(&dir.path("two")).exists(), "attempt {number}");
        }
        assert_eq!(code(&done(&mut dir.run(&[], "true"))), 0);
    }
}

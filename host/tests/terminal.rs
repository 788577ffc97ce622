//! `verrou run` at a terminal: Ctrl-Z, `fg` and Ctrl-C mean what they mean without it.
#![cfg(target_os = "linux")]

mod common;

use std::fs::{self, File};
use std::io::{Read, Write};
use std::os::unix::ffi::OsStrExt;
use std::path::Path;
use std::process::{Child, Command};
use std::sync::{Arc, Mutex};
use std::thread;

use common::{Place, eventually, lives, stopped};
use rustix::process::{Pid, Signal, kill_process};
use rustix::pty::{OpenptFlags, grantpt, openpt, ptsname, unlockpt};

/// A shell with a terminal, and a person at it.
struct Terminal {
    master: File,
    shown: Arc<Mutex<String>>,
    shell: Child,
}

impl Terminal {
    fn new(place: &Place) -> Self {
        let master = openpt(OpenptFlags::RDWR | OpenptFlags::NOCTTY).unwrap();
        grantpt(&master).unwrap();
        unlockpt(&master).unwrap();
        let path = ptsname(&master, Vec::new()).unwrap();
        let path = Path::new(std::ffi::OsStr::from_bytes(path.as_bytes()));
        let slave = File::options().read(true).write(true).open(path).unwrap();
        let dup = || slave.try_clone().unwrap();
        // setsid(1) makes the terminal the session's, for which the shell itself has no way.
        let shell = Command::new("setsid")
            .args(["--ctty", "--wait", "sh", "-i"])
            .current_dir(place.path(""))
            .env("VERROU_STORE", place.store())
            .env("verrou", env!("CARGO_BIN_EXE_verrou"))
            .env("PS1", "ready> ")
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
        let terminal = Self {
            master,
            shown,
            shell,
        };
        terminal.shows("ready> ");
        terminal
    }

    fn types(&self, keys: &str) {
        (&self.master).write_all(keys.as_bytes()).unwrap();
    }

    /// Waits until the screen shows `text`, and forgets everything up to it.
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

    /// Whether the terminal listens to the group of `leader`.
    fn listens_to(&self, leader: Pid) -> bool {
        rustix::termios::tcgetpgrp(&self.master).is_ok_and(|group| group == leader)
    }
}

fn read(screen: &mut File, text: &Mutex<String>) {
    let mut bytes = [0; 1024];
    // It ends with the last process that has the terminal.
    while let Ok(count @ 1..) = screen.read(&mut bytes) {
        let shown = String::from_utf8_lossy(&bytes[..count]);
        text.lock().unwrap().push_str(&shown);
    }
}

impl Drop for Terminal {
    fn drop(&mut self) {
        let _ = self.shell.kill();
        let _ = self.shell.wait();
    }
}

/// A command that says its number and repeats what is typed.
const CAT: &str = "sh -c 'echo $$ > pid; exec cat'";

fn run(options: &str, command: &str) -> String {
    format!("\"$verrou\" run k {options} -- {command}")
}

#[test]
fn a_command_is_stopped_continued_and_interrupted() {
    let place = Place::new("lease");
    let terminal = Terminal::new(&place);
    terminal.types(&format!("{}\n", run("--ttl 1h", CAT)));
    let cat = place.pid();
    terminal.types("first\n");
    terminal.shows("first\r\nfirst");

    terminal.types("\x1a");
    terminal.shows("ready> ");
    stopped(cat);
    assert!(!terminal.listens_to(cat));
    assert!(place.is_held());

    terminal.types("fg\n");
    eventually("it has the terminal again", || terminal.listens_to(cat));
    terminal.types("second\n");
    terminal.shows("second\r\nsecond");

    terminal.types("\x03");
    terminal.shows("ready> ");
    terminal.types("echo code=$?\n");
    terminal.shows("\ncode=130");
    assert!(!lives(cat) && !place.is_held());
}

#[test]
fn a_command_in_the_background_waits_for_the_terminal() {
    let place = Place::new("lease");
    let terminal = Terminal::new(&place);
    terminal.types(&format!("{} &\n", run("--ttl 1h", CAT)));
    let cat = place.pid();
    stopped(cat);
    stopped(parent(cat));
    terminal.types("fg\n");
    eventually("it has the terminal", || terminal.listens_to(cat));
    terminal.types("words\n");
    terminal.shows("words\r\nwords");
    terminal.types("\x04");
    terminal.shows("ready> ");
    terminal.types("echo code=$?\n");
    terminal.shows("\ncode=0");
}

#[test]
fn a_command_that_was_stopped_too_long_is_not_continued() {
    let place = Place::new("lease");
    let terminal = Terminal::new(&place);
    let command = "sh -c 'echo $$ > pid; cat; : > went-on'";
    terminal.types(&format!("{}\n", run("--ttl 300ms", command)));
    let command = place.pid();
    // A shell that is stopped while it starts cat(1) by vfork(2) waits for that, and is not.
    terminal.types("words\n");
    terminal.shows("words\r\nwords");
    terminal.types("\x1a");
    terminal.shows("ready> ");
    common::ends_with(&mut place.run(&["--wait", "50s"], "true"), 0);
    terminal.types("fg\n");
    terminal.shows("E_LOCK_LOST");
    terminal.shows("ready> ");
    terminal.types("echo code=$?\n");
    terminal.shows("\ncode=76");
    assert!(!lives(command) && !place.path("went-on").exists());
}

/// `proc_pid_stat(5)`.
fn parent(process: Pid) -> Pid {
    let stat = fs::read_to_string(format!("/proc/{process}/stat")).unwrap();
    let parent = stat.rsplit_once(") ").unwrap().1.split(' ').nth(1);
    Pid::from_raw(parent.unwrap().parse().unwrap()).unwrap()
}

#[test]
fn a_stop_that_is_sent_to_us_stops_both() {
    let place = Place::new("lease");
    let terminal = Terminal::new(&place);
    terminal.types(&format!("{}\n", run("--ttl 1h", CAT)));
    let cat = place.pid();
    terminal.types("words\n");
    terminal.shows("words\r\nwords");
    let wrapper = parent(cat);
    // Until it listens, it would be stopped alone.
    eventually("the wrapper waits", || {
        let place = fs::read_to_string(format!("/proc/{wrapper}/wchan"));
        place.is_ok_and(|place| place.contains("poll"))
    });
    kill_process(wrapper, Signal::TSTP).unwrap();
    terminal.shows("ready> ");
    stopped(cat);
    stopped(wrapper);
    terminal.types("fg\n");
    eventually("it has the terminal again", || terminal.listens_to(cat));
    terminal.types("\x04");
    terminal.shows("ready> ");
}

#[test]
fn an_interrupted_command_ends_the_script_that_runs_it() {
    let place = Place::new("lease");
    let terminal = Terminal::new(&place);
    fs::write(
        place.path("script"),
        format!("{}\n: > went-on\n", run("", CAT)),
    )
    .unwrap();
    terminal.types("sh script\n");
    let cat = place.pid();
    eventually("it has the terminal", || terminal.listens_to(cat));
    terminal.types("\x03");
    terminal.shows("ready> ");
    terminal.types("echo code=$?\n");
    terminal.shows("\ncode=130");
    assert!(!place.path("went-on").exists());
}

#[test]
fn a_person_is_told_what_is_waited_for() {
    let place = Place::new("lease");
    let script = "echo $$ > pid; until test -e go; do sleep 0.02; done";
    let (holder, _) = place.start(&[], script);
    let terminal = Terminal::new(&place);
    terminal.types(&format!("{}\n", run("", "echo granted")));
    terminal.shows("waiting for the lock `k`: held by process");
    fs::write(place.path("go"), "").unwrap();
    terminal.shows("\ngranted");
    holder.end();
}

#[test]
fn a_pipeline_keeps_its_terminal() {
    let place = Place::new("lease");
    let terminal = Terminal::new(&place);
    let command = "sh -c 'echo $$ > pid; exec sleep 1000'";
    let reader = "sh -c 'read words < /dev/tty; echo read=$words; kill $(cat pid)'";
    terminal.types(&format!("{} | {reader}\n", run("", command)));
    let command = place.pid();
    terminal.types("words\n");
    terminal.shows("\nread=words");
    terminal.shows("ready> ");
    assert!(!lives(command));
}

#[test]
fn a_script_keeps_its_terminal_from_what_it_runs_in_the_background() {
    let place = Place::new("lease");
    let terminal = Terminal::new(&place);
    let script = "\"$verrou\" run k -- sh -c 'echo $$ > pid; exec sleep 1000' &\nread words\necho read=$words\nkill $!\nwait\n";
    fs::write(place.path("script"), script).unwrap();
    terminal.types("sh script\n");
    let sleep = place.pid();
    assert!(!terminal.listens_to(sleep));
    terminal.types("words\n");
    terminal.shows("\nread=words");
    terminal.shows("ready> ");
    assert!(!lives(sleep));
}

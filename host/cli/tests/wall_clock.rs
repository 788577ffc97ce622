//! Locks while the wall clock is stepped. The machine's clock stays unchanged, because other programs use it: the
//! tested processes see another one.
#![cfg(target_os = "linux")]

mod common;
#[path = "../../tests/common/lock_files.rs"]
mod lock_files;

use std::fs;
use std::path::Path;
use std::process::Command;
use std::time::{Duration, Instant};

use common::{KINDS, Started, TestDir, code, ends_with, eventually, stderr, stdout};
use lock_files::open;
use verrou::{Name, SerializedLock};

const HOUR: i64 = 3600;
const TEN_YEARS: i64 = 10 * 365 * 24 * HOUR;

/// A directory of a test, whose processes see a stepped wall clock.
struct SteppedClock(TestDir);

impl SteppedClock {
    /// Returns `None` if there is no C compiler to build `wall_clock.c` with.
    fn new(kind: &'static str) -> Option<Self> {
        let dir = TestDir::new(kind);
        let source = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/wall_clock.c");
        let mut compiler = Command::new("cc");
        compiler.args(["-shared", "-fPIC", "-O1", "-o"]);
        compiler.arg(dir.path("wall_clock.so")).arg(source);
        match compiler.output() {
            Ok(output) if output.status.success() => {
                let clock = Self(dir);
                clock.step(0);
                return Some(clock);
            }
            Ok(output) => eprintln!("{}", stderr(&output)),
            Err(err) => eprintln!("{err}"),
        }
        eprintln!("no C compiler `cc` here: a stepped wall clock is not tested");
        None
    }

    /// Steps the clock to `seconds` ahead of the machine's.
    fn step(&self, seconds: i64) {
        // Replaced atomically, so that no process reads half of it.
        fs::write(self.0.path("new"), seconds.to_string()).unwrap();
        fs::rename(self.0.path("new"), self.0.path("ahead")).unwrap();
    }

    fn shown_to(&self, mut command: Command) -> Command {
        command.env("LD_PRELOAD", self.0.path("wall_clock.so"));
        command.env("WALL_CLOCK_AHEAD", self.0.path("ahead"));
        command
    }

    /// Asserts that `verrou` with these arguments ends with this exit code, and returns its standard output.
    #[track_caller]
    fn verrou(&self, arguments: &[&str], expected: i32) -> String {
        let output = ends_with(&mut self.shown_to(self.0.verrou(arguments)), expected);
        stdout(&output).trim_end().to_owned()
    }
}

#[test]
fn held_lock_is_renewed_while_the_wall_clock_is_stepped() {
    for kind in KINDS {
        let Some(clock) = SteppedClock::new(kind) else {
            return;
        };
        let dir = &clock.0;
        let stay = "echo $$ > pid; until test -e end; do sleep 0.01; done";
        let holder = Started::new(&mut clock.shown_to(dir.run(&["--ttl", "3s"], stay)));
        dir.pid();
        let (store, name) = (open(kind, &dir.locks()), Name::new("k").unwrap());
        let (mut last, mut renewals) = (Duration::ZERO, 0);
        let mut steps = [HOUR, -HOUR, 0, 24 * HOUR, -24 * HOUR].iter().cycle();
        // The first time counts as a renewal, too.
        eventually("the lease is renewed twice", || {
            clock.step(*steps.next().unwrap());
            clock.verrou(&["run", "k", "--no-wait", "--", "true"], 75);
            let holder = store.holders(&name).unwrap().pop().expect("a holder");
            let left = holder.remaining.expect("a ttl");
            renewals += u32::from(left > last);
            last = left;
            renewals > 2
        });
        fs::write(dir.path("end"), "").unwrap();
        let output = holder.end();
        assert_eq!(code(&output), 0, "{kind}: {}", stderr(&output));
    }
}

/// Returns when a serialized lock ends by the wall clock, in milliseconds since 1970.
fn expires(text: &str) -> i64 {
    let lock: SerializedLock = text.parse().unwrap();
    let millis = lock.expires().expect("a ttl").as_millis();
    i64::try_from(millis).unwrap()
}

#[test]
fn detached_lease_ends_by_its_ttl_while_the_wall_clock_is_stepped() {
    const TTL: Duration = Duration::from_millis(700);

    let Some(clock) = SteppedClock::new("lease") else {
        return;
    };
    for (step, later) in [
        (HOUR, -HOUR),
        (-HOUR, 0),
        (TEN_YEARS, -TEN_YEARS),
        (-TEN_YEARS, 0),
    ] {
        clock.step(0);
        let long = clock.verrou(&["acquire", "long", "--ttl", "1h"], 0);
        let before = Instant::now();
        let short = clock.verrou(&["acquire", "k", "--ttl", "700ms"], 0);
        clock.step(step);
        clock.verrou(&["run", "long", "--no-wait", "--", "true"], 75);
        clock.verrou(&["run", "k", "--wait", "20s", "--", "true"], 0);
        assert!(before.elapsed() >= TTL, "stepped by {step} s");

        // The processes see the step: the displayed end differs by it.
        let stepped = clock.verrou(&["acquire", "k", "--ttl", "1h"], 0);
        let seen = (expires(&stepped) - expires(&short)) / 1000 - HOUR;
        assert!((seen - step).abs() < 60, "stepped by {step} s, seen {seen}");
        // A serialized lock does not depend on the wall clock, either.
        clock.step(later);
        for lock in [&long, &stepped] {
            clock.verrou(&["extend", lock], 0);
            clock.verrou(&["release", lock], 0);
        }
    }
}

/// A `wasi:` store has no clock but the wall clock. The allowance is that of its file `store`.
#[test]
fn lease_by_the_wall_clock_is_safe_from_clocks_that_differ_by_no_more_than_the_allowance() {
    let Some(clock) = SteppedClock::new("wasi") else {
        return;
    };
    let allow = |hours: i64| {
        let millis = hours * HOUR * 1000;
        let text = format!("verrou hard links 1\nskew-milliseconds {millis}\n");
        fs::write(clock.0.path("locks/store"), text).unwrap();
    };
    let ttl = ["acquire", "k", "--ttl", "1h"];
    let serialized = clock.verrou(&ttl, 0);
    clock.step(HOUR + 60);
    allow(2);
    clock.verrou(&["run", "k", "--no-wait", "--", "true"], 75);
    // A clock that is behind lets the lease last longer.
    clock.step(-HOUR);
    clock.verrou(&["run", "k", "--no-wait", "--", "true"], 75);
    clock.step(HOUR + 60);
    allow(0);
    clock.verrou(&["run", "k", "--no-wait", "--", "true"], 0);
    clock.step(0);
    let mut release = clock.shown_to(clock.0.verrou(["release"]));
    release.env("VERROU_LOCK", serialized.trim());
    assert_eq!(code(&common::done(&mut release)), 77);
}

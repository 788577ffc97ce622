//! Hostile names, serialized locks, options and environments on the command line: each works, or is named in the error,
//! and nothing that a terminal would execute is printed.
#![cfg(target_os = "linux")]

mod common;
#[path = "../../tests/common/hostile_names.rs"]
mod hostile_names;
#[path = "../../tests/common/store_calls.rs"]
mod store_calls;

use std::ffi::{OsStr, OsString};
use std::fs;
use std::io::{Seek, Write};
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::process::{Command, Output};
use std::time::Duration;

use common::waiters::waiting;
use common::{KINDS, Started, TestDir, code, done, ends_with, eventually, stderr, stdout};
use hostile_names::{assert_plain_files, hostile_names};
use serde_json::Value;
use store_calls::granted;
use verrou::{Fence, Name, Printable, SerializedLock, Store, Ttl, is_hidden};
use verrou_host::{AnyStore, StoreOptions};

/// Runs a command, and asserts that it ends with one of `codes`, and that its error contains one of `said`.
#[track_caller]
fn assert_named(command: &mut Command, codes: &[i32], said: &[&str]) -> Output {
    let output = done(command);
    let (code, errors) = (code(&output), stderr(&output));
    let start = |text: &str| text.chars().take(300).collect::<String>();
    let title = start(&format!("{command:?}"));
    assert!(codes.contains(&code), "{title}: {code}: {}", start(errors));
    if code != 0 {
        let is_named = said.is_empty() || said.iter().any(|part| errors.contains(part));
        let is_error = errors.starts_with("verrou: ") && is_named;
        assert!(is_error, "{title}: none of {said:?} in {}", start(errors));
    }
    let mut printed = errors.chars().chain(stdout(&output).chars());
    let raw = printed.find(|char| is_hidden(*char) && !"\n\t".contains(*char));
    assert_eq!(raw, None, "{title}: printed to the terminal");
    output
}

/// Asserts [`assert_named`], and that the same command line with `--json` prints its error as lines of JSON.
#[track_caller]
fn assert_named_in_both_forms(line: &dyn Fn(&[&str]) -> Command, codes: &[i32], said: &[&str]) {
    assert_named(&mut line(&[]), codes, said);
    let mut command = line(&["--json"]);
    let output = done(&mut command);
    let title = format!("{command:?}: {output:?}");
    assert!(output.status.code().is_some_and(|it| it != 101), "{title}");
    for line in stderr(&output).lines() {
        assert!(serde_json::from_str::<Value>(line).is_ok(), "{title}");
    }
}

/// Returns `name` as the command prints it: one line, without hidden characters.
fn printable_start(name: &str) -> String {
    let start: String = name.chars().take(30).collect();
    Printable(&start).to_string()
}

#[test]
fn hostile_name_is_a_lock_or_named_in_the_error() {
    let dir = TestDir::new("lease");
    let directory = dir.locks();
    let not_text: [&[u8]; 6] = [
        b"\xff",
        b"a\xffb",
        b"\xc3\x28",
        b"\xed\xa0\x80",
        b"\xc0\xaf",
        b"\xf5\x80\x80\x80",
    ];
    let names = hostile_names().into_iter().map(OsString::from);
    let names = names.chain(not_text.map(|bytes| OsString::from_vec(bytes.to_vec())));
    let mut locks = 0;
    // An argument cannot contain NUL, and is shorter than 128 KiB.
    for name in names.filter(|it| !it.as_bytes().contains(&0) && it.len() < 128 << 10) {
        let text = name.to_str();
        let is_name = text.is_some_and(|text| Name::new(text).is_ok());
        locks += usize::from(is_name);
        let starts_with = |start: &str| name.as_bytes().starts_with(start.as_bytes());
        let is_option = name.len() > 1 && starts_with("-");
        let is_path = ["/", "./", "../"].into_iter().any(starts_with);
        for command in [&["acquire", "--no-wait"][..], &["show"]] {
            // As a plain argument, and as one that can only be a name.
            for is_explicit in [false, true] {
                let mut word = OsString::from(if is_explicit { "--name=" } else { "" });
                word.push(&name);
                let mut verrou = dir.verrou(command);
                let codes: &[i32] = match (is_name, is_option) {
                    (false, _) => &[64],
                    // An option, which may exist.
                    (true, true) if !is_explicit => &[0, 64],
                    (true, false) if !is_explicit && is_path => &[64],
                    // The command before has acquired the lock.
                    (true, false) if command[0] == "acquire" && is_explicit && !is_path => &[75],
                    (true, _) => &[0],
                };
                let start = text.map_or("UTF-8".to_owned(), printable_start);
                let said = [&start, "lock's name", "NAME>", "[NAME]"];
                assert_named(verrou.arg(word), codes, &said);
            }
        }
    }
    assert!(assert_plain_files(&dir.path(""), &directory, "lease") <= locks);
}

/// Returns texts that are no serialized lock, or a changed one.
fn changed_locks(right: &str, lock: &SerializedLock) -> Vec<String> {
    let owner = lock.owner().to_string();
    let expires = format!("\"expires\":{}", lock.expires().unwrap().as_millis());
    let fence = format!("\"fence\":{}", lock.fence().map_or(0, Fence::get));
    let (version, ttl) = ("\"version\":1", "\"ttl\":3600000");
    let with = |from: &str, to: &str| {
        assert!(right.contains(from), "{from}");
        right.replacen(from, to, 1)
    };
    let member = |value: &str| with("{", &format!("{{\"x\":{value},"));
    let mut texts: Vec<String> = ["", " ", "null", "{}", "[]", "17"]
        .map(ToString::to_string)
        .into();
    for length in [1, right.len() / 2, right.len() - 1] {
        texts.push(right[..length].to_owned());
    }
    texts.extend([
        format!("{right}{right}"),
        format!("{right} x"),
        format!("\u{feff}{right}"),
        format!("'{right}'"),
        "[".repeat(60_000),
        "{\"a\":".repeat(15_000),
        member(&("[".repeat(30_000) + "1" + &"]".repeat(30_000))),
        member(&format!("\"{}\"", "x".repeat(60_000))),
        with(version, &format!("{version},{version}")),
    ]);
    for name in ["another", "", "../../etc/passwd", "a\\u0000b", "\\ud800"] {
        texts.push(with("transferred", name));
    }
    texts.push(with("transferred", &"n".repeat(1025)));
    texts.push(with("transferred", "\u{1b}[31m"));
    for other in ["0".repeat(32), "g".repeat(32), format!("{owner}0")] {
        texts.push(with(&owner, &other));
    }
    texts.push(with(&owner, &owner[1..]));
    texts.push(with(&format!("\"{owner}\""), "0"));
    for (member, values) in [
        (
            version,
            &["0", "2", "18446744073709551615", "\"1\"", "-1"][..],
        ),
        (
            ttl,
            &[
                "0",
                "1",
                "-1",
                "18446744073709551615",
                "18446744073709551616",
                "1e308",
                "NaN",
                "\"1h\"",
            ],
        ),
        (
            &fence,
            &["0", "18446744073709551615", "18446744073709551616", "1.5"],
        ),
        (
            &expires,
            &["0", "18446744073709551615", "18446744073709551616"],
        ),
    ] {
        let (key, _) = member.split_once(':').unwrap();
        for value in values {
            texts.push(with(member, &format!("{key}:{value}")));
        }
    }
    texts
}

/// Runs a command to its end, with `input` as its standard input.
fn with_input(command: &mut Command, input: &[u8]) -> Command {
    let mut file = tempfile::tempfile().unwrap();
    file.write_all(input).unwrap();
    file.rewind().unwrap();
    command.stdin(file);
    std::mem::replace(command, Command::new("true"))
}

const NO_LOCK: [&str; 7] = [
    "E_INVALID_SERIALIZED_LOCK",
    "E_LOCK_NOT_OWNER",
    "VERROU_LOCK",
    "<LOCK>",
    "[LOCK]",
    "unexpected argument",
    "standard input",
];

/// Returns a test directory with a held lock, the serialized lock, and its text.
fn held_lock() -> (TestDir, SerializedLock, String) {
    let dir = TestDir::new("lease");
    let output = ends_with(
        &mut dir.verrou(["acquire", "transferred", "--ttl", "1h"]),
        0,
    );
    let right = stdout(&output).trim_end().to_owned();
    (dir, right.parse().unwrap(), right)
}

#[test]
fn changed_serialized_lock_is_rejected_from_each_source() {
    let (dir, lock, right) = held_lock();
    for text in changed_locks(&right, &lock) {
        let read = text.trim().parse::<SerializedLock>();
        let is_its =
            |read: &SerializedLock| (read.name(), read.owner()) == (lock.name(), lock.owner());
        // A text with the right owner may extend the lock; no other one may extend or release it.
        let (codes, commands): (&[i32], &[&[&str]]) = match read {
            Ok(read) if is_its(&read) => (&[0, 77], &[&["extend", "--ttl", "1h"]]),
            Ok(_) => (&[77], &[&["extend"], &["release"]]),
            Err(_) => (&[64], &[&["extend"], &["release"]]),
        };
        for command in commands {
            assert_named(dir.verrou(*command).arg(&text), codes, &NO_LOCK);
            let mut by_variable = dir.verrou(*command);
            assert_named(by_variable.env("VERROU_LOCK", &text), codes, &NO_LOCK);
            let mut by_input = with_input(dir.verrou(*command).arg("-"), text.as_bytes());
            assert_named(&mut by_input, codes, &NO_LOCK);
        }
    }
    ends_with(&mut dir.verrou(["release", &right]), 0);
}

#[test]
fn long_input_that_is_no_serialized_lock_is_rejected() {
    let (dir, _, right) = held_lock();
    for input in [
        vec![b'x'; 10 << 20],
        vec![b'['; 10 << 20],
        vec![0xff; 100],
        vec![0; 1 << 20],
        [vec![b' '; 1 << 20], right.clone().into_bytes()].concat(),
    ] {
        let mut release = with_input(&mut dir.verrou(["release", "-"]), &input);
        assert_named(&mut release, &[64], &NO_LOCK);
    }
    let not_text = OsStr::from_bytes(b"\xff{}");
    assert_named(dir.verrou(["release"]).arg(not_text), &[64], &["UTF-8"]);
    ends_with(&mut dir.verrou(["release", &right]), 0);
}

/// Arguments, the expected exit codes, and the texts of which the error contains one.
type Line<'a> = (&'a [&'a str], &'a [i32], &'a [&'a str]);

/// A duration that is out of range.
const HUGE: &str = "500000000000years";

/// Options of `verrou run` for a free lock.
const OPTIONS: [Line<'static>; 41] = [
    (&["--ttl", ""], &[64], &["--ttl"]),
    (&["--ttl", "１０s"], &[64], &["--ttl"]),
    (&["--ttl", HUGE], &[64], &["--ttl"]),
    (&["--ttl", "9223372036854"], &[64], &["--ttl"]),
    (&["--ttl", "9223372036854ms"], &[0], &[]),
    (&["--ttl", "292y"], &[0], &[]),
    (&["--ttl", "10ms"], &[0, 76], &["ttl", "time"]),
    (&["--ttl", "none"], &[0], &[]),
    (&["--ttl", "null"], &[0], &[]),
    (&["--ttl", "NONE"], &[64], &["--ttl"]),
    (&["--ttl"], &[64], &["--ttl", "true"]),
    (&["--ttl", "1s", "--ttl", "2s"], &[64], &["--ttl"]),
    (&["--wait", "-1"], &[64], &["--wait"]),
    (&["--wait", "none"], &[64], &["--wait"]),
    (&["--wait", "18446744073709551615"], &[64], &["--wait"]),
    (&["--wait", "18446744073709551615s"], &[0], &[]),
    (&["--wait", "18446744073709551616"], &[64], &["--wait"]),
    (&["--wait", HUGE], &[0], &[]),
    (&["--attempts", "1.5"], &[64], &["--attempts"]),
    (&["--attempts", "4294967295"], &[0], &[]),
    (&["--attempts", "4294967296"], &[64], &["--attempts"]),
    (&["--attempts", "many"], &[64], &["--attempts"]),
    (&["--retry-delay", "1ns"], &[0], &[]),
    (&["--retry-delay", "-5"], &[64], &["--retry-delay"]),
    (&["--retry-delay", HUGE], &[0], &[]),
    (&["--grace", "-1"], &[64], &["--grace", "-1"]),
    (&["--grace", "never"], &[64], &["--grace"]),
    (&["--grace", HUGE], &[0], &[]),
    (&["--zombie", "eat"], &[64], &["--zombie"]),
    (&["--on-lost", ""], &[64], &["--on-lost"]),
    (&["-E", "x"], &[64], &["x"]),
    (&["-E", "0"], &[0], &[]),
    (&["--unknown"], &[64], &["--unknown"]),
    (&["--group", ""], &[73], &["group"]),
    (&["--group", "../../etc"], &[73], &["../../etc"]),
    (&["--any-file-system=maybe"], &[64], &["--any-file-system"]),
    (&["--json=1"], &[64], &["--json"]),
    (&["--store", ""], &[64], &["--store"]),
    (&["--store", ":"], &[64], &["--store"]),
    (&["--store", "lease"], &[64], &["lease"]),
    (&["--store", "file:"], &[64], &["file:"]),
];

/// Values of `--store`. The text after an unknown scheme may contain a password, which is not printed.
const STORES: [(&str, i32, &[&str]); 17] = [
    ("LEASE:/tmp", 64, &["LEASE:/tmp"]),
    // Invalid also in a program with Redis.
    ("redis://localhost:x", 64, &["`redis:`"]),
    (
        "http://[::1]:99999/",
        64,
        &["`http:…` is not the URL of a store"],
    ),
    ("\u{1b}[31m:x", 64, &["--store"]),
    ("lease:/dev/null", 73, &["/dev/null"]),
    ("lease:/dev/null/x", 73, &["/dev/null/x"]),
    ("lease:/proc/self", 73, &["/proc/"]),
    ("file:/proc/x", 73, &["/proc/x"]),
    ("lease:/sys", 73, &["/sys"]),
    ("file:/dev/full", 73, &["/dev/full"]),
    ("lease:/proc/self/fd/99", 73, &["/proc/self/fd/99"]),
    ("lease:/dev/fd/0", 73, &["/dev/fd/0", "/dev/null"]),
    ("lease://etc//passwd", 73, &["passwd"]),
    ("file:/etc/passwd", 73, &["/etc/passwd"]),
    ("lease:/etc/shadow/..", 73, &["/etc/shadow"]),
    ("lease:a-file", 73, &["a-file"]),
    ("lease:a-file/below", 73, &["a-file"]),
];

#[test]
fn hostile_option_works_or_is_named_in_the_error() {
    let dir = TestDir::new("lease");
    let file = dir.path("a-file");
    fs::write(&file, "precious").unwrap();
    let run = |options: &[&str], form: &[&str]| {
        dir.verrou([&["run", "k"], options, form, &["--", "true"]].concat())
    };
    for (options, codes, said) in OPTIONS {
        assert_named_in_both_forms(&|form| run(options, form), codes, said);
    }
    for (store, code, said) in STORES {
        assert_named_in_both_forms(&|form| run(&["--store", store], form), &[code], said);
    }
    let long = format!("lease:{}", "x".repeat(300));
    let longer = format!("lease:{}", "x/".repeat(3000));
    for (store, code, said) in [
        (&*long, 73, &["xxx"][..]),
        (&longer, 73, &["x/x"]),
        ("lease:an odd\nfolder\u{1b}[31m", 0, &[]),
    ] {
        assert_named_in_both_forms(&|form| run(&["--store", store], form), &[code], said);
    }
    assert_eq!(fs::read_to_string(file).unwrap(), "precious");
}

/// Other command lines.
const LINES: [Line<'static>; 22] = [
    (&[""], &[64], &[]),
    (&["run"], &[64], &["<CMD>"]),
    (&["run", "k", "true"], &[64], &["true"]),
    (&["run", "k", "--"], &[64], &["<CMD>"]),
    (&["run", "k", "--", ""], &[127], &["cannot run"]),
    (&["run", "k", "--", "/"], &[126], &["`/`"]),
    (&["run", "k", "--", "/dev/null"], &[126], &["/dev/null"]),
    (
        &["run", "k", "--", "/no/such/program"],
        &[127],
        &["/no/such/program"],
    ),
    (&["force-release"], &[64], &["<NAME>"]),
    (&["force-release", "k", "--fence", "-1"], &[64], &["-1"]),
    (
        &["force-release", "k", "--fence", "4611686018427387903"],
        &[77],
        &["4611686018427387903", "k"],
    ),
    (
        &["force-release", "k", "--fence", "4611686018427387904"],
        &[64],
        &["--fence"],
    ),
    (
        &["force-release", "k", "--fence", "18446744073709551616"],
        &[64],
        &["--fence"],
    ),
    (&["show"], &[64], &["<NAME>"]),
    (&["show", "k", "l"], &[64], &["l"]),
    (&["list", "x"], &[64], &["x"]),
    (&["run", "--file", "", "--", "true"], &[64], &["--file"]),
    (
        &["run", "--file", "/no/such/directory/file", "--", "true"],
        &[73],
        &["/no/such/directory/file"],
    ),
    (
        &["run", "--file", "/proc/self/mem", "--", "true"],
        &[73],
        &["/proc/"],
    ),
    (&["run", "--file", "/dev/null", "--", "true"], &[0], &[]),
    // The standard input is /dev/null.
    (&["run", "--file", "/dev/stdin", "--", "true"], &[0], &[]),
    (
        &["run", "--file", "/etc/passwd/x", "--", "true"],
        &[73],
        &["/etc/passwd/x"],
    ),
];

#[test]
fn hostile_command_line_works_or_is_named_in_the_error() {
    let dir = TestDir::new("lease");
    for (words, codes, said) in LINES {
        assert_named(&mut dir.verrou(words), codes, said);
    }
}

#[test]
fn text_that_is_not_utf_8_works_or_is_named_in_the_error() {
    let dir = TestDir::new("lease");
    let run = ["run", "k", "--", "true"];
    // The name of a directory may be invalid UTF-8; the kind of a store may not.
    let in_it = OsString::from_vec(b"lease:\xff".to_vec());
    let no_kind = OsString::from_vec(b"\xff:locks".to_vec());
    for (store, code) in [(in_it, 0), (no_kind, 64)] {
        let mut by_variable = dir.verrou(run);
        assert_named(
            by_variable.env("VERROU_STORE", &store),
            &[code],
            &["VERROU_STORE"],
        );
        let mut by_option = dir.verrou(["--store"]);
        assert_named(by_option.arg(&store).args(run), &[code], &["store"]);
    }
    assert!(dir.path("").join(OsStr::from_bytes(b"\xff")).is_dir());
    let program = OsStr::from_bytes(b"\xff\xfe");
    assert_named(
        dir.verrou(["run", "k", "--"]).arg(program),
        &[127],
        &["cannot run"],
    );
}

#[test]
fn hostile_environment_is_no_panic() {
    let dir = TestDir::new("lease");
    for variable in [
        "XDG_STATE_HOME",
        "HOME",
        "PATH",
        "VERROU_STORE",
        "VERROU_LOCK",
    ] {
        for value in ["", "relative/path", "/dev/null", "/proc/self"] {
            // The machine's default store is not tested.
            if variable == "XDG_STATE_HOME" && !value.starts_with('/') {
                continue;
            }
            let mut run = dir.verrou(["run", "k", "--no-wait", "--", "/bin/true"]);
            run.env_remove("VERROU_STORE").env(variable, value);
            assert_named(&mut run, &[0, 64, 73, 74, 75], &[]);
        }
    }
}

#[test]
fn waiter_with_extreme_durations_is_granted_the_released_lock() {
    for kind in KINDS {
        for options in [
            ["--wait", HUGE],
            ["--wait", "18446744073709551615s"],
            ["--retry-delay", HUGE],
            ["--retry-delay", "18446744073709551615s"],
            ["--retry-delay", "1ns"],
            ["--grace", HUGE],
        ] {
            let dir = TestDir::new(kind);
            let url = dir.store().parse().unwrap();
            let store = AnyStore::open(&url, &StoreOptions::default()).unwrap();
            let ttl = Ttl::new(Duration::from_hours(1)).unwrap();
            let held = store_calls::claim("k", 1).with_ttl(ttl);
            granted(store.acquire(&held));
            let waiter = Started::new(&mut dir.run(&options, "true"));
            eventually("it waits", || waiting(&dir.locks()) == 1);
            store_calls::done(store.release(&held));
            let output = waiter.end();
            assert_eq!(code(&output), 0, "{kind}, {options:?}: {output:?}");
        }
    }
}

//! Hostile options, store URLs and environments of the command.

use std::ffi::{OsStr, OsString};
use std::fs;
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::Duration;

use anyhow::{Context, Result};
use verrou::Ttl;

use super::{check_end, verrou};
use crate::child_process::{self, Running};
use crate::results::{Findings, Setting};
use crate::store_call::{Kind, Outcome, claim};

/// Arguments, the expected exit codes, and the texts of which the error contains one.
type Line<'a> = (&'a [&'a str], &'a [i32], &'a [&'a str]);

/// A duration that is out of range.
const HUGE: &str = "500000000000years";

/// Options of `verrou run` for a free lock.
const TAKING: [Line<'static>; 64] = [
    (&["--ttl", "0"], &[64], &["--ttl"]),
    (&["--ttl", "0s"], &[64], &["--ttl"]),
    (&["--ttl", "-0"], &[64], &["--ttl"]),
    (&["--ttl", "-1"], &[64], &["--ttl"]),
    (&["--ttl", "1"], &[64], &["--ttl"]),
    (&["--ttl", "1ns"], &[64], &["--ttl"]),
    (&["--ttl", ""], &[64], &["--ttl"]),
    (&["--ttl", " "], &[64], &["--ttl"]),
    (&["--ttl", "nan"], &[64], &["--ttl"]),
    (&["--ttl", "inf"], &[64], &["--ttl"]),
    (&["--ttl", "1e308"], &[64], &["--ttl"]),
    (&["--ttl", "0x10"], &[64], &["--ttl"]),
    (&["--ttl", "1s 1"], &[64], &["--ttl"]),
    (&["--ttl", "ten"], &[64], &["--ttl"]),
    (&["--ttl", "１０s"], &[64], &["--ttl"]),
    (&["--ttl", "18446744073709551615"], &[64], &["--ttl"]),
    (&["--ttl", "18446744073709551616"], &[64], &["--ttl"]),
    (&["--ttl", "18446744073709551616s"], &[64], &["--ttl"]),
    (&["--ttl", HUGE], &[64], &["--ttl"]),
    (&["--ttl", "9223372036854"], &[64], &["--ttl"]),
    (&["--ttl", "9223372036854ms"], &[0], &[]),
    (&["--ttl", "292y"], &[0], &[]),
    (&["--ttl", "10ms"], &[0, 76], &["ttl", "time"]),
    (&["--ttl", "1e3"], &[64], &["--ttl"]),
    (&["--ttl", "none"], &[0], &[]),
    (&["--ttl", "null"], &[0], &[]),
    (&["--ttl", "NONE"], &[64], &["--ttl"]),
    (&["--ttl"], &[64], &["--ttl", "true"]),
    (&["--ttl", "1s", "--ttl", "2s"], &[64], &["--ttl"]),
    (&["--wait", "0"], &[0], &[]),
    (&["--wait", "-1"], &[64], &["--wait"]),
    (&["--wait", "none"], &[64], &["--wait"]),
    (&["--wait", "1.5"], &[64], &["--wait"]),
    (&["--wait", "18446744073709551615"], &[64], &["--wait"]),
    (&["--wait", "18446744073709551615s"], &[0], &[]),
    (&["--wait", "18446744073709551616"], &[64], &["--wait"]),
    (&["--wait", HUGE], &[0, 64], &["--wait"]),
    (&["--wait", "1s", "--no-wait"], &[64], &["--no-wait"]),
    (&["--attempts", "0"], &[64], &["--attempts"]),
    (&["--attempts", "-1"], &[64], &["--attempts"]),
    (&["--attempts", "1.5"], &[64], &["--attempts"]),
    (&["--attempts", "4294967295"], &[0], &[]),
    (&["--attempts", "4294967296"], &[64], &["--attempts"]),
    (&["--attempts", "many"], &[64], &["--attempts"]),
    (&["--retry-delay", "0"], &[64], &["--retry-delay"]),
    (&["--retry-delay", "1ns"], &[0], &[]),
    (&["--retry-delay", "-5"], &[64], &["--retry-delay"]),
    (&["--retry-delay", HUGE], &[0, 64], &["--retry-delay"]),
    (&["--grace", "-1"], &[64], &["--grace", "-1"]),
    (&["--grace", "never"], &[64], &["--grace"]),
    (&["--grace", HUGE], &[0, 64], &["--grace"]),
    (&["--zombie", "eat"], &[64], &["--zombie"]),
    (&["--on-lost", ""], &[64], &["--on-lost"]),
    (&["-E", "256"], &[64], &["256"]),
    (&["-E", "-1"], &[64], &["-1"]),
    (&["-E", "x"], &[64], &["x"]),
    (&["-E", "0"], &[0], &[]),
    (&["--unknown"], &[64], &["--unknown"]),
    (&["--file", "a-file"], &[64], &["--file"]),
    (&["--group", ""], &[73], &["group"]),
    (&["--group", "no such group"], &[73], &["no such group"]),
    (&["--group", "../../etc"], &[73], &["../../etc"]),
    (&["--any-file-system=maybe"], &[64], &["--any-file-system"]),
    (&["--json=1"], &[64], &["--json"]),
];

/// Other command lines.
const OTHERS: [Line<'static>; 25] = [
    (&[], &[64], &[]),
    (&[""], &[64], &[]),
    (&["runs"], &[64], &["runs"]),
    (&["run"], &[64], &["<CMD>"]),
    (&["run", "k", "true"], &[64], &["true"]),
    (&["run", "k", "--"], &[64], &["<CMD>"]),
    (&["run", "k", "--", ""], &[126, 127], &["cannot run"]),
    (&["run", "k", "--", "/"], &[126, 127], &["`/`"]),
    (
        &["run", "k", "--", "/dev/null"],
        &[126, 127],
        &["/dev/null"],
    ),
    (
        &["run", "k", "--", "/no/such/program"],
        &[127],
        &["/no/such/program"],
    ),
    (&["force-release"], &[64], &["<NAME>"]),
    (&["force-release", "k", "--fence", "0"], &[64], &["--fence"]),
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
    (
        &["run", "--file", "", "--", "true"],
        &[64, 73],
        &["--file", ":"],
    ),
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
    (
        &["run", "--file", "/etc/passwd/x", "--", "true"],
        &[73],
        &["/etc/passwd/x"],
    ),
    (
        &["run", "--file", "/dev/stdin", "--", "true"],
        &[0, 73],
        &["/dev/stdin"],
    ),
];

/// Tests hostile options and store URLs.
pub(in crate::hostile) fn command_lines(setting: &Setting, findings: &mut Findings) -> Result<()> {
    let program = child_process::verrou(&setting.directory)?;
    let directory = setting.directory.join("typed");
    let file = setting.directory.join("a-file");
    fs::write(&file, "precious")?;
    let file = file
        .to_str()
        .context("the path of temporary files is not UTF-8")?;
    let below = format!("lease:{file}/below");
    let at = format!("lease:{file}");
    let long = format!("lease:{}/{}", setting.directory.display(), "x".repeat(300));
    let longer = format!(
        "lease:{}/{}",
        setting.directory.display(),
        "x/".repeat(3000)
    );
    let odd = format!(
        "lease:{}/an odd\nfolder\u{1b}[31m",
        setting.directory.display()
    );

    let stores: [Line<'_>; 26] = [
        (&["--store", ""], &[64], &["--store"]),
        (&["--store", ":"], &[64], &["--store"]),
        (&["--store", "lease"], &[64], &["lease"]),
        (&["--store", "lease:"], &[64], &["lease:"]),
        (&["--store", "file:"], &[64], &["file:"]),
        (&["--store", "LEASE:/tmp"], &[64], &["LEASE:/tmp"]),
        (&["--store", "memory:"], &[64], &["memory:"]),
        // The text after the scheme may contain a password, which is not printed.
        (
            &["--store", "redis://localhost"],
            &[64],
            &["`redis:` needs"],
        ),
        (
            &["--store", "http://[::1]:99999/"],
            &[64],
            &["`http:…` is not the URL of a store"],
        ),
        (&["--store", "\u{1b}[31m:x"], &[64], &["--store"]),
        (&["--store", "lease:/dev/null"], &[73], &["/dev/null"]),
        (&["--store", "lease:/dev/null/x"], &[73], &["/dev/null/x"]),
        (&["--store", "lease:/proc/self"], &[73], &["/proc/"]),
        (&["--store", "file:/proc/x"], &[73], &["/proc/x"]),
        (&["--store", "lease:/sys"], &[73], &["/sys"]),
        (&["--store", "file:/dev/full"], &[73], &["/dev/full"]),
        (&["--store", &at], &[73], &[file]),
        (&["--store", &below], &[73], &[file]),
        (&["--store", &long], &[73], &["xxx"]),
        (&["--store", &longer], &[73], &["x/x"]),
        (&["--store", &odd], &[0], &[]),
        (
            &["--store", "lease:/proc/self/fd/99"],
            &[73],
            &["/proc/self/fd/99"],
        ),
        (
            &["--store", "lease:/dev/fd/0"],
            &[73],
            &["/dev/fd/0", "/dev/null"],
        ),
        (&["--store", "lease://etc//passwd"], &[73], &["passwd"]),
        (&["--store", "file:/etc/passwd"], &[73], &["/etc/passwd"]),
        (
            &["--store", "lease:/etc/shadow/.."],
            &[73],
            &["/etc/shadow"],
        ),
    ];
    for (options, codes, said) in TAKING.into_iter().chain(stores) {
        for end in [&["--", "true"][..], &["--json", "--", "true"]] {
            let mut words = verrou(&program, &directory);
            words.args(["run", "k"]).args(options).args(end);
            let ended = child_process::run(&mut words)?;
            let described = || format!("verrou run k {}", options.join(" "));
            if end.len() > 2 {
                // The error is one line of JSON instead.
                let lines: Vec<_> = ended.err.lines().collect();
                let is_json = lines
                    .iter()
                    .all(|line| serde_json::from_str::<serde_json::Value>(line).is_ok());
                findings.check(is_json && !ended.is_abnormal(), || {
                    format!("{} --json: {:?}", described(), lines)
                });
            } else {
                check_end(findings, &described, &ended, codes, said);
            }
            findings.count("command lines", 1);
        }
    }
    findings.check(fs::read_to_string(file)? == "precious", || {
        "a file that was given as a directory was written".to_owned()
    });
    other_lines(setting, findings, &program)?;
    extreme_durations(setting, findings, &program)?;
    invalid_utf8(setting, findings, &program)
}

/// Tests [`OTHERS`].
fn other_lines(setting: &Setting, findings: &mut Findings, program: &Path) -> Result<()> {
    let directory = setting.directory.join("typed");
    for (line, codes, said) in OTHERS {
        let mut words = verrou(program, &directory);
        let state = setting.directory.join("state");
        let ended = child_process::run(words.args(line).env("XDG_STATE_HOME", state))?;
        let described = || format!("verrou {}", line.join(" "));
        if line.is_empty() {
            findings.check(ended.code() == Some(64), || {
                "verrou without arguments".to_owned()
            });
        } else {
            check_end(findings, &described, &ended, codes, said);
        }
        findings.count("command lines", 1);
    }
    Ok(())
}

/// Tests arguments and variables of invalid UTF-8, or with useless paths.
fn invalid_utf8(setting: &Setting, findings: &mut Findings, program: &Path) -> Result<()> {
    let directory = setting.directory.join("typed");
    // The name of a directory may be invalid UTF-8; the kind of a store may not.
    let named = setting.directory.join(OsStr::from_bytes(b"\xff"));
    let mut in_it = OsString::from("lease:");
    in_it.push(&named);
    let no_kind = OsString::from_vec(b"\xff:locks".to_vec());
    for (store, codes) in [(in_it, [0]), (no_kind, [64])] {
        let line = ["run", "k", "--", "true"];
        let mut words = verrou(program, &directory);
        let ended = child_process::run(words.args(line).env("VERROU_STORE", &store))?;
        let command_line = || "VERROU_STORE of invalid UTF-8".to_owned();
        check_end(findings, &command_line, &ended, &codes, &["store"]);
        let mut words = verrou(program, &directory);
        let ended = child_process::run(words.arg("--store").arg(&store).args(line))?;
        let command_line = || "--store of invalid UTF-8".to_owned();
        check_end(findings, &command_line, &ended, &codes, &["store"]);
    }
    findings.check(named.is_dir(), || {
        "no directory with a name of invalid UTF-8 was created".to_owned()
    });
    let mut words = verrou(program, &directory);
    let not_text = OsStr::from_bytes(b"\xff\xfe");
    let ended = child_process::run(words.args(["run", "k", "--"]).arg(not_text))?;
    check_end(
        findings,
        &|| "a program name of invalid UTF-8".to_owned(),
        &ended,
        &[127],
        &["cannot run"],
    );
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
            let mut words = verrou(program, &directory);
            words.env("XDG_STATE_HOME", setting.directory.join("state"));
            words.env_remove("VERROU_STORE").env(variable, value);
            let ended =
                child_process::run(words.args(["run", "k", "--no-wait", "--", "/bin/true"]))?;
            let described = || format!("{variable}={value} verrou run k");
            check_end(findings, &described, &ended, &[0, 64, 73, 74, 75], &[]);
            findings.count("environments", 1);
        }
    }
    Ok(())
}

/// Tests extreme durations while another owner holds the lock.
fn extreme_durations(setting: &Setting, findings: &mut Findings, program: &Path) -> Result<()> {
    for kind in Kind::BOTH {
        for options in [
            ["--wait", HUGE],
            ["--wait", "18446744073709551615s"],
            ["--retry-delay", HUGE],
            ["--retry-delay", "18446744073709551615s"],
            ["--retry-delay", "1ns"],
            ["--grace", HUGE],
        ] {
            let directory = tempfile::tempdir_in(&setting.directory)?;
            let store = kind.open(directory.path())?;
            let held = claim("k", 1)?.with_ttl(Ttl::new(Duration::from_hours(1))?);
            Outcome::by(|| store.acquire(&held)).granted()?;
            let mut words = Command::new(program);
            words.args(["--store", &kind.url(directory.path()), "run", "k"]);
            words
                .args(options)
                .args(["--", "true"])
                .stdin(Stdio::null());
            let mut waiter = Running::start(&mut words)?;
            let ends_early = waiter.ends_within(Duration::from_millis(100))?;
            Outcome::by(|| store.release(&held)).granted()?;
            let ended = waiter.end()?;
            let described =
                || format!("verrou run k {} ({kind}) of a held lock", options.join(" "));
            let codes: &[i32] = if ends_early { &[64] } else { &[0] };
            check_end(findings, &described, &ended, codes, &[options[0]]);
            findings.count("command lines", 1);
        }
    }
    Ok(())
}

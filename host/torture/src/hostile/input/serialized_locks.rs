//! Hostile serialized locks, through the library and the command.

use std::ffi::OsString;
use std::os::unix::ffi::OsStringExt;
use std::path::Path;

use anyhow::{Result, ensure};
use fastrand::Rng;
use verrou::SerializedLock;
use verrou::blocking::LockFactory;
use verrou_host::{LeaseFileStore, StoreOptions, System};

use super::{check_end, verrou};
use crate::child_process::{self, Ended};
use crate::results::{Findings, Setting};
use crate::store_call::catch_panic;

/// Returns a held lock, serialized, as text and parsed.
fn serialized_lock(directory: &Path) -> Result<(String, SerializedLock)> {
    let store = LeaseFileStore::open(directory, &StoreOptions::default())?;
    let lock = LockFactory::new(&store, System).create_lock("transferred", "1h")?;
    lock.acquire()?;
    let serialized = lock.serialize()?;
    Ok((serialized.to_string(), serialized))
}

/// Texts that are unlike a serialized lock.
const UNLIKE_LOCKS: [&str; 6] = ["", " ", "null", "{}", "[]", "17"];

/// Returns texts that are no serialized lock, or one of another owner.
fn hostile_texts(right: &str, lock: &SerializedLock) -> Vec<(String, String)> {
    let owner = lock.owner().to_string();
    let expires = lock.expires().unwrap_or_default().as_millis();
    let with = |from: &str, to: &str| right.replacen(from, to, 1);
    let expires = format!("\"expires\":{expires}");
    let fence = format!("\"fence\":{}", lock.fence().map_or(0, verrou::Fence::get));
    let unknown = |value: &str| with("{", &format!("{{\"x\":{value},"));
    let deep = "[".repeat(30_000) + "1" + &"]".repeat(30_000);
    let long = format!("\"{}\"", "x".repeat(100_000));
    let mut texts: Vec<(String, String)> = UNLIKE_LOCKS
        .map(|text| (format!("{text:?}"), text.to_owned()))
        .into();
    texts.extend(
        [
            ("two of them", format!("{right}{right}")),
            ("trailing text", format!("{right} x")),
            ("another owner", with(&owner, &"0".repeat(32))),
            ("a short owner", with(&owner, &owner[1..])),
            ("a long owner", with(&owner, &format!("{owner}0"))),
            ("an invalid owner", with(&owner, &"g".repeat(32))),
            ("an owner as a number", with(&format!("\"{owner}\""), "0")),
            ("another name", with("transferred", "another")),
            ("no name", with("transferred", "")),
            ("a long name", with("transferred", &"n".repeat(1025))),
            ("a path for a name", with("transferred", "../../etc/passwd")),
            ("a name with NUL", with("transferred", "a\\u0000b")),
            ("a lone surrogate", with("transferred", "\\ud800")),
            ("version 0", with("\"version\":1", "\"version\":0")),
            ("version 2", with("\"version\":1", "\"version\":2")),
            (
                "the maximum version",
                with("\"version\":1", "\"version\":18446744073709551615"),
            ),
            (
                "a version as text",
                with("\"version\":1", "\"version\":\"1\""),
            ),
            (
                "a negative version",
                with("\"version\":1", "\"version\":-1"),
            ),
            ("TTL 0", with("\"ttl\":3600000", "\"ttl\":0")),
            ("TTL 1", with("\"ttl\":3600000", "\"ttl\":1")),
            ("a negative TTL", with("\"ttl\":3600000", "\"ttl\":-1")),
            (
                "the maximum TTL",
                with("\"ttl\":3600000", "\"ttl\":18446744073709551615"),
            ),
            (
                "a TTL out of range",
                with("\"ttl\":3600000", "\"ttl\":18446744073709551616"),
            ),
            ("a TTL of 1e308", with("\"ttl\":3600000", "\"ttl\":1e308")),
            ("a TTL of NaN", with("\"ttl\":3600000", "\"ttl\":NaN")),
            ("a TTL as text", with("\"ttl\":3600000", "\"ttl\":\"1h\"")),
            ("fencing token 0", with(&fence, "\"fence\":0")),
            (
                "the maximum fencing token",
                with(&fence, "\"fence\":18446744073709551615"),
            ),
            (
                "a fencing token out of range",
                with(&fence, "\"fence\":18446744073709551616"),
            ),
            (
                "a fencing token with a fraction",
                with(&fence, "\"fence\":1.5"),
            ),
            ("expired long ago", with(&expires, "\"expires\":0")),
            (
                "the maximum end",
                with(&expires, "\"expires\":18446744073709551615"),
            ),
            (
                "an end out of range",
                with(&expires, "\"expires\":18446744073709551616"),
            ),
            (
                "a member twice",
                with("\"version\":1", "\"version\":1,\"version\":1"),
            ),
            ("deep arrays", "[".repeat(60_000)),
            ("a deep unknown member", unknown(&deep)),
            ("deep objects", "{\"a\":".repeat(15_000)),
            ("a long unknown member", unknown(&long)),
            ("a byte order mark", format!("\u{feff}{right}")),
            ("quotes", format!("'{right}'")),
            ("an escape sequence", with("transferred", "\u{1b}[31m")),
        ]
        .map(|(what, text)| (what.to_owned(), text)),
    );
    let cut = |length| {
        (
            format!("truncated to {length} bytes"),
            right[..length].to_owned(),
        )
    };
    texts.extend((0..right.len()).map(cut));
    texts
}

/// Tests that only a serialized lock with the right owner token releases the lock.
pub(in crate::hostile) fn serialized(setting: &Setting, findings: &mut Findings) -> Result<()> {
    let directory = tempfile::tempdir_in(&setting.directory)?;
    let (right, lock) = serialized_lock(directory.path())?;
    let store = LeaseFileStore::open(directory.path(), &StoreOptions::default())?;
    let locks = LockFactory::new(&store, System);
    let mut rng = Rng::with_seed(setting.seed);
    let mut texts = hostile_texts(&right, &lock);
    for at in 0..right.len() {
        for byte in 0..=0x7f {
            let mut bytes = right.clone().into_bytes();
            bytes[at] = byte;
            texts.push((format!("byte {at} is {byte:#x}"), String::from_utf8(bytes)?));
        }
    }
    for _ in 0..20_000 {
        let mut bytes = right.clone().into_bytes();
        for _ in 0..rng.usize(1..6) {
            if bytes.is_empty() {
                break;
            }
            let at = rng.usize(..bytes.len());
            match rng.u8(..4) {
                0 => drop(bytes.remove(at)),
                1 => bytes.insert(at, b"\"{}[],:\\0-e.u"[rng.usize(..12)]),
                2 => bytes[at] = rng.u8(..0x80),
                _ => bytes.truncate(at.max(1)),
            }
        }
        texts.push(("changed at random".to_owned(), String::from_utf8(bytes)?));
    }
    let count = texts.len() as u64;
    for (what, text) in texts {
        match catch_panic(|| text.parse::<SerializedLock>()) {
            Err(panic) => findings.violation(format!("a serialized lock, {what}: panic: {panic}")),
            Ok(Err(err)) => findings.check(!err.to_string().is_empty(), || {
                format!("a serialized lock, {what}: the error is empty")
            }),
            Ok(Ok(read)) => {
                let again = catch_panic(|| read.to_string().parse::<SerializedLock>());
                findings.check(again == Ok(Ok(read.clone())), || {
                    format!("a serialized lock, {what}: parsed as {read:?}, then as {again:?}")
                });
                if read.name() == lock.name() && read.owner() == lock.owner() {
                    continue;
                }
                // It is of another owner, or of another lock.
                let restored = locks.restore_lock(&read);
                let tried = catch_panic(|| {
                    (
                        restored.remaining(),
                        restored.extend(restored.ttl()).is_ok(),
                        restored.release().is_ok(),
                    )
                });
                findings.check(matches!(tried, Ok((_, false, false))), || {
                    format!("a serialized lock, {what}: {text}: {tried:?}")
                });
            }
        }
    }
    findings.count("hostile serialized locks", count);
    let restored = locks.restore_lock(&lock);
    findings.check(restored.is_held()?, || {
        "a hostile serialized lock released a lock".to_owned()
    });
    restored.release()?;
    Ok(())
}

/// Tests serialized locks on the command line, in the environment and on the standard input.
pub(in crate::hostile) fn serialized_on_the_command_line(
    setting: &Setting,
    findings: &mut Findings,
) -> Result<()> {
    let program = child_process::verrou(&setting.directory)?;
    let directory = tempfile::tempdir_in(&setting.directory)?;
    let (right, lock) = serialized_lock(directory.path())?;
    let said = [
        "E_INVALID_SERIALIZED_LOCK",
        "E_LOCK_NOT_OWNER",
        "VERROU_LOCK",
        "<LOCK>",
        "[LOCK]",
        "unexpected argument",
    ];
    let is_its = |text: &str| {
        let read = text.trim().parse::<SerializedLock>();
        read.is_ok_and(|read| read.name() == lock.name() && read.owner() == lock.owner())
    };
    let mut texts = hostile_texts(&right, &lock);
    // The longest possible argument is shorter than this.
    texts.retain(|(_, text)| text.len() < 128 << 10);
    for (number, (what, text)) in texts.iter().enumerate() {
        let codes: &[i32] = if is_its(text) {
            &[0, 64, 77]
        } else {
            &[64, 77]
        };
        // A text with the right owner may extend the lock; the others must not release it, either.
        let commands: &[&str] = if is_its(text) {
            &["extend"]
        } else {
            &["extend", "release"]
        };
        for command in commands {
            let mut ways: Vec<(&str, Ended)> = Vec::new();
            let of_its = ["--ttl", "1h"];
            let options = if is_its(text) { &of_its[..] } else { &[] };
            let mut words = verrou(&program, directory.path());
            ways.push((
                "",
                child_process::run(words.args([*command, text]).args(options))?,
            ));
            if number % 8 == 0 || !what.starts_with("truncated") {
                let mut words = verrou(&program, directory.path());
                let words = words.arg(command).args(options).env("VERROU_LOCK", text);
                ways.push(("in the environment:", child_process::run(words)?));
                let mut words = verrou(&program, directory.path());
                let ended = child_process::run_with_input(
                    words.args([*command, "-"]).args(options),
                    text.as_bytes(),
                )?;
                ways.push(("on the standard input:", ended));
            }
            for (way, ended) in ways {
                let described = || format!("verrou {command}, {way} {what}");
                check_end(findings, &described, &ended, codes, &said);
                findings.count("hostile serialized locks on the command line", 1);
            }
        }
    }
    for (what, input) in [
        ("10 MiB", vec![b'x'; 10 << 20]),
        ("a deep 10 MiB", vec![b'['; 10 << 20]),
        ("invalid UTF-8", vec![0xff; 100]),
        ("zeros", vec![0; 1 << 20]),
        (
            "the right one after 1 MiB",
            [vec![b' '; 1 << 20], right.clone().into_bytes()].concat(),
        ),
    ] {
        let mut words = verrou(&program, directory.path());
        let ended = child_process::run_with_input(words.args(["release", "-"]), &input)?;
        let said = [&said[..], &["standard input"]].concat();
        check_end(
            findings,
            &|| format!("verrou release -, {what}"),
            &ended,
            &[64],
            &said,
        );
        findings.count("hostile serialized locks on the command line", 1);
    }
    let mut words = verrou(&program, directory.path());
    let not_text = OsString::from_vec(b"\xff{}".to_vec());
    let ended = child_process::run(words.arg("release").env("VERROU_LOCK", &not_text))?;
    let command_line = || "verrou release, a VERROU_LOCK of invalid UTF-8".to_owned();
    check_end(
        findings,
        &command_line,
        &ended,
        &[64],
        &["UTF-8", "E_INVALID_SERIALIZED_LOCK"],
    );
    let mut words = verrou(&program, directory.path());
    let ended = child_process::run(words.arg("release").arg(&not_text))?;
    check_end(findings, &command_line, &ended, &[64], &["UTF-8"]);
    // The right text releases the lock.
    let mut words = verrou(&program, directory.path());
    let ended = child_process::run(words.args(["release", &right]))?;
    ensure!(ended.code() == Some(0), "the lock was lost: {}", ended.err);
    Ok(())
}

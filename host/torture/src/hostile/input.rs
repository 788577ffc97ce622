//! Hostile names, serialized locks and command lines: each works, or is named in an error.

use std::collections::BTreeSet;
use std::ffi::{OsStr, OsString};
use std::fs;
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use fastrand::Rng;
use verrou::blocking::LockFactory;
use verrou::{Claim, Name, Printable, SerializedLock, Ttl, is_hidden};
use verrou_host::{LeaseFileStore, StoreOptions, System};

use crate::child_process::{self, Ended, Running};
use crate::results::{Findings, Setting};
use crate::store_call::{Kind, Outcome, catch_panic, claim};

/// Returns names that are known to break software.
fn names() -> Vec<String> {
    let mut names: Vec<String> = [
        "",
        "x",
        "X",
        "../x",
        "../../../../../../etc/passwd",
        "/etc/passwd",
        "/",
        ".",
        "..",
        "...",
        "a/b/c",
        "a\\b",
        "a\0b",
        "\0",
        "fences",
        "0000.bell",
        "x.lease",
        "x.lock",
        "~",
        "~root",
        "$HOME",
        "`id`",
        "$(id)",
        "%s%n",
        "*",
        "?",
        "[a]",
        "a b",
        " a",
        "a ",
        "a.",
        "a..",
        " ",
        "\t",
        "\n",
        "a\nb",
        "a\r\nb",
        "\u{1b}[31mred\u{1b}[0m",
        "\u{7}",
        "\u{7f}",
        "\u{85}",
        "\u{9b}31m",
        "\u{202e}txt.exe",
        "\u{200b}",
        "\u{feff}",
        "\u{fffd}",
        "\u{10ffff}",
        "-",
        "--",
        "-x",
        "--help",
        "--store=file:/tmp",
        "-E0",
        "CON",
        "con",
        "NUL",
        "NUL.txt",
        "AUX",
        "COM1",
        "LPT9.log",
        "PRN",
        "é",
        "e\u{301}",
        "Å",
        "A\u{30a}",
        "\u{212b}",
        "ﬁ",
        "fi",
        "ß",
        "ẞ",
        "ss",
        "İ",
        "i",
        "I",
        "ı",
        "🔒",
        "👩‍👩‍👧‍👦",
        "日本語",
        "🏳️‍🌈",
        "\"quoted\"",
        "'quoted'",
        "{}",
        "{\"version\":1}",
        "null",
        "none",
        "0",
        "-1",
        "1e9",
    ]
    .map(str::to_owned)
    .into();
    names.extend(long_names());
    names
}

/// Returns names of the maximum length, a byte more, and many bytes more.
fn long_names() -> Vec<String> {
    vec![
        "n".repeat(Name::MAX_BYTES),
        "N".repeat(Name::MAX_BYTES),
        "é".repeat(Name::MAX_BYTES / 2),
        "n".repeat(Name::MAX_BYTES + 1),
        "é".repeat(Name::MAX_BYTES / 2) + "n",
        "n".repeat(4 << 10),
        "../".repeat(64 << 10),
        // Names that differ only after the part that their files' names contain.
        "n".repeat(40),
        "n".repeat(41),
    ]
}

/// Returns all paths below a directory.
fn tree(directory: &Path) -> Result<BTreeSet<PathBuf>> {
    let mut found = BTreeSet::new();
    let mut directories = vec![directory.to_owned()];
    while let Some(directory) = directories.pop() {
        for entry in fs::read_dir(directory)? {
            let entry = entry?;
            if entry.file_type()?.is_dir() {
                directories.push(entry.path());
            }
            found.insert(entry.path());
        }
    }
    Ok(found)
}

/// Tests that each name is a separate lock, with its own file in the store's directory.
pub(super) fn names_in_the_library(setting: &Setting, findings: &mut Findings) -> Result<()> {
    for kind in Kind::BOTH {
        let outer = setting.directory.join(format!("names-{kind}"));
        let directory = outer.join("a/b/c/locks");
        let (store, other) = (kind.open(&directory)?, kind.open(&directory)?);
        let before = tree(&outer)?;
        let mut taken = Vec::new();
        for text in names() {
            let name = match Name::new(&text) {
                Ok(name) => name,
                Err(err) => {
                    let is_right = text.is_empty() || text.len() > Name::MAX_BYTES;
                    findings.check(is_right && !err.to_string().is_empty(), || {
                        format!("the name {text:?} is rejected: {err}")
                    });
                    continue;
                }
            };
            let claim = Claim {
                name,
                ..claim("any name", 1)?
            };
            match Outcome::by(|| store.acquire(&claim)) {
                Outcome::Granted(_) => taken.push(claim),
                outcome => findings.violation(format!(
                    "acquire of the name {text:?} ({kind}) with {} others held: {outcome:?}",
                    taken.len()
                )),
            }
            findings.count("hostile names", 1);
        }
        for claim in &taken {
            let wanted = Claim {
                owner: verrou::Owner::from_bytes([2; 16]),
                ..claim.clone()
            };
            let outcome = Outcome::by(|| other.acquire(&wanted));
            findings.check(outcome == Outcome::Refused, || {
                format!(
                    "acquire of the held name {:?} ({kind}): {outcome:?}",
                    claim.name
                )
            });
        }
        let mut new: Vec<_> = tree(&outer)?.difference(&before).cloned().collect();
        new.retain(|path| path.extension().is_some_and(|it| it == kind.extension()));
        let is_inside = new.iter().all(|path| path.parent() == Some(&directory));
        findings.check(new.len() == taken.len() && is_inside, || {
            format!(
                "{} locks ({kind}) created these files: {new:?}",
                taken.len()
            )
        });
        let is_plain = |path: &PathBuf| {
            let name = path.file_name().map(OsStr::as_bytes).unwrap_or_default();
            name.len() <= 80
                && name.iter().all(|&byte| {
                    byte.is_ascii_lowercase() || byte.is_ascii_digit() || b"._".contains(&byte)
                })
        };
        findings.check(new.iter().all(is_plain), || {
            format!("not all file names are plain ({kind}): {new:?}")
        });
        for claim in &taken {
            Outcome::by(|| store.release(claim)).granted()?;
        }
    }
    Ok(())
}

/// Checks that a program ended without a panic or a signal, with one of `codes`, and that its error
/// contains one of `said`.
fn check_end(
    findings: &mut Findings,
    command_line: &dyn Fn() -> String,
    ended: &Ended,
    codes: &[i32],
    said: &[&str],
) {
    let code = ended.code().unwrap_or(-1);
    findings.check(!ended.is_abnormal(), || {
        format!(
            "{}: {code} after {:?}: {}",
            command_line(),
            ended.took,
            truncated(&ended.err)
        )
    });
    findings.check(codes.contains(&code), || {
        format!(
            "{}: exit code {code}, expected one of {codes:?}: {}",
            command_line(),
            truncated(&ended.err)
        )
    });
    // Exit codes of CMD have no error message.
    let needs_words = ![0, 1].contains(&code);
    let has_words = said.is_empty() || said.iter().any(|said| ended.err.contains(said));
    findings.check(
        !needs_words || (has_words && ended.err.starts_with("verrou: ")),
        || {
            format!(
                "{}: the error contains none of {said:?}: {}",
                command_line(),
                truncated(&ended.err)
            )
        },
    );
    let raw = ended.err.chars().chain(ended.out.chars());
    let raw: Vec<_> = raw
        .filter(|char| is_hidden(*char) && !"\n\t".contains(*char))
        .collect();
    findings.check(raw.is_empty(), || {
        format!("{}: prints {raw:?} to the terminal", command_line())
    });
}

fn truncated(text: &str) -> &str {
    let text = text.trim_end();
    &text[..text.floor_char_boundary(300)]
}

/// Returns a `verrou` command with a store of leases in `directory`.
fn verrou(program: &Path, directory: &Path) -> Command {
    let mut command = Command::new(program);
    command
        .current_dir("/")
        .env("VERROU_STORE", Kind::Lease.url(directory))
        .env_remove("VERROU_LOCK")
        .stdin(Stdio::null());
    command
}

/// Tests the names on the command line.
pub(super) fn names_on_the_command_line(setting: &Setting, findings: &mut Findings) -> Result<()> {
    let program = child_process::verrou(&setting.directory)?;
    let outer = setting.directory.join("typed-names");
    let directory = outer.join("a/b/c/locks");
    let mut locks = 0;
    let mut typed: Vec<OsString> = names().into_iter().map(OsString::from).collect();
    for bytes in [
        &b"\xff"[..],
        b"a\xffb",
        b"\xc3\x28",
        b"\xed\xa0\x80",
        b"\xc0\xaf",
        b"\xf5\x80\x80\x80",
    ] {
        typed.push(OsString::from_vec(bytes.to_vec()));
    }
    for name in &typed {
        if name.as_bytes().contains(&0) {
            // An argument cannot contain NUL.
            continue;
        }
        if name.len() > 128 << 10 {
            continue;
        }
        let text = name.to_str();
        let is_name = text.is_some_and(|text| Name::new(text).is_ok());
        let is_option = name.len() > 1 && name.as_bytes().starts_with(b"-");
        let is_path = ["/", "./", "../"]
            .iter()
            .any(|it| name.as_bytes().starts_with(it.as_bytes()));
        for command in ["acquire", "show"] {
            // Try the name as a plain argument, and as one that can only be a name.
            for is_explicit in [false, true] {
                let mut words = verrou(&program, &directory);
                words.arg(command);
                if command == "acquire" {
                    words.arg("--no-wait");
                }
                let mut word = OsString::from(if is_explicit { "--name=" } else { "" });
                word.push(name);
                words.arg(word);
                let ended = child_process::run(&mut words)?;
                let described = || {
                    format!(
                        "verrou {command} {}{:?}",
                        if is_explicit { "--name=" } else { "" },
                        Short(name)
                    )
                };
                let codes: &[i32] = match (is_name, is_option) {
                    (false, _) => &[64],
                    // An option, which may exist.
                    (true, true) if !is_explicit => &[0, 64],
                    (true, false) if !is_explicit && is_path => &[64],
                    // The previous command has acquired the lock.
                    (true, false) if command == "acquire" && is_explicit && !is_path => &[75],
                    (true, _) => &[0],
                };
                let known = text.map(|text| escaped(text.chars().take(30)));
                let known = known.as_deref().into_iter();
                let known: Vec<_> = known
                    .chain(["UTF-8", "lock's name", "NAME>", "[NAME]"])
                    .collect();
                check_end(findings, &described, &ended, codes, &known);
                findings.count("hostile names on the command line", 1);
            }
        }
        locks += usize::from(is_name);
    }
    let found = tree(&outer)?;
    let files = found
        .iter()
        .filter(|path| path.extension().is_some_and(|it| it == "lease"));
    let files = files.collect::<Vec<_>>();
    let is_inside = files.iter().all(|path| path.parent() == Some(&directory));
    findings.check(is_inside && files.len() <= locks, || {
        format!("{locks} names on the command line created these files: {files:?}")
    });
    Ok(())
}

/// Escapes text as the command does for a terminal: one line, without hidden characters.
fn escaped(text: impl Iterator<Item = char>) -> String {
    Printable(&text.collect::<String>()).to_string()
}

/// The beginning of an argument, for messages.
struct Short<'a>(&'a OsStr);

impl std::fmt::Debug for Short<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let text = self.0.to_string_lossy();
        write!(f, "{:?}", &text[..text.floor_char_boundary(60)])?;
        if text.len() > 60 {
            write!(f, "… ({} bytes)", text.len())?;
        }
        Ok(())
    }
}

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
pub(super) fn serialized(setting: &Setting, findings: &mut Findings) -> Result<()> {
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
                        restored.extend(None).is_ok(),
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
pub(super) fn serialized_on_the_command_line(
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
pub(super) fn command_lines(setting: &Setting, findings: &mut Findings) -> Result<()> {
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
            let held = Claim {
                ttl: Ttl::new(Duration::from_hours(1))?,
                ..claim("k", 1)?
            };
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

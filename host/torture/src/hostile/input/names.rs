//! Hostile names, through the library and on the command line.

use std::collections::BTreeSet;
use std::ffi::{OsStr, OsString};
use std::fs;
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::path::{Path, PathBuf};

use anyhow::Result;
use verrou::{Name, Printable};

use super::{check_end, verrou};
use crate::child_process;
use crate::results::{Findings, Setting};
use crate::store_call::{Kind, Outcome, claim};

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
pub(in crate::hostile) fn names_in_the_library(
    setting: &Setting,
    findings: &mut Findings,
) -> Result<()> {
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
            let claim = claim("any name", 1)?.with_name(name);
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
            let wanted = claim.clone().with_owner(verrou::Owner::from_bytes([2; 16]));
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

/// Tests the names on the command line.
pub(in crate::hostile) fn names_on_the_command_line(
    setting: &Setting,
    findings: &mut Findings,
) -> Result<()> {
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

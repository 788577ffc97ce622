//! Names that are hard on a store, and on a command line.

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};

use verrou::Name;

/// Returns names that are known to break software.
pub(crate) fn hostile_names() -> Vec<String> {
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

/// Asserts that the files below `outer` with this extension are in `directory`, and that their names are plain; returns
/// their number.
#[track_caller]
pub(crate) fn assert_plain_files(outer: &Path, directory: &Path, extension: &str) -> usize {
    let mut found = BTreeSet::new();
    files_below(outer, &mut found);
    found.retain(|path| path.extension().is_some_and(|it| it == extension));
    for path in &found {
        assert_eq!(path.parent(), Some(directory));
        let name = path.file_name().unwrap().to_str().unwrap();
        let is_plain =
            |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit() || b"._".contains(&byte);
        assert!(name.len() <= 80 && name.bytes().all(is_plain), "{name}");
    }
    found.len()
}

fn files_below(directory: &Path, found: &mut BTreeSet<PathBuf>) {
    for entry in fs::read_dir(directory).unwrap() {
        let entry = entry.unwrap();
        if entry.file_type().unwrap().is_dir() {
            files_below(&entry.path(), found);
        } else {
            found.insert(entry.path());
        }
    }
}

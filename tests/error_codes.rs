//! The codes of errors on all hosts: Rust, WIT, JavaScript, and the command. The same error has the same code. A code that
//! only one host has needs a line here that says why.

use std::collections::BTreeSet;
use std::fs;
use std::path::Path;

/// Codes of the core that a host does not have, or codes that only it has, each with the reason.
type Exceptions = &'static [(&'static str, &'static str)];

const ONLY_IN_JAVASCRIPT: Exceptions = &[
    (
        "E_INVALID_ARGUMENT",
        "a value of a wrong type, which Rust and WIT do not compile",
    ),
    (
        "E_LOCK_PANICKED",
        "a panic in WebAssembly, where it ends no process",
    ),
];

const NOT_IN_WIT: Exceptions = &[
    (
        "E_INVALID_STORE",
        "a component has one store, without a name",
    ),
    ("E_LOCK_TIMEOUT", "the reply `gave-up`, no error"),
];

const ONLY_IN_WIT: Exceptions = &[
    ("E_LOCK_DENIED", "the policy of a guest's host"),
    ("E_TOO_MANY_HANDLES", "the limit of a guest's handles"),
];

const ONLY_OF_THE_COMMAND: Exceptions = &[
    ("E_FENCE_REFUSED", "`verrou fence`"),
    ("E_FENCE_TIMEOUT", "`verrou fence`"),
];

fn read(path: &str) -> String {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join(path);
    fs::read_to_string(&path).unwrap_or_else(|err| panic!("{}: {err}", path.display()))
}

/// Returns the part of `text` from `begin` to the next `end`.
fn between<'a>(text: &'a str, begin: &str, end: &str) -> &'a str {
    let (_, rest) = text
        .split_once(begin)
        .unwrap_or_else(|| panic!("no `{begin}`"));
    rest.split_once(end)
        .unwrap_or_else(|| panic!("no `{end}`"))
        .0
}

/// Returns the codes between `quote`s in `text`.
fn codes(text: &str, quote: char) -> BTreeSet<&str> {
    let words = text.split(quote);
    let is_code = |word: &&str| {
        let rest = word.strip_prefix("E_");
        rest.is_some_and(|rest| {
            rest.bytes()
                .all(|byte| byte == b'_' || byte.is_ascii_uppercase())
        })
    };
    words.filter(is_code).collect()
}

fn of(exceptions: Exceptions) -> BTreeSet<&'static str> {
    exceptions.iter().map(|(code, _)| *code).collect()
}

#[test]
fn same_error_has_same_code_on_every_host() {
    let rust = read("src/error.rs");
    let core = codes(between(&rust, "pub const fn code(", "\n    }"), '"');
    assert!(core.contains("E_LOCK_TIMEOUT"), "{core:?}");

    let script = read("src/js/package/errors.js");
    let javascript = codes(between(&script, "Object.fromEntries(", "].map("), '\'');
    let added = &of(ONLY_IN_JAVASCRIPT) | &core;
    assert_eq!(javascript, added, "JavaScript");
    let types = read("src/js/package/index.d.ts");
    let union = codes(between(&types, "export type ErrorCode =", "\n\n"), '\'');
    assert_eq!(union, javascript, "the types of JavaScript");

    let wit = read("wit/types.wit");
    let variant = codes(between(&wit, "variant error-code {", "\n  }"), '`');
    let expected = &(&core - &of(NOT_IN_WIT)) | &of(ONLY_IN_WIT);
    assert_eq!(variant, expected, "WIT");

    let known = &(&core | &of(ONLY_OF_THE_COMMAND)) | &of(ONLY_IN_JAVASCRIPT);
    for entry in fs::read_dir(Path::new(env!("CARGO_MANIFEST_DIR")).join("host/cli/src"))
        .expect("the command")
    {
        let path = entry.expect("an entry").path();
        let text = fs::read_to_string(&path).unwrap_or_default();
        let unknown: Vec<_> = codes(&text, '"').difference(&known).copied().collect();
        assert!(unknown.is_empty(), "{}: {unknown:?}", path.display());
    }
}

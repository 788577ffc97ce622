//! SECURITY.md names a test for each promise; these tests check that the page and the tests agree.

use std::fs;
use std::path::{Path, PathBuf};

const EXTENSIONS: [&str; 3] = ["rs", "mjs", "py"];

/// Appends all source files below `directory` to `found`.
fn sources(directory: &Path, found: &mut Vec<(PathBuf, String)>) {
    for entry in fs::read_dir(directory).expect("a directory") {
        let path = entry.expect("an entry").path();
        let name = path.file_name().unwrap_or_default().to_string_lossy();
        if path.is_dir() {
            if !["target", "node_modules"].contains(&&*name) && !name.starts_with('.') {
                sources(&path, found);
            }
        } else if path
            .extension()
            .is_some_and(|it| EXTENSIONS.iter().any(|known| it == *known))
            && let Ok(text) = fs::read_to_string(&path)
        {
            found.push((path, text));
        }
    }
}

/// Returns whether `text` contains `word`, and not only as a part of a longer name.
fn has_word(text: &str, word: &str) -> bool {
    let is_part = |char: char| char.is_alphanumeric() || char == '_';
    text.match_indices(word).any(|(at, _)| {
        !text[..at].ends_with(is_part) && !text[at + word.len()..].starts_with(is_part)
    })
}

/// Returns whether the test `place::name` exists in `sources`: in a file or directory named `place`,
/// or as the file `name` of the directory `place`.
fn exists(sources: &[(PathBuf, String)], place: &str, name: &str) -> bool {
    sources.iter().any(|(path, text)| {
        let is_there = |part: &Path| {
            [part.file_name(), part.file_stem()]
                .into_iter()
                .flatten()
                .any(|it| it == place)
        };
        path.ancestors().any(is_there)
            && (has_word(text, name) || path.file_stem().is_some_and(|stem| stem == name))
    })
}

/// Returns the promises of the page, each with the tests that its row names.
fn promises(page: &str) -> Vec<(&str, Vec<(&str, &str)>)> {
    let mut promises = Vec::new();
    let mut is_table_of_promises = false;
    for line in page.lines() {
        let cells: Vec<_> = line.trim().trim_matches('|').split(" | ").collect();
        match *cells {
            _ if !line.starts_with('|') => is_table_of_promises = false,
            ["promise" | " promise", ..] => is_table_of_promises = true,
            _ if !is_table_of_promises || line.starts_with("|-") => {}
            [promise, _, tests] => {
                let tests = tests.split('`').skip(1).step_by(2);
                promises.push((
                    promise,
                    tests.filter_map(|it| it.split_once("::")).collect(),
                ));
            }
            _ => panic!("a row of three cells: {line}"),
        }
    }
    promises
}

#[test]
fn each_promise_of_the_security_page_has_its_tests() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let mut all = Vec::new();
    sources(root, &mut all);
    let page = fs::read_to_string(root.join("SECURITY.md")).expect("the page");
    let promises = promises(&page);
    assert!(promises.len() > 30, "{} promises", promises.len());
    for (promise, tests) in promises {
        assert!(!tests.is_empty(), "no test: {promise}");
        for (place, name) in tests {
            assert!(exists(&all, place, name), "no {place}::{name}: {promise}");
        }
    }
}

#[test]
fn missing_tests_are_detected() {
    let here = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests");
    let mut all = Vec::new();
    sources(&here, &mut all);
    let this = concat!("missing_tests", "_are_detected");
    assert!(exists(&all, "security_page", this));
    assert!(!exists(&all, "acquire", this));
    assert!(!exists(&all, "security_page", &this[1..]));
    let page = "| promise | what | test |\n|---|---|---|\n| one | two | `a::b`, `c::d` |\n| no | test | – |";
    let expected = vec![("one", vec![("a", "b"), ("c", "d")]), ("no", vec![])];
    let found = promises(page)
        .into_iter()
        .map(|(promise, tests)| (promise.trim(), tests));
    assert_eq!(found.collect::<Vec<_>>(), expected);
}

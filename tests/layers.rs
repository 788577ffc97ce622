//! The layers of the architecture: the roots of crates list their modules so that each may use those above it, and none
//! below it. Only the core's conformance suite, and modules in no released program, use host
//! modules.

use std::fs;
use std::path::{Path, PathBuf};

/// The modules of `std` that only a host may use.
const WORLD: [&str; 6] = ["env", "fs", "net", "process", "thread", "time"];

/// The root of the core.
const CORE: &str = "src/lib.rs";

/// The roots of the crates whose modules are layered.
const ROOTS: [&str; 8] = [
    CORE,
    "host/hard-links/src/lib.rs",
    "host/machine/src/lib.rs",
    "host/files/src/lib.rs",
    "host/servers/src/lib.rs",
    "host/wasmtime/src/lib.rs",
    "host/src/lib.rs",
    "host/cli/src/main.rs",
];

/// Returns the modules, in the order of the crate's root.
fn modules(root: &str) -> Vec<String> {
    let text = fs::read_to_string(project(root)).expect("the root of a crate");
    let names = text.lines().filter_map(|line| {
        let line = line.strip_prefix("pub ").unwrap_or(line);
        line.strip_prefix("mod ")?.strip_suffix(';')
    });
    names.map(String::from).collect()
}

fn project(path: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join(path)
}

/// Returns each file of `module`, with its text outside comments.
fn files(root: &str, module: &str) -> Vec<(PathBuf, String)> {
    let sources = project(root);
    let mut paths = vec![sources.with_file_name(module).with_extension("rs")];
    paths.retain(|path| path.exists());
    let mut directories = vec![sources.with_file_name(module)];
    while let Some(directory) = directories.pop() {
        for entry in fs::read_dir(directory).into_iter().flatten() {
            let path = entry.expect("an entry").path();
            if path.is_dir() {
                directories.push(path);
            } else if path.extension().is_some_and(|end| end == "rs") {
                paths.push(path);
            }
        }
    }
    assert!(!paths.is_empty(), "{root}: no file of `{module}`");
    let read = |path: PathBuf| {
        let text = fs::read_to_string(&path).expect("a source file");
        let code = text
            .lines()
            .map(|line| line.split("//").next().unwrap_or_default());
        let code = code.collect::<Vec<_>>().join("\n");
        (path, code)
    };
    paths.into_iter().map(read).collect()
}

/// Returns the names that follow `prefix` in `code`: one, or each of a `{list}`.
fn names_after<'a>(code: &'a str, prefix: &str) -> Vec<&'a str> {
    let is_word = |c: char| c.is_alphanumeric() || c == '_';
    let word = |text: &'a str| text.split(|c| !is_word(c)).next().unwrap_or_default();
    let mut names = Vec::new();
    for (at, _) in code.match_indices(prefix) {
        if code[..at].ends_with(is_word) {
            continue;
        }
        let rest = &code[at + prefix.len()..];
        match rest.strip_prefix('{') {
            None => names.push(word(rest)),
            Some(list) => {
                let (mut depth, mut from) = (0, 0);
                for (at, c) in list.char_indices() {
                    match c {
                        '{' => depth += 1,
                        '}' if depth > 0 => depth -= 1,
                        ',' | '}' if depth == 0 => {
                            names.push(word(list[from..at].trim_start()));
                            from = at + 1;
                            if c == '}' {
                                break;
                            }
                        }
                        _ => {}
                    }
                }
            }
        }
    }
    names
}

#[test]
fn modules_use_only_modules_above_them() {
    for root in ROOTS {
        let modules = modules(root);
        assert!(modules.len() > 4, "{modules:?}");
        for (rank, module) in modules.iter().enumerate() {
            for (path, code) in files(root, module) {
                for used in names_after(&code, "crate::") {
                    let below = modules.iter().skip(rank + 1).any(|below| below == used);
                    assert!(!below, "{} uses `{used}`, below it", path.display());
                }
            }
        }
    }
}

#[test]
fn every_source_file_is_in_the_list() {
    for root in ROOTS {
        let modules = modules(root);
        let root = project(root);
        for entry in fs::read_dir(root.parent().expect("a directory")).expect("sources") {
            let path = entry.expect("an entry").path();
            let stem = path.file_stem().and_then(|stem| stem.to_str());
            let stem = stem.expect("a name").trim_end_matches("_fallback");
            assert!(
                path == root || modules.iter().any(|module| module == stem),
                "{} is not in {}",
                path.display(),
                root.display()
            );
        }
    }
}

#[test]
fn core_does_not_use_host_modules() {
    let modules = modules(CORE);
    let list = fs::read_to_string(project(CORE)).expect("lib.rs");
    assert!(list.contains("#[cfg(verrou_mutants)]\nmod mutant;"));
    let may = ["conformance", "mutant"];
    for module in modules
        .iter()
        .filter(|module| !may.contains(&module.as_str()))
    {
        for (path, code) in files(CORE, module) {
            let std = names_after(&code, "std::");
            let world: Vec<_> = std.iter().filter(|name| WORLD.contains(name)).collect();
            assert!(world.is_empty(), "{} names {world:?}", path.display());
            assert!(!code.contains("verrou_host"), "{}", path.display());
        }
    }
}

#[test]
fn names_are_found() {
    let code = "use std::{fs, sync::{Arc, time}, net};\nstd::time::Duration; mystd::env; core::a";
    assert_eq!(names_after(code, "std::"), ["fs", "sync", "net", "time"]);
}

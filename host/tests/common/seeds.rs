//! The seeds of the fuzzers, as tests.

use std::fs;
use std::path::{Path, PathBuf};

/// Asserts that `read` accepts exactly those seeds of `target` whose names begin with one of `good`.
pub(crate) fn assert_seeds(target: &str, good: &[&str], read: fn(&[u8]) -> bool) {
    for seed in &files(&format!("host/fuzz/seeds/{target}")) {
        let name = seed.file_name().and_then(|name| name.to_str());
        let is_good = name.is_some_and(|name| good.iter().any(|good| name.starts_with(good)));
        let bytes = fs::read(seed).expect("a seed");
        assert_eq!(read(&bytes), is_good, "{}", seed.display());
    }
}

/// Returns the files of a directory of the project.
pub(crate) fn files(directory: &str) -> Vec<PathBuf> {
    let here = Path::new(env!("CARGO_MANIFEST_DIR"));
    let project = here
        .ancestors()
        .find(|path| path.join("SECURITY.md").exists());
    let directory = project.expect("the project").join(directory);
    let entries = fs::read_dir(&directory).expect("a directory");
    let files: Vec<_> = entries
        .map(|entry| entry.expect("an entry").path())
        .collect();
    assert!(!files.is_empty(), "{}", directory.display());
    files
}

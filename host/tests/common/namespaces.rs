//! Tests in namespaces of their own.
#![allow(dead_code, reason = "every program of tests uses its own part of this")]

use std::env;
use std::process::Command;

/// The variable that names a directory to the test that [`in_namespaces`] starts.
pub(crate) const DIRECTORY: &str = "VERROU_TEST_DIRECTORY";

/// Runs the test `name` of this program once more, by `unshare(1)` with `options`; prints that `what` is not tested if
/// this user cannot create such namespaces.
pub(crate) fn in_namespaces(what: &str, name: &str, options: &[&str]) {
    let probe = Command::new("unshare").args(options).arg("true").output();
    if !probe.is_ok_and(|probe| probe.status.success()) {
        eprintln!("this user cannot run `unshare {options:?}`: {what} is not tested");
        return;
    }
    let directory = tempfile::tempdir().unwrap();
    let mut command = Command::new("unshare");
    command
        .args(options)
        .arg("--")
        .arg(env::current_exe().unwrap());
    command.args(["--exact", name, "--nocapture", "--test-threads=1"]);
    let output = command.env(DIRECTORY, directory.path()).output();
    let output = output.expect("unshare(1) is there");
    let said = String::from_utf8_lossy(&output.stdout);
    let errors = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{said}{errors}");
    assert!(said.contains("1 passed"), "{said}");
    // They say if a part was not tested.
    eprint!("{errors}");
}

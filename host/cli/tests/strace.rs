//! System calls of `verrou run`, as strace(1) sees and changes them.
#![cfg(target_os = "linux")]

use std::fs;
use std::process::{Command, ExitStatus};

/// Returns the system calls of `verrou run` as strace(1) with `options` logs them, and the exit status; `None`
/// where strace(1) is missing or not permitted.
fn traced(store: &str, options: &[&str]) -> Option<(String, ExitStatus)> {
    let directory = tempfile::tempdir().unwrap();
    let log = directory.path().join("log");
    let strace = || {
        let mut strace = Command::new("strace");
        strace.args(["--follow-forks", "--decode-fds=path", "--output"]);
        strace.arg(&log);
        strace
    };
    let works = strace().arg("true").output();
    if !works.is_ok_and(|output| output.status.success()) {
        eprintln!("strace(1) does not work here: system calls are not tested");
        return None;
    }
    let output = strace()
        .args(options)
        .arg(env!("CARGO_BIN_EXE_verrou"))
        .args(["--store", store, "run", "lock", "--no-wait", "--", "true"])
        .output();
    let output = output.expect("strace(1) is there");
    Some((fs::read_to_string(&log).unwrap(), output.status))
}

#[test]
fn fences_are_on_the_disk_before_one_is_granted() {
    for kind in ["lease", "file"] {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().to_str().unwrap();
        let calls = ["--trace=fdatasync,fsync,linkat,pwrite64"];
        let Some((log, ended)) = traced(&format!("{kind}:{path}"), &calls) else {
            return;
        };
        assert!(ended.success(), "{log}");
        let at = |call: &str, of: &str| {
            let found = |line: &str| line.contains(call) && line.contains(of);
            let at = log.lines().position(found);
            at.unwrap_or_else(|| panic!("no {call} of {of} in {log}"))
        };
        let in_directory = |file: &str| format!("<{path}/{file}");
        let named = at("linkat(", &format!("<{path}>, \"fences\""));
        let directory_written = at("fsync(", &format!("<{path}>"));
        let counted = at("pwrite64(", &in_directory("fences>"));
        let count_written = at("fdatasync(", &in_directory("fences>"));
        let granted = at("pwrite64(", &in_directory("lock."));
        let order = [named, directory_written, counted, count_written, granted];
        assert!(order.is_sorted(), "{order:?} of {log}");
    }
}

#[test]
fn interrupted_system_call_is_repeated() {
    for kind in ["lease", "file"] {
        let directory = tempfile::tempdir().unwrap();
        let store = format!("{kind}:{}", directory.path().display());
        let interrupted = ["--trace=flock", "--inject=flock:error=EINTR:when=1+2"];
        let Some((log, ended)) = traced(&store, &interrupted) else {
            return;
        };
        assert!(log.contains("(INJECTED)"), "{log}");
        assert!(ended.success(), "{log}");
    }
}

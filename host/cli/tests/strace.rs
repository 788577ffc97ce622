//! System calls of `verrou run`, as strace(1) sees and changes them.
#![cfg(target_os = "linux")]

mod common;

use common::{KINDS, TestDir, ends_with, traced};

/// Returns the system calls of `verrou run` as strace(1) with `options` logs them; `None` where strace(1) does not
/// work.
fn calls(dir: &TestDir, options: &[&str]) -> Option<String> {
    let options = [&["--follow-forks", "--decode-fds=path"], options].concat();
    ends_with(&mut traced(&dir.run(&["--no-wait"], "true"), &options)?, 0);
    Some(dir.read("trace"))
}

#[test]
fn fences_are_on_the_disk_before_one_is_granted() {
    for kind in KINDS {
        let dir = TestDir::new(kind);
        let path = dir.locks();
        let path = path.display();
        let Some(log) = calls(&dir, &["--trace=fdatasync,fsync,linkat,pwrite64"]) else {
            return;
        };
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
        let granted = at("pwrite64(", &in_directory("k."));
        let order = [named, directory_written, counted, count_written, granted];
        assert!(order.is_sorted(), "{order:?} of {log}");
    }
}

#[test]
fn interrupted_system_call_is_repeated() {
    for kind in KINDS {
        let dir = TestDir::new(kind);
        let interrupted = ["--trace=flock", "--inject=flock:error=EINTR:when=1+2"];
        let Some(log) = calls(&dir, &interrupted) else {
            return;
        };
        assert!(log.contains("(INJECTED)"), "{log}");
    }
}

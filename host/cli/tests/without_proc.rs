//! Processes without `/proc`, as in a chroot for builds (mock, debootstrap).
#![cfg(target_os = "linux")]

mod common;

use std::fs;
use std::os::unix::fs::MetadataExt;
use std::process::{Command, Output};

use common::{TestDir, code, done, stderr, stdout};

/// Runs `script` in a root directory of its own, with the test's directory and without `/proc`. Returns its
/// output, or `None` where this user may not create namespaces.
fn without_proc(dir: &TestDir, script: &str) -> Option<Output> {
    let root = dir.path("root");
    fs::create_dir_all(&root).unwrap();
    let inside = |words: &str| {
        let chroot =
            "mount --rbind / \"$0\" && mount -t tmpfs none \"$0/proc\" && chroot \"$0\" \"$@\"";
        let mut command = Command::new("unshare");
        command.args(["--user", "--map-root-user", "--mount", "sh", "-ec", chroot]);
        command.arg(&root).args(["sh", "-c", words]);
        done(&mut command)
    };
    let probe = inside("test -d / && ! test -e /proc/self");
    if code(&probe) != 0 {
        eprintln!("no namespaces here: a process without /proc is not tested");
        return None;
    }
    let directory = dir.path("");
    let verrou = env!("CARGO_BIN_EXE_verrou");
    let state = dir.path("state");
    Some(inside(&format!(
        "cd {} && export XDG_STATE_HOME={} && verrou() {{ {verrou} \"$@\"; }} && {script}",
        directory.display(),
        state.display(),
    )))
}

#[test]
fn kernel_locks_and_gates_create_their_files_without_proc() {
    let dir = TestDir::new("file");
    let stores = [
        ("verrou --store file:locks run k --no-wait", "locks"),
        ("verrou run --file lock --no-wait", "state/verrou/paths"),
    ];
    for (run, directory) in stores {
        let script = format!("for i in 1 2 3; do {run} -- sh -c 'echo $VERROU_FENCE'; done");
        let Some(output) = without_proc(&dir, &script) else {
            return;
        };
        assert_eq!(code(&output), 0, "{run}: {}", stderr(&output));
        let fences: Vec<u64> = stdout(&output)
            .lines()
            .map(|line| line.parse().unwrap())
            .collect();
        assert!(
            fences.len() == 3 && fences.is_sorted_by(|a, b| a < b),
            "{fences:?}"
        );
        for entry in fs::read_dir(dir.path(directory)).unwrap() {
            let entry = entry.unwrap();
            let path = entry.path();
            let is_ours = path.extension().is_none_or(|found| found == "lock");
            let name = path.file_name().unwrap().to_str().unwrap();
            assert!(is_ours && !name.starts_with('.'), "{name} is left behind");
            assert_eq!(entry.metadata().unwrap().mode() & 0o7777, 0o600, "{name}");
        }
    }
    let check = "verrou fence check --file gate 7 && verrou fence check --file gate 6";
    let output = without_proc(&dir, check).unwrap();
    assert_eq!(code(&output), 78, "{}", stderr(&output));
}

/// The store that the error advises works without `/proc`.
#[test]
fn error_of_leases_without_proc_advises_a_store_that_works() {
    let dir = TestDir::new("lease");
    let lease = "verrou --store lease:locks run k --no-wait -- true";
    let Some(output) = without_proc(&dir, lease) else {
        return;
    };
    assert_eq!(code(&output), 73, "{}", stderr(&output));
    assert!(
        stderr(&output).contains("`file:` store"),
        "{}",
        stderr(&output)
    );
    let advised = "verrou --store file:locks run k --no-wait -- true";
    let output = without_proc(&dir, advised).unwrap();
    assert_eq!(code(&output), 0, "{}", stderr(&output));
}

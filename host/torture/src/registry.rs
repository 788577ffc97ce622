//! The list of all parts, and the loop that runs them.

use std::env;
use std::process::ExitCode;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use clap::Parser;
use indicatif::{ProgressBar, ProgressStyle};

use crate::arguments::Arguments;
use crate::report::{PartReport, Report};
use crate::results::{Findings, Part, Setting};
use crate::{
    contender, corruption, faults, fuzz, interleavings, linearizability, mutants, steps, stress,
};

/// All parts, in the order in which they run: parts of a fixed size first.
const PARTS: &[Part] = &[
    faults::CRASH_POINTS,
    faults::FAILING_CALLS,
    corruption::PART,
    mutants::PART,
    interleavings::PART,
    stress::CONTENTION,
    stress::KILLS,
    stress::STOPS,
    stress::REMOVED_FILES,
    stress::CHILDREN,
    stress::TIMEOUTS,
    stress::EXPIRIES,
    linearizability::PART,
    fuzz::PART,
];

/// From this duration on, parts of a fixed size try all cases.
const LONG: Duration = Duration::from_mins(10);

/// The function that a worker process runs.
type Work = fn(&[String]) -> Result<()>;

/// The functions of the worker processes that parts start: `torture worker NAME ARGUMENTS`.
const WORKERS: &[(&str, Work)] = &[
    ("contend", contender::contend),
    ("operation", steps::work),
    ("linearizability", linearizability::work),
];

pub(crate) fn main() -> ExitCode {
    let typed: Vec<_> = env::args().skip(1).collect();
    if let [worker, name, arguments @ ..] = &typed[..]
        && worker == "worker"
        && let Some((_, work)) = WORKERS.iter().find(|(known, _)| known == name)
    {
        return match work(arguments) {
            Ok(()) => ExitCode::SUCCESS,
            Err(err) => {
                eprintln!("torture worker {name}: {err:#}");
                ExitCode::from(3)
            }
        };
    }
    match torture(&Arguments::parse()) {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        Err(err) => {
            eprintln!("torture: {err:#}");
            ExitCode::from(2)
        }
    }
}

/// Runs the parts, and returns whether there was no violation.
fn torture(arguments: &Arguments) -> Result<bool> {
    if arguments.list {
        for part in PARTS {
            println!("{:<20} {}", part.name, part.about);
        }
        return Ok(true);
    }
    if arguments.build {
        for part in [mutants::PART, interleavings::PART, fuzz::PART] {
            one(&part, arguments, 0, Duration::ZERO)?;
        }
        return Ok(true);
    }
    for name in &arguments.only {
        let known = PARTS.iter().any(|part| part.name == name);
        ensure!(known, "unknown part `{name}`; see --list");
    }
    let chosen: Vec<_> = PARTS
        .iter()
        .filter(|part| arguments.only.is_empty() || arguments.only.iter().any(|it| it == part.name))
        .collect();
    let seed = arguments.seed.unwrap_or_else(|| fastrand::u64(..));
    let mut report = Report::new(seed, arguments.length);
    println!("seed {seed}");

    let began = Instant::now();
    let mut building = Duration::ZERO;
    let mut shares: u32 = chosen.iter().map(|part| part.share).sum();
    for part in chosen {
        let spent = began.elapsed().saturating_sub(building);
        let left = arguments.length.saturating_sub(spent);
        let length = match part.share {
            0 => Duration::ZERO,
            share => left.mul_f64(f64::from(share) / f64::from(shares)),
        };
        shares -= part.share;
        let part_report = one(part, arguments, seed, length)?;
        building += part_report.findings.building;
        part_report.print(part.name);
        report.parts.push(part_report);
    }
    println!("\n{}", report.table());
    report.write(&arguments.report)?;
    println!("seed {seed}; full report in {}", arguments.report.display());
    Ok(report.violations() == 0)
}

fn one(part: &Part, arguments: &Arguments, seed: u64, length: Duration) -> Result<PartReport> {
    let directory = tempfile::tempdir().context("cannot create a temporary directory")?;
    let progress = ProgressBar::new_spinner().with_prefix(part.name);
    progress.set_style(
        ProgressStyle::with_template("{prefix:20} {wide_bar} {pos}/{len} {msg} {elapsed}")
            .context("invalid template of the progress bar")?,
    );
    progress.enable_steady_tick(Duration::from_millis(250));
    let setting = Setting {
        seed,
        length,
        is_long: arguments.length >= LONG,
        only_build: arguments.build,
        directory: directory.path().to_owned(),
        progress,
    };
    let mut findings = Findings::default();
    let began = Instant::now();
    let ended = (part.run)(&setting, &mut findings);
    setting.progress.finish_and_clear();
    if let Err(err) = ended {
        findings.violation(format!("this part failed to run: {err:#}"));
    }
    Ok(PartReport {
        name: part.name,
        about: part.about,
        seconds: began
            .elapsed()
            .saturating_sub(findings.building)
            .as_secs_f64(),
        findings,
    })
}

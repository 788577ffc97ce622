//! Fuzzing of all parsers by libFuzzer, through cargo-fuzz.
//!
//! `host/src/fuzzing.rs` has the properties that the targets in `host/fuzz` check. The targets
//! start with the seeds in `host/fuzz/seeds`; new inputs go to a temporary directory, and inputs
//! that fail to `target/torture`.

use std::env;
use std::ffi::OsStr;
use std::fs::{self, File};
use std::io;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use tempfile::TempDir;

use crate::results::{Findings, Part, Setting};

pub(crate) const PART: Part = Part {
    name: "fuzz",
    about: "fuzzes the parsers of lock files, serialized locks, names, durations and store URLs",
    share: 1,
    run,
};

/// Each target, with a directory of additional seeds.
const TARGETS: [(&str, Option<&str>); 5] = [
    ("record", Some("host/tests/golden")),
    ("serialized", Some("tests/golden")),
    ("name", None),
    ("duration", None),
    ("store_url", None),
];

/// The shortest time that each target runs.
const SHORTEST: Duration = Duration::from_secs(30);

/// The time beyond its duration after which a target counts as hanging.
const GRACE: Duration = Duration::from_mins(2);

fn run(setting: &Setting, findings: &mut Findings) -> Result<()> {
    let began = Instant::now();
    let build = match Build::new(setting)? {
        Ok(build) => build,
        Err(why) => {
            findings.not_done(why);
            return Ok(());
        }
    };
    findings.building = began.elapsed();
    if setting.only_build {
        return Ok(());
    }

    let length = SHORTEST.max(setting.length);
    setting.progress.set_length(length.as_secs());
    setting.progress.set_message("seconds of all targets");
    let work = Work::new(setting)?;
    let start = |(target, more): &(&'static str, _)| {
        Fuzzer::start(&build, &work, target, *more, setting.seed, length)
    };
    let mut fuzzers = TARGETS.iter().map(start).collect::<Result<Vec<_>>>()?;
    let began = Instant::now();
    while began.elapsed() < length + GRACE {
        setting.progress.set_position(began.elapsed().as_secs());
        let mut is_over = true;
        for fuzzer in &mut fuzzers {
            is_over &= fuzzer.has_ended()?;
        }
        if is_over {
            break;
        }
        thread::sleep(Duration::from_millis(250));
    }
    for fuzzer in fuzzers {
        fuzzer.report(&build, findings)?;
    }
    Ok(())
}

/// Returns the project's directory.
fn project() -> &'static Path {
    let package = Path::new(env!("CARGO_MANIFEST_DIR"));
    package.ancestors().nth(2).unwrap_or(package)
}

/// The directory of the built targets.
struct Build {
    programs: PathBuf,
}

impl Build {
    /// Builds the targets; the inner error is the reason why this machine cannot build them.
    fn new(setting: &Setting) -> Result<Result<Self, String>> {
        setting.progress.set_message("building");
        if env::var_os("CXX").is_none() && find("c++").is_none() {
            return Ok(Err("libFuzzer needs a C++ compiler `c++`".to_owned()));
        }
        let cargo_fuzz = match cargo_fuzz()? {
            Ok(program) => program,
            Err(why) => return Ok(Err(format!("cannot install cargo-fuzz: {why}"))),
        };
        let mut fetch = cargo();
        fetch.args([
            "fetch",
            "--locked",
            "--manifest-path",
            "host/fuzz/Cargo.toml",
        ]);
        if let Err(why) = run_command(&mut fetch)? {
            if why.contains("--locked") {
                bail!("host/fuzz/Cargo.lock is out of date: {why}");
            }
            return Ok(Err(format!(
                "cannot fetch the dependencies of `host/fuzz`: {why}"
            )));
        }
        let machine = match run_command(Command::new("rustc").arg("-vV"))? {
            Ok(text) => text
                .lines()
                .find_map(|line| line.strip_prefix("host: "))
                .context("`rustc -vV` names no host")?
                .to_owned(),
            Err(why) => bail!("rustc -vV: {why}"),
        };
        let mut build = Command::new(&cargo_fuzz);
        build
            .arg("build")
            .args(OPTIONS)
            // A cargo-fuzz that was built elsewhere may have another default target.
            .args(["--target", &machine])
            .current_dir(project())
            .env("CARGO_NET_OFFLINE", "true");
        if let Err(why) = run_command(&mut build)? {
            bail!("cannot build the targets: {why}");
        }
        let programs = project().join("target/fuzz").join(machine).join("release");
        Ok(Ok(Self { programs }))
    }
}

/// The options of cargo-fuzz. Stable Rust has no sanitizers; they find errors that code without
/// `unsafe` does not have.
const OPTIONS: [&str; 6] = [
    "--sanitizer",
    "none",
    "--fuzz-dir",
    "host/fuzz",
    "--target-dir",
    "target/fuzz",
];

fn cargo() -> Command {
    let mut cargo = Command::new(env::var_os("CARGO").unwrap_or_else(|| "cargo".into()));
    cargo.current_dir(project());
    cargo
}

/// The version of cargo-fuzz; its `Cargo.lock` pins its dependencies.
const CARGO_FUZZ: &str = "cargo-fuzz@=0.13.2";

/// Returns the path of cargo-fuzz: in `PATH`, or else installed in `target/tools`.
fn cargo_fuzz() -> Result<Result<PathBuf, String>> {
    if let Some(found) = find("cargo-fuzz") {
        return Ok(Ok(found));
    }
    let tools = project().join("target/tools/cargo");
    let program = tools.join("bin/cargo-fuzz");
    if !program.exists() {
        let mut install = cargo();
        install
            // The tool only starts compilers: an unoptimized build is available much sooner.
            .args(["install", CARGO_FUZZ, "--debug", "--locked", "--root"])
            .arg(&tools);
        if let Err(why) = run_command(&mut install)? {
            return Ok(Err(why));
        }
    }
    Ok(Ok(program))
}

/// Returns the path of the program `name` in `PATH`.
fn find(name: &str) -> Option<PathBuf> {
    let path = env::var_os("PATH")?;
    env::split_paths(&path)
        .map(|directory| directory.join(name))
        .find(|program| program.is_file())
}

/// Runs `command`, and returns its standard output, or, if it failed, the end of its standard
/// error.
fn run_command(command: &mut Command) -> Result<Result<String, String>> {
    let program = command.get_program().to_owned();
    let output = command
        .stdin(Stdio::null())
        .output()
        .with_context(|| format!("cannot start {}", program.display()))?;
    if output.status.success() {
        return Ok(Ok(String::from_utf8_lossy(&output.stdout).into_owned()));
    }
    let text = String::from_utf8_lossy(&output.stderr);
    let lines: Vec<_> = text.lines().filter(|line| !line.is_empty()).collect();
    let last = &lines[lines.len().saturating_sub(20)..];
    Ok(Err(format!("{}: {}", output.status, last.join("\n"))))
}

/// The directories that the targets use.
struct Work<'a> {
    directory: &'a Path,
    /// In memory if possible, because some targets create files and call fsync(2).
    quick: TempDir,
    artifacts: PathBuf,
}

impl<'a> Work<'a> {
    fn new(setting: &'a Setting) -> Result<Self> {
        let quick = tempfile::tempdir_in("/dev/shm")
            .or_else(|_| tempfile::tempdir_in(&setting.directory))
            .context("cannot create a temporary directory")?;
        let artifacts = project().join("target/torture/fuzz");
        fs::create_dir_all(&artifacts).with_context(|| format!("{}", artifacts.display()))?;
        Ok(Self {
            directory: &setting.directory,
            quick,
            artifacts,
        })
    }
}

/// A running target.
struct Fuzzer {
    target: &'static str,
    child: Child,
    ended: Option<ExitStatus>,
    log: PathBuf,
}

impl Fuzzer {
    fn start(
        build: &Build,
        work: &Work<'_>,
        target: &'static str,
        more: Option<&str>,
        seed: u64,
        length: Duration,
    ) -> Result<Self> {
        // libFuzzer writes new inputs to the first directory.
        let found = work.directory.join(target);
        fs::create_dir(&found)?;
        let log = work.directory.join(target).with_extension("log");
        let file = File::create(&log)?;
        let mut prefix = work.artifacts.join(target).into_os_string();
        prefix.push("-");
        let mut command = Command::new(build.programs.join(target));
        command
            .arg(option("artifact_prefix", &prefix))
            .arg(format!("-max_total_time={}", length.as_secs()))
            // With zero, libFuzzer would draw a random seed.
            .arg(format!("-seed={}", seed % u64::from(u32::MAX) + 1))
            .args(["-print_final_stats=1", "-timeout=25", "-rss_limit_mb=2048"])
            .arg(found)
            .arg(format!("host/fuzz/seeds/{target}"))
            .args(more)
            .current_dir(project())
            .env("TMPDIR", work.quick.path())
            .env("RUST_BACKTRACE", "1")
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(file);
        let child = command.spawn();
        Ok(Self {
            target,
            child: child.with_context(|| format!("cannot start the target `{target}`"))?,
            ended: None,
            log,
        })
    }

    fn has_ended(&mut self) -> io::Result<bool> {
        if self.ended.is_none() {
            self.ended = self.child.try_wait()?;
        }
        Ok(self.ended.is_some())
    }

    /// Records the number of its inputs, and its failure.
    fn report(mut self, build: &Build, findings: &mut Findings) -> Result<()> {
        let target = self.target;
        let ended = self.has_ended()?.then_some(self.ended).flatten();
        let log = fs::read(&self.log).context("cannot read the output of a target")?;
        let log = String::from_utf8_lossy(&log);
        let number = |what: &str| {
            let line = log.lines().find_map(|line| line.strip_prefix(what));
            line.and_then(|number| number.trim().parse::<u64>().ok())
        };
        let executed = number("stat::number_of_executed_units:").unwrap_or_default();
        findings.count(format!("inputs for `{target}`"), executed);
        let Some(status) = ended else {
            findings.violation(format!("`{target}` hangs: {}", last_line(&log)));
            return Ok(());
        };
        if !status.success() {
            let what = reason(&log).unwrap_or_else(|| last_line(&log).to_owned());
            let input = log
                .lines()
                .find_map(|line| line.split_once("Test unit written to "));
            let again = match input {
                // Without this option it would write the input again, to the current directory.
                Some((_, input)) => format!(
                    "; to reproduce: {} -exact_artifact_path=/dev/null {input}",
                    build.programs.join(target).display(),
                ),
                None => String::new(),
            };
            findings.violation(format!("`{target}`, {status}: {what}{again}"));
            return Ok(());
        }
        let new_inputs = number("stat::new_units_added:").unwrap_or_default();
        findings.check(new_inputs > 0, || {
            format!("`{target}` found no new input among {executed}: is it built with coverage?")
        });
        Ok(())
    }
}

impl Drop for Fuzzer {
    fn drop(&mut self) {
        if self.ended.is_none() {
            let _ = self.child.kill();
            let _ = self.child.wait();
        }
    }
}

/// Returns an option of libFuzzer with a path as its value.
fn option(name: &str, value: &OsStr) -> std::ffi::OsString {
    let mut option = std::ffi::OsString::from(format!("-{name}="));
    option.push(value);
    option
}

/// Returns the reason why a target failed, from its output: a panic, or libFuzzer's error.
fn reason(log: &str) -> Option<String> {
    let mut lines = log.lines();
    let panic = lines.find(|line| line.contains("panicked at "));
    match panic {
        Some(panic) => Some(format!("{panic} {}", lines.next().unwrap_or_default())),
        None => log
            .lines()
            .find(|line| line.contains("ERROR: libFuzzer: "))
            .map(str::to_owned),
    }
}

fn last_line(log: &str) -> &str {
    log.lines().next_back().unwrap_or("no output")
}

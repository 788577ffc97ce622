//! Mutation tests: deliberate bugs, each of which a test has to detect.
//!
//! The product is built once with all mutants in it, and they are switched on one at a time:
//! `src/mutant.rs`. `mutants/list.rs` lists them, each with a description and the test that detects
//! it.

mod list;

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::env;
use std::fs::{self, File};
use std::io;
use std::os::unix::process::{CommandExt, ExitStatusExt};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::{Mutex, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use cargo_metadata::Message;
use rustix::process::{Pid, Signal, WaitId, WaitIdOptions, geteuid, kill_process_group, waitid};

use self::list::{Mutant, Needs, PITFALLS, Test};
use crate::cfg_build;
use crate::results::{Findings, Part, Setting};

pub(crate) const PART: Part = Part {
    name: "mutants",
    about: "deliberate bugs, each detected by a test",
    share: 0,
    run,
};

/// The time after which a test counts as hanging.
const DEADLINE: Duration = Duration::from_mins(1);

/// The number of tests that run at the same time.
const AT_ONCE: usize = 2;

/// The environment variable that switches a mutant on.
const SWITCH: &str = "VERROU_MUTANT";

fn run(setting: &Setting, findings: &mut Findings) -> Result<()> {
    let project = Path::new(env!("CARGO_MANIFEST_DIR")).join("../..");
    if !project.join("src/mutant.rs").exists() {
        findings.not_done("mutants need the sources that this program was built from");
        return Ok(());
    }
    let began = Instant::now();
    setting.progress.set_message("building");
    let programs = build(&project.canonicalize()?)?;
    findings.building = began.elapsed();
    if setting.only_build {
        return Ok(());
    }

    let began = Instant::now();
    setting.progress.set_message("");
    let bench = Bench {
        programs,
        logs: setting.directory.clone(),
        setting,
    };
    let mutants = runnable_mutants(findings);
    let tests: BTreeSet<_> = mutants.iter().map(|mutant| mutant.detected_by).collect();
    setting
        .progress
        .set_length((tests.len() + mutants.len()) as u64);
    check_list_is_complete(&bench, findings)?;
    let sound = without_mutants(&bench, &tests, findings)?;
    with_mutants(&bench, &mutants, &sound, findings)?;
    findings.figure("runs", format!("{:.1} s", began.elapsed().as_secs_f64()));
    let (with, all) = (
        PITFALLS.iter().filter(|it| !it.mutants.is_empty()).count(),
        PITFALLS.len(),
    );
    findings.figure("pitfalls with a mutant", format!("{with} of {all}"));
    for pitfall in PITFALLS.iter().filter(|it| it.mutants.is_empty()) {
        findings.figure(format!("no mutant: {}", pitfall.what), pitfall.otherwise);
    }
    Ok(())
}

/// Returns the mutants whose tests can run on this machine, and records the others.
fn runnable_mutants(findings: &mut Findings) -> Vec<&'static Mutant> {
    let is_root = geteuid().is_root();
    let works = |program: &str, arguments: &[&str]| {
        let output = Command::new(program).args(arguments).output();
        output.is_ok_and(|output| output.status.success())
    };
    let traces = works("strace", &["--output", "/dev/null", "true"]);
    let has_user_namespaces = is_root && works("unshare", &["--user", "true"]);
    let mut mutants = Vec::new();
    for mutant in PITFALLS.iter().flat_map(|pitfall| pitfall.mutants) {
        let lacking = match mutant.needs {
            Needs::Root if !is_root => "root",
            Needs::Strace if !traces => "a strace(1) that works",
            Needs::UserNamespace if !has_user_namespaces => "root, and user namespaces",
            _ => {
                mutants.push(mutant);
                continue;
            }
        };
        findings.not_done(format!("{}: its test needs {lacking}", mutant.name));
    }
    mutants
}

/// Checks that the list has every mutant of the product, and that the product aborts for an unknown
/// mutant: a misspelled name must not count as a detected mutant.
fn check_list_is_complete(bench: &Bench<'_>, findings: &mut Findings) -> Result<()> {
    const UNKNOWN: &str = "NoSuchMutant";

    let all = || PITFALLS.iter().flat_map(|pitfall| pitfall.mutants);
    let test = all()
        .next()
        .context("the list of mutants is empty")?
        .detected_by;
    let Run { status, output, .. } = bench.run(test, Some(UNKNOWN))?;
    let aborted = status.and_then(|status| status.signal()) == Some(Signal::ABORT.as_raw());
    let Some((_, known)) =
        output.split_once(&format!("{SWITCH}={UNKNOWN} is none of the mutants:"))
    else {
        findings.violation(format!("an unknown mutant is not refused: {output}"));
        return Ok(());
    };
    findings.check(aborted, || {
        format!("the process does not abort for an unknown mutant: {output}")
    });
    let is_name = |line: &&str| !line.is_empty() && line.chars().all(char::is_alphanumeric);
    let known: BTreeSet<_> = known.lines().map(str::trim).filter(is_name).collect();
    let listed: BTreeSet<_> = all().map(|mutant| mutant.name).collect();
    for name in known.symmetric_difference(&listed) {
        findings.violation(format!("{name} is missing in the product or in the list"));
    }
    Ok(())
}

/// Runs the tests without mutants, and returns the sound ones; each failure is a violation.
fn without_mutants(
    bench: &Bench<'_>,
    tests: &BTreeSet<Test>,
    findings: &mut Findings,
) -> Result<BTreeSet<Test>> {
    let mut sound = BTreeSet::new();
    for (test, run) in bench.run_all(tests.iter().copied(), |test| bench.run(test, None)) {
        match run?.end(test) {
            End::Passed => {
                findings.count("tests passed without a mutant", 1);
                sound.insert(test);
            }
            End::Failed(why) | End::Other(why) => {
                findings.violation(format!("without a mutant, {test}: {why}"));
            }
        }
    }
    Ok(sound)
}

/// Runs the tests with their mutants, and records which mutants were detected.
fn with_mutants(
    bench: &Bench<'_>,
    mutants: &[&'static Mutant],
    sound: &BTreeSet<Test>,
    findings: &mut Findings,
) -> Result<()> {
    let mut detected = BTreeMap::<_, Vec<_>>::new();
    let mut survived = BTreeSet::new();
    let tried = mutants
        .iter()
        .copied()
        .filter(|it| sound.contains(&it.detected_by));
    let runs = bench.run_all(tried, |mutant| {
        bench.run(mutant.detected_by, Some(mutant.name))
    });
    for (mutant, run) in runs {
        let test = mutant.detected_by;
        match run?.end(test) {
            End::Failed(why) => {
                let by = format!("{test} ({why})");
                detected.entry(mutant.name).or_default().push(by);
            }
            End::Passed => {
                survived.insert(mutant.name);
                let about = mutant.about;
                findings.violation(format!("{} ({about}) survives {test}", mutant.name));
            }
            End::Other(why) => {
                survived.insert(mutant.name);
                let name = mutant.name;
                findings.violation(format!("{name} is not detected by {test}, which {why}"));
            }
        }
    }
    for (name, by) in detected {
        findings.figure(format!("detected: {name}"), by.join("; "));
        findings.count("mutants detected", u64::from(!survived.contains(name)));
    }
    Ok(())
}

/// The test programs, and the directory of their logs.
struct Bench<'a> {
    programs: HashMap<(&'static str, &'static str), PathBuf>,
    logs: PathBuf,
    setting: &'a Setting,
}

/// A completed run of a test.
struct Run {
    /// `None` if it was killed after [`DEADLINE`].
    status: Option<ExitStatus>,
    output: String,
}

/// The result of a test.
enum End {
    Passed,
    /// An assertion failed, at this place.
    Failed(String),
    /// Any other end, with a description.
    Other(String),
}

impl Bench<'_> {
    /// Runs `each` for all of `tests`, [`AT_ONCE`] at a time.
    fn run_all<T: Copy + Send>(
        &self,
        tests: impl Iterator<Item = T> + Send,
        each: impl Fn(T) -> Result<Run> + Sync,
    ) -> Vec<(T, Result<Run>)> {
        let (left, done) = (Mutex::new(tests), Mutex::new(Vec::new()));
        let work = || {
            loop {
                let next = left.lock().unwrap_or_else(PoisonError::into_inner).next();
                let Some(test) = next else { return };
                let came_to = each(test);
                self.setting.progress.inc(1);
                let mut done = done.lock().unwrap_or_else(PoisonError::into_inner);
                done.push((test, came_to));
            }
        };
        thread::scope(|scope| {
            for _ in 0..AT_ONCE {
                scope.spawn(work);
            }
        });
        done.into_inner().unwrap_or_else(PoisonError::into_inner)
    }

    /// Runs `test`, with a mutant or without, and kills the processes that it leaves behind.
    fn run(&self, test: Test, mutant: Option<&str>) -> Result<Run> {
        let program = self.programs.get(&(test.package, test.program));
        let program = program.with_context(|| format!("{test}: no such test program was built"))?;
        let log = self
            .logs
            .join(format!("{}-{}", mutant.unwrap_or("none"), test.name));
        let output = File::create(&log)?;
        let mut command = Command::new(program);
        command
            .args(["--exact", test.name])
            .env("RUST_BACKTRACE", "0")
            .env_remove(SWITCH)
            .env_remove("RUST_TEST_NOCAPTURE")
            .envs(mutant.map(|mutant| (SWITCH, mutant)))
            .stdin(Stdio::null())
            .stdout(output.try_clone()?)
            .stderr(output)
            .process_group(0);
        let mut child = command.spawn().with_context(|| format!("{test}"))?;
        let in_time = ends_in_time(&child)?;
        // Before the child is reaped, and its process ID can be reused.
        let _ = kill_process_group(Pid::from_child(&child), Signal::KILL);
        let status = child.wait()?;
        let output = fs::read(&log)?;
        Ok(Run {
            status: in_time.then_some(status),
            output: String::from_utf8_lossy(&output).into_owned(),
        })
    }
}

/// Returns whether a process ends before the deadline; does not reap it.
fn ends_in_time(child: &Child) -> io::Result<bool> {
    const LOOK: Duration = Duration::from_millis(5);

    let end = WaitIdOptions::EXITED | WaitIdOptions::NOWAIT | WaitIdOptions::NOHANG;
    let began = Instant::now();
    while waitid(WaitId::Pid(Pid::from_child(child)), end)?.is_none() {
        if began.elapsed() > DEADLINE {
            return Ok(false);
        }
        thread::sleep(LOOK);
    }
    Ok(true)
}

impl Run {
    fn end(&self, test: Test) -> End {
        /// The exit code of a test program with a failed test.
        const FAILED: i32 = 101;

        let Some(status) = self.status else {
            return End::Other(format!("takes longer than {DEADLINE:?}"));
        };
        let failed = format!("test {} ... FAILED", test.name);
        if status.success() && self.output.contains("test result: ok. 1 passed; 0 failed") {
            End::Passed
        } else if status.code() == Some(FAILED) && self.output.contains(&failed) {
            End::Failed(self.first_panic())
        } else {
            let output: String = self.output.trim().chars().take(500).collect();
            End::Other(format!("ends with {status}: {output}"))
        }
    }

    /// Returns the place of the first failed assertion.
    fn first_panic(&self) -> String {
        let panic = self.output.split_once(" panicked at ");
        let place = panic.and_then(|(_, panic)| panic.lines().next());
        place
            .unwrap_or("an unknown place")
            .trim_end_matches(':')
            .to_owned()
    }
}

/// Builds the programs of all tests in the list, with the mutants in them, and returns their paths.
fn build(project: &Path) -> Result<HashMap<(&'static str, &'static str), PathBuf>> {
    let all = PITFALLS.iter().flat_map(|pitfall| pitfall.mutants);
    let wanted: BTreeSet<_> = all
        .map(|mutant| (mutant.detected_by.package, mutant.detected_by.program))
        .collect();
    let mut command = cfg_build::cargo_test(project, "verrou_mutants");
    command
        .args(["--no-run", "--quiet"])
        .arg("--message-format=json-render-diagnostics");
    for program in wanted
        .iter()
        .map(|(_, program)| *program)
        .collect::<BTreeSet<_>>()
    {
        match program {
            "lib" => command.arg("--lib"),
            test => command.args(["--test", test]),
        };
    }
    let built = command.output().context("cargo")?;
    let errors = String::from_utf8_lossy(&built.stderr);
    ensure!(built.status.success(), "cannot build the mutants: {errors}");

    let mut programs = HashMap::new();
    for line in String::from_utf8(built.stdout)?.lines() {
        let message: Message = serde_json::from_str(line).context("a message of Cargo")?;
        if let Message::CompilerArtifact(artifact) = message
            && let Some(executable) = artifact.executable
            && let Some(found) = wanted.iter().find(|&&(package, program)| {
                artifact.manifest_path == manifest_of(project, package)
                    && match program {
                        "lib" => artifact.target.is_lib(),
                        test => artifact.target.name == test,
                    }
            })
        {
            programs.insert(*found, executable.into());
        }
    }
    if let Some(missing) = wanted.iter().find(|it| !programs.contains_key(*it)) {
        bail!("Cargo did not build {missing:?}");
    }
    Ok(programs)
}

fn manifest_of(project: &Path, package: &str) -> PathBuf {
    match package {
        "verrou-files" => project.join("host/files/Cargo.toml"),
        "verrou-hard-links" => project.join("host/hard-links/Cargo.toml"),
        "verrou-host" => project.join("host/Cargo.toml"),
        "verrou-cli" => project.join("host/cli/Cargo.toml"),
        _ => project.join("Cargo.toml"),
    }
}

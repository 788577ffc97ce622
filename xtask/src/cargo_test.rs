//! Runs the programs of tests that `cargo test` has built, several at once, and lists the tests that failed.

use std::io::{Write, stdout};
use std::path::PathBuf;
use std::process::Command;
use std::sync::Mutex;
use std::thread;

use anyhow::{Context, Result, bail, ensure};
use cargo_metadata::Message;
use xshell::{Cmd, Shell, cmd};

/// A program of tests.
#[derive(Debug)]
pub(crate) struct Program {
    /// The name of the target, such as `files`.
    pub(crate) name: String,
    path: PathBuf,
    /// The directory of its package, in which Cargo runs it.
    package: PathBuf,
}

impl Program {
    /// Returns the command that runs the program, with `tests` of its tests at once.
    fn command(&self, shell: &Shell, arguments: &[&str], tests: usize) -> Command {
        let path = &self.path;
        let mut command = Command::from(cmd!(shell, "{path} {arguments...}"));
        command
            .current_dir(&self.package)
            .env("RUST_TEST_THREADS", tests.to_string())
            .env("CARGO_MANIFEST_DIR", &self.package);
        command
    }
}

/// Builds the tests by `command`, a `cargo test`, and returns their programs.
///
/// # Errors
///
/// Returns the error of the build.
pub(crate) fn build(command: Cmd<'_>) -> Result<Vec<Program>> {
    let messages = command
        .args(["--no-run", "--message-format=json-render-diagnostics"])
        .read()?;
    let mut programs = Vec::new();
    for line in messages.lines() {
        let message: Message = serde_json::from_str(line).context("a message of Cargo")?;
        if let Message::CompilerArtifact(artifact) = message
            && artifact.profile.test
            && let Some(path) = artifact.executable
        {
            let package = artifact.manifest_path.parent();
            programs.push(Program {
                name: artifact.target.name,
                path: path.into(),
                package: package.map(Into::into).unwrap_or_default(),
            });
        }
    }
    Ok(programs)
}

/// How tests are run.
#[derive(Clone, Copy)]
pub(crate) struct Concurrency {
    /// The number of programs that run at once.
    pub(crate) programs: usize,
    /// The number of tests of each program that run at once.
    pub(crate) tests: usize,
}

/// Runs `programs` with the arguments `arguments`. Prints the output of each when it has ended.
///
/// # Errors
///
/// Names the tests that failed.
pub(crate) fn run<'a>(
    shell: &Shell,
    programs: impl IntoIterator<Item = &'a Program>,
    arguments: &[&str],
    concurrency: Concurrency,
) -> Result<()> {
    // The shell, which has the environment of the steps, cannot be shared by threads.
    let commands: Vec<_> = programs
        .into_iter()
        .map(|program| {
            (
                program,
                program.command(shell, arguments, concurrency.tests),
            )
        })
        .collect();
    ensure!(!commands.is_empty(), "there is no such program of tests");
    let queue = Mutex::new(commands.into_iter());
    let failed = Mutex::new(Vec::new());
    thread::scope(|scope| {
        let workers: Vec<_> = (0..concurrency.programs)
            .map(|_| {
                scope.spawn(|| -> Result<()> {
                    loop {
                        let next = queue.lock().expect("no panic").next();
                        let Some((program, command)) = next else {
                            return Ok(());
                        };
                        let failures = run_one(program, command)?;
                        failed.lock().expect("no panic").extend(failures);
                    }
                })
            })
            .collect();
        workers
            .into_iter()
            .try_for_each(|worker| worker.join().expect("no panic"))
    })?;
    let failed = failed.into_inner().expect("no panic");
    if failed.is_empty() {
        return Ok(());
    }
    bail!("failed tests: {}", failed.join(", "))
}

/// Runs one program, and returns the tests that failed.
fn run_one(program: &Program, mut command: Command) -> Result<Vec<String>> {
    let Program { name, path, .. } = program;
    let output = command
        .output()
        .with_context(|| format!("cannot run the tests `{name}`"))?;
    let text = String::from_utf8_lossy(&output.stdout);
    let mut out = stdout().lock();
    writeln!(out, "\n     Running {name} ({})\n{text}", path.display())?;
    out.write_all(&output.stderr)?;
    let failed: Vec<_> = text.lines().filter_map(failed_test).collect();
    Ok(match (output.status.success(), failed.is_empty()) {
        (true, _) => Vec::new(),
        (false, true) => vec![format!("{name} ({})", output.status)],
        (false, false) => failed
            .into_iter()
            .map(|test| format!("{name}::{test}"))
            .collect(),
    })
}

/// Returns the test that `line` of the output of libtest reports as failed.
fn failed_test(line: &str) -> Option<&str> {
    line.strip_prefix("test ")?.strip_suffix(" ... FAILED")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn failed_tests_are_named() {
        assert_eq!(failed_test("test a::b ... FAILED"), Some("a::b"));
        assert_eq!(failed_test("test a::b ... ok"), None);
        assert_eq!(failed_test("test result: FAILED. 0 passed"), None);
    }

    #[test]
    #[cfg(unix)]
    fn every_program_runs_and_a_failure_has_the_name_of_its_program() {
        let program = |name: &str, path: &str| Program {
            name: name.to_owned(),
            path: path.into(),
            package: ".".into(),
        };
        let shell = Shell::new().unwrap();
        let programs = [program("good", "true"), program("bad", "false")];
        let at_once = Concurrency {
            programs: 2,
            tests: 1,
        };
        assert!(run(&shell, &programs[..1], &[], at_once).is_ok());
        let failed = run(&shell, &programs, &[], at_once)
            .unwrap_err()
            .to_string();
        assert_eq!(failed, "failed tests: bad (exit status: 1)");
    }
}

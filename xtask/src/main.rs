//! Builds and checks the project: see `cargo xtask help`.

mod bench;
mod cargo_test;
mod component;
mod compose;
mod crates;
mod guest;
mod javascript;
mod js;
mod meanwhile;
mod programs;
mod python;
mod servers;
mod torture;
mod wasm;
mod wit_docs;
mod words;

use std::env;
use std::fmt;
use std::fs;
use std::num::NonZero;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitCode, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Result, anyhow, ensure};
use xshell::{Cmd, Shell, cmd};

use cargo_test::Concurrency;
use meanwhile::{Meanwhile, Priority, REASON, UNAVAILABLE};
use wasm::Toolchain;

const USAGE: &str = "\
usage: cargo xtask test | bench | torture OPTIONS | component [DIRECTORY] | compose OPTIONS | js
                 | python | wit-docs [--check] | words

  test         run all checks and tests; NOT RUN marks the steps that need a missing tool
  bench        measure the locks, each beside its peers
  torture [--for 10m] [--seed N] [--only PART]
               test the locks in files under faults, kills, corruption and hostile users; --list lists the parts
  component    build target/component/{verrou,verrou-async,provider-filesystem}.wasm, and print their imports and exports
  component --bundle
               write the two lock components into the crate verrou-component, too
  component DIRECTORY
               the same for the component in DIRECTORY, such as examples/cron-job
  compose [--store STORE.wasm] [--into APPLICATION.wasm] --output COMPOSED.wasm
               plug a store into verrou.wasm, and verrou.wasm into an application; verrou-async.wasm, if these are
               for WASI 0.3
  js           build the npm package: target/js
  python       build the Python package, with the components inside: target/python
  wit-docs     write wit/README.md and wit/async/README.md, or --check that they are current
  words        check that the text of the project uses none of the constructions in xtask/src/words.rs";

fn main() -> ExitCode {
    let arguments: Vec<String> = env::args().skip(1).collect();
    let ended = Shell::new().map_err(Into::into).and_then(|shell| {
        // `cargo xtask` may be called in any directory.
        shell.change_dir(project());
        match arguments.iter().map(String::as_str).collect::<Vec<_>>()[..] {
            ["test"] => Ok(test(&shell)),
            ["step", step, ref arguments @ ..] => Ok(one_step(&shell, step, arguments)),
            ["component"] => component::build(&shell)
                .and_then(|_| guest::build(&shell, guest::PROVIDER))
                .map(|_| ExitCode::SUCCESS),
            ["component", "--bundle"] => component::bundle(&shell).map(|()| ExitCode::SUCCESS),
            ["component", directory] => guest::build(&shell, directory).map(|_| ExitCode::SUCCESS),
            ["compose", ref arguments @ ..] => {
                compose::compose(&shell, arguments).map(|()| ExitCode::SUCCESS)
            }
            ["bench"] => bench::bench(&shell).map(|()| ExitCode::SUCCESS),
            ["torture", ref arguments @ ..] => {
                torture::torture(&shell, arguments).map(|()| ExitCode::SUCCESS)
            }
            ["python"] => python::build(&shell).map(|()| ExitCode::SUCCESS),
            ["js"] => js::build(&shell).map(|_| ExitCode::SUCCESS),
            ["wit-docs"] => wit_docs::write().map(|()| ExitCode::SUCCESS),
            ["wit-docs", "--check"] => wit_docs::check().map(|()| ExitCode::SUCCESS),
            ["words"] => words::check(&shell).map(|()| ExitCode::SUCCESS),
            ["help" | "--help" | "-h"] => {
                println!("{USAGE}");
                Ok(ExitCode::SUCCESS)
            }
            _ => {
                eprintln!("{USAGE}");
                Ok(ExitCode::from(64))
            }
        }
    });
    ended.unwrap_or_else(|err: anyhow::Error| {
        eprintln!("xtask: {err:#}");
        ExitCode::FAILURE
    })
}

/// Returns the project's directory.
fn project() -> PathBuf {
    let package = Path::new(env!("CARGO_MANIFEST_DIR"));
    package.parent().unwrap_or(package).to_owned()
}

/// All features except for the servers' clients.
const WITHOUT_SERVERS: &str = "verrou/component,verrou/component-async,verrou/conformance,verrou/js,verrou-host/tokio,verrou-host/wasmtime";

/// Runs all checks, the cheapest first.
fn test(shell: &Shell) -> ExitCode {
    let mut report = Report::default();
    if !is_built_incrementally() {
        // The first build has no use for state of later ones.
        shell.set_var("CARGO_INCREMENTAL", "0");
    }
    let has_wasm = has_wasm(shell, &mut report);
    let components = if has_wasm {
        report.start(shell, COMPONENTS, &[], Priority::Normal)
    } else {
        None
    };
    let has_servers = report.step("servers", || servers::find(shell));
    let features = if has_servers {
        "--all-features".to_owned()
    } else {
        format!("--features={WITHOUT_SERVERS}")
    };
    let features = &[features];
    let browser = report.start(shell, BROWSER, &[], Priority::Normal);
    let built_ahead = build_ahead(shell);
    check_sources(shell, &mut report);
    report.run_if(
        shell,
        "cargo-clippy",
        "lints",
        cmd!(
            shell,
            "cargo clippy --workspace --all-targets {features...} --locked -- --deny warnings"
        ),
    );
    report.run(
        "the core on `alloc` alone",
        cmd!(
            shell,
            "cargo check --package verrou --no-default-features --locked"
        ),
    );
    report.step("the component's pages", wit_docs::check);
    let mut programs = Vec::new();
    if has_wasm {
        programs = build_tests(shell, &mut report, features);
    }
    // The step may install the browser, which must not run twice at once.
    report.join(browser);
    let has_components = report.join(components);
    if has_components {
        report.step("the components of verrou-component", || {
            component::check_bundle(shell)
        });
        tests(shell, &mut report, &programs);
    } else {
        tests_without_component(shell, &mut report);
    }
    if let Some(mut built_ahead) = built_ahead {
        // If this build failed, the steps below report why.
        report.step("the rest of the release build", || {
            built_ahead.wait()?;
            Ok(())
        });
    }
    if has_components {
        // Builds beside these tests would delay the servers beyond the timeouts that the tests set.
        if has_servers {
            tests_on_servers(shell, &mut report, &programs);
        }
        report.run(
            "examples in the documentation",
            cmd!(shell, "cargo test --workspace {features...} --locked --doc"),
        );
    }
    report.step("the other examples in Rust", || {
        for example in ["blocking", "bring_your_own", "steps"] {
            cmd!(shell, "target/debug/examples/{example}").run()?;
        }
        Ok(())
    });
    report.run(
        "the README's first command",
        cmd!(
            shell,
            "cargo run --release --locked -- run demo --ttl 30s -- echo 'got the lock'"
        ),
    );
    // Their compilers use the processor time that the torture leaves idle.
    let mut builds = vec![report.start(shell, DOCUMENTATION, features, Priority::Idle)];
    if has_servers {
        builds.push(report.start(shell, ENGINES, &[], Priority::Idle));
    }
    if cfg!(target_os = "linux") {
        report.step("the torture, in short", || {
            torture::torture(shell, &["--for", "150s"])
        });
    }
    for build in builds {
        report.join(build);
    }
    report.end()
}

/// Returns whether a developer's builds have left state for incremental ones.
fn is_built_incrementally() -> bool {
    let entries = fs::read_dir(project().join("target/debug/incremental"));
    let mut names = entries.into_iter().flatten().flatten();
    names.any(|entry| entry.file_name().to_string_lossy().starts_with("verrou"))
}

/// Runs the checks that compile nothing.
fn check_sources(shell: &Shell, report: &mut Report) {
    for (what, project) in [
        ("formatting", "Cargo.toml"),
        ("formatting of the components", "examples/Cargo.toml"),
        ("formatting of the fuzzers", "host/fuzz/Cargo.toml"),
    ] {
        report.run_if(
            shell,
            "rustfmt",
            what,
            cmd!(shell, "cargo fmt --manifest-path {project} --all --check"),
        );
    }
    report.step("words", || words::check(shell));
    report.step("licences and sources of the crates", || {
        crates::check(shell)
    });
    report.step("known vulnerabilities of the crates", || {
        crates::check_vulnerabilities(shell)
    });
}

/// Starts to build the programs of the last steps, with the processor time that the steps before them
/// leave idle. Returns `None` on a system without an idle scheduling class.
fn build_ahead(shell: &Shell) -> Option<Child> {
    let [command, torture] = torture::BUILDS;
    let script =
        format!("cargo {command} && cargo {torture} && target/release/verrou-torture --build");
    let mut command = Command::from(cmd!(shell, "chrt --idle 0 sh -c {script}"));
    command
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::null());
    command.spawn().ok()
}

/// Builds the tests, and the programs that the steps after them start. Returns the programs of the tests.
fn build_tests(
    shell: &Shell,
    report: &mut Report,
    features: &[String],
) -> Vec<cargo_test::Program> {
    let mut programs = Vec::new();
    // The steps below start these programs: a build with other features would rebuild all crates.
    report.step("the tests' programs", || {
        programs = cargo_test::build(cmd!(shell, "cargo test --workspace {features...} --locked"))?;
        let examples = ["--examples", "--locked"];
        Ok(cmd!(shell, "cargo build --workspace {features...} {examples...}").run()?)
    });
    programs
}

/// Runs the steps that start programs of the project, and all tests but those on servers.
fn tests(shell: &Shell, report: &mut Report, programs: &[cargo_test::Program]) {
    let package = report.start(shell, JAVASCRIPT_PACKAGE, &[], Priority::Normal);
    report.step("Python", || python::test(shell));
    report.step("JavaScript", || javascript::test(shell));
    report.join(package);
    report.step("tests", || {
        let programs = programs.iter().filter(|program| program.name != SERVERS);
        // The last tests of a program often wait alone, so another one runs meanwhile.
        let at_once = Concurrency {
            programs: 2,
            tests: test_threads().div_ceil(2),
        };
        cargo_test::run(shell, programs, &[], at_once)
    });
    for example in ["embed", "embed_async"] {
        report.run(
            "the component in a Rust program",
            cmd!(shell, "target/debug/examples/{example}"),
        );
    }
}

/// Runs the tests on servers.
fn tests_on_servers(shell: &Shell, report: &mut Report, programs: &[cargo_test::Program]) {
    let servers = || programs.iter().filter(|program| program.name == SERVERS);
    let alone = |tests| Concurrency { programs: 1, tests };
    report.step("tests on servers", || {
        cargo_test::run(
            shell,
            servers(),
            &["--skip", A_THOUSAND],
            alone(2 * test_threads()),
        )
    });
    report.step("tests with a thousand waiters", || {
        cargo_test::run(shell, servers(), &[A_THOUSAND], alone(1))
    });
}

/// The program of the tests on servers.
const SERVERS: &str = "servers";

fn tests_without_component(shell: &Shell, report: &mut Report) {
    let features = "verrou/conformance,verrou-host/tokio";
    report.run(
        "tests that need no component",
        cmd!(
            shell,
            "cargo test --workspace --features {features} --locked"
        ),
    );
    report.run(
        "the other examples in Rust, built",
        cmd!(
            shell,
            "cargo build --workspace --features {features} --examples --locked"
        ),
    );
}

/// The tests that keep all processors busy with a thousand threads, and check the order in which those are
/// served: they run alone.
const A_THOUSAND: &str = "thousand_waiters_share_few_connections";

/// Returns how many tests run at once: three for each core, because most of them wait for processes and for
/// leases to expire. On two cores the component's tests take 37 s, of which each core computes 25 s. Those on
/// servers wait longer.
fn test_threads() -> usize {
    let cores = || 3 * thread::available_parallelism().map_or(1, NonZero::get);
    let wanted = env::var("RUST_TEST_THREADS").ok();
    wanted
        .and_then(|threads| threads.parse().ok())
        .unwrap_or_else(cores)
}

/// Returns whether components can be built on this machine; if not, reports why.
fn has_wasm(shell: &Shell, report: &mut Report) -> bool {
    let found = Toolchain::find(shell);
    if let Err(why) = &found {
        let what = "the component, and all steps that need it";
        report.lines.push(format!("NOT RUN  {what}: {why:#}"));
    }
    found.is_ok()
}

const BROWSER: &str = "a browser";
const COMPONENTS: &str = "the components";
const DOCUMENTATION: &str = "documentation";
const ENGINES: &str = "each engine alone";
const JAVASCRIPT_PACKAGE: &str = "the JavaScript package";

/// Runs a step that [`Report::start`] has started as a process.
fn one_step(shell: &Shell, step: &str, arguments: &[&str]) -> ExitCode {
    let ended = match step {
        BROWSER => javascript::find_browser(shell),
        COMPONENTS => build_components(shell),
        DOCUMENTATION => document(shell, arguments),
        ENGINES => check_engines(shell),
        JAVASCRIPT_PACKAGE => js::test(shell),
        _ => Err(anyhow!("there is no step `{step}`")),
    };
    let Err(err) = ended else {
        return ExitCode::SUCCESS;
    };
    eprintln!("{REASON}{err:#}");
    if err.is::<NotHere>() {
        return ExitCode::from(UNAVAILABLE);
    }
    ExitCode::FAILURE
}

/// Builds all components. Checks that two builds of each lock component, and of its store, have the same bytes.
fn build_components(shell: &Shell) -> Result<()> {
    let build_all = || -> Result<_> {
        let mut built = component::build(shell)?;
        built.push(guest::build(shell, guest::PROVIDER)?);
        Ok(built)
    };
    let built = build_all()?;
    let bytes = built.iter().map(fs::read).collect::<Result<Vec<_>, _>>()?;
    component::clean(shell)?;
    guest::clean(shell, guest::PROVIDER)?;
    build_all()?;
    for (component, before) in built.iter().zip(bytes) {
        ensure!(
            fs::read(component)? == before,
            "two builds of {} differ: the build is not reproducible",
            component.display()
        );
    }
    for example in [
        "provider-rust",
        "provider-keyvalue",
        "cron-job",
        "async-job",
    ] {
        guest::build(shell, &format!("examples/{example}"))?;
    }
    Ok(())
}

fn document(shell: &Shell, features: &[&str]) -> Result<()> {
    cmd!(
        shell,
        "cargo doc --workspace --no-deps {features...} --locked"
    )
    .env("RUSTDOCFLAGS", "--deny warnings")
    .run()?;
    Ok(())
}

fn check_engines(shell: &Shell) -> Result<()> {
    for engine in ["redis", "postgres", "etcd"] {
        cmd!(
            shell,
            "cargo check --package verrou-cli --features {engine} --locked"
        )
        .run()?;
    }
    Ok(())
}

/// A tool that is missing on this machine and could not be fetched. The step is NOT RUN, which is no failure.
#[derive(Debug)]
struct NotHere(String);

impl fmt::Display for NotHere {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl std::error::Error for NotHere {}

/// The results of the steps.
#[derive(Default)]
struct Report {
    lines: Vec<String>,
    failed: bool,
}

impl Report {
    fn run(&mut self, what: &str, command: Cmd<'_>) {
        self.step(&format!("{what}: {command}"), || {
            Ok(command.quiet().run()?)
        });
    }

    /// Runs `step`, and records its result. Returns whether it succeeded.
    fn step(&mut self, what: &str, step: impl FnOnce() -> Result<()>) -> bool {
        println!("\n== {what}");
        let began = Instant::now();
        let ended = step();
        let (what, _) = what.split_once(": ").unwrap_or((what, ""));
        self.ended(what, began.elapsed(), &ended)
    }

    /// Starts the step `what` in a process of its own, concurrently with the steps below.
    fn start(
        &mut self,
        shell: &Shell,
        what: &'static str,
        arguments: &[String],
        priority: Priority,
    ) -> Option<Meanwhile> {
        let started = Meanwhile::start(shell, what, arguments, priority);
        started
            .map_err(|err| self.ended(what, Duration::ZERO, &Err(err)))
            .ok()
    }

    /// Waits for a started step to end. Returns whether it succeeded.
    fn join(&mut self, started: Option<Meanwhile>) -> bool {
        let Some(started) = started else {
            return false;
        };
        let what = started.what;
        println!("\n== {what} (started earlier)");
        match started.join() {
            Ok((took, ended)) => self.ended(what, took, &ended),
            Err(err) => self.ended(what, Duration::ZERO, &Err(err)),
        }
    }

    fn ended(&mut self, what: &str, took: Duration, ended: &Result<()>) -> bool {
        let seconds = took.as_secs();
        match ended {
            Ok(()) => self.lines.push(format!("ok       {what} ({seconds} s)")),
            Err(err) if err.is::<NotHere>() => {
                self.lines.push(format!("NOT RUN  {what}: {err:#}"));
            }
            Err(err) => {
                eprintln!("{err:#}");
                self.failed = true;
                self.lines
                    .push(format!("FAILED   {what} ({seconds} s): {err:#}"));
            }
        }
        ended.is_ok()
    }

    /// Runs `command` if the program `tool` is installed, and otherwise reports NOT RUN.
    fn run_if(&mut self, shell: &Shell, tool: &str, what: &str, command: Cmd<'_>) {
        match cmd!(shell, "{tool} --version")
            .quiet()
            .ignore_stdout()
            .ignore_stderr()
            .run()
        {
            Ok(()) => self.run(what, command),
            Err(_) => self
                .lines
                .push(format!("NOT RUN  {what}: `{tool}` is not installed")),
        }
    }

    fn end(self) -> ExitCode {
        println!("\n{}", self.lines.join("\n"));
        if self.failed {
            ExitCode::FAILURE
        } else {
            ExitCode::SUCCESS
        }
    }
}

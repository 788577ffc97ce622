//! What it takes to build and to check the project: `cargo xtask help`.

mod component;
mod compose;
mod guest;
mod wasm;
mod wit_docs;

use std::env;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::Instant;

use xshell::{Cmd, Shell, cmd};

const USAGE: &str = "\
usage: cargo xtask test | component [FOLDER] | compose OPTIONS | wit-docs [--check]

  test         run every check and every test there is, and say what could not be run
  component    build target/component/verrou.wasm, and say what it imports and exports
  component FOLDER
               the same for the component in FOLDER, such as examples/cron-job
  compose [--store STORE.wasm] [--into APPLICATION.wasm] --output COMPOSED.wasm
               plug a store into verrou.wasm, and verrou.wasm into an application
  wit-docs     write wit/README.md, or --check that it is current";

fn main() -> ExitCode {
    let arguments: Vec<String> = env::args().skip(1).collect();
    let ended = Shell::new().map_err(Into::into).and_then(|shell| {
        // A folder that this is called in does not matter.
        shell.change_dir(project());
        match arguments.iter().map(String::as_str).collect::<Vec<_>>()[..] {
            ["test"] => Ok(test(&shell)),
            ["component"] => component::build(&shell).map(|_| ExitCode::SUCCESS),
            ["component", folder] => guest::build(&shell, folder).map(|_| ExitCode::SUCCESS),
            ["compose", ref arguments @ ..] => {
                compose::compose(&shell, arguments).map(|()| ExitCode::SUCCESS)
            }
            ["wit-docs"] => wit_docs::write().map(|()| ExitCode::SUCCESS),
            ["wit-docs", "--check"] => wit_docs::check().map(|()| ExitCode::SUCCESS),
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

/// The project's folder.
fn project() -> PathBuf {
    let package = Path::new(env!("CARGO_MANIFEST_DIR"));
    package.parent().unwrap_or(package).to_owned()
}

/// Every check, in the order in which a mistake is cheapest to find.
fn test(shell: &Shell) -> ExitCode {
    let mut report = Report::default();
    let documented = cmd!(
        shell,
        "cargo doc --workspace --no-deps --all-features --locked"
    )
    .env("RUSTDOCFLAGS", "--deny warnings");
    report.run_if(
        shell,
        "rustfmt",
        "formatting",
        cmd!(shell, "cargo fmt --all --check"),
    );
    report.run_if(
        shell,
        "cargo-clippy",
        "lints",
        cmd!(
            shell,
            "cargo clippy --workspace --all-targets --all-features --locked -- --deny warnings"
        ),
    );
    report.run(
        "the core on `alloc` alone",
        cmd!(
            shell,
            "cargo check --package verrou --no-default-features --locked"
        ),
    );
    report.run("documentation", documented);
    report.run(
        "tests",
        cmd!(shell, "cargo test --workspace --all-features --locked"),
    );
    report.run(
        "the README's first command",
        cmd!(
            shell,
            "cargo run --release --locked -- run demo --ttl 30s -- echo 'got the lock'"
        ),
    );
    report.end()
}

/// What was run, and what came of it.
#[derive(Default)]
struct Report {
    lines: Vec<String>,
    failed: bool,
}

impl Report {
    fn run(&mut self, what: &str, command: Cmd<'_>) {
        println!("\n== {what}: {command}");
        let began = Instant::now();
        let ended = command.quiet().run();
        let seconds = began.elapsed().as_secs();
        match ended {
            Ok(()) => self.lines.push(format!("ok       {what} ({seconds} s)")),
            Err(err) => {
                eprintln!("{err}");
                self.failed = true;
                self.lines.push(format!("FAILED   {what} ({seconds} s)"));
            }
        }
    }

    /// Runs `command` if there is a program called `tool`, and says so if there is not.
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
                .push(format!("NOT RUN  {what}: there is no `{tool}` here")),
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

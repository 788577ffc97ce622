//! Runs the benchmarks, each beside its peers, and draws the figures.

mod chart;

use std::env;
use std::path::Path;

use anyhow::Result;
use xshell::{Shell, cmd};

use crate::{component, javascript, js, programs, project, python, servers};

/// Measures the locks in files, what the component costs, and the JavaScript package.
pub(crate) fn bench(shell: &Shell) -> Result<()> {
    locks(shell)?;
    component::build(shell)?;
    cmd!(
        shell,
        "cargo bench --package verrou-host --features wasmtime --bench component --locked"
    )
    .run()?;
    js::bench(shell)
}

/// Measures the locks in files beside their peers, as far as these can be installed.
fn locks(shell: &Shell) -> Result<()> {
    let features = match available("locks on servers", servers::find(shell)) {
        Some(()) => "tokio,redis,postgres,etcd",
        None => "tokio",
    };
    let here = project().join("host/benches/locks");
    let python = python::interpreter(shell, "python-bench", &here.join("requirements.txt"));
    let _python = available("Python's locks", python)
        .map(|python| shell.push_env("VERROU_BENCH_PYTHON", python));
    let packages =
        javascript::ensure_recent(shell).and_then(|()| javascript::install(shell, &here));
    available("npm's locks", packages);

    let path = shell.var_os("PATH").unwrap_or_default();
    let mut directories: Vec<_> = env::split_paths(&path).collect();
    for (program, package) in [
        ("redis-server", "redis-server"),
        ("etcd", "etcd-server"),
        ("etcdctl", "etcd-client"),
        ("setlock", "daemontools"),
    ] {
        let found = programs::find_or_unpack(shell, program, package);
        let found = available(program, found);
        directories.extend(found.as_deref().and_then(Path::parent).map(Path::to_owned));
    }
    let _path = shell.push_env("PATH", env::join_paths(directories)?);

    // The command with the release profile: the benchmarks are built with another.
    cmd!(shell, "cargo build --release --bin verrou --locked").run()?;
    let command = project().join("target/release/verrou-as-released");
    shell.copy_file(project().join("target/release/verrou"), &command)?;

    let figures = here.join("figures.json");
    cmd!(
        shell,
        "cargo bench --package verrou-host --features {features} --bench locks --locked"
    )
    .env("VERROU_BENCH_COMMAND", &command)
    .env("VERROU_BENCH_JSON", &figures)
    .run()?;
    chart::draw(&figures, &here.join("figures.svg"))
}

/// Returns the value of `found`, or prints why `what` is not measured.
fn available<T>(what: &str, found: Result<T>) -> Option<T> {
    found
        .inspect_err(|err| println!("NOT MEASURED  {what}: {err:#}"))
        .ok()
}

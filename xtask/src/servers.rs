//! The servers that the tests start, and what it takes to build their clients.

use std::env;
use std::path::Path;

use anyhow::{Context, Result};
use xshell::Shell;

use crate::programs;

/// What is started, or started by what is, and Debian's package of it.
const PROGRAMS: [(&str, &str); 11] = [
    ("redis-server", "redis-server"),
    ("redis-cli", "redis-tools"),
    ("postgres", "postgresql"),
    ("initdb", "postgresql"),
    ("pg_isready", "postgresql"),
    ("pg_basebackup", "postgresql"),
    ("psql", "postgresql"),
    ("pgbouncer", "pgbouncer"),
    ("etcd", "etcd-server"),
    ("etcdctl", "etcd-client"),
    ("openssl", "openssl"),
];

/// Lets `shell` find all of them, unpacked if they are not there: nothing is installed, and no server is
/// started but by the tests.
pub(crate) fn find(shell: &Shell) -> Result<()> {
    let path = env::var_os("PATH").unwrap_or_default();
    let mut folders: Vec<_> = env::split_paths(&path).collect();
    for (program, package) in PROGRAMS {
        let found = programs::find_or_unpack(shell, program, package)?;
        let folder = found.parent().map(Path::to_owned);
        folders.extend(folder.filter(|folder| !folders.contains(folder)));
    }
    shell.set_var("PATH", env::join_paths(folders)?);
    // That of the machine, or of the one who runs this.
    if env::var_os("PROTOC").is_none() {
        let protoc = programs::find_or_unpack(shell, "protoc", "protobuf-compiler")
            .context("the client of etcd needs protoc to be built")?;
        shell.set_var("PROTOC", protoc);
    }
    Ok(())
}

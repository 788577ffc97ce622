//! Finds the servers that the tests start.

use std::env;
use std::path::Path;

use anyhow::Result;
use xshell::Shell;

use crate::programs;

/// The programs that the tests, or these programs, start, each with its Debian package.
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

/// Adds all of [`PROGRAMS`] to the `PATH` of `shell`, and unpacks the missing ones. Installs nothing, and starts
/// no server.
pub(crate) fn find(shell: &Shell) -> Result<()> {
    let path = env::var_os("PATH").unwrap_or_default();
    let mut directories: Vec<_> = env::split_paths(&path).collect();
    for (program, package) in PROGRAMS {
        let found = programs::find_or_unpack(shell, program, package)?;
        let directory = found.parent().map(Path::to_owned);
        directories.extend(directory.filter(|directory| !directories.contains(directory)));
    }
    shell.set_var("PATH", env::join_paths(directories)?);
    Ok(())
}

//! The end of a command whose wrapper is killed.

use std::fs::File;
use std::time::Duration;

/// How the command is ended when this process is killed.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Ending {
    /// By SIGKILL, at once.
    Kill,
    /// By SIGTERM, and by SIGKILL after `grace`.
    Terminate { grace: Duration },
}

impl Default for Ending {
    fn default() -> Self {
        let grace = Duration::from_secs(5);
        Self::Terminate { grace }
    }
}

/// The descriptor that keeps the lock when this process is killed.
#[derive(Debug)]
#[cfg_attr(
    not(unix),
    expect(dead_code, reason = "commands are not guarded there")
)]
pub(crate) struct Lifeline {
    /// A descriptor of the locked file.
    pub(crate) file: File,
    /// Whether the lock lasts until every process that the command leaves behind has closed the pipe that
    /// it inherits, and not only as long as the command's group.
    pub(crate) is_inherited: bool,
}

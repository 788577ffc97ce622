//! The terminal, and its foreground process group.

use std::fs::File;
use std::io;

use nix::sys::signal::{self, SigSet, SigmaskHow};
use rustix::process::{Pid, getpgrp};
use rustix::termios::{tcgetpgrp, tcsetpgrp};

/// This process's controlling terminal.
#[derive(Debug)]
pub(crate) struct Terminal {
    file: File,
}

impl Terminal {
    /// Opens the terminal, if there is one.
    pub(crate) fn open() -> Option<Self> {
        // The controlling terminal, also if the standard streams are redirected (tty(4)).
        let file = File::open("/dev/tty").ok()?;
        Some(Self { file })
    }

    /// Returns a second value for the same terminal.
    pub(crate) fn try_clone(&self) -> io::Result<Self> {
        let file = self.file.try_clone()?;
        Ok(Self { file })
    }

    /// Returns whether `group` is the foreground process group.
    pub(crate) fn is_foreground(&self, group: Pid) -> bool {
        tcgetpgrp(&self.file).is_ok_and(|foreground| foreground == group)
    }

    /// Returns whether this process's group is the foreground process group.
    pub(crate) fn is_ours(&self) -> bool {
        self.is_foreground(getpgrp())
    }

    /// Makes `group` the foreground process group. Calls only functions that are safe between fork(2) and
    /// exec(2).
    pub(crate) fn set_foreground(&self, group: Pid) -> io::Result<()> {
        // The kernel stops a background process that makes this call, unless it blocks SIGTTOU.
        let mut stop = SigSet::empty();
        stop.add(signal::SIGTTOU);
        let before = stop.thread_swap_mask(SigmaskHow::SIG_BLOCK)?;
        let given = tcsetpgrp(&self.file, group);
        before.thread_set_mask()?;
        Ok(given?)
    }
}

//! The terminal, and which group of processes it listens to.

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
    /// The terminal, if there is one.
    pub(crate) fn open() -> Option<Self> {
        // Whatever the standard streams are, this is it (tty(4)).
        let file = File::open("/dev/tty").ok()?;
        Some(Self { file })
    }

    /// A second value for the same terminal.
    pub(crate) fn try_clone(&self) -> io::Result<Self> {
        let file = self.file.try_clone()?;
        Ok(Self { file })
    }

    /// Whether it listens to `group`.
    pub(crate) fn listens_to(&self, group: Pid) -> bool {
        tcgetpgrp(&self.file).is_ok_and(|foreground| foreground == group)
    }

    /// Whether it listens to this process's group.
    pub(crate) fn is_ours(&self) -> bool {
        self.listens_to(getpgrp())
    }

    /// Lets it listen to `group`. Calls only what is safe between fork(2) and exec(2).
    pub(crate) fn give_to(&self, group: Pid) -> io::Result<()> {
        // Who asks for this without being listened to is stopped, unless the signal is blocked.
        let mut stop = SigSet::empty();
        stop.add(signal::SIGTTOU);
        let before = stop.thread_swap_mask(SigmaskHow::SIG_BLOCK)?;
        let given = tcsetpgrp(&self.file, group);
        before.thread_set_mask()?;
        Ok(given?)
    }
}

//! The guardian: a process in the command's group that ends the group when `verrou` is killed.
//!
//! The kernel's death signal reaches the command alone, not what it has started, and not a command
//! that has changed its user. The guardian is forked, runs no other program, and has nothing open but
//! a pipe whose other end is `verrou`'s: its end of file is the end of `verrou`.

use std::io::{self, PipeReader, PipeWriter, Write};
use std::os::fd::AsRawFd;
use std::thread;
use std::time::{Duration, Instant};

use nix::sys::signal::SigSet;
use rustix::io::Errno;
use rustix::process::{
    Pid, Signal, WaitOptions, getpgrp, kill_current_process_group, kill_process, setpgid,
    test_kill_process_group, waitpid,
};

use super::run::Ending;

/// From when on a running command has a guardian: starting one would be a good part of what a short
/// command takes.
const STARTED_AFTER: Duration = Duration::from_millis(100);

/// The guardian of a command, from when it is due until the command has ended.
#[derive(Debug)]
pub(crate) struct Guardian {
    began: Instant,
    ending: Ending,
    stage: Stage,
}

#[derive(Debug)]
enum Stage {
    NotDue,
    Running(Running),
    /// The command has ended, or no process is to be had.
    Over,
}

#[derive(Debug)]
struct Running {
    process: Pid,
    /// Closed by the kernel when this process ends, however.
    alive: PipeWriter,
    /// Its number may be another's then.
    is_reaped: bool,
}

impl Guardian {
    /// The guardian of a command that is started now, and is to be ended in that way.
    pub(crate) fn new(ending: Ending) -> Self {
        Self {
            began: Instant::now(),
            ending,
            stage: Stage::NotDue,
        }
    }

    /// Starts the guardian in `group` if it is due; returns for how long it is not.
    pub(crate) fn start_when_due(&mut self, group: Pid) -> Duration {
        match &mut self.stage {
            Stage::NotDue => {}
            Stage::Running(running) => {
                // A PID namespace whose first process is the command does not end before all in it
                // are reaped.
                if running.has_ended() {
                    self.stage = Stage::Over;
                }
                return Duration::MAX;
            }
            Stage::Over => return Duration::MAX,
        }
        let left = STARTED_AFTER.saturating_sub(self.began.elapsed());
        if !left.is_zero() {
            return left;
        }
        // Without one the kernel's death signal is what there is.
        self.stage = Running::start(group, self.ending).map_or(Stage::Over, Stage::Running);
        Duration::MAX
    }

    /// Ends the guardian, for the command has ended. None is started later.
    pub(crate) fn dismiss(&mut self) {
        self.stage = Stage::Over;
    }
}

impl Running {
    fn start(group: Pid, ending: Ending) -> io::Result<Self> {
        let (ended, alive) = io::pipe()?;
        // The guardian is ended by what cannot be blocked alone, and runs none of our handlers.
        let before = SigSet::all().thread_swap_mask(nix::sys::signal::SigmaskHow::SIG_SETMASK)?;
        let forked = process::fork(|| {
            process::close_all_but(ended.as_raw_fd());
            guard(&ended, ending);
        });
        before.thread_set_mask()?;
        let running = Self {
            process: forked?,
            alive,
            is_reaped: false,
        };
        // If this fails it is ended again: in our own group it must not do anything.
        setpgid(Some(running.process), Some(group))?;
        (&running.alive).write_all(b"!")?;
        Ok(running)
    }

    /// Whether it has ended before its time, or somebody else has reaped it.
    fn has_ended(&mut self) -> bool {
        self.is_reaped |= !matches!(
            waitpid(Some(self.process), WaitOptions::NOHANG),
            Ok(None) | Err(Errno::INTR)
        );
        self.is_reaped
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        // It is stopped, perhaps, and is to leave the group before anybody looks whether that is gone.
        if !self.has_ended() {
            let _ = kill_process(self.process, Signal::KILL);
            while let Err(Errno::INTR) = waitpid(Some(self.process), WaitOptions::empty()) {}
        }
    }
}

/// Waits in the guardian until `verrou` has ended, and ends the group then. Makes nothing but system
/// calls: other threads of `verrou` may have been anywhere when it was forked.
fn guard(ended: &PipeReader, ending: Ending) {
    #[cfg(target_os = "linux")]
    let _ = rustix::thread::set_name(c"verrou-guardian");
    // Until this is said it may be in the group of `verrou`.
    if next(ended) != Ok(1) || next(ended) != Ok(0) {
        return;
    }
    if let Ending::Terminate { grace } = ending {
        let _ = kill_current_process_group(Signal::TERM);
        let _ = kill_current_process_group(Signal::CONT);
        if !others_within(grace) {
            return;
        }
    }
    let _ = kill_current_process_group(Signal::KILL);
}

fn next(pipe: &PipeReader) -> Result<usize, Errno> {
    loop {
        match rustix::io::read(pipe, &mut [0_u8]) {
            Err(Errno::INTR) => {}
            read => return read,
        }
    }
}

/// Returns whether other processes are in this one's group for all of `grace`.
fn others_within(grace: Duration) -> bool {
    const LOOK: Duration = Duration::from_millis(20);

    let group = getpgrp();
    let began = Instant::now();
    loop {
        // Outside of it, for kill(2) does not leave out the one that asks.
        let is_empty = setpgid(None, None).is_ok()
            && (test_kill_process_group(group) == Err(Errno::SRCH)
                || setpgid(None, Some(group)).is_err());
        if is_empty {
            return false;
        }
        let left = grace.saturating_sub(began.elapsed());
        if left.is_zero() {
            return true;
        }
        thread::sleep(left.min(LOOK));
    }
}

/// What the standard library has no safe call for.
mod process {
    #![expect(
        unsafe_code,
        reason = "a process that outlives ours and runs no other program is made by fork(2) alone, \
                  and it must have no descriptor of ours"
    )]

    use std::io;
    use std::os::fd::RawFd;

    use nix::libc;
    use rustix::process::{Pid, Resource, getrlimit};

    /// Makes a process that does `work`, and ends. `work` makes nothing but system calls, on values
    /// that exist already; it neither allocates nor locks anything.
    pub(super) fn fork(work: impl FnOnce()) -> io::Result<Pid> {
        // SAFETY: the child does what is allowed between fork(2) and exec(2), as `work` promises,
        // and ends without returning to its caller, or running what was to be run at the end.
        match unsafe { libc::fork() } {
            0 => {
                work();
                // SAFETY: it has no conditions, and does nothing but to end the process.
                unsafe { libc::_exit(0) }
            }
            number => Pid::from_raw(number)
                .filter(|_| number > 0)
                .ok_or_else(io::Error::last_os_error),
        }
    }

    /// Closes all descriptors but `kept`, in a process that uses no other from then on.
    pub(super) fn close_all_but(kept: RawFd) {
        let kept = kept.cast_unsigned();
        let before = kept == 0 || close_range(0, kept - 1);
        if before && close_range(kept + 1, u32::MAX) {
            return;
        }
        // Where that is missing (before Linux 5.9): as many as there usually can be.
        let limit = getrlimit(Resource::Nofile).current.unwrap_or(u64::MAX);
        for number in (0..65_536).take_while(|number| u64::from(*number) < limit) {
            if number != kept {
                // SAFETY: nothing here uses this descriptor any more.
                unsafe { libc::close(number.cast_signed()) };
            }
        }
    }

    #[cfg(target_os = "linux")]
    fn close_range(first: u32, last: u32) -> bool {
        // SAFETY: nothing here uses these descriptors any more.
        unsafe { libc::syscall(libc::SYS_close_range, first, last, 0) == 0 }
    }

    #[cfg(not(target_os = "linux"))]
    fn close_range(_first: u32, _last: u32) -> bool {
        false
    }
}

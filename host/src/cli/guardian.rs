//! The guardian: a process in the command's group that ends the group when `verrou` is killed.
//!
//! The kernel's death signal reaches only the command, not its children, and not a command that has
//! changed its user. The guardian is forked without exec(2). Its only open descriptor is a pipe whose
//! other end is open in `verrou`: end of file means that `verrou` has ended.

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

/// The time after which a running command gets a guardian. Starting one earlier would slow down short
/// commands noticeably.
const STARTED_AFTER: Duration = Duration::from_millis(100);

/// The guardian of a command, from the time it is due until the command has ended.
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
    /// The command has ended, or the guardian could not be started.
    Over,
}

#[derive(Debug)]
struct Running {
    process: Pid,
    /// The kernel closes it however this process ends.
    alive: PipeWriter,
    /// Once the process is reaped, its number may belong to another process.
    is_reaped: bool,
}

impl Guardian {
    /// Returns the guardian of a command that starts now, and must be ended as `ending` specifies.
    pub(crate) fn new(ending: Ending) -> Self {
        Self {
            began: Instant::now(),
            ending,
            stage: Stage::NotDue,
        }
    }

    /// Starts the guardian in `group` if it is due; returns the time until it is due.
    pub(crate) fn start_when_due(&mut self, group: Pid) -> Duration {
        match &mut self.stage {
            Stage::NotDue => {}
            Stage::Running(running) => {
                // A PID namespace whose first process is the command does not end before all its
                // processes are reaped.
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
        // If it cannot be started, the kernel's death signal alone ends the command.
        self.stage = Running::start(group, self.ending).map_or(Stage::Over, Stage::Running);
        Duration::MAX
    }

    /// Ends the guardian, as the command has ended. No guardian is started after that.
    pub(crate) fn dismiss(&mut self) {
        self.stage = Stage::Over;
    }
}

impl Running {
    fn start(group: Pid, ending: Ending) -> io::Result<Self> {
        let (ended, alive) = io::pipe()?;
        // Block all signals: only those that cannot be blocked end the guardian, and it runs none of
        // this process's handlers.
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
        // On failure the guardian is ended: in this process's own group it must not signal anything.
        setpgid(Some(running.process), Some(group))?;
        (&running.alive).write_all(b"!")?;
        Ok(running)
    }

    /// Returns whether the guardian has ended early, or was reaped elsewhere.
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
        // The guardian may be stopped. It must leave the group before this process checks whether the
        // group is empty.
        if !self.has_ended() {
            let _ = kill_process(self.process, Signal::KILL);
            while let Err(Errno::INTR) = waitpid(Some(self.process), WaitOptions::empty()) {}
        }
    }
}

/// Waits, in the guardian, until `verrou` has ended, then ends the group. Makes only system calls,
/// since another thread of `verrou` may have held a mutex at the time of the fork.
fn guard(ended: &PipeReader, ending: Ending) {
    #[cfg(target_os = "linux")]
    let _ = rustix::thread::set_name(c"verrou-guardian");
    // Before this byte arrives, the guardian may still be in the group of `verrou`.
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

/// Returns whether the group of this process contains other processes for all of `grace`.
fn others_within(grace: Duration) -> bool {
    const LOOK: Duration = Duration::from_millis(20);

    let group = getpgrp();
    let began = Instant::now();
    loop {
        // Check from outside of the group, as kill(2) counts the calling process, too.
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

/// System calls for which the standard library has no safe function.
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

    /// Forks a process that runs `work` and exits. `work` must make only system calls, on existing
    /// values: it must not allocate, nor lock a mutex.
    pub(super) fn fork(work: impl FnOnce()) -> io::Result<Pid> {
        // SAFETY: the child does only what is allowed between fork(2) and exec(2), as `work` promises.
        // It exits without returning to its caller, and without running exit handlers.
        match unsafe { libc::fork() } {
            0 => {
                work();
                // SAFETY: `_exit` has no preconditions; it only ends the process.
                unsafe { libc::_exit(0) }
            }
            number => Pid::from_raw(number)
                .filter(|_| number > 0)
                .ok_or_else(io::Error::last_os_error),
        }
    }

    /// Closes all descriptors but `kept`. The process must not use any other descriptor after that.
    pub(super) fn close_all_but(kept: RawFd) {
        let kept = kept.cast_unsigned();
        let before = kept == 0 || close_range(0, kept - 1);
        if before && close_range(kept + 1, u32::MAX) {
            return;
        }
        // Without close_range(2) (before Linux 5.9), close as many numbers as a process usually has.
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

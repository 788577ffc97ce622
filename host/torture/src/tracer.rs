//! What happens to a process at one of its system calls: it is killed there, or the call fails.
//!
//! By ptrace(2), which counts the calls of one step, and can shorten them; strace(1), which can do
//! most of this, counts those of each name, from the start of the process.

use std::process::Child;

use anyhow::{Context, Result, bail, ensure};
use nix::errno::Errno;
use nix::sys::ptrace::{self, Options};
use nix::sys::signal::{Signal, kill};
use nix::sys::wait::{WaitStatus, waitpid};
use nix::unistd::Pid;
use syscalls::Sysno;

/// What happens at a system call.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(crate) enum Fault {
    /// The process is killed before it.
    Killed,
    /// It is not done, and fails.
    Fails(Errno),
    /// It is done, and says that it failed.
    DoneButFails(Errno),
    /// It reads or writes half of what was asked for.
    Half,
}

/// The calls of a step, as far as it came, and whether the fault was met.
#[derive(Debug)]
pub(crate) struct Traced {
    pub(crate) calls: Vec<Sysno>,
    pub(crate) was_met: bool,
    /// Whether the process is gone.
    pub(crate) is_gone: bool,
}

/// In the process that is to be traced: does its step.
pub(crate) fn traced<T>(step: impl FnOnce() -> T) -> Result<T> {
    let this = Pid::this();
    ptrace::traceme()?;
    kill(this, Signal::SIGSTOP)?;
    let ended = step();
    kill(this, Signal::SIGSTOP)?;
    Ok(ended)
}

/// Lets the step of `child` run, with the `fault` at the call of this number, counted from zero.
///
/// When it has not gone, it goes on after its step by itself.
pub(crate) fn trace(child: &Child, fault: Option<(usize, Fault)>) -> Result<Traced> {
    let process = Pid::from_raw(i32::try_from(child.id())?);
    match waitpid(process, None)? {
        WaitStatus::Stopped(_, Signal::SIGSTOP) => {}
        other => bail!("it did not come to its step: {other:?}"),
    }
    let options = Options::PTRACE_O_TRACESYSGOOD | Options::PTRACE_O_EXITKILL;
    ptrace::setoptions(process, options)?;

    let mut traced = Traced {
        calls: Vec::new(),
        was_met: false,
        is_gone: false,
    };
    let mut pending = None;
    let mut is_inside = false;
    let mut signal = None;
    loop {
        ptrace::syscall(process, signal.take())?;
        match waitpid(process, None)? {
            WaitStatus::PtraceSyscall(_) if is_inside => {
                is_inside = false;
                if let Some(Fault::Fails(errno) | Fault::DoneButFails(errno)) = pending.take() {
                    set_result(process, errno)?;
                }
            }
            WaitStatus::PtraceSyscall(_) => {
                is_inside = true;
                let call = call_of(process)?;
                let number = traced.calls.len();
                traced.calls.push(call);
                // A step may make fewer calls than when they were counted, as some depend on the time. No call
                // of a step is a kill(2): that is how the process says that its step is done.
                let is_step = call != Sysno::kill;
                let Some((_, fault)) = fault.filter(|(at, _)| *at == number && is_step) else {
                    continue;
                };
                traced.was_met = true;
                match fault {
                    Fault::Killed => {
                        kill(process, Signal::SIGKILL)?;
                        traced.is_gone = true;
                        return Ok(traced);
                    }
                    Fault::Fails(_) => skip(process)?,
                    Fault::DoneButFails(_) => {}
                    Fault::Half => halve(process)?,
                }
                pending = Some(fault);
            }
            WaitStatus::Stopped(_, Signal::SIGSTOP) => {
                // The call that told us so is not one of the step's.
                traced.calls.pop();
                ptrace::detach(process, None)?;
                return Ok(traced);
            }
            WaitStatus::Stopped(_, other) => signal = Some(other),
            WaitStatus::Exited(..) | WaitStatus::Signaled(..) => {
                traced.is_gone = true;
                return Ok(traced);
            }
            other => bail!("its step was interrupted: {other:?}"),
        }
    }
}

/// Whether this can be done here, or why not.
pub(crate) fn is_possible() -> Result<()> {
    ensure!(
        cfg!(target_arch = "x86_64"),
        "the registers of this machine are not known here"
    );
    Ok(())
}

#[cfg(target_arch = "x86_64")]
mod registers {
    use super::{Context as _, Errno, Pid, Result, Sysno, ptrace};

    pub(super) fn call_of(process: Pid) -> Result<Sysno> {
        let call = usize::try_from(ptrace::getregs(process)?.orig_rax)?;
        Sysno::new(call).with_context(|| format!("there is no system call {call}"))
    }

    /// Lets the call not be done.
    pub(super) fn skip(process: Pid) -> Result<()> {
        let mut registers = ptrace::getregs(process)?;
        registers.orig_rax = u64::MAX;
        Ok(ptrace::setregs(process, registers)?)
    }

    /// Lets the call ask for half as many bytes: the third argument of those that read and write.
    pub(super) fn halve(process: Pid) -> Result<()> {
        let mut registers = ptrace::getregs(process)?;
        registers.rdx /= 2;
        Ok(ptrace::setregs(process, registers)?)
    }

    pub(super) fn set_result(process: Pid, errno: Errno) -> Result<()> {
        let mut registers = ptrace::getregs(process)?;
        registers.rax = (-i64::from(errno as i32)).cast_unsigned();
        Ok(ptrace::setregs(process, registers)?)
    }
}

#[cfg(not(target_arch = "x86_64"))]
mod registers {
    use super::{Errno, Pid, Result, Sysno, is_possible};

    pub(super) fn call_of(_: Pid) -> Result<Sysno> {
        is_possible().and(Ok(Sysno::read))
    }
    pub(super) fn skip(_: Pid) -> Result<()> {
        is_possible()
    }
    pub(super) fn halve(_: Pid) -> Result<()> {
        is_possible()
    }
    pub(super) fn set_result(_: Pid, _: Errno) -> Result<()> {
        is_possible()
    }
}

use registers::{call_of, halve, set_result, skip};

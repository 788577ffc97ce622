//! Fault injection at a system call of a process: the process is killed, or the call fails.
//!
//! It uses ptrace(2), which can count the calls of one operation, and shorten them. strace(1) can
//! also inject faults, but counts the calls of each name from the start of the process.

use std::process::Child;

use anyhow::{Context, Result, bail, ensure};
use nix::errno::Errno;
use nix::sys::ptrace::{self, Options};
use nix::sys::signal::{Signal, kill};
use nix::sys::wait::{WaitStatus, waitpid};
use nix::unistd::Pid;
use syscalls::Sysno;

/// A fault at a system call.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(crate) enum Fault {
    /// The process is killed before the call.
    Killed,
    /// The call is skipped, and fails.
    Fails(Errno),
    /// The call is made, and its result replaced by an error.
    DoneButFails(Errno),
    /// The call reads or writes half of the requested bytes.
    Half,
}

/// The calls of an operation, and whether the fault occurred.
#[derive(Debug)]
pub(crate) struct Traced {
    pub(crate) calls: Vec<Sysno>,
    pub(crate) did_occur: bool,
    /// Whether the process has ended.
    pub(crate) is_gone: bool,
}

/// Runs `operation` under the tracer, in the process that is to be traced.
pub(crate) fn traced<T>(operation: impl FnOnce() -> T) -> Result<T> {
    let this = Pid::this();
    ptrace::traceme()?;
    kill(this, Signal::SIGSTOP)?;
    let ended = operation();
    kill(this, Signal::SIGSTOP)?;
    Ok(ended)
}

/// Traces the operation of `child`, with the `fault` at the call of this number, counted from zero.
///
/// Detaches from the process after its operation, if the process has not ended.
pub(crate) fn trace(child: &Child, fault: Option<(usize, Fault)>) -> Result<Traced> {
    let process = Pid::from_raw(i32::try_from(child.id())?);
    match waitpid(process, None)? {
        WaitStatus::Stopped(_, Signal::SIGSTOP) => {}
        other => bail!("the process did not stop before its operation: {other:?}"),
    }
    let options = Options::PTRACE_O_TRACESYSGOOD | Options::PTRACE_O_EXITKILL;
    ptrace::setoptions(process, options)?;

    let mut traced = Traced {
        calls: Vec::new(),
        did_occur: false,
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
                // An operation may make fewer calls than when they were counted, because some
                // depend on the time. No call of an operation is a kill(2): the process signals
                // with it that its operation has ended.
                let is_operation = call != Sysno::kill;
                let Some((_, fault)) = fault.filter(|(at, _)| *at == number && is_operation) else {
                    continue;
                };
                traced.did_occur = true;
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
                // The kill(2) that stopped the process is not a call of the operation.
                traced.calls.pop();
                ptrace::detach(process, None)?;
                return Ok(traced);
            }
            WaitStatus::Stopped(_, other) => signal = Some(other),
            WaitStatus::Exited(..) | WaitStatus::Signaled(..) => {
                traced.is_gone = true;
                return Ok(traced);
            }
            other => bail!("the operation was interrupted: {other:?}"),
        }
    }
}

/// Returns an error if this machine's registers are not supported.
pub(crate) fn is_possible() -> Result<()> {
    ensure!(
        cfg!(target_arch = "x86_64"),
        "fault injection supports only x86_64"
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

    /// Makes the kernel skip the call.
    pub(super) fn skip(process: Pid) -> Result<()> {
        let mut registers = ptrace::getregs(process)?;
        registers.orig_rax = u64::MAX;
        Ok(ptrace::setregs(process, registers)?)
    }

    /// Halves the number of bytes that the call requests: the third argument of reads and writes.
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

//! The signals that this process receives while a command runs.

use std::io;
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::net::UnixStream;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use nix::sys::signal::{SigSet, SigmaskHow};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::process::{Signal, WaitOptions, getpid, kill_current_process_group, wait};
use signal_hook::flag::register_conditional_shutdown;
use signal_hook::iterator::backend::SignalDelivery;
use signal_hook::iterator::exfiltrator::SignalOnly;
use verrou_host::Alarm;

/// The signals that are forwarded to the command.
const FORWARDED: [Signal; 7] = [
    Signal::INT,
    Signal::TERM,
    Signal::HUP,
    Signal::QUIT,
    Signal::USR1,
    Signal::USR2,
    Signal::WINCH,
];

/// The job-control stop signals. If the command has the terminal, the terminal sends them to the
/// command directly. This process receives them only if they are sent to all processes, or if another
/// process of its group requests the terminal. The command stops then, and this process observes that.
const STOPS: [Signal; 3] = [Signal::TSTP, Signal::TTIN, Signal::TTOU];

/// The signals that this process handles, and a wait for them.
#[derive(Debug)]
pub(crate) struct Signals {
    delivery: SignalDelivery<UnixStream, SignalOnly>,
    alarm: Option<Alarm>,
}

/// Makes a write beyond the file size limit (`ulimit -f`) fail, instead of ending this process by
/// SIGXFSZ. Commands started by this process are still ended by the signal, as handlers are not
/// inherited.
pub(crate) fn report_file_size_limit() {
    if !disposition::is_ignored(Signal::XFSZ) {
        let noticed = Arc::new(AtomicBool::new(false));
        // On failure the signal keeps its default action.
        let _ = signal_hook::flag::register(Signal::XFSZ.as_raw(), noticed);
    }
}

/// Whether a terminating signal ends this process, if it is the first one of its PID namespace.
static ENDS_FIRST_PROCESS: AtomicBool = AtomicBool::new(true);

/// Makes signals end this process until a command runs to which they are forwarded. The parent may have
/// blocked them. For the first process of a PID namespace, such as a container's, their default action
/// is to do nothing, and orphans are not reaped by default.
pub(crate) fn end_by_signals() {
    // On failure the signal mask stays as inherited.
    let _ = unblock();
    if !getpid().is_init() {
        return;
    }
    for signal in [Signal::TERM, Signal::INT, Signal::HUP, Signal::QUIT] {
        if !disposition::is_ignored(signal) {
            let signal = signal.as_raw();
            // On failure this signal cannot end the process.
            let _ = register_conditional_shutdown(signal, 128 + signal, &ENDS_FIRST_PROCESS);
        }
    }
    disposition::ignore(Signal::CHILD);
    // Reap the children that ended before that.
    while let Ok(Some(_)) = wait(WaitOptions::NOHANG) {}
}

/// Makes this process ignore the signals that a terminal or a service manager sends to a whole group of processes.
pub(crate) fn ignore_termination() {
    for signal in [Signal::INT, Signal::TERM, Signal::HUP] {
        disposition::ignore(signal);
    }
}

impl Signals {
    /// Installs handlers for the end of children, and for the stop signals, which must not stop this
    /// process alone. All other signals keep their default action, or stay ignored.
    pub(crate) fn new() -> io::Result<Self> {
        let (read, write) = UnixStream::pair()?;
        let stops = STOPS
            .into_iter()
            .filter(|signal| !disposition::is_ignored(*signal));
        let handled = stops.chain([Signal::CHILD]).map(Signal::as_raw);
        Ok(Self {
            delivery: SignalDelivery::with_pipe(read, write, SignalOnly, handled)?,
            alarm: Alarm::new(),
        })
    }

    /// Installs handlers for the forwarded signals, too. An ignored signal stays ignored, as under
    /// nohup(1).
    pub(crate) fn listen(&self) -> io::Result<()> {
        let handle = self.delivery.handle();
        for signal in FORWARDED {
            if !disposition::is_ignored(signal) {
                handle.add_signal(signal.as_raw())?;
            }
        }
        handle.add_signal(Signal::CONT.as_raw())?;
        ENDS_FIRST_PROCESS.store(false, Ordering::SeqCst);
        Ok(())
    }

    /// Waits for a signal, or until `loss` is readable, but at most for `at_most`, including time for
    /// which the machine is suspended.
    pub(crate) fn wait(&self, loss: Option<BorrowedFd<'_>>, at_most: Duration) {
        // If the time is too long for the kernel, wait without a limit.
        let mut timeout = Timespec::try_from(at_most).ok();
        let readable = |fd| PollFd::from_borrowed_fd(fd, PollFlags::IN);
        let mut awaited = vec![readable(self.delivery.get_read().as_fd())];
        awaited.extend(loss.map(readable));
        if let Some(alarm) = &self.alarm
            && alarm.set(at_most)
        {
            awaited.push(readable(alarm.as_fd()));
            timeout = None;
        }
        let output = set_of([Signal::TTOU]);
        let _ = output.thread_unblock();
        // A signal interrupts the call. After any other failure, the caller checks its clock.
        let _ = poll(&mut awaited, timeout.as_ref());
        // Otherwise a write to the terminal from the background would be interrupted repeatedly.
        let _ = output.thread_block();
    }

    /// Returns the signals received since the last call.
    pub(crate) fn pending(&mut self) -> impl Iterator<Item = Signal> {
        self.delivery.pending().filter_map(Signal::from_named_raw)
    }
}

/// Unblocks the handled signals: the parent process may have blocked them, and a child inherits its
/// parent's signal mask.
fn unblock() -> io::Result<()> {
    let handled = FORWARDED.into_iter().chain(STOPS);
    let handled = handled.chain([Signal::CHILD, Signal::CONT]);
    Ok(set_of(handled).thread_unblock()?)
}

fn set_of(signals: impl IntoIterator<Item = Signal>) -> SigSet {
    let signals = signals.into_iter().map(Signal::as_raw);
    signals.map_while(|signal| signal.try_into().ok()).collect()
}

/// Sends `signal`, with its default action, to this process's whole group, as a terminal would have done
/// if the command were in the group. Returns if the signal has no effect, or when the group is continued.
pub(crate) fn signal_own_group(signal: Signal) {
    let _by_default = disposition::Default::set(signal);
    let before = set_of([signal]).thread_swap_mask(SigmaskHow::SIG_UNBLOCK);
    let _ = kill_current_process_group(signal);
    if let Ok(before) = before {
        let _ = before.thread_set_mask();
    }
}

/// The dispositions of signals, for which the standard library has no functions.
mod disposition {
    #![expect(
        unsafe_code,
        reason = "sigaction(2) has no safe wrapper, because handlers can be unsafe; none is set here"
    )]

    use std::mem::MaybeUninit;
    use std::ptr;

    use nix::libc;
    use rustix::process::Signal;

    /// Returns whether `signal` is ignored.
    pub(super) fn is_ignored(signal: Signal) -> bool {
        action(signal, None).is_some_and(|action| action.sa_sigaction == libc::SIG_IGN)
    }

    /// Ignores `signal`. If SIGCHLD is ignored, children leave no zombies.
    pub(super) fn ignore(signal: Signal) {
        // SAFETY: all-zero is a valid `sigaction`: the default action, no flags, no mask.
        let mut ignore: libc::sigaction = unsafe { MaybeUninit::zeroed().assume_init() };
        ignore.sa_sigaction = libc::SIG_IGN;
        action(signal, Some(&ignore));
    }

    /// A guard that gives a signal its default action until dropped.
    pub(super) struct Default {
        signal: Signal,
        before: Option<libc::sigaction>,
    }

    impl Default {
        pub(super) fn set(signal: Signal) -> Self {
            // SAFETY: all-zero is a valid `sigaction`: the default action, no flags, no mask.
            let default: libc::sigaction = unsafe { MaybeUninit::zeroed().assume_init() };
            Self {
                signal,
                before: action(signal, Some(&default)),
            }
        }
    }

    impl Drop for Default {
        fn drop(&mut self) {
            if let Some(before) = &self.before {
                action(self.signal, Some(before));
            }
        }
    }

    /// Returns the action of `signal`, and replaces it by `next`, if that is given.
    fn action(signal: Signal, next: Option<&libc::sigaction>) -> Option<libc::sigaction> {
        let mut before = MaybeUninit::uninit();
        let next = next.map_or(ptr::null(), ptr::from_ref);
        // SAFETY: both pointers are null or valid; the new action has no handler, or was installed
        // before. If the call succeeds, `before` is written.
        unsafe {
            (libc::sigaction(signal.as_raw(), next, before.as_mut_ptr()) == 0)
                .then(|| before.assume_init())
        }
    }
}

//! Restores the disposition of SIGPIPE in commands. Rust's runtime ignores SIGPIPE in every program,
//! and resets it to the default in every child; this module records whether the signal was ignored
//! before, and makes the command ignore it then.
#![expect(
    unsafe_code,
    reason = "no safe code runs before Rust's runtime, or changes the disposition of a signal"
)]

use std::io;
use std::sync::atomic::{AtomicBool, Ordering};

use nix::sys::signal::{SaFlags, SigAction, SigHandler, SigSet, Signal, sigaction};

static WAS_IGNORED: AtomicBool = AtomicBool::new(false);

/// Makes the C library call [`record`] before `main`.
// SAFETY: `.init_array` is an array of such functions.
#[cfg(target_os = "linux")]
#[unsafe(link_section = ".init_array")]
#[used]
static RECORD: extern "C" fn() = record;

/// Records whether SIGPIPE is ignored, then ignores it, as the runtime does later.
#[cfg(target_os = "linux")]
extern "C" fn record() {
    if let Ok(before) = ignore() {
        let was_ignored = matches!(before.handler(), SigHandler::SigIgn);
        WAS_IGNORED.store(was_ignored, Ordering::Relaxed);
    }
}

/// Makes the command ignore SIGPIPE if this process was started so. Makes only a system call, as the
/// child between fork(2) and exec(2) requires.
pub(crate) fn restore() -> io::Result<()> {
    if WAS_IGNORED.load(Ordering::Relaxed) {
        ignore()?;
    }
    Ok(())
}

fn ignore() -> nix::Result<SigAction> {
    let ignored = SigAction::new(SigHandler::SigIgn, SaFlags::empty(), SigSet::empty());
    // SAFETY: no handler is installed.
    unsafe { sigaction(Signal::SIGPIPE, &ignored) }
}

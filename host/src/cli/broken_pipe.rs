//! SIGPIPE, which Rust's runtime ignores in every program and lets every command take by default:
//! whether it was ignored before that, so that it is in the command, too.
#![expect(
    unsafe_code,
    reason = "nothing safe runs before Rust's runtime does, or changes what becomes of a signal"
)]

use std::io;
use std::sync::atomic::{AtomicBool, Ordering};

use nix::sys::signal::{SaFlags, SigAction, SigHandler, SigSet, Signal, sigaction};

static WAS_IGNORED: AtomicBool = AtomicBool::new(false);

/// The C library calls this before it calls `main`.
// SAFETY: `.init_array` is made of such functions.
#[cfg(target_os = "linux")]
#[unsafe(link_section = ".init_array")]
#[used]
static ASK: extern "C" fn() = ask;

/// Notes whether SIGPIPE is ignored, and ignores it, as the runtime is about to.
#[cfg(target_os = "linux")]
extern "C" fn ask() {
    if let Ok(before) = ignore() {
        let was_ignored = matches!(before.handler(), SigHandler::SigIgn);
        WAS_IGNORED.store(was_ignored, Ordering::Relaxed);
    }
}

/// Lets the command ignore SIGPIPE if this process was started so. Makes nothing but a system call:
/// for the child between fork(2) and exec(2).
pub(crate) fn hand_on() -> io::Result<()> {
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

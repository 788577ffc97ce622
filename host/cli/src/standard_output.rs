//! Detects a closed standard output. Rust's runtime replaces a closed one by `/dev/null`, which accepts
//! and discards all output.
#![cfg_attr(
    target_os = "linux",
    expect(unsafe_code, reason = "no safe code runs before Rust's runtime")
)]

use std::io;
use std::sync::atomic::{AtomicBool, Ordering};

static WAS_CLOSED: AtomicBool = AtomicBool::new(false);

/// Makes the C library call [`record`] before `main`.
// SAFETY: `.init_array` is an array of such functions.
#[cfg(target_os = "linux")]
#[unsafe(link_section = ".init_array")]
#[used]
static RECORD: extern "C" fn() = record;

#[cfg(target_os = "linux")]
extern "C" fn record() {
    // SAFETY: descriptor 1 is borrowed for this call only, which checks whether it is open.
    let descriptor = unsafe { std::os::fd::BorrowedFd::borrow_raw(1) };
    WAS_CLOSED.store(
        rustix::io::fcntl_getfd(descriptor).is_err(),
        Ordering::Relaxed,
    );
}

/// Fails if standard output was closed when this process was started.
pub(crate) fn check() -> io::Result<()> {
    if WAS_CLOSED.load(Ordering::Relaxed) {
        return Err(io::Error::other("it is closed"));
    }
    Ok(())
}

//! Whether there is a standard output: Rust's runtime puts `/dev/null` in the place of one that is
//! closed, which takes all that is written to it.
#![cfg_attr(
    target_os = "linux",
    expect(unsafe_code, reason = "nothing safe runs before Rust's runtime does")
)]

use std::io;
use std::sync::atomic::{AtomicBool, Ordering};

static WAS_CLOSED: AtomicBool = AtomicBool::new(false);

/// The C library calls this before it calls `main`.
// SAFETY: `.init_array` is made of such functions.
#[cfg(target_os = "linux")]
#[unsafe(link_section = ".init_array")]
#[used]
static ASK: extern "C" fn() = ask;

#[cfg(target_os = "linux")]
extern "C" fn ask() {
    // SAFETY: descriptor 1 is borrowed for this call alone, which only asks whether it is open.
    let descriptor = unsafe { std::os::fd::BorrowedFd::borrow_raw(1) };
    WAS_CLOSED.store(
        rustix::io::fcntl_getfd(descriptor).is_err(),
        Ordering::Relaxed,
    );
}

/// Fails when there was no standard output when this process was started.
pub(crate) fn check() -> io::Result<()> {
    if WAS_CLOSED.load(Ordering::Relaxed) {
        return Err(io::Error::other("it is closed"));
    }
    Ok(())
}

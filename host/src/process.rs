//! Which process this is, told without asking the system each time: that would be a tenth of what
//! taking a free lock costs.
//!
//! The C library tells of its fork(2), not of a bare clone(2): who makes a process by that, and does
//! not execute another program in it, must not use this process's locks there.

/// This process's number.
pub(crate) fn id() -> u32 {
    imp::id()
}

/// A number that changes in a process that forks, and in the child: what was open before is shared
/// by both from then on.
pub(crate) fn forks() -> u32 {
    imp::forks()
}

#[cfg(target_os = "linux")]
mod imp {
    use std::sync::Once;
    use std::sync::atomic::{AtomicU32, Ordering};

    use nix::libc;

    /// Zero until it is asked for, and where nobody would say that the process has forked.
    static ID: AtomicU32 = AtomicU32::new(0);
    static FORKS: AtomicU32 = AtomicU32::new(0);

    pub(super) fn id() -> u32 {
        match ID.load(Ordering::Relaxed) {
            0 => first_id(),
            id => id,
        }
    }

    pub(super) fn forks() -> u32 {
        if ID.load(Ordering::Relaxed) == 0 && first_id() != ID.load(Ordering::Relaxed) {
            // Nobody would say that the process has forked, but its children differ.
            return std::process::id();
        }
        FORKS.load(Ordering::Relaxed)
    }

    #[cold]
    fn first_id() -> u32 {
        static LISTENING: Once = Once::new();

        LISTENING.call_once(|| {
            // SAFETY: both functions do nothing but what pthread_atfork(3) allows: they store to
            // atomics, and ask for the process's number.
            #[expect(
                unsafe_code,
                reason = "nothing else tells of a fork without being asked"
            )]
            let listens =
                unsafe { libc::pthread_atfork(Some(forked), Some(forked), Some(is_child)) };
            if listens == 0 {
                ID.store(std::process::id(), Ordering::Relaxed);
            }
        });
        std::process::id()
    }

    /// Before and after, for other threads open files meanwhile.
    extern "C" fn forked() {
        FORKS.fetch_add(1, Ordering::Relaxed);
    }

    extern "C" fn is_child() {
        if mutant!(ForkNotNoticed) {
            return;
        }
        ID.store(std::process::id(), Ordering::Relaxed);
        FORKS.fetch_add(1, Ordering::Relaxed);
    }
}

#[cfg(not(target_os = "linux"))]
mod imp {
    pub(super) fn id() -> u32 {
        std::process::id()
    }

    pub(super) fn forks() -> u32 {
        std::process::id()
    }
}

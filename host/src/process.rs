//! Which process this is, told without asking the system each time: that would be a tenth of what
//! taking a free lock costs.
//!
//! The C library tells of its fork(2), not of a bare clone(2): who makes a process by that, and does
//! not execute another program in it, must not use this process's locks there.

use std::fmt;

use once_cell::race::OnceBox;

use crate::sync::{Mutex, MutexGuard};

/// This process's number, for people: a forked child in a PID namespace of its own may have its
/// parent's.
pub(crate) fn id() -> u32 {
    imp::id()
}

/// A number that no process has from which this one was forked.
pub(crate) fn this() -> u32 {
    imp::this()
}

/// A number that changes in a process that forks, and in the child: what was open before is shared
/// by both from then on.
pub(crate) fn forks() -> u32 {
    imp::forks()
}

/// A value of which a forked child makes one of its own. It never looks at its parent's, which another
/// thread of the parent may have been changing: of the mutexes that were locked then, the child's
/// copies stay locked.
pub(crate) struct PerProcess<T> {
    /// Whose it is.
    process: u32,
    value: OnceBox<T>,
    childs: OnceBox<Self>,
}

impl<T> PerProcess<T> {
    /// One that no process has a value of yet.
    pub(crate) const fn new() -> Self {
        Self::of(0)
    }

    const fn of(process: u32) -> Self {
        Self {
            process,
            value: OnceBox::new(),
            childs: OnceBox::new(),
        }
    }

    /// This process's value, if there is one.
    pub(crate) fn get(&self) -> Option<&T> {
        self.own().value.get()
    }

    /// This process's value, which `make` makes if there is none.
    pub(crate) fn get_or_init(&self, make: impl FnOnce() -> T) -> &T {
        self.own().value.get_or_init(|| Box::new(make()))
    }

    /// The value of the process that was forked last of those that this one was forked from, and that
    /// have one.
    pub(crate) fn of_parent(&self) -> Option<&T> {
        let this = this();
        self.chain()
            .take_while(|cell| cell.process != this)
            .filter_map(|cell| cell.value.get())
            .last()
    }

    fn own(&self) -> &Self {
        let this = this();
        let mut cell = self;
        while cell.process != this {
            cell = cell.childs.get_or_init(|| Box::new(Self::of(this)));
        }
        cell
    }

    fn chain(&self) -> impl Iterator<Item = &Self> {
        std::iter::successors(Some(self), |cell| cell.childs.get())
    }
}

impl<T: Default> PerProcess<Mutex<T>> {
    /// This process's value, for the caller alone.
    pub(crate) fn lock(&self) -> MutexGuard<'_, T> {
        let mutex = self.get_or_init(Mutex::default);
        mutex
            .lock()
            .unwrap_or_else(std::sync::PoisonError::into_inner)
    }

    /// [`lock`](Self::lock), of a value that has files open: the copies of the parent's are closed, unless
    /// it was changing them at the fork.
    pub(crate) fn lock_instead_of_parents(&self) -> MutexGuard<'_, T> {
        if self.get().is_none()
            && let Some(parents) = self.of_parent()
            && let Ok(mut parents) = parents.try_lock()
        {
            let closed = std::mem::take(&mut *parents);
            drop(parents);
            drop(closed);
        }
        self.lock()
    }
}

impl<T> fmt::Debug for PerProcess<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("PerProcess").finish_non_exhaustive()
    }
}

#[cfg(target_os = "linux")]
mod imp {
    use std::sync::atomic::{AtomicU32, Ordering};

    use nix::libc;

    /// Zero until it is asked for, and where nobody would say that the process has forked.
    static ID: AtomicU32 = AtomicU32::new(0);
    static THIS: AtomicU32 = AtomicU32::new(0);
    static FORKS: AtomicU32 = AtomicU32::new(0);

    pub(super) fn id() -> u32 {
        match ID.load(Ordering::Relaxed) {
            0 => std::process::id(),
            id => id,
        }
    }

    pub(super) fn this() -> u32 {
        match THIS.load(Ordering::Relaxed) {
            0 => first(),
            this => this,
        }
    }

    pub(super) fn forks() -> u32 {
        if THIS.load(Ordering::Relaxed) == 0 && first() != THIS.load(Ordering::Relaxed) {
            // Nobody would say that the process has forked, but its children differ.
            return std::process::id();
        }
        FORKS.load(Ordering::Relaxed)
    }

    /// Begins to listen. Two threads may do so at once, and the numbers grow twice as fast then; were
    /// one to wait for the other, a child that is forked meanwhile would wait for ever.
    #[cold]
    fn first() -> u32 {
        // SAFETY: all three functions do nothing but what pthread_atfork(3) allows: they change
        // atomics, and ask for the process's number.
        #[expect(
            unsafe_code,
            reason = "nothing else tells of a fork without being asked"
        )]
        let listens = unsafe { libc::pthread_atfork(Some(forked), Some(forked), Some(is_child)) };
        if listens != 0 {
            return std::process::id();
        }
        ID.store(std::process::id(), Ordering::Relaxed);
        match THIS.compare_exchange(0, 1, Ordering::Relaxed, Ordering::Relaxed) {
            Ok(_) => 1,
            Err(this) => this,
        }
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
        THIS.fetch_add(1, Ordering::Relaxed);
        FORKS.fetch_add(1, Ordering::Relaxed);
    }
}

#[cfg(not(target_os = "linux"))]
mod imp {
    pub(super) fn id() -> u32 {
        std::process::id()
    }

    pub(super) fn this() -> u32 {
        std::process::id()
    }

    pub(super) fn forks() -> u32 {
        std::process::id()
    }
}

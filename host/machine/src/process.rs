//! The identity of this process, and values that are separate in each forked child. The process ID is
//! cached: the system call takes a tenth of the time that acquiring a free lock takes.
//!
//! The C library calls the fork handlers for fork(2), not for a bare clone(2). A child that a program
//! creates by clone(2) must not use this process's locks unless it executes another program.

use std::{env, fmt};

use once_cell::race::OnceBox;
use verrou::Process;

use crate::sync::{Mutex, MutexGuard};

/// Returns this process's ID, for display: a forked child in its own PID namespace may have the same ID
/// as its parent.
pub fn id() -> u32 {
    imp::id()
}

/// Returns a number that identifies this process among all processes that it was forked from.
pub fn this() -> u32 {
    imp::this()
}

/// Returns a number that changes in a process that forks, and in the child: from then on they share
/// all files that were open before.
pub fn forks() -> u32 {
    imp::forks()
}

/// Returns this process, with the label `command`, or the name of its program; for stores that need no other
/// identity of the host.
pub fn described(command: Option<&str>) -> Process {
    let command = command.map_or_else(own_program, str::to_owned);
    Process::new(id(), host_name(), command)
}

/// Returns the name of this process's program. Its arguments may be secret, and records outlive their
/// locks.
pub fn own_program() -> String {
    let program = env::args_os().next().unwrap_or_default();
    program_name(&program.to_string_lossy())
}

/// Returns the last part of the path `program`.
pub fn program_name(program: &str) -> String {
    let name = program.rsplit(std::path::is_separator).next();
    name.unwrap_or_default().to_owned()
}

/// Returns the name of this host.
#[cfg(unix)]
pub fn host_name() -> String {
    rustix::system::uname()
        .nodename()
        .to_string_lossy()
        .into_owned()
}

/// Returns the name of this host.
#[cfg(not(unix))]
pub fn host_name() -> String {
    env::var("COMPUTERNAME").unwrap_or_default()
}

/// Returns whether this program runs with more privileges than its caller, which chose the environment:
/// set-user-ID, set-group-ID, or with file capabilities.
#[cfg(target_os = "linux")]
#[expect(
    unsafe_code,
    reason = "rustix offers this only as an experimental part of a runtime"
)]
pub fn is_secure_execution() -> bool {
    use nix::libc;

    // SAFETY: getauxval(3) takes any number, and changes nothing but `errno`.
    let secure = unsafe { libc::getauxval(libc::AT_SECURE) };
    secure != 0
}

/// Returns whether this program runs with more privileges than its caller: set-user-ID or set-group-ID.
#[cfg(all(unix, not(target_os = "linux")))]
pub fn is_secure_execution() -> bool {
    use rustix::process::{getegid, geteuid, getgid, getuid};

    getuid() != geteuid() || getgid() != getegid()
}

/// Returns false: programs do not run with more privileges than their caller on this system.
#[cfg(not(unix))]
pub fn is_secure_execution() -> bool {
    false
}

/// A value that is separate in each forked child. A child never accesses its parent's value, which
/// another thread of the parent may have been changing during the fork: a mutex that was locked at that
/// time stays locked in the child.
pub struct PerProcess<T> {
    /// The number of the process that the value belongs to.
    process: u32,
    value: OnceBox<T>,
    childs: OnceBox<Self>,
}

impl<T> Default for PerProcess<T> {
    fn default() -> Self {
        Self::new()
    }
}

impl<T> PerProcess<T> {
    /// Returns an empty value, which no process has initialized.
    pub const fn new() -> Self {
        Self::of(0)
    }

    const fn of(process: u32) -> Self {
        Self {
            process,
            value: OnceBox::new(),
            childs: OnceBox::new(),
        }
    }

    /// Returns this process's value, if it is initialized.
    pub fn get(&self) -> Option<&T> {
        self.own().value.get()
    }

    /// Returns this process's value, initialized by `make` if there is none.
    pub fn get_or_init(&self, make: impl FnOnce() -> T) -> &T {
        self.own().value.get_or_init(|| Box::new(make()))
    }

    /// Returns the value of the nearest ancestor, among the processes that this one was forked from,
    /// that has initialized one.
    pub fn of_parent(&self) -> Option<&T> {
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
    /// Locks this process's value.
    pub fn lock(&self) -> MutexGuard<'_, T> {
        let mutex = self.get_or_init(Mutex::default);
        mutex
            .lock()
            .unwrap_or_else(std::sync::PoisonError::into_inner)
    }

    /// Locks this process's value as [`lock`](Self::lock) does, for a value that owns open files.
    /// Closes the copies inherited from the parent, unless the parent was changing them during the
    /// fork.
    pub fn lock_instead_of_parents(&self) -> MutexGuard<'_, T> {
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

    /// The process ID; zero before the first use, and where no fork handler is registered.
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
            // No fork handler is registered. The process ID differs in a child.
            return std::process::id();
        }
        FORKS.load(Ordering::Relaxed)
    }

    /// Registers the fork handlers. Two threads may do so concurrently; the counter then grows by two
    /// for each fork. If one thread waited for the other, a child that is forked meanwhile would wait
    /// forever.
    #[cold]
    fn first() -> u32 {
        // SAFETY: all three functions do only what pthread_atfork(3) allows: they change atomics, and
        // get the process ID.
        #[expect(
            unsafe_code,
            reason = "no other mechanism reports a fork without a system call"
        )]
        let result = unsafe { libc::pthread_atfork(Some(forked), Some(forked), Some(is_child)) };
        if result != 0 {
            return std::process::id();
        }
        ID.store(std::process::id(), Ordering::Relaxed);
        match THIS.compare_exchange(0, 1, Ordering::Relaxed, Ordering::Relaxed) {
            Ok(_) => 1,
            Err(this) => this,
        }
    }

    /// Counts a fork. Runs before the fork and after it in the parent, because other threads may open
    /// files in between.
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

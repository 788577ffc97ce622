//! The guardian: a process in the command's group that ends the group when `verrou` is killed, and keeps the
//! lock until the command's processes have ended.
//!
//! The kernel's death signal reaches only the command, not its children, and not a command that has
//! changed its user. A command that has dropped root privileges must not have a descriptor of the lock's file
//! either: with it, it can unlock the file, or lock it against all other processes. So the guardian has that
//! descriptor, and the command inherits the write end of a pipe. When the last copy of that is closed, the
//! lock of a killed `verrou` ends.
//!
//! The process that is about to become the command makes the guardian, without exec(2). Sharing that process's
//! memory (`CLONE_VM`) costs a tenth of copying `verrou`'s, and exec(2) ends the sharing a moment later. So the
//! guardian is in the command's group from the start. It is a child of `verrou` (`CLONE_PARENT`).

use std::fs::File;
use std::io::{self, PipeReader, PipeWriter, Read, Write};
use std::os::fd::{AsRawFd, IntoRawFd};
use std::os::unix::net::UnixStream;
use std::thread;
use std::time::{Duration, Instant};

use nix::sys::signal::{SigSet, SigmaskHow};
use rustix::event::{PollFd, PollFlags, poll};
use rustix::io::{Errno, FdFlags, fcntl_dupfd_cloexec, fcntl_setfd};
use rustix::process::{
    Pid, Signal, WaitOptions, getpgrp, kill_process, kill_process_group, setpgid,
    test_kill_process_group, waitpid,
};

use crate::ending::{Ending, Lifeline};
use crate::process_group::{self, GroupMembers};

/// The message to a guardian that `verrou` has forked: it is in the command's group from now on.
const MOVED: u8 = b'm';

/// The message to the guardian that `verrou` ends and leaves the command running.
const LEFT: u8 = b'l';

/// The resources of a guardian, prepared before the command is started.
#[derive(Debug)]
pub(crate) struct Post {
    ending: Ending,
    /// The end of `verrou`. The kernel closes it however `verrou` ends.
    ours: UnixStream,
    /// The guardian's end: at end of file, `verrou` has ended.
    theirs: UnixStream,
    /// The descriptor that keeps the lock.
    kept: Option<File>,
    closes_ranges: bool,
    /// The guardian's end, and the end that the command inherits.
    pipe: Option<(PipeReader, PipeWriter)>,
}

/// The guardian of a command, until the command has ended.
#[derive(Debug, Default)]
pub(crate) struct Guardian(Option<Running>);

#[derive(Debug)]
struct Running {
    process: Pid,
    alive: UnixStream,
    /// Once the process is reaped, its number may belong to another process.
    is_reaped: bool,
}

impl Post {
    /// Prepares the guardian of a command that must be ended as `ending` specifies, and whose lock `lifeline`
    /// keeps.
    pub(crate) fn new(ending: Ending, lifeline: Option<Lifeline>) -> io::Result<Self> {
        let (ours, theirs) = UnixStream::pair()?;
        // The child writes its message before it executes the command, so reading it never has to wait.
        ours.set_nonblocking(true)?;
        let is_inherited = lifeline.as_ref().is_some_and(|it| it.is_inherited);
        Ok(Self {
            ending,
            ours,
            theirs,
            kept: lifeline.map(|lifeline| lifeline.file),
            closes_ranges: process::closes_ranges(),
            pipe: is_inherited.then(io::pipe).transpose()?,
        })
    }

    /// Starts the guardian, in the process that is about to become the command, and is the leader of its group.
    /// Makes only system calls, as the child between fork(2) and exec(2) requires.
    ///
    /// In a PID namespace that begins with this process, or where the system makes no such process, `verrou`
    /// starts the guardian [afterwards](Guardian::of). The command then inherits the descriptor of the lock's
    /// file itself.
    ///
    /// # Errors
    ///
    /// Fails when the guardian cannot be started for another reason, such as a limit of processes. The command
    /// must not be started then: it would inherit a descriptor with which it can unlock the file.
    pub(crate) fn start_in_child(&self, is_in_other_namespace: bool) -> io::Result<()> {
        let guardian = if is_in_other_namespace {
            None
        } else {
            with_signals_blocked(|| process::start_sibling(self, guard))??
        };
        let number = guardian.map_or(0, Pid::as_raw_pid);
        (&self.theirs).write_all(&number.to_ne_bytes())?;
        match (&self.pipe, &self.kept) {
            (Some((_, inherited)), Some(kept)) if guardian.is_some() => {
                // A high number, as that of `kept`.
                let inherited = fcntl_dupfd_cloexec(inherited, kept.as_raw_fd())?;
                fcntl_setfd(&inherited, FdFlags::empty())?;
                let _open = inherited.into_raw_fd();
            }
            (Some(_), Some(kept)) => fcntl_setfd(kept, FdFlags::empty())?,
            _ => {}
        }
        Ok(())
    }

    /// Returns the process that [`start_in_child`](Self::start_in_child) has started, in `verrou`.
    fn started_in_child(&self) -> Option<Pid> {
        let mut number = [0; 4];
        (&self.ours).read_exact(&mut number).ok()?;
        Pid::from_raw(i32::from_ne_bytes(number))
    }

    fn start_in(&self, group: Pid) -> io::Result<Running> {
        let running = Running {
            process: with_signals_blocked(|| process::fork(|| guard_when_moved(self)))??,
            alive: self.ours.try_clone()?,
            is_reaped: false,
        };
        // On failure the guardian is ended: in this process's own group it must not signal anything.
        setpgid(Some(running.process), Some(group))?;
        (&running.alive).write_all(&[MOVED])?;
        Ok(running)
    }
}

impl Guardian {
    /// Returns the guardian of `group`, whose leader has started it, or starts it.
    ///
    /// # Errors
    ///
    /// Fails when there is no guardian. The command must be ended then.
    pub(crate) fn of(group: Pid, post: &Post) -> io::Result<Self> {
        let running = match post.started_in_child() {
            Some(process) => Running {
                process,
                alive: post.ours.try_clone()?,
                is_reaped: false,
            },
            None => post.start_in(group)?,
        };
        Ok(Self(Some(running)))
    }

    /// Ends the guardian of a command that could not be started, if there is one.
    pub(crate) fn cancel(post: &Post) {
        if let (Some(process), Ok(alive)) = (post.started_in_child(), post.ours.try_clone()) {
            drop(Running {
                process,
                alive,
                is_reaped: false,
            });
        }
    }

    /// Reaps the guardian if it has ended: a PID namespace whose first process is the command does not end
    /// before all its processes are reaped.
    pub(crate) fn reap_if_ended(&mut self) {
        if self.0.as_mut().is_some_and(Running::has_ended) {
            self.0 = None;
        }
    }

    /// Begins to end the guardian, as the command has ended.
    pub(crate) fn dismiss(&mut self) {
        if let Some(running) = &mut self.0 {
            running.kill();
        }
    }

    /// Waits until the dismissed guardian has ended.
    pub(crate) fn wait(&mut self) {
        self.0 = None;
    }

    /// Takes the guardian out of the command's group, so that a signal to all of the group does not end it.
    pub(crate) fn step_aside(&self) {
        if let Some(running) = &self.0 {
            let _ = setpgid(Some(running.process), Some(running.process));
        }
    }

    /// Leaves the command to the guardian, which keeps the lock until the command's processes have ended.
    pub(crate) fn leave(&mut self) {
        if let Some(running) = &self.0
            && (&running.alive).write_all(&[LEFT]).is_ok()
        {
            // It must not be ended.
            std::mem::forget(self.0.take());
        }
    }
}

impl Running {
    /// Returns whether the guardian has ended early, or was reaped elsewhere.
    fn has_ended(&mut self) -> bool {
        self.is_reaped |= !matches!(
            waitpid(Some(self.process), WaitOptions::NOHANG),
            Ok(None) | Err(Errno::INTR)
        );
        self.is_reaped
    }

    fn kill(&mut self) {
        if !self.has_ended() {
            let _ = kill_process(self.process, Signal::KILL);
        }
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        // The guardian may be stopped. It must leave the group before this process checks whether the
        // group is empty.
        self.kill();
        while !self.is_reaped
            && let Err(Errno::INTR) = waitpid(Some(self.process), WaitOptions::empty())
        {}
    }
}

/// Calls `start` with all signals blocked: the guardian is ended only by signals that cannot be blocked, and
/// it runs none of `verrou`'s handlers.
fn with_signals_blocked<T>(start: impl FnOnce() -> T) -> nix::Result<T> {
    let before = SigSet::all().thread_swap_mask(SigmaskHow::SIG_SETMASK)?;
    let started = start();
    before.thread_set_mask()?;
    Ok(started)
}

/// Does the guardian's work. Makes only system calls until `verrou` has ended: it may share its memory
/// with the process that becomes the command, and another thread of `verrou` may have held a mutex at the
/// time of the fork.
fn guard(post: &Post) {
    let group = getpgrp();
    enter(post);
    work(post, group, post.pipe.as_ref().map(|(read, _)| read));
}

/// Does the work of a guardian that `verrou` has forked, from when it is in the command's group.
fn guard_when_moved(post: &Post) {
    enter(post);
    if next(&post.theirs) == Some(MOVED) {
        work(post, getpgrp(), None);
    }
}

fn enter(post: &Post) {
    let kept = [
        Some(post.theirs.as_raw_fd()),
        post.kept.as_ref().map(AsRawFd::as_raw_fd),
        post.pipe.as_ref().map(|(read, _)| read.as_raw_fd()),
    ];
    process::close_all_but(kept, post.closes_ranges);
    #[cfg(target_os = "linux")]
    let _ = rustix::thread::set_name(c"verrou-guardian");
}

fn work(post: &Post, group: Pid, pipe: Option<&PipeReader>) {
    if next(&post.theirs).is_none() {
        end(group, post.ending);
    }
    if post.kept.is_some() {
        // A signal to all of the group must not end the lock.
        let _ = setpgid(None, None);
        if let Some(pipe) = pipe {
            wait_for_end_of(pipe);
        }
        // A process of the group may have closed the pipe, as a killed one does before it has ended.
        others_within(group, Duration::MAX);
    }
}

/// Returns the next byte from `verrou`, or `None` when `verrou` has ended. If it was killed before it had read
/// everything, that is an error (`ECONNRESET`).
fn next(verrou: &UnixStream) -> Option<u8> {
    let mut byte = [0];
    loop {
        match rustix::io::read(verrou, &mut byte) {
            Err(Errno::INTR) => {}
            read => return (read == Ok(1)).then_some(byte[0]),
        }
    }
}

/// Ends all other processes of `group`.
fn end(group: Pid, ending: Ending) {
    // As a member of the group, the guardian keeps its number from being used again. `verrou` may have
    // moved it out.
    if setpgid(None, Some(group)).is_err() {
        return;
    }
    if let Ending::Terminate { grace } = ending {
        let _ = kill_process_group(group, Signal::TERM);
        let _ = kill_process_group(group, Signal::CONT);
        if !others_within(group, grace) {
            return;
        }
    }
    // The guardian must not end itself.
    let _ = setpgid(None, None);
    let _ = kill_process_group(group, Signal::KILL);
}

/// Waits until no process has the other end of `pipe` open, whatever they write to it.
fn wait_for_end_of(pipe: &PipeReader) {
    let mut ends = [PollFd::new(pipe, PollFlags::empty())];
    while let Err(Errno::INTR) = poll(&mut ends, None) {}
}

/// Returns whether `group` contains other processes for all of `at_most`.
fn others_within(group: Pid, at_most: Duration) -> bool {
    const SHORTEST: Duration = Duration::from_millis(1);
    const LONGEST: Duration = Duration::from_millis(50);

    let is_member = getpgrp() == group;
    let began = Instant::now();
    let mut pause = SHORTEST;
    let mut known = None;
    loop {
        // Check from outside of the group, as kill(2) counts the calling process, too.
        let is_empty = (is_member && setpgid(None, None).is_err())
            || !contains_any(group, &mut known)
            || (is_member && setpgid(None, Some(group)).is_err());
        if is_empty {
            return false;
        }
        let left = at_most.saturating_sub(began.elapsed());
        if left.is_zero() {
            return true;
        }
        thread::sleep(left.min(pause));
        pause = (pause * 2).min(LONGEST);
    }
}

/// Returns whether `group`, of which this process is not a member, contains a running process. `known` is one that
/// was found before: checking it costs much less than a search.
fn contains_any(group: Pid, known: &mut Option<Pid>) -> bool {
    if test_kill_process_group(group) == Err(Errno::SRCH) {
        return false;
    }
    if known.is_some_and(|one| process_group::has(group, one)) {
        return true;
    }
    match process_group::members(group) {
        Ok(GroupMembers::Running(one)) => {
            *known = Some(one);
            true
        }
        // A container's first process does not always reap zombies.
        Ok(GroupMembers::Zombies) => false,
        // There is one, as kill(2) found it.
        Ok(GroupMembers::Unseen) | Err(_) => true,
    }
}

/// System calls for which the standard library has no safe function.
mod process {
    #![expect(
        unsafe_code,
        reason = "only fork(2) or clone(2) creates a process that outlives this one and runs no other program, \
                  and it must close all inherited descriptors but some"
    )]

    use std::io;
    use std::os::fd::RawFd;

    use nix::libc;
    use rustix::process::{Pid, Resource, getrlimit};

    use super::Post;

    /// Forks a process that runs `work` and exits. `work` must make only system calls, on existing
    /// values: it must not allocate, nor lock a mutex.
    pub(super) fn fork(work: impl FnOnce()) -> io::Result<Pid> {
        // SAFETY: the child does only what is allowed between fork(2) and exec(2), as `work` promises.
        // It exits without returning to its caller, and without running exit handlers.
        match unsafe { libc::fork() } {
            0 => {
                work();
                // SAFETY: `_exit` has no preconditions; it only ends the process.
                unsafe { libc::_exit(0) }
            }
            // `Pid::from_raw` must not be called with a negative number.
            number if number < 0 => Err(io::Error::last_os_error()),
            number => Pid::from_raw(number).ok_or_else(io::Error::last_os_error),
        }
    }

    /// Starts a process that runs `work` with `post`, and exits. It has the same parent as this process, and
    /// shares its memory until this process executes another program. Returns `None` if the system makes no such
    /// process, as an emulator of Linux may not; then `work` is not run.
    ///
    /// Only the child between fork(2) and exec(2) may call this, once, and must not change `post` after it.
    /// `work` must make only system calls at first. Calls that may fail then must be rustix's, which write no
    /// `errno`: this process uses the same one.
    #[cfg(target_os = "linux")]
    pub(super) fn start_sibling(post: &Post, work: fn(&Post)) -> io::Result<Option<Pid>> {
        use std::cell::UnsafeCell;
        use std::ffi::c_void;

        #[repr(C, align(16))]
        struct Memory {
            stack: [u8; 128 * 1024],
            start: Option<Start>,
        }
        struct Start {
            post: *const Post,
            work: fn(&Post),
        }
        struct SharedMemory(UnsafeCell<Memory>);
        // SAFETY: `start_sibling` writes `start`, and then only the process that it starts uses it and the stack.
        unsafe impl Sync for SharedMemory {}
        static SHARED: SharedMemory = SharedMemory(UnsafeCell::new(Memory {
            stack: [0; 128 * 1024],
            start: None,
        }));
        extern "C" fn run(start: *mut c_void) -> i32 {
            // SAFETY: `start` points to the value that `start_sibling` has written, and `post` to the argument of
            // `start_sibling`. Both exist as long as the memory does: this process keeps the memory, and the other
            // one leaves it by exec(2) or ends.
            if let Some(Start { post, work }) = unsafe { &*start.cast::<Option<Start>>() } {
                work(unsafe { &**post });
            }
            // SAFETY: `_exit` has no preconditions; it only ends the process.
            unsafe { libc::_exit(0) }
        }

        let flags = libc::CLONE_VM | libc::CLONE_PARENT | libc::SIGCHLD;
        let memory = SHARED.0.get();
        // SAFETY: the new process's stack is the memory below `start`, which no other process uses. Except for
        // that and `start`, neither process writes memory that the other uses: this one makes only system calls,
        // and then leaves the memory.
        let number = unsafe {
            (*memory).start = Some(Start { post, work });
            let start = (&raw mut (*memory).start).cast();
            libc::clone(run, start, flags, start)
        };
        if number > 0 {
            return Ok(Pid::from_raw(number));
        }
        let err = io::Error::last_os_error();
        if err.raw_os_error() == Some(libc::EINVAL) {
            return Ok(None);
        }
        Err(err)
    }

    #[cfg(not(target_os = "linux"))]
    #[expect(clippy::unnecessary_wraps, reason = "on Linux it can fail")]
    pub(super) fn start_sibling(_post: &Post, _work: fn(&Post)) -> io::Result<Option<Pid>> {
        Ok(None)
    }

    /// Closes all descriptors but `kept`. The process must not use any other descriptor after that.
    pub(super) fn close_all_but<const N: usize>(kept: [Option<RawFd>; N], closes_ranges: bool) {
        let mut kept = kept.map(|number| number.map_or(u32::MAX, RawFd::cast_unsigned));
        if closes_ranges {
            kept.sort_unstable();
            let mut first = 0;
            for number in kept {
                if first < number {
                    close_range(first, number - 1);
                }
                first = number.saturating_add(1);
            }
            if first < u32::MAX {
                close_range(first, u32::MAX);
            }
            return;
        }
        // Close as many numbers as a process usually has.
        let limit = getrlimit(Resource::Nofile).current.unwrap_or(u64::MAX);
        for number in (0..65_536).take_while(|number| u64::from(*number) < limit) {
            if !kept.contains(&number) {
                // SAFETY: nothing here uses this descriptor any more.
                unsafe { rustix::io::close(number.cast_signed()) };
            }
        }
    }

    /// Returns whether the system closes ranges of descriptors: Linux since 5.9.
    pub(super) fn closes_ranges() -> bool {
        close_range(u32::MAX, u32::MAX)
    }

    #[cfg(target_os = "linux")]
    fn close_range(first: u32, last: u32) -> bool {
        // SAFETY: nothing here uses these descriptors any more.
        unsafe { libc::syscall(libc::SYS_close_range, first, last, 0) == 0 }
    }

    #[cfg(not(target_os = "linux"))]
    fn close_range(_first: u32, _last: u32) -> bool {
        false
    }
}

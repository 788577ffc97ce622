//! Wake pipes: the named pipes, fifo(7), through which waiting processes are woken.
//!
//! A pipe is used instead of a file with an inotify(7) watch because the kernel runs the woken reader on
//! the core of the writer, which becomes free when the writer sleeps.

use std::collections::HashMap;
use std::fs::{self, File, Metadata, Permissions};
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd};
use std::os::unix::fs::{FileTypeExt, MetadataExt, PermissionsExt, fchown};
use std::sync::Arc;
use std::time::{Duration, Instant};

use crc32c::crc32c;
use rustix::fs::{FileType, Mode, OFlags, mknodat, openat};
use rustix::io::Errno;
use rustix::process::geteuid;
use verrou::Name;
use verrou_machine::process;

use crate::directory::Directory;
use crate::error::FileError;
use crate::os::OpenDirectory;
use crate::{flock, os};

/// A pipe, open for reading and writing.
#[derive(Debug)]
pub(crate) struct WakePipe(File);

impl WakePipe {
    /// Opens the wake pipe `name` in `directory`; creates it if necessary, for this user or this group
    /// alone.
    fn open(directory: &OpenDirectory, name: &str) -> Result<Self, FileError> {
        let path = || directory.path().join(name);
        let failed = |action| move |err| FileError::io(action, &path())(err);
        let file = loop {
            match open_pipe(directory, name, OFlags::RDWR) {
                Err(err) if err.kind() == io::ErrorKind::NotFound => {
                    make(directory, name).map_err(failed("create this pipe"))?;
                }
                opened => break opened.map_err(failed("open this pipe"))?,
            }
        };
        let metadata = file.metadata().map_err(failed("inspect this pipe"))?;
        let why = if !metadata.file_type().is_fifo() {
            "it is not a pipe".to_owned()
        } else if !os::is_trusted(&metadata, directory.group()) {
            format!("it belongs to user {}", metadata.uid())
        } else {
            return Ok(Self(file));
        };
        Err(FileError::Suspicious { path: path(), why })
    }

    /// Reserves the pipe for this value until it is dropped, so that no other process reads it. Returns
    /// `false` if another process has reserved it.
    pub(crate) fn try_own(&self) -> bool {
        flock::try_lock(&self.0).unwrap_or(false)
    }

    /// Wakes the process that reads the pipe.
    pub(crate) fn wake(&self) {
        // A write to a full pipe fails, and its reader has been woken before.
        let _ = rustix::io::write(&self.0, &[0]);
    }

    /// Reads the pipe; returns whether a process has written to it since the last call.
    pub(crate) fn take_wakes(&self) -> bool {
        rustix::io::read(&self.0, &mut [0; 64]).is_ok_and(|bytes| bytes > 0)
    }
}

/// The number of wake pipes of a directory.
pub(crate) const WAKE_PIPES: u32 = 4096;

/// The maximum number of wake pipes of a directory that one process uses. It uses no more than the
/// number of names that it waits for at the same time, as each name has one of them.
const PIPES_PER_PROCESS: u32 = 16;

/// The number of wake pipes tried to find an unused one. If 50 of 51 pipes are taken, all tries fail in
/// about one of 100 cases.
const TRIES: u32 = 256;

/// The distance between the tried numbers, coprime to [`WAKE_PIPES`].
const STRIDE: u32 = 1021;

/// The time after which a process without a wake pipe tries again to find one.
const RETRY_AFTER: Duration = Duration::from_secs(10);

/// The wake pipes of a directory that this process has open.
#[derive(Debug, Default)]
pub(crate) struct WakePipes {
    /// This process's wake pipes, by group of names. Closing one wakes the waiters behind this process.
    ours: HashMap<u32, Own>,
    /// When the last search for an unused pipe failed.
    tried: Option<Instant>,
}

/// A wake pipe of this process.
#[derive(Debug)]
struct Own {
    number: u32,
    pipe: Arc<WakePipe>,
    /// The number of names of this group with a waiter.
    names: usize,
}

impl WakePipes {
    /// Returns this process's wake pipe for the lock `name`, if one is available, until
    /// [`put`](Self::put) is called, and the number for the waiter's tickets.
    pub(crate) fn take(
        &mut self,
        directory: &Directory,
        name: &Name,
    ) -> (u32, Option<Arc<WakePipe>>) {
        let name_group = name_group(name);
        if !self.ours.contains_key(&name_group) {
            match self.find(directory, name_group) {
                Some(own) => self.ours.insert(name_group, own),
                None => return (first_number(name_group), None),
            };
        }
        match self.ours.get_mut(&name_group) {
            Some(own) => {
                own.names += 1;
                (own.number, Some(Arc::clone(&own.pipe)))
            }
            None => (first_number(name_group), None),
        }
    }

    /// Returns a wake pipe for the group `name_group`: an idle one of this process, an unused one, or
    /// one that this process uses for another group.
    fn find(&mut self, directory: &Directory, name_group: u32) -> Option<Own> {
        let idle = self.ours.iter().find(|(_, own)| own.names == 0);
        if let Some(&idle) = idle.map(|(idle, _)| idle) {
            return self.ours.remove(&idle);
        }
        let is_first = self.ours.is_empty();
        if is_first && self.tried.is_some_and(|it| it.elapsed() < RETRY_AFTER) {
            return None;
        }
        // A directory has fewer wake pipes than a machine may have processes.
        let tries = if is_first { TRIES } else { 1 };
        if let Some((number, pipe)) = unused_pipe(directory, name_group, tries) {
            return Some(Own {
                number,
                pipe: Arc::new(pipe),
                names: 0,
            });
        }
        self.tried = Some(Instant::now());
        self.ours.values().next().map(|own| Own {
            number: own.number,
            pipe: Arc::clone(&own.pipe),
            names: 0,
        })
    }

    /// Undoes a [`take`](Self::take) that returned a wake pipe. Returns whether the pipe is closed once
    /// the last listener drops it: a process keeps one idle pipe, and no more.
    pub(crate) fn put(&mut self, name: &Name) -> bool {
        let name_group = name_group(name);
        let Some(own) = self.ours.get_mut(&name_group) else {
            return false;
        };
        own.names -= 1;
        if own.names > 0 || self.ours.len() == 1 {
            return false;
        }
        let ended = self.ours.remove(&name_group);
        ended.is_some_and(|ended| {
            !self
                .ours
                .values()
                .any(|own| Arc::ptr_eq(&own.pipe, &ended.pipe))
        })
    }

    /// Wakes the process that reads the pipe of that number. A waiter that misses this notification still
    /// checks the lock from time to time.
    ///
    /// Another process's pipe is closed at once: while this process has it open for reading, the end of that
    /// process wakes no waiter.
    pub(crate) fn wake(&self, directory: &Directory, number: u32) {
        let mut ours = self.ours.values();
        if let Some(own) = ours.find(|own| own.number == number) {
            own.pipe.wake();
        } else if let Ok(opened) = open_numbered(directory, number) {
            opened.wake();
        }
    }

    /// Opens the pipe of that number for writing. poll(2) reports an error for the returned file once
    /// the pipe has no reader. Returns `None` if it has none already, or if that cannot be determined.
    pub(crate) fn end(directory: &Directory, number: u32) -> Option<File> {
        let directory = directory.known();
        let file = open_pipe(&directory, &name_of(number), OFlags::WRONLY).ok()?;
        let metadata = file.metadata().ok()?;
        let is_wake_pipe =
            metadata.file_type().is_fifo() && os::is_trusted(&metadata, directory.group());
        is_wake_pipe.then_some(file)
    }
}

/// Returns the group of names that share a wake pipe with `name`.
fn name_group(name: &Name) -> u32 {
    crc32c(name.as_str().as_bytes()) % PIPES_PER_PROCESS
}

/// Returns the preferred number of this process's wake pipe for the group `name_group`.
fn first_number(name_group: u32) -> u32 {
    let first = process::id().wrapping_mul(PIPES_PER_PROCESS);
    first.wrapping_add(name_group) % WAKE_PIPES
}

impl AsFd for WakePipe {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}

/// Returns the name of the wake pipe of that number.
fn name_of(number: u32) -> String {
    format!("{number:04}.bell")
}

/// Opens the wake pipe `name`. Opening it for reading and writing does not wait for another process to
/// open it.
fn open_pipe(directory: &OpenDirectory, name: &str, access: OFlags) -> io::Result<File> {
    let flags = OFlags::NOFOLLOW | OFlags::NONBLOCK | OFlags::NOCTTY | OFlags::CLOEXEC;
    Ok(openat(directory, name, access | flags, Mode::empty())?.into())
}

fn make(directory: &OpenDirectory, name: &str) -> io::Result<()> {
    match mknodat(directory, name, FileType::Fifo, Mode::RUSR | Mode::WUSR, 0) {
        Err(Errno::EXIST) => return Ok(()),
        made => made?,
    }
    allow_own_access(directory, name)?;
    if let Some(group) = directory.group() {
        let file = open_pipe(directory, name, OFlags::RDWR)?;
        // Another member may have put another file in its place.
        if is_our_pipe(&file.metadata()?) || mutant!(MadeBellNotExamined) {
            fchown(&file, None, Some(group))?;
            file.set_permissions(Permissions::from_mode(0o660))?;
        }
    }
    Ok(())
}

/// Returns whether the file is a pipe that this user has created, and has no second name.
fn is_our_pipe(metadata: &Metadata) -> bool {
    metadata.file_type().is_fifo() && metadata.uid() == geteuid().as_raw() && metadata.nlink() == 1
}

/// Gives this user access to the pipe `name` that it has created, if its umask does not.
fn allow_own_access(directory: &OpenDirectory, name: &str) -> io::Result<()> {
    const OURS: u32 = 0o600;

    // Open the pipe itself: a member of a group could put a link to another file in its place.
    let flags = OFlags::PATH | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let pipe = File::from(openat(directory, name, flags, Mode::empty())?);
    let found = pipe.metadata()?;
    if is_our_pipe(&found) && found.mode() & OURS != OURS {
        let itself = format!("/proc/self/fd/{}", pipe.as_raw_fd());
        fs::set_permissions(itself, Permissions::from_mode(OURS))?;
    }
    Ok(())
}

/// Returns an unused wake pipe for the group `name_group`, and its number; makes at most `tries` tries.
fn unused_pipe(directory: &Directory, name_group: u32, tries: u32) -> Option<(u32, WakePipe)> {
    for next in 0..tries {
        let number = (first_number(name_group) + next * STRIDE) % WAKE_PIPES;
        match open_numbered(directory, number) {
            Ok(pipe) if pipe.try_own() => return Some((number, pipe)),
            // Another process has reserved it, or another user has put something else there.
            Ok(_) | Err(FileError::Suspicious { .. }) => {}
            Err(FileError::Io { source, .. })
                if source.kind() == io::ErrorKind::PermissionDenied => {}
            Err(_) => return None,
        }
    }
    None
}

fn open_numbered(directory: &Directory, number: u32) -> Result<WakePipe, FileError> {
    WakePipe::open(&directory.known(), &name_of(number))
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use verrou_machine::StoreOptions;

    use super::*;
    use crate::os::Purpose;
    use crate::record::Kind;

    fn directory(temp_dir: &Path) -> Directory {
        let options = StoreOptions::default();
        Directory::open(temp_dir, Kind::Lease, Purpose::Store, &options).unwrap()
    }

    fn name(text: &str) -> Name {
        Name::new(text).unwrap()
    }

    #[test]
    fn failed_search_for_unused_wake_pipe_is_not_repeated_at_once() {
        let temp_dir = tempfile::tempdir().unwrap();
        let directory = directory(temp_dir.path());
        let path = |number| temp_dir.path().join(name_of(number));
        for number in 0..WAKE_PIPES {
            fs::create_dir(path(number)).unwrap();
        }
        let mut pipes = WakePipes::default();
        let (number, pipe) = pipes.take(&directory, &name("lock"));
        assert!(number < WAKE_PIPES && pipe.is_none());
        for number in 0..WAKE_PIPES {
            fs::remove_dir(path(number)).unwrap();
        }
        assert!(pipes.take(&directory, &name("lock")).1.is_none());
        pipes.tried = pipes.tried.and_then(|it| it.checked_sub(RETRY_AFTER));
        assert!(pipes.take(&directory, &name("lock")).1.is_some());
    }

    /// 4,096 pipes are enough for 4,096 processes.
    #[test]
    fn process_uses_one_wake_pipe_for_all_names_when_pipes_are_scarce() {
        let temp_dir = tempfile::tempdir().unwrap();
        let directory = directory(temp_dir.path());
        let mut pipes = WakePipes::default();
        pipes.take(&directory, &name("lock")).1.unwrap();
        for number in 0..WAKE_PIPES {
            let _ = fs::create_dir(temp_dir.path().join(name_of(number)));
        }
        for number in 0..64 {
            pipes
                .take(&directory, &name(&format!("lock {number}")))
                .1
                .unwrap();
        }
        let mut ours: Vec<_> = pipes.ours.values().map(|own| own.number).collect();
        ours.dedup();
        assert_eq!(ours.len(), 1);
    }

    /// A member of the group may write the directory, and puts a file of this user in the place of the pipe
    /// that was just created.
    #[test]
    fn file_swapped_for_new_wake_pipe_is_not_given_to_group() {
        use std::sync::atomic::{AtomicBool, Ordering};

        use rustix::process::{Gid, Uid};
        use rustix::thread::{set_thread_groups, set_thread_res_gid, set_thread_res_uid};

        const MEMBER: u32 = 4712;
        const GROUP: u32 = 4713;
        const TRIES: usize = 3000;

        if !geteuid().is_root() {
            eprintln!("skipped: only root can act as other users");
            return;
        }
        let temp_dir = tempfile::tempdir().unwrap();
        let (path, group) = (temp_dir.path().join("shared"), GROUP.to_string());
        fs::set_permissions(temp_dir.path(), Permissions::from_mode(0o755)).unwrap();
        let mut options = StoreOptions::default();
        options.group = Some(group);
        let directory = Directory::open(&path, Kind::Lease, Purpose::Store, &options).unwrap();
        let directory = directory.known();
        let (secret, pipe) = (path.join("secret"), path.join("0000.bell"));
        let is_over = AtomicBool::new(false);
        let rights = |metadata: &Metadata| (metadata.mode() & 0o7777, metadata.gid());
        let make_secret = || {
            let _ = fs::remove_file(&pipe);
            let new = temp_dir.path().join("new");
            let made = File::create(&new)?;
            made.set_permissions(Permissions::from_mode(0o600))?;
            fs::rename(new, &secret)?;
            io::Result::Ok(made)
        };
        std::thread::scope(|threads| {
            threads.spawn(|| {
                let (user, group) = (Uid::from_raw(MEMBER), Gid::from_raw(GROUP));
                set_thread_groups(&[]).unwrap();
                set_thread_res_gid(group, group, group).unwrap();
                set_thread_res_uid(user, user, user).unwrap();
                while !is_over.load(Ordering::Relaxed) {
                    if fs::symlink_metadata(&pipe).is_ok_and(|it| it.file_type().is_fifo()) {
                        let _ = fs::rename(&secret, &pipe);
                    }
                }
            });
            let attempt = || {
                let kept = make_secret()?;
                let _ = make(&directory, "0000.bell");
                Ok(rights(&kept.metadata()?))
            };
            let given = (0..TRIES)
                .map(|_| attempt())
                .find(|found: &io::Result<_>| !matches!(found, Ok((0o600, 0))));
            is_over.store(true, Ordering::Relaxed);
            assert!(given.is_none(), "{given:?}");
        });
    }
}

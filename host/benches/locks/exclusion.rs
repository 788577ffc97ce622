//! Exclusions in Rust: Verrou's locks, and the locks that they are compared with.

use std::fs::File;
use std::io::{BufRead, BufReader};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::Arc;

use nix::fcntl::{FcntlArg, fcntl};
use nix::libc;
use rustix::fs::{AtFlags, CWD, FlockOperation, StatxFlags, flock, statx};
use rustix::process::{Pid, Signal, kill_process};
use verrou::blocking::{Lock, LockFactory};
use verrou_host::{AnyStore, StoreOptions, StoreUrl, System};

use crate::Result;

/// A mutual exclusion between processes.
pub(crate) trait Exclusion {
    fn acquire(&mut self) -> Result<()>;
    fn release(&mut self) -> Result<()>;

    /// Returns the process that holds the lock.
    fn process(&self) -> u32 {
        std::process::id()
    }
}

/// Returns the exclusion of that kind, with its files in `directory`.
pub(crate) fn exclusion(kind: &str, directory: &Path) -> Result<Box<dyn Exclusion>> {
    #[cfg(all(feature = "server", feature = "tokio"))]
    if let Some(remote) = crate::remote::exclusion(kind)? {
        return Ok(remote);
    }
    // One file for all kinds that lock an open file.
    let path = directory.join("flock");
    let file = || -> Result<File> {
        let mut options = File::options();
        let options = options.read(true).write(true).create(true).truncate(false);
        let file = options.open(&path)?;
        file.set_len(4096)?;
        Ok(file)
    };
    Ok(match kind {
        "open-flock" => Box::new(OpenFlock {
            _made: file()?,
            path: path.clone(),
            file: None,
        }),
        "flock" => Box::new(Flock(file()?)),
        "turnstile" => Box::new(Turnstile {
            turn: File::create(directory.join("turn"))?,
            lock: file()?,
        }),
        "file-calls" => Box::new(FileLockCalls::new(file()?, path.clone())),
        "lease-calls" => Box::new(LeaseCalls {
            calls: FileLockCalls::new(file()?, path.clone()),
            lifeline: file()?,
        }),
        "update" => Box::new(Update(file()?)),
        "std" => Box::new(Std(file()?)),
        "fs4" => Box::new(Fs4(file()?)),
        "fd-lock" => Box::new(FdLock(fd_lock::RwLock::new(file()?))),
        "etcdctl" => Box::new(Etcdctl(None)),
        _ => Box::new(VerrouLock(
            LockFactory::new(Arc::new(open(kind, directory)?), System).create_lock("lock", "1h")?,
        )),
    })
}

/// Opens one of Verrou's stores, in `directory`.
pub(crate) fn open(kind: &str, directory: &Path) -> Result<AnyStore> {
    let url: StoreUrl = format!("{kind}:{}", directory.join(kind).display()).parse()?;
    Ok(AnyStore::open(&url, &StoreOptions::default())?)
}

/// A lock of Verrou.
struct VerrouLock(Lock<Arc<AnyStore>, System>);

impl Exclusion for VerrouLock {
    fn acquire(&mut self) -> Result<()> {
        self.0.acquire()?;
        Ok(())
    }
    fn release(&mut self) -> Result<()> {
        Ok(self.0.release()?)
    }
}

/// A `flock` on a file that is opened for each acquisition.
struct OpenFlock {
    _made: File,
    path: PathBuf,
    file: Option<File>,
}

impl Exclusion for OpenFlock {
    fn acquire(&mut self) -> Result<()> {
        let file = File::options().read(true).write(true).open(&self.path)?;
        flock(&file, FlockOperation::LockExclusive)?;
        self.file = Some(file);
        Ok(())
    }
    fn release(&mut self) -> Result<()> {
        let file = self.file.take().ok_or("it is not held")?;
        Ok(flock(&file, FlockOperation::Unlock)?)
    }
}

/// A `flock` on a file that stays open.
struct Flock(File);

impl Exclusion for Flock {
    fn acquire(&mut self) -> Result<()> {
        Ok(flock(&self.0, FlockOperation::LockExclusive)?)
    }
    fn release(&mut self) -> Result<()> {
        Ok(flock(&self.0, FlockOperation::Unlock)?)
    }
}

/// Two `flock`s in turns: one waiter holds the first lock and waits for the second; all other waiters wait for the
/// first. A process that releases and acquires again mostly waits behind them.
struct Turnstile {
    turn: File,
    lock: File,
}

impl Exclusion for Turnstile {
    fn acquire(&mut self) -> Result<()> {
        flock(&self.turn, FlockOperation::LockExclusive)?;
        flock(&self.lock, FlockOperation::LockExclusive)?;
        Ok(flock(&self.turn, FlockOperation::Unlock)?)
    }
    fn release(&mut self) -> Result<()> {
        Ok(flock(&self.lock, FlockOperation::Unlock)?)
    }
}

/// The system calls of an uncontended file lock of Verrou, and nothing else.
struct FileLockCalls {
    file: File,
    path: PathBuf,
    bytes: [u8; 4097],
    slot: u64,
}

impl FileLockCalls {
    fn new(file: File, path: PathBuf) -> Self {
        Self {
            file,
            path,
            bytes: [0; 4097],
            slot: 0,
        }
    }

    fn is_current(&self) -> Result<()> {
        statx(CWD, &self.path, AtFlags::empty(), StatxFlags::INO)?;
        Ok(())
    }

    fn is_linked(&self) -> Result<()> {
        statx(&self.file, c"", AtFlags::EMPTY_PATH, StatxFlags::NLINK)?;
        Ok(())
    }

    fn read(&mut self) -> Result<()> {
        self.file.read_at(&mut self.bytes, 0)?;
        Ok(())
    }

    fn write(&mut self) -> Result<()> {
        self.slot = 512 - self.slot;
        Ok(self
            .file
            .write_all_at(&self.bytes[..512], 512 + self.slot)?)
    }
}

impl Exclusion for FileLockCalls {
    fn acquire(&mut self) -> Result<()> {
        flock(&self.file, FlockOperation::NonBlockingLockExclusive)?;
        self.is_current()?;
        self.read()?;
        self.write()
    }
    fn release(&mut self) -> Result<()> {
        self.is_linked()?;
        flock(&self.file, FlockOperation::Unlock)?;
        let mut waiting = byte(libc::F_WRLCK, 1 << 62, 0);
        fcntl(&self.file, FcntlArg::F_OFD_GETLK(&mut waiting))?;
        Ok(())
    }
}

/// The system calls of an uncontended lease file of Verrou, and nothing else.
struct LeaseCalls {
    calls: FileLockCalls,
    lifeline: File,
}

impl Exclusion for LeaseCalls {
    fn acquire(&mut self) -> Result<()> {
        flock(&self.calls.file, FlockOperation::NonBlockingLockExclusive)?;
        self.calls.is_current()?;
        self.calls.read()?;
        let living = byte(libc::F_WRLCK, 1 << 40, 1);
        fcntl(&self.lifeline, FcntlArg::F_OFD_SETLK(&living))?;
        self.calls.write()?;
        Ok(flock(&self.calls.file, FlockOperation::Unlock)?)
    }
    fn release(&mut self) -> Result<()> {
        flock(&self.calls.file, FlockOperation::NonBlockingLockExclusive)?;
        self.calls.is_linked()?;
        self.calls.read()?;
        self.calls.write()?;
        Ok(flock(&self.calls.file, FlockOperation::Unlock)?)
    }
}

#[expect(
    clippy::cast_possible_truncation,
    reason = "the C header declares these constants as `int`, and the fields of `struct flock` as `short`"
)]
fn byte(kind: i32, start: i64, length: i64) -> libc::flock {
    libc::flock {
        l_type: kind as libc::c_short,
        l_whence: libc::SEEK_SET as libc::c_short,
        l_start: start,
        l_len: length,
        l_pid: 0,
    }
}

/// The minimal cost of a record in a file: it is read and written under `flock`, once to acquire and once to
/// release. It excludes no process in between.
struct Update(File);

impl Exclusion for Update {
    fn acquire(&mut self) -> Result<()> {
        let mut bytes = [0; 512];
        flock(&self.0, FlockOperation::LockExclusive)?;
        self.0.read_exact_at(&mut bytes, 0)?;
        self.0.write_all_at(&bytes, 0)?;
        Ok(flock(&self.0, FlockOperation::Unlock)?)
    }
    fn release(&mut self) -> Result<()> {
        self.acquire()
    }
}

struct Std(File);

impl Exclusion for Std {
    fn acquire(&mut self) -> Result<()> {
        Ok(self.0.lock()?)
    }
    fn release(&mut self) -> Result<()> {
        Ok(self.0.unlock()?)
    }
}

struct Fs4(File);

impl Exclusion for Fs4 {
    fn acquire(&mut self) -> Result<()> {
        Ok(fs4::FileExt::lock(&self.0)?)
    }
    fn release(&mut self) -> Result<()> {
        Ok(fs4::FileExt::unlock(&self.0)?)
    }
}

/// The lock is released at once, because its guard borrows it.
struct FdLock(fd_lock::RwLock<File>);

impl Exclusion for FdLock {
    fn acquire(&mut self) -> Result<()> {
        drop(self.0.write()?);
        Ok(())
    }
    fn release(&mut self) -> Result<()> {
        Ok(())
    }
}

/// The command `etcdctl lock`, which holds the lock as long as it runs.
struct Etcdctl(Option<Child>);

impl Exclusion for Etcdctl {
    fn acquire(&mut self) -> Result<()> {
        let mut command = Command::new("etcdctl");
        command.args(["lock", "--ttl=10", "lock"]);
        let mut process = command.stdout(Stdio::piped()).spawn()?;
        let stdout = process.stdout.take().ok_or("no output")?;
        // The command prints its key when it holds the lock.
        BufReader::new(stdout).read_line(&mut String::new())?;
        self.0 = Some(process);
        Ok(())
    }
    fn release(&mut self) -> Result<()> {
        let mut process = self.0.take().ok_or("it is not held")?;
        kill_process(Pid::from_child(&process), Signal::TERM)?;
        process.wait()?;
        Ok(())
    }
    fn process(&self) -> u32 {
        self.0.as_ref().map_or(0, Child::id)
    }
}

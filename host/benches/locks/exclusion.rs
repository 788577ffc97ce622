//! What excludes others, in Rust: ours, and what ours is compared with.

use std::fs::File;
use std::io::{BufRead, BufReader};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::Arc;

use rustix::fs::{FlockOperation, flock};
use rustix::process::{Pid, Signal, kill_process};
use verrou::blocking::{Lock, LockFactory};
use verrou_host::{FileStore, StoreOptions, StoreUrl, System};

use crate::Result;

/// Something that excludes others.
pub(crate) trait Exclusion {
    fn acquire(&mut self) -> Result<()>;
    fn release(&mut self) -> Result<()>;

    /// The process that has it.
    fn process(&self) -> u32 {
        std::process::id()
    }
}

/// The one of that kind, with its files in `folder`.
pub(crate) fn exclusion(kind: &str, folder: &Path) -> Result<Box<dyn Exclusion>> {
    // The same file for all that lock a file that they leave open.
    let path = folder.join("flock");
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
        "update" => Box::new(Update(file()?)),
        "std" => Box::new(Std(file()?)),
        "fs4" => Box::new(Fs4(file()?)),
        "fd-lock" => Box::new(FdLock(fd_lock::RwLock::new(file()?))),
        "etcdctl" => Box::new(Etcdctl(None)),
        _ => Box::new(Ours(
            LockFactory::new(Arc::new(open(kind, folder)?), System).create_lock("lock", "1h")?,
        )),
    })
}

/// One of our stores, in `folder`.
pub(crate) fn open(kind: &str, folder: &Path) -> Result<FileStore> {
    let url: StoreUrl = format!("{kind}:{}", folder.join(kind).display()).parse()?;
    Ok(FileStore::open(&url, &StoreOptions::default())?)
}

/// One of ours.
struct Ours(Lock<Arc<FileStore>, System>);

impl Exclusion for Ours {
    fn acquire(&mut self) -> Result<()> {
        self.0.acquire()?;
        Ok(())
    }
    fn release(&mut self) -> Result<()> {
        Ok(self.0.release()?)
    }
}

/// The kernel's lock, of a file that is opened for it.
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

/// The kernel's lock, of a file that stays open.
struct Flock(File);

impl Exclusion for Flock {
    fn acquire(&mut self) -> Result<()> {
        Ok(flock(&self.0, FlockOperation::LockExclusive)?)
    }
    fn release(&mut self) -> Result<()> {
        Ok(flock(&self.0, FlockOperation::Unlock)?)
    }
}

/// The least that a record in a file costs: it is read and written under the kernel's lock, once to
/// take it and once to give it back. Excludes nobody in between.
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

/// Its guard borrows it, so it is given back at once.
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

/// The command, which holds the lock for as long as it runs.
struct Etcdctl(Option<Child>);

impl Exclusion for Etcdctl {
    fn acquire(&mut self) -> Result<()> {
        let mut command = Command::new("etcdctl");
        command.args(["lock", "--ttl=10", "lock"]);
        let mut process = command.stdout(Stdio::piped()).spawn()?;
        let stdout = process.stdout.take().ok_or("no output")?;
        // It names its key when it has the lock.
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

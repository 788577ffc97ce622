//! File systems without a free byte or inode, and file systems that become read-only.

use std::fmt::Display;
use std::fs::{self, File};
use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::thread;
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use verrou::blocking::LockFactory;
use verrou::{Error, Retry, Store, Ttl};
use verrou_host::{AnyStore, StoreOptions, StoreUrl, System};

use crate::results::{Findings, Part, Setting};
use crate::stress::{KINDS, foreign_files};

pub(crate) const PART: Part = Part {
    name: "full-disks",
    about: "no free byte, no free inode, read-only: held locks can be extended and released",
    share: 0,
    run,
};

/// A mounted file system; unmounted when dropped.
struct Mounted {
    place: PathBuf,
}

/// A kind of file system.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
enum FileSystem {
    Tmpfs,
    Ext4,
    Xfs,
    Btrfs,
}

impl FileSystem {
    const ALL: [Self; 4] = [Self::Tmpfs, Self::Ext4, Self::Xfs, Self::Btrfs];

    /// Returns the command that creates the file system's image, and the image's size in bytes.
    fn maker(self) -> Option<(&'static [&'static str], u64)> {
        match self {
            Self::Tmpfs => None,
            Self::Ext4 => Some((
                &["mkfs.ext4", "-q", "-N", "96", "-e", "remount-ro"],
                16 << 20,
            )),
            Self::Xfs => Some((&["mkfs.xfs", "-q"], 320 << 20)),
            Self::Btrfs => Some((&["mkfs.btrfs", "-q"], 128 << 20)),
        }
    }
}

impl Mounted {
    fn new(kind: FileSystem, directory: &Path) -> Result<Self> {
        let place = directory.join(format!("{kind:?}"));
        fs::create_dir(&place)?;
        let mut mount = Command::new("mount");
        match kind.maker() {
            None => {
                mount.args(["-t", "tmpfs", "-o", "size=256k,nr_inodes=64", "tmpfs"]);
            }
            Some((maker, bytes)) => {
                let image = directory.join(format!("{kind:?}.image"));
                File::create(&image)?.set_len(bytes)?;
                let (program, options) = maker.split_first().context("a program")?;
                run_it(Command::new(program).args(options).arg(&image))?;
                mount.args(["-o", "loop"]).arg(&image);
            }
        }
        run_it(mount.arg(&place))?;
        Ok(Self { place })
    }

    /// Leaves no free byte, and no free inode.
    fn fill(&self) -> Result<()> {
        let mut ballast = File::create(self.ballast())?;
        for length in [65536, 4096, 512, 1] {
            let bytes = vec![7; length];
            loop {
                match ballast.write_all(&bytes).and_then(|()| ballast.sync_data()) {
                    Ok(()) => {}
                    Err(err) if err.kind() == io::ErrorKind::StorageFull => break,
                    Err(err) => return Err(err.into()),
                }
            }
        }
        for number in 0..1_000_000 {
            match File::create(self.place.join(format!("inode-{number}"))) {
                Ok(_) => {}
                Err(err) if err.kind() == io::ErrorKind::StorageFull => return Ok(()),
                Err(err) => return Err(err.into()),
            }
        }
        bail!("the file system is not full after a million inodes")
    }

    fn make_room(&self) -> Result<()> {
        for entry in fs::read_dir(&self.place)? {
            let entry = entry?;
            if entry.file_name() != "locks" && entry.file_type()?.is_file() {
                fs::remove_file(entry.path())?;
            }
        }
        Ok(())
    }

    fn ballast(&self) -> PathBuf {
        self.place.join("ballast")
    }
}

impl Drop for Mounted {
    fn drop(&mut self) {
        let _ = Command::new("umount")
            .arg("--lazy")
            .arg(&self.place)
            .output();
    }
}

/// Runs a program, and returns its standard output; the error has its standard error.
fn run_it(command: &mut Command) -> Result<String> {
    let program = command.get_program().to_string_lossy().into_owned();
    let output = command.output().with_context(|| format!("`{program}`"))?;
    let errors = String::from_utf8_lossy(&output.stderr);
    ensure!(output.status.success(), "`{program}`: {}", errors.trim());
    Ok(String::from_utf8_lossy(&output.stdout).into_owned())
}

fn run(setting: &Setting, findings: &mut Findings) -> Result<()> {
    for kind in FileSystem::ALL {
        // Filling the large ones takes long.
        if !setting.is_long && matches!(kind, FileSystem::Xfs | FileSystem::Btrfs) {
            findings.not_done(format!(
                "{kind:?}: tested only with `--for` of 10 minutes or more"
            ));
            continue;
        }
        for store in KINDS {
            setting.progress.set_message(format!("{kind:?}, {store}"));
            let directory = tempfile::tempdir_in(&setting.directory)?;
            let mounted = match Mounted::new(kind, directory.path()) {
                Ok(mounted) => mounted,
                Err(err) => {
                    findings.not_done(format!("{kind:?}: {err:#}"));
                    break;
                }
            };
            let title = format!("{kind:?}, {store}");
            if let Err(err) = full(&mounted, store, &title, findings) {
                findings.violation(format!("{title}: {err:#}"));
            }
            if kind == FileSystem::Ext4
                && let Err(err) = read_only(&mounted, store, &title, findings)
            {
                findings.violation(format!("{title}: read-only: {err:#}"));
            }
            findings.count("file systems", 1);
        }
    }
    Ok(())
}

fn open(kind: &str, place: &Path) -> Result<AnyStore> {
    let url: StoreUrl = format!("{kind}:{}", place.join("locks").display()).parse()?;
    Ok(AnyStore::open(&url, &StoreOptions::default())?)
}

fn full(mounted: &Mounted, kind: &str, title: &str, findings: &mut Findings) -> Result<()> {
    let stores = [open(kind, &mounted.place)?, open(kind, &mounted.place)?];
    let [ours, others] = stores
        .each_ref()
        .map(|store| LockFactory::new(store, System));
    let held = ours.create_lock("held", "1h")?;
    let free = ours.create_lock("free", "1h")?;
    free.acquire()?;
    free.release()?;
    held.acquire()?;
    mounted.fill()?;

    let mut check = |what: &str, done: Result<(), Error>| {
        findings.count("operations without a free byte or inode", 1);
        if let Err(err) = done {
            let err = anyhow::Error::from(err);
            findings.violation(format!("{title}, full: {what}: {err:#}"));
        }
    };
    check("extending", held.extend(held.ttl()));
    let other = others.create_lock("held", Ttl::NEVER)?;
    check(
        "being refused",
        match other.try_acquire() {
            Err(Error::Timeout { .. }) => Ok(()),
            other => other.map(|_| ()),
        },
    );
    // There is no room for the wake pipe of the waiter.
    let retry = Retry::FOR_EVER.timeout(Duration::from_secs(20));
    let waited = thread::scope(|scope| {
        let waiting = scope.spawn(|| {
            let lease = other.acquire_with(&retry)?;
            other.release()?;
            Ok::<_, Error>(lease)
        });
        // It begins to wait, or finds the lock free; both must succeed.
        thread::sleep(Duration::from_millis(50));
        check("releasing", held.release());
        waiting.join().unwrap_or_else(|_| {
            let name = held.name().clone();
            Err(Error::NotOwner { name })
        })
    });
    check("waiting", waited.map(|_| ()));
    check("acquiring", free.acquire().map(|_| ()));
    if stores[0].capabilities().force_releases {
        check("force-releasing", other.force_release(None).map(drop));
        check(
            "force-releasing",
            others
                .create_lock("free", "1h")?
                .force_release(None)
                .map(drop),
        );
    } else {
        check("releasing", free.release());
    }

    let new = ours.create_lock("new", "1h")?;
    match new.try_acquire() {
        Ok(_) => findings.violation(format!(
            "{title}, full: a new lock was granted without room for its file"
        )),
        Err(err) => {
            let text = format!("{:#}", anyhow::Error::from(err));
            let names = text.contains("new.") && text.contains("No space left");
            findings.check(names, || format!("{title}, full: {text}"));
        }
    }
    let files = fs::read_dir(mounted.place.join("locks"))?;
    for entry in files {
        let entry = entry?;
        let (name, bytes) = (entry.file_name(), entry.metadata()?.len());
        let is_whole =
            bytes == 4096 || name == "fences" || name.to_string_lossy().contains(".bell");
        findings.check(
            is_whole && !name.to_string_lossy().starts_with("new"),
            || format!("{title}, full: {} of {bytes} bytes is left", name.display()),
        );
    }
    mounted.make_room()?;
    new.try_acquire().context("acquiring after room was made")?;
    new.release()?;
    let foreign_files = foreign_files(&mounted.place.join("locks"))?;
    findings.check(foreign_files.is_empty(), || {
        format!("{title}, full: these foreign files are left: {foreign_files:?}")
    });
    Ok(())
}

/// Makes the file system of a held lock read-only, as ext4 does after an error: the lock can be
/// released, or ends with its holder.
fn read_only(mounted: &Mounted, kind: &str, title: &str, findings: &mut Findings) -> Result<()> {
    let store = open(kind, &mounted.place)?;
    let lock = LockFactory::new(&store, System).create_lock("held", "1h")?;
    lock.acquire()?;
    let mut device = Command::new("findmnt");
    let device = device.args(["--noheadings", "--output", "SOURCE"]);
    let device = run_it(device.arg(&mounted.place))?;
    let device = device.trim().trim_start_matches("/dev/");
    let trigger = format!("/sys/fs/ext4/{device}/trigger_fs_error");
    fs::write(&trigger, "an error for a test").context(trigger)?;

    let mut report_violation = |what: &str, err: &dyn Display| {
        findings.violation(format!("{title}, read-only: {what}: {err:#}"));
    };
    if let Err(err) = lock.release().map_err(anyhow::Error::from) {
        let text = format!("{err:#}");
        if !text.contains("held.") {
            report_violation("releasing", &text);
        }
    }
    // An operation that still succeeds finds the lock free.
    let other = open(kind, &mounted.place)?;
    let name = lock.name();
    match other.holders(name).map(|mut holders| holders.pop()) {
        Ok(None) => {}
        Ok(Some(holder)) => {
            report_violation("still held after its release", &format!("{holder:?}"));
        }
        // A store opens its files only for writing.
        Err(err) => {
            let text = format!("{:#}", anyhow::Error::from(err));
            if !text.contains("held.") || !text.contains("Read-only") {
                report_violation("inspecting", &text);
            }
        }
    }
    let other = LockFactory::new(&other, System).create_lock("held", "1h")?;
    match other.try_acquire().map_err(anyhow::Error::from) {
        Ok(_) => report_violation("acquiring", &"granted without a record"),
        Err(err) => {
            let text = format!("{err:#}");
            if !text.contains("held.") || !text.contains("Read-only") {
                report_violation("acquiring", &text);
            }
        }
    }
    findings.count("file systems that became read-only", 1);
    Ok(())
}

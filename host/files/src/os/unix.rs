//! The functions of Unix files that the stores use.

use std::ffi::OsString;
use std::fs::{File, Metadata, Permissions};
use std::io::{self, Write};
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::ffi::OsStringExt;
use std::os::unix::fs::{
    FileExt, FileTypeExt, MetadataExt, OpenOptionsExt, PermissionsExt, fchown,
};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant, UNIX_EPOCH};

use data_encoding::BASE32_NOPAD;
use rustix::fs::{AtFlags, Dir, Mode, OFlags, linkat, openat, unlinkat};
use rustix::io::{Errno, fcntl_dupfd_cloexec};
use rustix::process::{Resource, geteuid, getrlimit};

use super::{DirectoryAccess, DirectoryError, Names, Purpose};

mod walk;

/// The identity of a file, independent of its name.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(crate) struct FileId {
    device: u64,
    inode: u64,
}

impl From<&Metadata> for FileId {
    fn from(metadata: &Metadata) -> Self {
        Self {
            device: metadata.dev(),
            inode: metadata.ino(),
        }
    }
}

/// Returns the identity of the open file.
pub(crate) fn id(file: &File) -> io::Result<FileId> {
    Ok((&file.metadata()?).into())
}

/// Returns a number that distinguishes this file from its copies, even from one at its path: a copy has
/// another inode, or, on file systems that support it, another inode generation or time of birth.
pub(crate) fn number(file: &File) -> io::Result<u64> {
    let metadata = file.metadata()?;
    let born = metadata.created().ok();
    let born = born.and_then(|born| born.duration_since(UNIX_EPOCH).ok());
    let nanos = born.and_then(|born| u64::try_from(born.as_nanos()).ok());
    // The times of birth of files that were created together differ little, and so do their inodes.
    let number = metadata.ino().rotate_left(32) ^ nanos.unwrap_or_default();
    Ok(number ^ generation(file).rotate_left(16))
}

/// Returns the generation of the file's inode, which is drawn at random whenever an inode is reused; zero if
/// there is none. Several files can reuse an inode in one tick of the file system's clock.
#[cfg(target_os = "linux")]
#[expect(
    unsafe_code,
    reason = "rustix has no function for this request, and cannot check what the kernel writes"
)]
fn generation(file: &File) -> u64 {
    use rustix::ioctl::{Updater, ioctl, opcode};

    const FS_IOC_GETVERSION: rustix::ioctl::Opcode = opcode::read::<std::ffi::c_long>(b'v', 1);

    let mut generation = 0;
    // SAFETY: the kernel writes an `int` (ioctl_getversion of ext4 and others), for which a `u64` has
    // room; file systems without it, and devices, refuse the request.
    let asked = unsafe {
        ioctl(
            file,
            Updater::<FS_IOC_GETVERSION, u64>::new(&mut generation),
        )
    };
    asked.map(|()| generation).unwrap_or_default()
}

#[cfg(not(target_os = "linux"))]
fn generation(_file: &File) -> u64 {
    0
}

/// Returns the names of the entries of `directory`. The standard library would panic when the directory
/// could not be closed.
fn names_in(directory: &File) -> io::Result<Vec<OsString>> {
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
    let listed = openat(directory, c".", flags, Mode::empty())?;
    let mut names = Vec::new();
    for entry in Dir::new(listed)? {
        let name = entry?.file_name().to_bytes().to_owned();
        if name != b"." && name != b".." {
            names.push(OsString::from_vec(name));
        }
    }
    Ok(names)
}

/// Returns the identity of the file that is now at `path`, or at the target of a symbolic link there.
pub(crate) fn id_at(path: &Path) -> io::Result<Option<FileId>> {
    found(id_of(rustix::fs::CWD, path, AtFlags::empty()))
}

fn found(id: io::Result<FileId>) -> io::Result<Option<FileId>> {
    match id {
        Ok(id) => Ok(Some(id)),
        Err(err)
            if matches!(
                err.kind(),
                io::ErrorKind::NotFound | io::ErrorKind::NotADirectory
            ) =>
        {
            Ok(None)
        }
        Err(err) => Err(err),
    }
}

/// Requests only the inode number. After a request for a file's times, the next write to the file would
/// update them on the disk, which costs several times as much as the write (multigrain timestamps, Linux
/// 6.13).
#[cfg(target_os = "linux")]
fn id_of(directory: BorrowedFd<'_>, path: &Path, flags: AtFlags) -> io::Result<FileId> {
    use rustix::fs::{StatxFlags, makedev, statx};

    match statx(directory, path, flags, StatxFlags::INO) {
        Ok(found) => Ok(FileId {
            device: makedev(found.stx_dev_major, found.stx_dev_minor),
            inode: found.stx_ino,
        }),
        // Older than Linux 4.11, or forbidden by a sandbox.
        Err(Errno::NOSYS | Errno::PERM) => id_by_stat(directory, path, flags),
        Err(err) => Err(err.into()),
    }
}

#[cfg(not(target_os = "linux"))]
fn id_of(directory: BorrowedFd<'_>, path: &Path, flags: AtFlags) -> io::Result<FileId> {
    id_by_stat(directory, path, flags)
}

#[allow(
    clippy::unnecessary_cast,
    clippy::cast_sign_loss,
    reason = "the types of the fields differ by system"
)]
fn id_by_stat(directory: BorrowedFd<'_>, path: &Path, flags: AtFlags) -> io::Result<FileId> {
    let found = rustix::fs::statat(directory, path, flags)?;
    Ok(FileId {
        device: found.st_dev as u64,
        inode: found.st_ino as u64,
    })
}

/// Returns whether the file still has a name.
#[cfg(target_os = "linux")]
pub(crate) fn is_linked(file: &File) -> io::Result<bool> {
    use rustix::fs::{StatxFlags, statx};

    match statx(file, c"", AtFlags::EMPTY_PATH, StatxFlags::NLINK) {
        Ok(found) => Ok(found.stx_nlink > 0),
        Err(Errno::NOSYS | Errno::PERM) => Ok(file.metadata()?.nlink() > 0),
        Err(err) => Err(err.into()),
    }
}

#[cfg(not(target_os = "linux"))]
pub(crate) fn is_linked(file: &File) -> io::Result<bool> {
    Ok(file.metadata()?.nlink() > 0)
}

/// A directory that is held open, and whose files are opened relative to its descriptor: its path is
/// resolved once.
#[derive(Debug)]
pub(crate) struct OpenDirectory {
    /// The directory above, in which this one must still have its name.
    parent: File,
    parent_id: FileId,
    directory: File,
    id: FileId,
    name: PathBuf,
    path: PathBuf,
    group: Option<u32>,
    access: DirectoryAccess,
    opened: Instant,
    /// When the path was walked last, in milliseconds after `opened`.
    walked: AtomicU64,
}

impl OpenDirectory {
    /// Opens the directory at `path`, and creates it if `access.create` is set; returns `None` if there
    /// is none.
    pub(crate) fn open(
        path: &Path,
        access: &DirectoryAccess,
    ) -> Result<Option<Self>, DirectoryError> {
        let opening = DirectoryError::io("open this directory");
        // Valid whatever the working directory is later.
        let path = std::path::absolute(path).map_err(&opening)?;
        let opened = Instant::now();
        let Some(walked) = walk::open(&path, access)? else {
            return Ok(None);
        };
        Self::walked(walked, access, opened)
            .map(Some)
            .map_err(opening)
    }

    /// Opens the directory `name` in this one, and creates it if `create` is set; returns `None` if there is none.
    pub(crate) fn open_below(
        &self,
        name: &Path,
        create: bool,
    ) -> Result<Option<Self>, DirectoryError> {
        let access = DirectoryAccess {
            purpose: Purpose::Records,
            create,
            ..self.access.clone()
        };
        let opened = Instant::now();
        let below = walk::open_below(&self.directory, &self.path, name.as_os_str(), &access)?;
        let below = below.map(|walked| Self::walked(walked, &access, opened));
        below
            .transpose()
            .map_err(DirectoryError::io("open this directory"))
    }

    fn walked(walked: walk::Walked, access: &DirectoryAccess, opened: Instant) -> io::Result<Self> {
        let parent_id = id(&walked.parent)?;
        let id = id(&walked.directory)?;
        Ok(Self {
            parent: walked.parent,
            parent_id,
            directory: walked.directory,
            id,
            name: walked.name,
            path: walked.path,
            group: walked.group,
            access: DirectoryAccess {
                create: false,
                ..access.clone()
            },
            opened,
            walked: AtomicU64::new(0),
        })
    }

    /// Returns the directory's path, without links.
    pub(crate) fn path(&self) -> &Path {
        &self.path
    }

    /// Returns the group that shares the directory.
    pub(crate) fn group(&self) -> Option<u32> {
        self.group
    }

    /// Returns how the directory was opened, to open it again.
    pub(crate) fn access(&self) -> &DirectoryAccess {
        &self.access
    }

    /// Returns the path of the file `name` relative to the parent directory.
    pub(crate) fn path_below_parent(&self, name: &Path) -> PathBuf {
        self.name.join(name)
    }

    /// Returns the identity of the file that is now at `path`, relative to the parent directory.
    pub(crate) fn id_below_parent(&self, path: &Path) -> io::Result<Option<FileId>> {
        let follow = mutant!(LinksFollowed, AtFlags::empty(), AtFlags::SYMLINK_NOFOLLOW);
        found(id_of(self.parent.as_fd(), path, follow))
    }

    /// Returns whether the directory is still at its path. Directories above its parent are looked at if
    /// that was not done for `at_most`.
    pub(crate) fn is_there(&self, at_most: Duration) -> io::Result<bool> {
        Ok(self.id_below_parent(&self.name)? == Some(self.id) && self.is_parent_there(at_most)?)
    }

    /// Returns whether the path still leads to the parent directory. Walks the path again only if that
    /// was not done for `at_most`.
    ///
    /// If the walk fails, for example because a group can now write a directory on the path, resolves
    /// the path as a whole: a lock is lost only if the path leads elsewhere.
    pub(crate) fn is_parent_there(&self, at_most: Duration) -> io::Result<bool> {
        let now = u64::try_from(self.opened.elapsed().as_millis()).unwrap_or(u64::MAX);
        let walked = self.walked.load(Ordering::Relaxed);
        if u128::from(now.saturating_sub(walked)) < at_most.as_millis() {
            return Ok(true);
        }
        let is_there = match walk::open(&self.path, &self.access) {
            Ok(Some(found)) => id(&found.parent)? == self.parent_id,
            Ok(None) => false,
            Err(DirectoryError::Untrusted { .. }) if mutant!(UntrustedPathLost) => false,
            Err(_) => {
                let parent = self.path.parent().unwrap_or(&self.path);
                id_at(parent)? == Some(self.parent_id)
            }
        };
        if is_there {
            self.walked.store(now, Ordering::Relaxed);
        }
        Ok(is_there)
    }

    /// Opens the file `name` of a store; returns `None` if there is none. Does not follow a link, wait
    /// for the other end of a pipe, acquire a controlling terminal, or change anything.
    pub(crate) fn open_file(&self, name: &Path) -> io::Result<Option<File>> {
        self.open_for(name, true)
    }

    /// Opens the file as [`open_file`](Self::open_file) does, read-only, to read and to lock it.
    pub(crate) fn open_read_only(&self, name: &Path) -> io::Result<Option<File>> {
        self.open_for(name, false)
    }

    fn open_for(&self, name: &Path, writing: bool) -> io::Result<Option<File>> {
        let flags = if writing {
            OFlags::RDWR
        } else {
            OFlags::RDONLY
        };
        let follow = mutant!(LinksFollowed, OFlags::empty(), OFlags::NOFOLLOW);
        let truncate = mutant!(FilesTruncatedByOpening, OFlags::TRUNC, OFlags::empty());
        let truncate = if writing { truncate } else { OFlags::empty() };
        let flags = flags | follow | truncate | OFlags::NONBLOCK | OFlags::NOCTTY | OFlags::CLOEXEC;
        match openat(&self.directory, name, flags, Mode::empty()) {
            Ok(file) if mutant!(FilesInherited) => Ok(Some(rustix::io::dup(file)?.into())),
            Ok(file) => Ok(Some(file.into())),
            Err(Errno::NOENT) => Ok(None),
            Err(err) => Err(err.into()),
        }
    }

    /// Returns whether there is an entry `name` that is not a regular file.
    pub(crate) fn is_no_file(&self, name: &Path) -> bool {
        use rustix::fs::{FileType, statat};

        statat(&self.directory, name, AtFlags::SYMLINK_NOFOLLOW)
            .is_ok_and(|found| FileType::from_raw_mode(found.st_mode) != FileType::RegularFile)
    }

    /// Creates a complete file `name` with these bytes, for this user or this group alone. Leaves an
    /// existing file as it is.
    ///
    /// The file gets its name only after its contents are synced to the disk. Where the system has no
    /// unnamed files, it has a temporary name until then.
    pub(crate) fn create(&self, name: &Path, bytes: &[u8]) -> io::Result<()> {
        let finish = |file: &mut File| self.fill(file, bytes);
        if mutant!(FilesReplacedByCreating) {
            unlinkat(&self.directory, name, AtFlags::empty()).ok();
        }
        let named = || {
            let (mut file, temporary) = self.temporary()?;
            let linked = finish(&mut file).and_then(|()| {
                let (from, to) = (&self.directory, &self.directory);
                Ok(linkat(from, &*temporary, to, name, AtFlags::empty())?)
            });
            let removed = unlinkat(&self.directory, &*temporary, AtFlags::empty());
            linked.and(Ok(removed?))
        };
        let linked = if let Some(mut file) = unnamed(&self.directory)? {
            finish(&mut file)?;
            match link_unnamed(&file, &self.directory, name) {
                Err(err) if err.kind() == io::ErrorKind::AlreadyExists => return Ok(()),
                // Without /proc, as after chroot(2), an unnamed file cannot be linked: linkat(2) by
                // descriptor alone needs a capability, or Linux 6.10.
                Err(_) => named(),
                linked => linked,
            }
        } else {
            named()
        };
        match linked {
            Err(err) if err.kind() == io::ErrorKind::AlreadyExists => Ok(()),
            linked => linked,
        }
    }

    /// Creates the file `name` with these bytes, for this user or this group alone, and syncs them to the disk. An
    /// existing file is an error. After an error, a part of the file may be left.
    pub(crate) fn create_draft(&self, name: &Path, bytes: &[u8]) -> io::Result<()> {
        let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL | OFlags::CLOEXEC;
        let mode = Mode::RUSR | Mode::WUSR;
        let mut file = File::from(openat(&self.directory, name, flags, mode)?);
        self.fill(&mut file, bytes)
    }

    /// Writes the contents of a new file for this user or this group alone, and syncs them to the disk.
    fn fill(&self, file: &mut File, bytes: &[u8]) -> io::Result<()> {
        let mode = if self.group.is_some() { 0o660 } else { 0o600 };
        fchown(&*file, None, self.group)?;
        file.set_permissions(Permissions::from_mode(mode))?;
        disable_copy_on_write(file);
        file.write_all(bytes)?;
        file.sync_data()
    }

    /// Gives the file `from` the second name `to`; an existing file `to` is an error.
    pub(crate) fn link(&self, from: &Path, to: &Path) -> io::Result<()> {
        let directory = &self.directory;
        Ok(linkat(directory, from, directory, to, AtFlags::empty())?)
    }

    /// Removes the name `name` of a file.
    pub(crate) fn remove(&self, name: &Path) -> io::Result<()> {
        Ok(unlinkat(&self.directory, name, AtFlags::empty())?)
    }

    /// Creates an empty file with a name that cannot be guessed; returns it with its name.
    fn temporary(&self) -> io::Result<(File, String)> {
        let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL | OFlags::CLOEXEC;
        loop {
            let number = getrandom::u64().map_err(io::Error::other)?;
            let name = format!(".tmp{}", BASE32_NOPAD.encode(&number.to_le_bytes()));
            match openat(&self.directory, &*name, flags, Mode::RUSR | Mode::WUSR) {
                Ok(file) => return Ok((file.into(), name)),
                Err(Errno::EXIST) => {}
                Err(err) => return Err(err.into()),
            }
        }
    }

    /// Returns the names of its entries.
    pub(crate) fn names(&self) -> io::Result<Vec<OsString>> {
        names_in(&self.directory)
    }

    /// Syncs the names in the directory to the disk, so that they survive a loss of power.
    pub(crate) fn sync(&self) -> io::Result<()> {
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
        File::from(openat(&self.directory, c".", flags, Mode::empty())?).sync_all()
    }

    /// Returns the name of the directory's file system, if locks may not work on it.
    pub(crate) fn unsuitable_file_system(&self) -> io::Result<Option<String>> {
        unsuitable_file_system(&self.directory)
    }

    /// Returns a path by which the kernel finds the file `name` through the open directory, for system calls
    /// that do not take a descriptor.
    #[cfg(target_os = "linux")]
    pub(crate) fn path_for_kernel(&self, name: &Path) -> PathBuf {
        use std::os::fd::AsRawFd;

        let directory = PathBuf::from(format!("/proc/self/fd/{}", self.directory.as_raw_fd()));
        // Without /proc, as after chroot(2).
        if matches!(id_at(&directory), Ok(Some(found)) if found == self.id) {
            directory.join(name)
        } else {
            self.path.join(name)
        }
    }
}

impl AsFd for OpenDirectory {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.directory.as_fd()
    }
}

/// Returns whether the error of linkat(2) means that the file system has no hard links, that the file has too many, or
/// that the system refuses one to another user's file (`fs.protected_hardlinks`).
pub(crate) fn is_link_refused(err: &io::Error) -> bool {
    let refusals = [Errno::PERM, Errno::OPNOTSUPP, Errno::NOSYS, Errno::MLINK];
    Errno::from_io_error(err).is_some_and(|err| refusals.contains(&err))
}

/// Duplicates the descriptor of `file`, for a program that inherits it, at a high number: scripts use
/// low ones, and 100, 200 and 255, for their own redirections.
pub(crate) fn duplicate_to_inherit(file: &File) -> io::Result<File> {
    // select(2) does not support greater numbers.
    const MOST: u64 = 1024;

    let limit = getrlimit(Resource::Nofile).current.unwrap_or(MOST);
    let least = i32::try_from(limit.min(MOST) * 7 / 8).unwrap_or_default();
    match fcntl_dupfd_cloexec(file, least) {
        Ok(duplicate) => Ok(duplicate.into()),
        // If no such number is free, any other will do.
        Err(_) => file.try_clone(),
    }
}

/// Opens any file or directory, only to lock it. Creates an empty file for this user alone if nothing
/// exists at `path`. Follows symbolic links, also one whose target is missing, as flock(1) does.
///
/// The first attempt has `O_CREAT`, as in flock(1), so that `fs.protected_regular` (proc(5)) rejects
/// another user's file in a directory with the sticky bit.
pub(crate) fn open_to_lock(path: &Path) -> io::Result<File> {
    match open_any(path, OFlags::CREATE) {
        // open(2) with `O_CREAT` fails for a directory.
        Err(err) if err.kind() == io::ErrorKind::IsADirectory => {
            let directory = open_any(path, OFlags::DIRECTORY)?;
            if is_planted(&directory)? && !mutant!(PlantedDirectoriesLocked) {
                return Err(Errno::ACCESS.into());
            }
            Ok(directory)
        }
        opened => opened,
    }
}

/// Returns whether `directory` belongs to another user, and is in a directory with the sticky bit that
/// all users may write: the files for which `fs.protected_regular` was made.
fn is_planted(directory: &File) -> io::Result<bool> {
    const OPEN_TO_ALL: u32 = 0o1002;

    if is_trusted(&directory.metadata()?, None) {
        return Ok(false);
    }
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
    #[cfg(target_os = "linux")]
    let flags = flags | OFlags::PATH;
    let parent = File::from(openat(directory, c"..", flags, Mode::empty())?);
    Ok(parent.metadata()?.mode() & OPEN_TO_ALL == OPEN_TO_ALL)
}

/// Opens an existing file as [`open_to_lock`] does; returns `None` if nothing exists at `path`.
pub(crate) fn open_to_look(path: &Path) -> io::Result<Option<File>> {
    match open_any(path, OFlags::empty()) {
        Ok(file) => Ok(Some(file)),
        Err(err) if err.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(err) => Err(err),
    }
}

fn open_any(path: &Path, flags: OFlags) -> io::Result<File> {
    let wait = mutant!(PipesWaitedFor, OFlags::empty(), OFlags::NONBLOCK);
    let flags = flags | wait | OFlags::NOCTTY | OFlags::CLOEXEC;
    File::options()
        .read(true)
        .mode(0o600)
        .custom_flags(flag_bits(flags))
        .open(path)
}

/// Disables copy-on-write for `file`, which is empty, so that later writes need no disk space: btrfs(5),
/// `chattr +C`. If this fails, operations fail only when the disk is full.
#[cfg(target_os = "linux")]
fn disable_copy_on_write(file: &File) {
    use rustix::fs::{IFlags, fstatfs, ioctl_getflags, ioctl_setflags};

    if fstatfs(file).is_ok_and(|found| kind_of(&found) == BTRFS)
        && let Ok(flags) = ioctl_getflags(file)
    {
        let _ = ioctl_setflags(file, flags | IFlags::NOCOW);
    }
}

#[cfg(not(target_os = "linux"))]
fn disable_copy_on_write(_file: &File) {}

/// Creates an unnamed file in `directory`, if the file system supports it.
#[cfg(target_os = "linux")]
fn unnamed(directory: &File) -> io::Result<Option<File>> {
    let flags = OFlags::WRONLY | OFlags::TMPFILE | OFlags::CLOEXEC;
    match openat(directory, c".", flags, Mode::RUSR | Mode::WUSR) {
        Ok(file) => Ok(Some(file.into())),
        Err(Errno::OPNOTSUPP | Errno::ISDIR) => Ok(None),
        Err(err) => Err(err.into()),
    }
}

/// Gives an unnamed file a name, in the way that needs no privilege: see `O_TMPFILE` in open(2).
#[cfg(target_os = "linux")]
fn link_unnamed(file: &File, directory: &File, name: &Path) -> io::Result<()> {
    use std::os::fd::AsRawFd;

    use rustix::fs::CWD;

    let source = format!("/proc/self/fd/{}", file.as_raw_fd());
    Ok(linkat(
        CWD,
        source,
        directory,
        name,
        AtFlags::SYMLINK_FOLLOW,
    )?)
}

#[cfg(not(target_os = "linux"))]
fn unnamed(_directory: &File) -> io::Result<Option<File>> {
    Ok(None)
}

#[cfg(not(target_os = "linux"))]
fn link_unnamed(_file: &File, _directory: &File, _name: &Path) -> io::Result<()> {
    Err(io::ErrorKind::Unsupported.into())
}

/// Returns why a file in a store's directory, which may have `names`, is not trusted; `None` if it is trusted.
pub(crate) fn suspicion(
    file: &File,
    group: Option<u32>,
    names: Names,
) -> io::Result<Option<String>> {
    let metadata = file.metadata()?;
    let kind = metadata.file_type();
    Ok(
        if kind.is_fifo()
            || kind.is_socket()
            || kind.is_block_device()
            || kind.is_char_device()
            || !kind.is_file()
        {
            Some("it is not a regular file".to_owned())
        } else if !is_trusted(&metadata, group) {
            Some(format!("it belongs to user {}", metadata.uid()))
        } else if names == Names::One && metadata.nlink() > 1 && !mutant!(HardLinksAccepted) {
            Some("it has a second name (a hard link)".to_owned())
        } else {
            None
        },
    )
}

/// Returns whether `file` belongs to this user, or this user is root.
pub(crate) fn is_owned(file: &File) -> io::Result<bool> {
    let user = geteuid();
    Ok(user.is_root() || walk::is_one_user(file.metadata()?.uid(), user.as_raw()))
}

/// Returns whether a file belongs to this user, to root, or to `group`.
pub(crate) fn is_trusted(metadata: &Metadata, group: Option<u32>) -> bool {
    walk::is_trusted_by(metadata, geteuid().as_raw(), group)
}

/// Returns the name of the file system of `file`, if locks may not work on it.
///
/// Locks work on file systems that only this machine uses (statfs(2) lists their numbers). On others, each
/// client may keep its own flock(2) locks, or locks are lost with a connection.
#[cfg(target_os = "linux")]
pub(crate) fn unsuitable_file_system(file: &File) -> io::Result<Option<String>> {
    Ok(unsuitable(&rustix::fs::fstatfs(file)?))
}

#[cfg(target_os = "linux")]
fn unsuitable(found: &rustix::fs::StatFs) -> Option<String> {
    const LOCAL: [i64; 14] = [
        0x0000_ef53, // ext2, ext3, ext4
        0x5846_5342, // xfs
        BTRFS,
        0x0102_1994, // tmpfs
        0x8584_58f6, // ramfs
        0x794c_7630, // overlayfs
        0xf2f5_2010, // f2fs
        0x2fc1_2fc1, // zfs
        0xca45_1a4e, // bcachefs
        0x3153_464a, // jfs
        0x5265_4973, // reiserfs
        0x0000_3434, // nilfs2
        0x2405_1905, // ubifs
        0x0000_4d44, // vfat
    ];
    let kind = kind_of(found);
    let name = match kind {
        _ if LOCAL.contains(&kind) => return None,
        0x0000_6969 => "NFS".to_owned(),
        0x6573_5546 => "FUSE".to_owned(),
        0xff53_4d42 | 0xfe53_4d42 | 0x0000_517b => "SMB".to_owned(),
        0x0102_1997 => "9P".to_owned(),
        0x00c3_6400 => "Ceph".to_owned(),
        0x0bd0_0bd0 => "Lustre".to_owned(),
        _ => format!("an unknown file system ({kind:#x})"),
    };
    Some(name)
}

/// Returns whether a file of /proc is the kernel's own, and not one that was mounted over it.
#[cfg(target_os = "linux")]
pub(crate) fn is_kernels(file: &File) -> bool {
    const PROC: i64 = 0x9fa0;

    // If this cannot be determined, assume the kernel's own file.
    rustix::fs::fstatfs(file).map_or(true, |found| kind_of(&found) == PROC)
}

#[cfg(not(target_os = "linux"))]
pub(crate) fn is_kernels(_file: &File) -> bool {
    true
}

#[cfg(target_os = "linux")]
const BTRFS: i64 = 0x9123_683e;

/// Returns the kind of the file system: statfs(2).
#[cfg(target_os = "linux")]
fn kind_of(found: &rustix::fs::StatFs) -> i64 {
    #[allow(
        clippy::useless_conversion,
        reason = "the field's type differs by machine"
    )]
    // A field of 32 bits is negative for large numbers.
    let kind = i64::from(found.f_type) & 0xffff_ffff;
    kind
}

#[cfg(not(target_os = "linux"))]
pub(crate) fn unsuitable_file_system(_file: &File) -> io::Result<Option<String>> {
    Ok(None)
}

/// Returns the process that acquired the kernel's lock on `file` exclusively, if the kernel reports it:
/// proc(5), `/proc/locks`. The process may have ended if a child of it keeps the lock.
#[cfg(target_os = "linux")]
pub(crate) fn locker(file: &File) -> io::Result<Option<u32>> {
    // Locks that other processes acquire and release meanwhile move the lines, so a line can be missed.
    const TRIES: usize = 5;

    let metadata = file.metadata()?;
    let (major, minor) = (
        rustix::fs::major(metadata.dev()),
        rustix::fs::minor(metadata.dev()),
    );
    let place = format!("{major:02x}:{minor:02x}:{}", metadata.ino());
    for _ in 0..TRIES {
        let Ok(locks) = kernel_locks() else {
            return Ok(None); // hidden, as in some containers
        };
        let process = locks.lines().find_map(|line| {
            // "1: FLOCK  ADVISORY  WRITE 4711 fe:00:123456 0 EOF"
            let mut words = line.split_whitespace().skip(1);
            let kind = words.next()?;
            let (mode, process, at) = (words.nth(1)?, words.next()?, words.next()?);
            (kind == "FLOCK" && mode == "WRITE" && at == place)
                .then(|| process.parse().ok())
                .flatten()
        });
        if process.is_some() {
            return Ok(process);
        }
    }
    Ok(None)
}

/// Reads `/proc/locks` in as few pieces as possible, because it may change between them.
#[cfg(target_os = "linux")]
fn kernel_locks() -> io::Result<String> {
    use std::io::Read;

    const PIECE: usize = 1 << 16;

    let mut file = File::open("/proc/locks")?;
    let mut locks = Vec::new();
    loop {
        let read = locks.len();
        locks.resize(read + PIECE, 0);
        match file.read(&mut locks[read..]) {
            Ok(0) => {
                locks.truncate(read);
                return Ok(String::from_utf8_lossy(&locks).into_owned());
            }
            Ok(count) => locks.truncate(read + count),
            Err(err) if err.kind() == io::ErrorKind::Interrupted => locks.truncate(read),
            Err(err) => return Err(err),
        }
    }
}

#[cfg(not(target_os = "linux"))]
pub(crate) fn locker(_file: &File) -> io::Result<Option<u32>> {
    Ok(None)
}

/// Reads a file from `offset` on into `buffer`; returns the part that was read. The file is a regular file on
/// this machine, so that a read is short only at its end.
pub(crate) fn read_at<'a>(file: &File, buffer: &'a mut [u8], offset: u64) -> io::Result<&'a [u8]> {
    loop {
        match file.read_at(buffer, offset) {
            Ok(count) => return Ok(&buffer[..count]),
            Err(err) if err.kind() == io::ErrorKind::Interrupted => {}
            Err(err) => return Err(err),
        }
    }
}

/// Writes `bytes` at `offset`.
pub(crate) fn write_at(file: &File, bytes: &[u8], offset: u64) -> io::Result<()> {
    file.write_all_at(bytes, offset)
}

fn flag_bits(flags: OFlags) -> i32 {
    flags.bits().cast_signed()
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::super::Purpose;
    use super::*;

    #[test]
    fn create_leaves_existing_file_unchanged() {
        let temp_dir = tempfile::tempdir().unwrap();
        let access = DirectoryAccess {
            purpose: Purpose::Store,
            group: None,
            create: false,
        };
        let directory = OpenDirectory::open(temp_dir.path(), &access)
            .unwrap()
            .unwrap();
        let path = temp_dir.path().join("file");
        directory.create(Path::new("file"), b"first").unwrap();
        let first = id_at(&path).unwrap();
        directory.create(Path::new("file"), b"second").unwrap();
        assert_eq!(fs::read(&path).unwrap(), b"first");
        assert_eq!(id_at(&path).unwrap(), first);
        assert_eq!(fs::read_dir(temp_dir.path()).unwrap().count(), 1);
    }
}

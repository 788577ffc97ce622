//! Files as Unix has them.

use std::ffi::OsString;
use std::fs::{self, DirBuilder, File, Metadata, Permissions};
use std::io::{self, Write};
use std::os::unix::ffi::OsStringExt;
use std::os::unix::fs::{
    DirBuilderExt, FileExt, FileTypeExt, MetadataExt, OpenOptionsExt, PermissionsExt, fchown,
};
use std::path::Path;
use std::time::UNIX_EPOCH;

use rustix::fs::{Dir, Mode, OFlags};
#[cfg(target_os = "linux")]
use rustix::io::Errno;
use rustix::io::fcntl_dupfd_cloexec;
use rustix::process::{Resource, getrlimit};

/// Which file it is, whatever it is called.
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

/// The file that was opened.
pub(crate) fn id(file: &File) -> io::Result<FileId> {
    Ok((&file.metadata()?).into())
}

/// A number that tells this file from its copies, put back in its place or not: they have other
/// inodes, or inodes of another generation, or of another time of birth, where the file system has such.
pub(crate) fn number(file: &File) -> io::Result<u64> {
    let metadata = file.metadata()?;
    let born = metadata.created().ok();
    let born = born.and_then(|born| born.duration_since(UNIX_EPOCH).ok());
    let nanos = born.and_then(|born| u64::try_from(born.as_nanos()).ok());
    // The times of neighbours differ little, and so do their inodes.
    let number = metadata.ino().rotate_left(32) ^ nanos.unwrap_or_default();
    Ok(number ^ generation(file).rotate_left(16))
}

/// A number that is drawn whenever a file is given the inode of one that is gone, or zero where there
/// is no such: several of these can be born in one tick of the file system's clock.
#[cfg(target_os = "linux")]
#[expect(
    unsafe_code,
    reason = "rustix has no call of its own for it, and cannot know what the kernel writes"
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

/// What the files in a folder are called. The standard library would panic when the folder could not
/// be closed.
pub(crate) fn names(path: &Path) -> io::Result<Vec<OsString>> {
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
    let folder = rustix::fs::open(path, flags, Mode::empty())?;
    let mut names = Vec::new();
    for entry in Dir::new(folder)? {
        let name = entry?.file_name().to_bytes().to_owned();
        if name != b"." && name != b".." {
            names.push(OsString::from_vec(name));
        }
    }
    Ok(names)
}

/// The file that is at `path` now, or where a symbolic link there leads.
pub(crate) fn id_at(path: &Path) -> io::Result<Option<FileId>> {
    match id_of(path) {
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

/// Asks for the number alone: who asks for a file's times makes the next write to it update them on
/// the disk, which costs several times what the write does (multigrain timestamps, Linux 6.13).
#[cfg(target_os = "linux")]
fn id_of(path: &Path) -> io::Result<FileId> {
    use rustix::fs::{AtFlags, CWD, StatxFlags, makedev, statx};

    match statx(CWD, path, AtFlags::empty(), StatxFlags::INO) {
        Ok(found) => Ok(FileId {
            device: makedev(found.stx_dev_major, found.stx_dev_minor),
            inode: found.stx_ino,
        }),
        // Older than Linux 4.11, or forbidden by a sandbox.
        Err(Errno::NOSYS | Errno::PERM) => Ok((&fs::metadata(path)?).into()),
        Err(err) => Err(err.into()),
    }
}

/// Whether the file still has a name.
#[cfg(target_os = "linux")]
pub(crate) fn is_linked(file: &File) -> io::Result<bool> {
    use rustix::fs::{AtFlags, StatxFlags, statx};

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

#[cfg(not(target_os = "linux"))]
fn id_of(path: &Path) -> io::Result<FileId> {
    Ok((&fs::metadata(path)?).into())
}

/// Opens one of a store's files, without following a link, waiting for a pipe's other end,
/// taking over a terminal or changing anything; `None` when there is none.
pub(crate) fn open(path: &Path) -> io::Result<Option<File>> {
    open_for(path, true)
}

/// Opens the file as [`open`] does, read-only, to read and to lock it.
pub(crate) fn open_read_only(path: &Path) -> io::Result<Option<File>> {
    open_for(path, false)
}

fn open_for(path: &Path, writing: bool) -> io::Result<Option<File>> {
    let follow = mutant!(LinksFollowed, OFlags::empty(), OFlags::NOFOLLOW);
    let flags = follow | OFlags::NONBLOCK | OFlags::NOCTTY | OFlags::CLOEXEC;
    let file = File::options()
        .read(true)
        .write(writing)
        .truncate(writing && mutant!(FilesTruncatedByOpening))
        .custom_flags(flag_bits(flags))
        .open(path);
    match file {
        Ok(file) if mutant!(FilesInherited) => Ok(Some(rustix::io::dup(file)?.into())),
        Ok(file) => Ok(Some(file)),
        Err(err) if err.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(err) => Err(err),
    }
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
        Err(err) if err.kind() == io::ErrorKind::IsADirectory => open_any(path, OFlags::empty()),
        opened => opened,
    }
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

/// Creates a complete file with these bytes at `path`, for this user or this group alone. Leaves an
/// existing file as it is.
///
/// The file gets its name only after its contents are synced to the disk. Where the system has no
/// unnamed files, it has a temporary name until then.
pub(crate) fn create(path: &Path, bytes: &[u8], group: Option<u32>) -> io::Result<()> {
    let finish = |file: &mut File| {
        let mode = if group.is_some() { 0o660 } else { 0o600 };
        fchown(&*file, None, group)?;
        file.set_permissions(Permissions::from_mode(mode))?;
        let_be_written_in_place(file);
        file.write_all(bytes)?;
        file.sync_data()
    };
    if mutant!(FilesReplacedByCreating) {
        fs::remove_file(path).ok();
    }
    let named = || {
        let mut file = tempfile::NamedTempFile::new_in(parent(path))?;
        finish(file.as_file_mut())?;
        file.persist_noclobber(path)
            .map(drop)
            .map_err(|err| err.error)
    };
    let linked = if let Some(mut file) = nameless(path)? {
        finish(&mut file)?;
        match link_nameless(&file, path) {
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

/// Lets later writes to `file`, which is empty, need no space, where a file system copies what is
/// written: btrfs(5), `chattr +C`. Without that all goes well, too, until the disk is full.
#[cfg(target_os = "linux")]
fn let_be_written_in_place(file: &File) {
    use rustix::fs::{IFlags, fstatfs, ioctl_getflags, ioctl_setflags};

    if fstatfs(file).is_ok_and(|found| kind_of(&found) == BTRFS)
        && let Ok(flags) = ioctl_getflags(file)
    {
        let _ = ioctl_setflags(file, flags | IFlags::NOCOW);
    }
}

#[cfg(not(target_os = "linux"))]
fn let_be_written_in_place(_file: &File) {}

/// A file without a name beside `path`, where the file system has such.
#[cfg(target_os = "linux")]
fn nameless(path: &Path) -> io::Result<Option<File>> {
    let flags = flag_bits(OFlags::TMPFILE | OFlags::CLOEXEC);
    let opened = File::options()
        .write(true)
        .mode(0o600)
        .custom_flags(flags)
        .open(parent(path));
    match opened {
        Ok(file) => Ok(Some(file)),
        Err(err)
            if matches!(
                err.kind(),
                io::ErrorKind::Unsupported | io::ErrorKind::IsADirectory
            ) =>
        {
            Ok(None)
        }
        Err(err) => Err(err),
    }
}

/// open(2), on `O_TMPFILE`: the way that needs no privilege.
#[cfg(target_os = "linux")]
fn link_nameless(file: &File, path: &Path) -> io::Result<()> {
    use rustix::fs::{AtFlags, CWD, linkat};
    use std::os::fd::AsRawFd;

    let source = format!("/proc/self/fd/{}", file.as_raw_fd());
    Ok(linkat(CWD, source, CWD, path, AtFlags::SYMLINK_FOLLOW)?)
}

#[cfg(not(target_os = "linux"))]
fn nameless(_path: &Path) -> io::Result<Option<File>> {
    Ok(None)
}

#[cfg(not(target_os = "linux"))]
fn link_nameless(_file: &File, _path: &Path) -> io::Result<()> {
    Err(io::ErrorKind::Unsupported.into())
}

/// Makes the names in a folder survive a loss of power.
pub(crate) fn sync_directory(path: &Path) -> io::Result<()> {
    File::open(path)?.sync_all()
}

/// Creates a folder and those above it, for this user or this group alone.
pub(crate) fn create_directory(path: &Path, group: Option<u32>) -> io::Result<()> {
    if path.is_dir() {
        return Ok(());
    }
    let Some(group) = group else {
        return DirBuilder::new().recursive(true).mode(0o700).create(path);
    };
    // The group has to come by.
    fs::create_dir_all(parent(path))?;
    DirBuilder::new().mode(0o700).create(path)?;
    let directory = File::open(path)?;
    fchown(&directory, None, Some(group))?;
    // New files are the group's, too.
    directory.set_permissions(Permissions::from_mode(0o2770))
}

/// Returns the group for which this user or root [created](create_directory) the directory at `path`,
/// so that files created in it without a group do not lock out the members.
pub(crate) fn group_of_directory(path: &Path) -> Option<u32> {
    let metadata = fs::metadata(path).ok()?;
    let is_shared = metadata.is_dir() && metadata.mode() & 0o7777 == 0o2770;
    (is_shared && is_trusted(&metadata, None)).then(|| metadata.gid())
}

/// Why a file in a store's folder is not to be trusted, if so.
pub(crate) fn suspicion(file: &File, group: Option<u32>) -> io::Result<Option<String>> {
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
        } else if metadata.nlink() > 1 && !mutant!(HardLinksAccepted) {
            Some("it has a second name (a hard link)".to_owned())
        } else {
            None
        },
    )
}

/// Returns whether `file` belongs to this user, or this user is root.
pub(crate) fn is_owned(file: &File) -> io::Result<bool> {
    let user = rustix::process::geteuid();
    Ok(user.is_root() || file.metadata()?.uid() == user.as_raw())
}

/// Why a folder is no place for a store, if so.
pub(crate) fn suspicious_directory(path: &Path, group: Option<u32>) -> io::Result<Option<String>> {
    const WORLD_WRITABLE: u32 = 0o002;
    const STICKY: u32 = 0o1000;

    let metadata = fs::metadata(path)?;
    let mode = metadata.mode();
    let is_open = mode & WORLD_WRITABLE != 0 && mode & STICKY == 0;
    Ok(if is_open && !mutant!(OpenFoldersAccepted) {
        Some("every user may remove files from it (chmod o-w, or +t)".to_owned())
    } else if mode & WORLD_WRITABLE != 0 && group.is_some() {
        // In a folder that is set-group-ID, whoever makes a file.
        Some("every user may make files of the group in it (chmod o-w)".to_owned())
    } else if !is_trusted(&metadata, group) {
        Some(format!("it belongs to user {}", metadata.uid()))
    } else {
        None
    })
}

/// Whether it belongs to this user, to root, or to this group.
pub(crate) fn is_trusted(metadata: &Metadata, group: Option<u32>) -> bool {
    let user = rustix::process::geteuid().as_raw();
    metadata.uid() == user
        || metadata.uid() == 0
        || group == Some(metadata.gid())
        || mutant!(OthersTrusted)
}

/// Why locks do not work on the file system of `path`, if that is to be feared.
///
/// Known to work are those that live on this machine alone (statfs(2) has the numbers). On others
/// flock(2) is kept by each client for itself, or is lost with a connection.
#[cfg(target_os = "linux")]
pub(crate) fn unsuitable_file_system(path: &Path) -> io::Result<Option<String>> {
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
    let kind = kind_of(&rustix::fs::statfs(path)?);
    let name = match kind {
        _ if LOCAL.contains(&kind) => return Ok(None),
        0x0000_6969 => "NFS".to_owned(),
        0x6573_5546 => "FUSE".to_owned(),
        0xff53_4d42 | 0xfe53_4d42 | 0x0000_517b => "SMB".to_owned(),
        0x0102_1997 => "9P".to_owned(),
        0x00c3_6400 => "Ceph".to_owned(),
        0x0bd0_0bd0 => "Lustre".to_owned(),
        _ => format!("an unknown file system ({kind:#x})"),
    };
    Ok(Some(name))
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

/// What kind of file system it is: statfs(2).
#[cfg(target_os = "linux")]
fn kind_of(found: &rustix::fs::StatFs) -> i64 {
    #[allow(
        clippy::useless_conversion,
        reason = "the field's type differs by machine"
    )]
    // Where it is 32 bits wide, it is negative for large numbers.
    let kind = i64::from(found.f_type) & 0xffff_ffff;
    kind
}

#[cfg(not(target_os = "linux"))]
pub(crate) fn unsuitable_file_system(_path: &Path) -> io::Result<Option<String>> {
    Ok(None)
}

/// The process that took the kernel's lock on `file` alone, if the kernel tells: proc(5),
/// `/proc/locks`. It may have ended, when a child of it keeps the lock.
#[cfg(target_os = "linux")]
pub(crate) fn locker(file: &File) -> io::Result<Option<u32>> {
    // What others lock and unlock meanwhile moves the lines about, and one can be missed.
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

/// `/proc/locks`, in as few pieces as can be: it may change between them.
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

/// Reads a file from `offset` on into `buffer`; returns as much of that as the file fills. It is a
/// regular file on this machine, of which a read is short at its end alone.
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

fn parent(path: &Path) -> &Path {
    match path.parent() {
        Some(parent) if !parent.as_os_str().is_empty() => parent,
        _ => Path::new("."),
    }
}

fn flag_bits(flags: OFlags) -> i32 {
    flags.bits().cast_signed()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn creating_leaves_what_is_there_already() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("file");
        create(&path, b"first", None).unwrap();
        let first = id_at(&path).unwrap();
        create(&path, b"second", None).unwrap();
        assert_eq!(fs::read(&path).unwrap(), b"first");
        assert_eq!(id_at(&path).unwrap(), first);
        assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 1);
    }
}

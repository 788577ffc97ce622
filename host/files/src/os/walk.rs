//! Opens a directory by descriptors, from the root down, and rejects a path that other users can change.
//!
//! Each component is opened relative to the one before, with `O_NOFOLLOW`, and is examined through its
//! own descriptor, so that what is examined is what is used. A symbolic link is read and followed only
//! if it and its directory are trusted. The rules are those of systemd's `CHASE_SAFE` and of OpenSSH's
//! `StrictModes`.
//!
//! Why no crate does this: `fs-mistrust` examines names, not descriptors (its documentation refers to
//! openat(2) for that); `cap-std` and `pathrs` keep a resolution below a directory, and examine no owner.

use std::ffi::{OsStr, OsString};
use std::fs::{self, File, Metadata, Permissions};
use std::io;
use std::os::unix::ffi::OsStringExt;
use std::os::unix::fs::{MetadataExt, PermissionsExt, fchown};
use std::path::{Component, Path, PathBuf};

use rustix::fs::{CWD, Mode, OFlags, mkdirat, openat, readlinkat};
use rustix::process::{getegid, geteuid};

use super::names_in;
use crate::os::{DirectoryAccess, DirectoryError, Purpose};

const STICKY: u32 = 0o1000;
const SET_GROUP_ID: u32 = 0o2000;
const GROUP_WRITABLE: u32 = 0o020;
const WORLD_WRITABLE: u32 = 0o002;

/// The permissions of a directory that is shared with a group. Files in it belong to the group, too.
const SHARED: u32 = 0o2770;

/// The number that stands for all users, or groups, that a user namespace does not map: see
/// `user_namespaces(7)`.
const OVERFLOW: u32 = 65_534;

const OPEN_TO_ALL_FOR_GROUP: &str = "every user may create files of the group in it (chmod o-w)";

/// The flags of a descriptor that only names a directory, which needs no permission to read it.
#[cfg(target_os = "linux")]
const NAMED: OFlags = OFlags::PATH;
#[cfg(not(target_os = "linux"))]
const NAMED: OFlags = OFlags::DIRECTORY;

/// A directory at the end of a walk.
pub(super) struct Walked {
    pub(super) parent: File,
    pub(super) directory: File,
    /// Its name in `parent`.
    pub(super) name: PathBuf,
    /// Its path, without links.
    pub(super) path: PathBuf,
    /// The group that shares it.
    pub(super) group: Option<u32>,
}

/// A component of a path.
enum Entry {
    Directory(File, Metadata),
    Link { target: OsString, owner: u32 },
}

/// A directory on the path, and the other users that may change it.
struct Way<'a> {
    access: &'a DirectoryAccess,
    user: u32,
    current: File,
    metadata: Metadata,
    /// The directory that `current` is in, if it was entered from there.
    parent: Option<File>,
    path: PathBuf,
    /// Whether all directories so far belong to this user, to root, or to users that this user namespace
    /// does not map, and no other user may write any of them. An owner that is not mapped is then root, as
    /// far as can be determined.
    trusts_unmapped: bool,
    /// A directory that a group may write, and the group. It is trusted if the store's directory is
    /// shared with this group.
    group_writable: Option<(PathBuf, u32)>,
}

/// Opens the directory at `path`, an absolute path, and creates it if `access.create` is set. Returns
/// `None` if it does not exist.
pub(super) fn open(
    path: &Path,
    access: &DirectoryAccess,
) -> Result<Option<Walked>, DirectoryError> {
    /// As many links as the kernel follows in one path (`path_resolution(7)`).
    const MOST_LINKS: usize = 40;
    /// Each attempt fails only if another process removes what this one has just created.
    const MOST_ATTEMPTS: usize = 100;

    let opening = DirectoryError::io("open this directory");
    let mut way = Way::from_root(access)?;
    let mut left = components(path);
    let (mut links, mut attempts) = (0, 0);
    way.check_ancestor(left.is_empty())?;
    while let Some(name) = left.pop() {
        if name == ".." {
            way.leave().map_err(&opening)?;
            way.check_ancestor(left.is_empty())?;
            continue;
        }
        match entry(&way.current, &name) {
            Ok(Entry::Directory(directory, metadata)) => {
                way.enter(&name, directory, metadata);
                way.check_ancestor(left.is_empty())?;
            }
            Ok(Entry::Link { target, owner }) => {
                way.check_link(&name, owner)?;
                links += 1;
                if links > MOST_LINKS {
                    let endless = io::Error::from(rustix::io::Errno::LOOP);
                    return Err(opening(endless));
                }
                let target = Path::new(&target);
                if target.is_absolute() {
                    way = Way {
                        group_writable: way.group_writable,
                        ..Way::from_root(access)?
                    };
                }
                left.extend(components(target));
            }
            Err(err) if err.kind() == io::ErrorKind::NotFound => {
                attempts += 1;
                if !access.create || attempts > MOST_ATTEMPTS {
                    return Ok(None);
                }
                way.make(&name, left.is_empty())?;
                left.push(name);
            }
            Err(err) => return Err(opening(err)),
        }
    }
    let group = way.check_last()?;
    way.walked(group).map(Some).map_err(opening)
}

/// Opens the directory `name` in `directory`, whose path is `path`, and creates it if `access.create` is set. Returns
/// `None` if it does not exist. Does not follow a link.
pub(super) fn open_below(
    directory: &File,
    path: &Path,
    name: &OsStr,
    access: &DirectoryAccess,
) -> Result<Option<Walked>, DirectoryError> {
    let opening = DirectoryError::io("open this directory");
    let mut way = Way {
        access,
        user: geteuid().as_raw(),
        trusts_unmapped: false,
        current: directory.try_clone().map_err(&opening)?,
        metadata: directory.metadata().map_err(&opening)?,
        parent: None,
        path: path.to_owned(),
        group_writable: None,
    };
    loop {
        match entry(&way.current, name) {
            Ok(Entry::Directory(found, metadata)) => {
                way.enter(name, found, metadata);
                break;
            }
            Ok(Entry::Link { .. }) => {
                return Err(DirectoryError::Untrusted {
                    path: path.join(name),
                    why: "it is a link".to_owned(),
                });
            }
            Err(err) if err.kind() == io::ErrorKind::NotFound && access.create => {
                way.make(name, true)?;
            }
            Err(err) if err.kind() == io::ErrorKind::NotFound => return Ok(None),
            Err(err) => return Err(opening(err)),
        }
    }
    let group = way.check_last()?;
    way.walked(group).map(Some).map_err(opening)
}

/// Returns the components of `path`, the last one first.
fn components(path: &Path) -> Vec<OsString> {
    let names = path.components().filter_map(|component| match component {
        Component::Normal(name) => Some(name.to_owned()),
        Component::ParentDir => Some("..".into()),
        Component::Prefix(_) | Component::RootDir | Component::CurDir => None,
    });
    let mut names: Vec<_> = names.collect();
    names.reverse();
    names
}

fn named(directory: &File, name: &OsStr, flags: OFlags) -> io::Result<File> {
    let flags = flags | NAMED | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    Ok(openat(directory, name, flags, Mode::empty())?.into())
}

#[cfg(target_os = "linux")]
fn is_no_directory(err: &io::Error) -> bool {
    use rustix::io::Errno;

    matches!(Errno::from_io_error(err), Some(Errno::NOTDIR | Errno::LOOP))
}

/// Opens the entry `name` of `directory`, which may be a link. Only the attempt to open a directory has an
/// automount point mounted (`automount(8)`, `systemd.automount(5)`).
#[cfg(target_os = "linux")]
fn entry(directory: &File, name: &OsStr) -> io::Result<Entry> {
    let file = match named(directory, name, OFlags::DIRECTORY) {
        Err(err) if is_no_directory(&err) => named(directory, name, OFlags::empty())?,
        named => named?,
    };
    let metadata = file.metadata()?;
    let kind = metadata.file_type();
    if kind.is_symlink() {
        let target = readlinkat(&file, c"", Vec::new())?;
        return Ok(Entry::Link {
            target: OsString::from_vec(target.into_bytes()),
            owner: metadata.uid(),
        });
    }
    if kind.is_dir() {
        return Ok(Entry::Directory(file, metadata));
    }
    Err(io::ErrorKind::NotADirectory.into())
}

/// Opens the entry `name` of `directory`. A link cannot be opened here: its owner is that of the link at
/// the time before it was read.
#[cfg(not(target_os = "linux"))]
fn entry(directory: &File, name: &OsStr) -> io::Result<Entry> {
    use rustix::fs::{AtFlags, FileType, statat};

    let found = statat(directory, name, AtFlags::SYMLINK_NOFOLLOW)?;
    if FileType::from_raw_mode(found.st_mode) == FileType::Symlink {
        let target = readlinkat(directory, name, Vec::new())?;
        return Ok(Entry::Link {
            target: OsString::from_vec(target.into_bytes()),
            owner: found.st_uid,
        });
    }
    let file = named(directory, name, OFlags::DIRECTORY)?;
    let metadata = file.metadata()?;
    Ok(Entry::Directory(file, metadata))
}

impl<'a> Way<'a> {
    fn from_root(access: &'a DirectoryAccess) -> Result<Self, DirectoryError> {
        let opening = DirectoryError::io("open this directory");
        let flags = NAMED | OFlags::DIRECTORY | OFlags::CLOEXEC;
        let root = openat(CWD, c"/", flags, Mode::empty()).map_err(|err| opening(err.into()))?;
        let root = File::from(root);
        let metadata = root.metadata().map_err(opening)?;
        Ok(Self {
            access,
            user: geteuid().as_raw(),
            trusts_unmapped: true,
            current: root,
            metadata,
            parent: None,
            path: "/".into(),
            group_writable: None,
        })
    }

    fn enter(&mut self, name: &OsStr, directory: File, metadata: Metadata) {
        self.parent = Some(std::mem::replace(&mut self.current, directory));
        self.metadata = metadata;
        self.path.push(name);
    }

    /// Returns to the parent directory.
    fn leave(&mut self) -> io::Result<()> {
        let above = named(&self.current, OsStr::new(".."), OFlags::DIRECTORY)?;
        self.metadata = above.metadata()?;
        self.current = above;
        self.parent = None;
        self.path.pop();
        Ok(())
    }

    /// Creates the directory `name`, the last one of the path or an earlier one, for this user or for the
    /// group alone.
    fn make(&self, name: &OsStr, is_last: bool) -> Result<(), DirectoryError> {
        let creating = DirectoryError::io("create this directory");
        let group = self.access.group.or_else(|| self.group_of_records());
        self.refuse_group_writable(group)?;
        // The group needs to pass through a directory on the path, and no other user needs to write there.
        let mode = if group.is_some() && !is_last {
            0o755
        } else {
            0o700
        };
        match mkdirat(&self.current, name, Mode::from_raw_mode(mode)) {
            Ok(()) => {}
            Err(rustix::io::Errno::EXIST) => return Ok(()),
            Err(err) => return Err(creating(err.into())),
        }
        match group {
            Some(group) if is_last => self.share(name, group).map_err(creating),
            _ => Ok(()),
        }
    }

    /// Gives the directory `name`, which this process has just created, to `group`. A user that may write the
    /// parent directory may have put something else in its place, so only an empty directory of this user is
    /// given to the group.
    fn share(&self, name: &OsStr, group: u32) -> io::Result<()> {
        let follow = mutant!(MadeFolderNotExamined, OFlags::empty(), OFlags::NOFOLLOW);
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC | follow;
        let made = match openat(&self.current, name, flags, Mode::empty()) {
            Ok(made) => File::from(made),
            // The walk examines what is there.
            Err(rustix::io::Errno::LOOP | rustix::io::Errno::NOTDIR | rustix::io::Errno::NOENT) => {
                return Ok(());
            }
            Err(err) => return Err(err.into()),
        };
        let metadata = made.metadata()?;
        let is_ours = metadata.uid() == self.user && names_in(&made)?.is_empty();
        if is_ours || mutant!(MadeFolderNotExamined) {
            fchown(&made, None, Some(group))?;
            made.set_permissions(Permissions::from_mode(SHARED))?;
        }
        Ok(())
    }

    /// Rejects a directory on the path in which other users can replace the next directory.
    fn check_ancestor(&mut self, is_last: bool) -> Result<(), DirectoryError> {
        if is_last || mutant!(AncestorsTrusted) {
            return Ok(());
        }
        let mode = self.metadata.mode();
        let (owner, group) = (self.metadata.uid(), self.metadata.gid());
        if !self.is_trusted_unmapped(owner) && !self.has_trusted_owner() {
            return self.refuse(belongs_to(owner));
        }
        let gives_group = mode & SET_GROUP_ID != 0 || cfg!(not(target_os = "linux"));
        if mode & WORLD_WRITABLE != 0 && gives_group && self.access.group == Some(group) {
            // A file that any user creates in it belongs to the group, and so would be trusted.
            return self.refuse(OPEN_TO_ALL_FOR_GROUP.to_owned());
        }
        let is_others = owner != 0 && !self.is_us(owner) && owner != OVERFLOW;
        if is_others || mode & (WORLD_WRITABLE | GROUP_WRITABLE) != 0 {
            self.trusts_unmapped &= mutant!(UnmappedTrustedInTmp);
        }
        if mode & STICKY != 0 {
            return Ok(());
        }
        if mode & WORLD_WRITABLE != 0 {
            return self
                .refuse("every user may replace what is in it (chmod o-w, or +t)".to_owned());
        }
        if mode & GROUP_WRITABLE != 0 && !self.is_trusted_group(group)? {
            match &self.group_writable {
                Some((_, other)) if *other != group => {
                    return self.refuse(writable_by_group(group, ""));
                }
                Some(_) => {}
                None => self.group_writable = Some((self.path.clone(), group)),
            }
        }
        Ok(())
    }

    /// Rejects the link `name` in this directory if another user has created it. A member of a group is
    /// another user.
    fn check_link(&self, name: &OsStr, owner: u32) -> Result<(), DirectoryError> {
        let is_trusted = owner == 0 || self.is_us(owner) || self.is_trusted_unmapped(owner);
        if is_trusted || mutant!(OthersFolderLinksFollowed) {
            return Ok(());
        }
        Err(DirectoryError::Untrusted {
            path: self.path.join(name),
            why: format!("it is a link, and {}", belongs_to(owner)),
        })
    }

    /// Rejects the last directory if other users can write it; returns the group that shares it.
    fn check_last(&self) -> Result<Option<u32>, DirectoryError> {
        let mode = self.metadata.mode();
        let group = self.group();
        if mode & WORLD_WRITABLE != 0 && mode & STICKY == 0 && !mutant!(OpenFoldersAccepted) {
            return self.refuse("every user may remove files from it (chmod o-w)".to_owned());
        }
        if mode & WORLD_WRITABLE != 0 && group.is_some() {
            // In a set-group-ID directory, a file belongs to the group, whichever user creates it.
            return self.refuse(OPEN_TO_ALL_FOR_GROUP.to_owned());
        }
        if !self.has_trusted_owner() {
            return self.refuse(belongs_to(self.metadata.uid()));
        }
        let is_store = self.access.purpose != Purpose::Gate;
        if mode & WORLD_WRITABLE != 0 && is_store && !mutant!(StickyFoldersAccepted) {
            return self.refuse(
                "every user may create files in it, and so keep every lock from all others; use a directory \
                 of your own, such as a new one in it, or one of a group with --group"
                    .to_owned(),
            );
        }
        let owners = self.metadata.gid();
        if mode & GROUP_WRITABLE != 0 && group != Some(owners) && !self.is_trusted_group(owners)? {
            let share = format!(", or share it: --group {owners}");
            return self.refuse(writable_by_group(owners, &share));
        }
        self.refuse_group_writable(group)?;
        Ok(group)
    }

    /// Rejects a directory on the path that a group other than `group` may write.
    fn refuse_group_writable(&self, group: Option<u32>) -> Result<(), DirectoryError> {
        match &self.group_writable {
            Some((path, writer)) if Some(*writer) != group => Err(DirectoryError::Untrusted {
                path: path.clone(),
                why: writable_by_group(*writer, ""),
            }),
            _ => Ok(()),
        }
    }

    fn refuse<T>(&self, why: String) -> Result<T, DirectoryError> {
        Err(DirectoryError::Untrusted {
            path: self.path.clone(),
            why,
        })
    }

    /// Returns the group of the last directory: the one given by the user, or the one for which this
    /// user or root created the directory, so that members can open new files.
    fn group(&self) -> Option<u32> {
        let implied = || self.shared_group(&self.metadata);
        let of_parent = || {
            let parent = self.parent.as_ref()?.metadata().ok()?;
            let is_records = self.access.purpose == Purpose::Records;
            self.shared_group(&parent).filter(|_| is_records)
        };
        self.access.group.or_else(implied).or_else(of_parent)
    }

    /// Returns the group of a directory of records that is created in this directory, which is that of
    /// a store.
    fn group_of_records(&self) -> Option<u32> {
        let is_records = self.access.purpose == Purpose::Records;
        self.shared_group(&self.metadata).filter(|_| is_records)
    }

    /// Returns the group for which this user or root created a directory.
    fn shared_group(&self, metadata: &Metadata) -> Option<u32> {
        let is_shared = metadata.mode() & 0o7777 == SHARED;
        let is_ours = metadata.uid() == 0 || self.is_us(metadata.uid());
        (is_shared && is_ours).then(|| metadata.gid())
    }

    fn is_us(&self, user: u32) -> bool {
        is_one_user(user, self.user)
    }

    /// Returns whether `owner` stands for users that are not mapped, and is root, as far as can be
    /// determined.
    fn is_trusted_unmapped(&self, owner: u32) -> bool {
        self.trusts_unmapped && owner == OVERFLOW && !is_mapped(Numbers::Users, owner)
    }

    fn has_trusted_owner(&self) -> bool {
        is_trusted_by(&self.metadata, self.user, self.access.group)
    }

    /// Returns whether all members of `group` are trusted: the user gave this group, or it is root's or
    /// this user's own group.
    fn is_trusted_group(&self, group: u32) -> Result<bool, DirectoryError> {
        if !is_mapped(Numbers::Groups, group) {
            return Ok(false);
        }
        if group == 0 || self.access.group == Some(group) {
            return Ok(true);
        }
        is_private_group(self.user, group)
            .map_err(DirectoryError::io("look up the group of this directory"))
    }

    fn walked(self, group: Option<u32>) -> io::Result<Walked> {
        let (parent, name) = match (self.parent, self.path.file_name()) {
            (_, None) => (self.current.try_clone()?, ".".into()),
            (Some(parent), Some(name)) => (parent, name.into()),
            (None, Some(name)) => (
                named(&self.current, OsStr::new(".."), OFlags::DIRECTORY)?,
                name.into(),
            ),
        };
        Ok(Walked {
            parent,
            directory: self.current,
            name,
            path: self.path,
            group,
        })
    }
}

fn belongs_to(user: u32) -> String {
    if user == OVERFLOW && !is_mapped(Numbers::Users, user) {
        return format!(
            "it belongs to user {user}, which stands for users outside this user namespace; use a directory \
             of your own with --store"
        );
    }
    format!(
        "it belongs to user {user}; use a directory of your own with --store, or run as that user"
    )
}

fn writable_by_group(group: u32, way_out: &str) -> String {
    format!("group {group} may remove files from it (chmod g-w{way_out})")
}

/// Returns whether a file belongs to root, to `user`, which is this process's, or to `group`.
pub(super) fn is_trusted_by(metadata: &Metadata, user: u32, group: Option<u32>) -> bool {
    metadata.uid() == 0
        || is_one_user(metadata.uid(), user)
        || group == Some(metadata.gid()) && is_mapped(Numbers::Groups, metadata.gid())
        || mutant!(OthersTrusted)
}

/// Returns whether `owner` is `user`, and not only the number for all users that this user namespace does
/// not map.
pub(super) fn is_one_user(owner: u32, user: u32) -> bool {
    owner == user && is_mapped(Numbers::Users, user)
}

/// The kinds of numbers that a user namespace maps.
#[derive(Clone, Copy)]
enum Numbers {
    Users,
    Groups,
}

/// Returns whether `number` is one user, or one group. The overflow number is not, unless this user
/// namespace maps all numbers; if that cannot be determined, it is not either.
#[cfg(target_os = "linux")]
fn is_mapped(numbers: Numbers, number: u32) -> bool {
    if number != OVERFLOW || mutant!(UnmappedUsersTrusted) {
        return true;
    }
    let map = match numbers {
        Numbers::Users => "/proc/self/uid_map",
        Numbers::Groups => "/proc/self/gid_map",
    };
    let Ok(map) = fs::read_to_string(map) else {
        return false;
    };
    let words: Vec<_> = map.split_whitespace().collect();
    words == ["0", "0", "4294967295"]
}

#[cfg(not(target_os = "linux"))]
fn is_mapped(_numbers: Numbers, _number: u32) -> bool {
    true
}

/// Returns whether `group` is the private group of `user`, as most distributions create one.
///
/// Users of which `group` is the primary group are not among a group's members. getpwent(3) would list
/// them, but no two threads may use it at a time, and directory services (LDAP) usually list none:
/// /etc/passwd is read instead. Such users of a directory service are not noticed.
fn is_private_group(user: u32, group: u32) -> io::Result<bool> {
    use nix::unistd::{Gid, Group, Uid, User};

    let account = known(User::from_uid(Uid::from_raw(user)))?;
    let account = account.map(|account| Account {
        name: account.name,
        group: account.gid.as_raw(),
    });
    let is_own = account.as_ref().map_or_else(
        || user == group && group == getegid().as_raw(),
        |account| account.group == group,
    );
    if !is_own {
        return Ok(false);
    }
    let members = known(Group::from_gid(Gid::from_raw(group)))?.map(|entry| Members {
        name: entry.name,
        users: entry.mem,
    });
    let users = match fs::read("/etc/passwd") {
        Err(err) if err.kind() == io::ErrorKind::NotFound => Vec::new(),
        users => users?,
    };
    let users = String::from_utf8_lossy(&users);
    Ok(is_of_user_alone(account.as_ref(), members.as_ref())
        && !is_primary_of_other(&users, group, user))
}

/// Returns the result of a lookup, or `None` if there is no such entry: getpwnam(3) lists how this is
/// reported.
fn known<T>(found: nix::Result<Option<T>>) -> io::Result<Option<T>> {
    use nix::errno::Errno;

    match found {
        Err(Errno::ENOENT | Errno::ESRCH) => Ok(None),
        found => Ok(found?),
    }
}

struct Account {
    name: String,
    group: u32,
}

struct Members {
    name: String,
    users: Vec<String>,
}

/// Returns whether a group, which is the user's own, has the user's name and no other member. A user
/// without an account, as by `docker run --user 1000:1000`, has no name.
fn is_of_user_alone(account: Option<&Account>, group: Option<&Members>) -> bool {
    match (account, group) {
        (Some(account), Some(group)) => {
            group.name == account.name && group.users.iter().all(|user| *user == account.name)
        }
        (Some(_), None) => false,
        (None, group) => group.is_none_or(|group| group.users.is_empty()),
    }
}

/// Returns whether `group` is the primary group of a user in `users`, which is passwd(5), other than
/// `user`.
fn is_primary_of_other(users: &str, group: u32, user: u32) -> bool {
    users.lines().any(|line| {
        let mut fields = line.split(':').skip(2);
        let numbers = (fields.next(), fields.next());
        let (Some(other), Some(primary)) = numbers else {
            return false;
        };
        primary.parse() == Ok(group) && other.parse() != Ok(user)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn private_group_has_the_users_name_and_no_other_member() {
        let alice = Account {
            name: "alice".to_owned(),
            group: 1000,
        };
        let group = |name: &str, users: &[&str]| Members {
            name: name.to_owned(),
            users: users.iter().map(|&user| user.to_owned()).collect(),
        };
        let is_private = |members| is_of_user_alone(Some(&alice), Some(&members));
        assert!(is_private(group("alice", &[])));
        assert!(is_private(group("alice", &["alice"])));
        assert!(!is_private(group("alice", &["mallory"])));
        assert!(!is_private(group("staff", &[])));
        assert!(!is_of_user_alone(Some(&alice), None));
        assert!(is_of_user_alone(None, None));
        assert!(is_of_user_alone(None, Some(&group("staff", &[]))));
        assert!(!is_of_user_alone(None, Some(&group("staff", &["mallory"]))));
    }

    #[test]
    fn users_of_a_primary_group_are_its_members() {
        let users =
            "root:x:0:0::/root:/bin/sh\nalice:x:1000:1000::/:/bin/sh\n\n+\nbob:x:1001:1001\n";
        assert!(!is_primary_of_other(users, 1000, 1000));
        let mallory = format!("{users}mallory:x:1002:1000::/:/bin/sh\n");
        assert!(is_primary_of_other(&mallory, 1000, 1000));
        assert!(!is_primary_of_other(&mallory, 1001, 1001));
    }
}

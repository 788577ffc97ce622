//! File systems without a free byte or inode, and a file system that becomes read-only: a held lock can be extended
//! and released, and no lock is granted without a record.
#![cfg(target_os = "linux")]

#[path = "common/namespaces.rs"]
mod namespaces;
#[path = "common/store_calls.rs"]
mod store_calls;

use std::env;
use std::error::Error;
use std::fs::{self, File};
use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::thread;
use std::time::Duration;

use namespaces::{DIRECTORY, in_namespaces};
use store_calls::{done, granted, refused};
use verrou::conformance::waited;
use verrou::{Claim, Store, Ttl};
use verrou_host::{AnyStore, StoreOptions};

const KINDS: [&str; 2] = ["lease", "file"];

/// A kind of file system: the command that creates it in a file of this size, or `None` for tmpfs.
struct FileSystem {
    name: &'static str,
    maker: Option<(&'static [&'static str], u64)>,
}

const EXT4: FileSystem = FileSystem {
    name: "ext4",
    maker: Some((
        &["mkfs.ext4", "-q", "-N", "96", "-e", "remount-ro"],
        16 << 20,
    )),
};

const FILE_SYSTEMS: [FileSystem; 4] = [
    FileSystem {
        name: "tmpfs",
        maker: None,
    },
    EXT4,
    FileSystem {
        name: "xfs",
        maker: Some((&["mkfs.xfs", "-q"], 320 << 20)),
    },
    FileSystem {
        name: "btrfs",
        // Without `--mixed`, it has 60,000 inodes, which take 40 s.
        maker: Some((&["mkfs.btrfs", "-q", "--mixed"], 64 << 20)),
    },
];

impl FileSystem {
    /// Mounts a new file system in `directory` until the end of this process's namespace, and returns its root
    /// directory; `None`, after it has printed the reason, if this machine has no such file systems.
    fn mount(&self, directory: &Path, number: usize) -> Option<PathBuf> {
        let root = directory.join(format!("{}-{number}", self.name));
        fs::create_dir(&root).unwrap();
        let mut mount = Command::new("mount");
        let mut is_made = true;
        match self.maker {
            None => {
                mount.args(["-t", "tmpfs", "-o", "size=256k,nr_inodes=64", "tmpfs"]);
            }
            Some((maker, bytes)) => {
                let image = root.with_extension("image");
                File::create(&image).unwrap().set_len(bytes).unwrap();
                is_made = runs(Command::new(maker[0]).args(&maker[1..]).arg(&image));
                mount.args(["-o", "loop"]).arg(&image);
            }
        }
        if is_made && runs(mount.arg(&root)) {
            return Some(root);
        }
        eprintln!("a full {} is not tested", self.name);
        None
    }
}

/// Runs `command`; returns whether it succeeded, and prints the reason if not.
fn runs(command: &mut Command) -> bool {
    let output = match command.output() {
        Ok(output) if output.status.success() => return true,
        Ok(output) => String::from_utf8_lossy(&output.stderr).into_owned(),
        Err(err) => err.to_string(),
    };
    eprintln!("{}: {}", command.get_program().display(), output.trim());
    false
}

/// Leaves no free byte, and no free inode.
fn fill(root: &Path) {
    let mut ballast = File::create(root.join("ballast")).unwrap();
    let mut is_full = false;
    while !is_full {
        is_full = true;
        for length in [1 << 20, 1 << 16, 4096, 512, 1] {
            while is_written(ballast.write_all(&vec![7; length])) {
                is_full = false;
            }
        }
        // Some of the space that was reserved for these writes may be left.
        is_written(ballast.sync_data());
    }
    let mut inodes = (0..).map(|number| root.join(format!("inode-{number}")));
    while is_written(File::create(inodes.next().unwrap()).map(drop)) {}
}

/// Returns `false` if the file system is full.
fn is_written(written: io::Result<()>) -> bool {
    match written {
        Ok(()) => true,
        Err(err) if err.kind() == io::ErrorKind::StorageFull => false,
        Err(err) => panic!("{err}"),
    }
}

/// Removes what [`fill`] has created.
fn make_room(root: &Path) {
    for entry in fs::read_dir(root).unwrap() {
        let entry = entry.unwrap();
        if entry.file_type().unwrap().is_file() {
            fs::remove_file(entry.path()).unwrap();
        }
    }
}

fn open(kind: &str, root: &Path) -> AnyStore {
    let url = format!("{kind}:{}", root.join("locks").display());
    AnyStore::open(&url.parse().unwrap(), &StoreOptions::default()).unwrap()
}

fn claim(name: &str, owner: u8) -> Claim {
    let ttl = Ttl::new(Duration::from_hours(1)).unwrap();
    store_calls::claim(name, owner).with_ttl(ttl)
}

/// Asserts that an operation failed with an error that contains these texts.
#[track_caller]
fn fails<T>(reply: Result<T, impl Error>, texts: &[&str]) {
    let err = reply.err().expect("an error");
    let mut text = err.to_string();
    let mut cause = err.source();
    while let Some(err) = cause {
        text = format!("{text}: {err}");
        cause = err.source();
    }
    assert!(texts.iter().all(|part| text.contains(part)), "{text}");
}

#[test]
fn held_lock_is_extended_and_released_on_a_full_file_system() {
    let Some(directory) = env::var_os(DIRECTORY) else {
        let name = "held_lock_is_extended_and_released_on_a_full_file_system";
        return in_namespaces("a full file system", name, &["--mount"]);
    };
    for file_system in FILE_SYSTEMS {
        for (number, kind) in KINDS.into_iter().enumerate() {
            let Some(root) = file_system.mount(Path::new(&directory), number) else {
                break;
            };
            let [ours, others] = [(); 2].map(|()| open(kind, &root));
            let (held, free, new) = (claim("held", 1), claim("free", 1), claim("new", 1));
            granted(ours.acquire(&free));
            done(ours.release(&free));
            granted(ours.acquire(&held));
            fill(&root);

            done(ours.extend(&held));
            let waiting = claim("held", 2);
            refused(&others.acquire(&waiting));
            // There is no room for the wake pipe of the waiter.
            let mut waiter = waited(&others, &waiting, Duration::ZERO);
            thread::scope(|scope| {
                scope.spawn(|| {
                    let is_granted = (0..20).any(|_| {
                        waiter.wait(Duration::from_secs(1));
                        others.acquire(&waiting).unwrap().is_granted()
                    });
                    assert!(
                        is_granted,
                        "{}, {kind}: 20 s after its release",
                        root.display()
                    );
                });
                done(ours.release(&held));
            });
            waiter.granted();
            granted(ours.acquire(&free));
            if others.capabilities().force_releases {
                done(others.force_release(&waiting.name, None));
                done(others.force_release(&free.name, None));
            } else {
                done(others.release(&waiting));
                done(ours.release(&free));
            }

            fails(ours.acquire(&new), &["new.", "No space left"]);
            for entry in fs::read_dir(root.join("locks")).unwrap() {
                let entry = entry.unwrap();
                let path = entry.path();
                let name = entry.file_name().into_string().unwrap();
                assert!(!name.starts_with("new"), "{name} is left");
                match path.extension().and_then(|it| it.to_str()) {
                    Some("lease" | "lock") => assert_eq!(entry.metadata().unwrap().len(), 4096),
                    extension => assert!(extension == Some("bell") || name == "fences", "{name}"),
                }
            }
            make_room(&root);
            granted(ours.acquire(&new));
            done(ours.release(&new));
        }
    }
}

/// ext4 becomes read-only after an error.
#[test]
fn no_lock_is_granted_on_a_file_system_that_became_read_only() {
    let Some(directory) = env::var_os(DIRECTORY) else {
        let name = "no_lock_is_granted_on_a_file_system_that_became_read_only";
        return in_namespaces("a read-only file system", name, &["--mount"]);
    };
    for (number, kind) in KINDS.into_iter().enumerate() {
        let Some(root) = EXT4.mount(Path::new(&directory), number) else {
            return;
        };
        let store = open(kind, &root);
        let held = claim("held", 1);
        granted(store.acquire(&held));
        let mut findmnt = Command::new("findmnt");
        findmnt
            .args(["--noheadings", "--output", "SOURCE"])
            .arg(&root);
        let device = String::from_utf8(findmnt.output().unwrap().stdout).unwrap();
        let device = device.trim().trim_start_matches("/dev/");
        let trigger = format!("/sys/fs/ext4/{device}/trigger_fs_error");
        if let Err(err) = fs::write(&trigger, "an error for a test") {
            eprintln!("{trigger}: {err}: a read-only file system is not tested");
            return;
        }

        // A release that cannot be recorded ends the lock anyway.
        let released = store.release(&held);
        if released.is_err() {
            fails(released, &["held."]);
        }
        let other = open(kind, &root);
        match other.holders(&held.name) {
            Ok(holders) => assert_eq!(holders, []),
            // A store opens its files only for writing.
            inspected => fails(inspected, &["held.", "Read-only"]),
        }
        fails(other.acquire(&claim("held", 2)), &["held.", "Read-only"]);
    }
}

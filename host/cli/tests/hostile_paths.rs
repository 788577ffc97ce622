//! Paths that another user can change: links, directories and files put in their place.
#![cfg(target_os = "linux")]

mod common;
#[path = "../../tests/common/store_calls.rs"]
mod store_calls;

use std::fs;
use std::os::unix::fs::{MetadataExt, chown, lchown, symlink};
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::Command;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;

use common::users::{
    ALICE, GROUP, MALLORY, copy_program, directory, entries, has_users, of_group, refused, rights,
    run, set_mode, test_dir, verrou, with_umask,
};
use common::{KINDS, TestDir, code, done, ends_with, eventually, prefixed, stderr, stdout};
use rustix::fs::{CWD, RenameFlags, renameat_with};
use rustix::process::{Gid, Uid};
use rustix::thread::{set_thread_groups, set_thread_res_gid, set_thread_res_uid};
use verrou::{Claim, Store};
use verrou_host::{FileLockStore, LeaseFileStore, OpenError, StoreOptions};

#[test]
fn link_of_another_user_is_not_followed() {
    if !has_users("a link of another user") {
        return;
    }
    for kind in KINDS {
        let dir = test_dir(kind);
        let victim = directory(dir.path("victim"), 0o755, 0, 0);
        let open = directory(dir.path("open"), 0o1777, 0, 0);
        let groups = directory(dir.path("groups"), 0o2775, 0, GROUP);
        for parent in [&open, &groups] {
            let link = parent.join("locks");
            symlink(&victim, &link).unwrap();
            lchown(&link, Some(MALLORY), Some(GROUP)).unwrap();
            for url in [format!("{kind}:{}", link.display()), of_group(kind, &link)] {
                if parent == &groups && !url.contains("group=") {
                    refused(&mut run(&dir, 0, 0, &url), &link, "it is a link");
                    continue;
                }
                refused(&mut run(&dir, 0, 0, &url), &link, "it is a link");
                // The link is also refused as a directory above the store.
                let below = url.replace("/locks", "/locks/below");
                refused(&mut run(&dir, 0, 0, &below), &link, "it is a link");
            }
        }
        assert_eq!(entries(&victim), 0);
        // A link of the user itself, or of root, is followed.
        let link = dir.path("link");
        symlink(&victim, &link).unwrap();
        let url = format!("{kind}:{}", link.join("locks").display());
        ends_with(&mut run(&dir, 0, 0, &url), 0);
        assert!(victim.join("locks").is_dir());
    }
}

#[test]
fn path_through_another_users_directory_is_refused() {
    if !has_users("a directory of another user") {
        return;
    }
    for kind in KINDS {
        let dir = test_dir(kind);
        for (name, mode, owner, group, why) in [
            ("others", 0o755, MALLORY, MALLORY, "user 4712"),
            ("sticky", 0o1777, MALLORY, MALLORY, "user 4712"),
            ("open", 0o777, 0, 0, "every user"),
            ("groups", 0o775, 0, GROUP, "group 4713"),
            ("own", 0o775, ALICE, GROUP, "group 4713"),
        ] {
            let parent = directory(dir.path(name), mode, owner, group);
            let inner = directory(parent.join("inner"), 0o755, ALICE, ALICE);
            for locks in [inner.join("locks"), inner.join("a/b/locks")] {
                let url = format!("{kind}:{}", locks.display());
                refused(&mut run(&dir, ALICE, ALICE, &url), &parent, why);
            }
            assert_eq!(entries(&inner), 0, "{name}");
        }
        // A directory with the sticky bit, and the group of `--group`, are accepted.
        let tmp = directory(dir.path("tmp"), 0o1777, 0, 0);
        let own = directory(tmp.join("own"), 0o700, ALICE, ALICE);
        let url = format!("{kind}:{}", own.join("locks").display());
        ends_with(&mut run(&dir, ALICE, ALICE, &url), 0);
        let shared = of_group(kind, &dir.path("groups/locks"));
        ends_with(&mut run(&dir, ALICE, GROUP, &shared), 0);
        // The group for which the directory was created is accepted, too.
        let shared = format!("{kind}:{}", dir.path("groups/locks").display());
        ends_with(&mut run(&dir, ALICE, GROUP, &shared), 0);
    }
}

/// One planted file would block a lock for all users, and 4,096 pipes would make all waiters poll.
#[test]
fn store_in_a_sticky_directory_is_refused_with_ways_out() {
    if !has_users("a sticky directory") {
        return;
    }
    for kind in KINDS {
        let dir = test_dir(kind);
        let sticky = directory(dir.path("locks"), 0o1777, 0, 0);
        let url = format!("{kind}:{}", sticky.display());
        for user in [0, ALICE] {
            for way_out in ["directory of your own", "--group"] {
                refused(&mut run(&dir, user, user, &url), &sticky, way_out);
            }
        }
        assert_eq!(entries(&sticky), 0);
        let own = format!("{kind}:{}", sticky.join("alice").display());
        ends_with(&mut run(&dir, ALICE, ALICE, &own), 0);
        let shared = of_group(kind, &sticky.join("shared"));
        for member in [ALICE, MALLORY] {
            ends_with(&mut run(&dir, member, GROUP, &shared), 0);
        }
    }
}

/// `sudo -E` and `su` leave the environment of the other user.
#[test]
fn default_store_of_root_is_not_in_another_users_home() {
    if !has_users("the home of another user") {
        return;
    }
    let dir = test_dir("lease");
    let home = directory(dir.path("alice"), 0o755, ALICE, ALICE);
    let victim = directory(dir.path("victim"), 0o755, 0, 0);
    let linked = directory(dir.path("bob"), 0o755, ALICE, ALICE);
    symlink(&victim, linked.join("state")).unwrap();
    lchown(linked.join("state"), Some(ALICE), Some(ALICE)).unwrap();
    for state in [home.join(".local/state"), linked.join("state")] {
        for words in [
            &["run", "k", "--", "true"][..],
            &["acquire", "k"],
            &["serve"],
        ] {
            let mut root = verrou(&dir, 0, 0, words);
            let output = ends_with(root.env("XDG_STATE_HOME", &state), 73);
            for part in ["user 4711", "--store", "VERROU_STORE"] {
                assert!(stderr(&output).contains(part), "{}", stderr(&output));
            }
        }
        // `--file` works, and warns that it records nothing.
        let file = dir.path("app.lock");
        let words = ["run", "--file", file.to_str().unwrap(), "--", "true"];
        let mut root = verrou(&dir, 0, 0, words);
        let output = ends_with(root.env("XDG_STATE_HOME", &state), 0);
        let said = stderr(&output);
        assert!(said.contains("without a fencing token"), "{said}");
    }
    assert_eq!((entries(&home), entries(&victim)), (0, 0));
}

/// A program that has more rights than its caller gets the environment from its caller.
#[test]
fn default_store_of_a_set_user_id_program_is_not_from_the_environment() {
    if !has_users("a set-user-ID program") {
        return;
    }
    let dir = test_dir("lease");
    let program = dir.path("verrou");
    let home = dir.path("chosen");
    let store = |user| {
        let mut command = verrou(&dir, user, user, ["store"]);
        command.env("XDG_STATE_HOME", &home).env("HOME", &home);
        done(&mut command)
    };
    let chosen = format!("lease:{}\n", home.join("verrou").display());
    assert_eq!(stdout(&store(MALLORY)), chosen);
    chown(&program, Some(0), Some(0)).unwrap();
    set_mode(&program, 0o4755);
    let output = store(MALLORY);
    if stdout(&output) == chosen {
        let mounts = done(Command::new("findmnt").arg("--target").arg(&program));
        assert!(stdout(&mounts).contains("nosuid"), "{}", stdout(&mounts));
        eprintln!("no set-user-ID programs here: they are not tested");
        return;
    }
    assert_eq!(stdout(&output), "lease:/var/lib/verrou\n");
    chown(&program, Some(ALICE), Some(ALICE)).unwrap();
    set_mode(&program, 0o4755);
    let output = store(MALLORY);
    assert_eq!(code(&output), 64, "{}", stderr(&output));
    assert!(stderr(&output).contains("more rights than its caller"));
    // A caller with the same user is accepted.
    assert_eq!(stdout(&store(ALICE)), chosen);
}

/// All of them have the user ID 65534 in the namespace.
#[test]
fn users_outside_a_user_namespace_are_not_one_user() {
    if !has_users("an unmapped user") {
        return;
    }
    if !has_user_namespaces() {
        return;
    }
    for kind in KINDS {
        let dir = test_dir(kind);
        let top = dir.path("");
        let locks = directory(dir.path("locks"), 0o755, MALLORY, MALLORY);
        let url = format!("{kind}:{}", locks.display());
        let inside = |user: u32, options: &[&str], words: &[&str]| {
            let mut unshare = Command::new("unshare");
            unshare
                .arg("--user")
                .args(options)
                .arg(dir.path("verrou"))
                .args(words)
                .current_dir("/")
                .uid(user)
                .gid(user);
            unshare
        };
        let outside = "outside this user namespace";
        let list = ["list", "--store", &url];
        let mapped = ["--map-root-user"];
        // Without a mapping, this process has the user ID 65534, too.
        let top_name = Path::new(top.to_str().unwrap().trim_end_matches('/'));
        refused(&mut inside(0, &[], &list), top_name, outside);
        refused(&mut inside(0, &mapped, &list), &locks, outside);
        // The user's directory is below directories of root, which is not mapped either.
        chown(&top, Some(ALICE), Some(ALICE)).unwrap();
        let own = directory(dir.path("own"), 0o700, ALICE, ALICE);
        let run = |path: &Path| {
            let url = format!("{kind}:{}", path.display());
            inside(ALICE, &mapped, &["run", "--store", &url, "k", "--", "true"])
        };
        ends_with(&mut run(&own.join("locks")), 0);
        assert_eq!(rights(&own.join("locks")), (0o700, ALICE, ALICE));
        // In a directory that all users may write, such as /tmp, unmapped owners count as other users.
        let tmp = top_name.parent().unwrap();
        if fs::metadata(tmp).unwrap().mode() & 0o002 == 0 {
            eprintln!("{} is not /tmp: files in it are not tested", tmp.display());
            continue;
        }
        let link = top_name.with_extension("link");
        symlink(&own, &link).unwrap();
        lchown(&link, Some(MALLORY), Some(MALLORY)).unwrap();
        let output = done(&mut run(&link.join("locks")));
        fs::remove_file(&link).unwrap();
        assert_eq!(code(&output), 73, "{}", stderr(&output));
        assert!(stderr(&output).contains("it is a link"));
        chown(&top, Some(MALLORY), Some(MALLORY)).unwrap();
        refused(&mut run(&own.join("locks")), top_name, outside);
    }
}

fn has_user_namespaces() -> bool {
    let probe = Command::new("unshare").args(["--user", "true"]).status();
    let has = probe.is_ok_and(|status| status.success());
    if !has {
        eprintln!("no user namespaces here: unmapped users are not tested");
    }
    has
}

/// In a sandbox of bubblewrap or Flatpak the root directory belongs to the user, and the owner of root's
/// directories below it is not mapped.
#[test]
fn home_in_a_sandbox_with_its_own_root_is_accepted() {
    if !has_users("a sandbox") || !has_user_namespaces() {
        return;
    }
    let dir = test_dir("lease");
    let top = dir.path("");
    let home = directory(dir.path("home"), 0o755, 0, 0);
    let own = directory(home.join("alice"), 0o700, ALICE, ALICE);
    copy_program(&home.join("verrou"));
    let root = directory(dir.path("root"), 0o755, ALICE, ALICE);
    let enter = "set -e; mount -t tmpfs -o mode=0755 none root; cd root
        for name in usr bin lib lib64 proc dev; do
            if test -L /$name; then cp -P /$name .
            elif test -d /$name; then mkdir $name; mount --rbind /$name $name
            fi
        done
        mkdir home; mount --bind \"$1/home\" home";
    let inside = |script: &str| {
        let mut unshare = Command::new("unshare");
        let script = format!("{enter}\n{script}");
        unshare.args(["--user", "--map-root-user", "--mount", "sh", "-c", &script]);
        unshare.arg("sh").arg(&top).current_dir(&top);
        unshare.uid(ALICE).gid(ALICE);
        unshare
    };
    let probe = done(&mut inside("chroot . /bin/true"));
    if !probe.status.success() {
        eprintln!("no sandboxes here: {}", stderr(&probe));
        return;
    }
    let run = "exec chroot . /home/verrou run --store lease:/home/alice/locks k -- true";
    ends_with(&mut inside(run), 0);
    assert_eq!(rights(&own.join("locks")), (0o700, ALICE, ALICE));
    assert_eq!(entries(&root), 0);
}

/// A file that any user creates in such a directory belongs to the group.
#[test]
fn open_directory_of_the_group_above_its_store_is_refused() {
    if !has_users("an open directory of a group") {
        return;
    }
    for kind in KINDS {
        let dir = test_dir(kind);
        let open = directory(dir.path("open"), 0o3777, 0, GROUP);
        let theirs = directory(open.join("theirs"), 0o2770, MALLORY, GROUP);
        let locks = directory(theirs.join("locks"), 0o2770, MALLORY, GROUP);
        let url = of_group(kind, &locks);
        refused(&mut run(&dir, ALICE, GROUP, &url), &open, "every user");
        assert_eq!(entries(&locks), 0);
    }
}

/// Returns `run`, executed as a user with a passwd(5) and group(5) of these lines.
fn with_accounts(dir: &TestDir, passwd: &str, groups: &str, run: &Command) -> Command {
    fs::write(dir.path("passwd"), passwd).unwrap();
    fs::write(dir.path("group"), groups).unwrap();
    let script = format!(
        "mount --bind passwd /etc/passwd && mount --bind group /etc/group && exec setpriv \
         --reuid={ALICE} --regid={ALICE} --clear-groups \"$@\""
    );
    let mut unshare = prefixed(&["unshare", "--mount", "sh", "-c", &script, "sh"], run);
    unshare.current_dir(dir.path(""));
    unshare
}

#[test]
fn home_of_a_private_group_is_accepted_unless_others_have_the_group() {
    if !has_users("a private group") {
        return;
    }
    let root = "root:x:0:0::/root:/bin/sh\n";
    let alice = format!("{root}alice:x:{ALICE}:{ALICE}::/:/bin/sh\n");
    let primary = format!("{alice}mallory:x:{MALLORY}:{ALICE}::/:/bin/sh\n");
    let alone = format!("alice:x:{ALICE}:\n");
    let member = format!("alice:x:{ALICE}:mallory\n");
    let named = format!("staff:x:{ALICE}:\n");
    for kind in KINDS {
        let dir = test_dir(kind);
        let home = directory(dir.path("home"), 0o775, ALICE, ALICE);
        let url = format!("{kind}:{}", home.join("locks").display());
        let run = run(&dir, ALICE, ALICE, &url);
        let run = |passwd: &str, groups: &str| with_accounts(&dir, passwd, groups, &run);
        let probe = done(&mut with_accounts(&dir, root, "", &Command::new("true")));
        if !probe.status.success() {
            eprintln!(
                "no mounts here: private groups are not tested: {}",
                stderr(&probe)
            );
            return;
        }
        ends_with(&mut run(&alice, &alone), 0);
        // `docker run --user 4711:4711` creates such a user.
        ends_with(&mut run(root, ""), 0);
        for (passwd, groups) in [
            (&primary, &alone),
            (&alice, &member),
            (&alice, &named),
            (&root.to_owned(), &member),
        ] {
            refused(&mut run(passwd, groups), &home, "group 4711");
        }
    }
}

/// The kernel refuses files there, by `fs.protected_regular`.
#[test]
fn directory_of_another_user_in_a_sticky_one_is_not_locked() {
    if !has_users("a sticky directory of another user") {
        return;
    }
    let dir = test_dir("file");
    let sticky = directory(dir.path("sticky"), 0o1777, 0, 0);
    let lock = |user, path: &Path| {
        let records = format!("lease:{}", path.with_extension("records").display());
        let path = path.to_str().unwrap();
        let words = ["run", "--store", &records, "--file", path, "--", "true"];
        done(&mut verrou(&dir, user, user, words))
    };
    let theirs = directory(sticky.join("theirs"), 0o755, MALLORY, MALLORY);
    for user in [0, ALICE] {
        let output = lock(user, &theirs);
        assert_eq!(code(&output), 73, "{}", stderr(&output));
        assert!(stderr(&output).contains("denied"), "{}", stderr(&output));
    }
    let own = directory(sticky.join("own"), 0o755, ALICE, ALICE);
    let roots = directory(sticky.join("roots"), 0o755, 0, 0);
    let elsewhere = directory(dir.path("elsewhere"), 0o755, MALLORY, MALLORY);
    for path in [&own, &roots] {
        let output = lock(ALICE, path);
        assert_eq!(code(&output), 0, "{}", stderr(&output));
    }
    let output = lock(0, &elsewhere);
    assert_eq!(code(&output), 0, "{}", stderr(&output));
}

#[test]
fn directories_above_a_groups_store_are_written_by_no_other() {
    if !has_users("a store of a group") {
        return;
    }
    for umask in ["000", "022"] {
        let dir = test_dir("lease");
        let locks = dir.path("a/b/locks");
        let run = run(&dir, 0, 0, &of_group("lease", &locks));
        ends_with(&mut with_umask(umask, &run), 0);
        assert_eq!(rights(&dir.path("a")), (0o755, 0, 0), "umask {umask}");
        assert_eq!(rights(&dir.path("a/b")), (0o755, 0, 0), "umask {umask}");
        assert_eq!(rights(&locks), (0o2770, 0, GROUP), "umask {umask}");
    }
}

/// Makes this thread alone a member of the group.
fn be_a_member() {
    let (user, group) = (Uid::from_raw(MALLORY), Gid::from_raw(GROUP));
    set_thread_groups(&[]).unwrap();
    set_thread_res_gid(group, group, group).unwrap();
    set_thread_res_uid(user, user, user).unwrap();
}

/// A member of the group may write the directory above, and replaces the directory that root has just
/// created.
#[test]
fn no_other_directory_is_given_to_a_group_in_a_race() {
    const TRIES: usize = 20_000;

    if !has_users("a race for the directory of a group") {
        return;
    }
    let dir = test_dir("lease");
    let parent = directory(dir.path("shared"), 0o2775, 0, GROUP);
    let victim = directory(dir.path("victim"), 0o755, 0, 0);
    fs::write(victim.join("code"), "that root runs").unwrap();
    let (is_over, mut unexpected) = (AtomicBool::new(false), None);
    let locks = parent.join("locks");
    let mut options = StoreOptions::default();
    options.group = Some(GROUP.to_string());
    thread::scope(|threads| {
        threads.spawn(|| {
            be_a_member();
            let trap = parent.join("trap");
            while !is_over.load(Ordering::Relaxed) {
                let _ = symlink(&victim, &trap);
                while !is_over.load(Ordering::Relaxed) {
                    if renameat_with(CWD, &trap, CWD, &locks, RenameFlags::EXCHANGE).is_ok() {
                        break;
                    }
                }
                let _ = fs::remove_dir(&trap);
                let _ = fs::remove_file(&locks);
            }
        });
        for _ in 0..TRIES {
            let opened = LeaseFileStore::open(&locks, &options);
            let is_expected = matches!(
                opened,
                Ok(_) | Err(OpenError::Suspicious { .. } | OpenError::Directory { .. })
            );
            if !is_expected || rights(&victim) != (0o755, 0, 0) {
                unexpected = Some(opened);
                break;
            }
        }
        is_over.store(true, Ordering::Relaxed);
    });
    assert_eq!(rights(&victim), (0o755, 0, 0));
    assert!(unexpected.is_none(), "{unexpected:?}");
    assert_eq!(entries(&victim), 1);
}

fn claim(owner: u8) -> Claim {
    store_calls::claim("k", owner)
}

/// The path of the store then leads to another directory, in which others acquire the lock.
#[test]
fn move_of_a_directory_above_a_store_is_noticed() {
    let dir = TestDir::new("lease");
    let locks = dir.path("a/b/locks");
    let options = StoreOptions::default();
    let moved = |store: &dyn Store, extension: &str| {
        assert!(store.acquire(&claim(1)).unwrap().is_granted());
        let _ = fs::remove_dir_all(dir.path("moved"));
        fs::rename(dir.path("a"), dir.path("moved")).unwrap();
        fs::create_dir_all(&locks).unwrap();
        // The lock was held for a while.
        thread::sleep(std::time::Duration::from_millis(2));
        assert!(!store.release(&claim(1)).unwrap());
        // Within a second, the lock is taken where its path leads.
        eventually("the store is found again", || {
            let granted = store.acquire(&claim(2)).unwrap().is_granted();
            assert!(granted);
            store.release(&claim(2)).unwrap();
            let files = fs::read_dir(&locks).into_iter().flatten();
            let mut names = files.map(|file| file.unwrap().path());
            names.any(|path| path.extension().is_some_and(|it| it == extension))
        });
    };
    moved(&LeaseFileStore::open(&locks, &options).unwrap(), "lease");
    moved(&FileLockStore::open(&locks, &options).unwrap(), "lock");
}

//! A process that keeps a lock's file locked: each operation of a store ends soon, with a reply or an error that names
//! the lock.
#![cfg(target_os = "linux")]

#[path = "common/store_calls.rs"]
mod store_calls;

use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::thread;
use std::time::{Duration, Instant};

use nix::fcntl::{FcntlArg, fcntl};
use nix::libc;
use store_calls::{claim, done, granted};
use verrou::conformance::waited;
use verrou::{Acquired, Fence, Store, StoreError, Waiter};
use verrou_host::{AnyStore, StoreOptions};

/// The time within which every operation ends, on any busy machine.
const SOON: Duration = Duration::from_secs(5);

/// A lock that one store may hold, and a second store.
struct Scene {
    store: AnyStore,
    other: AnyStore,
    path: PathBuf,
    is_held: bool,
}

/// The waiter of the second store between the operations that begin and end its wait.
type SceneWaiter<'s> = Option<Box<dyn Waiter + 's>>;

/// Performs one operation; returns whether it granted the lock.
type Operation = for<'s> fn(&'s Scene, &mut SceneWaiter<'s>) -> Result<bool, StoreError>;

const OPERATIONS: [(&str, Operation); 6] = [
    ("acquire", |scene, _| {
        let reply = scene.other.acquire(&claim("lock", 2))?;
        Ok(matches!(reply, Acquired::Granted { .. }))
    }),
    ("extend", |scene, _| {
        scene.store.extend(&claim("lock", 1)).map(|_| false)
    }),
    ("inspect", |scene, _| {
        let name = claim("lock", 1).name;
        scene.other.holders(&name).map(|_| false)
    }),
    ("force-release", |scene, _| {
        let (name, none) = (claim("lock", 1).name, Fence::new(u64::MAX));
        scene.other.force_release(&name, none).map(|_| false)
    }),
    ("wait", |scene, waiter| {
        let moment = Duration::from_millis(5);
        *waiter = Some(waited(&scene.other, &claim("lock", 2), moment));
        Ok(false)
    }),
    ("end a wait", |scene, waiter| {
        drop(waiter.take());
        scene.other.release(&claim("lock", 2)).map(|_| false)
    }),
];

impl Scene {
    fn new(kind: &str, directory: &Path, is_held: bool) -> Self {
        let open = || {
            let url = format!("{kind}:{}", directory.display()).parse().unwrap();
            AnyStore::open(&url, &StoreOptions::default()).unwrap()
        };
        let (store, other) = (open(), open());
        granted(store.acquire(&claim("lock", 1)));
        if !is_held {
            done(store.release(&claim("lock", 1)));
        }
        let files = fs::read_dir(directory).unwrap();
        let mut files = files.map(|entry| entry.unwrap().path());
        let path = files.find(|path| path.extension().is_some()).unwrap();
        Self {
            store,
            other,
            path,
            is_held,
        }
    }

    fn assert_each_operation_ends(&self, how: &str) {
        let path = self.path.display();
        let mut waiter = None;
        for (what, operation) in OPERATIONS {
            let began = Instant::now();
            let reply = operation(self, &mut waiter);
            let took = began.elapsed();
            assert!(took < SOON, "{path} {how}: {what} took {took:?}");
            match reply {
                Ok(is_granted) => {
                    assert!(!(is_granted && self.is_held), "{path} {how}: two holders");
                }
                Err(err) => {
                    let text = err.to_string();
                    let is_named = text.contains(self.path.to_str().unwrap());
                    assert!(
                        is_named || text.contains("`lock`"),
                        "{path} {how}: {what}: {text}"
                    );
                }
            }
        }
    }
}

/// Locks or unlocks bytes of `file`; returns whether that was possible.
fn lock_bytes(file: &File, kind: i32, (start, length): (i64, i64)) -> bool {
    let bytes = libc::flock {
        l_type: kind.try_into().unwrap(),
        l_whence: libc::SEEK_SET.try_into().unwrap(),
        l_start: start,
        l_len: length,
        l_pid: 0,
    };
    fcntl(file, FcntlArg::F_OFD_SETLK(&bytes)).is_ok()
}

fn operations_end(kind: &str, is_held: bool) {
    let directory = tempfile::tempdir().unwrap();
    let scene = Scene::new(kind, directory.path(), is_held);
    let file = File::options()
        .read(true)
        .write(true)
        .open(&scene.path)
        .unwrap();
    // A holder of the other kind has locked the whole file itself.
    if kind == "lease" || !is_held {
        file.try_lock().unwrap();
        scene.assert_each_operation_ends("locked");
        file.unlock().unwrap();
        file.try_lock_shared().unwrap();
        scene.assert_each_operation_ends("locked in shared mode");
        file.unlock().unwrap();
    }
    // They contain the bytes that the store locks. It keeps some of them locked, also after a release.
    let ranges = [(0, 1 << 40), (1 << 40, 0), ((1 << 62) + (1 << 61), 0)];
    let free = ranges.into_iter().filter(|&range| {
        let is_free = lock_bytes(&file, libc::F_WRLCK, range);
        if is_free {
            scene.assert_each_operation_ends(&format!("with its bytes {range:?} locked"));
            assert!(lock_bytes(&file, libc::F_UNLCK, range));
        }
        is_free
    });
    assert!(free.count() > 0);
    if is_held {
        done(scene.store.extend(&claim("lock", 1)));
    } else {
        granted(scene.other.acquire(&claim("lock", 2)));
    }
}

#[test]
fn operation_ends_while_another_process_keeps_the_file_locked() {
    thread::scope(|scope| {
        for kind in ["lease", "file"] {
            for is_held in [true, false] {
                scope.spawn(move || operations_end(kind, is_held));
            }
        }
    });
}

//! Operations of several processes at once, in thousands of schedules of their accesses to files.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use shuttle::rand::{Rng, thread_rng};
use shuttle::sync::Mutex;
use shuttle::thread;
use verrou::{Acquired, Claim, Name, Owner, Ttl};
use verrou_hard_links::{Linked, LockDirectory, Moment, StateFiles};

/// The files of a directory, which all processes share. Each access is one step of a schedule.
#[derive(Default)]
struct Files(Mutex<Entries>);

#[derive(Default)]
struct Entries {
    files: BTreeMap<String, Vec<u8>>,
    used: BTreeSet<String>,
}

#[derive(Debug)]
enum Failure {}

impl StateFiles for Files {
    type Error = Failure;

    fn list(&self) -> Result<Vec<String>, Failure> {
        Ok(self.0.lock().unwrap().files.keys().cloned().collect())
    }

    fn read(&self, name: &str, _limit: usize) -> Result<Option<Vec<u8>>, Failure> {
        Ok(self.0.lock().unwrap().files.get(name).cloned())
    }

    fn create(&self, name: &str, bytes: &[u8]) -> Result<(), Failure> {
        let mut entries = self.0.lock().unwrap();
        assert!(entries.files.insert(name.into(), bytes.into()).is_none());
        Ok(())
    }

    fn link(&self, from: &str, to: &str) -> Result<Linked, Failure> {
        let mut entries = self.0.lock().unwrap();
        let Some(bytes) = entries.files.get(from).cloned() else {
            return Ok(Linked::Gone);
        };
        if entries.files.contains_key(to) {
            return Ok(Linked::Exists);
        }
        assert!(entries.used.insert(to.into()), "{to} is used twice");
        entries.files.insert(to.into(), bytes);
        Ok(Linked::Done)
    }

    fn delete(&self, name: &str) -> Result<(), Failure> {
        self.0.lock().unwrap().files.remove(name);
        Ok(())
    }

    fn sync(&self) -> Result<(), Failure> {
        Ok(())
    }

    fn random(&self) -> u128 {
        thread_rng().r#gen()
    }
}

const MOMENT: Moment = Moment {
    now: Duration::from_hours(489_970),
    skew: Duration::ZERO,
};

fn name() -> Name {
    Name::new("n").unwrap()
}

fn claim(owner: u8) -> Claim {
    Claim::new(name(), Owner::from_bytes([owner; 16]), Ttl::NEVER)
}

#[test]
fn holders_exclude_each_other_and_their_fences_grow_by_one() {
    shuttle::check_pct(
        || {
            let files = Arc::new(Files::default());
            let holder = Arc::new(std::sync::Mutex::new(None));
            let greatest = Arc::new(std::sync::Mutex::new(None));
            let contend = |owner| {
                let (files, holder, greatest) = (
                    Arc::clone(&files),
                    Arc::clone(&holder),
                    Arc::clone(&greatest),
                );
                thread::spawn(move || {
                    let name = name();
                    let lock = LockDirectory::new(&*files, &name, MOMENT);
                    for _ in 0..2 {
                        let Acquired::Granted { fence } =
                            lock.acquire(&claim(owner), None).unwrap()
                        else {
                            continue;
                        };
                        let before = holder.lock().unwrap().replace(owner);
                        assert_eq!(before, None, "{owner} is granted the lock");
                        let fence = fence.unwrap().get();
                        let before = greatest.lock().unwrap().replace(fence);
                        assert_eq!(before.unwrap_or(fence - 1) + 1, fence);
                        assert!(lock.extend(&claim(owner)).unwrap());
                        assert_eq!(holder.lock().unwrap().take(), Some(owner));
                        assert!(lock.release(&claim(owner)).unwrap());
                    }
                })
            };
            let threads = [1, 2, 3].map(contend);
            for thread in threads {
                thread.join().unwrap();
            }
        },
        3_000,
        4,
    );
}

#[test]
fn no_number_is_used_twice_by_any_operations() {
    shuttle::check_pct(
        || {
            let files = Arc::new(Files::default());
            let threads = [(); 3].map(|()| {
                let files = Arc::clone(&files);
                thread::spawn(move || {
                    let name = name();
                    let lock = LockDirectory::new(&*files, &name, MOMENT);
                    for _ in 0..4 {
                        let claim = claim(thread_rng().gen_range(1..3));
                        match thread_rng().gen_range(0..6) {
                            0 => drop(lock.force_release(None).unwrap()),
                            1 => drop(lock.release(&claim).unwrap()),
                            2 => drop(lock.extend(&claim).unwrap()),
                            _ => drop(lock.acquire(&claim, None).unwrap()),
                        }
                    }
                })
            });
            for thread in threads {
                thread.join().unwrap();
            }
        },
        12_000,
        5,
    );
}

//! Every operation, interrupted or ended before each of its accesses to a file, while other processes do up to three
//! operations: the replies are those of atomic operations in some order, and no number is used twice.

use std::cell::{Cell, RefCell};
use std::collections::{BTreeMap, BTreeSet};
use std::rc::Rc;
use std::time::Duration;

use verrou::{Acquired, Claim, Name, Owner, Ttl};
use verrou_hard_links::{Linked, LockDirectory, Moment, OperationError, StateFiles};

/// The files of a directory, which all processes share.
#[derive(Default)]
struct Disk {
    files: RefCell<BTreeMap<String, Rc<Vec<u8>>>>,
    used: RefCell<BTreeSet<String>>,
    drafts: Cell<u128>,
}

/// The entries in a listing, of those that are made or removed meanwhile.
#[derive(Clone, Copy, Debug)]
enum Seen {
    Before,
    After,
    All,
    None,
}

/// The event before an access to a file.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
enum Event {
    /// Other processes do their operations.
    Interrupted,
    /// The same, in the middle of the access if that is a listing.
    InterruptedWithin,
    /// The process ends, and other processes do their operations.
    Ended,
}

/// The files as one process accesses them.
struct Process<'a> {
    disk: &'a Disk,
    /// The number of accesses until the event.
    left: Cell<Option<u32>>,
    event: Event,
    seen: Seen,
    has_ended: Cell<bool>,
    others: &'a dyn Fn(),
}

#[derive(Debug)]
struct Ended;

impl<'a> Process<'a> {
    fn undisturbed(disk: &'a Disk) -> Self {
        Self {
            disk,
            left: Cell::new(None),
            event: Event::Interrupted,
            seen: Seen::All,
            has_ended: Cell::new(false),
            others: &|| (),
        }
    }

    /// Returns whether the event is to happen within this access.
    fn access(&self) -> Result<bool, Ended> {
        let mut is_within = false;
        match self.left.get() {
            Some(0) => {
                self.left.set(None);
                match self.event {
                    Event::Interrupted => (self.others)(),
                    Event::InterruptedWithin => is_within = true,
                    Event::Ended => {
                        self.has_ended.set(true);
                        (self.others)();
                    }
                }
            }
            left => self.left.set(left.map(|left| left - 1)),
        }
        if self.has_ended.get() {
            Err(Ended)
        } else {
            Ok(is_within)
        }
    }
}

impl StateFiles for Process<'_> {
    type Error = Ended;

    fn list(&self) -> Result<Vec<String>, Ended> {
        let names = || -> BTreeSet<_> { self.disk.files.borrow().keys().cloned().collect() };
        if !self.access()? {
            return Ok(names().into_iter().collect());
        }
        let before = names();
        (self.others)();
        let after = names();
        let seen: BTreeSet<_> = match self.seen {
            Seen::Before => before,
            Seen::After => after,
            Seen::All => before.union(&after).cloned().collect(),
            Seen::None => before.intersection(&after).cloned().collect(),
        };
        Ok(seen.into_iter().collect())
    }

    fn read(&self, name: &str, _limit: usize) -> Result<Option<Vec<u8>>, Ended> {
        self.access()?;
        let files = self.disk.files.borrow();
        Ok(files.get(name).map(|bytes| bytes.to_vec()))
    }

    fn create(&self, name: &str, bytes: &[u8]) -> Result<(), Ended> {
        self.access()?;
        let mut files = self.disk.files.borrow_mut();
        assert!(files.insert(name.into(), Rc::new(bytes.into())).is_none());
        Ok(())
    }

    fn link(&self, from: &str, to: &str) -> Result<Linked, Ended> {
        self.access()?;
        let mut files = self.disk.files.borrow_mut();
        let Some(bytes) = files.get(from).cloned() else {
            return Ok(Linked::Gone);
        };
        if files.contains_key(to) {
            return Ok(Linked::Exists);
        }
        let is_new = self.disk.used.borrow_mut().insert(to.into());
        assert!(is_new, "{to} is used twice");
        files.insert(to.into(), bytes);
        Ok(Linked::Done)
    }

    fn delete(&self, name: &str) -> Result<(), Ended> {
        self.access()?;
        self.disk.files.borrow_mut().remove(name);
        Ok(())
    }

    fn sync(&self) -> Result<(), Ended> {
        self.access()?;
        Ok(())
    }

    fn random(&self) -> u128 {
        self.disk.drafts.set(self.disk.drafts.get() + 1);
        self.disk.drafts.get()
    }
}

#[derive(Clone, Copy, Debug, Eq, PartialEq)]
enum Operation {
    Acquire(u8),
    Extend(u8),
    Release(u8),
    ForceRelease,
}

use Operation::{Acquire, Extend, ForceRelease, Release};

#[derive(Clone, Copy, Debug, Eq, PartialEq)]
enum Reply {
    Granted(u64),
    Busy,
    Done(bool),
}

const NOW: Duration = Duration::from_millis(1);
/// The fencing token of the first grant at that time.
const FIRST: u64 = 1024;

fn claim(owner: u8) -> Claim {
    let name = Name::new("n").unwrap();
    Claim::new(name, Owner::from_bytes([owner; 16]), Ttl::NEVER)
}

/// Does an operation; `None` if its process ended.
fn perform(files: &Process<'_>, operation: Operation) -> Option<Reply> {
    let moment = Moment {
        now: NOW,
        skew: Duration::ZERO,
    };
    let name = Name::new("n").unwrap();
    let lock = LockDirectory::new(files, &name, moment);
    let done = match operation {
        Acquire(owner) => lock.acquire(&claim(owner), None).map(|reply| match reply {
            Acquired::Granted { fence } => Reply::Granted(fence.unwrap().get()),
            Acquired::Busy { .. } => Reply::Busy,
        }),
        Extend(owner) => lock.extend(&claim(owner)).map(Reply::Done),
        Release(owner) => lock.release(&claim(owner)).map(Reply::Done),
        ForceRelease => lock.force_release(None).map(Reply::Done),
    };
    match done {
        Ok(reply) => Some(reply),
        Err(OperationError::Files(Ended)) => None,
        Err(err) => panic!("{operation:?}: {err:?}"),
    }
}

/// A lock whose operations are atomic.
#[derive(Clone, Copy, Default)]
struct Model {
    grants: u64,
    holder: Option<u8>,
}

impl Model {
    fn perform(&mut self, operation: Operation) -> Reply {
        match (operation, self.holder) {
            (Acquire(owner), Some(holder)) if owner != holder => Reply::Busy,
            (Acquire(owner), holder) => {
                self.grants += u64::from(holder.is_none());
                self.holder = Some(owner);
                Reply::Granted(FIRST - 1 + self.grants)
            }
            (Extend(owner), holder) => Reply::Done(holder == Some(owner)),
            (Release(owner), Some(holder)) if owner != holder => Reply::Done(false),
            (Release(_) | ForceRelease, holder) => {
                self.holder = None;
                Reply::Done(holder.is_some())
            }
        }
    }

    fn agrees(&mut self, replies: &[(Operation, Reply)]) -> bool {
        replies
            .iter()
            .all(|&(operation, reply)| self.perform(operation) == reply)
    }
}

/// Returns whether atomic operations give these replies: those of the others in their order, and `one` at any time.
/// Without a reply, `one` may also have had no effect.
fn are_atomic(
    before: &[Operation],
    one: (Operation, Option<Reply>),
    others: &[(Operation, Reply)],
) -> bool {
    let mut start = Model::default();
    for &operation in before {
        start.perform(operation);
    }
    let is_at = |at: usize| {
        let mut model = start;
        let (earlier, later) = others.split_at(at);
        let is_earlier = model.agrees(earlier);
        let reply = model.perform(one.0);
        is_earlier && one.1.is_none_or(|expected| expected == reply) && model.agrees(later)
    };
    (0..=others.len()).any(is_at) || one.1.is_none() && { start }.agrees(others)
}

/// Returns all sequences of at most `most` operations of other processes.
fn scripts(most: usize) -> Vec<Vec<Operation>> {
    const OTHERS: [Operation; 5] = [Acquire(2), Release(2), Extend(2), ForceRelease, Release(1)];

    let mut all = vec![Vec::new()];
    let mut longest = vec![Vec::new()];
    for _ in 0..most {
        longest = longest
            .iter()
            .flat_map(|script: &Vec<_>| {
                OTHERS.map(|operation| [&script[..], &[operation]].concat())
            })
            .collect();
        all.extend(longest.iter().cloned());
    }
    all
}

#[test]
fn interrupted_operations_are_atomic_and_no_number_is_used_twice() {
    let beginnings: [&[Operation]; 5] = [
        &[],
        &[Acquire(1)],
        &[Acquire(1), Release(1)],
        &[Acquire(2), ForceRelease],
        &[Acquire(1), Extend(1), Extend(1)],
    ];
    let events = [
        (Event::Interrupted, Seen::All),
        (Event::Ended, Seen::All),
        (Event::InterruptedWithin, Seen::Before),
        (Event::InterruptedWithin, Seen::After),
        (Event::InterruptedWithin, Seen::All),
        (Event::InterruptedWithin, Seen::None),
    ];
    let scripts = scripts(3);
    let mut runs = 0_u32;
    for before in beginnings {
        for operation in [Acquire(1), Extend(1), Release(1), ForceRelease] {
            for (event, seen) in events {
                for script in &scripts {
                    for access in 0.. {
                        runs += 1;
                        if !interrupted(before, operation, (event, seen), script, access) {
                            break;
                        }
                    }
                }
            }
        }
    }
    assert!(runs > 50_000, "{runs}");
}

/// Interrupts `operation` before its access with this number; returns `false` if it has fewer accesses.
fn interrupted(
    before: &[Operation],
    operation: Operation,
    (event, seen): (Event, Seen),
    script: &[Operation],
    access: u32,
) -> bool {
    let disk = Disk::default();
    for &operation in before {
        perform(&Process::undisturbed(&disk), operation).expect("a reply");
    }
    let replies = RefCell::new(Vec::new());
    let others = || {
        for &operation in script {
            let reply = perform(&Process::undisturbed(&disk), operation);
            replies
                .borrow_mut()
                .push((operation, reply.expect("a reply")));
        }
    };
    let process = Process {
        disk: &disk,
        left: Cell::new(Some(access)),
        event,
        seen,
        has_ended: Cell::new(false),
        others: &others,
    };
    let reply = perform(&process, operation);
    if process.left.get().is_some()
        || event == Event::InterruptedWithin && replies.borrow().is_empty()
    {
        // The operation has ended, or this access is no listing.
        return process.left.get().is_none();
    }
    // The files that are left do no harm to a later grant, and are few.
    for operation in [ForceRelease, Acquire(3), Release(3), Acquire(4), Release(4)] {
        let reply = perform(&Process::undisturbed(&disk), operation);
        replies
            .borrow_mut()
            .push((operation, reply.expect("a reply")));
    }
    let replies = replies.into_inner();
    assert!(
        are_atomic(before, (operation, reply), &replies),
        "after {before:?}, {operation:?} replied {reply:?} with {event:?} ({seen:?}) at access {access}: {replies:?}"
    );
    let left: Vec<_> = disk.files.borrow().keys().cloned().collect();
    assert!(left.len() <= 3, "{left:?}");
    assert!(!left.iter().any(|name| name.contains("draft")), "{left:?}");
    true
}

/// The last of three operations of other processes ends before each of its accesses to files, which leaves some of the
/// states and drafts that it was to delete.
#[test]
fn process_that_ends_while_it_deletes_files_lets_no_number_be_used_twice() {
    const OTHERS: [Operation; 4] = [Acquire(2), Release(2), Extend(1), Release(1)];

    let mut runs = 0_u32;
    for before in [&[][..], &[Acquire(1)], &[Acquire(1), Extend(1)]] {
        for operation in [Acquire(1), Extend(1), Release(1)] {
            for script in 0..64 {
                let script = [script / 16, script / 4 % 4, script % 4].map(|at| OTHERS[at]);
                for access in 0.. {
                    let mut ends = 0;
                    while both_stopped(before, (operation, access), script, ends) {
                        ends += 1;
                        runs += 1;
                    }
                    if ends == 0 {
                        break;
                    }
                }
            }
        }
    }
    assert!(runs > 5_000, "{runs}");
}

/// Interrupts `operation` before an access, while other processes do `script`, whose last operation ends before its
/// access with the number `ends`. Returns `false` if either has fewer accesses.
fn both_stopped(
    before: &[Operation],
    (operation, access): (Operation, u32),
    script: [Operation; 3],
    ends: u32,
) -> bool {
    let disk = Disk::default();
    for &operation in before {
        perform(&Process::undisturbed(&disk), operation).expect("a reply");
    }
    let has_ended = Cell::new(false);
    let others = || {
        let [first, second, last] = script;
        for operation in [first, second] {
            perform(&Process::undisturbed(&disk), operation).expect("a reply");
        }
        let mut ending = Process::undisturbed(&disk);
        (ending.event, ending.left) = (Event::Ended, Cell::new(Some(ends)));
        perform(&ending, last);
        has_ended.set(ending.has_ended.get());
    };
    let mut process = Process::undisturbed(&disk);
    (process.left, process.others) = (Cell::new(Some(access)), &others);
    perform(&process, operation).expect("a reply");
    for operation in [ForceRelease, Acquire(3), Release(3), Acquire(4), Release(4)] {
        perform(&Process::undisturbed(&disk), operation).expect("a reply");
    }
    let left = disk.files.borrow().len();
    assert!(left <= 3, "{left}");
    has_ended.get()
}

//! Opening a store, and its releases, on file systems that have no hard links, or refuse some of them.

use std::cell::RefCell;
use std::collections::BTreeMap;
use std::time::Duration;

use verrou::{Claim, Name, Owner, Renewed, Ttl};
use verrou_hard_links::{
    Corruption, Linked, LockDirectory, Moment, OperationError, Settings, StateFiles, open,
};

/// The reaction of a file system to a link.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
enum Links {
    Works,
    Refused,
    /// An existing file is replaced.
    Replace,
    /// Only files of this process can be linked.
    OfOwnFiles,
}

struct Files {
    links: Links,
    is_full: bool,
    /// The contents of each file, and whether it is this process's.
    entries: RefCell<BTreeMap<String, (Vec<u8>, bool)>>,
}

#[derive(Debug, Eq, PartialEq)]
enum Failure {
    Full,
    Exists,
}

impl Files {
    fn new(links: Links) -> Self {
        Self {
            links,
            is_full: false,
            entries: RefCell::default(),
        }
    }

    fn names(&self) -> Vec<String> {
        self.entries.borrow().keys().cloned().collect()
    }

    fn put(&self, name: &str, text: &str) {
        let file = (text.into(), false);
        self.entries.borrow_mut().insert(name.into(), file);
    }

    fn give_away(&self) {
        for (_, is_own) in self.entries.borrow_mut().values_mut() {
            *is_own = false;
        }
    }
}

impl StateFiles for Files {
    type Error = Failure;

    fn list(&self) -> Result<Vec<String>, Failure> {
        Ok(self.names())
    }

    fn read(&self, name: &str, _limit: usize) -> Result<Option<Vec<u8>>, Failure> {
        let entries = self.entries.borrow();
        Ok(entries.get(name).map(|(bytes, _)| bytes.clone()))
    }

    fn create(&self, name: &str, bytes: &[u8]) -> Result<(), Failure> {
        if self.is_full {
            return Err(Failure::Full);
        }
        let before = self
            .entries
            .borrow_mut()
            .insert(name.into(), (bytes.into(), true));
        before.map_or(Ok(()), |_| Err(Failure::Exists))
    }

    fn link(&self, from: &str, to: &str) -> Result<Linked, Failure> {
        let mut entries = self.entries.borrow_mut();
        let Some(file) = entries.get(from).cloned() else {
            return Ok(Linked::Gone);
        };
        if entries.contains_key(to) && self.links != Links::Replace {
            return Ok(Linked::Exists);
        }
        if self.links == Links::Refused || self.links == Links::OfOwnFiles && !file.1 {
            return Ok(Linked::Refused);
        }
        entries.insert(to.into(), file);
        Ok(Linked::Done)
    }

    fn delete(&self, name: &str) -> Result<(), Failure> {
        self.entries.borrow_mut().remove(name);
        Ok(())
    }

    fn sync(&self) -> Result<(), Failure> {
        Ok(())
    }

    fn random(&self) -> u128 {
        u128::from(self.entries.borrow().len() as u64)
    }
}

const STORE: &str = "verrou hard links 1\nskew-milliseconds 250\n";

#[test]
fn store_is_created_once_and_nothing_else_is_left() {
    let files = Files::new(Links::Works);
    assert_eq!(open(&files).unwrap().skew, Duration::ZERO);
    assert_eq!(files.names(), ["store"]);
    files.put("store", STORE);
    // Left by a program that ended while it opened the store.
    files.put("probe", "");
    let Settings { skew, .. } = open(&files).unwrap();
    assert_eq!(skew, Duration::from_millis(250));
    assert_eq!(files.names(), ["store"]);
}

#[test]
fn file_system_without_hard_links_is_refused() {
    for links in [Links::Refused, Links::Replace] {
        let files = Files::new(links);
        files.put("store", STORE);
        let opened = open(&files);
        assert!(
            matches!(opened, Err(OperationError::NoHardLinks)),
            "{opened:?}"
        );
        assert_eq!(files.names(), ["store"], "{links:?}");
    }
    // A new directory.
    let files = Files::new(Links::Refused);
    let opened = open(&files);
    assert!(
        matches!(opened, Err(OperationError::NoHardLinks)),
        "{opened:?}"
    );
    assert!(files.names().is_empty());
}

#[test]
fn directory_of_another_user_is_opened() {
    let files = Files::new(Links::OfOwnFiles);
    files.put("store", STORE);
    open(&files).unwrap();
    assert_eq!(files.names(), ["store"]);
}

#[test]
fn directory_on_a_full_disk_is_opened() {
    let mut files = Files::new(Links::Works);
    files.put("store", STORE);
    files.is_full = true;
    open(&files).unwrap();
}

#[test]
fn other_file_in_the_place_of_the_settings_is_refused() {
    let files = Files::new(Links::Works);
    files.put("store", "a shop");
    let opened = open(&files);
    let Err(OperationError::Corrupt { file, corruption }) = opened else {
        panic!("{opened:?}");
    };
    assert_eq!((&*file, corruption), ("store", Corruption::Settings));
}

#[test]
fn grant_in_a_file_of_another_user_is_released() {
    let mut files = Files::new(Links::OfOwnFiles);
    let name = Name::new("n").unwrap();
    let moment = Moment {
        now: Duration::from_hours(489_970),
        skew: Duration::ZERO,
    };
    let claim = Claim::new(name.clone(), Owner::from_bytes([1; 16]), Ttl::NEVER);
    let acquired = LockDirectory::new(&files, &name, moment).acquire(&claim, None);
    assert!(acquired.unwrap().is_granted());
    files.give_away();
    files.is_full = true;
    let err = LockDirectory::new(&files, &name, moment)
        .release(&claim)
        .unwrap_err();
    assert!(
        matches!(err, OperationError::Files(Failure::Full)),
        "{err:?}"
    );
    files.is_full = false;
    let lock = LockDirectory::new(&files, &name, moment);
    assert!(lock.release(&claim).unwrap());
    assert_eq!(lock.holder().unwrap(), None);
    assert_eq!(lock.renew(&claim, None).unwrap(), Renewed::Released);
}

//! Files of locks that are corrupt, or belong to another lock.

use std::fs;
use std::os::unix::fs::symlink;

use verrou::{Acquired, Name, Store};
use verrou_host::{Corruption, FileError, HostStore};

use crate::lock_files::{BOOT_AT, KINDS, leases, lock_file, only_file, open, rewrite};
use crate::store_calls::{done, granted, refused};
use crate::{claim, detached, directory, file_error};

#[test]
fn corrupt_file_is_never_a_free_lock() {
    let directory = directory();
    let store = leases(directory.path());
    granted(store.acquire(&detached(1)));
    done(store.extend(&detached(1)));
    let path = only_file(directory.path(), "lease");
    let whole = fs::read(&path).unwrap();
    let assert_corrupt = |bytes: &[u8]| {
        fs::write(&path, bytes).unwrap();
        for reply in [
            store.acquire(&detached(2)).map(drop),
            store.extend(&detached(1)).map(drop),
            store.release(&detached(1)).map(drop),
            store.force_release(&claim(1).name, None).map(drop),
            store.holders(&claim(1).name).map(drop),
        ] {
            let err = reply.expect_err("the file is corrupt");
            assert!(err.to_string().contains(path.to_str().unwrap()), "{err}");
            assert!(
                matches!(file_error(&err), FileError::Corrupt { .. }),
                "{err}"
            );
        }
        assert_eq!(fs::read(&path).unwrap(), bytes, "nothing was written");
    };
    for bytes in [0, 1, 511, 512, 1023, 1536, 4095] {
        assert_corrupt(&whole[..bytes]);
    }
    assert_corrupt(&[whole.clone(), vec![0]].concat());
    for at in [0, 8, 12, 16, 20, 512, 600, 1023, 1024, 1100, 1535, 2048] {
        let mut flipped = whole.clone();
        flipped[at] ^= 0x40;
        assert_corrupt(&flipped);
    }
    let mut newer = whole.clone();
    newer[8] = 2;
    assert_corrupt(&newer);
    fs::write(&path, &whole).unwrap();
    refused(&store.acquire(&detached(2)));
    done(store.release(&detached(1)));
}

/// In a new file, and in a file of an earlier boot, one slot alone records the grant.
#[test]
fn a_first_grant_is_not_lost_with_one_slot() {
    for kind in KINDS {
        for is_new in [true, false] {
            let directory = directory();
            let store = open(kind, directory.path());
            if !is_new {
                granted(store.acquire(&detached(1)));
                done(store.release(&detached(1)));
                let path = lock_file(kind, directory.path());
                rewrite(&path, BOOT_AT, &[0xab; 16]);
            }
            let fence = granted(open(kind, directory.path()).acquire(&detached(1)));
            let path = lock_file(kind, directory.path());
            let whole = fs::read(&path).unwrap();
            for slot in [512..1024, 1024..1536] {
                for corruption in [0, 0xff] {
                    let mut bytes = whole.clone();
                    bytes[slot.clone()].fill(corruption);
                    fs::write(&path, bytes).unwrap();
                    match open(kind, directory.path()).acquire(&detached(2)) {
                        // A kernel lock ended with its store.
                        Ok(Acquired::Granted { fence: Some(next) }) if kind == "file" => {
                            assert!(next.get() > fence);
                        }
                        Ok(Acquired::Granted { .. }) => {
                            panic!("it is held: {slot:?}, {corruption}")
                        }
                        Ok(Acquired::Busy { .. }) | Err(_) => {}
                    }
                }
            }
        }
    }
}

#[test]
fn file_of_another_lock_is_an_error() {
    let directory = directory();
    let store = leases(directory.path());
    granted(store.acquire(&claim(1)));
    let path = only_file(directory.path(), "lease");
    let other = claim(1).with_name(Name::new("other").unwrap());
    granted(store.acquire(&other));
    let files = fs::read_dir(directory.path())
        .unwrap()
        .map(|entry| entry.unwrap().path());
    let others = files
        .into_iter()
        .find(|file| file.to_string_lossy().contains("other"))
        .unwrap();
    fs::copy(&others, &path).unwrap();
    let err = store.acquire(&claim(2)).unwrap_err();
    let FileError::Corrupt {
        corruption: Corruption::OtherName { name },
        ..
    } = file_error(&err)
    else {
        panic!("{err}");
    };
    assert_eq!(name, "other");
}

#[test]
fn lease_whose_release_cannot_be_recorded_ends_anyway() {
    let directory = directory();
    let (one, two) = (leases(directory.path()), leases(directory.path()));
    granted(one.acquire(&claim(1)));
    let path = only_file(directory.path(), "lease");
    let whole = fs::read(&path).unwrap();
    fs::write(&path, "corrupt").unwrap();
    one.release(&claim(1)).expect_err("the file is corrupt");
    fs::write(&path, whole).unwrap();
    granted(two.acquire(&claim(2)));
}

#[test]
fn a_bad_file_hides_no_other_from_the_list() {
    let directory = directory();
    let store = leases(directory.path());
    granted(store.acquire(&claim(1)));
    symlink("/nowhere", directory.path().join("zzz.lease")).unwrap();
    let listed = store.list().unwrap();
    let held: Vec<_> = listed
        .iter()
        .filter_map(|held| held.as_ref().ok())
        .collect();
    assert_eq!(held.len(), 1);
    assert_eq!(held[0].0, claim(1).name);
    assert_eq!(listed.len(), 2);
}

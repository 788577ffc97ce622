//! The fence counter, which never allots a number twice: it allots blocks of numbers to the files of a
//! directory.
//!
//! A file grants from its own block without reading the counter. The counter records which numbers have
//! been allotted to any file. It is synced to the disk before a block is used, so that no number is granted
//! twice, whatever a loss of power, or a user, does to the other files.

use std::fs::File;
use std::io;
use std::path::Path;

use crate::durable_u64::{self, Magic};
use crate::error::FileError;
use crate::flock::Guarded;
use crate::os::OpenDirectory;
use crate::record::COUNTED;
use crate::record_file::wall_clock;
use crate::trusted_file;

/// The fence counter of a directory.
#[derive(Debug)]
pub(crate) struct Counter {
    /// The function that syncs a number to the disk.
    sync: fn(&File) -> io::Result<()>,
}

const MAGIC: Magic = *b"VERROUF\n";

/// The name of the counter's file.
const FILE: &str = "fences";

/// How many numbers a file is allotted at once. The cost of one sync to the disk per block is negligible
/// per number.
const BLOCK: u64 = 16_384;

impl Counter {
    pub(crate) fn new() -> Self {
        Self {
            sync: durable_u64::sync,
        }
    }

    /// Allots, in `directory`, numbers greater than `at_least` and than all that were allotted before;
    /// returns the first and the last. `greatest` returns the greatest number in use, which is needed
    /// for a new counter.
    pub(crate) fn allot(
        &self,
        directory: &OpenDirectory,
        at_least: u64,
        greatest: impl Fn() -> Result<u64, FileError>,
    ) -> Result<(u64, u64), FileError> {
        let name = Path::new(FILE);
        let path = &directory.path().join(name);
        let failed = |action| FileError::io(action, path);
        loop {
            let Some(file) = trusted_file::open(directory, name)? else {
                let created = directory.create(name, &durable_u64::encode(MAGIC, 0));
                created.map_err(failed("create the fence counter"))?;
                continue;
            };
            // Do not wait for the disk while other processes wait for the file.
            let read = || durable_u64::read(&file, MAGIC).map_err(failed("read the fence counter"));
            let mut in_use = None;
            if read()? == Some(0) {
                // The creating process may have been killed before the file's name was synced to the
                // disk.
                mutant!(FolderNotOnDisk, Ok(()), directory.sync())
                    .map_err(failed("create the fence counter"))?;
                in_use = Some(mutant!(CounterBeginsAnew, 0, greatest()?.max(by_now())));
            }
            let guarded = Guarded::new(&file, path)?;
            if !trusted_file::is_current(&file, directory, name)? {
                continue;
            }
            let corrupt = || FileError::Counter { path: path.clone() };
            let allotted = match (read()?.ok_or_else(corrupt)?, in_use) {
                (0, None) => continue,
                (0, Some(in_use)) => in_use,
                (allotted, _) => allotted,
            };
            let allotted = allotted.max(mutant!(CounterAloneCounts, 0, at_least));
            let last = allotted.saturating_add(BLOCK);
            if COUNTED <= last {
                return Err(corrupt());
            }
            durable_u64::put(&file, MAGIC, last).map_err(failed("write the fence counter"))?;
            // Other processes may sync their numbers first: all numbers allotted before are smaller.
            drop(guarded);
            (self.sync)(&file).map_err(failed("write the fence counter"))?;
            return Ok((allotted + 1, last));
        }
    }
}

/// Returns the first number of a new counter. It is beyond all numbers that a previous counter at the
/// same path is likely to have allotted, before its directory was removed or moved away.
fn by_now() -> u64 {
    /// Numbers per millisecond. This allows 62 blocks per second for as long as a directory exists, and
    /// stays exact as a JavaScript number until the year 2248.
    const PER_MILLISECOND: u64 = 1024;
    /// The maximum result: it leaves enough numbers for any value of the clock.
    const MOST: u64 = COUNTED / 2;

    let now = u64::try_from(wall_clock().as_millis()).unwrap_or(u64::MAX);
    now.saturating_mul(PER_MILLISECOND).min(MOST)
}

#[cfg(test)]
mod tests {
    use std::sync::Mutex;
    use std::sync::atomic::{AtomicBool, Ordering};
    use std::thread;

    use super::*;
    use crate::os::{DirectoryAccess, Purpose};

    fn opened(temp_dir: &tempfile::TempDir) -> OpenDirectory {
        let access = DirectoryAccess {
            purpose: Purpose::Store,
            group: None,
            create: false,
        };
        OpenDirectory::open(temp_dir.path(), &access)
            .unwrap()
            .unwrap()
    }

    #[test]
    fn files_of_version_1_stay_readable() {
        let golden = include_bytes!("../../tests/golden/counter-v1.fences");
        assert_eq!(
            golden[..],
            durable_u64::encode(MAGIC, 0x0123_4567_89ab_cdef)
        );
        let temp_dir = tempfile::tempdir().unwrap();
        let path = temp_dir.path().join("fences");
        std::fs::write(&path, golden).unwrap();
        let allotted = Counter::new().allot(&opened(&temp_dir), 0, || Ok(0));
        assert_eq!(allotted.unwrap().0, 0x0123_4567_89ab_cdf0);
    }

    #[test]
    fn slow_disk_of_one_process_does_not_delay_others() {
        static IS_SLOW: Mutex<()> = Mutex::new(());
        static BEGUN: AtomicBool = AtomicBool::new(false);

        let temp_dir = tempfile::tempdir().unwrap();
        let directory = opened(&temp_dir);
        let unused = || Ok(0);
        let slow = Counter {
            sync: |_| {
                BEGUN.store(true, Ordering::Release);
                drop(IS_SLOW.lock());
                Ok(())
            },
        };
        let is_slow = IS_SLOW.lock();
        thread::scope(|threads| {
            let waiting = threads.spawn(|| slow.allot(&directory, 0, unused));
            while !BEGUN.load(Ordering::Acquire) {
                thread::yield_now();
            }
            let (first, last) = Counter::new().allot(&directory, 0, unused).unwrap();
            drop(is_slow);
            let before = waiting.join().unwrap().unwrap();
            assert_eq!((first, last), (before.1 + 1, before.1 + BLOCK));
        });
    }

    #[test]
    fn blocks_never_overlap_even_when_the_counter_is_lost() {
        let temp_dir = tempfile::tempdir().unwrap();
        let directory = opened(&temp_dir);
        let counter = Counter::new();
        let unused = || Ok(0);
        let (first, last) = counter.allot(&directory, 0, unused).unwrap();
        assert_eq!(last - first, BLOCK - 1);
        let next = last + 1;
        assert_eq!(
            counter.allot(&directory, 0, unused).unwrap(),
            (next, last + BLOCK)
        );
        // A number greater than the clock gives.
        let far = 1 << 60;
        assert_eq!(
            counter.allot(&directory, far, unused).unwrap(),
            (far + 1, far + BLOCK)
        );
        std::fs::remove_file(temp_dir.path().join("fences")).unwrap();
        let further = far + 50_000;
        assert_eq!(
            counter.allot(&directory, 0, || Ok(further)).unwrap(),
            (further + 1, further + BLOCK)
        );
        // The process that created the file was killed before it wrote a number.
        std::fs::write(
            temp_dir.path().join("fences"),
            durable_u64::encode(MAGIC, 0),
        )
        .unwrap();
        let further = further + 50_000;
        assert_eq!(
            counter.allot(&directory, 0, || Ok(further)).unwrap(),
            (further + 1, further + BLOCK)
        );
        // Remove all files that record what was allotted.
        std::fs::remove_file(temp_dir.path().join("fences")).unwrap();
        let now = by_now();
        assert!(now > BLOCK && counter.allot(&directory, 0, unused).unwrap().0 > now);
        std::fs::write(temp_dir.path().join("fences"), "VERROUF").unwrap();
        assert!(matches!(
            counter.allot(&directory, 0, unused),
            Err(FileError::Counter { .. })
        ));
    }
}

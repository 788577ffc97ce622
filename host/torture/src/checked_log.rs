//! The resource that a lock protects: words of shared memory that detect violations of mutual
//! exclusion.
//!
//! Violations are detected at the resource, independently of what the stores return.

use std::fs::File;
use std::path::Path;
use std::slice;
use std::sync::atomic::AtomicU64;
use std::sync::atomic::Ordering::SeqCst;

use anyhow::{Context, Result};
use memmap2::{MmapOptions, MmapRaw};
use verrou::Clock;
use verrou_host::System;

/// The meaning of each of the first words.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Word {
    /// The number of the process inside the critical section; zero if there is none.
    Inside,
    /// The greatest fencing token that has entered.
    Fence,
    /// A counter that the process inside increments by a read and a write.
    Counter,
    /// The number of increments of that counter.
    Acknowledged,
    /// The number of processes that are acquiring or holding the lock.
    Wanting,
    /// The number of acquisitions while other processes also wanted the lock.
    Contended,
    /// The number of acquisitions.
    Entered,
    /// The time since which the lock has been free.
    FreeSince,
    /// The longest time that the lock was free and not acquired, in nanoseconds.
    LongestGap,
    /// The number of acquisitions while a process with an expired lease was inside.
    Zombies,
    /// The number of grants whose lease had expired before the process entered.
    Stale,
    /// The number of acquisitions while a process was inside whose lock file was removed.
    Displaced,
    /// The number of acquire requests that timed out.
    TimedOut,
    /// The longest time that a waiter waited beyond its timeout, in nanoseconds.
    Overshoot,
    /// The number of requests that failed because the directory was missing.
    DirectoryMissing,
    /// Whether all processes are to stop.
    Stop,
    /// The number of words.
    Count,
}

/// The meaning of each word of a process.
#[derive(Clone, Copy, Debug)]
enum ProcessWord {
    /// Whether the process was killed.
    Dead,
    /// When its lease expires, in nanoseconds since the boot; zero after it has left.
    Deadline,
    /// Whether another process entered while it was inside.
    Displaced,
    /// The fencing token that it entered with last.
    Fence,
    Count,
}

/// The result of entering or leaving the critical section.
#[derive(Clone, Debug, Eq, PartialEq)]
pub(crate) enum Verdict {
    /// No violation.
    Fine,
    /// The caller's lease had expired: it did not enter, or another process may have entered.
    Stale,
    /// Another process with a valid lease was inside.
    Overlap(String),
    /// The fencing token is smaller than an earlier one.
    FenceDecreased(String),
    /// The fencing token is the same as another process's.
    FenceRepeated(String),
}

/// A critical section in shared memory.
pub(crate) struct Resource {
    map: MmapRaw,
}

/// The greatest number of processes of a run.
const MOST: usize = 400_000;

impl Resource {
    /// Creates a resource in a new file at `path`.
    pub(crate) fn create(path: &Path) -> Result<Self> {
        let file = File::options()
            .read(true)
            .write(true)
            .create_new(true)
            .open(path)?;
        let words = Word::Count as usize + MOST * ProcessWord::Count as usize;
        file.set_len(words as u64 * 8)?;
        Self::map(&file)
    }

    /// Opens the resource of another process.
    pub(crate) fn open(path: &Path) -> Result<Self> {
        let file = File::options().read(true).write(true).open(path);
        Self::map(&file.context("cannot open the shared words")?)
    }

    fn map(file: &File) -> Result<Self> {
        let map = MmapOptions::new().map_raw(file)?;
        Ok(Self { map })
    }

    #[expect(
        unsafe_code,
        reason = "processes that are killed at any instant can share nothing but memory"
    )]
    fn words(&self) -> &[AtomicU64] {
        // SAFETY: the mapping has the length that `len` returns, is page-aligned, and lives as long
        // as `self`; any bits are a valid `AtomicU64`, and all accesses are to `AtomicU64`s.
        unsafe { slice::from_raw_parts(self.map.as_mut_ptr().cast(), self.map.len() / 8) }
    }

    pub(crate) fn word(&self, word: Word) -> &AtomicU64 {
        &self.words()[word as usize]
    }

    pub(crate) fn get(&self, word: Word) -> u64 {
        self.word(word).load(SeqCst)
    }

    fn of(&self, process: u64, word: ProcessWord) -> &AtomicU64 {
        let process = usize::try_from(process).expect("a process number fits into usize") % MOST;
        &self.words()[Word::Count as usize + process * ProcessWord::Count as usize + word as usize]
    }

    /// Records that `process` enters with `fence`, under a lease that ends at `deadline`.
    pub(crate) fn enter(&self, process: u64, fence: u64, deadline: u64) -> Verdict {
        self.of(process, ProcessWord::Deadline)
            .store(deadline, SeqCst);
        self.of(process, ProcessWord::Fence).store(fence, SeqCst);
        let before = self.word(Word::Inside).swap(process, SeqCst);
        let entered = now();
        if entered >= deadline {
            // Another process inside may have a valid lease.
            let inside = self.word(Word::Inside);
            let _ = inside.compare_exchange(process, before, SeqCst, SeqCst);
            self.word(Word::Stale).fetch_add(1, SeqCst);
            return Verdict::Stale;
        }
        let mut greatest = self.word(Word::Fence).fetch_max(fence, SeqCst);
        if before != 0 {
            // The other process may not have stored its token yet.
            greatest = greatest.max(self.of(before, ProcessWord::Fence).load(SeqCst));
        }
        if greatest > fence {
            // Another process was granted the lock since: the process inside may have a valid
            // lease.
            let inside = self.word(Word::Inside);
            let _ = inside.compare_exchange(process, before, SeqCst, SeqCst);
            return Verdict::FenceDecreased(format!(
                "process {process} entered with fencing token {fence}, after {greatest}"
            ));
        }
        let since = self.word(Word::FreeSince).load(SeqCst);
        if since > 0 {
            let gap = entered.saturating_sub(since);
            self.word(Word::LongestGap).fetch_max(gap, SeqCst);
        }
        self.word(Word::FreeSince).store(deadline, SeqCst);
        self.word(Word::Entered).fetch_add(1, SeqCst);

        if before != 0 && self.of(before, ProcessWord::Dead).load(SeqCst) == 0 {
            let until = self.of(before, ProcessWord::Deadline).load(SeqCst);
            if entered < until {
                self.of(before, ProcessWord::Displaced).store(1, SeqCst);
                self.word(Word::Displaced).fetch_add(1, SeqCst);
                return Verdict::Overlap(format!(
                    "process {process} entered while process {before} was inside; lease time \
                     left: {}",
                    if until == u64::MAX {
                        "unlimited".to_owned()
                    } else {
                        format!("{} µs", (until - entered) / 1000)
                    }
                ));
            }
            if until > 0 {
                self.word(Word::Zombies).fetch_add(1, SeqCst);
            }
        }
        if greatest == fence {
            return Verdict::FenceRepeated(format!(
                "process {process} entered with fencing token {fence}, which another process had"
            ));
        }
        Verdict::Fine
    }

    /// Records that `process` leaves.
    pub(crate) fn leave(&self, process: u64) -> Verdict {
        let deadline = self.of(process, ProcessWord::Deadline).swap(0, SeqCst);
        let inside = self.word(Word::Inside);
        let there = inside.compare_exchange(process, 0, SeqCst, SeqCst);
        let left = now();
        match there {
            Ok(_) => {
                self.word(Word::FreeSince).store(left, SeqCst);
                Verdict::Fine
            }
            // A process whose lease had expired on entering, and which has not left yet.
            Err(other)
                if other != 0
                    && other != process
                    && (1..=left).contains(&self.of(other, ProcessWord::Deadline).load(SeqCst)) =>
            {
                Verdict::Fine
            }
            Err(_) if left >= deadline => Verdict::Stale,
            Err(0) => Verdict::Overlap(format!(
                "another process was inside at the same time as process {process}"
            )),
            Err(other) => Verdict::Overlap(format!(
                "process {process} left, and process {other} was inside"
            )),
        }
    }

    /// Returns whether another process entered while `process` was inside, and resets that.
    pub(crate) fn was_displaced(&self, process: u64) -> bool {
        self.of(process, ProcessWord::Displaced).swap(0, SeqCst) != 0
    }

    /// Records that `process` is about to be killed.
    pub(crate) fn mark_dead(&self, process: u64) {
        self.of(process, ProcessWord::Dead).store(1, SeqCst);
    }

    /// Records that the lock becomes free now.
    pub(crate) fn mark_free(&self) {
        self.word(Word::FreeSince).store(now(), SeqCst);
    }

    /// Increments the counter, as the process inside, and runs `between` between the read and the
    /// write.
    pub(crate) fn count(&self, between: impl FnOnce()) {
        let counter = self.word(Word::Counter);
        let before = counter.load(SeqCst);
        between();
        counter.store(before + 1, SeqCst);
        self.word(Word::Acknowledged).fetch_add(1, SeqCst);
    }
}

/// Returns the nanoseconds since the boot.
pub(crate) fn now() -> u64 {
    let now = System.now().since_start();
    u64::try_from(now.as_nanos()).expect("an uptime fits into 64 bits")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn resource() -> (tempfile::TempDir, Resource) {
        let directory = tempfile::tempdir().unwrap();
        let resource = Resource::create(&directory.path().join("words")).unwrap();
        (directory, resource)
    }

    fn is_overlap(verdict: &Verdict) -> bool {
        matches!(verdict, Verdict::Overlap(_))
    }

    #[test]
    fn sequential_holders_are_no_violation() {
        let (_directory, resource) = resource();
        for process in 1..4 {
            assert_eq!(resource.enter(process, process, u64::MAX), Verdict::Fine);
            assert_eq!(resource.leave(process), Verdict::Fine);
        }
        assert_eq!(resource.get(Word::Entered), 3);
    }

    #[test]
    fn two_holders_at_once_are_detected() {
        let (_directory, resource) = resource();
        assert_eq!(resource.enter(1, 1, u64::MAX), Verdict::Fine);
        assert!(is_overlap(&resource.enter(2, 2, u64::MAX)));
        assert!(resource.was_displaced(1));
        assert!(is_overlap(&resource.leave(1)));
    }

    #[test]
    fn second_holder_that_has_left_is_detected() {
        let (_directory, resource) = resource();
        assert_eq!(resource.enter(1, 1, u64::MAX), Verdict::Fine);
        assert!(is_overlap(&resource.enter(2, 2, u64::MAX)));
        assert_eq!(resource.leave(2), Verdict::Fine);
        assert!(is_overlap(&resource.leave(1)));
    }

    #[test]
    fn fencing_token_that_does_not_grow_is_detected() {
        let (_directory, resource) = resource();
        assert_eq!(resource.enter(1, 7, u64::MAX), Verdict::Fine);
        assert_eq!(resource.leave(1), Verdict::Fine);
        assert!(matches!(
            resource.enter(2, 7, u64::MAX),
            Verdict::FenceRepeated(_)
        ));
        assert_eq!(resource.leave(2), Verdict::Fine);
        assert!(matches!(
            resource.enter(3, 6, u64::MAX),
            Verdict::FenceDecreased(_)
        ));
    }

    #[test]
    fn dead_and_expired_holders_are_replaced_without_violation() {
        let (_directory, resource) = resource();
        assert_eq!(resource.enter(1, 1, u64::MAX), Verdict::Fine);
        resource.mark_dead(1);
        let soon = now() + 1_000_000;
        assert_eq!(resource.enter(2, 2, soon), Verdict::Fine);
        while now() < soon {}
        assert_eq!(resource.enter(3, 3, u64::MAX), Verdict::Fine);
        assert_eq!(resource.get(Word::Zombies), 1);
        assert_eq!(resource.leave(2), Verdict::Stale);
        assert_eq!(resource.enter(2, 2, now()), Verdict::Stale);
        assert_eq!(resource.leave(3), Verdict::Fine);
    }
}

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
    Nowhere,
    /// Whether all processes are to stop.
    Stop,
    /// The number of words.
    Count,
}

/// The meaning of each word of a process.
#[derive(Clone, Copy, Debug)]
enum Of {
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
    Beside(String),
    /// The fencing token is smaller than an earlier one.
    FenceWentBack(String),
    /// The fencing token is the same as another process's.
    FenceCameAgain(String),
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
        let words = Word::Count as usize + MOST * Of::Count as usize;
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

    fn of(&self, who: u64, what: Of) -> &AtomicU64 {
        let who = usize::try_from(who).expect("a process number fits into usize") % MOST;
        &self.words()[Word::Count as usize + who * Of::Count as usize + what as usize]
    }

    /// Records that `process` enters with `fence`, under a lease that ends at `deadline`.
    pub(crate) fn enter(&self, who: u64, fence: u64, deadline: u64) -> Verdict {
        self.of(who, Of::Deadline).store(deadline, SeqCst);
        self.of(who, Of::Fence).store(fence, SeqCst);
        let before = self.word(Word::Inside).swap(who, SeqCst);
        let entered = now();
        if entered >= deadline {
            // Another process inside may have a valid lease.
            let inside = self.word(Word::Inside);
            let _ = inside.compare_exchange(who, before, SeqCst, SeqCst);
            self.word(Word::Stale).fetch_add(1, SeqCst);
            return Verdict::Stale;
        }
        let mut greatest = self.word(Word::Fence).fetch_max(fence, SeqCst);
        if before != 0 {
            // The other process may not have stored its token yet.
            greatest = greatest.max(self.of(before, Of::Fence).load(SeqCst));
        }
        if greatest > fence {
            // Another process was granted the lock since: the process inside may have a valid lease.
            let inside = self.word(Word::Inside);
            let _ = inside.compare_exchange(who, before, SeqCst, SeqCst);
            return Verdict::FenceWentBack(format!(
                "process {who} entered with fencing token {fence}, after {greatest}"
            ));
        }
        let since = self.word(Word::FreeSince).load(SeqCst);
        if since > 0 {
            let gap = entered.saturating_sub(since);
            self.word(Word::LongestGap).fetch_max(gap, SeqCst);
        }
        self.word(Word::FreeSince).store(deadline, SeqCst);
        self.word(Word::Entered).fetch_add(1, SeqCst);

        if before != 0 && self.of(before, Of::Dead).load(SeqCst) == 0 {
            let until = self.of(before, Of::Deadline).load(SeqCst);
            if entered < until {
                self.of(before, Of::Displaced).store(1, SeqCst);
                self.word(Word::Displaced).fetch_add(1, SeqCst);
                return Verdict::Beside(format!(
                    "process {who} entered while process {before} was inside with {} left",
                    if until == u64::MAX {
                        "an endless lease".to_owned()
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
            return Verdict::FenceCameAgain(format!(
                "process {who} entered with fencing token {fence}, which another process had"
            ));
        }
        Verdict::Fine
    }

    /// Records that `process` leaves.
    pub(crate) fn leave(&self, who: u64) -> Verdict {
        let deadline = self.of(who, Of::Deadline).swap(0, SeqCst);
        let inside = self.word(Word::Inside);
        let there = inside.compare_exchange(who, 0, SeqCst, SeqCst);
        let left = now();
        match there {
            Ok(_) => {
                self.word(Word::FreeSince).store(left, SeqCst);
                Verdict::Fine
            }
            // A process whose lease had expired on entering, and which has not left yet.
            Err(other)
                if other != 0
                    && other != who
                    && (1..=left).contains(&self.of(other, Of::Deadline).load(SeqCst)) =>
            {
                Verdict::Fine
            }
            Err(_) if left >= deadline => Verdict::Stale,
            Err(0) => Verdict::Beside(format!("another process was inside at the same time as process {who}")),
            Err(other) => {
                Verdict::Beside(format!("process {who} left, and process {other} was inside"))
            }
        }
    }

    /// Returns whether another process entered while `process` was inside, and resets that.
    pub(crate) fn was_displaced(&self, who: u64) -> bool {
        self.of(who, Of::Displaced).swap(0, SeqCst) != 0
    }

    /// Records that `process` is about to be killed.
    pub(crate) fn dies(&self, who: u64) {
        self.of(who, Of::Dead).store(1, SeqCst);
    }

    /// Records that the lock becomes free now.
    pub(crate) fn is_free(&self) {
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
        let folder = tempfile::tempdir().unwrap();
        let resource = Resource::create(&folder.path().join("words")).unwrap();
        (folder, resource)
    }

    fn is_beside(verdict: &Verdict) -> bool {
        matches!(verdict, Verdict::Beside(_))
    }

    #[test]
    fn one_after_the_other_is_fine() {
        let (_folder, resource) = resource();
        for who in 1..4 {
            assert_eq!(resource.enter(who, who, u64::MAX), Verdict::Fine);
            assert_eq!(resource.leave(who), Verdict::Fine);
        }
        assert_eq!(resource.get(Word::Entered), 3);
    }

    #[test]
    fn two_at_once_are_found_out() {
        let (_folder, resource) = resource();
        assert_eq!(resource.enter(1, 1, u64::MAX), Verdict::Fine);
        assert!(is_beside(&resource.enter(2, 2, u64::MAX)));
        assert!(resource.was_displaced(1));
        assert!(is_beside(&resource.leave(1)));
    }

    #[test]
    fn one_who_came_and_went_meanwhile_is_found_out() {
        let (_folder, resource) = resource();
        assert_eq!(resource.enter(1, 1, u64::MAX), Verdict::Fine);
        assert!(is_beside(&resource.enter(2, 2, u64::MAX)));
        assert_eq!(resource.leave(2), Verdict::Fine);
        assert!(is_beside(&resource.leave(1)));
    }

    #[test]
    fn a_fencing_token_that_does_not_grow_is_found_out() {
        let (_folder, resource) = resource();
        assert_eq!(resource.enter(1, 7, u64::MAX), Verdict::Fine);
        assert_eq!(resource.leave(1), Verdict::Fine);
        assert!(matches!(
            resource.enter(2, 7, u64::MAX),
            Verdict::FenceCameAgain(_)
        ));
        assert_eq!(resource.leave(2), Verdict::Fine);
        assert!(matches!(
            resource.enter(3, 6, u64::MAX),
            Verdict::FenceWentBack(_)
        ));
    }

    #[test]
    fn the_dead_and_those_whose_time_has_passed_are_passed() {
        let (_folder, resource) = resource();
        assert_eq!(resource.enter(1, 1, u64::MAX), Verdict::Fine);
        resource.dies(1);
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

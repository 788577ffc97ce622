//! What the locks protect: words that processes share, and that notice what must not happen.
//!
//! Violations are counted here, at the resource, and not where a store says who holds what.

use std::fs::File;
use std::path::Path;
use std::slice;
use std::sync::atomic::AtomicU64;
use std::sync::atomic::Ordering::SeqCst;

use anyhow::{Context, Result};
use memmap2::{MmapOptions, MmapRaw};
use verrou::Clock;
use verrou_host::System;

/// What each of the first words is.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Word {
    /// Who is inside; nobody when it is zero.
    Inside,
    /// The greatest fencing token of those who were.
    Fence,
    /// Is read, and written one greater, by who is inside.
    Counter,
    /// How often somebody has done so.
    Acknowledged,
    /// How many want to get in, or are.
    Wanting,
    /// How often somebody got in, of whom there were others who wanted to.
    Contended,
    /// How often somebody got in.
    Entered,
    /// Since when somebody could have got in.
    FreeSince,
    /// For how long, at most, somebody could have got in and nobody did, in nanoseconds.
    LongestGap,
    /// How often somebody got in beside one whose time had passed.
    Zombies,
    /// How often somebody came too late with what had been granted.
    Stale,
    /// How often somebody got in beside one whose lock's file was removed.
    Displaced,
    /// How often somebody gave up.
    TimedOut,
    /// For how long, at most, somebody waited longer than it wanted to, in nanoseconds.
    Overshoot,
    /// How often there was no folder.
    Nowhere,
    /// Whether all are to stop.
    Stop,
    /// The number of these.
    Count,
}

/// What is known of each who may get in.
#[derive(Clone, Copy, Debug)]
enum Of {
    /// Whether it was killed.
    Dead,
    /// When its time has passed, in nanoseconds since the machine started; zero once it has left.
    Deadline,
    /// Whether another got in beside it.
    Displaced,
    /// The fence that it got in with last.
    Fence,
    Count,
}

/// How getting in, or leaving, went.
#[derive(Clone, Debug, Eq, PartialEq)]
pub(crate) enum Verdict {
    /// As it should.
    Fine,
    /// The caller's own time had passed, so that it is not inside, or another is.
    Stale,
    /// Another was inside, by right.
    Beside(String),
    /// With a fencing token that is smaller than one before.
    FenceWentBack(String),
    /// With a fencing token that somebody else had.
    FenceCameAgain(String),
}

/// Something that only one may use at a time.
pub(crate) struct Resource {
    map: MmapRaw,
}

/// How many there may be, one after the other.
const MOST: usize = 400_000;

impl Resource {
    /// A new one in the file at `path`.
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

    /// The one that another process made.
    pub(crate) fn open(path: &Path) -> Result<Self> {
        let file = File::options().read(true).write(true).open(path);
        Self::map(&file.context("the shared words")?)
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
        // SAFETY: the mapping is as long as it says, page-aligned, and lives as long as `self`; any
        // bits are an `AtomicU64`, and no one looks at these as anything else.
        unsafe { slice::from_raw_parts(self.map.as_mut_ptr().cast(), self.map.len() / 8) }
    }

    pub(crate) fn word(&self, word: Word) -> &AtomicU64 {
        &self.words()[word as usize]
    }

    pub(crate) fn get(&self, word: Word) -> u64 {
        self.word(word).load(SeqCst)
    }

    fn of(&self, who: u64, what: Of) -> &AtomicU64 {
        let who = usize::try_from(who).expect("it fits") % MOST;
        &self.words()[Word::Count as usize + who * Of::Count as usize + what as usize]
    }

    /// `who` gets in with `fence`, until `deadline` at the latest.
    pub(crate) fn enter(&self, who: u64, fence: u64, deadline: u64) -> Verdict {
        self.of(who, Of::Deadline).store(deadline, SeqCst);
        self.of(who, Of::Fence).store(fence, SeqCst);
        let before = self.word(Word::Inside).swap(who, SeqCst);
        let entered = now();
        if entered >= deadline {
            // Whoever else is inside is so by right.
            let inside = self.word(Word::Inside);
            let _ = inside.compare_exchange(who, before, SeqCst, SeqCst);
            self.word(Word::Stale).fetch_add(1, SeqCst);
            return Verdict::Stale;
        }
        let mut greatest = self.word(Word::Fence).fetch_max(fence, SeqCst);
        if before != 0 {
            // It may not have got as far.
            greatest = greatest.max(self.of(before, Of::Fence).load(SeqCst));
        }
        if greatest > fence {
            // Another was granted the lock since: whoever is inside is so by right.
            let inside = self.word(Word::Inside);
            let _ = inside.compare_exchange(who, before, SeqCst, SeqCst);
            return Verdict::FenceWentBack(format!(
                "number {who} got in with fencing token {fence}, after {greatest}"
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
                    "number {who} got in, and number {before} was inside and had {} left",
                    if until == u64::MAX {
                        "no end".to_owned()
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
                "number {who} got in with fencing token {fence}, which was another's"
            ));
        }
        Verdict::Fine
    }

    /// `who` leaves.
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
            // One who came too late, and has not yet gone again.
            Err(other)
                if other != 0
                    && other != who
                    && (1..=left).contains(&self.of(other, Of::Deadline).load(SeqCst)) =>
            {
                Verdict::Fine
            }
            Err(_) if left >= deadline => Verdict::Stale,
            Err(0) => Verdict::Beside(format!("somebody was inside at the same time as {who}")),
            Err(other) => {
                Verdict::Beside(format!("number {who} left, and number {other} was inside"))
            }
        }
    }

    /// Whether another got in while `who` was inside; asked once.
    pub(crate) fn was_displaced(&self, who: u64) -> bool {
        self.of(who, Of::Displaced).swap(0, SeqCst) != 0
    }

    /// `who` is about to be killed.
    pub(crate) fn dies(&self, who: u64) {
        self.of(who, Of::Dead).store(1, SeqCst);
    }

    /// What kept others out until now, does so no more.
    pub(crate) fn is_free(&self) {
        self.word(Word::FreeSince).store(now(), SeqCst);
    }

    /// Uses it, as one who is inside.
    pub(crate) fn count(&self, between: impl FnOnce()) {
        let counter = self.word(Word::Counter);
        let before = counter.load(SeqCst);
        between();
        counter.store(before + 1, SeqCst);
        self.word(Word::Acknowledged).fetch_add(1, SeqCst);
    }
}

/// Nanoseconds since the machine started.
pub(crate) fn now() -> u64 {
    let now = System.now().since_start();
    u64::try_from(now.as_nanos()).expect("a machine does not run for centuries")
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

//! Deliberate bugs, each of which a test must detect: `cargo xtask torture --only mutants`.
//!
//! They exist only in programs built with `--cfg verrou_mutants`. The environment variable
//! `VERROU_MUTANT` switches one of them on.

use std::io::{self, Write};
use std::string::String;
use std::sync::OnceLock;
use std::{env, format, process};

/// Names the deliberate bugs, of this crate and of `verrou-host`.
macro_rules! mutants {
    ($($name:ident)+) => {
        #[doc(hidden)]
        /// A deliberate bug; `host/torture/src/mutants/list.rs` describes each, and names the test that
        /// detects it.
        #[derive(Clone, Copy, Debug, Eq, PartialEq)]
        #[expect(clippy::exhaustive_enums, reason = "no code matches on it")]
        pub enum Mutant {
            $($name,)+
        }

        impl Mutant {
            const ALL: &[(&'static str, Self)] = &[$((stringify!($name), Self::$name),)+];
        }
    };
}

mutants! {
    AncestorsTrusted
    AnyFileSystem
    AskingAgainRefused
    ChecksumNotChecked
    CommandInheritsNoLock
    ContainersBootBelieved
    CounterAloneCounts
    CounterBeginsAnew
    CorruptionTakenForFree
    DraftNotCheckedAgain
    DraftsDeletedLast
    DroppedWaitKeepsPlace
    EndlessPatience
    ErrorTakenForRefusal
    EvictionIgnoresFence
    ExpiredGrantAccepted
    ExpiredLeasesKept
    ExtensionCountedFromReply
    FailedReleaseKeepsLease
    FenceGrowsWithExtension
    FenceResetByRelease
    FencesGoOnAfterPowerLoss
    FencesNotOnDisk
    FilesInherited
    FilesReplacedByCreating
    FilesTruncatedByOpening
    FolderNotOnDisk
    ForkNotNoticed
    ForkedFilesUsed
    HardLinksAccepted
    InodeNotChecked
    InterruptedTakenForFailure
    LeaseCountedFromReply
    LeasesEndByWallClock
    LifeToldByProcessNumber
    LinksFollowed
    LookedOnceAfterNews
    LowerFenceAccepted
    MadeBellNotExamined
    MadeFolderNotExamined
    MovedFileBelieved
    MovedNotNoticed
    NameNotCompared
    NobodyWoken
    NoGuard
    NoLivenessByte
    OneSlotOverwritten
    OpenFoldersAccepted
    OthersFolderLinksFollowed
    OthersTrusted
    PipesWaitedFor
    PlaceKeptByGivingUp
    PlantedDirectoriesLocked
    PosixLocks
    QueueIgnored
    RecordNotGuarded
    ReplacedWhileAllotted
    ReleasedByAnybody
    RenewedTooLate
    SkewIgnored
    StartIgnored
    StatesDeletedDescending
    StickyFoldersAccepted
    TimeNamespaceIgnored
    TimeToldByWallClock
    UndoForgotten
    UnmappedTrustedInTmp
    UnmappedUsersTrusted
    UnlockedByClosingAlone
    UntrustedPathLost
}

impl Mutant {
    /// Returns whether this is the bug that is switched on.
    ///
    /// Aborts the process if `VERROU_MUTANT` names an unknown bug: a test that fails for that reason must
    /// not look like one that detected the bug.
    pub fn is_on(self) -> bool {
        static SWITCHED_ON: OnceLock<Option<Mutant>> = OnceLock::new();

        *SWITCHED_ON.get_or_init(Self::switched_on) == Some(self)
    }

    fn switched_on() -> Option<Self> {
        let wanted = env::var_os("VERROU_MUTANT")?;
        let found = Self::ALL.iter().find(|(name, _)| wanted == **name);
        let Some((_, mutant)) = found else {
            let names = Self::ALL.iter().map(|(name, _)| format!("{name}\n"));
            let message = format!(
                "VERROU_MUTANT={} is none of the mutants:\n",
                wanted.display()
            );
            // The test harness captures what `eprintln!` prints.
            let _ = io::stderr().write_all((message + &names.collect::<String>()).as_bytes());
            process::abort();
        };
        Some(*mutant)
    }
}

//! The pitfalls of locks on one machine, a mutant for each remedy, and the tests that detect the
//! mutants.

use std::fmt;

/// A pitfall of locks on one machine.
pub(crate) struct Pitfall {
    /// The description of the pitfall.
    pub(crate) what: &'static str,
    /// The mutants that fall into it.
    pub(crate) mutants: &'static [Mutant],
    /// How the product avoids it, if it has no mutant; or a remark.
    pub(crate) otherwise: &'static str,
}

/// A deliberate bug of `src/mutant.rs`, and a test that detects it.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Mutant {
    pub(crate) name: &'static str,
    /// The description of the bug.
    pub(crate) about: &'static str,
    pub(crate) detected_by: Test,
    pub(crate) needs: Needs,
}

/// A test: its package, its program (`lib` for the tests inside the package) and its name.
#[derive(Clone, Copy, Debug, Eq, Ord, PartialEq, PartialOrd)]
pub(crate) struct Test {
    pub(crate) package: &'static str,
    pub(crate) program: &'static str,
    pub(crate) name: &'static str,
}

impl fmt::Display for Test {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} {} {}", self.package, self.program, self.name)
    }
}

/// A requirement of a test.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(crate) enum Needs {
    Nothing,
    Root,
    Strace,
    /// Root, and user namespaces, which a chroot(2) environment does not have: unshare(2).
    UserNamespace,
}

const fn mutant(name: &'static str, about: &'static str, detected_by: Test) -> Mutant {
    Mutant {
        name,
        about,
        detected_by,
        needs: Needs::Nothing,
    }
}

const fn needing(needs: Needs, mutant: Mutant) -> Mutant {
    Mutant { needs, ..mutant }
}

const fn core(program: &'static str, name: &'static str) -> Test {
    Test {
        package: "verrou",
        program,
        name,
    }
}

const fn cli(program: &'static str, name: &'static str) -> Test {
    Test {
        package: "verrou-cli",
        program,
        name,
    }
}

/// A test of the stores in files.
const fn files(program: &'static str, name: &'static str) -> Test {
    Test {
        package: "verrou-files",
        program,
        name,
    }
}

/// A test of the protocol of `wasi:` stores.
const fn hard_links(program: &'static str, name: &'static str) -> Test {
    Test {
        package: "verrou-hard-links",
        program,
        name,
    }
}

const fn host(program: &'static str, name: &'static str) -> Test {
    Test {
        package: "verrou-host",
        program,
        name,
    }
}

/// All pitfalls.
pub(crate) const PITFALLS: &[Pitfall] = &[
    Pitfall {
        what: "the kernel has locks that a process loses by closing any descriptor of the file",
        mutants: &[mutant(
            "PosixLocks",
            "bytes are locked for the process, and not for the open file description",
            host(
                "files",
                "lease_end::a_lease_is_not_lost_when_its_file_is_opened_and_closed_elsewhere",
            ),
        )],
        otherwise: "",
    },
    Pitfall {
        what: "a lock's file is removed or replaced",
        mutants: &[
            mutant(
                "InodeNotChecked",
                "a file that was just locked is not compared with the one at its path",
                host(
                    "files",
                    "moved_files::a_replaced_lock_file_makes_no_second_holder",
                ),
            ),
            mutant(
                "MovedFileBelieved",
                "a release fails for a lock file that was moved away",
                host(
                    "files",
                    "moved_files::detached_lease_is_released_after_its_file_or_directory_was_moved",
                ),
            ),
            mutant(
                "InodeNotChecked",
                "a file that was just locked is not compared with the one at its path",
                host(
                    "files",
                    "moved_files::a_replaced_lease_file_makes_no_second_holder",
                ),
            ),
            mutant(
                "InodeNotChecked",
                "a file that was just locked is not compared with the one at its path",
                host(
                    "files",
                    "fence_counter::counter_replaced_while_it_is_waited_for_is_not_used",
                ),
            ),
        ],
        otherwise: "",
    },
    Pitfall {
        what: "descriptors are inherited",
        mutants: &[
            mutant(
                "UnlockedByClosingAlone",
                "a file is unlocked only by closing it, although a forked child has it open, too",
                host("fork", "a_forked_child_releases_nothing_and_keeps_nothing"),
            ),
            mutant(
                "ForkNotNoticed",
                "a forked child uses its parent's locks",
                host("fork", "a_forked_child_releases_nothing_and_keeps_nothing"),
            ),
            mutant(
                "ForkedFilesUsed",
                "an operation locks a file that a forked child also has open",
                host("fork", "a_forked_child_releases_nothing_and_keeps_nothing"),
            ),
            mutant(
                "FilesInherited",
                "files are opened without O_CLOEXEC",
                host(
                    "files",
                    "operations::a_program_that_is_started_inherits_no_file_of_a_store",
                ),
            ),
        ],
        otherwise: "",
    },
    Pitfall {
        what: "some file systems of several machines lock only for one machine",
        mutants: &[mutant(
            "AnyFileSystem",
            "every kind of file system is accepted",
            host(
                "files",
                "permissions::unknown_file_system_is_refused_unless_overridden",
            ),
        )],
        otherwise: "",
    },
    Pitfall {
        what: "a file system in memory is empty after a reboot",
        mutants: &[],
        otherwise: "all holders have ended with the boot; users choose the directory's file system",
    },
    Pitfall {
        what: "process IDs are reused, and differ between namespaces",
        mutants: &[
            mutant(
                "LifeToldByProcessNumber",
                "a holder counts as alive if a process with its ID exists",
                host(
                    "files",
                    "lease_end::liveness_of_a_holder_does_not_depend_on_its_process_id",
                ),
            ),
            mutant(
                "NoLivenessByte",
                "the holder of a lease locks no byte",
                host(
                    "files",
                    "lease_end::liveness_of_a_holder_does_not_depend_on_its_process_id",
                ),
            ),
        ],
        otherwise: "",
    },
    Pitfall {
        what: "clocks are set, stop, restart, and differ between namespaces",
        mutants: &[
            mutant(
                "TimeToldByWallClock",
                "the machine's clock is the wall clock",
                host("files", "lease_end::system_clock_is_the_time_since_boot"),
            ),
            mutant(
                "LeasesEndByWallClock",
                "leases in files end by the wall clock",
                host(
                    "conformance",
                    "lease_files::time::a_record_ends_with_its_ttl",
                ),
            ),
            mutant(
                "StartIgnored",
                "a record of an earlier boot counts",
                host(
                    "files",
                    "lease_end::lease_ends_with_the_boot_and_its_fence_does_not",
                ),
            ),
            mutant(
                "ContainersBootBelieved",
                "a container's own boot ID counts as the machine's",
                cli(
                    "namespaces",
                    "a_container_with_a_boot_id_of_its_own_makes_no_second_holder",
                ),
            ),
            mutant(
                "TimeNamespaceIgnored",
                "the end of a lease is compared with a clock of another time namespace",
                host(
                    "files",
                    "lease_end::lease_of_another_time_namespace_never_counts_as_expired",
                ),
            ),
            mutant(
                "LeaseCountedFromReply",
                "a lease is counted from the reply, and not from before its request",
                core("acquire", "a_lease_is_counted_from_before_its_own_request"),
            ),
            mutant(
                "ExtensionCountedFromReply",
                "an extension is counted from the reply, and not from before its request",
                core("renew", "step_is_repeated_until_its_result_is_recorded"),
            ),
            mutant(
                "ExpiredGrantAccepted",
                "a grant counts that had expired when the reply arrived",
                core("acquire", "grant_received_after_expiry_is_released"),
            ),
            mutant(
                "RenewedTooLate",
                "a lease is renewed only after its whole TTL",
                core("renew", "lease_is_renewed_at_every_third_of_the_ttl"),
            ),
        ],
        otherwise: "",
    },
    Pitfall {
        what: "a record is half written, or corrupt",
        mutants: &[
            mutant(
                "OneSlotOverwritten",
                "the newer of two records is overwritten, and not the older",
                files(
                    "lib",
                    "record::codec::tests::corrupt_slot_is_taken_for_torn_write_only_after_reboot",
                ),
            ),
            mutant(
                "ChecksumNotChecked",
                "a record counts that does not fit its checksum",
                host("files", "corrupt_files::corrupt_file_is_never_a_free_lock"),
            ),
            mutant(
                "CorruptionTakenForFree",
                "a corrupt record counts as a free lock",
                host("files", "corrupt_files::corrupt_file_is_never_a_free_lock"),
            ),
        ],
        otherwise: "",
    },
    Pitfall {
        what: "writes are lost by a power loss",
        mutants: &[
            needing(
                Needs::Strace,
                mutant(
                    "FencesNotOnDisk",
                    "fencing tokens are granted before the counter is on the disk",
                    cli("strace", "fences_are_on_the_disk_before_one_is_granted"),
                ),
            ),
            mutant(
                "FencesGoOnAfterPowerLoss",
                "a file keeps its allotted fencing tokens after a reboot, despite lost writes",
                host(
                    "files",
                    "lease_end::lease_ends_with_the_boot_and_its_fence_does_not",
                ),
            ),
        ],
        otherwise: "",
    },
    Pitfall {
        what: "the disk is full",
        mutants: &[mutant(
            "FailedReleaseKeepsLease",
            "a release that cannot be recorded keeps the lease's byte locked",
            host(
                "files",
                "corrupt_files::lease_whose_release_cannot_be_recorded_ends_anyway",
            ),
        )],
        otherwise: "only a full disk shows that a file's blocks are allocated in advance",
    },
    Pitfall {
        what: "the system runs out of descriptors, locks or memory",
        mutants: &[
            mutant(
                "ErrorTakenForRefusal",
                "a failed request counts as a refused one",
                core("acquire", "temporary_errors_are_retried_after_a_pause"),
            ),
            mutant(
                "ExpiredLeasesKept",
                "expired leases without a release keep their files open",
                host("descriptors", "expired_leases_keep_few_descriptors"),
            ),
        ],
        otherwise: "",
    },
    Pitfall {
        what: "other users plant something in the place of a lock file",
        mutants: &[
            mutant(
                "LinksFollowed",
                "files are opened without O_NOFOLLOW",
                host(
                    "files",
                    "permissions::a_planted_symbolic_link_is_not_followed",
                ),
            ),
            mutant(
                "PipesWaitedFor",
                "files are opened without O_NONBLOCK",
                host(
                    "files",
                    "exact_file::a_pipe_is_locked_without_waiting_for_its_other_end",
                ),
            ),
            mutant(
                "HardLinksAccepted",
                "a file with several hard links is accepted",
                host(
                    "files",
                    "permissions::a_hard_link_to_another_file_is_refused",
                ),
            ),
            needing(
                Needs::Root,
                mutant(
                    "OthersTrusted",
                    "files and directories of all users are trusted",
                    host(
                        "files",
                        "permissions::another_users_file_is_refused_unless_it_is_the_groups",
                    ),
                ),
            ),
            mutant(
                "OpenFoldersAccepted",
                "a directory is accepted from which all users may remove files",
                // Without this rule a store is still refused, because all users may make files in it.
                cli("fence", "missing_or_unsafe_directory_exits_73"),
            ),
            needing(
                Needs::Root,
                mutant(
                    "StickyFoldersAccepted",
                    "a directory is accepted in which all users may create files",
                    cli(
                        "hostile_paths",
                        "store_in_a_sticky_directory_is_refused_with_ways_out",
                    ),
                ),
            ),
            needing(
                Needs::Root,
                mutant(
                    "AncestorsTrusted",
                    "directories above a store are not examined",
                    cli(
                        "hostile_paths",
                        "path_through_another_users_directory_is_refused",
                    ),
                ),
            ),
            needing(
                Needs::Root,
                mutant(
                    "OthersFolderLinksFollowed",
                    "a symbolic link of another user is followed to the store",
                    cli("hostile_paths", "link_of_another_user_is_not_followed"),
                ),
            ),
            needing(
                Needs::Root,
                mutant(
                    "MadeFolderNotExamined",
                    "a planted object in the place of a new directory is given to the group",
                    cli(
                        "hostile_paths",
                        "no_other_directory_is_given_to_a_group_in_a_race",
                    ),
                ),
            ),
            needing(
                Needs::Root,
                mutant(
                    "MadeBellNotExamined",
                    "a planted object in the place of a new wake pipe is given to the group",
                    files(
                        "lib",
                        "wake_pipe::tests::file_swapped_for_new_wake_pipe_is_not_given_to_group",
                    ),
                ),
            ),
            needing(
                Needs::UserNamespace,
                mutant(
                    "UnmappedUsersTrusted",
                    "all users outside a user namespace count as one",
                    cli(
                        "hostile_paths",
                        "users_outside_a_user_namespace_are_not_one_user",
                    ),
                ),
            ),
            needing(
                Needs::UserNamespace,
                mutant(
                    "UnmappedTrustedInTmp",
                    "users outside a user namespace are trusted in /tmp",
                    cli(
                        "hostile_paths",
                        "users_outside_a_user_namespace_are_not_one_user",
                    ),
                ),
            ),
            needing(
                Needs::Root,
                mutant(
                    "PlantedDirectoriesLocked",
                    "`--file` locks another user's directory in /tmp",
                    cli(
                        "hostile_paths",
                        "directory_of_another_user_in_a_sticky_one_is_not_locked",
                    ),
                ),
            ),
            mutant(
                "UntrustedPathLost",
                "a lock is lost when others may write a directory above it",
                cli(
                    "moved_store",
                    "changed_permissions_above_a_held_store_lose_no_lock",
                ),
            ),
            mutant(
                "FilesTruncatedByOpening",
                "files are opened with O_TRUNC",
                host(
                    "files",
                    "permissions::a_hard_link_to_another_file_is_refused",
                ),
            ),
            mutant(
                "FilesReplacedByCreating",
                "a new file replaces one that another process created meanwhile",
                files(
                    "lib",
                    "os::imp::tests::create_leaves_existing_file_unchanged",
                ),
            ),
        ],
        otherwise: "",
    },
    Pitfall {
        what: "two names have one file",
        mutants: &[mutant(
            "NameNotCompared",
            "the name in a lock file is not compared",
            host("files", "corrupt_files::file_of_another_lock_is_an_error"),
        )],
        otherwise: "",
    },
    Pitfall {
        what: "a new file's name is lost by a power loss",
        mutants: &[needing(
            Needs::Strace,
            mutant(
                "FolderNotOnDisk",
                "fencing tokens are granted before the counter's name is on the disk",
                cli("strace", "fences_are_on_the_disk_before_one_is_granted"),
            ),
        )],
        otherwise: "",
    },
    Pitfall {
        what: "two processes take over a stale lock at once",
        mutants: &[mutant(
            "NoGuard",
            "a lease file is read and written without its lock",
            host(
                "files",
                "operations::operation_on_a_locked_file_fails_as_busy_and_can_be_repeated",
            ),
        )],
        otherwise: "",
    },
    Pitfall {
        what: "newcomers and the last holder overtake waiters",
        mutants: &[
            mutant(
                "QueueIgnored",
                "a free lock is granted to any process, although others wait",
                host(
                    "files",
                    "hand_off::released_lock_is_reserved_for_the_head_waiter",
                ),
            ),
            mutant(
                "NobodyWoken",
                "a process that releases a flock(2) lock notifies no waiter",
                host("files", "hand_off::release_with_a_waiter_changes_the_file"),
            ),
        ],
        otherwise: "",
    },
    Pitfall {
        what: "the holder of a guard is not scheduled",
        mutants: &[],
        otherwise: "not solved: guards are held for microseconds",
    },
    Pitfall {
        what: "a signal interrupts a system call",
        mutants: &[needing(
            Needs::Strace,
            mutant(
                "InterruptedTakenForFailure",
                "an interrupted call counts as failed",
                cli("strace", "interrupted_system_call_is_repeated"),
            ),
        )],
        otherwise: "",
    },
    Pitfall {
        what: "a cancelled request leaves a ticket or a grant behind",
        mutants: &[
            mutant(
                "PlaceKeptByGivingUp",
                "a waiter that ends its wait keeps its ticket locked",
                cli("queue", "waiter_that_times_out_leaves_nothing_behind"),
            ),
            mutant(
                "UndoForgotten",
                "a request that ends after an error, or a late grant, is not undone by a release",
                core("acquire", "last_error_is_returned_after_a_release"),
            ),
            mutant(
                "DroppedWaitKeepsPlace",
                "a future that is dropped while it waits does not leave the queue",
                core(
                    "trouble",
                    "acquisition_dropped_in_the_queue_removes_its_ticket",
                ),
            ),
        ],
        otherwise: "",
    },
    Pitfall {
        what: "a stopped holder continues, and fencing tokens repeat",
        mutants: &[
            mutant(
                "FenceResetByRelease",
                "a release resets the fencing tokens",
                host(
                    "conformance",
                    "lease_files::steps::fences_grow_with_every_grant",
                ),
            ),
            mutant(
                "FenceGrowsWithExtension",
                "an extension changes the fencing token",
                host(
                    "conformance",
                    "lease_files::steps::an_extension_keeps_the_fence",
                ),
            ),
            mutant(
                "CounterBeginsAnew",
                "a recreated counter begins with the first fencing token",
                host("files", "fence_counter::fences_grow_when_files_are_removed"),
            ),
            mutant(
                "MovedNotNoticed",
                "a lock counts as released after its directory was moved away",
                cli(
                    "moved_store",
                    "holder_in_a_moved_directory_has_lost_the_lock_and_the_next_fence_is_greater",
                ),
            ),
            mutant(
                "CounterAloneCounts",
                "the counter allots fencing tokens that a lock file has granted already",
                host(
                    "files",
                    "fence_counter::restored_counter_grants_no_fence_twice",
                ),
            ),
            mutant(
                "ReplacedWhileAllotted",
                "a file counts that was removed while fencing tokens were allotted to it",
                host(
                    "files",
                    "fence_counter::a_file_that_is_removed_while_fences_are_allotted_to_it_is_not_granted",
                ),
            ),
            needing(
                Needs::Strace,
                mutant(
                    "RecordNotGuarded",
                    "the holders of two successive files at one path count at the same time",
                    cli(
                        "lock_file",
                        "holders_of_two_files_never_have_the_same_fence",
                    ),
                ),
            ),
            mutant(
                "LowerFenceAccepted",
                "a grant counts whose fencing token is not greater than an earlier one",
                core("acquire", "grant_with_a_smaller_fencing_token_is_released"),
            ),
        ],
        otherwise: "",
    },
    Pitfall {
        what: "the `verrou` process dies, and its command lives",
        mutants: &[mutant(
            "CommandInheritsNoLock",
            "the command does not inherit the lock's descriptor",
            cli("run", "command_of_a_killed_wrapper_is_ended"),
        )],
        otherwise: "",
    },
    Pitfall {
        what: "a reply is lost",
        mutants: &[mutant(
            "AskingAgainRefused",
            "a repeated request of the holder is refused",
            host(
                "conformance",
                "lease_files::steps::repeated_acquire_is_idempotent",
            ),
        )],
        otherwise: "",
    },
    Pitfall {
        what: "a process releases another owner's lock",
        mutants: &[
            mutant(
                "ReleasedByAnybody",
                "a release does not compare the owner",
                host(
                    "conformance",
                    "lease_files::steps::another_owner_cannot_release",
                ),
            ),
            mutant(
                "EvictionIgnoresFence",
                "a force-release of one grant ends another",
                host(
                    "files",
                    "lease_end::force_release_with_a_fence_affects_only_that_grant",
                ),
            ),
        ],
        otherwise: "",
    },
    Pitfall {
        what: "the head waiter is stopped",
        mutants: &[mutant(
            "EndlessPatience",
            "the hand-off reservation of a free lock never ends",
            host(
                "files",
                "hand_off::released_lock_is_reserved_for_the_head_waiter",
            ),
        )],
        otherwise: "",
    },
    Pitfall {
        what: "the kernel notifies before the lock is free",
        mutants: &[mutant(
            "LookedOnceAfterNews",
            "a notified waiter that finds the lock held waits for the next notification",
            host(
                "files",
                "hand_off::notified_waiter_retries_until_lock_is_free",
            ),
        )],
        otherwise: "",
    },
    Pitfall {
        what: "a file with a number that was deleted is linked once more",
        mutants: &[
            mutant(
                "DraftNotCheckedAgain",
                "a draft is linked although the current state changed before it was created",
                hard_links(
                    "interleavings",
                    "interrupted_operations_are_atomic_and_no_number_is_used_twice",
                ),
            ),
            mutant(
                "DraftsDeletedLast",
                "the state that a draft may still be linked to is deleted before the draft",
                hard_links(
                    "interleavings",
                    "process_that_ends_while_it_deletes_files_lets_no_number_be_used_twice",
                ),
            ),
            mutant(
                "StatesDeletedDescending",
                "the state that a release may still be linked to is deleted before the one that is released",
                hard_links(
                    "interleavings",
                    "process_that_ends_while_it_deletes_files_lets_no_number_be_used_twice",
                ),
            ),
        ],
        otherwise: "",
    },
    Pitfall {
        what: "wall clocks differ",
        mutants: &[mutant(
            "SkewIgnored",
            "a lease of a `wasi:` store is taken over as soon as it has expired",
            hard_links(
                "lib",
                "decision::tests::expired_lease_is_unavailable_to_others_for_the_skew",
            ),
        )],
        otherwise: "",
    },
];

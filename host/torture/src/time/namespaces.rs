//! Locks across PID, user, UTS, IPC, network and time namespaces.

use std::path::Path;
use std::time::Duration;

use anyhow::Result;
use verrou::{Claim, Ttl};

use super::neighbours::{Namespace, Neighbours};
use crate::child_process;
use crate::results::{Findings, Setting};
use crate::store_call::{BoxedStore, Kind, Outcome, claim};

/// Tests PID, user, UTS, IPC and network namespaces.
pub(super) fn namespaces(setting: &Setting, findings: &mut Findings) -> Result<()> {
    let kinds: [(&str, &[&str], &str); 5] = [
        (
            "a PID namespace",
            &["--pid", "--fork", "--kill-child", "--mount-proc"],
            "",
        ),
        (
            "a namespace with another host name",
            &["--uts"],
            "hostname elsewhere &&",
        ),
        ("a user namespace", &["--user", "--map-root-user"], ""),
        ("an IPC and network namespace", &["--ipc", "--net"], ""),
        (
            "a container of all of them",
            &[
                "--user",
                "--map-root-user",
                "--pid",
                "--fork",
                "--kill-child",
                "--mount-proc",
                "--uts",
                "--ipc",
                "--net",
                "--cgroup",
            ],
            "hostname container &&",
        ),
    ];
    for (what, options, before) in kinds {
        let Some(namespace) = Namespace::new(findings, what, options, before) else {
            continue;
        };
        for kind in Kind::BOTH {
            let neighbours = Neighbours {
                namespace: &namespace,
                verrou: child_process::verrou(&setting.directory)?,
                setting,
                kind,
            };
            neighbours.live_holders(findings)?;
            neighbours.detached_leases(findings)?;
        }
    }
    Ok(())
}

/// Checks leases that end by another namespace's `CLOCK_BOOTTIME`.
fn other_clocks(
    findings: &mut Findings,
    neighbours: &Neighbours<'_>,
    directory: &Path,
    store: &BoxedStore,
    long: &Claim,
) -> Result<()> {
    // A lease without an end is held at any time.
    let endless = long.clone().with_ttl(Ttl::NEVER);
    Outcome::by(|| store.acquire(&endless)).granted()?;
    let asked = neighbours.inside(directory, &["run", "lock", "--no-wait", "--", "true"])?;
    neighbours.check(
        findings,
        "acquire inside, an endless lease outside",
        &asked,
        75,
    );
    Outcome::by(|| store.release(&endless)).granted()?;
    // The other way round.
    let taken = neighbours.inside(directory, &["acquire", "lock", "--ttl", "1h"])?;
    neighbours.check(findings, "acquire inside", &taken, 0);
    let outcome = Outcome::by(|| store.acquire(long));
    let is_right = matches!(&outcome, Outcome::Error(text) if text.contains("force-release"));
    neighbours.check_outcome(
        findings,
        "acquire outside, a lease with a TTL inside",
        &outcome,
        is_right,
    );
    let extended = neighbours.inside(directory, &["extend", taken.out.trim()])?;
    neighbours.check(findings, "extend inside, by the same clock", &extended, 0);
    // A third time namespace, which may have the inode number of the one that has ended.
    let options = ["--time", "--boottime", "7000000", "--fork", "--kill-child"];
    if let Some(later) = Namespace::new(findings, "a later time namespace", &options, "") {
        let later = Neighbours {
            namespace: &later,
            verrou: neighbours.verrou.clone(),
            ..*neighbours
        };
        let asked = later.inside(directory, &["run", "lock", "--no-wait", "--", "true"])?;
        later.check(
            findings,
            "acquire, a lease with a TTL of a time namespace that has ended",
            &asked,
            74,
        );
    }
    let outcome = Outcome::by(|| store.force_release(&long.name, None));
    neighbours.check_outcome(
        findings,
        "force-release outside",
        &outcome,
        matches!(outcome, Outcome::Granted(_)),
    );
    Ok(())
}

/// Tests time namespaces, in which `CLOCK_BOOTTIME` has an offset.
pub(super) fn time_namespaces(setting: &Setting, findings: &mut Findings) -> Result<()> {
    for offset in ["100000", "-50", "1000000000"] {
        let what = format!("a time namespace that is {offset} s ahead");
        let options = ["--time", "--boottime", offset, "--fork", "--kill-child"];
        let Some(namespace) = Namespace::new(findings, &what, &options, "") else {
            continue;
        };
        for kind in Kind::BOTH {
            let neighbours = Neighbours {
                namespace: &namespace,
                verrou: child_process::verrou(&setting.directory)?,
                setting,
                kind,
            };
            neighbours.live_holders(findings)?;
            if kind == Kind::File {
                continue;
            }
            let inside = |directory: &Path, words: &[&str]| neighbours.inside(directory, words);
            let directory = tempfile::tempdir_in(&setting.directory)?;
            let directory = directory.path();
            let store = kind.open(directory)?;
            let long = claim("lock", 1)?
                .with_ttl(Ttl::new(Duration::from_hours(1))?)
                .ephemeral(false);
            // Whether the lease has expired cannot be determined: every operation returns an error.
            Outcome::by(|| store.acquire(&long)).granted()?;
            for words in [
                &["run", "lock", "--no-wait", "--", "true"][..],
                &["show", "lock"],
                &["list"],
            ] {
                let ended = inside(directory, words)?;
                neighbours.check(
                    findings,
                    "an operation inside, a lease with a TTL outside",
                    &ended,
                    74,
                );
                findings.check(ended.err.contains("force-release"), || {
                    format!("{what}: the error names no remedy: {}", ended.err)
                });
            }
            let outcome = Outcome::by(|| store.extend(&long));
            neighbours.check_outcome(
                findings,
                "extend outside",
                &outcome,
                matches!(outcome, Outcome::Granted(_)),
            );
            let freed = inside(directory, &["force-release", "lock"])?;
            neighbours.check(findings, "the remedy that the error names", &freed, 0);
            let outcome = Outcome::by(|| store.extend(&long));
            neighbours.check_outcome(
                findings,
                "extend outside, force-released inside",
                &outcome,
                outcome == Outcome::Refused,
            );
            other_clocks(findings, &neighbours, directory, &store, &long)?;
            Outcome::by(|| store.acquire(&long)).granted()?;
        }
    }
    Ok(())
}

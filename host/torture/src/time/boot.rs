//! Another boot of the machine, simulated by another boot ID.

use std::fs;
use std::time::Duration;

use anyhow::Result;

use super::neighbours::{Namespace, Neighbours};
use crate::child_process;
use crate::results::{Findings, Setting};
use crate::store_call::{Kind, Outcome, claim, forge_slots, ignore_absent, overwrite};

/// Tests another boot of the machine, simulated by another boot ID.
pub(super) fn new_boot(setting: &Setting, findings: &mut Findings) -> Result<()> {
    const BOOT_AT: usize = 48;

    let id = setting.directory.join("boot-id");
    fs::write(&id, "01234567-89ab-cdef-0123-456789abcdef\n")?;
    let before = format!(
        "mount --bind {} /proc/sys/kernel/random/boot_id &&",
        id.display()
    );
    let what = "another boot of the machine";
    let Some(namespace) = Namespace::new(findings, what, &["--mount"], &before) else {
        return Ok(());
    };
    for kind in Kind::BOTH {
        let neighbours = Neighbours {
            namespace: &namespace,
            verrou: child_process::verrou(&setting.directory)?,
            setting,
            kind,
        };
        // The lock of a live process is held, whatever boot ID its record has.
        neighbours.live_holders(findings)?;
        // Of a lease of an earlier boot, only the fencing token remains.
        for (words, ttl, ephemeral, is_released) in [
            (
                "detached for an hour",
                Some(Duration::from_hours(1)),
                false,
                false,
            ),
            ("detached without a TTL", None, false, false),
            ("of a dead process", None, true, false),
            ("released", None, true, true),
        ] {
            let directory = tempfile::tempdir_in(&setting.directory)?;
            let directory = directory.path();
            let store = kind.open(directory)?;
            let mine = claim("lock", 1)?
                .with_ttl(ttl.try_into()?)
                .ephemeral(ephemeral);
            let other = claim("other", 3)?;
            Outcome::by(|| store.acquire(&other)).granted()?;
            let mut fence = 0;
            for _ in 0..3 {
                fence = Outcome::by(|| store.acquire(&mine)).granted()?;
                if is_released {
                    Outcome::by(|| store.release(&mine)).granted()?;
                }
            }
            drop(store);
            let run = print_fence_arguments("lock");
            // A mounted boot ID counts as a container's own, by which a detached lease of another
            // boot ID may still be valid: the request fails there. The record of an earlier boot is
            // forged instead.
            let is_detached = kind == Kind::Lease && !ephemeral;
            if is_detached {
                let asked = neighbours.inside(directory, &run)?;
                neighbours.check(
                    findings,
                    &format!("a lock {words}, in a container"),
                    &asked,
                    74,
                );
                let path = kind.path_of("lock", directory, &setting.directory)?;
                let mut bytes = fs::read(&path)?;
                forge_slots(&mut bytes, BOOT_AT, &[7; 16]);
                overwrite(&path, &bytes)?;
            }
            for _ in 0..2 {
                let asked = if is_detached {
                    neighbours.outside(directory, &run)?
                } else {
                    neighbours.inside(directory, &run)?
                };
                neighbours.check(findings, &format!("a lock {words}"), &asked, 0);
                let next: u64 = asked.out.trim().parse().unwrap_or_default();
                findings.check(next > fence, || {
                    format!("{what} ({kind}), a lock {words}: fencing token {next} after {fence}")
                });
                fence = next;
            }
            // The counter may be lost by the power loss, too.
            let counter = directory.join("fences");
            fs::remove_file(&counter).or_else(ignore_absent)?;
            let asked = neighbours.inside(directory, &print_fence_arguments("another"))?;
            neighbours.check(findings, "a new lock, the counter lost", &asked, 0);
            let next: u64 = asked.out.trim().parse().unwrap_or_default();
            findings.check(next > fence, || {
                format!("{what} ({kind}), the counter lost: fencing token {next} after {fence}")
            });
        }
    }
    Ok(())
}

/// Returns the arguments of a `verrou run` that prints its fencing token if the lock is free.
const fn print_fence_arguments(name: &str) -> [&str; 7] {
    [
        "run",
        name,
        "--no-wait",
        "--",
        "sh",
        "-c",
        "echo $VERROU_FENCE",
    ]
}

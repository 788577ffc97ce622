//! Clocks that jump, reboots, namespaces, and process IDs that are reused.
//!
//! The machine's own clocks stay unchanged, because other programs use them. The tested processes
//! see a stepped wall clock, another boot ID, and other namespaces.

mod shifted_clock;
mod suspend;
mod ttl;
mod wall_clock;
mod neighbours;
mod namespaces;
mod boot;
mod holder;
mod process_ids;

use anyhow::Result;

use crate::results::{Findings, Part, Setting};

pub(crate) use self::holder::hold;
pub(crate) use self::process_ids::reuse_pid;

pub(crate) const PART: Part = Part {
    name: "time-and-identity",
    about: "jumping clocks, reboots, namespaces, and reused process IDs",
    share: 0,
    run,
};

fn run(setting: &Setting, findings: &mut Findings) -> Result<()> {
    type Section = fn(&Setting, &mut Findings) -> Result<()>;
    let sections: [(&str, Section); 9] = [
        ("a suspended machine", suspend::suspend),
        ("the shortest and the longest TTL", ttl::ttls),
        ("wall clocks in a record", wall_clock::recorded_wall_clock),
        ("a stepped wall clock", wall_clock::stepped_wall_clock),
        ("another boot of the machine", boot::new_boot),
        ("time namespaces", namespaces::time_namespaces),
        ("other namespaces", namespaces::namespaces),
        (
            "another process with the holder's process ID",
            process_ids::reused_pid,
        ),
        (
            "a record with another process's ID",
            process_ids::forged_pid,
        ),
    ];
    setting.progress.set_length(sections.len() as u64);
    for (what, section) in sections {
        setting.progress.set_message(what);
        section(setting, findings)?;
        setting.progress.inc(1);
    }
    Ok(())
}

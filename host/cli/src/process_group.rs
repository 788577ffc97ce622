//! The processes of a process group whose leader has ended and is not reaped.

use rustix::process::Pid;

pub(crate) use system::{has, members};

/// The members of a process group, as far as the system shows them.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(crate) enum GroupMembers {
    /// This process runs.
    Running(Pid),
    /// Processes that have ended and are not reaped.
    #[cfg_attr(
        not(target_os = "linux"),
        expect(dead_code, reason = "there kill(2) does not find zombies")
    )]
    Zombies,
    /// None: the group is empty, or its processes are hidden (`hidepid`, `proc(5)`).
    Unseen,
}

#[cfg(target_os = "linux")]
mod system {
    use std::fs;
    use std::io;

    use rustix::process::{Pid, getpid};

    use super::GroupMembers;

    /// Returns what the system shows of `group`. `kill(2)` cannot be used for that: it also finds the
    /// zombie leader.
    ///
    /// # Errors
    ///
    /// Fails when this system does not show its processes, or numbers them differently, as in another
    /// PID namespace.
    pub(crate) fn members(group: Pid) -> io::Result<GroupMembers> {
        let number = |name: &str| Pid::from_raw(name.parse().ok()?);
        let ourselves = fs::read_link("/proc/self")?;
        if ourselves.to_str().and_then(number) != Some(getpid()) {
            return Err(io::ErrorKind::Unsupported.into());
        }
        let mut seen = GroupMembers::Unseen;
        for entry in fs::read_dir("/proc")? {
            let process = entry?.file_name().to_str().and_then(number);
            match process.map_or(GroupMembers::Unseen, |process| look_at(group, process)) {
                GroupMembers::Unseen => {}
                GroupMembers::Zombies => seen = GroupMembers::Zombies,
                running @ GroupMembers::Running(_) => return Ok(running),
            }
        }
        Ok(seen)
    }

    /// Returns whether `process` runs and is a member of `group`.
    pub(crate) fn has(group: Pid, process: Pid) -> bool {
        look_at(group, process) == GroupMembers::Running(process)
    }

    /// Returns what `process` is in `group`, by `proc_pid_stat(5)`.
    fn look_at(group: Pid, process: Pid) -> GroupMembers {
        let Ok(stat) = fs::read(format!("/proc/{process}/stat")) else {
            return GroupMembers::Unseen;
        };
        let stat = String::from_utf8_lossy(&stat);
        let mut fields = stat.rsplit(") ").next().unwrap_or_default().split(' ');
        let state = fields.next();
        let of = fields.nth(1).and_then(|of| of.parse().ok());
        if of != Some(group.as_raw_pid()) {
            return GroupMembers::Unseen;
        }
        match state {
            None | Some("Z" | "X" | "x") => GroupMembers::Zombies,
            Some(_) => GroupMembers::Running(process),
        }
    }
}

#[cfg(not(target_os = "linux"))]
mod system {
    use std::io;

    use rustix::process::{Pid, test_kill_process_group};

    use super::GroupMembers;

    /// Returns a number if a process of `group` runs: on this system `kill(2)` does not find zombies.
    pub(crate) fn members(group: Pid) -> io::Result<GroupMembers> {
        Ok(match test_kill_process_group(group) {
            Ok(()) => GroupMembers::Running(group),
            Err(_) => GroupMembers::Unseen,
        })
    }

    /// Returns false: membership cannot be determined on this system.
    pub(crate) fn has(_group: Pid, _process: Pid) -> bool {
        false
    }
}

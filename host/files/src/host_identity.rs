//! The identity of the host, its boot, and this process.

use std::fs::{self, File};
use std::io::{self, Read};

use verrou::Process;
use verrou_machine::process::{PerProcess, host_name, own_program, program_name};

use crate::os;

/// The identity of the host and boot that is written to records.
#[derive(Debug)]
pub(crate) struct Machine {
    /// The boot ID, which differs for each boot of the machine, if it can be read.
    boot: Option<[u8; 16]>,
    /// Whether that boot ID is a container's own, which cannot be compared with the boot IDs in records
    /// of other processes.
    is_containers: bool,
    /// The number of the `CLOCK_BOOTTIME` that this process reads; zero on systems with only one.
    /// Processes with the same number read the same clock.
    pub(crate) time_namespace: u64,
    host: String,
    command: String,
}

/// Separate in each forked child, which may be in other namespaces.
static THIS: PerProcess<Machine> = PerProcess::new();

impl Machine {
    /// Returns the identity of this host; reads it on the first call.
    ///
    /// # Errors
    ///
    /// Returns the operating system's error if the system provides the identity but it cannot be read, for
    /// example because this process has no free descriptor. Without this error, the process would write
    /// records that other processes cannot compare with theirs.
    pub(crate) fn detect() -> io::Result<&'static Self> {
        if let Some(this) = THIS.get() {
            return Ok(this);
        }
        let found = if_available(boot_id())?;
        let time_namespace = if_available(time_namespace())?;
        // If the value cannot be read any more, as after chroot(2), the parent's value is used.
        let parent = THIS.of_parent();
        Ok(THIS.get_or_init(|| Self {
            boot: found.map(|found| found.id).or_else(|| parent?.boot),
            is_containers: match found {
                Some(found) => found.is_containers,
                None => parent.is_some_and(|parent| parent.is_containers),
            },
            time_namespace: time_namespace
                .or_else(|| Some(parent?.time_namespace))
                .unwrap_or_default(),
            host: host_name(),
            command: own_program(),
        }))
    }

    /// Returns the host identity that [`detect`](Self::detect) returns, or one without a boot ID if
    /// that fails.
    pub(crate) fn this() -> &'static Self {
        /// Not stored as [`THIS`]: a later call may succeed, and leases are compared with its result.
        static WITHOUT_BOOT: PerProcess<Machine> = PerProcess::new();

        Self::detect().unwrap_or_else(|_| {
            WITHOUT_BOOT.get_or_init(|| Self {
                boot: None,
                is_containers: false,
                time_namespace: 0,
                host: host_name(),
                command: own_program(),
            })
        })
    }

    /// Returns the boot ID for a record; zeros if it cannot be read.
    pub(crate) fn boot(&self) -> [u8; 16] {
        self.boot.unwrap_or_default()
    }

    /// Returns whether the boot ID could be read.
    pub(crate) fn has_boot_id(&self) -> bool {
        self.boot.is_some()
    }

    /// Returns whether `boot`, the boot ID in a record, is that of the current boot.
    pub(crate) fn runs_since(&self, boot: [u8; 16]) -> bool {
        self.boot == Some(boot) || mutant!(StartIgnored)
    }

    /// Returns whether the machine may have been running without a reboot since the boot `boot` of a
    /// record.
    pub(crate) fn may_run_since(&self, boot: [u8; 16]) -> bool {
        self.runs_since(boot) || self.is_containers
    }

    /// Returns whether the boot ID in this process's records is a container's own: LXC, Incus and
    /// systemd-nspawn mount a file over the kernel's. Processes outside would take such a record for
    /// one of an earlier boot.
    pub(crate) fn is_containers(&self) -> bool {
        self.is_containers
    }

    /// Returns another process of this machine.
    pub(crate) fn other_process(&self, id: u32) -> Process {
        let command = fs::read(format!("/proc/{id}/cmdline")).unwrap_or_default();
        let program = command.split(|&byte| byte == 0).next().unwrap_or_default();
        let program = program_name(&String::from_utf8_lossy(program));
        Process::new(id, &*self.host, program)
    }

    /// Returns this process, whose ID is `id`, with the label `command`, or the name of its program.
    pub(crate) fn process(&self, id: u32, command: Option<&str>) -> Process {
        Process::new(id, &*self.host, command.unwrap_or(&self.command))
    }
}

/// Converts the errors of a system that does not provide a value, or hides it, to `None`.
fn if_available<T>(found: io::Result<Option<T>>) -> io::Result<Option<T>> {
    use io::ErrorKind::{NotADirectory, NotFound, PermissionDenied, Unsupported};

    match found {
        Err(err)
            if matches!(
                err.kind(),
                NotFound | NotADirectory | PermissionDenied | Unsupported
            ) =>
        {
            Ok(None)
        }
        found => found,
    }
}

/// The boot ID, and whether it is a container's own.
#[derive(Clone, Copy)]
struct BootId {
    id: [u8; 16],
    is_containers: bool,
}

/// Reads the boot ID; `random(4)`: "a random UUID generated once at boot".
fn boot_id() -> io::Result<Option<BootId>> {
    let mut file = File::open("/proc/sys/kernel/random/boot_id")?;
    let mut text = String::new();
    file.read_to_string(&mut text)?;
    let digits: String = text.chars().filter(char::is_ascii_hexdigit).collect();
    let number = u128::from_str_radix(&digits, 16).ok();
    Ok(number.map(|number| BootId {
        id: number.to_be_bytes(),
        is_containers: !os::is_kernels(&file) && !mutant!(ContainersBootBelieved),
    }))
}

/// Returns the number of the `CLOCK_BOOTTIME` that this process reads, in this boot: see `FORMAT.md`.
fn time_namespace() -> io::Result<Option<u64>> {
    /// The number of the first namespace, in which all clocks are the machine's.
    const FIRST: u64 = 4_026_531_834;

    let Some(number) = namespace("time")? else {
        return Ok(None);
    };
    if number == FIRST {
        return Ok(Some(FIRST));
    }
    // The kernel reuses the number of a namespace that has ended, so the offset of its clock is used instead.
    // The kernel reports the offset only of the namespace that new children get.
    let is_childrens = if_available(namespace("time_for_children"))? == Some(number);
    let offsets = fs::read_to_string("/proc/self/timens_offsets").map(Some);
    let offsets = if_available(offsets)?.filter(|_| is_childrens);
    Ok(Some(match offsets.as_deref().and_then(nanos_ahead) {
        Some(0) => FIRST,
        Some(nanos) => 1 << 63 | nanos.cast_unsigned(),
        None => number,
    }))
}

/// Returns this process's namespace of this kind; `time_namespaces(7)`: the link reads `time:[4026531834]`.
fn namespace(kind: &str) -> io::Result<Option<u64>> {
    let link = fs::read_link(format!("/proc/self/ns/{kind}"))?;
    let link = link.to_string_lossy();
    let digits: String = link.chars().filter(char::is_ascii_digit).collect();
    Ok(digits.parse().ok())
}

/// Parses the offset of `CLOCK_BOOTTIME`; `time_namespaces(7)`: the line reads `boottime SECONDS
/// NANOSECONDS`.
fn nanos_ahead(offsets: &str) -> Option<i64> {
    let line = offsets
        .lines()
        .find_map(|line| line.strip_prefix("boottime"))?;
    let mut numbers = line.split_whitespace().map(str::parse::<i64>);
    let (seconds, nanos) = (numbers.next()?.ok()?, numbers.next()?.ok()?);
    seconds.checked_mul(1_000_000_000)?.checked_add(nanos)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn clock_offset_is_parsed_from_kernel_format() {
        let text = "monotonic           5         0\nboottime          -50  10000000\n";
        assert_eq!(nanos_ahead(text), Some(-49_990_000_000));
        for other in [
            "",
            "boottime",
            "boottime 1",
            "boottime x 0",
            "boottime 9223372036854775807 0",
        ] {
            assert_eq!(nanos_ahead(other), None, "{other}");
        }
    }
}

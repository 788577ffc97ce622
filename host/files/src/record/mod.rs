//! The format of a lock's file, which records the holder and the latest grant. See `FORMAT.md`.

mod codec;
mod layout;
mod version;

use std::sync::Arc;
use std::time::Duration;

use verrou::{Owner, Process, Ttl};

pub use self::codec::Corruption;
pub(crate) use self::codec::{name_of, new_file, read, write};
pub(super) use self::layout::COUNTED;
#[cfg(all(target_os = "linux", any(fuzzing, test)))]
pub(crate) use self::layout::TICKETS;
pub(crate) use self::layout::{
    CHANGING_BYTES, FILE_BYTES, Kind, MARK_AT, RECORD_BYTES, TOUCH_AT, released_at,
};
pub(crate) use self::version::{Version, mark_of};
use super::host_identity::Machine;

/// The contents of one slot.
#[derive(Clone, Debug, Eq, PartialEq)]
pub(crate) struct Record {
    /// The sequence number, which grows by one with each write. The valid slot with the greater sequence
    /// number is the record.
    pub(crate) sequence: u64,
    /// Whether the latest grant has not been released.
    pub(crate) held: bool,
    /// Whether the lease ends with the processes that keep its byte locked.
    pub(crate) ephemeral: bool,
    /// The fence of the latest grant.
    pub(crate) fence: u64,
    /// The last fence that this file may grant before the counter allots more.
    pub(crate) last_fence: u64,
    /// The owner of the latest grant.
    pub(crate) owner: Owner,
    /// The boot ID of the machine that wrote the record: `/proc/sys/kernel/random/boot_id`.
    pub(crate) boot: [u8; 16],
    /// The `CLOCK_BOOTTIME` of `ends`: see [`Machine::time_namespace`].
    pub(crate) time_namespace: u64,
    /// The ttl that was last requested; `None` for a lease that never expires.
    pub(crate) ttl: Option<Duration>,
    /// When the lease expires by `CLOCK_BOOTTIME`, if it has a ttl; when it ended, if it is not held.
    pub(crate) ends: Duration,
    /// When the lease expires by the wall clock, since the start of 1970, for people.
    pub(crate) ends_wall: Duration,
    /// When the lease was granted by the wall clock, since the start of 1970, for people.
    pub(crate) since_wall: Duration,
    /// The process that acquired the lock, for people.
    pub(crate) process: Arc<Process>,
    /// The greatest ticket that does not wait any more.
    pub(crate) served: u64,
    /// Whether the releasing process notifies the waiters other than the head waiter.
    pub(crate) notifies: bool,
    /// The number of the file to which the fences up to the last one were allotted; zero on systems
    /// without such numbers.
    pub(crate) file: u64,
}

impl Record {
    /// Returns the next record: the same grant, released or force-released at `now`.
    pub(crate) fn ended(&self, now: Duration) -> Self {
        Self {
            sequence: self.sequence + 1,
            held: false,
            fence: mutant!(FenceResetByRelease, 0, self.fence),
            ends: now,
            time_namespace: Machine::this().time_namespace,
            ..self.clone()
        }
    }

    /// Returns the next record: the same grant, which lasts `ttl` from `now`, the time `wall` of the
    /// wall clock.
    pub(crate) fn lasting(self, ttl: Ttl, now: Duration, wall: Duration) -> Self {
        let ttl = ttl.duration();
        Self {
            sequence: self.sequence + 1,
            fence: self.fence + u64::from(mutant!(FenceGrowsWithExtension)),
            ttl,
            ends: ttl.map_or(Duration::ZERO, |ttl| now.saturating_add(ttl)),
            time_namespace: Machine::this().time_namespace,
            ends_wall: ttl.map_or(Duration::ZERO, |ttl| wall.saturating_add(ttl)),
            ..self
        }
    }

    /// Returns the next record if the grant must last at least `ttl` from `now`; `None` if it already
    /// does.
    pub(crate) fn renewed(&self, ttl: Ttl, now: Duration, wall: Duration) -> Option<Self> {
        let is_comparable = self.time_namespace == Machine::this().time_namespace;
        let lasts = match (self.ttl, ttl.duration()) {
            (None, _) => true,
            (Some(_), None) => false,
            (Some(_), Some(ttl)) => is_comparable && now.saturating_add(ttl) <= self.ends,
        };
        (!lasts).then(|| self.clone().lasting(ttl, now, wall))
    }

    /// Returns whether the lease was released or expired less than `length` before `now`, in the
    /// current boot.
    pub(crate) fn ended_within(&self, length: Duration, now: Duration) -> bool {
        let machine = Machine::this();
        machine.runs_since(self.boot)
            && machine.time_namespace == self.time_namespace
            && (self.ttl.is_some() || !self.held)
            && now
                .checked_sub(self.ends)
                .is_some_and(|since| since < length)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    pub(super) const BOOT: [u8; 16] = [7; 16];

    pub(super) fn record() -> Record {
        Record {
            sequence: 41,
            held: true,
            ephemeral: true,
            fence: 1042,
            last_fence: 2048,
            owner: Owner::from_bytes(*b"0123456789abcdef"),
            boot: BOOT,
            time_namespace: 4_026_531_834,
            ttl: Some(Duration::from_secs(30)),
            ends: Duration::from_nanos(123_456_789_012_345),
            ends_wall: Duration::from_secs(1_763_892_030),
            since_wall: Duration::from_hours(489_970),
            process: Arc::new(Process::new(4711, "web1", "rsync -a /srv /backup")),
            served: 0,
            notifies: false,
            file: 0,
        }
    }

    /// The holder may have been in another time namespace.
    #[test]
    fn end_is_recorded_with_its_time_namespace() {
        let now = Duration::from_hours(1);
        let elsewhere = Record {
            time_namespace: 1,
            ..record()
        };
        for next in [
            elsewhere.ended(now),
            elsewhere.renewed(Ttl::DEFAULT, now, now).unwrap(),
            elsewhere.clone().lasting(Ttl::DEFAULT, now, now),
        ] {
            assert_eq!(next.time_namespace, Machine::this().time_namespace);
        }
    }
}

//! The serialization of leases.

use alloc::string::{String, ToString};
use core::fmt;
use core::str::FromStr;
use core::time::Duration;

use crate::claim::{Claim, Fence, InvalidOwner, Owner};
use crate::json::{Quoted, Reader, Value};
use crate::lease::Lease;
use crate::name::{InvalidName, Name};
use crate::time::Timestamp;
use crate::ttl::{InvalidTtl, Ttl};

/// A serialized lease, for its transfer to another process: a process that has it can extend and
/// release the lock.
///
/// Its text is one line of JSON, the same on every host. Version 1 has these members:
///
/// | member | value |
/// |---|---|
/// | `version` | `1` |
/// | `name` | the lock's name, a string |
/// | `owner` | 32 hexadecimal digits, a string |
/// | `ttl` | the ttl the lock was created with, in whole milliseconds; `null` for never |
/// | `expires` | when the lease ends, in whole milliseconds since 1970 (UTC); `null` for never |
/// | `fence` | the fencing token; `null` from a store that does not count grants |
///
/// A reader ignores unknown members; a change that old readers would misread gets a new version.
///
/// ```
/// use verrou::SerializedLock;
///
/// let text = r#"{"version":1,"name":"demo","owner":"000102030405060708090a0b0c0d0e0f","ttl":2000,"expires":1763892000000,"fence":7}"#;
/// let lock: SerializedLock = text.parse()?;
/// assert_eq!(lock.to_string(), text);
/// # Ok::<(), verrou::InvalidSerializedLock>(())
/// ```
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct SerializedLock {
    name: Name,
    owner: Owner,
    ttl: Ttl,
    expires: Option<Duration>,
    fence: Option<Fence>,
}

impl SerializedLock {
    /// The version that this crate writes.
    pub const VERSION: u64 = 1;

    /// Serializes `lease` at `now`, when the wall clock shows `wall` since the start of 1970 (UTC).
    ///
    /// `ttl` is the one the lock was created with, which extensions do not change.
    pub fn new(lease: &Lease, ttl: Ttl, now: Timestamp, wall: Duration) -> Self {
        Self {
            name: lease.name().clone(),
            owner: lease.owner(),
            ttl,
            expires: lease
                .remaining(now)
                .map(|remaining| wall.saturating_add(remaining)),
            fence: lease.fence(),
        }
    }

    /// Returns the lock's name.
    pub fn name(&self) -> &Name {
        &self.name
    }

    /// Returns the owner token.
    pub fn owner(&self) -> Owner {
        self.owner
    }

    /// Returns the ttl that the lock was created with.
    pub fn ttl(&self) -> Ttl {
        self.ttl
    }

    /// Returns the time at which the lease ends, since the start of 1970 (UTC); `None` when it does not
    /// end by itself.
    pub fn expires(&self) -> Option<Duration> {
        self.expires
    }

    /// Returns the grant's fencing token.
    pub fn fence(&self) -> Option<Fence> {
        self.fence
    }

    /// Returns the lease that was serialized, at `now`, when the wall clock shows `wall`.
    ///
    /// Its remaining time is computed from the two wall clocks; the store's own clock decides when it
    /// ends.
    pub fn lease(&self, now: Timestamp, wall: Duration) -> Lease {
        let claim = Claim::new(self.name.clone(), self.owner, self.ttl);
        let until = self
            .expires
            .map(|expires| now.saturating_add(expires.saturating_sub(wall)));
        Lease::restored(claim, self.fence, until)
    }

    /// Returns the members `ttl`, `expires` and `fence` of version 1.
    pub(crate) fn numbers(&self) -> [Option<u64>; 3] {
        [
            self.ttl.duration().map(whole_millis_of_ttl),
            self.expires.map(whole_millis),
            self.fence.map(Fence::get),
        ]
    }

    /// Returns an error if `version` is not the version that this crate reads.
    pub(crate) fn check_version(version: u64) -> Result<(), InvalidSerializedLock> {
        if version == Self::VERSION {
            return Ok(());
        }
        Err(InvalidSerializedLock::UnknownVersion { version })
    }

    /// Returns the lease with these members of version 1; `numbers` are `ttl`, `expires` and `fence`.
    pub(crate) fn from_members(
        name: &str,
        owner: &str,
        numbers: [Option<u64>; 3],
    ) -> Result<Self, InvalidSerializedLock> {
        let [ttl, expires, fence] = numbers;
        let fence = fence.map(|number| Fence::new(number).ok_or(InvalidSerializedLock::ZeroFence));
        Ok(Self {
            name: Name::new(name)?,
            owner: owner.parse()?,
            ttl: ttl.map(Duration::from_millis).try_into()?,
            expires: expires.map(Duration::from_millis),
            fence: fence.transpose()?,
        })
    }
}

/// Writes the text: one line of JSON.
impl fmt::Display for SerializedLock {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let [ttl, expires, fence] = self.numbers().map(OrNull);
        write!(
            f,
            r#"{{"version":{},"name":{},"owner":"{}","ttl":{ttl},"expires":{expires},"fence":{fence}}}"#,
            Self::VERSION,
            Quoted(self.name.as_str()),
            self.owner,
        )
    }
}

struct OrNull(Option<u64>);

impl fmt::Display for OrNull {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.0 {
            Some(number) => number.fmt(f),
            None => f.write_str("null"),
        }
    }
}

/// Rounds up, so that no lease becomes zero.
fn whole_millis(length: Duration) -> u64 {
    length
        .as_secs()
        .saturating_mul(1_000)
        .saturating_add(length.subsec_nanos().div_ceil(1_000_000).into())
}

/// Rounds up, too, but to at most the maximum length of a lease.
fn whole_millis_of_ttl(length: Duration) -> u64 {
    const LONGEST: u64 = Ttl::MAX.as_secs() * 1_000 + Ttl::MAX.subsec_millis() as u64;

    whole_millis(length).min(LONGEST)
}

impl FromStr for SerializedLock {
    type Err = InvalidSerializedLock;

    fn from_str(text: &str) -> Result<Self, InvalidSerializedLock> {
        let members = Members::read(text)?;
        let version = members.number(0)?.ok_or_else(|| wrong(0))?;
        Self::check_version(version)?;
        Self::from_members(
            members.text(1)?,
            members.text(2)?,
            [members.number(3)?, members.number(4)?, members.number(5)?],
        )
    }
}

/// The values of the members in [`Members::NAMES`].
#[derive(Default)]
struct Members([Option<Value>; 6]);

impl Members {
    const NAMES: [&'static str; 6] = ["version", "name", "owner", "ttl", "expires", "fence"];

    fn read(text: &str) -> Result<Self, InvalidSerializedLock> {
        let mut members = Self::default();
        let mut twice = None;
        let read = Reader::read(text, |name, value| {
            if let Some(member) = Self::NAMES.iter().position(|known| name == *known)
                && members.0[member].replace(value).is_some()
            {
                twice = Some(member);
            }
        });
        read.map_err(|why| unreadable(&why))?;
        twice.map_or(Ok(members), |member| Err(wrong(member)))
    }

    fn text(&self, member: usize) -> Result<&str, InvalidSerializedLock> {
        match &self.0[member] {
            Some(Value::Text(text)) => Ok(text),
            _ => Err(wrong(member)),
        }
    }

    /// Returns a member that may be `null`, but must be present: a truncated text is not one without the
    /// member.
    fn number(&self, member: usize) -> Result<Option<u64>, InvalidSerializedLock> {
        match self.0[member] {
            Some(Value::Null) => Ok(None),
            Some(Value::Number(number)) => Ok(Some(number)),
            _ => Err(wrong(member)),
        }
    }
}

fn wrong(member: usize) -> InvalidSerializedLock {
    let member = Members::NAMES[member];
    unreadable(&format_args!(
        "its member `{member}` is missing, is present twice, or has the wrong type"
    ))
}

fn unreadable(why: &dyn fmt::Display) -> InvalidSerializedLock {
    InvalidSerializedLock::Unreadable {
        why: why.to_string(),
    }
}

/// The error for a text that is not a [`SerializedLock`].
#[derive(Clone, Debug, Eq, PartialEq, thiserror::Error)]
#[non_exhaustive]
pub enum InvalidSerializedLock {
    /// Its name is not a lock's name.
    #[error("its name is wrong: {0}")]
    Name(#[from] InvalidName),
    /// Its owner is not an owner token.
    #[error("its owner is wrong: {0}")]
    Owner(#[from] InvalidOwner),
    /// Its ttl is not the length of a lease.
    #[error("its ttl is wrong: {0}")]
    Ttl(#[from] InvalidTtl),
    /// It was written by a newer version of this software.
    #[error(
        "it has version {version}, and this program reads version {}",
        SerializedLock::VERSION
    )]
    UnknownVersion {
        /// The text's version.
        version: u64,
    },
    /// It is not a JSON text with the members of a serialized lock.
    #[error("it is not what `serialize` writes: {why}")]
    Unreadable {
        /// The error, and its position.
        why: String,
    },
    /// Its fencing token is zero, which no grant has.
    #[error("its fence is zero")]
    ZeroFence,
}

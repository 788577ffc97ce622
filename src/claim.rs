//! Who wants which lock, and for how long.

use core::fmt;
use core::num::NonZeroU64;
use core::str::FromStr;

use crate::name::Name;
use crate::ttl::Ttl;

/// Who holds, or wants to hold, a lock: 128 random bits, drawn anew for every acquisition.
///
/// Whoever knows an owner can extend and release its lease, so it is shown in full only by
/// [`Display`](fmt::Display): 32 lower-case hexadecimal digits.
#[derive(Clone, Copy, Eq, Hash, Ord, PartialEq, PartialOrd)]
pub struct Owner([u8; 16]);

impl Owner {
    /// The owner made of these 128 random bits.
    pub const fn from_bytes(bytes: [u8; 16]) -> Self {
        Self(bytes)
    }

    /// The 128 bits.
    pub const fn as_bytes(&self) -> &[u8; 16] {
        &self.0
    }
}

impl fmt::Display for Owner {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.iter().try_for_each(|byte| write!(f, "{byte:02x}"))
    }
}

impl fmt::Debug for Owner {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let [a, b, c, ..] = self.0;
        write!(f, "Owner({a:02x}{b:02x}{c:02x}…)")
    }
}

impl FromStr for Owner {
    type Err = InvalidOwner;

    fn from_str(text: &str) -> Result<Self, InvalidOwner> {
        let (pairs, rest) = text.as_bytes().as_chunks();
        let pairs: &[[u8; 2]; 16] = pairs.try_into().map_err(|_| InvalidOwner)?;
        if !rest.is_empty() {
            return Err(InvalidOwner);
        }
        let mut owner = Self([0; 16]);
        for (byte, pair) in owner.0.iter_mut().zip(pairs) {
            let digit = |digit| {
                let value = char::from(digit).to_digit(16);
                value
                    .and_then(|value| u8::try_from(value).ok())
                    .ok_or(InvalidOwner)
            };
            let [high, low] = pair.map(digit);
            *byte = high? << 4 | low?;
        }
        Ok(owner)
    }
}

/// A text that is no [`Owner`].
#[derive(Clone, Copy, Debug, Eq, PartialEq, thiserror::Error)]
#[error("an owner is written as 32 hexadecimal digits")]
pub struct InvalidOwner;

/// A fencing token: the number of a grant, which grows with each new grant of a name.
///
/// It grows by at least one, never with an extension, and is never zero. Hand it to the resource
/// that the lock guards, which then refuses whoever comes with a smaller number than it has seen
/// ([Kleppmann 2016](https://martin.kleppmann.com/2016/02/08/how-to-do-distributed-locking.html)).
#[derive(Clone, Copy, Debug, Eq, Hash, Ord, PartialEq, PartialOrd)]
pub struct Fence(NonZeroU64);

impl Fence {
    /// The first number there is.
    pub const FIRST: Self = Self(NonZeroU64::MIN);

    /// The greatest number that a store grants, 2⁶² − 1.
    pub const LAST: Self = match Self::new((1 << 62) - 1) {
        Some(last) => last,
        None => Self::FIRST,
    };

    /// The fence with this number; `None` for zero.
    pub const fn new(number: u64) -> Option<Self> {
        match NonZeroU64::new(number) {
            Some(number) => Some(Self(number)),
            None => None,
        }
    }

    /// The number.
    pub const fn get(self) -> u64 {
        self.0.get()
    }
}

impl fmt::Display for Fence {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// Who wants which lock, and for how long: what a store is asked to record.
#[derive(Clone, Debug, Eq, Hash, PartialEq)]
pub struct Claim {
    /// Which lock.
    pub name: Name,
    /// For whom.
    pub owner: Owner,
    /// For how long, from the moment the store records it.
    pub ttl: Ttl,
    /// Whether the record is to end, too, with the client that made it.
    ///
    /// A store whose [`Abilities`](crate::Abilities) lack `ephemeral` takes no notice. Only
    /// [`Store::acquire`](crate::Store::acquire) looks at it;
    /// [`Store::detach`](crate::Store::detach) takes it back.
    pub ephemeral: bool,
}

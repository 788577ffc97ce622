//! The record of an acquire request: its lock, its owner token and its lease's length.

use core::fmt;
use core::num::NonZeroU64;
use core::str::FromStr;

use crate::name::Name;
use crate::ttl::Ttl;

/// An owner token: 128 random bits that identify one acquisition, drawn for each of them.
///
/// A process that has the token can extend and release the lease, so only
/// [`Display`](fmt::Display) shows it in full: 32 lower-case hexadecimal digits.
#[derive(Clone, Copy, Eq, Hash, Ord, PartialEq, PartialOrd)]
pub struct Owner([u8; 16]);

impl Owner {
    /// Returns the owner token with these 128 random bits.
    pub const fn from_bytes(bytes: [u8; 16]) -> Self {
        Self(bytes)
    }

    /// Returns the 128 bits.
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

/// The error for a text that is not an [`Owner`].
#[derive(Clone, Copy, Debug, Eq, PartialEq, thiserror::Error)]
#[error("an owner is written as 32 hexadecimal digits")]
pub struct InvalidOwner;

/// A fencing token: the number of a grant, which grows with each new grant of a name.
///
/// It grows by at least one, never with an extension, and is never zero. Send it to the resource that
/// the lock guards, which then rejects each token smaller than the greatest it has accepted
/// ([Kleppmann 2016](https://martin.kleppmann.com/2016/02/08/how-to-do-distributed-locking.html)).
#[derive(Clone, Copy, Debug, Eq, Hash, Ord, PartialEq, PartialOrd)]
pub struct Fence(NonZeroU64);

impl Fence {
    /// The smallest fencing token.
    pub const FIRST: Self = Self(NonZeroU64::MIN);

    /// The greatest fencing token that a store grants, 2⁶² − 1.
    pub const LAST: Self = match Self::new((1 << 62) - 1) {
        Some(last) => last,
        None => Self::FIRST,
    };

    /// Returns the fencing token with this number, or `None` for zero.
    pub const fn new(number: u64) -> Option<Self> {
        match NonZeroU64::new(number) {
            Some(number) => Some(Self(number)),
            None => None,
        }
    }

    /// Returns the number.
    pub const fn get(self) -> u64 {
        self.0.get()
    }
}

impl fmt::Display for Fence {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// The record of an acquire request that is sent to a store.
#[derive(Clone, Debug, Eq, Hash, PartialEq)]
#[non_exhaustive]
pub struct Claim {
    /// The lock's name.
    pub name: Name,
    /// The owner token of the acquisition.
    pub owner: Owner,
    /// The length of the lease, from the moment the store records it.
    pub ttl: Ttl,
    /// Whether the lease is ephemeral: its record also ends with the client that made it.
    ///
    /// A store whose [`Capabilities`](crate::Capabilities) lack `ephemeral` ignores this. Only
    /// [`Store::acquire`](crate::Store::acquire) reads it;
    /// [`Store::detach`](crate::Store::detach) unbinds the lease from its client.
    pub ephemeral: bool,
    /// Which other holders the name may have at the same time.
    pub mode: Mode,
}

impl Claim {
    /// Returns an exclusive claim, which is not ephemeral.
    pub fn new(name: Name, owner: Owner, ttl: Ttl) -> Self {
        Self {
            name,
            owner,
            ttl,
            ephemeral: false,
            mode: Mode::Exclusive,
        }
    }

    /// Returns the claim, ephemeral or not.
    #[must_use]
    pub fn ephemeral(self, ephemeral: bool) -> Self {
        Self { ephemeral, ..self }
    }

    /// Returns the claim for another name.
    #[must_use]
    pub fn with_name(self, name: Name) -> Self {
        Self { name, ..self }
    }

    /// Returns the claim of another owner.
    #[must_use]
    pub fn with_owner(self, owner: Owner) -> Self {
        Self { owner, ..self }
    }

    /// Returns the claim with another length of its lease.
    #[must_use]
    pub fn with_ttl(self, ttl: Ttl) -> Self {
        Self { ttl, ..self }
    }
}

/// Which other holders a name may have beside a claim.
#[derive(Clone, Copy, Debug, Default, Eq, Hash, PartialEq)]
#[non_exhaustive]
pub enum Mode {
    /// None: the holder is alone.
    #[default]
    Exclusive,
}

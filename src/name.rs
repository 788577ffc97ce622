//! Names of locks.

use alloc::sync::Arc;
use core::fmt;
use core::str::FromStr;

/// The name of a lock: any non-empty UTF-8 text of at most [`Name::MAX_BYTES`] bytes.
///
/// Names are compared byte by byte, without normalisation: two spellings are two names.
///
/// ```
/// use verrou::Name;
///
/// let name: Name = "nightly/backup of ‘web1’".parse()?;
/// assert_eq!(name.as_str(), "nightly/backup of ‘web1’");
/// assert!("".parse::<Name>().is_err());
/// # Ok::<(), verrou::InvalidName>(())
/// ```
#[derive(Clone, Eq, Hash, Ord, PartialEq, PartialOrd)]
pub struct Name(Arc<str>);

impl Name {
    /// The maximum length of a name, in bytes.
    pub const MAX_BYTES: usize = 1024;

    /// Returns the name that `text` spells.
    ///
    /// # Errors
    ///
    /// [`InvalidName`] when `text` is empty or longer than [`Name::MAX_BYTES`].
    pub fn new(text: &str) -> Result<Self, InvalidName> {
        match text.len() {
            0 => Err(InvalidName::Empty),
            bytes if bytes > Self::MAX_BYTES => Err(InvalidName::TooLong { bytes }),
            _ => Ok(Self(text.into())),
        }
    }

    /// Returns the name as it was given.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl FromStr for Name {
    type Err = InvalidName;

    fn from_str(text: &str) -> Result<Self, InvalidName> {
        Self::new(text)
    }
}

impl TryFrom<&str> for Name {
    type Error = InvalidName;

    fn try_from(text: &str) -> Result<Self, InvalidName> {
        Self::new(text)
    }
}

impl fmt::Display for Name {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl fmt::Debug for Name {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Debug::fmt(&self.0, f)
    }
}

/// The error for a text that cannot name a lock.
#[derive(Clone, Debug, Eq, PartialEq, thiserror::Error)]
#[non_exhaustive]
pub enum InvalidName {
    /// The text is empty.
    #[error("a lock's name must not be empty")]
    Empty,
    /// The text is too long.
    #[error(
        "a lock's name must have at most {} bytes, this one has {bytes}",
        Name::MAX_BYTES
    )]
    TooLong {
        /// The text's length in bytes.
        bytes: usize,
    },
}

//! The record of a name: one line of text.
//!
//! `verrou1 7 1763910000000000000 OWNER` is held under the fencing token 7 until that many
//! nanoseconds after the start of 1970, or until `never`; `verrou1 7` was held and is free. A record is
//! never deleted, because the next token must be greater than its token.

use std::fmt;
use std::str;

const VERSION: &str = "verrou1";

/// The record of a name that is, or was, held under this fencing token.
#[derive(Clone, Default)]
pub struct Record {
    pub token: u64,
    pub holding: Option<Holding>,
}

#[derive(Clone)]
pub struct Holding {
    pub owner: String,
    /// The end, in nanoseconds since the start of 1970; `None` when it does not expire.
    pub until: Option<u64>,
}

impl Record {
    /// Reads a value, or returns why it is invalid.
    pub fn parse(value: Option<&[u8]>) -> Result<Self, String> {
        let Some(value) = value else {
            return Ok(Self::default());
        };
        let text = str::from_utf8(value).map_err(|_| "is not text".to_owned())?;
        Self::read(text).ok_or_else(|| format!("is not a record of this version: {text}"))
    }

    fn read(text: &str) -> Option<Self> {
        let mut words = text.strip_prefix(VERSION)?.strip_prefix(' ')?.split(' ');
        let token = words.next()?.parse().ok()?;
        let holding = match (words.next(), words.next(), words.next()) {
            (None, ..) => None,
            (Some(until), Some(owner), None) => Some(Holding {
                owner: owner.to_owned(),
                until: match until {
                    "never" => None,
                    until => Some(until.parse().ok()?),
                },
            }),
            _ => return None,
        };
        Some(Self { token, holding })
    }
}

impl fmt::Display for Record {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{VERSION} {}", self.token)?;
        let Some(Holding { owner, until }) = &self.holding else {
            return Ok(());
        };
        match until {
            Some(until) => write!(f, " {until} {owner}"),
            None => write!(f, " never {owner}"),
        }
    }
}

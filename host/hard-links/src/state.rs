//! The contents of a state's file: lines of text, with a checksum.

use alloc::format;
use alloc::string::{String, ToString};
use alloc::vec::Vec;
use core::fmt::{self, Write};
use core::str::{FromStr, Lines};

use data_encoding::HEXLOWER;
use sha2::{Digest, Sha256};
use verrou::{Fence, Name, Owner, Process};

use crate::file_names::LAST;

/// The file is at most as long as this.
pub(crate) const LONGEST: usize = 8192;

/// The number of released grants that a state lists.
const RELEASED: usize = 16;

const FIRST_LINE: &str = "verrou state 1";

/// The latest grant of a lock, as a file records it.
#[derive(Clone, Debug, Eq, PartialEq)]
pub(crate) struct State {
    /// The number of the file for which this was written.
    pub(crate) number: u64,
    pub(crate) name: Name,
    pub(crate) fence: Fence,
    pub(crate) owner: Owner,
    /// How the grant has ended, if this was written for that.
    pub(crate) end: End,
    /// The time of the grant, in nanoseconds since the start of 1970, like `until`.
    pub(crate) since: u64,
    /// The end of the lease; `None` when it does not expire.
    pub(crate) until: Option<u64>,
    /// The length of the lease that was last requested, in nanoseconds.
    pub(crate) ttl: Option<u64>,
    pub(crate) process: Option<Process>,
    /// The fences of earlier grants that their owners released, in ascending order.
    pub(crate) released: Vec<u64>,
}

/// How a grant has ended, other than by its expiry.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(crate) enum End {
    /// Not: it is held, or expired.
    Held,
    Released,
    ForceReleased,
}

impl End {
    /// All of them, with their words in files.
    const WORDS: [(Self, &str); 3] = [
        (Self::Held, "held"),
        (Self::Released, "released"),
        (Self::ForceReleased, "force-released"),
    ];
}

impl State {
    /// Adds the fence of a released grant, and drops the oldest ones.
    pub(crate) fn note_released(&mut self, fence: Fence) {
        self.released.push(fence.get());
        let surplus = self.released.len().saturating_sub(RELEASED);
        self.released.drain(..surplus);
    }

    /// Returns the contents of the file.
    pub(crate) fn to_text(&self) -> String {
        let mut text = String::new();
        // Writing to a `String` cannot fail.
        let _ = self.write(&mut text);
        let checksum = checksum(&text);
        text + &format!("sha256 {checksum}\n")
    }

    fn write(&self, text: &mut String) -> fmt::Result {
        writeln!(text, "{FIRST_LINE}")?;
        writeln!(text, "name {}", Escaped(self.name.as_str()))?;
        writeln!(text, "number {}", self.number)?;
        writeln!(text, "fence {}", self.fence)?;
        for (_, word) in End::WORDS.iter().filter(|(end, _)| *end == self.end) {
            writeln!(text, "state {word}")?;
        }
        writeln!(text, "owner {}", self.owner)?;
        writeln!(text, "since {}", self.since)?;
        writeln!(text, "until {}", Limit(self.until))?;
        writeln!(text, "ttl {}", Limit(self.ttl))?;
        match &self.process {
            Some(process) => {
                let (host, command) = (Escaped(&process.host), Escaped(&process.command));
                writeln!(text, "process {}\nhost {host}\nlabel {command}", process.id)?;
            }
            None => writeln!(text, "process none")?,
        }
        text.push_str("released");
        for fence in &self.released {
            write!(text, " {fence}")?;
        }
        writeln!(text)
    }

    /// Returns the state in the contents of a file.
    pub(crate) fn parse(bytes: &[u8]) -> Result<Self, Corruption> {
        if bytes.is_empty() {
            return Err(Corruption::Empty);
        }
        let text = core::str::from_utf8(bytes).map_err(|_| Corruption::NoState)?;
        let Some(rest) = text.strip_prefix("verrou state ") else {
            return Err(Corruption::NoState);
        };
        if !rest.starts_with("1\n") {
            let version = rest.lines().next().unwrap_or_default();
            let is_newer = version.parse::<u32>().is_ok_and(|version| version > 1);
            return Err(if is_newer {
                Corruption::NewerVersion
            } else {
                Corruption::NoState
            });
        }
        let end = text.rfind("sha256 ").ok_or(Corruption::Checksum)?;
        let (fields, sum) = text.split_at(end);
        if sum != format!("sha256 {}\n", checksum(fields)) {
            return Err(Corruption::Checksum);
        }
        Self::read(fields)
            // So that a file has one form.
            .filter(|state| state.to_text() == text)
            .ok_or(Corruption::NoState)
    }

    fn read(fields: &str) -> Option<Self> {
        let mut lines = fields.lines();
        (lines.next()? == FIRST_LINE).then_some(())?;
        let name = Name::new(&unescaped(field(&mut lines, "name ")?)?).ok()?;
        let number = parsed(&mut lines, "number ")?;
        let fence = Fence::new(parsed(&mut lines, "fence ")?)?;
        let word = field(&mut lines, "state ")?;
        let (end, _) = *End::WORDS.iter().find(|(_, text)| *text == word)?;
        let owner = parsed(&mut lines, "owner ")?;
        let since = parsed(&mut lines, "since ")?;
        let until = limit(field(&mut lines, "until ")?)?;
        let ttl = limit(field(&mut lines, "ttl ")?)?;
        let process = match field(&mut lines, "process ")? {
            "none" => None,
            id => {
                let host = unescaped(field(&mut lines, "host ")?)?;
                let command = unescaped(field(&mut lines, "label ")?)?;
                Some(Process::new(id.parse().ok()?, host, command))
            }
        };
        let released = field(&mut lines, "released")?.split_whitespace();
        let released = released.map(|fence| fence.parse().ok());
        let released: Vec<u64> = released.collect::<Option<_>>()?;
        let is_valid = (1..=LAST).contains(&number) && fence <= Fence::LAST;
        (is_valid && released.len() <= RELEASED && lines.next().is_none()).then_some(Self {
            number,
            name,
            fence,
            owner,
            end,
            since,
            until,
            ttl,
            process,
            released,
        })
    }
}

/// Returns a description of a process that fits into a state's file.
pub(crate) fn shortened(process: &Process) -> Process {
    let short = |text: &str, most| {
        let end = text.floor_char_boundary(most);
        text[..end].to_string()
    };
    Process::new(
        process.id,
        short(&process.host, 64),
        short(&process.command, 320),
    )
}

/// Returns the rest of the next line, which must begin with `key`.
fn field<'a>(lines: &mut Lines<'a>, key: &str) -> Option<&'a str> {
    lines.next()?.strip_prefix(key)
}

fn parsed<T: FromStr>(lines: &mut Lines<'_>, key: &str) -> Option<T> {
    field(lines, key)?.parse().ok()
}

#[expect(clippy::option_option, reason = "a number, no limit, or no valid text")]
fn limit(text: &str) -> Option<Option<u64>> {
    match text {
        "never" => Some(None),
        number => number.parse().ok().map(Some),
    }
}

/// Returns the first 64 bits of the SHA-256 of `text`, as hexadecimal digits.
fn checksum(text: &str) -> String {
    HEXLOWER.encode(&Sha256::digest(text)[..8])
}

/// A time, or the word for none.
struct Limit(Option<u64>);

impl fmt::Display for Limit {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.0 {
            Some(nanos) => nanos.fmt(f),
            None => f.write_str("never"),
        }
    }
}

/// A text in one line: `%` and ASCII control characters are written as `%XX`.
struct Escaped<'a>(&'a str);

impl fmt::Display for Escaped<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.chars().try_for_each(|char| {
            if char.is_ascii_control() || char == '%' {
                write!(f, "%{:02x}", u32::from(char))
            } else {
                f.write_char(char)
            }
        })
    }
}

fn unescaped(text: &str) -> Option<String> {
    let mut parts = text.split('%');
    let mut plain = String::from(parts.next()?);
    for part in parts {
        let code = u8::from_str_radix(part.get(..2)?, 16).ok()?;
        plain.push(char::from(code));
        plain.push_str(&part[2..]);
    }
    Some(plain)
}

/// Why a file is not one that this version wrote there, and the way out.
///
/// A lock whose directory was moved away begins again with a greater fencing token.
#[derive(Clone, Copy, Debug, Eq, PartialEq, thiserror::Error)]
#[non_exhaustive]
pub enum Corruption {
    /// The file is empty.
    #[error(
        "this file is empty, as after a loss of power; if nothing holds its lock, move its directory away"
    )]
    Empty,
    /// The file is not a state.
    #[error(
        "this file is not the state of a lock; if nothing holds its lock, move its directory away"
    )]
    NoState,
    /// The checksum is wrong, or missing.
    #[error(
        "this file is corrupt, because its checksum does not match or is missing; if nothing holds its \
         lock, move its directory away"
    )]
    Checksum,
    /// A newer version has written the file.
    #[error("this file is from a newer version of this software; use that version")]
    NewerVersion,
    /// The file is the state of another lock.
    #[error(
        "this file is the state of another lock; if nothing holds its lock, move its directory away"
    )]
    OtherName,
    /// The file is in the place of another state.
    #[error(
        "this file is in the place of another state; if nothing holds its lock, move its directory away"
    )]
    OtherNumber,
    /// The name of the file is none that this store uses.
    #[error("this file does not belong to the store; move it away")]
    Foreign,
    /// The file `store` is not that of a store.
    #[error(
        "this file does not describe a store of this version; restore it, or, if no program uses the \
         directory, remove the file"
    )]
    Settings,
}

#[cfg(test)]
mod tests {
    use alloc::vec;

    use proptest::prelude::*;

    use super::*;

    fn state(name: &str, process: Option<Process>) -> State {
        State {
            number: 42,
            name: Name::new(name).unwrap(),
            fence: Fence::new(7).unwrap(),
            owner: Owner::from_bytes([0xab; 16]),
            end: End::Held,
            since: 1_763_892_000_000_000_000,
            until: Some(1_763_892_030_000_000_000),
            ttl: Some(30_000_000_000),
            process,
            released: vec![3, 6],
        }
    }

    #[test]
    fn every_field_is_read_back() {
        let process = Process::new(4711, "web\n1", "a%b\tc");
        for state in [
            state("nightly", Some(process)),
            state("a\0b\r\n% 🔒", None),
            State {
                end: End::ForceReleased,
                until: None,
                ttl: None,
                released: vec![],
                ..state("x", None)
            },
        ] {
            assert_eq!(State::parse(state.to_text().as_bytes()), Ok(state));
        }
    }

    #[test]
    fn longest_state_fits() {
        let name = "\u{1}".repeat(Name::MAX_BYTES);
        let text = "%".repeat(1000);
        let mut state = state(
            &name,
            Some(shortened(&Process::new(u32::MAX, &*text, &*text))),
        );
        state.number = LAST;
        for _ in 0..2 * RELEASED {
            state.note_released(Fence::LAST);
        }
        let text = state.to_text();
        assert!(text.len() <= LONGEST, "{} bytes", text.len());
        assert_eq!(State::parse(text.as_bytes()), Ok(state));
    }

    #[test]
    fn corrupt_bytes_are_no_state() {
        let text = state("nightly", None).to_text();
        assert_eq!(State::parse(b""), Err(Corruption::Empty));
        assert_eq!(State::parse(&[0; 300]), Err(Corruption::NoState));
        for length in 1..text.len() {
            assert!(
                State::parse(&text.as_bytes()[..length]).is_err(),
                "{length}"
            );
        }
        for at in 0..text.len() {
            for bit in 0..8 {
                let mut bytes = text.clone().into_bytes();
                bytes[at] ^= 1 << bit;
                assert!(State::parse(&bytes).is_err(), "byte {at}, bit {bit}");
            }
        }
        let newer = text.replacen("state 1", "state 2", 1);
        assert_eq!(
            State::parse(newer.as_bytes()),
            Err(Corruption::NewerVersion)
        );
    }

    proptest! {
        #[test]
        fn any_bytes_are_no_state(bytes: Vec<u8>) {
            prop_assert!(State::parse(&bytes).is_err());
        }

        #[test]
        fn any_text_is_escaped_to_one_line(text: String) {
            let escaped = Escaped(&text).to_string();
            prop_assert!(escaped.bytes().all(|byte| !byte.is_ascii_control()));
            prop_assert_eq!(unescaped(&escaped), Some(text));
        }
    }
}

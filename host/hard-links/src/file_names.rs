//! The names of files: of the directory of a lock, of its states, and of drafts.

use alloc::format;
use alloc::string::String;

use data_encoding::BASE32_NOPAD;
use sha2::{Digest, Sha256};
use verrou::Name;

/// The greatest number of a state: 2⁶² − 1, which has as many digits as a file's name.
pub(crate) const LAST: u64 = (1 << 62) - 1;

/// The digits of a state's number.
const DIGITS: usize = 19;
/// The digits of a draft's random number.
const RANDOM_DIGITS: usize = 32;

const STATE: &str = ".state";
const DRAFT: &str = ".draft";

/// Returns `HEAD.HASH` for the lock `name`, the beginning of the name of its file or directory.
///
/// It contains the beginning of the lock's name, for people, and enough of the name's SHA-256 that no two names
/// share it. So it is valid for any name, whatever a file system's rules for length, case and Unicode.
pub fn file_stem(name: &Name) -> String {
    const READABLE: usize = 40;
    const HASHED: usize = 26; // 130 bits

    let keep = |char: char| {
        if char.is_ascii_alphanumeric() {
            char.to_ascii_lowercase()
        } else {
            '_'
        }
    };
    let readable: String = name.as_str().chars().take(READABLE).map(keep).collect();
    let hash = BASE32_NOPAD
        .encode(&Sha256::digest(name.as_str()))
        .to_ascii_lowercase();
    format!("{readable}.{}", &hash[..HASHED])
}

/// Returns the name of the file of the state with this number.
pub(crate) fn state(number: u64) -> String {
    format!("{number:0DIGITS$}{STATE}")
}

/// Returns the name of the draft of the state after the one with the number `base`.
pub(crate) fn draft(base: u64, random: u128) -> String {
    format!("{base:0DIGITS$}.{random:0RANDOM_DIGITS$x}{DRAFT}")
}

/// An entry of a lock's directory, by its name.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(crate) enum Entry {
    /// The state with this number.
    State(u64),
    /// A draft of the state after the one with this number.
    Draft(u64),
    /// A file of the file system, or of another program, such as `.nfs0000`.
    Hidden,
    /// A name that this store does not use.
    Foreign,
}

impl Entry {
    pub(crate) fn of(name: &str) -> Self {
        if name.starts_with('.') {
            return Self::Hidden;
        }
        if let Some(digits) = name.strip_suffix(STATE) {
            return match number(digits) {
                Some(number) if number > 0 => Self::State(number),
                _ => Self::Foreign,
            };
        }
        let draft = name
            .strip_suffix(DRAFT)
            .and_then(|draft| draft.split_once('.'));
        let is_hex = |digit: u8| digit.is_ascii_digit() || (b'a'..=b'f').contains(&digit);
        match draft.and_then(|(base, random)| Some((number(base)?, random))) {
            Some((base, random)) if random.len() == RANDOM_DIGITS && random.bytes().all(is_hex) => {
                Self::Draft(base)
            }
            _ => Self::Foreign,
        }
    }
}

/// Returns the number that these digits are, if a file of this store can have it.
fn number(digits: &str) -> Option<u64> {
    let is_whole = digits.len() == DIGITS && digits.bytes().all(|digit| digit.is_ascii_digit());
    let number = is_whole.then(|| digits.parse().ok()).flatten()?;
    (number <= LAST).then_some(number)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_of_states_and_drafts_are_read_back_and_no_other_names() {
        for number in [1, 42, LAST] {
            assert_eq!(Entry::of(&state(number)), Entry::State(number));
        }
        for base in [0, 1, LAST] {
            for random in [0, u128::MAX] {
                assert_eq!(Entry::of(&draft(base, random)), Entry::Draft(base));
            }
        }
        assert_eq!(Entry::of(".nfs00000000"), Entry::Hidden);
        for foreign in [
            "",
            "notes",
            "1.state",
            "0000000000000000000.state",
            "00000000000000000001.state",
            "+000000000000000001.state",
            "000000000000000000a.state",
            "4611686018427387904.state",
            "0000000000000000001.state~",
            "0000000000000000001.STATE",
            "0000000000000000001.draft",
            "0000000000000000001.0.draft",
            "0000000000000000001.0123456789ABCDEF0123456789ABCDEF.draft",
        ] {
            assert_eq!(Entry::of(foreign), Entry::Foreign, "{foreign}");
        }
    }

    #[test]
    fn order_of_the_names_is_the_order_of_the_numbers() {
        assert!(state(9) < state(10) && state(10) < state(LAST));
    }

    #[test]
    fn stem_fits_every_file_system() {
        for (name, readable) in [
            ("backup", "backup."),
            ("Nightly/backup", "nightly_backup."),
            ("🔒", "_."),
        ] {
            let stem = file_stem(&Name::new(name).unwrap());
            assert!(stem.starts_with(readable), "{stem}");
        }
        let longest = Name::new(&"x".repeat(Name::MAX_BYTES)).unwrap();
        assert_eq!(file_stem(&longest).len(), 40 + 1 + 26);
    }
}

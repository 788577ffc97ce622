//! The file `store` of a store's directory: its version, and the allowance for differing clocks.

use alloc::format;
use alloc::string::String;
use core::time::Duration;

/// The name of the file.
pub(crate) const FILE: &str = "store";
/// The second name that the file gets for a moment, to examine whether the file system has hard links.
pub(crate) const PROBE: &str = "probe";
/// The file is shorter than this.
pub(crate) const LONGEST: usize = 256;

const FIRST_LINE: &str = "verrou hard links 1";
const SKEW: &str = "skew-milliseconds ";

/// The settings of a store, which all programs that use its directory follow.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
#[non_exhaustive]
pub struct Settings {
    /// The greatest difference of the wall clocks of any two programs that use the directory. A lease that has
    /// expired stays unavailable to other owners for as long.
    pub skew: Duration,
}

impl Settings {
    /// Returns the text of the file.
    pub(crate) fn to_text(self) -> String {
        format!("{FIRST_LINE}\n{SKEW}{}\n", self.skew.as_millis())
    }

    /// Returns the settings in the text of the file; `None` if it is not one of this version.
    pub(crate) fn parse(bytes: &[u8]) -> Option<Self> {
        let text = core::str::from_utf8(bytes).ok()?;
        let rest = text.strip_prefix(FIRST_LINE)?.strip_prefix('\n')?;
        let millis = rest.strip_prefix(SKEW)?.strip_suffix('\n')?;
        let is_number = !millis.is_empty() && millis.bytes().all(|digit| digit.is_ascii_digit());
        // An allowance of a day or more is a mistake.
        let millis: u32 = is_number.then(|| millis.parse().ok()).flatten()?;
        let skew = Duration::from_millis(millis.into());
        (skew < Duration::from_hours(24)).then_some(Self { skew })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn settings_are_read_back_and_nothing_else() {
        for millis in [0, 1, 500, 86_399_999] {
            let skew = Duration::from_millis(millis);
            let settings = Settings { skew };
            assert_eq!(
                Settings::parse(settings.to_text().as_bytes()),
                Some(settings)
            );
        }
        for other in [
            "",
            "verrou hard links 1\n",
            "verrou hard links 2\nskew-milliseconds 0\n",
            "verrou hard links 1\nskew-milliseconds 0",
            "verrou hard links 1\nskew-milliseconds \n",
            "verrou hard links 1\nskew-milliseconds +1\n",
            "verrou hard links 1\nskew-milliseconds 86400000\n",
            "verrou hard links 1\nskew-milliseconds 0\nmore\n",
        ] {
            assert_eq!(Settings::parse(other.as_bytes()), None, "{other:?}");
        }
    }
}

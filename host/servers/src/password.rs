//! Passwords in the text of a URL.

use std::ops::Range;

/// Returns where the password of a URL may be in `text`, also if the URL is malformed: from the first colon to
/// the last `@`. Both may be percent-encoded, also repeatedly.
///
/// ```
/// use verrou_host::password_range;
///
/// assert_eq!(password_range("redis//app:secret@host"), Some(10..18));
/// assert_eq!(password_range("app%3Asecret%40host"), Some(3..15));
/// assert_eq!(password_range("lease:/var/lib/verrou"), None);
/// ```
pub fn password_range(text: &str) -> Option<Range<usize>> {
    let colon = marks(text, b':', b"3a").next()?;
    let at = marks(text, b'@', b"40").last()?;
    (colon.start < at.start).then_some(colon.start..at.end)
}

/// Returns where `text` has the character `plain`, or `encoded` with a percent sign before it, which may itself
/// be encoded.
pub(crate) fn marks(
    text: &str,
    plain: u8,
    encoded: &'static [u8],
) -> impl Iterator<Item = Range<usize>> {
    let bytes = text.as_bytes();
    (0..bytes.len()).filter_map(move |start| match bytes[start] {
        byte if byte == plain => Some(start..start + 1),
        b'%' => {
            let mut digits = start + 1;
            while bytes[digits..].starts_with(b"25") {
                digits += 2;
            }
            let end = digits + encoded.len();
            let found = bytes.get(digits..end)?;
            found.eq_ignore_ascii_case(encoded).then_some(start..end)
        }
        _ => None,
    })
}

//! The display of text from untrusted sources.

use core::fmt;

/// Displays a text on one line: escapes each character that [`is_hidden`].
///
/// Names, labels and host names come from other users. Printed unescaped, they could end a line, move
/// a terminal's cursor, or look like another text.
///
/// ```
/// use verrou::Printable;
///
/// assert_eq!(Printable("a\nb\u{202e}c").to_string(), r"a\nb\u{202e}c");
/// ```
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
#[expect(
    clippy::exhaustive_structs,
    reason = "it wraps a text, and nothing else"
)]
pub struct Printable<'a>(pub &'a str);

impl fmt::Display for Printable<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut rest = self.0;
        while let Some(at) = rest.find(is_hidden) {
            let (before, from) = rest.split_at(at);
            f.write_str(before)?;
            let mut chars = from.chars();
            if let Some(hidden) = chars.next() {
                fmt::Display::fmt(&hidden.escape_default(), f)?;
            }
            rest = chars.as_str();
        }
        f.write_str(rest)
    }
}

/// Returns whether `char` is a control character, breaks a line, changes the direction of text, or is
/// invisible.
///
/// These are Unicode's control characters, its line and paragraph separators, its interlinear
/// annotations, and the characters with the property `Default_Ignorable_Code_Point`, which include all
/// bidirectional controls. The list is written out because the tables of a library, or of
/// `char::escape_debug`, would be a tenth of the component's size.
pub fn is_hidden(char: char) -> bool {
    char.is_control()
        || matches!(
            char,
            '\u{ad}'
                | '\u{34f}'
                | '\u{61c}'
                | '\u{115f}'..='\u{1160}'
                | '\u{17b4}'..='\u{17b5}'
                | '\u{180b}'..='\u{180f}'
                | '\u{200b}'..='\u{200f}'
                | '\u{2028}'..='\u{202e}'
                | '\u{2060}'..='\u{206f}'
                | '\u{3164}'
                | '\u{fe00}'..='\u{fe0f}'
                | '\u{feff}'
                | '\u{ffa0}'
                | '\u{fff0}'..='\u{fffb}'
                | '\u{1bca0}'..='\u{1bca3}'
                | '\u{1d173}'..='\u{1d17a}'
                | '\u{e0000}'..='\u{e0fff}'
        )
}

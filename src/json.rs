//! The subset of JSON ([RFC 8259](https://www.rfc-editor.org/rfc/rfc8259)) that a serialized lock uses: an
//! object of texts, whole numbers and `null`. Members with other values are skipped.
//!
//! The libraries for this are twice as large as the rest of the component, or lose control
//! characters. `tests/text.rs` compares this reader with `serde_json`.

use alloc::string::String;
use core::fmt;

use crate::printable::is_hidden;

/// The value of an object's member.
#[derive(Debug)]
pub(crate) enum Value {
    Null,
    /// A whole number that fits into 64 bits.
    Number(u64),
    Text(String),
    /// Any other value.
    Other,
}

/// A syntax error, and its position.
#[derive(Debug)]
pub(crate) struct Unexpected {
    at: usize,
    wanted: &'static str,
}

impl fmt::Display for Unexpected {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "expected {} at byte {}", self.wanted, self.at)
    }
}

/// A text, displayed as a JSON string.
pub(crate) struct Quoted<'a>(pub(crate) &'a str);

impl fmt::Display for Quoted<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        use fmt::Write as _;

        f.write_char('"')?;
        for c in self.0.chars() {
            match c {
                '"' | '\\' => {
                    f.write_char('\\')?;
                    f.write_char(c)?;
                }
                // JSON requires this only below U+0020; the others change what a terminal displays.
                _ if is_hidden(c) => {
                    for unit in c.encode_utf16(&mut [0; 2]) {
                        write!(f, "\\u{unit:04x}")?;
                    }
                }
                _ => f.write_char(c)?,
            }
        }
        f.write_char('"')
    }
}

/// Reads one object.
pub(crate) struct Reader<'a> {
    text: &'a [u8],
    at: usize,
}

impl<'a> Reader<'a> {
    /// The maximum depth of nesting; no valid text is nested as deeply.
    const DEEPEST: u32 = 100;

    /// Calls `member` for each member of the object that `text` is; members of nested objects are skipped.
    pub(crate) fn read(
        text: &'a str,
        mut member: impl FnMut(&str, Value),
    ) -> Result<(), Unexpected> {
        let mut reader = Self {
            text: text.as_bytes(),
            at: 0,
        };
        reader.space();
        reader.expect(b'{', "object")?;
        reader.members(1, &mut member)?;
        reader.space();
        if reader.at < reader.text.len() {
            return Err(reader.unexpected("end"));
        }
        Ok(())
    }

    fn unexpected(&self, wanted: &'static str) -> Unexpected {
        let at = self.at;
        Unexpected { at, wanted }
    }

    fn peek(&self) -> Option<u8> {
        self.text.get(self.at).copied()
    }

    fn take(&mut self, byte: u8) -> bool {
        let there = self.peek() == Some(byte);
        self.at += usize::from(there);
        there
    }

    fn expect(&mut self, byte: u8, wanted: &'static str) -> Result<(), Unexpected> {
        if self.take(byte) {
            Ok(())
        } else {
            Err(self.unexpected(wanted))
        }
    }

    fn space(&mut self) {
        while matches!(self.peek(), Some(b' ' | b'\t' | b'\n' | b'\r')) {
            self.at += 1;
        }
    }

    /// Reads an object's members, after its opening brace, and its closing brace.
    fn members(
        &mut self,
        depth: u32,
        member: &mut dyn FnMut(&str, Value),
    ) -> Result<(), Unexpected> {
        self.space();
        if self.take(b'}') {
            return Ok(());
        }
        loop {
            self.space();
            let name = self.string()?;
            self.space();
            self.expect(b':', "colon")?;
            let value = self.value(depth)?;
            member(&name, value);
            if !self.comma(b'}')? {
                return Ok(());
            }
        }
    }

    /// Reads a comma or `end`; returns whether it was a comma.
    fn comma(&mut self, end: u8) -> Result<bool, Unexpected> {
        self.space();
        if self.take(end) {
            return Ok(false);
        }
        self.expect(b',', "comma")?;
        Ok(true)
    }

    fn value(&mut self, depth: u32) -> Result<Value, Unexpected> {
        self.space();
        if depth > Self::DEEPEST {
            return Err(self.unexpected("less deep nesting"));
        }
        match self.peek() {
            Some(b'"') => Ok(Value::Text(self.string()?)),
            Some(b'-' | b'0'..=b'9') => self.number(),
            Some(b'{') => {
                self.at += 1;
                self.members(depth + 1, &mut |_, _| {})?;
                Ok(Value::Other)
            }
            Some(b'[') => {
                self.at += 1;
                self.space();
                if self.take(b']') {
                    return Ok(Value::Other);
                }
                loop {
                    self.value(depth + 1)?;
                    if !self.comma(b']')? {
                        return Ok(Value::Other);
                    }
                }
            }
            _ => {
                for (word, value) in [
                    ("null", Value::Null),
                    ("true", Value::Other),
                    ("false", Value::Other),
                ] {
                    if self.text[self.at..].starts_with(word.as_bytes()) {
                        self.at += word.len();
                        return Ok(value);
                    }
                }
                Err(self.unexpected("value"))
            }
        }
    }

    fn number(&mut self) -> Result<Value, Unexpected> {
        let mut is_whole = !self.take(b'-');
        let mut number = Some(0_u64);
        if !self.take(b'0') {
            self.digits(&mut number)?;
        }
        if self.take(b'.') {
            is_whole = false;
            self.digits(&mut number)?;
        }
        if self.take(b'e') || self.take(b'E') {
            is_whole = false;
            let _ = self.take(b'+') || self.take(b'-');
            self.digits(&mut number)?;
        }
        Ok(match number {
            Some(number) if is_whole => Value::Number(number),
            _ => Value::Other,
        })
    }

    /// Reads at least one digit, and appends each digit to `number`.
    fn digits(&mut self, number: &mut Option<u64>) -> Result<(), Unexpected> {
        let from = self.at;
        while let Some(digit @ b'0'..=b'9') = self.peek() {
            let longer = number.and_then(|number| number.checked_mul(10));
            *number = longer.and_then(|number| number.checked_add(u64::from(digit - b'0')));
            self.at += 1;
        }
        if self.at == from {
            return Err(self.unexpected("digit"));
        }
        Ok(())
    }

    fn string(&mut self) -> Result<String, Unexpected> {
        self.expect(b'"', "text in quotes")?;
        let mut text = String::new();
        loop {
            let from = self.at;
            while !matches!(self.peek(), None | Some(b'"' | b'\\' | 0..=0x1f)) {
                self.at += 1;
            }
            // The bytes come from a `str`, cut at one-byte characters, so they are valid UTF-8.
            if let Ok(part) = core::str::from_utf8(&self.text[from..self.at]) {
                text.push_str(part);
            }
            if self.take(b'"') {
                return Ok(text);
            }
            self.expect(b'\\', "character or quote")?;
            text.push(self.escaped()?);
        }
    }

    /// Reads an escape sequence after its backslash.
    fn escaped(&mut self) -> Result<char, Unexpected> {
        let byte = self.peek();
        self.at += 1;
        Ok(match byte {
            Some(c @ (b'"' | b'\\' | b'/')) => char::from(c),
            Some(b'b') => '\x08',
            Some(b'f') => '\x0c',
            Some(b'n') => '\n',
            Some(b'r') => '\r',
            Some(b't') => '\t',
            Some(b'u') => {
                let mut unit = self.unit()?;
                if (0xd800..0xdc00).contains(&unit) && self.take(b'\\') && self.take(b'u') {
                    let low = self.unit()?;
                    if !(0xdc00..0xe000).contains(&low) {
                        return Err(self.unexpected("second half of a character"));
                    }
                    unit = 0x1_0000 + ((unit - 0xd800) << 10) + (low - 0xdc00);
                }
                char::from_u32(unit).ok_or_else(|| self.unexpected("whole character"))?
            }
            _ => {
                self.at -= 1;
                return Err(self.unexpected("character that can be escaped"));
            }
        })
    }

    /// Reads four hexadecimal digits.
    fn unit(&mut self) -> Result<u32, Unexpected> {
        let mut unit = 0;
        for _ in 0..4 {
            let digit = self.peek().and_then(|digit| char::from(digit).to_digit(16));
            let digit = digit.ok_or_else(|| self.unexpected("hexadecimal digit"))?;
            unit = unit << 4 | digit;
            self.at += 1;
        }
        Ok(unit)
    }
}

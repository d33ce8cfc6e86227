//! The string under one key of a plain JSON object, eight bytes at a time.
//!
//! Reads what most lines are: an object of strings, whole numbers, `true`, `false` and `null`, without `\u` escapes. Of
//! anything else, right or wrong, it says that it has not read it; `json_text` then does.

const ONES: u64 = 0x0101_0101_0101_0101;
const HIGHS: u64 = 0x8080_8080_8080_8080;

/// Puts the string under `field` into `out`, which has room for 8 bytes more than `line` has; gives its length, or nothing
/// of a line that is not plain. The bytes of the string are not checked to be UTF-8.
pub(crate) fn field_text(line: &[u8], field: &[u8], out: &mut [u8]) -> Option<usize> {
    let mut scan = Scan { line, at: 0 };
    let mut found = None;
    scan.expect(b'{')?;
    loop {
        scan.expect(b'"')?;
        let start = scan.at;
        scan.skip_string()?;
        let key = &line[start..scan.at - 1];
        scan.expect(b':')?;
        match scan.next()? {
            b'"' if key == field => found = Some(scan.copy_string(out)?),
            b'"' => scan.skip_string()?,
            _ if key == field => return None,
            first => scan.skip_scalar(first)?,
        }
        match scan.next()? {
            b',' => {}
            b'}' => break,
            _ => return None,
        }
    }
    if line[scan.at..].trim_ascii().is_empty() { found } else { None }
}

struct Scan<'a> {
    line: &'a [u8],
    at: usize,
}

impl Scan<'_> {
    /// The next byte that is no space.
    fn next(&mut self) -> Option<u8> {
        loop {
            let byte = *self.line.get(self.at)?;
            self.at += 1;
            if !matches!(byte, b' ' | b'\t' | b'\r') {
                return Some(byte);
            }
        }
    }

    fn expect(&mut self, wanted: u8) -> Option<()> {
        (self.next()? == wanted).then_some(())
    }

    /// Goes behind the string that has begun, if nothing in it is escaped.
    fn skip_string(&mut self) -> Option<()> {
        while let Some(word) = self.word() {
            let found = special(word);
            if found != 0 {
                self.at += found.trailing_zeros() as usize / 8;
                break;
            }
            self.at += 8;
        }
        while !is_special(*self.line.get(self.at)?) {
            self.at += 1;
        }
        let is_end = self.line[self.at] == b'"';
        self.at += 1;
        is_end.then_some(())
    }

    /// Copies the string that has begun, its escapes resolved; gives its length.
    fn copy_string(&mut self, out: &mut [u8]) -> Option<usize> {
        let mut len = 0;
        loop {
            while let Some(word) = self.word() {
                out[len..len + 8].copy_from_slice(&word.to_le_bytes());
                let found = special(word);
                let plain = if found == 0 { 8 } else { found.trailing_zeros() as usize / 8 };
                self.at += plain;
                len += plain;
                if found != 0 {
                    break;
                }
            }
            while !is_special(*self.line.get(self.at)?) {
                out[len] = self.line[self.at];
                self.at += 1;
                len += 1;
            }
            match self.line[self.at] {
                b'"' => {
                    self.at += 1;
                    return Some(len);
                }
                b'\\' => out[len] = unescaped(*self.line.get(self.at + 1)?)?,
                _ => return None,
            }
            self.at += 2;
            len += 1;
        }
    }

    /// Goes behind a whole number or a literal.
    fn skip_scalar(&mut self, first: u8) -> Option<()> {
        let start = self.at - 1;
        while self.line.get(self.at).is_some_and(u8::is_ascii_alphanumeric) {
            self.at += 1;
        }
        let scalar = &self.line[start..self.at];
        let is_number =
            scalar.iter().all(u8::is_ascii_digit) && (first != b'0' || scalar.len() == 1);
        (is_number || matches!(scalar, b"true" | b"false" | b"null")).then_some(())
    }

    fn word(&self) -> Option<u64> {
        let bytes = self.line.get(self.at..self.at + 8)?;
        Some(u64::from_le_bytes(bytes.try_into().expect("eight bytes")))
    }
}

/// Has the high bit of the lowest byte that ends a stretch of plain text; higher bytes may be wrong.
fn special(word: u64) -> u64 {
    let below = |word: u64, bound: u64| word.wrapping_sub(ONES * bound) & !word & HIGHS;
    let quote = word ^ (ONES * u64::from(b'"'));
    let backslash = word ^ (ONES * u64::from(b'\\'));
    below(quote, 1) | below(backslash, 1) | below(word, 0x20)
}

fn is_special(byte: u8) -> bool {
    byte < 0x20 || byte == b'"' || byte == b'\\'
}

fn unescaped(letter: u8) -> Option<u8> {
    Some(match letter {
        b'"' | b'\\' | b'/' => letter,
        b'n' => b'\n',
        b't' => b'\t',
        b'r' => b'\r',
        b'b' => 8,
        b'f' => 12,
        _ => return None,
    })
}

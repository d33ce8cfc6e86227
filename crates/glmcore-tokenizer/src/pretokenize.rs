//! The GLM-4 split pattern, without a regular-expression engine.
//!
//! The pattern's alternatives, in the order in which they are tried:
//!
//! 1. an English contraction after an apostrophe, in any case;
//! 2. letters, with at most one leading character that is no letter, digit or line break;
//! 3. one to three digits;
//! 4. other printable characters, with at most one leading space, and the line breaks after them;
//! 5. white space up to and including the last line break of the run;
//! 6. white space before the last white-space character that precedes something else;
//! 7. any other white space.

use std::sync::LazyLock;

use regex_syntax::hir::{Class, HirKind};

/// The pattern as it stands in a GLM-4 `tokenizer.json`.
pub const GLM4_PATTERN: &str = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+";

#[derive(Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
enum Kind {
    Other,
    Letter,
    Number,
    Space,
    /// `\r` or `\n`, which are white space too.
    Break,
}

/// Kind of each scalar value: pages of 256, equal pages stored once.
struct Kinds {
    page_of: Vec<u16>,
    pages: Vec<[Kind; 256]>,
}

static KINDS: LazyLock<Kinds> = LazyLock::new(Kinds::build);

impl Kinds {
    fn build() -> Self {
        let mut flat = vec![Kind::Other; 0x11_0000];
        for (pattern, kind) in
            [(r"\p{L}", Kind::Letter), (r"\p{N}", Kind::Number), (r"\s", Kind::Space)]
        {
            let hir = regex_syntax::parse(pattern).expect("a constant pattern parses");
            let HirKind::Class(Class::Unicode(class)) = hir.kind() else {
                unreachable!("a Unicode property is a Unicode class");
            };
            for range in class.ranges() {
                flat[range.start() as usize..=range.end() as usize].fill(kind);
            }
        }
        flat['\r' as usize] = Kind::Break;
        flat['\n' as usize] = Kind::Break;
        let mut pages: Vec<[Kind; 256]> = Vec::new();
        let page_of = flat
            .chunks_exact(256)
            .map(|chunk| {
                let place = pages.iter().position(|page| page == chunk).unwrap_or_else(|| {
                    pages.push(chunk.try_into().expect("chunks have 256 entries"));
                    pages.len() - 1
                });
                u16::try_from(place).expect("there are 4352 pages at most")
            })
            .collect();
        Self { page_of, pages }
    }

    fn of(&self, c: char) -> Kind {
        let code = c as usize;
        self.pages[self.page_of[code >> 8] as usize][code & 0xff]
    }
}

/// Splits `text` into pre-tokens. They cover the text without gaps.
///
/// ```
/// let parts: Vec<&str> = glmcore_tokenizer::pretokens("It's 2024,  ok\n").collect();
/// assert_eq!(parts, ["It", "'s", " ", "202", "4", ",", " ", " ok", "\n"]);
/// ```
pub fn pretokens(text: &str) -> impl Iterator<Item = &str> {
    let kinds = &*KINDS;
    let mut rest = text;
    std::iter::from_fn(move || {
        if rest.is_empty() {
            return None;
        }
        let (token, after) = rest.split_at(next_len(kinds, rest));
        rest = after;
        Some(token)
    })
}

/// Length in bytes of the first pre-token of `text`, which is not empty.
fn next_len(kinds: &Kinds, text: &str) -> usize {
    let mut chars = text.chars();
    let first = chars.next().expect("text is not empty");
    let first_kind = kinds.of(first);
    let after_first = first.len_utf8();
    let second_kind = chars.next().map(|c| kinds.of(c));

    if first == '\''
        && let Some(len) = contraction_len(text)
    {
        return len;
    }
    match (first_kind, second_kind) {
        (Kind::Letter, _) => run_len(text, |c| kinds.of(c) == Kind::Letter),
        (Kind::Other | Kind::Space, Some(Kind::Letter)) => {
            after_first + run_len(&text[after_first..], |c| kinds.of(c) == Kind::Letter)
        }
        (Kind::Number, _) => text
            .chars()
            .take(3)
            .take_while(|&c| kinds.of(c) == Kind::Number)
            .map(char::len_utf8)
            .sum(),
        (Kind::Other, _) => punctuation_len(kinds, text, 0),
        (Kind::Space, Some(Kind::Other)) if first == ' ' => punctuation_len(kinds, text, 1),
        (Kind::Space | Kind::Break, _) => white_space_len(kinds, text),
    }
}

/// Length of a contraction at the start of `text`, which starts with an apostrophe.
///
/// Case is folded as Unicode does, so the long s counts as an s.
fn contraction_len(text: &str) -> Option<usize> {
    let fold = |c: char| if c == '\u{17f}' { 's' } else { c.to_ascii_lowercase() };
    let mut chars = text.chars().skip(1);
    let first = chars.next()?;
    match (fold(first), chars.next().map(fold)) {
        ('s' | 't' | 'm' | 'd', _) => Some(1 + first.len_utf8()),
        ('r' | 'v', Some('e')) | ('l', Some('l')) => Some(3),
        _ => None,
    }
}

fn run_len(text: &str, inside: impl Fn(char) -> bool) -> usize {
    text.find(|c| !inside(c)).unwrap_or(text.len())
}

/// Length of `skip` bytes, the printable characters after them, and the line breaks after those.
fn punctuation_len(kinds: &Kinds, text: &str, skip: usize) -> usize {
    let printable = skip + run_len(&text[skip..], |c| kinds.of(c) == Kind::Other);
    printable + run_len(&text[printable..], |c| matches!(c, '\r' | '\n'))
}

/// Length of the pre-token that starts a run of white space.
fn white_space_len(kinds: &Kinds, text: &str) -> usize {
    let run = run_len(text, |c| matches!(kinds.of(c), Kind::Space | Kind::Break));
    if let Some(last_break) = text[..run].rfind(['\r', '\n']) {
        return last_break + 1;
    }
    if run == text.len() {
        return run;
    }
    let last = text[..run].chars().next_back().map_or(0, char::len_utf8);
    if run > last { run - last } else { run }
}

//! Scanners written by hand for the split patterns of known tokenizers: each gives the end of the pre-token that
//! starts at a place, alternative by alternative in the order of the pattern.

use crate::unicode::{BREAK, Classes, LETTER, LOWER, MARK, NUMBER, PUNCTUATION, SPACE, UPPER};

/// GLM-4, Llama 3 and cl100k (`max_digits` 3), Qwen2 (1); `whole_tail` as tiktoken's form of cl100k, which keeps the
/// white space at the end of a text together.
pub(super) fn words_with_contractions(
    classes: Classes,
    text: &str,
    at: usize,
    max_digits: usize,
    whole_tail: bool,
) -> usize {
    if text.as_bytes()[at] == b'\''
        && let Some(len) = contraction(text, at)
    {
        return at + len;
    }
    let (class, len) = classes.at(text, at);
    let next = classes.at(text, at + len).0;
    if class & LETTER != 0 || (class & (NUMBER | BREAK) == 0 && next & LETTER != 0) {
        return classes.run(text, at + len, LETTER, 0);
    }
    if class & NUMBER != 0 {
        return digits(classes, text, at, max_digits);
    }
    if class & SPACE == 0 || (text.as_bytes()[at] == b' ' && is_symbol(next, text, at + len)) {
        return symbols(classes, text, at + usize::from(class & SPACE != 0) * len, false);
    }
    white_space(classes, text, at, true, whole_tail)
}

/// o200k: words split where case says so, contractions at their ends, slashes after symbols.
pub(super) fn cased_words(classes: Classes, text: &str, at: usize) -> usize {
    let (class, len) = classes.at(text, at);
    let prefix = if class & (BREAK | NUMBER | LETTER) == 0 { len } else { 0 };
    // Without a prefix the word can only begin with a mark, which may be a prefix itself.
    let starts = [Some(at + prefix), (class & MARK != 0).then_some(at)];
    let lower =
        starts.into_iter().flatten().find_map(|start| word_with_lower(classes, text, start));
    let upper =
        || starts.into_iter().flatten().find_map(|start| word_with_upper(classes, text, start));
    if let Some(end) = lower.or_else(upper) {
        return end + contraction(text, end).unwrap_or(0);
    }
    if class & NUMBER != 0 {
        return digits(classes, text, at, 3);
    }
    let next = classes.at(text, at + len).0;
    if class & SPACE == 0 || (text.as_bytes()[at] == b' ' && is_symbol(next, text, at + len)) {
        return symbols(classes, text, at + usize::from(class & SPACE != 0) * len, true);
    }
    white_space(classes, text, at, true, false)
}

/// Whether a character may stand among small letters: those without case and marks may.
fn is_lower(class: u8) -> bool {
    class & (LETTER | MARK) != 0 && class & UPPER == 0
}

/// Whether a character may stand among capital letters.
fn is_upper(class: u8) -> bool {
    class & (LETTER | MARK) != 0 && class & LOWER == 0
}

/// End of `[upper]*[lower]+` at `start`.
fn word_with_lower(classes: Classes, text: &str, start: usize) -> Option<usize> {
    let mut end = start;
    let mut last_both = None; // end of the last character of the upper run that may also count as lower
    loop {
        let (class, len) = classes.at(text, end);
        if len == 0 || !is_upper(class) {
            break;
        }
        end += len;
        if is_lower(class) {
            last_both = Some(end);
        }
    }
    let lower_end = run_while(classes, text, end, is_lower);
    // Where no small letter follows, the upper run gives back characters until its last one counts as lower.
    if lower_end > end { Some(lower_end) } else { last_both }
}

/// End of `[upper]+[lower]*` at `start`.
fn word_with_upper(classes: Classes, text: &str, start: usize) -> Option<usize> {
    let end = run_while(classes, text, start, is_upper);
    (end > start).then(|| run_while(classes, text, end, is_lower))
}

fn run_while(classes: Classes, text: &str, mut at: usize, inside: impl Fn(u8) -> bool) -> usize {
    loop {
        let (class, len) = classes.at(text, at);
        if len == 0 || !inside(class) {
            return at;
        }
        at += len;
    }
}

/// GPT-2: one leading space before letters, numbers or symbols; lower-case contractions; no care for line breaks.
pub(super) fn spaced_words(classes: Classes, text: &str, at: usize) -> usize {
    let bytes = text.as_bytes();
    if bytes[at] == b'\'' {
        match (bytes.get(at + 1), bytes.get(at + 2)) {
            (Some(b's' | b't' | b'm' | b'd'), _) => return at + 2,
            (Some(b'r' | b'v'), Some(b'e')) | (Some(b'l'), Some(b'l')) => return at + 3,
            _ => {}
        }
    }
    let start = at + usize::from(bytes[at] == b' ');
    let (class, len) = classes.at(text, start);
    if len != 0 && class & SPACE == 0 {
        return match class & (LETTER | NUMBER) {
            0 => classes.run_without(text, start, LETTER | NUMBER | SPACE),
            kind => classes.run(text, start, kind, 0),
        };
    }
    white_space(classes, text, at, false, false)
}

/// The last of `DeepSeek` V3's three splits.
pub(super) fn deepseek_words(classes: Classes, text: &str, at: usize) -> usize {
    let bytes = text.as_bytes();
    if bytes[at].is_ascii_punctuation() && bytes.get(at + 1).is_some_and(u8::is_ascii_alphabetic) {
        let letters = bytes[at + 1..].iter().take_while(|byte| byte.is_ascii_alphabetic()).count();
        return at + 1 + letters;
    }
    let (class, len) = classes.at(text, at);
    let next = classes.at(text, at + len).0;
    if class & (LETTER | MARK) != 0 {
        return classes.run(text, at, LETTER | MARK, 0);
    }
    if class & (BREAK | PUNCTUATION) == 0 && next & (LETTER | MARK) != 0 {
        return classes.run(text, at + len, LETTER | MARK, 0);
    }
    if class & PUNCTUATION != 0 || (bytes[at] == b' ' && next & PUNCTUATION != 0) {
        let start = at + usize::from(bytes[at] == b' ');
        let end = classes.run(text, start, PUNCTUATION, 0);
        return classes.run(text, end, BREAK, 0);
    }
    if class & SPACE != 0 {
        return white_space(classes, text, at, true, false);
    }
    // Nothing matches here: what stands between two matches is a piece of its own.
    let mut end = at + len;
    while end < text.len() && !deepseek_matches_at(classes, text, end) {
        end += classes.at(text, end).1;
    }
    end
}

fn deepseek_matches_at(classes: Classes, text: &str, at: usize) -> bool {
    let (class, len) = classes.at(text, at);
    let next = classes.at(text, at + len).0;
    class & (LETTER | MARK | PUNCTUATION | SPACE) != 0 || next & (LETTER | MARK) != 0
}

/// Runs of one to three numbers, and what stands between them.
pub(super) fn number_groups(classes: Classes, text: &str, at: usize) -> usize {
    if classes.at(text, at).0 & NUMBER != 0 {
        digits(classes, text, at, 3)
    } else {
        classes.run_without(text, at, NUMBER)
    }
}

/// Runs of Chinese characters and kana as `DeepSeek` V3 counts them, and what stands between them.
pub(super) fn cjk_runs(text: &str, at: usize) -> usize {
    let inside = |c: char| matches!(c, '\u{4e00}'..='\u{9fa5}' | '\u{3040}'..='\u{309f}' | '\u{30a0}'..='\u{30ff}');
    let rest = &text[at..];
    let first = rest.chars().next().is_some_and(inside);
    at + rest.find(|c| inside(c) != first).unwrap_or(rest.len())
}

/// Length of a contraction at `at`, in any case; case is folded as Unicode does, so the long s counts as an s.
pub(super) fn contraction(text: &str, at: usize) -> Option<usize> {
    let fold = |c: char| if c == '\u{17f}' { 's' } else { c.to_ascii_lowercase() };
    let mut chars = text[at..].chars();
    if chars.next() != Some('\'') {
        return None;
    }
    let first = chars.next()?;
    match (fold(first), chars.next().map(fold)) {
        ('s' | 't' | 'm' | 'd', _) => Some(1 + first.len_utf8()),
        ('r' | 'v', Some('e')) | ('l', Some('l')) => Some(3),
        _ => None,
    }
}

/// Whether the character of class `class` at `at` is neither white space, letter nor number; false at the end.
fn is_symbol(class: u8, text: &str, at: usize) -> bool {
    class & (LETTER | NUMBER | SPACE) == 0 && at < text.len()
}

fn digits(classes: Classes, text: &str, at: usize, max_digits: usize) -> usize {
    let mut end = at;
    for _ in 0..max_digits {
        let (class, len) = classes.at(text, end);
        if class & NUMBER == 0 {
            break;
        }
        end += len;
    }
    end
}

/// Symbols from `at` on and the line breaks (and slashes) after them.
fn symbols(classes: Classes, text: &str, at: usize, slashes: bool) -> usize {
    let mut end = classes.run_without(text, at, LETTER | NUMBER | SPACE);
    while matches!(text.as_bytes().get(end), Some(b'\r' | b'\n'))
        || (slashes && text.as_bytes().get(end) == Some(&b'/'))
    {
        end += 1;
    }
    end
}

/// End of the first piece of a run of white space: up to the last line break (if `breaks`), else all but the last
/// character before something else.
fn white_space(classes: Classes, text: &str, at: usize, breaks: bool, whole_tail: bool) -> usize {
    let end = classes.run(text, at, SPACE, 0);
    let run = &text[at..end];
    if whole_tail && end == text.len() {
        return end;
    }
    if breaks && let Some(last_break) = run.rfind(['\r', '\n']) {
        return at + last_break + 1;
    }
    if end == text.len() {
        return end;
    }
    let last = run.chars().next_back().map_or(0, char::len_utf8);
    if run.len() > last { end - last } else { end }
}

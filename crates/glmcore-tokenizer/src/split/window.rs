//! The pattern of GLM-4 and its relatives on 64 bytes at once: a bit for each byte, the alternatives as bit algebra.
//!
//! A window starts where a word starts, so nothing has to be carried over. What cannot be decided without the bytes
//! behind it is left to the next window, which starts at the last word that was found.

use super::WINDOW;
use super::instructions::Instructions;
use super::scan::contraction;
use crate::unicode::{Classes, LETTER, NUMBER, SPACE};

/// Which bytes of a window are what: bit i for byte i. Bytes outside ASCII are only in `not_ascii`.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) struct Masks {
    pub(crate) letter: u64,
    pub(crate) number: u64,
    /// White space, line breaks included.
    pub(crate) space: u64,
    pub(crate) line_break: u64,
    /// The character U+0020.
    pub(crate) blank: u64,
    pub(crate) apostrophe: u64,
    pub(crate) not_ascii: u64,
}

/// Words found in a window.
pub(super) struct Found {
    /// Bit i: a word ends before byte i of the window. 0 if the first word is longer than can be seen.
    pub(super) ends: u64,
    /// The window reaches the end of the text, where the last word ends.
    pub(super) whole: bool,
}

/// Words in the window that starts at `at`, where a word starts.
#[inline(always)]
pub(super) fn cut<I: Instructions>(
    instructions: I,
    classes: Classes,
    text: &str,
    at: usize,
    max_digits: usize,
    whole_tail: bool,
) -> Found {
    let bytes = text.as_bytes();
    let mut last;
    let (window, len) = if let Some(window) = bytes.get(at..at + WINDOW) {
        (window.try_into().expect("a window has 64 bytes"), WINDOW)
    } else {
        let rest = &bytes[at..];
        last = [b' '; WINDOW];
        last[..rest.len()].copy_from_slice(rest);
        (&last, rest.len())
    };
    let whole = len < WINDOW;
    let mut masks = instructions.classify(window);
    let rule = Rule { max_digits, whole, whole_tail };
    if masks.not_ascii == 0 {
        let valid = u64::MAX >> (WINDOW - len);
        let starts = rule.words(&masks, valid);
        return Found { ends: with_contractions(starts, &masks, text, at) & valid & !1, whole };
    }
    // One bit a character instead of one a byte, the algebra, and back.
    let valid = u64::MAX >> (WINDOW - if whole { len } else { complete(window) });
    let mut firsts = valid; // first bytes of characters
    let [of_two, of_three] = instructions.letters_by_first(window).map(|mask| mask & valid);
    let behind = of_two << 1 | of_three << 1 | of_three << 2;
    masks.letter |= of_two | of_three;
    firsts &= !behind;
    let mut rest = masks.not_ascii & valid & !(of_two | of_three | behind);
    while rest != 0 {
        let place = rest.trailing_zeros() as usize;
        let (class, size) = classes.at(text, at + place);
        masks.letter |= u64::from(class & LETTER != 0) << place;
        masks.number |= u64::from(class & NUMBER != 0) << place;
        masks.space |= u64::from(class & SPACE != 0) << place;
        let behind = ((1 << size) - 2) << place; // its other bytes
        firsts &= !behind;
        rest &= !(1 << place | behind);
    }
    let packed = Masks {
        letter: instructions.compress(masks.letter, firsts),
        number: instructions.compress(masks.number, firsts),
        space: instructions.compress(masks.space, firsts),
        line_break: instructions.compress(masks.line_break, firsts),
        blank: instructions.compress(masks.blank, firsts),
        apostrophe: 0,
        not_ascii: 0,
    };
    let starts = rule.words(&packed, u64::MAX >> (64 - firsts.count_ones()));
    let starts = instructions.expand(starts, firsts);
    Found { ends: with_contractions(starts, &masks, text, at) & valid & !1, whole }
}

/// Length of the part of a full window that holds complete characters.
#[inline(always)]
fn complete(window: &[u8; WINDOW]) -> usize {
    for back in 1..=3 {
        let size = match window[WINDOW - back] {
            0..0x80 => 1,
            0x80..0xc0 => continue,
            0xc0..0xe0 => 2,
            0xe0..0xf0 => 3,
            _ => 4,
        };
        return if size > back { WINDOW - back } else { WINDOW };
    }
    WINDOW
}

/// What is the same for all characters of a window.
struct Rule {
    max_digits: usize,
    /// The text ends with the window.
    whole: bool,
    whole_tail: bool,
}

impl Rule {
    /// Starts of words, one bit a character, as far as they do not depend on what follows the window.
    #[inline(always)]
    fn words(&self, masks: &Masks, valid: u64) -> u64 {
        let letter = masks.letter & valid;
        let number = masks.number & valid;
        let space = masks.space & valid;
        let symbol = valid & !(letter | number | space);
        let horizontal = space & !masks.line_break;

        // A symbol behind a blank belongs to it; alone and without a blank, it belongs to the letters behind it.
        let symbol_starts = symbol & !(symbol << 1 | masks.blank << 1);
        let letter_starts = letter & !(letter << 1 | horizontal << 1 | symbol_starts << 1);
        let number_starts = self.number_starts(number);

        // Line breaks directly behind symbols belong to them: adding the first of a run clears the run.
        let breaks = masks.line_break & valid;
        let attached = breaks & !breaks.wrapping_add(breaks & (symbol << 1));
        let breaks = breaks & !attached;
        let run_starts = (space & !attached) & !((space & !attached) << 1);
        // A run of white space is cut behind its last line break and before its last character.
        let mut behind_break = horizontal & (breaks << 1);
        if behind_break != 0 && horizontal & (breaks >> 1) != 0 {
            behind_break = without_later_break(behind_break, horizontal, breaks);
        }
        let before_other = horizontal & ((valid & !space) >> 1);
        let others = valid & !space;
        if self.whole {
            if self.whole_tail {
                behind_break &= below_tail(others & valid | attached);
            }
            letter_starts | number_starts | symbol_starts | run_starts | behind_break | before_other
        } else {
            // White space at the end may go on behind the window: only its start is certain.
            let known = if others == 0 { 0 } else { below_tail(others) << 1 | 1 };
            (letter_starts
                | number_starts
                | symbol_starts
                | run_starts
                | behind_break
                | before_other)
                & known
        }
    }

    #[inline(always)]
    fn number_starts(&self, number: u64) -> u64 {
        if self.max_digits == 1 {
            return number;
        }
        let mut starts = number & !(number << 1);
        let mut third = starts;
        while third != 0 {
            third = (((third << 1) & number) << 1 & number) << 1 & number;
            starts |= third;
        }
        starts
    }
}

/// All bits up to the highest of `others`.
#[inline(always)]
fn below_tail(others: u64) -> u64 {
    if others == 0 { 0 } else { u64::MAX >> others.leading_zeros() }
}

/// Those of `behind_break` whose run of blanks is not followed by another line break.
#[cold]
fn without_later_break(behind_break: u64, horizontal: u64, breaks: u64) -> u64 {
    let mut kept = 0;
    let mut left = behind_break;
    while left != 0 {
        let bit = left & left.wrapping_neg();
        let after_run = !horizontal & !(bit - 1);
        if after_run & after_run.wrapping_neg() & breaks == 0 {
            kept |= bit;
        }
        left &= left - 1;
    }
    kept
}

/// Adds the starts of what follows contractions; one bit a byte.
#[inline(always)]
fn with_contractions(mut starts: u64, masks: &Masks, text: &str, at: usize) -> u64 {
    let mut left = masks.apostrophe & starts;
    while left != 0 {
        let place = left.trailing_zeros() as usize;
        left &= left - 1;
        if let Some(len) = contraction(text, at + place)
            && place + len < WINDOW
        {
            starts |= 1 << (place + len);
        }
    }
    starts
}

//! The processor's wide instructions, behind one trait; which of them there are is found out when the program runs.
#![expect(unsafe_code, reason = "instructions that a processor may lack")]

use std::ops::RangeInclusive;

use super::WINDOW;
use super::window::Masks;

/// What the window scanner asks of a processor. A value of an implementing type shows that it is there.
pub(crate) trait Instructions: Copy {
    /// Whether 64 bytes at once are faster than one after the other.
    const WIDE: bool;
    /// Sorts the bytes of a window.
    fn classify(self, window: &[u8; WINDOW]) -> Masks;
    /// First bytes of characters of two and of three bytes that are letters whatever their other bytes are.
    fn letters_by_first(self, window: &[u8; WINDOW]) -> [u64; 2];
    /// Bits of `value` at the places of `mask`, moved together.
    fn compress(self, value: u64, mask: u64) -> u64;
    /// The lowest bits of `value`, moved apart to the places of `mask`.
    fn expand(self, value: u64, mask: u64) -> u64;
}

/// Work that is compiled once for each set of instructions.
pub(crate) trait Task {
    fn run<I: Instructions>(self, instructions: I);
}

/// Runs the task with the best instructions of this processor.
#[inline]
pub(crate) fn dispatch(task: impl Task) {
    #[cfg(target_arch = "x86_64")]
    {
        if let Some(instructions) = x86::Avx512::detect() {
            return instructions.run(task);
        }
        if let Some(instructions) = x86::Avx2::detect() {
            return instructions.run(task);
        }
    }
    task.run(Plain);
}

/// Cyrillic: from U+0400 to U+047F.
pub(super) const LETTER_OF_TWO: RangeInclusive<u8> = 0xd0..=0xd1;
/// Chinese characters from U+5000 to U+9FFF, and Hangul from U+B000 to U+CFFF.
pub(super) const LETTER_OF_THREE: [RangeInclusive<u8>; 2] = [0xe5..=0xe9, 0xeb..=0xec];

/// No wide instructions; also the twin against which the others are tested.
#[derive(Clone, Copy)]
pub(crate) struct Plain;

impl Instructions for Plain {
    const WIDE: bool = false;

    fn classify(self, window: &[u8; WINDOW]) -> Masks {
        let mask = |wanted: fn(u8) -> bool| {
            (0..WINDOW).fold(0, |mask, place| mask | u64::from(wanted(window[place])) << place)
        };
        Masks {
            letter: mask(|byte| byte.is_ascii_alphabetic()),
            number: mask(|byte| byte.is_ascii_digit()),
            space: mask(|byte| matches!(byte, b'\t'..=b'\r' | b' ')),
            line_break: mask(|byte| matches!(byte, b'\r' | b'\n')),
            blank: mask(|byte| byte == b' '),
            apostrophe: mask(|byte| byte == b'\''),
            not_ascii: mask(|byte| !byte.is_ascii()),
        }
    }

    fn letters_by_first(self, window: &[u8; WINDOW]) -> [u64; 2] {
        let mask = |wanted: &dyn Fn(u8) -> bool| {
            (0..WINDOW).fold(0, |mask, place| mask | u64::from(wanted(window[place])) << place)
        };
        [
            mask(&|byte| LETTER_OF_TWO.contains(&byte)),
            mask(&|byte| LETTER_OF_THREE.iter().any(|range| range.contains(&byte))),
        ]
    }

    fn compress(self, value: u64, mask: u64) -> u64 {
        let places = (0..64).filter(|place| mask >> place & 1 != 0);
        places.enumerate().fold(0, |packed, (to, from)| packed | (value >> from & 1) << to)
    }

    fn expand(self, value: u64, mask: u64) -> u64 {
        let places = (0..64).filter(|place| mask >> place & 1 != 0);
        places.enumerate().fold(0, |spread, (from, to)| spread | (value >> from & 1) << to)
    }
}

#[cfg(target_arch = "x86_64")]
mod x86 {
    use std::arch::x86_64::{
        __m256i, _mm256_cmpeq_epi8, _mm256_loadu_si256, _mm256_min_epu8, _mm256_movemask_epi8,
        _mm256_or_si256, _mm256_set1_epi8, _mm256_sub_epi8, _mm512_cmple_epu8_mask,
        _mm512_loadu_epi8, _mm512_maskz_permutex2var_epi8, _mm512_movepi8_mask, _mm512_set1_epi8,
        _mm512_sub_epi8, _mm512_test_epi8_mask, _pdep_u64, _pext_u64,
    };

    use super::{
        Instructions, LETTER_OF_THREE, LETTER_OF_TWO, Masks, RangeInclusive, Task, WINDOW,
    };

    #[derive(Clone, Copy)]
    pub(super) struct Avx512(());

    impl Avx512 {
        pub(super) fn detect() -> Option<Self> {
            let there = is_x86_feature_detected!("avx512bw")
                && is_x86_feature_detected!("avx512vbmi")
                && is_x86_feature_detected!("avx512vl")
                && is_x86_feature_detected!("avx512dq")
                && is_x86_feature_detected!("bmi1")
                && is_x86_feature_detected!("bmi2")
                && is_x86_feature_detected!("lzcnt")
                && is_x86_feature_detected!("popcnt");
            there.then_some(Self(()))
        }

        #[inline]
        pub(super) fn run(self, task: impl Task) {
            #[target_feature(
                enable = "avx512bw,avx512vbmi,avx512vl,avx512dq,bmi1,bmi2,lzcnt,popcnt"
            )]
            fn inner(instructions: Avx512, task: impl Task) {
                task.run(instructions);
            }
            // SAFETY: a value of this type exists only where the instructions do.
            unsafe { inner(self, task) }
        }
    }

    const LETTER: u8 = 1;
    const NUMBER: u8 = 2;
    const SPACE: u8 = 4;
    const BREAK: u8 = 8;
    const BLANK: u8 = 16;
    const APOSTROPHE: u8 = 32;

    /// Classes of the ASCII characters.
    static ASCII: [u8; 128] = {
        let mut classes = [0; 128];
        let mut byte = 0;
        while byte < 128 {
            classes[byte] = match byte as u8 {
                b'A'..=b'Z' | b'a'..=b'z' => LETTER,
                b'0'..=b'9' => NUMBER,
                b'\r' | b'\n' => SPACE | BREAK,
                b' ' => SPACE | BLANK,
                b'\t'..=b'\r' => SPACE,
                b'\'' => APOSTROPHE,
                _ => 0,
            };
            byte += 1;
        }
        classes
    };

    impl Instructions for Avx512 {
        const WIDE: bool = true;

        #[inline(always)]
        fn classify(self, window: &[u8; WINDOW]) -> Masks {
            #[inline]
            #[target_feature(enable = "avx512bw,avx512vbmi")]
            fn inner(window: &[u8; WINDOW]) -> Masks {
                // SAFETY: each pointer leads to 64 bytes.
                let (bytes, low, high) = unsafe {
                    (
                        _mm512_loadu_epi8(window.as_ptr().cast()),
                        _mm512_loadu_epi8(ASCII.as_ptr().cast()),
                        _mm512_loadu_epi8(ASCII[64..].as_ptr().cast()),
                    )
                };
                let not_ascii = _mm512_movepi8_mask(bytes);
                let class = _mm512_maskz_permutex2var_epi8(!not_ascii, low, bytes, high);
                let mask =
                    |bit: u8| _mm512_test_epi8_mask(class, _mm512_set1_epi8(bit.cast_signed()));
                Masks {
                    letter: mask(LETTER),
                    number: mask(NUMBER),
                    space: mask(SPACE),
                    line_break: mask(BREAK),
                    blank: mask(BLANK),
                    apostrophe: mask(APOSTROPHE),
                    not_ascii,
                }
            }
            // SAFETY: a value of this type exists only where the instructions do.
            unsafe { inner(window) }
        }

        #[inline(always)]
        fn letters_by_first(self, window: &[u8; WINDOW]) -> [u64; 2] {
            #[inline]
            #[target_feature(enable = "avx512bw,avx512vbmi")]
            fn inner(window: &[u8; WINDOW]) -> [u64; 2] {
                // SAFETY: the pointer leads to 64 bytes.
                let bytes = unsafe { _mm512_loadu_epi8(window.as_ptr().cast()) };
                let value = |byte: u8| _mm512_set1_epi8(byte.cast_signed());
                let within = |range: &RangeInclusive<u8>| {
                    let moved = _mm512_sub_epi8(bytes, value(*range.start()));
                    _mm512_cmple_epu8_mask(moved, value(range.end() - range.start()))
                };
                let [chinese, hangul] = LETTER_OF_THREE;
                [within(&LETTER_OF_TWO), within(&chinese) | within(&hangul)]
            }
            // SAFETY: a value of this type exists only where the instructions do.
            unsafe { inner(window) }
        }

        #[inline(always)]
        fn compress(self, value: u64, mask: u64) -> u64 {
            // SAFETY: as above.
            unsafe { _pext_u64(value, mask) }
        }

        #[inline(always)]
        fn expand(self, value: u64, mask: u64) -> u64 {
            // SAFETY: as above.
            unsafe { _pdep_u64(value, mask) }
        }
    }

    #[derive(Clone, Copy)]
    pub(super) struct Avx2(());

    impl Avx2 {
        pub(super) fn detect() -> Option<Self> {
            let there = is_x86_feature_detected!("avx2")
                && is_x86_feature_detected!("bmi1")
                && is_x86_feature_detected!("bmi2")
                && is_x86_feature_detected!("lzcnt")
                && is_x86_feature_detected!("popcnt");
            there.then_some(Self(()))
        }

        #[inline]
        pub(super) fn run(self, task: impl Task) {
            #[target_feature(enable = "avx2,bmi1,bmi2,lzcnt,popcnt")]
            fn inner(instructions: Avx2, task: impl Task) {
                task.run(instructions);
            }
            // SAFETY: a value of this type exists only where the instructions do.
            unsafe { inner(self, task) }
        }
    }

    impl Instructions for Avx2 {
        const WIDE: bool = true;

        #[inline(always)]
        fn classify(self, window: &[u8; WINDOW]) -> Masks {
            #[inline]
            #[target_feature(enable = "avx2")]
            fn inner(window: &[u8; WINDOW]) -> Masks {
                // SAFETY: each pointer leads to 32 bytes.
                let halves = unsafe {
                    [
                        _mm256_loadu_si256(window.as_ptr().cast()),
                        _mm256_loadu_si256(window[32..].as_ptr().cast()),
                    ]
                };
                let both = |test: &dyn Fn(__m256i) -> __m256i| {
                    let [low, high] =
                        halves.map(|half| _mm256_movemask_epi8(test(half)).cast_unsigned());
                    u64::from(low) | u64::from(high) << 32
                };
                let value = |byte: u8| _mm256_set1_epi8(byte.cast_signed());
                // A byte lies in a range if subtracting its first and comparing with its length says so.
                let within = |bytes: __m256i, first: u8, last: u8| {
                    let moved = _mm256_sub_epi8(bytes, value(first));
                    _mm256_cmpeq_epi8(_mm256_min_epu8(moved, value(last - first)), moved)
                };
                let equal = |wanted: u8| both(&|bytes| _mm256_cmpeq_epi8(bytes, value(wanted)));
                let blank = equal(b' ');
                Masks {
                    letter: both(&|bytes| within(_mm256_or_si256(bytes, value(0x20)), b'a', b'z')),
                    number: both(&|bytes| within(bytes, b'0', b'9')),
                    space: both(&|bytes| within(bytes, b'\t', b'\r')) | blank,
                    line_break: equal(b'\r') | equal(b'\n'),
                    blank,
                    apostrophe: equal(b'\''),
                    not_ascii: both(&|bytes| bytes),
                }
            }
            // SAFETY: a value of this type exists only where the instructions do.
            unsafe { inner(window) }
        }

        #[inline(always)]
        fn letters_by_first(self, window: &[u8; WINDOW]) -> [u64; 2] {
            #[inline]
            #[target_feature(enable = "avx2")]
            fn inner(window: &[u8; WINDOW]) -> [u64; 2] {
                // SAFETY: each pointer leads to 32 bytes.
                let halves = unsafe {
                    [
                        _mm256_loadu_si256(window.as_ptr().cast()),
                        _mm256_loadu_si256(window[32..].as_ptr().cast()),
                    ]
                };
                let value = |byte: u8| _mm256_set1_epi8(byte.cast_signed());
                let within = |range: &RangeInclusive<u8>| {
                    let [low, high] = halves.map(|half| {
                        let moved = _mm256_sub_epi8(half, value(*range.start()));
                        let most = value(range.end() - range.start());
                        let inside = _mm256_cmpeq_epi8(_mm256_min_epu8(moved, most), moved);
                        _mm256_movemask_epi8(inside).cast_unsigned()
                    });
                    u64::from(low) | u64::from(high) << 32
                };
                let [chinese, hangul] = LETTER_OF_THREE;
                [within(&LETTER_OF_TWO), within(&chinese) | within(&hangul)]
            }
            // SAFETY: a value of this type exists only where the instructions do.
            unsafe { inner(window) }
        }

        #[inline(always)]
        fn compress(self, value: u64, mask: u64) -> u64 {
            // SAFETY: as above.
            unsafe { _pext_u64(value, mask) }
        }

        #[inline(always)]
        fn expand(self, value: u64, mask: u64) -> u64 {
            // SAFETY: as above.
            unsafe { _pdep_u64(value, mask) }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::{Instructions, LETTER_OF_THREE, LETTER_OF_TWO, Plain, Task, WINDOW};
    use crate::unicode::{LETTER, classes};

    /// Compares instructions with their plain twin on windows from a fixed generator, all bytes being likely.
    struct Compare;

    impl Task for Compare {
        fn run<I: Instructions>(self, wide: I) {
            let mut state = 0x2545_f491_4f6c_dd1d_u64;
            let mut next = || {
                state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
                state ^ state >> 33
            };
            for _ in 0..20_000 {
                let window: [u8; WINDOW] = std::array::from_fn(|_| (next() >> 20) as u8);
                let (value, mask) = (next(), next());
                assert_eq!(wide.classify(&window), Plain.classify(&window), "{window:?}");
                let letters = wide.letters_by_first(&window);
                assert_eq!(letters, Plain.letters_by_first(&window), "{window:?}");
                assert_eq!(wide.compress(value, mask), Plain.compress(value, mask));
                assert_eq!(wide.expand(value, mask), Plain.expand(value, mask));
            }
        }
    }

    #[cfg(target_arch = "x86_64")]
    #[test]
    fn wide_instructions_agree_with_their_plain_twin() {
        if let Some(instructions) = super::x86::Avx512::detect() {
            instructions.run(Compare);
        }
        if let Some(instructions) = super::x86::Avx2::detect() {
            instructions.run(Compare);
        }
    }

    #[test]
    fn characters_taken_for_letters_by_their_first_byte_are_letters() {
        let mut num_letters = 0;
        for c in '\0'..=char::MAX {
            let first = c.encode_utf8(&mut [0; 4]).as_bytes()[0];
            let is_taken = match c.len_utf8() {
                2 => LETTER_OF_TWO.contains(&first),
                3 => LETTER_OF_THREE.iter().any(|range| range.contains(&first)),
                _ => false,
            };
            if is_taken {
                assert_ne!(classes().of(c) & LETTER, 0, "{c:?}");
                num_letters += 1;
            }
        }
        assert_eq!(num_letters, 2 * 64 + 7 * 4096);
    }
}

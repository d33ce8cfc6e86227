//! The same code compiled for the processor's wide instructions, chosen when it runs. All give the same bits where the
//! processor fuses products and sums.

use crate::lanes::{Lanes, sums_of_lanes};

/// What a set of instructions offers.
pub(crate) trait Instructions {
    /// Whether a product and a sum are rounded once.
    const FUSED: bool;

    /// The sums of 16 vectors; see [`sums_of_lanes`].
    #[inline(always)]
    fn sums(vectors: &[Lanes; 16]) -> Lanes {
        sums_of_lanes(vectors)
    }
}

/// Work that is compiled for each set of instructions.
pub(crate) trait Task {
    fn run<I: Instructions>(self);
}

struct Plain;

impl Instructions for Plain {
    const FUSED: bool = cfg!(target_arch = "aarch64");
}

/// Runs the task with the widest instructions of this processor.
#[cfg_attr(
    target_arch = "x86_64",
    expect(unsafe_code, reason = "instructions that a processor may lack")
)]
pub(crate) fn dispatch(task: impl Task) {
    #[cfg(target_arch = "x86_64")]
    {
        let wide = is_x86_feature_detected!("avx2") && is_x86_feature_detected!("fma");
        if wide && is_x86_feature_detected!("avx512f") && is_x86_feature_detected!("avx512dq") {
            // SAFETY: they are there.
            return unsafe { x86::avx512(task) };
        }
        if wide {
            // SAFETY: they are there.
            return unsafe { x86::avx2(task) };
        }
    }
    task.run::<Plain>();
}

#[cfg(target_arch = "x86_64")]
#[expect(unsafe_code, reason = "instructions that a processor may lack")]
mod x86 {
    use std::arch::x86_64::{
        __m512, _mm512_add_ps, _mm512_loadu_ps, _mm512_shuffle_f32x4, _mm512_shuffle_ps,
        _mm512_storeu_ps,
    };

    use super::{Instructions, Task};
    use crate::lanes::Lanes;

    struct Avx2;

    impl Instructions for Avx2 {
        const FUSED: bool = true;
    }

    struct Avx512;

    impl Instructions for Avx512 {
        const FUSED: bool = true;

        #[inline(always)]
        fn sums(vectors: &[Lanes; 16]) -> Lanes {
            // SAFETY: `avx512` alone gives this type to a task.
            unsafe { sums(vectors) }
        }
    }

    #[target_feature(enable = "avx2,fma")]
    pub(super) fn avx2(task: impl Task) {
        task.run::<Avx2>();
    }

    #[target_feature(enable = "avx512f,avx512dq,avx2,fma")]
    pub(super) fn avx512(task: impl Task) {
        task.run::<Avx512>();
    }

    /// The tree of `sums_of_lanes`, four vectors of partial sums at a time.
    #[inline]
    #[target_feature(enable = "avx512f,avx512dq,avx2,fma")]
    fn sums(v: &[Lanes; 16]) -> Lanes {
        // SAFETY: each vector has 16 values.
        let at = |i: usize| unsafe { _mm512_loadu_ps(v[i].as_ptr()) };
        let eights = |i: usize, j: usize| {
            let (a, b) = (at(i), at(j));
            _mm512_add_ps(_mm512_shuffle_f32x4(a, b, 0x44), _mm512_shuffle_f32x4(a, b, 0xEE))
        };
        let fours = |e: usize| {
            let (a, b) = (eights(e, 4 + e), eights(8 + e, 12 + e));
            _mm512_add_ps(_mm512_shuffle_f32x4(a, b, 0x88), _mm512_shuffle_f32x4(a, b, 0xDD))
        };
        let twos = |a: __m512, b: __m512| {
            _mm512_add_ps(_mm512_shuffle_ps(a, b, 0x44), _mm512_shuffle_ps(a, b, 0xEE))
        };
        let (a, b) = (twos(fours(0), fours(1)), twos(fours(2), fours(3)));
        let total = _mm512_add_ps(_mm512_shuffle_ps(a, b, 0x88), _mm512_shuffle_ps(a, b, 0xDD));
        let mut sums = [0.0; 16];
        // SAFETY: there is room for 16 values.
        unsafe { _mm512_storeu_ps(sums.as_mut_ptr(), total) };
        sums
    }
}

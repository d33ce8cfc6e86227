//! The same code compiled for the processor's wide instructions, chosen when it runs. All give the same bits where the
//! processor fuses products and sums.

use crate::lanes::{LANES, Lanes, dot};

/// What a set of instructions offers.
pub(crate) trait Instructions {
    /// Whether a product and a sum are rounded once.
    const FUSED: bool;

    /// The sums of products of each of `R` rows `x` with each of `O` rows `w`, all of `len` values: at `r * O + o`.
    /// `R * O` is 16 at most.
    #[inline(always)]
    fn products<const R: usize, const O: usize>(x: &[f32], w: &[f32], len: usize) -> Lanes
    where
        Self: Sized,
    {
        let mut sums = [0.0; LANES];
        for r in 0..R {
            for o in 0..O {
                sums[r * O + o] = dot::<Self>(&x[r * len..][..len], &w[o * len..][..len]);
            }
        }
        sums
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
        __m512, _mm512_add_ps, _mm512_fmadd_ps, _mm512_loadu_ps, _mm512_maskz_loadu_ps,
        _mm512_setzero_ps, _mm512_shuffle_f32x4, _mm512_shuffle_ps, _mm512_storeu_ps,
    };

    use super::{Instructions, Task};
    use crate::lanes::{LANES, Lanes};

    struct Avx2;

    impl Instructions for Avx2 {
        const FUSED: bool = true;
    }

    struct Avx512;

    impl Instructions for Avx512 {
        const FUSED: bool = true;

        #[inline(always)]
        fn products<const R: usize, const O: usize>(x: &[f32], w: &[f32], len: usize) -> Lanes {
            // SAFETY: `avx512` alone gives this type to a task.
            unsafe { products::<R, O>(x, w, len) }
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

    /// `dot` of every pair: the same sums in the same order.
    #[inline]
    #[target_feature(enable = "avx512f,avx512dq,avx2,fma")]
    #[expect(clippy::needless_range_loop, reason = "a tile is numbered by row and column")]
    fn products<const R: usize, const O: usize>(x: &[f32], w: &[f32], len: usize) -> Lanes {
        assert!(R * O <= LANES && x.len() >= R * len && w.len() >= O * len);
        let (full, rest) = (len / LANES * LANES, len % LANES);
        let mut sums = [[_mm512_setzero_ps(); O]; R];
        for k in (0..full).step_by(LANES) {
            // SAFETY: there are `R` and `O` rows of `len` values, of which `full` are whole vectors.
            let row =
                |of: &[f32], i: usize| unsafe { _mm512_loadu_ps(of.as_ptr().add(i * len + k)) };
            let x: [_; R] = std::array::from_fn(|r| row(x, r));
            for o in 0..O {
                let w = row(w, o);
                for r in 0..R {
                    sums[r][o] = _mm512_fmadd_ps(x[r], w, sums[r][o]);
                }
            }
        }
        if rest > 0 {
            let mask = (1_u16 << rest) - 1;
            // SAFETY: the mask keeps to the `rest` values behind `full`.
            let row = |of: &[f32], i: usize| unsafe {
                _mm512_maskz_loadu_ps(mask, of.as_ptr().add(i * len + full))
            };
            for o in 0..O {
                for r in 0..R {
                    sums[r][o] = _mm512_fmadd_ps(row(x, r), row(w, o), sums[r][o]);
                }
            }
        }
        sums_of_lanes(sums)
    }

    /// The tree of `sum_of_lanes` for all vectors at once: a step adds halves of two vectors and leaves one.
    #[inline]
    #[target_feature(enable = "avx512f,avx512dq,avx2,fma")]
    fn sums_of_lanes<const R: usize, const O: usize>(sums: [[__m512; O]; R]) -> Lanes {
        let at = |i: usize| if i < R * O { sums[i / O][i % O] } else { _mm512_setzero_ps() };
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
        let mut result = [0.0; LANES];
        // SAFETY: there is room for 16 values.
        unsafe { _mm512_storeu_ps(result.as_mut_ptr(), total) };
        result
    }
}

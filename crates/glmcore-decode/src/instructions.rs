//! The same code compiled for the processor's wide instructions, chosen when it runs. All give the same bits where the
//! processor fuses products and sums.

use crate::lanes::{LANES, Lanes, add_product, dot, exponential, padded};

/// What a set of instructions offers.
pub(crate) trait Instructions: Sized {
    /// Whether a product and a sum are rounded once.
    const FUSED: bool;

    /// The sums of products of each of `R` rows `x` with each of `O` rows `w`, all of `len` values: at `r * O + o`.
    /// `R * O` is 16 at most.
    #[inline(always)]
    fn products<const R: usize, const O: usize>(x: &[f32], w: &[f32], len: usize) -> Lanes {
        let mut sums = [0.0; LANES];
        for r in 0..R {
            for o in 0..O {
                sums[r * O + o] = dot::<Self>(&x[r * len..][..len], &w[o * len..][..len]);
            }
        }
        sums
    }

    /// The products of each of `R` queries with the 16 keys of a block, whose channels lie one after the other.
    #[inline(always)]
    fn scores<const R: usize>(queries: [&[f32]; R], keys: &[f32]) -> [Lanes; R] {
        queries.map(|query| {
            let mut sums = [0.0; LANES];
            for (query, keys) in query.iter().zip(keys.as_chunks::<LANES>().0) {
                add_product::<Self>(&mut sums, &[*query; LANES], keys);
            }
            sums
        })
    }

    /// Adds rows `values` `[n, stride]` of up to 16 tokens, times the weights of each of `R` queries, to `V` vectors of
    /// channels; `values` begins with the first of these channels.
    #[inline(always)]
    fn mix<const R: usize, const V: usize>(
        weights: [&[f32]; R],
        values: &[f32],
        stride: usize,
        sums: &mut [[Lanes; V]; R],
    ) {
        for (weights, sums) in weights.into_iter().zip(sums) {
            for (token, weight) in weights.iter().enumerate() {
                for (v, sum) in sums.iter_mut().enumerate() {
                    let value = &values[token * stride + v * LANES..][..LANES];
                    add_product::<Self>(sum, &[*weight; LANES], &padded(value));
                }
            }
        }
    }

    /// The exponential of each lane; see [`exponential`].
    #[inline(always)]
    fn exponential(x: &Lanes) -> Lanes {
        exponential::<Self>(x)
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
        __m512, _CMP_GE_OQ, _mm512_add_epi32, _mm512_add_ps, _mm512_castps_si512,
        _mm512_castsi512_ps, _mm512_cmp_ps_mask, _mm512_fmadd_ps, _mm512_fnmadd_ps,
        _mm512_loadu_ps, _mm512_maskz_loadu_ps, _mm512_maskz_mov_ps, _mm512_max_ps, _mm512_min_ps,
        _mm512_mul_ps, _mm512_set1_epi32, _mm512_set1_ps, _mm512_setzero_ps, _mm512_shuffle_f32x4,
        _mm512_shuffle_ps, _mm512_slli_epi32, _mm512_storeu_ps, _mm512_sub_ps,
    };
    use std::f32::consts::LOG2_E;

    use super::{Instructions, Task};
    use crate::lanes::{LANES, LEAST, LN2, Lanes, MOST, ROUND, TAYLOR};

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

        #[inline(always)]
        fn scores<const R: usize>(queries: [&[f32]; R], keys: &[f32]) -> [Lanes; R] {
            // SAFETY: as above.
            unsafe { scores(queries, keys) }
        }

        #[inline(always)]
        fn mix<const R: usize, const V: usize>(
            weights: [&[f32]; R],
            values: &[f32],
            stride: usize,
            sums: &mut [[Lanes; V]; R],
        ) {
            // SAFETY: as above.
            unsafe { mix(weights, values, stride, sums) }
        }

        #[inline(always)]
        fn exponential(x: &Lanes) -> Lanes {
            // SAFETY: as above.
            unsafe { exponential(x) }
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

    #[inline]
    #[target_feature(enable = "avx512f,avx512dq,avx2,fma")]
    fn scores<const R: usize>(queries: [&[f32]; R], keys: &[f32]) -> [Lanes; R] {
        let len = keys.len() / LANES;
        assert!(queries.iter().all(|query| query.len() == len));
        let queries = queries.map(<[f32]>::as_ptr);
        let mut sums = [_mm512_setzero_ps(); R];
        for channel in 0..len {
            // SAFETY: there are `len` vectors of keys and `len` channels of each query.
            unsafe {
                let keys = _mm512_loadu_ps(keys.as_ptr().add(channel * LANES));
                for r in 0..R {
                    let query = _mm512_set1_ps(*queries[r].add(channel));
                    sums[r] = _mm512_fmadd_ps(query, keys, sums[r]);
                }
            }
        }
        let mut result = [[0.0; LANES]; R];
        for r in 0..R {
            result[r] = stored(sums[r]);
        }
        result
    }

    #[inline]
    #[target_feature(enable = "avx512f,avx512dq,avx2,fma")]
    fn mix<const R: usize, const V: usize>(
        weights: [&[f32]; R],
        values: &[f32],
        stride: usize,
        sums: &mut [[Lanes; V]; R],
    ) {
        let count = weights[0].len();
        assert!(count > 0 && weights.iter().all(|weights| weights.len() == count));
        assert!(values.len() >= (count - 1) * stride + V * LANES);
        let weights = weights.map(<[f32]>::as_ptr);
        let mut wide = [[_mm512_setzero_ps(); V]; R];
        for r in 0..R {
            for v in 0..V {
                // SAFETY: each sum has 16 values.
                wide[r][v] = unsafe { _mm512_loadu_ps(sums[r][v].as_ptr()) };
            }
        }
        for token in 0..count {
            for v in 0..V {
                // SAFETY: `values` has the channels of the last token too, and each query `count` weights.
                unsafe {
                    let value = _mm512_loadu_ps(values.as_ptr().add(token * stride + v * LANES));
                    for r in 0..R {
                        let weight = _mm512_set1_ps(*weights[r].add(token));
                        wide[r][v] = _mm512_fmadd_ps(weight, value, wide[r][v]);
                    }
                }
            }
        }
        for r in 0..R {
            for v in 0..V {
                sums[r][v] = stored(wide[r][v]);
            }
        }
    }

    /// The steps of the function of this name in `lanes`.
    #[inline]
    #[target_feature(enable = "avx512f,avx512dq,avx2,fma")]
    fn exponential(x: &Lanes) -> Lanes {
        // SAFETY: there are 16 values.
        let x = unsafe { _mm512_loadu_ps(x.as_ptr()) };
        let value = _mm512_min_ps(_mm512_max_ps(x, _mm512_set1_ps(LEAST)), _mm512_set1_ps(MOST));
        let shifted = _mm512_fmadd_ps(value, _mm512_set1_ps(LOG2_E), _mm512_set1_ps(ROUND));
        let n = _mm512_sub_ps(shifted, _mm512_set1_ps(ROUND));
        let rest = _mm512_fnmadd_ps(n, _mm512_set1_ps(LN2.0), value);
        let rest = _mm512_fnmadd_ps(n, _mm512_set1_ps(LN2.1), rest);
        let mut p = _mm512_set1_ps(TAYLOR[0]);
        for &coefficient in &TAYLOR[1..] {
            p = _mm512_fmadd_ps(p, rest, _mm512_set1_ps(coefficient));
        }
        let exponent = _mm512_slli_epi32::<23>(_mm512_castps_si512(shifted));
        let power = _mm512_add_epi32(exponent, _mm512_set1_epi32(0x3F80_0000));
        let result = _mm512_mul_ps(p, _mm512_castsi512_ps(power));
        let kept = _mm512_cmp_ps_mask::<_CMP_GE_OQ>(x, _mm512_set1_ps(LEAST));
        stored(_mm512_maskz_mov_ps(kept, result))
    }

    #[inline]
    #[target_feature(enable = "avx512f,avx512dq,avx2,fma")]
    fn stored(vector: __m512) -> Lanes {
        let mut lanes = [0.0; LANES];
        // SAFETY: there is room for 16 values.
        unsafe { _mm512_storeu_ps(lanes.as_mut_ptr(), vector) };
        lanes
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
        stored(total)
    }
}

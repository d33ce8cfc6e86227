// Codes, scales and the float types that values come in. CPU twin: crates/glmcore-fp8/src/{e4m3,element,lanes,plain}.rs,
// which has the proofs; every result is the same to the bit.
#pragma once
#include <ptx.cuh>

constexpr u32 kInfinity = 0x7f800000u;        // bits of infinity in float32; larger magnitudes are NaN
constexpr u32 kMagnitude = 0x7fffffffu;       // all bits of a float32 but the sign
constexpr u32 kSmallestNormal = 0x3c800000u;  // bits of 2^-6, the smallest normal e4m3 value
constexpr u32 kNan = 0x7fu;                   // code of NaN
constexpr float kE4m3Max = 448.0f;            // largest finite e4m3 value
constexpr u32 kAllLanes = 0xffffffffu;

/// The bits of a finite value's magnitude, 0 for what is not finite.
__device__ __forceinline__ u32 finite_magnitude(u32 bits) {
    const u32 magnitude = bits & kMagnitude;
    return magnitude < kInfinity ? magnitude : 0u;
}

/// Scale of a block whose largest magnitude has the bits `amax`: a true division, rounded up to a power of two on demand.
__device__ __forceinline__ float scale_of(u32 amax, float floor, bool ue8m0) {
    const float scale = __fdiv_rn(fmaxf(__uint_as_float(amax), floor), kE4m3Max);
    return ue8m0 ? __uint_as_float((__float_as_uint(scale) + 0x7fffffu) & kInfinity) : scale;
}

/// What the codes of one block are made with.
struct Encoder {
    float scale;
    float reciprocal;

    __device__ explicit Encoder(float scale) : scale(scale), reciprocal(__frcp_rn(scale)) {}

    /// The correctly rounded quotient `magnitude / scale`, wherever it is large enough to become a code other than 0:
    /// two steps with the remainder (proof in lanes.rs), five instructions in place of a division's dozen.
    __device__ __forceinline__ float divide(float magnitude) const {
        const float estimate = __fmul_rn(magnitude, reciprocal);
        const float faithful = __fmaf_rn(__fmaf_rn(-estimate, scale, magnitude), reciprocal, estimate);
        return __fmaf_rn(__fmaf_rn(-faithful, scale, magnitude), reciprocal, faithful);
    }
};

/// Nearest code of a value from 0 to 448 and half an ulp, ties to even: what sm_80 has no instruction for.
__device__ __forceinline__ u32 encode_magnitude(float value) {
    const u32 bits = __float_as_uint(value);
    const u32 exponent = max(bits & kInfinity, kSmallestNormal);
    const float rounded = __fadd_rn(value, __uint_as_float(exponent + (20u << 23) + 56u));
    return (__float_as_uint(rounded) + (exponent >> 20)) & 0x7fu;
}

/// Codes of two values of float32 bits `low` and `high`, which must be finite unless `kChecked`; in the lower 16 bits.
/// The sign is that of the value: the remainders of a -0 are +0.
template <bool kChecked>
__device__ __forceinline__ u32 encode_pair(u32 low, u32 high, const Encoder& encoder) {
    const float low_quotient = encoder.divide(__uint_as_float(low & kMagnitude));
    const float high_quotient = encoder.divide(__uint_as_float(high & kMagnitude));
#if __CUDA_ARCH__ >= 890
    u32 codes = convert_to_e4m3x2(low_quotient, high_quotient) & 0x7f7fu;
#else
    u32 codes = encode_magnitude(low_quotient) | encode_magnitude(high_quotient) << 8;
#endif
    if (kChecked) {
        if ((low & kMagnitude) >= kInfinity) codes = (codes & 0xff00u) | kNan;
        if ((high & kMagnitude) >= kInfinity) codes = (codes & 0x00ffu) | kNan << 8;
    }
    return codes | (low >> 24 & 0x80u) | (high >> 16 & 0x8000u);
}

/// Float32 bits of a code's value: its bits, moved; a subnormal gets the implied 1 of the smallest normal, which is then
/// taken away.
__device__ __forceinline__ u32 decode(u32 code) {
    const u32 magnitude = code & 0x7fu;
    const float subnormal = __fsub_rn(__uint_as_float((magnitude << 20) + (121u << 23)), __uint_as_float(121u << 23));
    u32 bits = magnitude < 8u ? __float_as_uint(subnormal) : (magnitude << 20) + (120u << 23);
    if (magnitude == kNan) bits = 0x7fc00000u;
    return bits | (code & 0x80u) << 24;
}

/// Float32 bits of `decode(code) * scale`. A NaN keeps its sign, which a GPU's product would not.
__device__ __forceinline__ u32 decode(u32 code, float scale) {
    const u32 value = decode(code);
    return (code & 0x7fu) == kNan ? value : __float_as_uint(__fmul_rn(__uint_as_float(value), scale));
}

// The types of values. `kWords` 4-byte words hold 8 values; `unpack` gives float32 bits of the i-th value in such words.
// `fold` keeps in `amax` the largest magnitude, in a form of its own, and `amax_bits` gives its float32 bits.
struct F32 {
    using Scalar = u32;
    static constexpr int kWords = 8;
    static __device__ __forceinline__ u32 widen(Scalar value) { return value; }
    static __device__ __forceinline__ u32 unpack(const u32* words, int i) { return words[i]; }
    static __device__ __forceinline__ u32 fold(u32 amax, u32 word) { return max(amax, word & kMagnitude); }
    static __device__ __forceinline__ u32 amax_bits(u32 amax) { return amax; }
    static __device__ __forceinline__ Scalar narrow(u32 bits) { return bits; }
};

/// Two 16-bit magnitudes in a word.
struct Halves {
    using Scalar = u16;
    static constexpr int kWords = 4;
    static __device__ __forceinline__ u32 fold(u32 amax, u32 word) { return __vmaxu2(amax, word & 0x7fff7fffu); }
    static __device__ __forceinline__ u32 larger(u32 amax) { return max(amax & 0xffffu, amax >> 16); }
};

struct Bf16 : Halves {
    static __device__ __forceinline__ u32 widen(Scalar value) { return static_cast<u32>(value) << 16; }
    static __device__ __forceinline__ u32 unpack(const u32* words, int i) {
        return i % 2 ? words[i / 2] & 0xffff0000u : words[i / 2] << 16;
    }
    static __device__ __forceinline__ u32 amax_bits(u32 amax) { return larger(amax) << 16; }
    static __device__ __forceinline__ Scalar narrow(u32 bits) {
        const u32 rounded = (bits + 0x7fffu + (bits >> 16 & 1u)) >> 16;
        return static_cast<u16>((bits & kMagnitude) > kInfinity ? bits >> 16 | 0x40u : rounded);
    }
};

struct F16 : Halves {
    /// An infinity or a NaN keeps its sign and is not finite; what else it is does not matter.
    static __device__ __forceinline__ u32 widen(Scalar value) {
        if ((value & 0x7c00u) == 0x7c00u) return static_cast<u32>(value & 0x8000u) << 16 | kInfinity | (value & 0x3ffu);
        return __float_as_uint(convert_from_f16(value));
    }
    static __device__ __forceinline__ u32 unpack(const u32* words, int i) {
        return widen(static_cast<u16>(i % 2 ? words[i / 2] >> 16 : words[i / 2] & 0xffffu));
    }
    static __device__ __forceinline__ u32 amax_bits(u32 amax) { return widen(static_cast<u16>(larger(amax))); }
    static __device__ __forceinline__ Scalar narrow(u32 bits) {
        if ((bits & kMagnitude) > kInfinity) return static_cast<u16>((bits >> 16 & 0x8000u) | 0x7e00u);
        return convert_to_f16(__uint_as_float(bits));
    }
};

// FP8 quantisation of activations in groups of one row: x[m, k] -> q[m, k] e4m3 + scale f32 [m, ceil(k / group)], which may
// lie row after row or column after column (as some matrix products want it): its strides say so. A warp for a group; of
// groups of 128 every lane holds 4 neighbouring values, so that a warp reads and writes whole lines once. Bound by memory:
// 2 bytes read, 1 + 1/32 written per bfloat16 value. CPU twin: crates/glmcore-fp8/src/quantize.rs with blocks of one row.
//
// Compiled once for each type of values, ELEMENT being one of F32, F16, Bf16.
#include <e4m3.cuh>

constexpr int kWarpsPerBlock = 8;
constexpr int kGroup = 128;                 // values of the group that stays in registers
constexpr int kPiece = kGroup / 32;         // values of a lane
constexpr int kWords = ELEMENT::kWords / 2; // that hold them
using Scalar = ELEMENT::Scalar;

/// A group of any length, or with values that are not finite, read twice, value by value.
__device__ void quantize_any(const Scalar* from, u8* to, float* scale_out, long long* first_bad, long long place,
                             int num_values, float floor, bool ue8m0) {
    const int lane = threadIdx.x % 32;
    u32 amax = 0;
#pragma unroll 1
    for (int i = lane; i < num_values; i += 32) {
        const u32 bits = ELEMENT::widen(from[i]);
        amax = max(amax, finite_magnitude(bits));
        if ((bits & kMagnitude) >= kInfinity) atomicMin(first_bad, place + i);
    }
    const Encoder encoder(scale_of(__reduce_max_sync(kAllLanes, amax), floor, ue8m0));
    if (lane == 0) *scale_out = encoder.scale;
#pragma unroll 1
    for (int i = lane; i < num_values; i += 32) {
        to[i] = static_cast<u8>(encode_pair<true>(ELEMENT::widen(from[i]), 0u, encoder));
    }
}

extern "C" __global__ void __launch_bounds__(kWarpsPerBlock * 32)
quantize_rows(const Scalar* x, u8* q, float* scales, long long* first_bad, long long rows, long long columns, int group,
              long long scales_row_stride, long long scales_column_stride, float floor, int ue8m0) {
    const long long groups_per_row = (columns + group - 1) / group;
    const long long index = static_cast<long long>(blockIdx.x) * kWarpsPerBlock + threadIdx.x / 32;
    if (index >= rows * groups_per_row) return;  // whole warps leave together: the reductions below see all 32 lanes
    const long long row = index / groups_per_row, column = index % groups_per_row * group;
    const long long place = row * columns + column;
    float* scale_out = scales + row * scales_row_stride + index % groups_per_row * scales_column_stride;
    const auto quantize_slowly = [&] {
        const int num_values = static_cast<int>(min(columns - column, static_cast<long long>(group)));
        quantize_any(x + place, q + place, scale_out, first_bad, place, num_values, floor, ue8m0 != 0);
    };
    const bool is_aligned = (reinterpret_cast<unsigned long long>(x) | reinterpret_cast<unsigned long long>(q)) % 16 == 0;
    if (group != kGroup || columns % kGroup != 0 || !is_aligned) return quantize_slowly();
    const int lane = threadIdx.x % 32;
    u32 words[kWords];
    const uint2* from = reinterpret_cast<const uint2*>(x + place + lane * kPiece);
#pragma unroll
    for (int i = 0; i < kWords / 2; ++i) {
        const uint2 two = from[i];
        words[2 * i] = two.x;
        words[2 * i + 1] = two.y;
    }
    u32 folded = 0;
#pragma unroll
    for (int i = 0; i < kWords; ++i) folded = ELEMENT::fold(folded, words[i]);
    const u32 amax = __reduce_max_sync(kAllLanes, ELEMENT::amax_bits(folded));
    if (amax >= kInfinity) return quantize_slowly();  // the same for all lanes
    const Encoder encoder(scale_of(amax, floor, ue8m0 != 0));
    const u32 low = encode_pair<false>(ELEMENT::unpack(words, 0), ELEMENT::unpack(words, 1), encoder);
    const u32 high = encode_pair<false>(ELEMENT::unpack(words, 2), ELEMENT::unpack(words, 3), encoder);
    reinterpret_cast<u32*>(q + place)[lane] = low | high << 16;
    if (lane == 0) *scale_out = encoder.scale;
}

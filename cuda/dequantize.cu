// Codes times the scales of their blocks: q[e, m, n] e4m3, scale[e, ceil(m / r), ceil(n / c)] f32 -> w[e, m, n], the product
// in float32 and rounded once. 8 neighbouring codes a thread where rows and blocks allow, else one. Bound by memory: 1 byte
// read, 2 written per bfloat16 value. CPU twin: crates/glmcore-fp8/src/dequantize.rs.
//
// Compiled once for each type of values, ELEMENT being one of F32, F16, Bf16.
#include <e4m3.cuh>

constexpr int kThreads = 256;
constexpr int kPiece = 8;  // codes that are loaded together
using Scalar = ELEMENT::Scalar;

__device__ __forceinline__ float scale_at(const float* scales, long long row, long long column, long long grid_columns,
                                          int block_rows, int block_columns) {
    return scales[row / block_rows * grid_columns + column / block_columns];
}

extern "C" __global__ void __launch_bounds__(kThreads)
dequantize_stack(const u8* codes, const float* scales, Scalar* out, long long rows, long long columns, int block_rows,
                 int block_columns, int in_pieces) {
    const long long grid_rows = (rows + block_rows - 1) / block_rows;
    const long long grid_columns = (columns + block_columns - 1) / block_columns;
    codes += blockIdx.y * rows * columns;
    scales += blockIdx.y * grid_rows * grid_columns;
    out += blockIdx.y * rows * columns;
    const long long step = in_pieces ? kPiece : 1;
    const long long place = (static_cast<long long>(blockIdx.x) * kThreads + threadIdx.x) * step;
    if (place >= rows * columns) return;
    const float scale = scale_at(scales, place / columns, place % columns, grid_columns, block_rows, block_columns);
    if (!in_pieces) {
        out[place] = ELEMENT::narrow(decode(codes[place], scale));
        return;
    }
    const uint2 eight = *reinterpret_cast<const uint2*>(codes + place);
    Scalar values[kPiece];
#pragma unroll
    for (int i = 0; i < kPiece; ++i) {
        const u32 half = i < 4 ? eight.x : eight.y;
        values[i] = ELEMENT::narrow(decode(half >> 8 * (i % 4) & 0xffu, scale));
    }
    uint4* to = reinterpret_cast<uint4*>(out + place);
    constexpr int kPerWord = 8 / ELEMENT::kWords;
    u32 words[ELEMENT::kWords];
#pragma unroll
    for (int i = 0; i < ELEMENT::kWords; ++i) {
        words[i] = kPerWord == 1 ? values[i] : values[i * kPerWord] | static_cast<u32>(values[i * kPerWord + kPerWord - 1]) << 16;
    }
#pragma unroll
    for (int i = 0; i < ELEMENT::kWords / 4; ++i) {
        to[i] = make_uint4(words[4 * i], words[4 * i + 1], words[4 * i + 2], words[4 * i + 3]);
    }
}

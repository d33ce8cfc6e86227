// Products of block-wise FP8 matrices: c[r, n] = sum_k a[r, k] * b[e, n, k], dense, or grouped with the rows of each expert e
// multiplied by a matrix of its own. a has a scale for 1x128 values, b for 128x128; c is bfloat16 or float32.
//
// The arithmetic, to which the CPU twin (glmcore/fp8/products.py) and tests/oracles/fp8_product.py keep: for each slice of
// 128 k a partial sum of code products, then `sum = sum + partial * (scale_a * scale_b)`, each operation rounded to float32.
// Sums of other slices never pass through the tensor core, whose accumulator keeps fewer bits than float32 (about 14 on
// Hopper for e4m3; DeepSeek-V3 report, arXiv:2412.19437, section 3.3.2).
//
// 64x128 values of c a block of threads, 8 warps of 32x32; slices of a and b are copied asynchronously into two stages of
// shared memory (48 KiB). Rows there are 128 bytes, their 16-byte chunks exchanged so that the eight rows of an 8x16-byte
// matrix lie in different banks. Before sm_89 codes become bfloat16 in registers.
#include <e4m3.cuh>

constexpr int kSlice = 128;    // k of a scale, and of a stage
constexpr int kTileRows = 64;
constexpr int kTileColumns = 128;  // one block of b, so one scale of b a slice
constexpr int kThreads = 256;
constexpr int kChunk = 16;     // bytes of an asynchronous copy
constexpr int kChunksPerRow = kSlice / kChunk;
constexpr int kStages = 2;

struct Stage {
    u8 a[kTileRows * kSlice];
    u8 b[kTileColumns * kSlice];
};

/// Byte of a chunk in a stage's matrix.
__device__ __forceinline__ int chunk_at(int row, int chunk) { return row * kSlice + (chunk ^ (row % 8)) * kChunk; }

/// Starts copying a slice of `kRows` rows of a row-major matrix; rows from `num_rows` and bytes from `k` on become 0.
template <int kRows>
__device__ __forceinline__ void copy_slice(u8* to, const u8* from, long long num_rows, int k, int slice) {
#pragma unroll
    for (int i = 0; i < kRows * kChunksPerRow / kThreads; ++i) {
        const int index = threadIdx.x + i * kThreads;
        const int row = index / kChunksPerRow, chunk = index % kChunksPerRow;
        const int column = slice * kSlice + chunk * kChunk;
        const bool inside = row < num_rows && column < k;
        const u8* source = inside ? from + static_cast<long long>(row) * k + column : from;
        copy_async_16(to + chunk_at(row, chunk), source, inside ? kChunk : 0);
    }
}

#if !(__CUDA_ARCH__ >= 890)
/// Bytes 2 * `half` and the next of four codes, as two bfloat16 values: exact.
__device__ __forceinline__ u32 to_bf16(u32 codes, int half) {
    const u32 low = decode(codes >> 16 * half & 0xffu), high = decode(codes >> (16 * half + 8) & 0xffu);
    return low >> 16 | (high & 0xffff0000u);
}
#endif

/// sum += a * b for 32 k.
__device__ __forceinline__ void multiply(float (&sum)[4], const u32 (&a)[4], u32 b0, u32 b1) {
#if __CUDA_ARCH__ >= 890
    multiply_e4m3(sum, a, b0, b1);
#else
    // A lane's four neighbouring k are two pairs of the 16-wide product, far apart there; a and b agree on the order.
    const u32 first[4] = {to_bf16(a[0], 0), to_bf16(a[1], 0), to_bf16(a[0], 1), to_bf16(a[1], 1)};
    const u32 second[4] = {to_bf16(a[2], 0), to_bf16(a[3], 0), to_bf16(a[2], 1), to_bf16(a[3], 1)};
    multiply_bf16(sum, first, to_bf16(b0, 0), to_bf16(b0, 1));
    multiply_bf16(sum, second, to_bf16(b1, 0), to_bf16(b1, 1));
#endif
}

/// The 32x32 values of c of one warp: 2 by 4 fragments of 16x8.
struct WarpTile {
    float sum[2][4][4];
    int row;     // first, in the tile of the block
    int column;

    __device__ __forceinline__ WarpTile() {
        const int warp = threadIdx.x / 32;
        row = warp / 4 * 32;
        column = warp % 4 * 32;
#pragma unroll
        for (int i = 0; i < 32; ++i) sum[i / 16][i / 4 % 4][i % 4] = 0.0f;
    }

    /// Row, in the tile of the block, of the lower (`half` 0) or upper (1) values of fragment `m`.
    __device__ __forceinline__ int row_of(int m, int half) const {
        return row + 16 * m + 8 * half + static_cast<int>(threadIdx.x) % 32 / 4;
    }

    /// Adds a slice; `scale` holds the products of the scales for `row_of`.
    __device__ __forceinline__ void add(const Stage& stage, const float (&scale)[2][2]) {
        const int lane = threadIdx.x % 32;
        float partial[2][4][4] = {};
#pragma unroll
        for (int step = 0; step < kSlice / 32; ++step) {
            u32 a[2][4], b[2][4];
#pragma unroll
            for (int m = 0; m < 2; ++m) {
                load_matrices(a[m], stage.a + chunk_at(row + 16 * m + lane % 16, 2 * step + lane / 16));
            }
#pragma unroll
            for (int n = 0; n < 2; ++n) {
                const int line = column + 16 * n + lane / 16 * 8 + lane % 8;
                load_matrices(b[n], stage.b + chunk_at(line, 2 * step + lane / 8 % 2));
            }
#pragma unroll
            for (int m = 0; m < 2; ++m) {
#pragma unroll
                for (int n = 0; n < 4; ++n) multiply(partial[m][n], a[m], b[n / 2][n % 2 * 2], b[n / 2][n % 2 * 2 + 1]);
            }
        }
#pragma unroll
        for (int i = 0; i < 32; ++i) {
            const int m = i / 16, n = i / 4 % 4, v = i % 4;
            sum[m][n][v] = __fadd_rn(sum[m][n][v], __fmul_rn(partial[m][n][v], scale[m][v / 2]));
        }
    }
};

/// Rows of `a` that one block of threads multiplies, and with which matrix of `b`.
struct RowTile {
    int expert;
    long long first;
    long long num_rows;  // 0: there is no such tile
};

/// The `index`-th tile when each expert's rows, up to `ends[expert]`, are cut into tiles of their own. Every warp finds it
/// for itself, 32 experts at a time.
__device__ RowTile find_tile(const int* ends, int num_experts, int index) {
    const int lane = threadIdx.x % 32;
    for (int base = 0; base < num_experts; base += 32) {
        const int expert = base + lane;
        const int start = expert > 0 && expert < num_experts ? ends[expert - 1] : 0;
        const int end = expert < num_experts ? ends[expert] : start;
        const int tiles = (end - start + kTileRows - 1) / kTileRows;
        int through = tiles;  // of this and the experts before, from `base` on
        for (int step = 1; step < 32; step *= 2) {
            const int before = __shfl_up_sync(kAllLanes, through, step);
            if (lane >= step) through += before;
        }
        const u32 behind = __ballot_sync(kAllLanes, index < through);
        if (behind != 0) {
            const int owner = __ffs(behind) - 1;
            const int skipped = index - __shfl_sync(kAllLanes, through - tiles, owner);
            const long long first = __shfl_sync(kAllLanes, start, owner) + static_cast<long long>(skipped) * kTileRows;
            return {base + owner, first, min(static_cast<long long>(kTileRows), __shfl_sync(kAllLanes, end, owner) - first)};
        }
        index -= __shfl_sync(kAllLanes, through, 31);
    }
    return {0, 0, 0};
}

__device__ __forceinline__ void store(void* out, long long place, float value, int out_is_float) {
    if (out_is_float) {
        static_cast<float*>(out)[place] = value;
    } else {
        static_cast<u16*>(out)[place] = Bf16::narrow(__float_as_uint(value));
    }
}

/// `ends` [num_experts] is ascending, its last entry `num_rows`; null for a dense product, `num_experts` being 1 then.
/// blockIdx.x counts tiles of columns, blockIdx.y tiles of rows; there may be more of these than needed. k is a multiple of
/// 16, and `a` and `b` lie at multiples of 16 bytes.
extern "C" __global__ void __launch_bounds__(kThreads)
multiply_blocks(const u8* a, const float* a_scales, const u8* b, const float* b_scales, void* out, const int* ends,
                int num_experts, long long num_rows, int n, int k, long long scales_row_stride,
                long long scales_column_stride, int out_is_float) {
    __shared__ __align__(128) Stage stages[kStages];
    RowTile rows;
    if (ends != nullptr) {
        rows = find_tile(ends, num_experts, blockIdx.y);
    } else {
        const long long first = static_cast<long long>(blockIdx.y) * kTileRows;
        rows = {0, first, min(static_cast<long long>(kTileRows), num_rows - first)};
    }
    if (rows.num_rows <= 0) return;  // the whole block leaves
    const int num_slices = (k + kSlice - 1) / kSlice;
    const int column = blockIdx.x * kTileColumns;
    const int grid_rows = (n + kTileColumns - 1) / kTileColumns;
    a += rows.first * k;
    a_scales += rows.first * scales_row_stride;
    b += (static_cast<long long>(rows.expert) * n + column) * k;
    b_scales += (static_cast<long long>(rows.expert) * grid_rows + blockIdx.x) * num_slices;

    WarpTile tile;
    copy_slice<kTileRows>(stages[0].a, a, rows.num_rows, k, 0);
    copy_slice<kTileColumns>(stages[0].b, b, n - column, k, 0);
    commit_copies();
    for (int slice = 0; slice < num_slices; ++slice) {
        if (slice + 1 < num_slices) {
            Stage& next = stages[(slice + 1) % kStages];
            copy_slice<kTileRows>(next.a, a, rows.num_rows, k, slice + 1);
            copy_slice<kTileColumns>(next.b, b, n - column, k, slice + 1);
        }
        commit_copies();  // an empty batch behind the last slice, so that the wait below means the same every time
        float scale[2][2];
#pragma unroll
        for (int i = 0; i < 4; ++i) {
            const int row = tile.row_of(i / 2, i % 2);
            const bool inside = row < rows.num_rows;
            const float of_row = inside ? a_scales[row * scales_row_stride + slice * scales_column_stride] : 0.0f;
            scale[i / 2][i % 2] = __fmul_rn(of_row, b_scales[slice]);
        }
        wait_for_copies<1>();
        __syncthreads();
        tile.add(stages[slice % kStages], scale);
        __syncthreads();  // the next turn copies into this stage
    }
    const int pair = column + tile.column + threadIdx.x % 4 * 2;
#pragma unroll
    for (int i = 0; i < 32; ++i) {
        const int m = i / 16, fragment = i / 4 % 4, v = i % 4;
        const int row = tile.row_of(m, v / 2), at = pair + 8 * fragment + v % 2;
        if (row < rows.num_rows && at < n) store(out, (rows.first + row) * n + at, tile.sum[m][fragment][v], out_is_float);
    }
}

// FP8 quantisation of weights in blocks with a scale each: w[e, m, n] -> q e4m3 + scale f32 [e, ceil(m / r), ceil(n / c)].
// Two kernels: one for a stack of matrices, one for all weights of a model by a table on the device. The table has strides
// for where codes and scales go, so transposing, joining experts into a stack and splitting them over ranks is part of the
// same pass. CPU twin: crates/glmcore-fp8/src/quantize.rs.
//
// A block of threads for a block of values. The usual 128x128 block is read once, in 16-byte pieces, and stays in
// registers (64 values a thread) while its amax is found: 2 bytes read and 1 written per bfloat16 value, which is what
// bounds the time. Other blocks, and edges that are not aligned, are read twice, value by value.
//
// Compiled once for each type of values, ELEMENT being one of F32, F16, Bf16.
#include <e4m3.cuh>

constexpr int kThreads = 256;
constexpr int kWarps = kThreads / 32;
constexpr int kBlock = 128;                                      // rows and columns of the block that stays in registers
constexpr int kPiece = 8;                                        // values that are loaded and stored together
constexpr int kPieces = kBlock * kBlock / kPiece / kThreads;     // of a thread
constexpr int kPiecesPerRow = kBlock / kPiece;
constexpr int kPitch = kBlock + kPiece;                          // bytes between the lines of a transposed block
constexpr int kWords = ELEMENT::kWords;
using Scalar = ELEMENT::Scalar;

/// One matrix of a launch, as Python lays it out in a table: eleven 8-byte numbers. Strides are in elements.
struct Weight {
    const Scalar* values;
    u8* codes;
    float* scales;
    long long* first_bad;  // becomes the place (row * columns + column) of the first value that is not finite, if smaller
    long long rows;
    long long columns;
    long long row_stride;         // of the values, whose columns are adjacent
    long long codes_row_stride;   // one of the two is 1
    long long codes_column_stride;
    long long scales_row_stride;
    long long scales_column_stride;
};

/// How all matrices of a launch are quantised.
struct Rule {
    int block_rows;
    int block_columns;
    float floor;
    bool ue8m0;
};

/// Where a block lies in its matrix.
struct Place {
    long long row;
    long long column;
    int rows;
    int columns;
};

/// The largest `value` of all threads.
__device__ u32 max_of_block(u32 value) {
    __shared__ u32 of_warp[kWarps];
    value = __reduce_max_sync(kAllLanes, value);
    __syncthreads();  // the array may still be read from the call before
    if (threadIdx.x % 32 == 0) of_warp[threadIdx.x / 32] = value;
    __syncthreads();
    u32 largest = 0;
    for (int warp = 0; warp < kWarps; ++warp) largest = max(largest, of_warp[warp]);
    return largest;
}

/// Codes of one piece, whose values are finite.
__device__ __forceinline__ uint2 encode_piece(const u32* words, const Encoder& encoder) {
    u32 pairs[kPiece / 2];
#pragma unroll
    for (int i = 0; i < kPiece / 2; ++i) {
        pairs[i] = encode_pair<false>(ELEMENT::unpack(words, 2 * i), ELEMENT::unpack(words, 2 * i + 1), encoder);
    }
    return make_uint2(pairs[0] | pairs[1] << 16, pairs[2] | pairs[3] << 16);
}

/// A 128x128 block, or what is left of one at an edge, in registers.
struct Held {
    u32 words[kPieces][kWords];

    static __device__ __forceinline__ int row(int piece) { return (threadIdx.x + piece * kThreads) / kPiecesPerRow; }
    static __device__ __forceinline__ int column() { return threadIdx.x % kPiecesPerRow * kPiece; }

    __device__ __forceinline__ void load(const Weight& weight, const Place& place) {
        const Scalar* from = weight.values + place.row * weight.row_stride + place.column + column();
#pragma unroll
        for (int piece = 0; piece < kPieces; ++piece) {
            const bool inside = row(piece) < place.rows && column() < place.columns;
            const uint4* at = reinterpret_cast<const uint4*>(from + row(piece) * weight.row_stride);
#pragma unroll
            for (int i = 0; i < kWords / 4; ++i) {
                const uint4 four = inside ? at[i] : make_uint4(0, 0, 0, 0);
                words[piece][4 * i] = four.x;
                words[piece][4 * i + 1] = four.y;
                words[piece][4 * i + 2] = four.z;
                words[piece][4 * i + 3] = four.w;
            }
        }
    }

    __device__ __forceinline__ u32 amax() const {
        u32 amax = 0;
#pragma unroll
        for (int piece = 0; piece < kPieces; ++piece) {
#pragma unroll
            for (int i = 0; i < kWords; ++i) amax = ELEMENT::fold(amax, words[piece][i]);
        }
        return ELEMENT::amax_bits(amax);
    }

    __device__ __forceinline__ void store(const Weight& weight, const Place& place, const Encoder& encoder) const {
        if (weight.codes_column_stride == 1) {
            u8* to = weight.codes + place.row * weight.codes_row_stride + place.column + column();
#pragma unroll
            for (int piece = 0; piece < kPieces; ++piece) {
                if (row(piece) < place.rows && column() < place.columns) {
                    *reinterpret_cast<uint2*>(to + row(piece) * weight.codes_row_stride) =
                        encode_piece(words[piece], encoder);
                }
            }
            return;
        }
        __shared__ __align__(8) u8 transposed[kBlock * kPitch];
#pragma unroll
        for (int piece = 0; piece < kPieces; ++piece) {
            const uint2 codes = encode_piece(words[piece], encoder);
#pragma unroll
            for (int i = 0; i < kPiece; ++i) {
                const u32 half = i < 4 ? codes.x : codes.y;
                transposed[(column() + i) * kPitch + row(piece)] = static_cast<u8>(half >> 8 * (i % 4));
            }
        }
        __syncthreads();
        for (int piece = 0; piece < kPieces; ++piece) {  // rows and columns have changed their places
            if (row(piece) < place.columns && column() < place.rows) {
                u8* to = weight.codes + (place.column + row(piece)) * weight.codes_column_stride + place.row + column();
                *reinterpret_cast<uint2*>(to) =
                    *reinterpret_cast<const uint2*>(transposed + row(piece) * kPitch + column());
            }
        }
    }
};

__device__ __forceinline__ bool is_aligned(const void* pointer, int num_bytes) {
    return reinterpret_cast<unsigned long long>(pointer) % num_bytes == 0;
}

/// Whether the pieces of a matrix's rows can be loaded and stored whole.
__device__ __forceinline__ bool is_held(const Weight& weight, const Rule& rule) {
    const bool transposes = weight.codes_column_stride != 1;
    const long long codes_stride = transposes ? weight.codes_column_stride : weight.codes_row_stride;
    return rule.block_rows == kBlock && rule.block_columns == kBlock && weight.columns % kPiece == 0 &&
           weight.row_stride % kPiece == 0 && codes_stride % kPiece == 0 && is_aligned(weight.values, 16) &&
           is_aligned(weight.codes, kPiece) && (!transposes || weight.rows % kPiece == 0);
}

/// A block of any shape, or with values that are not finite, value by value.
__device__ void quantize_any(const Weight& weight, const Rule& rule, const Place& place, float* scale_out) {
    const Scalar* from = weight.values + place.row * weight.row_stride + place.column;
    const long long num_values = static_cast<long long>(place.rows) * place.columns;
    u32 amax = 0;
#pragma unroll 1
    for (long long i = threadIdx.x; i < num_values; i += kThreads) {
        const long long row = i / place.columns, column = i % place.columns;
        const u32 bits = ELEMENT::widen(from[row * weight.row_stride + column]);
        amax = max(amax, finite_magnitude(bits));
        if ((bits & kMagnitude) >= kInfinity) {
            atomicMin(weight.first_bad, (place.row + row) * weight.columns + place.column + column);
        }
    }
    const Encoder encoder(scale_of(max_of_block(amax), rule.floor, rule.ue8m0));
    if (threadIdx.x == 0) *scale_out = encoder.scale;
    u8* to = weight.codes + place.row * weight.codes_row_stride + place.column * weight.codes_column_stride;
#pragma unroll 1
    for (long long i = threadIdx.x; i < num_values; i += kThreads) {
        const long long row = i / place.columns, column = i % place.columns;
        const u32 bits = ELEMENT::widen(from[row * weight.row_stride + column]);
        to[row * weight.codes_row_stride + column * weight.codes_column_stride] =
            static_cast<u8>(encode_pair<true>(bits, 0u, encoder));
    }
}

/// The block in row `block_row` and column `block_column` of the grid of blocks.
__device__ void quantize_block(const Weight& weight, const Rule& rule, long long block_row, long long block_column) {
    Place place;
    place.row = block_row * rule.block_rows;
    place.column = block_column * rule.block_columns;
    place.rows = static_cast<int>(min(weight.rows - place.row, static_cast<long long>(rule.block_rows)));
    place.columns = static_cast<int>(min(weight.columns - place.column, static_cast<long long>(rule.block_columns)));
    float* scale_out = weight.scales + block_row * weight.scales_row_stride + block_column * weight.scales_column_stride;
    if (is_held(weight, rule)) {
        Held held;
        held.load(weight, place);
        const u32 amax = max_of_block(held.amax());
        if (amax < kInfinity) {  // the same for all threads
            const Encoder encoder(scale_of(amax, rule.floor, rule.ue8m0));
            if (threadIdx.x == 0) *scale_out = encoder.scale;
            held.store(weight, place, encoder);
            return;
        }
    }
    quantize_any(weight, rule, place, scale_out);
}

/// A stack of matrices, each row after row without gaps: blockIdx.x counts the blocks of all matrices.
extern "C" __global__ void __launch_bounds__(kThreads, 2)
quantize_stack(const Scalar* values, u8* codes, float* scales, long long* first_bad, long long rows, long long columns,
               int block_rows, int block_columns, float floor, int ue8m0) {
    const long long grid_rows = (rows + block_rows - 1) / block_rows;
    const long long grid_columns = (columns + block_columns - 1) / block_columns;
    const long long matrix = blockIdx.x / (grid_rows * grid_columns);
    const long long block = blockIdx.x % (grid_rows * grid_columns);
    Weight weight;
    weight.values = values + matrix * rows * columns;
    weight.codes = codes + matrix * rows * columns;
    weight.scales = scales + matrix * grid_rows * grid_columns;
    weight.first_bad = first_bad + matrix;
    weight.rows = rows;
    weight.columns = columns;
    weight.row_stride = weight.codes_row_stride = columns;
    weight.codes_column_stride = weight.scales_column_stride = 1;
    weight.scales_row_stride = grid_columns;
    const Rule rule{block_rows, block_columns, floor, ue8m0 != 0};
    quantize_block(weight, rule, block / grid_columns, block % grid_columns);
}

/// All weights of a table: blockIdx.x counts the blocks of all of them, `first_block` [num_weights + 1] says where each
/// weight's begin.
extern "C" __global__ void __launch_bounds__(kThreads, 2)
quantize_table(const Weight* table, const long long* first_block, int num_weights, int block_rows, int block_columns,
               float floor, int ue8m0) {
    int low = 0, high = num_weights;  // the last weight whose first block is not behind this one; some have no blocks
    while (high - low > 1) {
        const int middle = (low + high) / 2;
        if (first_block[middle] <= static_cast<long long>(blockIdx.x)) low = middle; else high = middle;
    }
    const Weight weight = table[low];
    const long long block = blockIdx.x - first_block[low];
    const long long grid_columns = (weight.columns + block_columns - 1) / block_columns;
    const Rule rule{block_rows, block_columns, floor, ue8m0 != 0};
    quantize_block(weight, rule, block / grid_columns, block % grid_columns);
}

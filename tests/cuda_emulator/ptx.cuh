// The functions of cuda/ptx.cuh on a CPU, written from the PTX ISA's words and not from the kernels: it stands before that
// file in the search path. Asynchronous copies are done as late as the program allows, in the wait for them.
#pragma once

typedef unsigned char u8;
typedef unsigned short u16;
typedef unsigned u32;

namespace emulator {

/// Value of an e4m3 code.
inline double value_of(unsigned code) {
    const int exponent = code >> 3 & 15, mantissa = code & 7;
    if (exponent == 15 && mantissa == 7) return std::nan("");
    const double magnitude = exponent == 0 ? std::ldexp(mantissa, -9) : std::ldexp(8 + mantissa, exponent - 10);
    return code & 0x80 ? -magnitude : magnitude;
}

/// The code nearest to a value, ties to the even one, the largest for all that is beyond: by looking at every code.
inline unsigned nearest_code(float value) {
    if (std::isnan(value)) return 0x7f;
    const double magnitude = std::fabs(static_cast<double>(value));
    static const std::vector<double> values = [] {
        std::vector<double> all;
        for (unsigned code = 0; code < 0x7f; ++code) all.push_back(value_of(code));
        return all;
    }();
    unsigned above = static_cast<unsigned>(std::lower_bound(values.begin(), values.end(), magnitude) - values.begin());
    unsigned best = min(above, 0x7eu);
    if (above > 0 && above < 0x7f) {
        const double down = magnitude - values[above - 1], up = values[above] - magnitude;
        if (down < up || (down == up && (above - 1) % 2 == 0)) best = above - 1;
    }
    return best | (std::signbit(value) ? 0x80u : 0u);
}

inline double bf16_value(unsigned bits_of) { return bits<float>(bits_of << 16); }

/// d = a * b + c of a warp's fragments: exact products and sums (they fit a double), rounded once.
/// `row`, `column` say which element the i-th value of a lane's fragment is.
template <int kDepth, class ValueOf>
void multiply(float (&sum)[4], const u32 (&a)[4], u32 b0, u32 b1, int bits_per_value, ValueOf value) {
    const unsigned lane = block->current % 32;
    const uint64_t* words[3] = {};
    uint64_t copy[3][32];
    const uint64_t mine[3] = {a[0] | static_cast<uint64_t>(a[1]) << 32, a[2] | static_cast<uint64_t>(a[3]) << 32,
                              b0 | static_cast<uint64_t>(b1) << 32};
    for (int i = 0; i < 3; ++i) {
        words[i] = exchange(0xffffffffu, mine[i]);
        std::memcpy(copy[i], words[i], sizeof(copy[i]));
    }
    const int per_word = 32 / bits_per_value;
    const u32 mask = bits_per_value == 8 ? 0xffu : 0xffffu;
    // A fragment: lane = row % 8 * 4 + column / per_word % 4, value = column % per_word; the registers are, in order, the
    // lower rows and columns, the upper rows, the upper columns, both.
    const auto of_a = [&](int row, int k) {
        const int reg = row / 8 + 2 * (k / (4 * per_word)), from = row % 8 * 4 + k / per_word % 4;
        return value(static_cast<u32>(copy[reg / 2][from] >> 32 * (reg % 2)) >> bits_per_value * (k % per_word) & mask);
    };
    const auto of_b = [&](int k, int column) {
        const int reg = k / (4 * per_word), from = column * 4 + k / per_word % 4;
        return value(static_cast<u32>(copy[2][from] >> 32 * reg) >> bits_per_value * (k % per_word) & mask);
    };
    for (int i = 0; i < 4; ++i) {
        const int row = static_cast<int>(lane) / 4 + 8 * (i / 2), column = static_cast<int>(lane) % 4 * 2 + i % 2;
        double exact = sum[i];
        for (int k = 0; k < kDepth; ++k) exact += of_a(row, k) * of_b(k, column);
        sum[i] = static_cast<float>(exact);
    }
}

}  // namespace emulator

inline u32 convert_to_e4m3x2(float low, float high) {
    return emulator::nearest_code(low) | emulator::nearest_code(high) << 8;
}

inline u16 convert_to_f16(float value) { return emulator::bits<u16>(static_cast<_Float16>(value)); }
inline float convert_from_f16(u16 bits) { return static_cast<float>(emulator::bits<_Float16>(bits)); }

inline void copy_async_16(void* shared, const void* source, int num_bytes) {
    if (reinterpret_cast<uintptr_t>(shared) % 16 || reinterpret_cast<uintptr_t>(source) % 16) {
        emulator::fail("an asynchronous copy is not aligned");
    }
    auto& batches = emulator::fiber().batches;
    if (batches.empty()) batches.emplace_back();
    batches.back().push_back({shared, source, num_bytes});
}

inline void commit_copies() {
    auto& batches = emulator::fiber().batches;
    if (batches.empty()) batches.emplace_back();
    batches.emplace_back();
}

template <int kPending>
void wait_for_copies() {
    auto& batches = emulator::fiber().batches;
    while (batches.size() > kPending + 1) {  // the last one is open
        for (const auto& copy : batches.front()) {
            std::memset(copy.to, 0, 16);
            std::memcpy(copy.to, copy.from, copy.num_bytes);
        }
        batches.erase(batches.begin());
    }
}

inline void load_matrices(u32 (&out)[4], const void* row) {
    if (reinterpret_cast<uintptr_t>(row) % 16) emulator::fail("a matrix row is not aligned");
    const uint64_t* rows = emulator::exchange(0xffffffffu, reinterpret_cast<uint64_t>(row));
    const unsigned lane = emulator::block->current % 32;
    for (unsigned matrix = 0; matrix < 4; ++matrix) {
        std::memcpy(&out[matrix], reinterpret_cast<const char*>(rows[8 * matrix + lane / 4]) + 4 * (lane % 4), 4);
    }
}

inline void multiply_e4m3(float (&sum)[4], const u32 (&a)[4], u32 b0, u32 b1) {
    emulator::multiply<32>(sum, a, b0, b1, 8, [](u32 code) { return emulator::value_of(code); });
}

inline void multiply_bf16(float (&sum)[4], const u32 (&a)[4], u32 b0, u32 b1) {
    emulator::multiply<16>(sum, a, b0, b1, 16, [](u32 bits) { return emulator::bf16_value(bits); });
}

// Runs CUDA C++ on a CPU: what NVRTC declares by itself, for g++. Included before the kernel sources by -include.
//
// The threads of a block are fibers of one thread of the machine, so a run is the same every time. A fiber runs until it
// waits: at a barrier, or in a warp's collective, for the others. Blocks run one after another. The order in which fibers
// get their turn can be reversed; a missing barrier then shows as a result that depends on it.
#pragma once
#include <ucontext.h>

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <functional>
#include <utility>
#include <vector>

#define __global__
#define __device__
#define __forceinline__ inline
#define __noinline__
#define __launch_bounds__(...)
#define __restrict__
#define __shared__ static  // one block at a time: one copy is what a block has
#define __align__(n) __attribute__((aligned(n)))

using std::max;
using std::min;

struct uint2 { unsigned x, y; };
struct alignas(16) uint4 { unsigned x, y, z, w; };
struct dim3 { unsigned x, y, z; };
inline uint2 make_uint2(unsigned x, unsigned y) { return {x, y}; }
inline uint4 make_uint4(unsigned x, unsigned y, unsigned z, unsigned w) { return {x, y, z, w}; }

namespace emulator {

constexpr int kStackBytes = 64 << 10;

struct Warp {
    uint64_t deposit[2][32];  // of the collective under way, and of the one before
    uint64_t arrived[2] = {};
    int turn = 0;
};

struct Copy { void* to; const void* from; int num_bytes; };

struct Fiber {
    ucontext_t context;
    bool is_done = false;
    int barriers = 0;     // that it has reached
    int collectives = 0;  // of its warp
    std::vector<std::vector<Copy>> batches;  // of asynchronous copies, the last one open
};

struct Block {
    std::vector<Fiber> fibers;
    std::vector<Warp> warps;
    ucontext_t scheduler;
    const std::function<void()>* kernel;
    unsigned current;
    bool has_moved;  // whether a fiber did something since the scheduler last looked
};

inline Block* block;
inline dim3 thread_index, block_index, block_size, grid_size;

inline char failure[256];  // why the launch ended early, or nothing

/// Ends the launch: the fiber is left where it is.
[[noreturn]] inline void fail(const char* what) {
    std::snprintf(failure, sizeof(failure), "%s (block %u, thread %u)", what, block_index.x, block->current);
    setcontext(&block->scheduler);
    std::abort();
}

inline Fiber& fiber() { return block->fibers[block->current]; }

inline void yield() { swapcontext(&fiber().context, &block->scheduler); }

/// Waits until all fibers that still run have reached as many barriers as this one.
inline void barrier() {
    const int reached = ++fiber().barriers;
    block->has_moved = true;
    const auto is_behind = [&](const Fiber& other) { return !other.is_done && other.barriers < reached; };
    while (std::any_of(block->fibers.begin(), block->fibers.end(), is_behind)) yield();
}

/// Leaves a value and waits for those of all 32 lanes.
inline const uint64_t* exchange(unsigned mask, uint64_t value) {
    if (mask != 0xffffffffu) fail("a collective of part of a warp is not emulated");
    Warp& warp = block->warps[block->current / 32];
    const int side = fiber().collectives++ % 2;
    const unsigned lane = block->current % 32;
    if (warp.arrived[side] == 0xffffffffu) warp.arrived[side] = 0;  // all have left the one before the last
    if (warp.arrived[side] >> lane & 1) fail("a lane came twice to a collective");
    warp.deposit[side][lane] = value;
    warp.arrived[side] |= 1ull << lane;
    block->has_moved = true;
    while (warp.arrived[side] != 0xffffffffu) yield();
    return warp.deposit[side];
}

inline void enter() {
    (*block->kernel)();
    fiber().is_done = true;
    block->has_moved = true;
    for (const auto& batch : fiber().batches) if (!batch.empty()) fail("copies are under way at the end");
    yield();
}

inline void run_block(const std::function<void()>& kernel, bool reversed) {
    const unsigned size = block_size.x * block_size.y * block_size.z;
    static std::vector<char> stacks;  // of all fibers, for all blocks
    stacks.resize(std::max<size_t>(stacks.size(), static_cast<size_t>(size) * kStackBytes));
    Block here;
    here.fibers = std::vector<Fiber>(size);
    here.warps = std::vector<Warp>((size + 31) / 32);
    here.kernel = &kernel;
    block = &here;
    for (unsigned i = 0; i < size; ++i) {
        Fiber& each = here.fibers[i];
        getcontext(&each.context);
        each.context.uc_stack.ss_sp = stacks.data() + static_cast<size_t>(i) * kStackBytes;
        each.context.uc_stack.ss_size = kStackBytes;
        each.context.uc_link = nullptr;
        makecontext(&each.context, enter, 0);
    }
    for (unsigned left = size; left > 0;) {
        here.has_moved = false;
        for (unsigned turn = 0; turn < size; ++turn) {
            here.current = reversed ? size - 1 - turn : turn;
            if (fiber().is_done) continue;
            thread_index = {here.current % block_size.x, here.current / block_size.x, 0};
            swapcontext(&here.scheduler, &fiber().context);
            if (failure[0]) return;
            if (fiber().is_done) --left;
        }
        if (left > 0 && !here.has_moved) {
            std::snprintf(failure, sizeof(failure), "all threads wait for a barrier or a collective that not all reach");
            return;
        }
    }
}

inline void run(const unsigned grid[3], const unsigned size[3], bool reversed, const std::function<void()>& kernel) {
    grid_size = {grid[0], grid[1], grid[2]};
    block_size = {size[0], size[1], size[2]};
    for (block_index.z = 0; block_index.z < grid[2]; ++block_index.z)
        for (block_index.y = 0; block_index.y < grid[1]; ++block_index.y)
            for (block_index.x = 0; block_index.x < grid[0] && !failure[0]; ++block_index.x) run_block(kernel, reversed);
}

/// Calls a kernel with arguments behind pointers, as cuLaunchKernel does.
template <class... Args, size_t... I>
void call(void (*kernel)(Args...), void** args, std::index_sequence<I...>) {
    kernel(*static_cast<std::remove_reference_t<Args>*>(args[I])...);
}

/// Null, or why the launch ended early.
template <class... Args>
const char* launch(void (*kernel)(Args...), const unsigned grid[3], const unsigned size[3], bool reversed, void** args) {
    const std::function<void()> thread = [=] { call(kernel, args, std::index_sequence_for<Args...>()); };
    failure[0] = 0;
    run(grid, size, reversed, thread);
    return failure[0] ? failure : nullptr;
}

template <class To, class From>
To bits(From value) {
    static_assert(sizeof(To) == sizeof(From));
    To out;
    std::memcpy(&out, &value, sizeof(To));
    return out;
}

}  // namespace emulator

#define threadIdx emulator::thread_index
#define blockIdx emulator::block_index
#define blockDim emulator::block_size
#define gridDim emulator::grid_size

inline void __syncthreads() { emulator::barrier(); }

inline float __uint_as_float(unsigned value) { return emulator::bits<float>(value); }
inline unsigned __float_as_uint(float value) { return emulator::bits<unsigned>(value); }
inline float __fadd_rn(float a, float b) { return a + b; }
inline float __fsub_rn(float a, float b) { return a - b; }
inline float __fmul_rn(float a, float b) { return a * b; }
inline float __fdiv_rn(float a, float b) { return a / b; }
inline float __frcp_rn(float a) { return 1.0f / a; }
inline float __fmaf_rn(float a, float b, float c) { return std::fma(a, b, c); }
inline int __ffs(unsigned value) { return __builtin_ffs(static_cast<int>(value)); }
inline unsigned __vmaxu2(unsigned a, unsigned b) {
    return max(a & 0xffffu, b & 0xffffu) | max(a >> 16, b >> 16) << 16;
}

inline long long atomicMin(long long* at, long long value) {
    const long long before = *at;
    *at = min(before, value);
    return before;
}

inline unsigned __reduce_max_sync(unsigned mask, unsigned value) {
    const uint64_t* of_lane = emulator::exchange(mask, value);
    return static_cast<unsigned>(*std::max_element(of_lane, of_lane + 32));
}
template <class T>
T __shfl_sync(unsigned mask, T value, int lane) {
    return static_cast<T>(emulator::exchange(mask, static_cast<uint64_t>(value))[lane % 32]);
}
template <class T>
T __shfl_up_sync(unsigned mask, T value, int step) {
    const int lane = static_cast<int>(emulator::block->current % 32);
    return static_cast<T>(emulator::exchange(mask, static_cast<uint64_t>(value))[lane < step ? lane : lane - step]);
}
inline unsigned __ballot_sync(unsigned mask, bool value) {
    const uint64_t* of_lane = emulator::exchange(mask, value);
    unsigned all = 0;
    for (int lane = 0; lane < 32; ++lane) all |= static_cast<unsigned>(of_lane[lane]) << lane;
    return all;
}

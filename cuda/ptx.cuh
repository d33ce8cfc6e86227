// Instructions that CUDA C++ has no function for without its headers, one function each. Nothing else in these sources is
// assembly, so the emulator of the tests puts a file of this name and these functions in its place
// (tests/cuda_emulator/ptx.cuh). No header of the CUDA toolkit is needed: NVRTC alone compiles these sources.
#pragma once

typedef unsigned char u8;
typedef unsigned short u16;
typedef unsigned u32;

/// Codes of two magnitudes: e4m3, to nearest even, saturating. From sm_89 on.
__device__ __forceinline__ u32 convert_to_e4m3x2(float low, float high) {
    u16 codes;
    asm("cvt.rn.satfinite.e4m3x2.f32 %0, %1, %2;" : "=h"(codes) : "f"(high), "f"(low));
    return codes;
}

/// Bits of the nearest float16.
__device__ __forceinline__ u16 convert_to_f16(float value) {
    u16 bits;
    asm("cvt.rn.f16.f32 %0, %1;" : "=h"(bits) : "f"(value));
    return bits;
}

/// Value of float16 bits.
__device__ __forceinline__ float convert_from_f16(u16 bits) {
    float value;
    asm("cvt.f32.f16 %0, %1;" : "=f"(value) : "h"(bits));
    return value;
}

/// Copies 16 bytes to shared memory, of which those behind the first `num_bytes` become 0; `source` is then not read.
/// Asynchronous: done for this thread after a `wait_for_copies`, for the others after the barrier behind it.
__device__ __forceinline__ void copy_async_16(void* shared, const void* source, int num_bytes) {
    const u32 to = static_cast<u32>(__cvta_generic_to_shared(shared));
    asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;" ::"r"(to), "l"(source), "r"(num_bytes) : "memory");
}

/// Ends a batch of copies.
__device__ __forceinline__ void commit_copies() { asm volatile("cp.async.commit_group;" ::: "memory"); }

/// Waits until no more than the latest `kPending` batches are under way.
template <int kPending>
__device__ __forceinline__ void wait_for_copies() {
    asm volatile("cp.async.wait_group %0;" ::"n"(kPending) : "memory");
}

/// Four 8x16-byte matrices from shared memory; lane i names row i % 8 of matrix i / 8 and gets 4 bytes of each matrix:
/// row lane / 4, bytes 4 * (lane % 4) on.
__device__ __forceinline__ void load_matrices(u32 (&out)[4], const void* row) {
    const u32 from = static_cast<u32>(__cvta_generic_to_shared(row));
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0, %1, %2, %3}, [%4];"
                 : "=r"(out[0]), "=r"(out[1]), "=r"(out[2]), "=r"(out[3])
                 : "r"(from)
                 : "memory");
}

/// sum += a * b for a [16, 32] and b [32, 8] in e4m3, in the fragment layout of PTX. From sm_89 on.
__device__ __forceinline__ void multiply_e4m3(float (&sum)[4], const u32 (&a)[4], u32 b0, u32 b1) {
#if __CUDA_ARCH__ >= 890
    asm("mma.sync.aligned.m16n8k32.row.col.f32.e4m3.e4m3.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, {%0, %1, %2, %3};"
        : "+f"(sum[0]), "+f"(sum[1]), "+f"(sum[2]), "+f"(sum[3])
        : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
#endif
}

/// sum += a * b for a [16, 16] and b [16, 8] in bfloat16.
__device__ __forceinline__ void multiply_bf16(float (&sum)[4], const u32 (&a)[4], u32 b0, u32 b1) {
    asm("mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, {%0, %1, %2, %3};"
        : "+f"(sum[0]), "+f"(sum[1]), "+f"(sum[2]), "+f"(sum[3])
        : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
}

// What the kernels need of the hardware beyond CUDA C++: tensor-core products, asynchronous copies, loads and stores that other blocks see.
//
// Each function is one instruction of the PTX ISA (compute capability 8.0 and later). Beside it stands what it means in plain C++, for the
// emulator that runs the same kernels on a CPU (tests/cuda/emulator); FSQ_EMULATED chooses. tests/cuda/test_device.py holds both to the
// same answers. No name here is in capitals, but for FSQ_...: a kernel's macros are.
#pragma once

// The dynamic shared memory of the block, as bytes.
#ifndef FSQ_EMULATED
#define FSQ_SHARED(name) extern __shared__ __align__(16) unsigned char name[]
#else
#define FSQ_SHARED(name) unsigned char *const name = emu::emu_self->shared
#endif

#ifndef FSQ_EMULATED
__device__ __forceinline__ unsigned fsq_shared_address(const void *p) { return (unsigned)__cvta_generic_to_shared(p); }
#endif

// ---------------------------------------------------------------- number formats

// A float's bits as tf32: 10 bits of mantissa, to the nearest, ties away from zero.
__device__ __forceinline__ unsigned to_tf32(float x) {
#ifndef FSQ_EMULATED
    unsigned bits;
    asm("cvt.rna.tf32.f32 %0, %1;" : "=r"(bits) : "f"(x));
    return bits;
#else
    unsigned bits = __float_as_uint(x);
    return (bits & 0x7f800000u) == 0x7f800000u ? bits : (bits + 0x1000u) & ~0x1fffu;
#endif
}

// Two floats as bfloat16, to the nearest, ties to even: `low` in the lower half, which is the first of two neighbours in memory.
__device__ __forceinline__ unsigned pack_bf16(float low, float high) {
#ifndef FSQ_EMULATED
    unsigned bits;
    asm("cvt.rn.bf16x2.f32 %0, %1, %2;" : "=r"(bits) : "f"(high), "f"(low));
    return bits;
#else
    auto half = [](float x) {
        unsigned bits = __float_as_uint(x);
        return isnan(x) ? 0x7fffu : (bits + 0x7fffu + (bits >> 16 & 1u)) >> 16;
    };
    return half(low) | half(high) << 16;
#endif
}
__device__ __forceinline__ unsigned short to_bf16(float x) { return (unsigned short)(pack_bf16(x, 0.0f) & 0xffffu); }
__device__ __forceinline__ float from_bf16(unsigned short x) { return __uint_as_float((unsigned)x << 16); }
__device__ __forceinline__ float2 unpack_bf16(unsigned bits) { return make_float2(__uint_as_float(bits << 16), __uint_as_float(bits & 0xffff0000u)); }

// Two floats as float16, to the nearest, ties to even, as pack_bf16 packs them; and one of them back.
__device__ __forceinline__ unsigned pack_f16(float low, float high) {
#ifndef FSQ_EMULATED
    unsigned bits;
    asm("cvt.rn.f16x2.f32 %0, %1, %2;" : "=r"(bits) : "f"(high), "f"(low));
    return bits;
#else
    auto half = [](float x) {
        _Float16 rounded = _Float16(x);
        unsigned short bits;
        __builtin_memcpy(&bits, &rounded, 2);
        return isnan(x) ? 0x7fffu : unsigned(bits);
    };
    return half(low) | half(high) << 16;
#endif
}
__device__ __forceinline__ float from_f16(unsigned short bits) {
#ifndef FSQ_EMULATED
    float x;
    asm("cvt.f32.f16 %0, %1;" : "=f"(x) : "h"(bits));
    return x;
#else
    _Float16 x;
    __builtin_memcpy(&x, &bits, 2);
    return float(x);
#endif
}

// 2^x by the special function unit: 2 ulp, 0 for results below 2^-126.
__device__ __forceinline__ float exp2_approx(float x) {
#ifndef FSQ_EMULATED
    float y;
    asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
    return y;
#else
    return __builtin_exp2f(x);
#endif
}

// 1 / x within one unit of the last place, for 2^-126 <= |x| <= 2^126; subnormal numbers count as 0 (rcp.approx.ftz.f32).
__device__ __forceinline__ float reciprocal(float x) {
#ifdef FSQ_EMULATED
    return 1.0f / x;
#else
    float r;
    asm("rcp.approx.ftz.f32 %0, %1;" : "=f"(r) : "f"(x));
    return r;
#endif
}
__device__ __forceinline__ double reciprocal(double x) { return 1.0 / x; }

// ---------------------------------------------------------------- products of a warp
//
// With g = lane / 4 and t = lane % 4 a lane holds these elements of A (16, K), B (K, 8) and D (16, 8):
//     D: d[0], d[1] = D[g][2t], D[g][2t+1]; d[2], d[3] = D[g+8][2t], D[g+8][2t+1]
//     tf32, K = 8: a = A[g][t], A[g+8][t], A[g][t+4], A[g+8][t+4]; b = B[t][g], B[t+4][g]
//     bf16, K = 16, two in a register: a = A[g][2t..], A[g+8][2t..], A[g][2t+8..], A[g+8][2t+8..]; b = B[2t..][g], B[2t+8..][g]
// PTX ISA, "Matrix Fragments for mma.m16n8k8" and "... mma.m16n8k16".

#ifdef FSQ_EMULATED
namespace emu {

// d += a b over `depth`, as the tensor core adds: exact products, one rounding towards zero.
template <int depth, class operands_of> inline void mma(const char *name, float (&d)[4], const unsigned (&a)[4], const unsigned (&b)[2], operands_of operands) {
    struct deposit { float d[4]; unsigned a[4], b[2]; };
    struct brought { float d[4]; };
    deposit mine;
    __builtin_memcpy(mine.d, d, sizeof d);
    __builtin_memcpy(mine.a, a, sizeof a);
    __builtin_memcpy(mine.b, b, sizeof b);
    brought result = warp_exchange<brought>(name, ~0u, mine, [=](const deposit *const *lane, brought *const *results, unsigned lanes) {
        if (lanes != ~0u) emu_fail("%s: of 32 lanes only those of %08x are here", name, lanes);
        double left[16][depth], right[8][depth];
        for (int i = 0; i < 32; i++) operands(lane[i]->a, lane[i]->b, i / 4, i % 4, left, right);
        for (int i = 0; i < 32; i++)
            for (int e = 0; e < 4; e++) {
                const int row = i / 4 + 8 * (e / 2), column = 2 * (i % 4) + e % 2;
                double sum = lane[i]->d[e];
                for (int k = 0; k < depth; k++) sum += left[row][k] * right[column][k];
                float rounded = (float)sum;
                if (__builtin_fabs((double)rounded) > __builtin_fabs(sum)) rounded = __uint_as_float(__float_as_uint(rounded) - 1);
                results[i]->d[e] = rounded;
            }
    });
    __builtin_memcpy(d, result.d, sizeof d);
}

}  // namespace emu
#endif

// d += a b; of the operands' bits, those that tf32 lacks are not looked at: round with to_tf32.
__device__ __forceinline__ void mma_tf32(float (&d)[4], const unsigned (&a)[4], const unsigned (&b)[2]) {
#ifndef FSQ_EMULATED
    asm("mma.sync.aligned.m16n8k8.row.col.f32.tf32.tf32.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, {%0, %1, %2, %3};"
        : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
        : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]));
#else
    emu::mma<8>("mma_tf32", d, a, b, [](const unsigned *a, const unsigned *b, int g, int t, double (&left)[16][8], double (&right)[8][8]) {
        for (int e = 0; e < 4; e++) left[g + 8 * (e % 2)][t + 4 * (e / 2)] = __uint_as_float(a[e] & ~0x1fffu);
        for (int e = 0; e < 2; e++) right[g][t + 4 * e] = __uint_as_float(b[e] & ~0x1fffu);
    });
#endif
}

__device__ __forceinline__ void mma_bf16(float (&d)[4], const unsigned (&a)[4], const unsigned (&b)[2]) {
#ifndef FSQ_EMULATED
    asm("mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, {%0, %1, %2, %3};"
        : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
        : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]));
#else
    emu::mma<16>("mma_bf16", d, a, b, [](const unsigned *a, const unsigned *b, int g, int t, double (&left)[16][16], double (&right)[8][16]) {
        for (int e = 0; e < 8; e++) left[g + 8 * (e / 2 % 2)][2 * t + e % 2 + 8 * (e / 4)] = __uint_as_float(a[e / 2] >> 16 * (e % 2) << 16);
        for (int e = 0; e < 4; e++) right[g][2 * t + e % 2 + 8 * (e / 2)] = __uint_as_float(b[e / 2] >> 16 * (e % 2) << 16);
    });
#endif
}

// As mma_bf16, of float16.
__device__ __forceinline__ void mma_f16(float (&d)[4], const unsigned (&a)[4], const unsigned (&b)[2]) {
#ifndef FSQ_EMULATED
    asm("mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, {%0, %1, %2, %3};"
        : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
        : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]));
#else
    emu::mma<16>("mma_f16", d, a, b, [](const unsigned *a, const unsigned *b, int g, int t, double (&left)[16][16], double (&right)[8][16]) {
        for (int e = 0; e < 8; e++) left[g + 8 * (e / 2 % 2)][2 * t + e % 2 + 8 * (e / 4)] = from_f16((unsigned short)(a[e / 2] >> 16 * (e % 2)));
        for (int e = 0; e < 4; e++) right[g][2 * t + e % 2 + 8 * (e / 2)] = from_f16((unsigned short)(b[e / 2] >> 16 * (e % 2)));
    });
#endif
}

// ---------------------------------------------------------------- shared memory to fragments
//
// Two or four matrices of 8 x 8 elements of 16 bits, or of 8 x 4 of 32 bits. Lane i brings the address in shared memory of row i % 8 of matrix
// i / 8: 16 bytes, on a multiple of 16. Register m of a lane is then matrix m's row g, elements 2t and 2t + 1 (of 32 bits: element t);
// transposed, elements [2t][g] and [2t + 1][g], which is how a B of 16 bits that lies row by row is read.

#ifdef FSQ_EMULATED
namespace emu {

template <int count, bool transposed> inline void ldmatrix(const char *name, unsigned (&r)[count], const void *row) {
    struct brought { unsigned r[count]; };
    if (int(emu_self->lane) < 8 * count) emu_check_shared(name, row, 16, 16);
    brought result = warp_exchange<brought>(name, ~0u, row, [=](const void *const *const *lane, brought *const *results, unsigned lanes) {
        if (lanes != ~0u) emu_fail("%s: of 32 lanes only those of %08x are here", name, lanes);
        for (int i = 0; i < 32; i++)
            for (int m = 0; m < count; m++) {
                auto element = [&](int r, int c) -> unsigned { return static_cast<const unsigned short *>(*lane[8 * m + r])[c]; };
                const int g = i / 4, t = i % 4;
                results[i]->r[m] = transposed ? element(2 * t, g) | element(2 * t + 1, g) << 16 : element(g, 2 * t) | element(g, 2 * t + 1) << 16;
            }
    });
    __builtin_memcpy(r, result.r, sizeof r);
}

}  // namespace emu
#endif

__device__ __forceinline__ void ldmatrix_x4(unsigned (&r)[4], const void *row) {
#ifndef FSQ_EMULATED
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0, %1, %2, %3}, [%4];"
                 : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3]) : "r"(fsq_shared_address(row)) : "memory");
#else
    emu::ldmatrix<4, false>("ldmatrix_x4", r, row);
#endif
}

__device__ __forceinline__ void ldmatrix_x4_trans(unsigned (&r)[4], const void *row) {
#ifndef FSQ_EMULATED
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0, %1, %2, %3}, [%4];"
                 : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3]) : "r"(fsq_shared_address(row)) : "memory");
#else
    emu::ldmatrix<4, true>("ldmatrix_x4_trans", r, row);
#endif
}

// ---------------------------------------------------------------- asynchronous copies, global to shared memory
//
// A thread's copies since its last commit are a group. They have arrived, for this thread, after a wait for all groups but the last few;
// for others after a barrier behind that.

// 16 bytes, on multiples of 16 at both ends; of `from` only the first `bytes` are read, and zeros follow.
__device__ __forceinline__ void cp_async_16(void *to, const void *from, int bytes = 16) {
#ifndef FSQ_EMULATED
    asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;" ::"r"(fsq_shared_address(to)), "l"(from), "r"(bytes) : "memory");
#else
    emu::emu_copy("cp_async_16", to, from, 16, bytes);
#endif
}

__device__ __forceinline__ void cp_async_commit() {
#ifndef FSQ_EMULATED
    asm volatile("cp.async.commit_group;" ::: "memory");
#else
    emu::emu_copy_commit();
#endif
}

template <int but_last> __device__ __forceinline__ void cp_async_wait() {
#ifndef FSQ_EMULATED
    asm volatile("cp.async.wait_group %0;" ::"n"(but_last) : "memory");
#else
    emu::emu_copy_wait(but_last);
#endif
}

// ---------------------------------------------------------------- what other blocks write and read
//
// A block that has written data tells others by a counter: all its threads meet at a barrier, and one of them then does add_release. A
// reader's thread polls with load_acquire until the counter is high enough; after a barrier behind that, all threads of its block may
// read the data, with load_cg: the caches nearest to a multiprocessor are not told of other multiprocessors' writes.

__device__ __forceinline__ unsigned load_acquire(const unsigned *p) {
#ifndef FSQ_EMULATED
    unsigned value;
    asm volatile("ld.acquire.gpu.global.u32 %0, [%1];" : "=r"(value) : "l"(p) : "memory");
    return value;
#else
    return emu::load_acquire(p);
#endif
}

__device__ __forceinline__ void store_release(unsigned *p, unsigned value) {
#ifndef FSQ_EMULATED
    asm volatile("st.release.gpu.global.u32 [%0], %1;" ::"l"(p), "r"(value) : "memory");
#else
    emu::store_release(p, value);
#endif
}

__device__ __forceinline__ void add_release(unsigned *p, unsigned value) {
#ifndef FSQ_EMULATED
    asm volatile("red.release.gpu.global.add.u32 [%0], %1;" ::"l"(p), "r"(value) : "memory");
#else
    emu::add_release(p, value, false);
#endif
}

// The counter before this block's addition, for a block that has to know whether it is the last.
__device__ __forceinline__ unsigned add_acquire_release(unsigned *p, unsigned value) {
#ifndef FSQ_EMULATED
    unsigned before;
    asm volatile("atom.acq_rel.gpu.global.add.u32 %0, [%1], %2;" : "=r"(before) : "l"(p), "r"(value) : "memory");
    return before;
#else
    return emu::add_release(p, value, true);
#endif
}

// Loads and stores in the cache that all multiprocessors share.
#ifndef FSQ_EMULATED
#define FSQ_CG1(T, type, constraint)                                                                                    \
    __device__ __forceinline__ T load_cg(const T *p) {                                                                  \
        T v;                                                                                                            \
        asm volatile("ld.global.cg." type " %0, [%1];" : "=" constraint(v) : "l"(p) : "memory");                        \
        return v;                                                                                                       \
    }                                                                                                                   \
    __device__ __forceinline__ void store_cg(T *p, T v) {                                                               \
        asm volatile("st.global.cg." type " [%0], %1;" ::"l"(p), constraint(v) : "memory");                             \
    }
#define FSQ_CG2(T, type, constraint)                                                                                    \
    __device__ __forceinline__ T load_cg(const T *p) {                                                                  \
        T v;                                                                                                            \
        asm volatile("ld.global.cg.v2." type " {%0, %1}, [%2];" : "=" constraint(v.x), "=" constraint(v.y) : "l"(p) : "memory"); \
        return v;                                                                                                       \
    }                                                                                                                   \
    __device__ __forceinline__ void store_cg(T *p, T v) {                                                               \
        asm volatile("st.global.cg.v2." type " [%0], {%1, %2};" ::"l"(p), constraint(v.x), constraint(v.y) : "memory"); \
    }
#define FSQ_CG4(T, type, constraint)                                                                                    \
    __device__ __forceinline__ T load_cg(const T *p) {                                                                  \
        T v;                                                                                                            \
        asm volatile("ld.global.cg.v4." type " {%0, %1, %2, %3}, [%4];"                                                 \
                     : "=" constraint(v.x), "=" constraint(v.y), "=" constraint(v.z), "=" constraint(v.w) : "l"(p) : "memory"); \
        return v;                                                                                                       \
    }                                                                                                                   \
    __device__ __forceinline__ void store_cg(T *p, T v) {                                                               \
        asm volatile("st.global.cg.v4." type " [%0], {%1, %2, %3, %4};"                                                 \
                     ::"l"(p), constraint(v.x), constraint(v.y), constraint(v.z), constraint(v.w) : "memory");          \
    }
#else
#define FSQ_CG1(T, type, constraint)                                                                                    \
    __device__ __forceinline__ T load_cg(const T *p) { return *p; }                                                     \
    __device__ __forceinline__ void store_cg(T *p, T v) { *p = v; }
#define FSQ_CG2 FSQ_CG1
#define FSQ_CG4 FSQ_CG1
#endif
FSQ_CG1(unsigned short, "u16", "h")
FSQ_CG1(unsigned, "u32", "r")
FSQ_CG1(int, "s32", "r")
FSQ_CG1(float, "f32", "f")
FSQ_CG1(double, "f64", "d")
FSQ_CG2(uint2, "u32", "r")
FSQ_CG2(float2, "f32", "f")
FSQ_CG2(double2, "f64", "d")
FSQ_CG4(uint4, "u32", "r")
FSQ_CG4(float4, "f32", "f")
#undef FSQ_CG1
#undef FSQ_CG2
#undef FSQ_CG4

// Words that are their own flags: each element of a vector is a load or a store of its own, and all multiprocessors see those of one address
// in one order.
__device__ __forceinline__ uint4 load_relaxed(const uint4 *p) {
#ifndef FSQ_EMULATED
    uint4 v;
    asm volatile("ld.relaxed.gpu.global.v4.u32 {%0, %1, %2, %3}, [%4];" : "=r"(v.x), "=r"(v.y), "=r"(v.z), "=r"(v.w) : "l"(p) : "memory");
    return v;
#else
    return emu::load_relaxed(p);
#endif
}
__device__ __forceinline__ void store_relaxed(uint4 *p, uint4 v) {
#ifndef FSQ_EMULATED
    asm volatile("st.relaxed.gpu.global.v4.u32 [%0], {%1, %2, %3, %4};" ::"l"(p), "r"(v.x), "r"(v.y), "r"(v.z), "r"(v.w) : "memory");
#else
    emu::store_relaxed(p, v);
#endif
}
__device__ __forceinline__ void store_relaxed(uint2 *p, uint2 v) {
#ifndef FSQ_EMULATED
    asm volatile("st.relaxed.gpu.global.v2.u32 [%0], {%1, %2};" ::"l"(p), "r"(v.x), "r"(v.y) : "memory");
#else
    *p = v;
    emu::emu_progress();
#endif
}
__device__ __forceinline__ void store_relaxed(unsigned *p, unsigned v) {
#ifndef FSQ_EMULATED
    asm volatile("st.relaxed.gpu.global.u32 [%0], %1;" ::"l"(p), "r"(v) : "memory");
#else
    emu::store_relaxed(p, v);
#endif
}
// Between two looks at such a word.
__device__ __forceinline__ void poll_again() {
#ifdef FSQ_EMULATED
    emu::emu_poll("poll_again");
#endif
}

// Loads of what no one writes meanwhile, issued where they stand: their values are needed after a wait.
__device__ __forceinline__ float load_early(const float *p) {
#ifndef FSQ_EMULATED
    float v;
    asm volatile("ld.global.nc.L1::no_allocate.f32 %0, [%1];" : "=f"(v) : "l"(p));
    return v;
#else
    return *p;
#endif
}
__device__ __forceinline__ float4 load_early(const float4 *p) {
#ifndef FSQ_EMULATED
    float4 v;
    asm volatile("ld.global.nc.L1::no_allocate.v4.f32 {%0, %1, %2, %3}, [%4];" : "=f"(v.x), "=f"(v.y), "=f"(v.z), "=f"(v.w) : "l"(p));
    return v;
#else
    return *p;
#endif
}

// Brings what will be loaded a while later into the cache that all multiprocessors share.
__device__ __forceinline__ void prefetch_l2(const void *p) {
#ifndef FSQ_EMULATED
    asm volatile("prefetch.global.L2 [%0];" ::"l"(p));
#else
    (void)*(const volatile char *)p;
#endif
}

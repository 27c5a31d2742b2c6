// Rows of N elements on ROW threads each, threadIdx.x; threadIdx.y counts the rows of a block, of which there is one where ROW > 32.
//
// ROW   32, a warp, or a multiple of it
// W     elements of an access: the greatest power of two that N is a multiple of, LANES at most; rows begin where such accesses may
// PACKS accesses of a thread, where its part of the row stays in registers; 0: the row is too long, and each pass reads it again
// Which of them a row gets depends on N alone (cuda_layout.py), and with them the order of its sums.
#pragma once
#include "vector.cuh"

#define ROW_THREADS (ROW > 32 ? ROW : 256)  // of a block
#define SLOTS (PACKS ? PACKS : 1)
#define KEPT (PACKS > 0)
#define NO_REAL ((REAL)__int_as_float(0xff800000))  // -infinity

// does(slot, i) for each of the thread's accesses, of which i is the first element; slot: where it is kept.
template <class Does> __device__ __forceinline__ void each_access(int N, Does does) {
    if constexpr (KEPT) {
#pragma unroll
        for (int slot = 0; slot < PACKS; slot++) {
            const int i = (slot * ROW + (int)threadIdx.x) * W;
            if (i < N) does(slot, i);
        }
    } else {
#pragma unroll 4
        for (int i = (int)threadIdx.x * W; i < N; i += ROW * W) does(0, i);
    }
}

struct Add { static __device__ __forceinline__ REAL of(REAL a, REAL b) { return a + b; } };
struct Greatest { static __device__ __forceinline__ REAL of(REAL a, REAL b) { return fmax(a, b); } };  // passes over NaN

// Of all ROW threads' values, the same for each. shared: 32 elements that no thread of the row has in use; a barrier stands before they
// are read, none after it, so consecutive calls take turns between two places.
template <class Op> __device__ __forceinline__ REAL over_row(REAL v, REAL none, REAL *shared) {
#pragma unroll
    for (int flip = 16; flip; flip /= 2) v = Op::of(v, __shfl_xor_sync(0xffffffffu, v, flip));
    if constexpr (ROW > 32) {
        const int lane = threadIdx.x % 32;
        if (lane == 0) shared[threadIdx.x / 32] = v;
        __syncthreads();
        v = lane < ROW / 32 ? shared[lane] : none;
#pragma unroll
        for (int flip = 16; flip; flip /= 2) v = Op::of(v, __shfl_xor_sync(0xffffffffu, v, flip));
    }
    return v;
}
__device__ __forceinline__ REAL row_sum(REAL v, REAL *shared) { return over_row<Add>(v, 0, shared); }
__device__ __forceinline__ REAL row_greatest(REAL v, REAL *shared) { return over_row<Greatest>(v, NO_REAL, shared); }

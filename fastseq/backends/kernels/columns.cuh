// Columns of a matrix (M, N), W of them for each of 32 threads; a block's COLUMN_ROWS rows of threads take turns on its rows.
//
// W is the greatest power of two that N is a multiple of, LANES at most. A column's sum is made in parts, one for each row of blocks (cuda_layout.py).
#pragma once
#include "vector.cuh"

// The column of this thread's first element.
__device__ __forceinline__ int this_column() { return ((int)blockIdx.x * 32 + (int)threadIdx.x) * W; }

// The sums over the block's rows of threads, in their order, in those of row 0. shared: 32 COLUMN_ROWS W elements.
__device__ __forceinline__ void over_rows(REAL (&sum)[W], REAL *shared) {
    REAL *const mine = shared + threadIdx.x * W;
    store_lanes(mine + threadIdx.y * 32 * W, sum);
    __syncthreads();
    if (threadIdx.y == 0) {
#pragma unroll
        for (int y = 1; y < COLUMN_ROWS; y++) {
            REAL other[W];
            load_lanes(other, mine + y * 32 * W);
#pragma unroll
            for (int l = 0; l < W; l++) sum[l] += other[l];
        }
    }
    __syncthreads();
}

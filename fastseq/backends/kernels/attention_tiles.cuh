// attention_tiles.cuh - a tile of 64 x 64 scores by 256 threads, for any dtype and any sizes.
//
// Thread (y, x), y = threadIdx.x / 16, has the entries of rows y + 16 r and columns x + 16 c, r, c < 4. Operands pass through shared
// memory in pieces, each read once for 64 multiplications. Bound by shared memory: eight words for sixteen multiplications.
#pragma once
#include "attention.cuh"

enum { TILE = 64, PITCH = TILE + 1, PIECE = 32, TILE_THREADS = 256 };

struct Shared {
    REAL *left, *right;     // (PIECE, PITCH) each, or one (TILE, PITCH)
    REAL *weights;          // (TILE, PITCH): entry (row, column) at column PITCH + row
    REAL *inner;            // (TILE): a number of each query, in the backward pass
    int *special;           // whether the tile on the right holds an infinity or a NaN
};
enum { SHARED_REALS = 2 * PIECE * PITCH + TILE * PITCH + TILE };

__device__ __forceinline__ Shared shared_of(unsigned char *memory) {
    REAL *at = (REAL *)memory;
    return {at, at + PIECE * PITCH, at + 2 * PIECE * PITCH, at + SHARED_REALS - TILE, (int *)(at + SHARED_REALS)};
}

__device__ __forceinline__ REAL exponential(REAL x) { return sizeof(REAL) == 4 ? (REAL)expf((float)x) : (REAL)exp((double)x); }
__device__ __forceinline__ REAL logarithm(REAL x) { return sizeof(REAL) == 4 ? (REAL)logf((float)x) : (REAL)log((double)x); }

// s = a b^T: a has n_a rows, b n_b, of `columns` numbers each; rows past the end count as zeros.
__device__ void tile_product(REAL s[4][4], const Shared &m, const REAL *a, long long row_a, int n_a, const REAL *b, long long row_b, int n_b,
                             int columns) {
    const int y = threadIdx.x / 16, x = threadIdx.x % 16;
#pragma unroll
    for (int r = 0; r < 4; r++)
#pragma unroll
        for (int c = 0; c < 4; c++) s[r][c] = 0;
    for (int d0 = 0; d0 < columns; d0 += PIECE) {
        __syncthreads();
        for (int at = threadIdx.x; at < TILE * PIECE; at += TILE_THREADS) {
            int row = at / PIECE, d = at % PIECE;
            bool inside = d0 + d < columns;
            m.left[d * PITCH + row] = inside && row < n_a ? a[row * row_a + d0 + d] : 0;
            m.right[d * PITCH + row] = inside && row < n_b ? b[row * row_b + d0 + d] : 0;
        }
        __syncthreads();
        const int n = least(PIECE, columns - d0);
        for (int d = 0; d < n; d++) {
            REAL left[4], right[4];
#pragma unroll
            for (int r = 0; r < 4; r++) left[r] = m.left[d * PITCH + y + 16 * r], right[r] = m.right[d * PITCH + x + 16 * r];
#pragma unroll
            for (int r = 0; r < 4; r++)
#pragma unroll
                for (int c = 0; c < 4; c++) s[r][c] += left[r] * right[c];
        }
    }
}

// Entries to where tile_accumulate reads them.
__device__ __forceinline__ void tile_give(const Shared &m, const REAL p[4][4]) {
    const int y = threadIdx.x / 16, x = threadIdx.x % 16;
    __syncthreads();
#pragma unroll
    for (int r = 0; r < 4; r++)
#pragma unroll
        for (int c = 0; c < 4; c++) m.weights[(x + 16 * c) * PITCH + y + 16 * r] = p[r][c];
}

// o += weights b, columns [first, first + TILE) of b, which has n_b rows of `columns` numbers. A weight of zero takes nothing from b,
// whatever b holds.
__device__ void tile_accumulate(REAL o[4][4], const Shared &m, const REAL *b, long long row_b, int n_b, int first, int columns) {
    const int y = threadIdx.x / 16, x = threadIdx.x % 16;
    if (threadIdx.x == 0) *m.special = 0;
    __syncthreads();
    for (int at = threadIdx.x; at < TILE * TILE; at += TILE_THREADS) {
        int row = at / TILE, d = at % TILE;
        REAL number = row < n_b && first + d < columns ? b[row * row_b + first + d] : 0;
        m.left[row * PITCH + d] = number;
        if (!is_finite(number)) *m.special = 1;
    }
    __syncthreads();
    const bool special = *m.special;
    for (int j = 0; j < n_b; j++) {
        REAL p[4], number[4];
#pragma unroll
        for (int r = 0; r < 4; r++) p[r] = m.weights[j * PITCH + y + 16 * r], number[r] = m.left[j * PITCH + x + 16 * r];
#pragma unroll
        for (int r = 0; r < 4; r++)
#pragma unroll
            for (int c = 0; c < 4; c++)
                if (!special || p[r] != 0) o[r][c] += p[r] * number[c];
    }
}

// The greatest, and the sum, over the 16 threads that share rows.
__device__ __forceinline__ REAL row_max(REAL a) {
#pragma unroll
    for (int step = 8; step; step /= 2) {
        REAL b = __shfl_xor_sync(0xffffffffu, a, step);
        a = b > a ? b : a;
    }
    return a;
}
__device__ __forceinline__ REAL row_sum(REAL a) {
#pragma unroll
    for (int step = 8; step; step /= 2) a += __shfl_xor_sync(0xffffffffu, a, step);
    return a;
}

// s = the scores of the queries [i, i + 64) and the keys [j, j + 64) of a head.
__device__ __forceinline__ void scores(REAL s[4][4], const Shared &m, const Problem &p, const REAL *q, long long row_q, const REAL *k,
                                       long long row_k, long long mask, int n_keys, int i, int j) {
    tile_product(s, m, q + i * row_q, row_q, p.Tq - i, k + j * row_k, row_k, p.Tk - j, p.D);
    const int y = threadIdx.x / 16, x = threadIdx.x % 16;
#pragma unroll
    for (int r = 0; r < 4; r++)
#pragma unroll
        for (int c = 0; c < 4; c++) {
            int query = i + y + 16 * r, key = j + x + 16 * c;
            s[r][c] = seen(p, n_keys, query, key) ? masked(p, mask, query, key, s[r][c] * p.scale) : -infinity();
        }
}

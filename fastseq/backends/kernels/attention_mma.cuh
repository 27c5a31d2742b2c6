// attention_mma.cuh - attention's products by tensor cores: tiles in shared memory, fragments of a warp, and the two forms of product.
//
// Macros: FORMAT, 16: bfloat16; 32: tf32; 96: float32 from three products of tf32, which keeps all but the last bit or two (hi hi, hi lo
// and lo hi of each operand's upper and lower half). DIM: columns of a tile, a multiple of 32 that holds D and Dv, zeros behind them.
// ROW_TILES: times 16, the rows of the block that a warp has; WARPS; COLUMNS: rows of the tiles that stream by. A warp has all columns of
// its rows, so nothing but these tiles passes through shared memory.
//
// A tile's rows are cut into pieces of 16 bytes, of which row r has piece c at place c ^ swizzle(r): reads of eight rows at one piece,
// and of the pieces of few rows, then meet each bank once.
#pragma once
#include "attention.cuh"

#if FORMAT == 16
typedef unsigned short Element;
#else
typedef float Element;
#endif
enum {
    PER_PIECE = 16 / sizeof(Element),
    PIECES = DIM / PER_PIECE,
    THREADS = 32 * WARPS,
    WARP_ROWS = 16 * ROW_TILES,
    ROWS = WARPS * WARP_ROWS,
    OUT_TILES = DIM / 8,            // tiles of 8 columns of what is summed over the streaming rows
    SCORE_TILES = COLUMNS / 8,
};
constexpr float LOG2E = 1.4426950408889634f;

__device__ __forceinline__ int swizzle(int row) {
#if FORMAT == 16
    return PIECES % 8 == 0 ? row & 7 : row >> 1 & 3;
#else
    return (row & 6) ^ (row & 1) << 2;
#endif
}

// Starts the copies of a tile of n rows; `from` has rows of DIM elements.
__device__ __forceinline__ void copy_tile(Element *to, const Element *from, const int n) {
    constexpr int STEP = THREADS / PIECES;                   // rows at a time where the threads come out even
    if (THREADS % PIECES == 0 && n % (STEP ? STEP : 1) == 0) {
        const int row = threadIdx.x / PIECES, piece = threadIdx.x % PIECES;
#pragma unroll
        for (int r = 0; r < n; r += STEP)
            cp_async_16(to + (row + r) * DIM + (piece ^ swizzle(row + r)) * PER_PIECE, from + (row + r) * DIM + piece * PER_PIECE);
        return;
    }
    for (int at = threadIdx.x; at < n * PIECES; at += THREADS) {
        const int row = at / PIECES, piece = at % PIECES;
        cp_async_16(to + row * DIM + (piece ^ swizzle(row)) * PER_PIECE, from + row * DIM + piece * PER_PIECE);
    }
}

// A fragment of 32-bit operands, in one or two numbers of tf32 each.
#if FORMAT != 16
struct Fragment {
    unsigned high[4];
#if FORMAT == 96
    unsigned low[4];
#endif
};
template <int N> __device__ __forceinline__ void split(unsigned (&high)[N], unsigned (&low)[N], const float (&x)[N]) {
#pragma unroll
    for (int e = 0; e < N; e++) {
        high[e] = __float_as_uint(x[e]) & 0xffffe000u;
        low[e] = __float_as_uint(x[e] - __uint_as_float(high[e]));
    }
}
__device__ __forceinline__ Fragment fragment_of(float a, float b, float c, float d) {
    Fragment f;
    const float x[4] = {a, b, c, d};
#if FORMAT == 96
    split(f.high, f.low, x);
#else
#pragma unroll
    for (int e = 0; e < 4; e++) f.high[e] = __float_as_uint(x[e]);
#endif
    return f;
}
// d += a (b, c), for all row tiles
template <int N> __device__ __forceinline__ void multiply(float (&d)[ROW_TILES][N][4], int n, const Fragment (&a)[ROW_TILES], float b, float c) {
    const float x[2] = {b, c};
#if FORMAT == 96
    unsigned high[2], low[2];
    split(high, low, x);
#pragma unroll
    for (int m = 0; m < ROW_TILES; m++) {
        mma_tf32(d[m][n], a[m].low, high);
        mma_tf32(d[m][n], a[m].high, low);
        mma_tf32(d[m][n], a[m].high, high);
    }
#else
    const unsigned bits[2] = {__float_as_uint(x[0]), __float_as_uint(x[1])};
#pragma unroll
    for (int m = 0; m < ROW_TILES; m++) mma_tf32(d[m][n], a[m].high, bits);
#endif
}
#endif

// s = a b^T for the warp's rows of the tile a, from row `first` on, and the rows of the tile b.
__device__ __forceinline__ void product_scores(float (&s)[ROW_TILES][SCORE_TILES][4], const Element *a, int first, const Element *b) {
    const int lane = threadIdx.x % 32;
#pragma unroll
    for (int m = 0; m < ROW_TILES; m++)
#pragma unroll
        for (int n = 0; n < SCORE_TILES; n++)
#pragma unroll
            for (int e = 0; e < 4; e++) s[m][n][e] = 0;
#if FORMAT == 16
    const int a_row = first + lane % 16, a_turn = swizzle(a_row) ^ lane / 16;
    const int b_row = lane % 8 + lane / 16 * 8, b_turn = swizzle(b_row) ^ (lane / 8 & 1);
#pragma unroll
    for (int k = 0; k < DIM / 16; k++) {
        unsigned fa[ROW_TILES][4];
#pragma unroll
        for (int m = 0; m < ROW_TILES; m++) ldmatrix_x4(fa[m], a + (a_row + 16 * m) * DIM + (2 * k ^ a_turn) * 8);
#pragma unroll
        for (int n = 0; n < SCORE_TILES; n += 2) {
            unsigned fb[4];
            ldmatrix_x4(fb, b + (b_row + 8 * n) * DIM + (2 * k ^ b_turn) * 8);
            const unsigned left[2] = {fb[0], fb[1]}, right[2] = {fb[2], fb[3]};
#pragma unroll
            for (int m = 0; m < ROW_TILES; m++) {
                mma_bf16(s[m][n], fa[m], left);
                mma_bf16(s[m][n + 1], fa[m], right);
            }
        }
    }
#else
    // Sixteen columns at a time in four numbers of each lane: the order in which they are summed is free, the same for a and b.
    const int g = lane / 4, t = lane % 4, turn = swizzle(g);
#pragma unroll
    for (int k = 0; k < DIM / 16; k++) {
        Fragment fa[2][ROW_TILES];
#pragma unroll
        for (int m = 0; m < ROW_TILES; m++) {
            const Element *at = a + (first + 16 * m + g) * DIM + ((4 * k + t) ^ turn) * 4;
            const float4 x = *(const float4 *)at, y = *(const float4 *)(at + 8 * DIM);
            fa[0][m] = fragment_of(x.x, y.x, x.y, y.y);
            fa[1][m] = fragment_of(x.z, y.z, x.w, y.w);
        }
#pragma unroll
        for (int n = 0; n < SCORE_TILES; n++) {
            const float4 x = *(const float4 *)(b + (8 * n + g) * DIM + ((4 * k + t) ^ turn) * 4);
            multiply(s, n, fa[0], x.x, x.y);
            multiply(s, n, fa[1], x.z, x.w);
        }
    }
#endif
}

// Scores, or what became of them, as the left operand of product_sum.
struct Weights {
#if FORMAT == 16
    unsigned bits[ROW_TILES][SCORE_TILES / 2][4];
#else
    float numbers[ROW_TILES][SCORE_TILES][4];
#endif
};
__device__ __forceinline__ void give(Weights &w, const float (&p)[ROW_TILES][SCORE_TILES][4]) {
#pragma unroll
    for (int m = 0; m < ROW_TILES; m++) {
#if FORMAT == 16
#pragma unroll
        for (int k = 0; k < SCORE_TILES / 2; k++) {
            const float(&x)[4] = p[m][2 * k], (&y)[4] = p[m][2 * k + 1];
            w.bits[m][k][0] = pack_bf16(x[0], x[1]), w.bits[m][k][1] = pack_bf16(x[2], x[3]);
            w.bits[m][k][2] = pack_bf16(y[0], y[1]), w.bits[m][k][3] = pack_bf16(y[2], y[3]);
        }
#else
#pragma unroll
        for (int n = 0; n < SCORE_TILES; n++)
#pragma unroll
            for (int e = 0; e < 4; e++)
                w.numbers[m][n][e] = FORMAT == 32 ? __uint_as_float(__float_as_uint(p[m][n][e]) + 0x1000u) : p[m][n][e];  // to the nearest tf32
#endif
    }
}

// o += w b, for the rows of the tile b.
__device__ __forceinline__ void product_sum(float (&o)[ROW_TILES][OUT_TILES][4], const Weights &w, const Element *b) {
    const int lane = threadIdx.x % 32;
#if FORMAT == 16
    const int b_row = lane % 16, turn = swizzle(b_row) ^ lane / 16;
#pragma unroll
    for (int k = 0; k < SCORE_TILES / 2; k++)
#pragma unroll
        for (int n = 0; n < OUT_TILES; n += 2) {
            unsigned fb[4];
            ldmatrix_x4_trans(fb, b + (b_row + 16 * k) * DIM + (n ^ turn) * 8);
            const unsigned left[2] = {fb[0], fb[1]}, right[2] = {fb[2], fb[3]};
#pragma unroll
            for (int m = 0; m < ROW_TILES; m++) {
                mma_bf16(o[m][n], w.bits[m][k], left);
                mma_bf16(o[m][n + 1], w.bits[m][k], right);
            }
        }
#else
    // A fragment's columns t and t + 4 stand for the columns 2t and 2t + 1 of the scores, which the lane has; four tiles of columns of b
    // are interleaved, so that a lane reads, and in the end writes, four neighbours.
    const int g = lane / 4, t = lane % 4;
#pragma unroll
    for (int k = 0; k < SCORE_TILES; k++) {
        Fragment fa[ROW_TILES];
#pragma unroll
        for (int m = 0; m < ROW_TILES; m++)
            fa[m] = fragment_of(w.numbers[m][k][0], w.numbers[m][k][2], w.numbers[m][k][1], w.numbers[m][k][3]);
        const Element *row = b + (8 * k + 2 * t) * DIM;
#pragma unroll
        for (int n = 0; n < OUT_TILES; n += 4) {
            const float4 x = *(const float4 *)(row + ((2 * n + g) ^ swizzle(2 * t)) * 4);
            const float4 y = *(const float4 *)(row + DIM + ((2 * n + g) ^ swizzle(2 * t + 1)) * 4);
            multiply(o, n, fa, x.x, y.x);
            multiply(o, n + 1, fa, x.y, y.y);
            multiply(o, n + 2, fa, x.z, y.z);
            multiply(o, n + 3, fa, x.w, y.w);
        }
    }
#endif
}

// Writes the rows of one row tile's upper or lower half (half 0: row g, 1: row g + 8) times a factor: `row` is where this lane's row
// begins. wide: rows begin at multiples of 16 bytes and `columns` is a multiple of 4.
__device__ __forceinline__ void store_row(float *row, const float (&o)[OUT_TILES][4], int half, float factor, int columns, bool wide) {
    const int t = threadIdx.x % 4;
#if FORMAT == 16
#pragma unroll
    for (int n = 0; n < OUT_TILES; n++) {
        const int d = 8 * n + 2 * t;
        const float x = o[n][2 * half] * factor, y = o[n][2 * half + 1] * factor;
        if (wide && d < columns) *(float2 *)(row + d) = make_float2(x, y);
        if (!wide && d < columns) row[d] = x;
        if (!wide && d + 1 < columns) row[d + 1] = y;
    }
#else
#pragma unroll
    for (int n = 0; n < OUT_TILES; n += 4)
#pragma unroll
        for (int e = 0; e < 2; e++) {
            const int d = 8 * n + 8 * t + 4 * e;
            const float x[4] = {o[n][2 * half + e] * factor, o[n + 1][2 * half + e] * factor, o[n + 2][2 * half + e] * factor,
                                o[n + 3][2 * half + e] * factor};
            if (wide && d < columns) *(float4 *)(row + d) = make_float4(x[0], x[1], x[2], x[3]);
#pragma unroll
            for (int r = 0; r < 4; r++)
                if (!wide && d + r < columns) row[d + r] = x[r];
        }
#endif
}

__device__ __forceinline__ float quad_max(float a) {
    a = fmaxf(a, __shfl_xor_sync(0xffffffffu, a, 1));
    return fmaxf(a, __shfl_xor_sync(0xffffffffu, a, 2));
}
__device__ __forceinline__ float quad_sum(float a) {
    a += __shfl_xor_sync(0xffffffffu, a, 1);
    return a + __shfl_xor_sync(0xffffffffu, a, 2);
}

// exp(s - shift). Of three products the difference is formed first, which keeps its digits where scores are large.
__device__ __forceinline__ float weight_of(float s, float shift) {
    return exp2_approx(FORMAT == 96 ? (s - shift) * LOG2E : __fmaf_rn(s, LOG2E, -shift * LOG2E));
}

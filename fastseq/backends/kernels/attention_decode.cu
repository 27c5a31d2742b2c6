// attention_decode.cu - attention of few queries for each head, as in step-by-step generation.
//
// A block has up to ROWS queries that share keys, of all heads of a group, and a part of these keys; so keys and values are read once for
// all of them, and few queries still keep every multiprocessor busy. The block that ends last adds its rows' parts up, first to last,
// whichever block it is (Dao, Haziza, Massa & Sizov 2023, "Flash-Decoding"). Bound by the bytes of k and v.
//
// A warp takes 32 keys at a time: eight lanes read a key, 128 bytes of it at once, four keys side by side; PIECES times 16 bytes are a
// lane's share of a row. A lane then has the score of one key.
#include "attention.cuh"

enum { VECTOR = 16 / sizeof(REAL), WARPS = 4, THREADS = 32 * WARPS, STEPS = 8 };
struct __align__(16) Vector {
    REAL x[VECTOR];
};

__device__ __forceinline__ REAL exponential(REAL x) { return sizeof(REAL) == 4 ? (REAL)expf((float)x) : (REAL)exp((double)x); }
__device__ __forceinline__ REAL logarithm(REAL x) { return sizeof(REAL) == 4 ? (REAL)logf((float)x) : (REAL)log((double)x); }

// WIDE: rows begin at multiples of 16 bytes, and have a multiple of VECTOR columns.
__device__ __forceinline__ Vector load(const REAL *row, int d, int columns) {
    Vector v;
#if WIDE
    if (d < columns) return *(const Vector *)(row + d);
#endif
#pragma unroll
    for (int e = 0; e < VECTOR; e++) v.x[e] = !WIDE && d + e < columns ? row[d + e] : 0;
    return v;
}

// A row of queries: which head's, and its place in it.
__device__ __forceinline__ int head_of(const Problem &p, int row, int kv) { return kv * p.group + row / p.Tq; }

// y and lse of a row from its parts, by a warp. The parts are other blocks': they are read where all multiprocessors see them.
__device__ __forceinline__ void merge(REAL *to, REAL *lse, const REAL *parts, int splits, int Dv) {
    const int lane = threadIdx.x % 32, width = Dv + 2;
    REAL most = -infinity(), total = 0;
    for (int s = 0; s < splits; s++) {
        const REAL other = __ldcg(parts + s * width);
        most = other > most ? other : most;
    }
    const REAL shift = most == -infinity() ? 0 : most;
    for (int s = 0; s < splits; s++) {
        const REAL sum = __ldcg(parts + s * width + 1);
        if (sum != 0) total += sum * exponential(__ldcg(parts + s * width) - shift);
    }
    for (int d = lane; d < Dv; d += 32) {
        REAL x = 0;
        for (int s = 0; s < splits; s++)
            if (__ldcg(parts + s * width + 1) != 0) x += __ldcg(parts + s * width + 2 + d) * exponential(__ldcg(parts + s * width) - shift);
        to[d] = total == 0 ? 0 : x / total;
    }
    if (lse && lane == 0) *lse = total == 0 ? -infinity() : most + logarithm(total);
}

// parts: (rows of all heads, splits, Dv + 2): the greatest score, the sum and the row of y before it is divided. ended: zeros, a number
// for each `splits` blocks that have the same queries.
extern "C" __global__ void __launch_bounds__(THREADS)
    attention_decode(REAL *y, REAL *lse, REAL *parts, unsigned *ended, const REAL *q, const REAL *k, const REAL *v, int splits, int split_keys,
                     const __grid_constant__ Problem p) {
    FSQ_SHARED(memory);
    const int warp = threadIdx.x / 32, lane = threadIdx.x % 32, sub = lane % 8, kv_heads = p.heads / p.group, rows = p.group * p.Tq;
    const int chunks = (rows + ROWS - 1) / ROWS, split = blockIdx.x % splits, chunk = blockIdx.x / splits % chunks;
    const int b = blockIdx.x / splits / chunks / kv_heads, kv = blockIdx.x / splits / chunks % kv_heads, row0 = chunk * ROWS;
    const int n_keys = keys_of(p, b);
    // Queries in shared memory, zeros where there are none; later what the warps have found.
    REAL(*queries)[8 * PIECES * VECTOR] = (REAL(*)[8 * PIECES * VECTOR])memory;
    for (int at = threadIdx.x; at < ROWS * 8 * PIECES * VECTOR; at += THREADS) {
        const int r = at / (8 * PIECES * VECTOR), d = at % (8 * PIECES * VECTOR);
        const bool inside = row0 + r < rows && d < p.D;
        queries[r][d] = inside ? (rows_of(q, p.q, b, head_of(p, row0 + r, kv)) + (row0 + r) % p.Tq * p.q.row)[d] * p.scale : 0;
    }
    __syncthreads();
    const REAL *k_head = rows_of(k, p.k, b, kv), *v_head = rows_of(v, p.v, b, kv);
    const Range sees = keys_seen(p, n_keys, 0, p.Tq);
    const int from = greatest(split * split_keys, sees.from / 32 * 32), to = least(least((split + 1) * split_keys, sees.to), p.Tk);
    REAL o[ROWS][PIECES][VECTOR], most[ROWS], sum[ROWS];
#pragma unroll
    for (int r = 0; r < ROWS; r++) {
        most[r] = -infinity(), sum[r] = 0;
#pragma unroll
        for (int c = 0; c < PIECES; c++)
#pragma unroll
            for (int e = 0; e < VECTOR; e++) o[r][c][e] = 0;
    }
    for (int j = from + 32 * warp; j < to; j += 32 * WARPS) {
        // Step u has the keys j + 4 u + lane / 8.
        REAL s[ROWS][STEPS];
#pragma unroll
        for (int u = 0; u < STEPS; u++) {
            const REAL *row = k_head + least(j + 4 * u + lane / 8, to - 1) * p.k.row;
            Vector x[PIECES];
#pragma unroll
            for (int c = 0; c < PIECES; c++) x[c] = load(row, (8 * c + sub) * VECTOR, p.D);
#pragma unroll
            for (int r = 0; r < ROWS; r++) {
                REAL dot = 0;
#pragma unroll
                for (int c = 0; c < PIECES; c++) {
                    const Vector y = *(const Vector *)(queries[r] + (8 * c + sub) * VECTOR);
#pragma unroll
                    for (int e = 0; e < VECTOR; e++) dot += x[c].x[e] * y.x[e];
                }
                s[r][u] = dot;
            }
        }
        const int key = j + 4 * sub + lane / 8;             // the key whose score this lane gets
        REAL weight[ROWS];
#pragma unroll
        for (int r = 0; r < ROWS; r++) {
            // Sums over eight lanes, of eight steps at once: each exchange halves what a lane still adds up.
#pragma unroll
            for (int half = 4; half; half /= 2)
#pragma unroll
                for (int u = 0; u < half; u++) {
                    const bool upper = sub & half;
                    const REAL kept = upper ? s[r][u + half] : s[r][u], given = upper ? s[r][u] : s[r][u + half];
                    s[r][u] = kept + __shfl_xor_sync(0xffffffffu, given, half);
                }
            const int row = row0 + r, i = row % p.Tq, h = head_of(p, row, kv);
            const bool sees_it = row < rows && key < to && seen(p, n_keys, i, key);
            const REAL score = sees_it ? masked(p, mask_place(p, b, h), i, key, s[r][0]) : -infinity();
            REAL now = score > most[r] ? score : most[r];
#pragma unroll
            for (int step = 16; step; step /= 2) {
                const REAL other = __shfl_xor_sync(0xffffffffu, now, step);
                now = other > now ? other : now;
            }
            const REAL shift = now == -infinity() ? 0 : now, factor = exponential(most[r] - shift);
            weight[r] = exponential(score - shift);
            sum[r] = sum[r] * factor + weight[r];
            most[r] = now;
#pragma unroll
            for (int c = 0; c < PIECES; c++)
#pragma unroll
                for (int e = 0; e < VECTOR; e++) o[r][c][e] *= factor;
        }
#pragma unroll
        for (int u = 0; u < STEPS; u++) {
            const REAL *row = v_head + least(j + 4 * u + lane / 8, to - 1) * p.v.row;
            Vector x[PIECES];
#pragma unroll
            for (int c = 0; c < PIECES; c++) x[c] = load(row, (8 * c + sub) * VECTOR, p.Dv);
#pragma unroll
            for (int r = 0; r < ROWS; r++) {
                const REAL w = __shfl_sync(0xffffffffu, weight[r], (lane & 24) + u);
                if (w != 0)                                 // a hidden value may be anything
#pragma unroll
                    for (int c = 0; c < PIECES; c++)
#pragma unroll
                        for (int e = 0; e < VECTOR; e++) o[r][c][e] += w * x[c].x[e];
            }
        }
    }
    // What the warps have: sums over lanes here, over warps in shared memory.
    const int width = 8 * PIECES * VECTOR + 2;
    REAL *found = (REAL *)memory;
    __syncthreads();
#pragma unroll
    for (int r = 0; r < ROWS; r++) {
#pragma unroll
        for (int step = 16; step; step /= 2) sum[r] += __shfl_xor_sync(0xffffffffu, sum[r], step);
        REAL *mine = found + (warp * ROWS + r) * width;
        if (lane == 0) mine[0] = most[r], mine[1] = sum[r];
#pragma unroll
        for (int c = 0; c < PIECES; c++)
#pragma unroll
            for (int e = 0; e < VECTOR; e++) {
                REAL x = o[r][c][e];
                x += __shfl_xor_sync(0xffffffffu, x, 8);
                x += __shfl_xor_sync(0xffffffffu, x, 16);
                if (lane < 8) mine[2 + (8 * c + sub) * VECTOR + e] = x;
            }
    }
    __syncthreads();
    for (int at = threadIdx.x; at < ROWS * (p.Dv + 2); at += THREADS) {
        const int r = at / (p.Dv + 2), d = at % (p.Dv + 2), row = row0 + r;
        if (row >= rows) continue;
        REAL greatest_of = -infinity(), total = 0;
        for (int w = 0; w < WARPS; w++) greatest_of = found[(w * ROWS + r) * width] > greatest_of ? found[(w * ROWS + r) * width] : greatest_of;
        const REAL shift = greatest_of == -infinity() ? 0 : greatest_of;
        for (int w = 0; w < WARPS; w++) {
            const REAL *theirs = found + (w * ROWS + r) * width;
            if (theirs[1] != 0) total += theirs[d == 0 ? 1 : d] * exponential(theirs[0] - shift);
        }
        const long long place = ((long long)(b * p.heads + head_of(p, row, kv)) * p.Tq + row % p.Tq) * splits + split;
        parts[place * (p.Dv + 2) + d] = d == 0 ? greatest_of : total;
    }
    __threadfence();
    __syncthreads();
    int *last = (int *)memory;                              // all have read what was there
    if (threadIdx.x == 0) *last = add_acquire_release(ended + blockIdx.x / splits, 1) == splits - 1;
    __syncthreads();
    if (!*last) return;
    for (int row = row0 + warp; row < least(row0 + ROWS, rows); row += WARPS) {
        const int h = head_of(p, row, kv), i = row % p.Tq;
        const long long place = (long long)(b * p.heads + h) * p.Tq + i;
        merge(rows_of(y, p.y, b, h) + i * p.y.row, lse ? lse + place : lse, parts + place * splits * (p.Dv + 2), splits, p.Dv);
    }
}

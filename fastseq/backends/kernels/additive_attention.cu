// Additive attention: y_i = sum_j w_ij v_j, w_i = softmax over j of (u . tanh(q_i + k_j) + mask_ij) (Bahdanau et al. 2015).
//
// Fused: scores, mask, softmax and the product with v in one kernel; a pair of a query and a key leaves nothing but its weight, and tanh of
// the (B, Tq, Tk, D) sums exist in registers only. Bound by operations: B Tq Tk D times half a reciprocal and 3.5 multiply-adds
// (additive.cuh), of which a multiprocessor does 32 units in a cycle: at B 32, Tq = Tk = 128, D 256 on 132 multiprocessors of 1.7 GHz
// 19 us, where the tanh of PyTorch's formula alone move 2 GB, 0.6 ms.
//
// Backwards the gradients of the weights come from the same tiles, and those of the scores at once from them; the rest of backward is in
// additive_attention_backward.cu.
#include "additive.cuh"

enum { THREADS = 256, WARPS = THREADS / 32, KEYS = 64, UNITS = 64, ROW = UNITS + 4, QT = QUERIES_OF_THREAD, QUERIES = 4 * QT };

// Numbers for QUERIES queries and KEYS keys at a time: each thread has QT queries and two keys, four warps have half of the units each. What
// shared memory holds of a chunk of units is, for additive scores, their exponentials.
struct Tile {
    REAL *keys, *queries, *u, *half, *partial; // (KEYS, ROW), (QUERIES, ROW), (UNITS), (UNITS / 4), (QUERIES, KEYS)
    int *far; // the last chunk that had something far
    REAL *scores; // (QUERIES, keys in whole quads), where they fit
};

__device__ __forceinline__ Tile tile_of(unsigned char *bytes) {
    Tile tile;
    tile.keys = reinterpret_cast<REAL *>(bytes);
    tile.queries = tile.keys + KEYS * ROW;
    tile.u = tile.queries + QUERIES * ROW;
    tile.half = tile.u + UNITS;
    tile.partial = tile.half + UNITS / 4;
    tile.far = reinterpret_cast<int *>(tile.partial + QUERIES * KEYS);
    tile.scores = reinterpret_cast<REAL *>(tile.far + 4);
    return tile;
}

// The pairs of a thread by tanh itself, units `from` to `to`.
__device__ __forceinline__ void far_pairs(REAL (&sum)[QT][2], const REAL *q, const REAL *k, const REAL *u, int i0, int j0, int rows, int n, int D,
                                          int from, int to) {
    for (int d = from; d < to; d++) {
        const REAL w = u[d] * (REAL)0.5;
#pragma unroll
        for (int i = 0; i < QT; i++)
#pragma unroll
            for (int j = 0; j < 2; j++)
                if (i0 + 4 * i < rows && j0 + 8 * j < n)
                    sum[i][j] -= w * additive_tanh(q[(long long)(i0 + 4 * i) * D + d] + k[(long long)(j0 + 8 * j) * D + d]);
    }
}

// A block's row of the batch and its first query: blocks of a row are neighbours, which read the same keys.
struct Place {
    int b, first;
};

__device__ __forceinline__ Place place_of(int Tq) {
    const int tiles = (Tq + QUERIES - 1) / QUERIES;
    return {(int)blockIdx.x / tiles, (int)blockIdx.x % tiles * QUERIES};
}

// put(i, j, u . tanh(q_i + k_j)), or without `additive` q_i . k_j, for the block's `rows` queries and n keys, rows of D units.
template <bool additive, class Put>
__device__ __forceinline__ void all_pairs(const Tile &tile, const REAL *q, const REAL *k, const REAL *u, int rows, int n, int D, Put put) {
    const int thread = threadIdx.x, lane = thread % 32, warp = thread / 32;
    const bool whole = rows_of_four(q, D) && rows_of_four(k, D), whole_u = additive && rows_of_four(u, D);
    const int chunks = max(1, (D + UNITS - 1) / UNITS), turns = chunks * ((n + KEYS - 1) / KEYS);
    const int quad = thread % (UNITS / 4) * 4, row = thread / (UNITS / 4);
    const int half = warp / 4, lane_query = lane / 8, lane_key = warp % 4 * 16 + lane % 8;
    Four next_keys[4], next_query, next_u;
    auto fetch = [&](int turn) {
        const int j = turn / chunks * KEYS + row, d = turn % chunks * UNITS + quad;
#pragma unroll
        for (int i = 0; i < 4; i++) next_keys[i] = load_four(k + (long long)(j + 16 * i) * D, d, j + 16 * i < n ? D : 0, whole);
        if (row < QUERIES) next_query = load_four(q + (long long)row * D, d, row < rows ? D : 0, whole);
        if (additive && row == 0) next_u = load_four(u, d, D, whole_u);
    };
    if (thread == 0) *tile.far = 0;
    if (turns) fetch(0);
    REAL sum[QT][2];
    for (int turn = 0; turn < turns; turn++) {
        const int chunk = turn % chunks, j0 = turn / chunks * KEYS;
        if (chunk == 0)
#pragma unroll
            for (int i = 0; i < QT; i++) sum[i][0] = sum[i][1] = 0;
        __syncthreads(); // all have read the chunk before
        bool far = false;
#pragma unroll
        for (int i = 0; i < 4; i++) {
            far |= additive && beyond(next_keys[i], additive_range(REAL()));
            *reinterpret_cast<Four *>(tile.keys + (row + 16 * i) * ROW + quad) = additive ? exponentials(next_keys[i]) : next_keys[i];
        }
        if (row < QUERIES) {
            far |= additive && beyond(next_query, additive_range(REAL()));
            *reinterpret_cast<Four *>(tile.queries + row * ROW + quad) = additive ? exponentials(next_query) : next_query;
        }
        if (additive && row == 0) {
            far |= beyond(next_u, additive_largest(REAL()));
            *reinterpret_cast<Four *>(tile.u + quad) = next_u;
            tile.half[quad / 4] = (REAL)0.5 * (next_u.x[0] + next_u.x[1] + next_u.x[2] + next_u.x[3]);
        }
        if (far) *tile.far = turn + 1;
        __syncthreads();
        if (turn + 1 < turns) fetch(turn + 1);
        if (additive && *tile.far == turn + 1) {
            const int from = chunk * UNITS + half * (UNITS / 2);
            far_pairs(sum, q, k, u, lane_query, j0 + lane_key, rows, n, D, from, min(D, from + UNITS / 2));
        } else if (j0 + lane_key - lane % 8 < n) {
#pragma unroll 2
            for (int d = half * (UNITS / 2); d < (half + 1) * (UNITS / 2); d += 4) {
                Four a[QT], w;
                if (additive) w = *reinterpret_cast<const Four *>(tile.u + d);
                const REAL h = additive ? tile.half[d / 4] : 0;
#pragma unroll
                for (int i = 0; i < QT; i++) a[i] = *reinterpret_cast<const Four *>(tile.queries + (lane_query + 4 * i) * ROW + d);
#pragma unroll
                for (int j = 0; j < 2; j++) {
                    const Four c = *reinterpret_cast<const Four *>(tile.keys + (lane_key + 8 * j) * ROW + d);
#pragma unroll
                    for (int i = 0; i < QT; i++) {
                        if (additive) sum[i][j] = additive_four(sum[i][j], a[i], c, w, h);
                        else
#pragma unroll
                            for (int e = 0; e < 4; e++) sum[i][j] += a[i].x[e] * c.x[e];
                    }
                }
            }
        }
        if (chunk + 1 < chunks) continue;
#pragma unroll
        for (int i = 0; i < QT; i++)
#pragma unroll
            for (int j = 0; j < 2; j++)
                if (half == 1) tile.partial[(lane_query + 4 * i) * KEYS + lane_key + 8 * j] = sum[i][j];
        __syncthreads();
#pragma unroll
        for (int i = 0; i < QT; i++)
#pragma unroll
            for (int j = 0; j < 2; j++)
                if (half == 0 && lane_query + 4 * i < rows && j0 + lane_key + 8 * j < n)
                    put(lane_query + 4 * i, j0 + lane_key + 8 * j,
                        (additive ? -2 : 1) * (sum[i][j] + tile.partial[(lane_query + 4 * i) * KEYS + lane_key + 8 * j]));
    }
    __syncthreads();
}

// y = w v; a warp has up to eight queries and 64 columns. quads: each row of w begins on 16 bytes, with zeros up to whole quads of keys.
// A weight of 0 passes nothing on where some are hidden: 0 times NaN is not added.
template <bool quads, bool hidden>
__device__ __forceinline__ void context(REAL *y, const REAL *w, int apart, const REAL *v, int rows, int n, int Dv) {
    enum { TOGETHER = QUERIES < 8 ? QUERIES : 8 };
    const int lane = threadIdx.x % 32, columns = (Dv + 63) / 64;
    for (int task = threadIdx.x / 32; task < QUERIES / TOGETHER * columns; task += WARPS) {
        const int i0 = task / columns * TOGETHER, c = task % columns * 64 + lane;
        if (i0 >= rows) continue;
        REAL sums[TOGETHER][2] = {};
#pragma unroll 2
        for (int j = 0; j < n; j += 4) {
            REAL value[4][2];
#pragma unroll
            for (int e = 0; e < 4; e++)
#pragma unroll
                for (int h = 0; h < 2; h++) value[e][h] = j + e < n && c + 32 * h < Dv ? v[(long long)(j + e) * Dv + c + 32 * h] : 0;
#pragma unroll
            for (int i = 0; i < TOGETHER; i++) {
                const REAL *row = w + (long long)(i0 + i) * apart + j;
                const Four f = load_four(row, 0, quads ? 4 : i0 + i < rows ? n - j : 0, quads);
#pragma unroll
                for (int e = 0; e < 4; e++)
#pragma unroll
                    for (int h = 0; h < 2; h++)
                        if (!hidden || f.x[e] != 0) sums[i][h] += f.x[e] * value[e][h];
            }
        }
#pragma unroll
        for (int i = 0; i < TOGETHER; i++)
#pragma unroll
            for (int h = 0; h < 2; h++)
                if (i0 + i < rows && c + 32 * h < Dv) y[(long long)(i0 + i) * Dv + c + 32 * h] = sums[i][h];
    }
}

extern "C" __global__ void __launch_bounds__(THREADS, 2)
additive_forward(REAL *y, REAL *weights, const REAL *q, const REAL *k, const REAL *v, const REAL *u, const unsigned char *seen, const REAL *bias,
                 long long mask_batch, long long mask_query, long long mask_key, const long long *key_lengths, int Tq, int Tk, int D, int Dv,
                 int in_shared) {
    FSQ_SHARED(bytes);
    const Tile tile = tile_of(bytes);
    const Place place = place_of(Tq);
    const int thread = threadIdx.x, lane = thread % 32, warp = thread / 32, b = place.b, first = place.first;
    const int n = key_lengths ? (int)key_lengths[b] : Tk, rows = min(QUERIES, Tq - first);
    q += ((long long)b * Tq + first) * D, k += (long long)b * Tk * D, v += (long long)b * Tk * Dv;
    y += ((long long)b * Tq + first) * Dv;
    if (weights) weights += ((long long)b * Tq + first) * Tk;
    // the scores of the block: in shared memory where they fit, else where the weights will be
    const int apart = in_shared ? (Tk + 3) / 4 * 4 : Tk;
    REAL *scores = in_shared ? tile.scores : weights;
    all_pairs<true>(tile, q, k, u, rows, n, D, [=](int i, int j, REAL score) { scores[(long long)i * apart + j] = score; });

    const bool masked = seen || bias;
    for (int i = warp; i < rows; i += WARPS) {
        REAL *s = scores + (long long)i * apart, largest = minus_infinity(REAL()), total = 0;
        const long long mask = b * mask_batch + (first + i) * mask_query;
        for (int j = lane; j < n; j += 32) {
            REAL x = s[j];
            if (seen && !seen[mask + j * mask_key]) x = minus_infinity(REAL());
            if (bias) {
                const REAL m = bias[mask + j * mask_key];
                x = m == minus_infinity(REAL()) ? m : x + m;
            }
            if (masked) s[j] = x;
            largest = x > largest ? x : largest;
        }
        largest = warp_max(largest);
        if (largest == minus_infinity(REAL())) largest = 0;
        for (int j = lane; j < n; j += 32) total += s[j] = softmax_exp(s[j] - largest);
        total = warp_sum(total);
        if (total == 0) total = 1;
        for (int j = lane; j < apart; j += 32) {
            const REAL e = j < n ? s[j] : 0, w = e == 0 ? 0 : e / total; // a hidden key's is 0 beside a NaN, too
            s[j] = w;
            if (weights && in_shared && j < Tk) weights[(long long)i * Tk + j] = w;
        }
    }
    __syncthreads();

    if (!in_shared) context<false, true>(y, scores, apart, v, rows, n, Dv);
    else if (masked) context<true, true>(y, scores, apart, v, rows, n, Dv);
    else context<true, false>(y, scores, apart, v, rows, n, Dv);
}

// dL/ds = w (dL/dw - sum_j w dL/dw) where w is not 0, with dL/dw_ij = dy_i . v_j + dweights_ij; dy and dweights may be null, for zeros.
// arrived: counters that the launch after this one begins with at 0.
extern "C" __global__ void __launch_bounds__(THREADS, 2)
additive_dscores(REAL *ds, unsigned *arrived, const REAL *weights, const REAL *dweights, const REAL *dy, const REAL *v, const long long *key_lengths,
                 int Tq, int Tk, int Dv, int in_shared, int counters) {
    FSQ_SHARED(bytes);
    if (blockIdx.x == 0)
        for (int i = threadIdx.x; i < counters; i += THREADS) arrived[i] = 0;
    const Tile tile = tile_of(bytes);
    const Place at = place_of(Tq);
    const int lane = threadIdx.x % 32, warp = threadIdx.x / 32, b = at.b, first = at.first;
    const int n = key_lengths ? (int)key_lengths[b] : Tk, rows = min(QUERIES, Tq - first);
    const long long place = (long long)b * Tq + first;
    ds += place * Tk, weights += place * Tk;
    if (dweights) dweights += place * Tk;
    const int apart = in_shared ? (Tk + 3) / 4 * 4 : Tk;
    REAL *dw = in_shared ? tile.scores : ds;
    auto put = [=](int i, int j, REAL found) { dw[(long long)i * apart + j] = found; };
    if (dy) all_pairs<false>(tile, dy + place * Dv, v + (long long)b * Tk * Dv, nullptr, rows, n, Dv, put);
    for (int i = warp; i < rows; i += WARPS) {
        const REAL *w = weights + (long long)i * Tk;
        REAL *of_row = dw + (long long)i * apart, sum = 0;
        for (int j = lane; j < n; j += 32) {
            const REAL d = (dy ? of_row[j] : 0) + (dweights ? dweights[(long long)i * Tk + j] : 0);
            of_row[j] = d;
            if (w[j] != 0) sum += w[j] * d;
        }
        sum = warp_sum(sum);
        for (int j = lane; j < Tk; j += 32) ds[(long long)i * Tk + j] = j < n && w[j] != 0 ? w[j] * (of_row[j] - sum) : 0;
    }
}

// Additive attention: y_i = sum_j w_ij v_j, w_i = softmax over j of (u . tanh(q_i + k_j) + mask_ij) (Bahdanau et al. 2015).
//
// Fused: scores, mask, softmax and the product with v in one kernel; a pair of a query and a key leaves nothing but its weight, and tanh of
// the (B, Tq, Tk, D) sums exist in registers only. Bound by operations: B Tq Tk D times half a reciprocal and 3.5 multiply-adds
// (additive.cuh), of which a multiprocessor does 32 units in a cycle: at B 32, Tq = Tk = 128, D 256 on 132 multiprocessors of 1.7 GHz
// 19 us, where the tanh of PyTorch's formula alone move 2 GB, 0.6 ms.
#include "additive.cuh"

enum { THREADS = 256, WARPS = THREADS / 32, KEYS = 64, UNITS = 64, ROW = UNITS + 4 };

// ---------------------------------------------------------------- forward

#ifdef QUERIES_OF_THREAD
enum { QT = QUERIES_OF_THREAD, QUERIES = 4 * QT };

// Scores of QUERIES queries and KEYS keys: each thread has QT queries and two keys, four warps have half of the units each. What shared
// memory holds of a chunk of units is their exponentials.
struct Tile {
    REAL *keys, *queries, *u, *half, *partial; // (KEYS, ROW), (QUERIES, ROW), (UNITS), (UNITS / 4), (QUERIES, KEYS)
    int *far; // the last chunk that had something far
};

// The pairs of a thread by tanh itself, units `from` to `to`.
__device__ __forceinline__ void far_pairs(REAL (&sum)[QT][2], const REAL *q, const REAL *k, const REAL *u, int i0, int j0, int Tq, int n, int D,
                                          int from, int to) {
    for (int d = from; d < to; d++) {
        const REAL w = u[d] * (REAL)0.5;
#pragma unroll
        for (int i = 0; i < QT; i++)
#pragma unroll
            for (int j = 0; j < 2; j++)
                if (i0 + 4 * i < Tq && j0 + 8 * j < n)
                    sum[i][j] -= w * additive_tanh(q[(long long)(i0 + 4 * i) * D + d] + k[(long long)(j0 + 8 * j) * D + d]);
    }
}

extern "C" __global__ void __launch_bounds__(THREADS)
additive_forward(REAL *y, REAL *weights, const REAL *q, const REAL *k, const REAL *v, const REAL *u, const unsigned char *seen, const REAL *bias,
                 long long mask_batch, long long mask_query, long long mask_key, const long long *key_lengths, int Tq, int Tk, int D, int Dv,
                 int in_shared) {
    FSQ_SHARED(bytes);
    Tile tile;
    tile.keys = reinterpret_cast<REAL *>(bytes);
    tile.queries = tile.keys + KEYS * ROW;
    tile.u = tile.queries + QUERIES * ROW;
    tile.half = tile.u + UNITS;
    tile.partial = tile.half + UNITS / 4;
    tile.far = reinterpret_cast<int *>(tile.partial + QUERIES * KEYS);
    const int thread = threadIdx.x, lane = thread % 32, warp = thread / 32, b = blockIdx.y, first = blockIdx.x * QUERIES;
    const int n = key_lengths ? (int)key_lengths[b] : Tk, rows = min(QUERIES, Tq - first);
    q += (long long)b * Tq * D, k += (long long)b * Tk * D, v += (long long)b * Tk * Dv;
    y += ((long long)b * Tq + first) * Dv;
    if (weights) weights += ((long long)b * Tq + first) * Tk;
    // the scores of the block: in shared memory where they fit, else where the weights will be
    const int apart = in_shared ? (Tk + 3) / 4 * 4 : Tk;
    REAL *scores = in_shared ? reinterpret_cast<REAL *>(tile.far + 4) : weights;

    const bool whole = rows_of_four(q, D) && rows_of_four(k, D), whole_u = rows_of_four(u, D);
    const int chunks = max(1, (D + UNITS - 1) / UNITS), turns = chunks * ((n + KEYS - 1) / KEYS);
    const int quad = thread % (UNITS / 4) * 4, row = thread / (UNITS / 4);
    const int half = warp / 4, lane_query = lane / 8, lane_key = warp % 4 * 16 + lane % 8;
    Four next_keys[4], next_query, next_u;
    auto fetch = [&](int turn) {
        const int j = turn / chunks * KEYS + row, d = turn % chunks * UNITS + quad;
#pragma unroll
        for (int i = 0; i < 4; i++) next_keys[i] = load_four(k + (long long)(j + 16 * i) * D, d, j + 16 * i < n ? D : 0, whole);
        if (row < QUERIES) next_query = load_four(q + (long long)(first + row) * D, d, row < rows ? D : 0, whole);
        if (row == 0) next_u = load_four(u, d, D, whole_u);
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
            far |= beyond(next_keys[i], additive_range(REAL()));
            *reinterpret_cast<Four *>(tile.keys + (row + 16 * i) * ROW + quad) = exponentials(next_keys[i]);
        }
        if (row < QUERIES) {
            far |= beyond(next_query, additive_range(REAL()));
            *reinterpret_cast<Four *>(tile.queries + row * ROW + quad) = exponentials(next_query);
        }
        if (row == 0) {
            far |= beyond(next_u, additive_largest(REAL()));
            *reinterpret_cast<Four *>(tile.u + quad) = next_u;
            tile.half[quad / 4] = (REAL)0.5 * (next_u.x[0] + next_u.x[1] + next_u.x[2] + next_u.x[3]);
        }
        if (far) *tile.far = turn + 1;
        __syncthreads();
        if (turn + 1 < turns) fetch(turn + 1);
        if (*tile.far == turn + 1) {
            const int from = chunk * UNITS + half * (UNITS / 2);
            far_pairs(sum, q, k, u, first + lane_query, j0 + lane_key, Tq, n, D, from, min(D, from + UNITS / 2));
        } else if (j0 + lane_key - lane % 8 < n) {
#pragma unroll 2
            for (int d = half * (UNITS / 2); d < (half + 1) * (UNITS / 2); d += 4) {
                const Four w = *reinterpret_cast<const Four *>(tile.u + d);
                const REAL h = tile.half[d / 4];
                Four a[QT];
#pragma unroll
                for (int i = 0; i < QT; i++) a[i] = *reinterpret_cast<const Four *>(tile.queries + (lane_query + 4 * i) * ROW + d);
#pragma unroll
                for (int j = 0; j < 2; j++) {
                    const Four c = *reinterpret_cast<const Four *>(tile.keys + (lane_key + 8 * j) * ROW + d);
#pragma unroll
                    for (int i = 0; i < QT; i++) sum[i][j] = additive_four(sum[i][j], a[i], c, w, h);
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
                    scores[(long long)(lane_query + 4 * i) * apart + j0 + lane_key + 8 * j] =
                        -2 * (sum[i][j] + tile.partial[(lane_query + 4 * i) * KEYS + lane_key + 8 * j]);
    }
    __syncthreads();

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
        for (int j = lane; j < Tk; j += 32) {
            const REAL e = j < n ? s[j] : 0, w = e == 0 ? 0 : e / total; // a hidden key's is 0 beside a NaN, too
            if (j < n || !in_shared) s[j] = w;
            if (weights && in_shared) weights[(long long)i * Tk + j] = w;
        }
    }
    __syncthreads();

    // y = w v: a warp has eight queries and 32 columns
    const int columns = (Dv + 31) / 32;
    for (int task = warp; task < QUERIES / 8 * columns; task += WARPS) {
        const int i0 = task / columns * 8, c = task % columns * 32 + lane, count = min(8, rows - i0);
        if (count <= 0 || c >= Dv) continue;
        REAL sums[8] = {};
        for (int j = 0; j < n; j += 4) {
            REAL value[4];
#pragma unroll
            for (int e = 0; e < 4; e++) value[e] = j + e < n ? v[(long long)(j + e) * Dv + c] : 0;
#pragma unroll
            for (int i = 0; i < 8; i++)
                if (i < count) {
                    const REAL *w = scores + (long long)(i0 + i) * apart + j;
#pragma unroll
                    for (int e = 0; e < 4; e++)
                        if (j + e < n && (!masked || w[e] != 0)) sums[i] += w[e] * value[e]; // 0 times a hidden NaN is not added
                }
        }
#pragma unroll
        for (int i = 0; i < 8; i++)
            if (i < count) y[(long long)(i0 + i) * Dv + c] = sums[i];
    }
}
#endif

// ---------------------------------------------------------------- backward

// dL/ds = w (dL/dw - sum_j w dL/dw) where w is not 0, in place of dL/dw; a warp has a row. dweights: more of dL/dw, or null; reached: whether
// ds has any of it already.
extern "C" __global__ void __launch_bounds__(THREADS)
additive_softmax_backward(REAL *ds, const REAL *weights, const REAL *dweights, int reached, long long rows, int Tk) {
    const long long row = (long long)blockIdx.x * WARPS + threadIdx.x / 32;
    if (row >= rows) return;
    const int lane = threadIdx.x % 32;
    ds += row * Tk, weights += row * Tk;
    if (dweights) dweights += row * Tk;
    REAL sum = 0;
    for (int j = lane; j < Tk; j += 32) {
        const REAL w = weights[j], d = (reached ? ds[j] : 0) + (dweights ? dweights[j] : 0);
        if (w != 0) sum += w * d;
    }
    sum = warp_sum(sum);
    for (int j = lane; j < Tk; j += 32) {
        const REAL w = weights[j], d = (reached ? ds[j] : 0) + (dweights ? dweights[j] : 0);
        ds[j] = w != 0 ? w * (d - sum) : 0;
    }
}

#ifdef QUERIES_OF_WARP
// dq, dk and du from ds, one pass over all pairs. A block has 32 units, one for each lane, and of the queries every gridDim.z-th group of
// WARPS QT; a warp has QT of them in registers and goes through the keys, 32 at a time in shared memory. What the warps have of dk is
// added in their order. With dk a plane for each z, du a row for each b and z; dq may be null.
enum { QW = QUERIES_OF_WARP, GROUP = WARPS * QW, STEP = 32, DS_ROW = GROUP + 4 };

extern "C" __global__ void __launch_bounds__(THREADS)
additive_backward(REAL *dq, REAL *dk, REAL *du, const REAL *q, const REAL *k, const REAL *u, const REAL *ds, const long long *key_lengths, int Tq, int Tk,
                  int D) {
    FSQ_SHARED(bytes);
    REAL *partial = reinterpret_cast<REAL *>(bytes); // (WARPS, STEP, 32)
    REAL *slopes = partial + WARPS * STEP * 32; // ds of the keys and queries at hand, (STEP, DS_ROW)
    REAL *exps = slopes + STEP * DS_ROW; // (STEP, 32)
    int *far_keys = reinterpret_cast<int *>(exps + STEP * 32);
    const int thread = threadIdx.x, lane = thread % 32, warp = thread / 32, d = blockIdx.x * 32 + lane, b = blockIdx.y, Z = gridDim.z;
    const int n = key_lengths ? (int)key_lengths[b] : Tk;
    const REAL range = additive_range(REAL());
    const bool there = d < D;
    q += (long long)b * Tq * D, k += (long long)b * Tk * D, ds += (long long)b * Tq * Tk;
    if (dq) dq += (long long)b * Tq * D;
    dk += ((long long)blockIdx.z * gridDim.y + b) * Tk * D;
    const REAL unit = there ? u[d] : 0;
    REAL by_unit = 0;
    int turn = 0;
    if (thread == 0) *far_keys = 0;
    for (int group = blockIdx.z; group * GROUP < Tq; group += Z) {
        const int i0 = group * GROUP + warp * QW;
        REAL x[QW], by_query[QW];
        bool far = false;
#pragma unroll
        for (int i = 0; i < QW; i++) {
            const REAL a = there && i0 + i < Tq ? q[(long long)(i0 + i) * D + d] : 0;
            far |= !(fabs(a) <= range);
            x[i] = additive_exp(a);
            by_query[i] = 0;
        }
        const bool far_queries = __any_sync(0xffffffffu, far);
        for (int j0 = 0; j0 < n; j0 += STEP) {
            turn++;
            __syncthreads(); // all have read what is written now
            for (int j = warp; j < STEP; j += WARPS) {
                const REAL a = there && j0 + j < n ? k[(long long)(j0 + j) * D + d] : 0;
                if (!(fabs(a) <= range)) *far_keys = turn;
                exps[j * 32 + lane] = additive_exp(a);
            }
            for (int i = warp; i < GROUP; i += WARPS)
                slopes[lane * DS_ROW + i] = group * GROUP + i < Tq && j0 + lane < n ? ds[(long long)(group * GROUP + i) * Tk + j0 + lane] : 0;
            __syncthreads();
            if (far_queries || *far_keys == turn) {
                for (int j = 0; j < STEP; j++) {
                    REAL by_key = 0;
                    for (int i = 0; i < QW && there && i0 + i < Tq && j0 + j < n; i++) {
                        const REAL s = slopes[j * DS_ROW + warp * QW + i];
                        if (s == 0) continue; // nothing comes from what is not seen
                        const REAL sum = q[(long long)(i0 + i) * D + d] + k[(long long)(j0 + j) * D + d];
                        const REAL h = (REAL)-0.5 * additive_tanh(sum), g = (REAL)0.25 - h * h;
#pragma unroll
                        for (int e = 0; e < QW; e++) by_query[e] += e == i ? s * g : 0;
                        by_key += s * g;
                        by_unit += s * h;
                    }
                    partial[(warp * STEP + j) * 32 + lane] = by_key;
                }
            } else if (i0 < Tq) {
                const int to = min(STEP, n - j0);
                for (int j = 0; j < to; j++) {
                    const REAL y = exps[j * 32 + lane];
                    REAL by_key = 0;
#pragma unroll
                    for (int i = 0; i < QW; i += 4) {
                        const Four s = *reinterpret_cast<const Four *>(slopes + j * DS_ROW + warp * QW + i);
#pragma unroll
                        for (int e = 0; e < 4; e += 2) {
                            const REAL a = 1 + x[i + e] * y, c = 1 + x[i + e + 1] * y, p = reciprocal(a * c);
                            const REAL h0 = c * p - (REAL)0.5, h1 = a * p - (REAL)0.5;
                            const REAL g0 = (REAL)0.25 - h0 * h0, g1 = (REAL)0.25 - h1 * h1;
                            by_query[i + e] += s.x[e] * g0;
                            by_query[i + e + 1] += s.x[e + 1] * g1;
                            by_key += s.x[e] * g0;
                            by_key += s.x[e + 1] * g1;
                            by_unit += s.x[e] * h0;
                            by_unit += s.x[e + 1] * h1;
                        }
                    }
                    partial[(warp * STEP + j) * 32 + lane] = by_key;
                }
            }
            __syncthreads();
            const int warps = min(WARPS, (Tq - group * GROUP + QW - 1) / QW); // those that have queries
            for (int j = warp; j < STEP && j0 + j < n && there; j += WARPS) {
                REAL sum = 0;
                for (int w = 0; w < warps; w++) sum += partial[(w * STEP + j) * 32 + lane];
                sum = sum == 0 ? 0 : 4 * unit * sum;
                REAL *to = dk + (long long)(j0 + j) * D + d;
                *to = group == blockIdx.z ? sum : *to + sum;
            }
        }
        if (dq)
#pragma unroll
            for (int i = 0; i < QW; i++)
                if (there && i0 + i < Tq) dq[(long long)(i0 + i) * D + d] = by_query[i] == 0 ? 0 : 4 * unit * by_query[i];
    }
    for (int j = n + warp; j < Tk && there; j += WARPS) dk[(long long)j * D + d] = 0; // keys past the end
    __syncthreads();
    partial[warp * 32 + lane] = by_unit;
    __syncthreads();
    if (warp == 0 && there) {
        REAL sum = 0;
        for (int w = 0; w < WARPS; w++) sum += partial[w * 32 + lane];
        du[((long long)b * Z + blockIdx.z) * D + d] = -2 * sum;
    }
}
#endif

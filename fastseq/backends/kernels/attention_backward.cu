// attention_backward.cu - the gradients of attention for any dtype and any sizes, from scores formed again (Dao et al. 2022).
//
//   p = exp(s - lse), dp = (dy v^T + dweights) m, ds = p (dp - delta), delta = dy . y + dweights . weights (m: dropout)
//   dq = scale ds k, dk = scale ds^T q, dv = (p m)^T dy
// Each sum has one order and one owner: some blocks have 64 queries and walk keys for dq, others have 64 keys and walk the queries of all
// heads that share them for dk and dv. Bound by the multiplications, seven products of 64 x 64 x D for a pair of tiles.
#include "attention_tiles.cuh"

// delta of each query where weights have gradients, a warp for each.
extern "C" __global__ void __launch_bounds__(TILE_THREADS)
    attention_delta(REAL *delta, const REAL *dy, const REAL *y, const REAL *weights, const REAL *dweights, const __grid_constant__ Problem p) {
    const int lane = threadIdx.x % 32;
    const long long row = ((long long)blockIdx.x * TILE_THREADS + threadIdx.x) / 32;
    if (row >= (long long)p.B * p.heads * p.Tq) return;
    const int b = (int)(row / p.Tq / p.heads), h = (int)(row / p.Tq % p.heads), i = (int)(row % p.Tq);
    const REAL *dy_at = rows_of(dy, p.dy, b, h) + i * p.dy.row, *y_at = rows_of(y, p.y, b, h) + i * p.y.row;
    REAL sum = 0;
    for (int d = lane; d < p.Dv; d += 32) sum += dy_at[d] * y_at[d];
    for (int j = lane; j < p.Tk; j += 32) sum += dweights[row * p.Tk + j] * weights[row * p.Tk + j];
#pragma unroll
    for (int step = 16; step; step /= 2) sum += __shfl_xor_sync(0xffffffffu, sum, step);
    if (lane == 0) delta[row] = sum;
}

// ds from p and dp; nothing where the weight is zero, whatever a hidden value made of dp.
__device__ __forceinline__ REAL score_gradient(REAL p, REAL dp, REAL delta) { return p == 0 ? 0 : p * (dp - delta); }

__device__ __forceinline__ REAL shift_of(REAL lse) { return lse == -infinity() ? 0 : lse; }

struct Arrays {
    REAL *dq, *dscores, *dk, *dv;
    const REAL *q, *k, *v, *y, *dy, *lse, *delta, *dweights;
};

// delta of the queries [i, i + TILE) of a head, to shared memory: what attention_delta found, or dy . y.
__device__ __forceinline__ void give_inner(const Shared &m, const Arrays &a, const Problem &p, int b, int h, int i) {
    const int ty = threadIdx.x / 16, tx = threadIdx.x % 16;
    const REAL *dy = rows_of(a.dy, p.dy, b, h), *y = rows_of(a.y, p.y, b, h);
    for (int r = 0; r < 4; r++) {
        const int row = i + ty + 16 * r;
        REAL sum = 0;
        if (row < p.Tq && a.delta) sum = tx == 0 ? a.delta[(long long)(b * p.heads + h) * p.Tq + row] : 0;
        else if (row < p.Tq)
            for (int d = tx; d < p.Dv; d += 16) sum += dy[row * p.dy.row + d] * y[row * p.y.row + d];
        sum = row_sum(sum);
        if (tx == 0) m.inner[ty + 16 * r] = sum;
    }
}

__device__ __forceinline__ void for_queries(const Shared &m, const Arrays &a, const Problem &p, long long item) {
    const int ty = threadIdx.x / 16, tx = threadIdx.x % 16, tiles = (p.Tq + TILE - 1) / TILE, parts = greatest((p.D + TILE - 1) / TILE, 1);
    const int part = (int)(item % parts), i = (int)(tiles - 1 - item / parts % tiles) * TILE, head = (int)(item / parts / tiles);
    const int b = head / p.heads, h = head % p.heads, n_keys = keys_of(p, b);
    const REAL *q = rows_of(a.q, p.q, b, h), *k = rows_of(a.k, p.k, b, h / p.group), *v = rows_of(a.v, p.v, b, h / p.group);
    const REAL *dy = rows_of(a.dy, p.dy, b, h);
    REAL *dq = rows_of(a.dq, p.dq, b, h);
    const long long mask_at = mask_place(p, b, h), row0 = (long long)head * p.Tq;
    const Range sees = keys_seen(p, n_keys, i, least(TILE, p.Tq - i));
    REAL s[4][4], dp[4][4], o[4][4] = {}, shift[4], inner[4];
    __syncthreads();                                        // the last item's numbers are read
    give_inner(m, a, p, b, h, i);
    __syncthreads();
#pragma unroll
    for (int r = 0; r < 4; r++) {
        const int row = i + ty + 16 * r;
        shift[r] = row < p.Tq ? shift_of(a.lse[row0 + row]) : 0, inner[r] = m.inner[ty + 16 * r];
    }
    for (int j = sees.from / TILE * TILE; j < sees.to; j += TILE) {
        scores(s, m, p, q, p.q.row, k, p.k.row, mask_at, n_keys, i, j);
        tile_product(dp, m, dy + i * p.dy.row, p.dy.row, p.Tq - i, v + j * p.v.row, p.v.row, p.Tk - j, p.Dv);
#pragma unroll
        for (int r = 0; r < 4; r++)
#pragma unroll
            for (int c = 0; c < 4; c++) {
                const int row = i + ty + 16 * r, key = j + tx + 16 * c;
                const bool inside = row < p.Tq && key < p.Tk;
                if (a.dweights && inside) dp[r][c] += a.dweights[(row0 + row) * p.Tk + key];
                if (p.threshold) dp[r][c] *= dropout_of(p, head, row, key);
                s[r][c] = score_gradient(exponential(s[r][c] - shift[r]), dp[r][c], inner[r]);
                if (a.dscores && part == 0 && inside) a.dscores[(row0 + row) * p.Tk + key] = s[r][c];
            }
        tile_give(m, s);
        tile_accumulate(o, m, k + j * p.k.row, p.k.row, least(TILE, p.Tk - j), part * TILE, p.D);
    }
#pragma unroll
    for (int r = 0; r < 4; r++)
#pragma unroll
        for (int c = 0; c < 4; c++) {
            const int row = i + ty + 16 * r, d = part * TILE + tx + 16 * c;
            if (row < p.Tq && d < p.D) dq[row * p.dq.row + d] = o[r][c] * p.scale;
        }
}

// Rows of a tile are keys here, columns queries.
__device__ __forceinline__ void for_keys(const Shared &m, const Arrays &a, const Problem &p, long long item) {
    const int ty = threadIdx.x / 16, tx = threadIdx.x % 16, tiles = (p.Tk + TILE - 1) / TILE, kv_heads = p.heads / p.group;
    const int parts = greatest((greatest(p.D, p.Dv) + TILE - 1) / TILE, 1);
    const int part = (int)(item % parts), j = (int)(item / parts % tiles) * TILE, head_kv = (int)(item / parts / tiles);
    const int b = head_kv / kv_heads, kv = head_kv % kv_heads, n_keys = keys_of(p, b);
    const REAL *k = rows_of(a.k, p.k, b, kv), *v = rows_of(a.v, p.v, b, kv);
    REAL *dk = rows_of(a.dk, p.dk, b, kv), *dv = rows_of(a.dv, p.dv, b, kv);
    const Range seeing = queries_seeing(p, n_keys, j, TILE);
    REAL s[4][4], dp[4][4], for_k[4][4] = {}, for_v[4][4] = {};
    for (int h = kv * p.group; h < (kv + 1) * p.group; h++) {
        const REAL *q = rows_of(a.q, p.q, b, h), *dy = rows_of(a.dy, p.dy, b, h);
        const long long mask_at = mask_place(p, b, h), row0 = (long long)(b * p.heads + h) * p.Tq;
        for (int i = seeing.from / TILE * TILE; i < seeing.to; i += TILE) {
            __syncthreads();                                // the last tile's numbers are read
            give_inner(m, a, p, b, h, i);
            tile_product(s, m, k + j * p.k.row, p.k.row, p.Tk - j, q + i * p.q.row, p.q.row, p.Tq - i, p.D);
            tile_product(dp, m, v + j * p.v.row, p.v.row, p.Tk - j, dy + i * p.dy.row, p.dy.row, p.Tq - i, p.Dv);
            __syncthreads();                                // where there are no columns at all
#pragma unroll
            for (int c = 0; c < 4; c++) {
                const int row = i + tx + 16 * c;
                const REAL shift = row < p.Tq ? shift_of(a.lse[row0 + row]) : 0, inner = m.inner[tx + 16 * c];
#pragma unroll
                for (int r = 0; r < 4; r++) {
                    const int key = j + ty + 16 * r;
                    const REAL factor = p.threshold ? dropout_of(p, b * p.heads + h, row, key) : 1;
                    REAL w = seen(p, n_keys, row, key) ? exponential(masked(p, mask_at, row, key, s[r][c] * p.scale) - shift) : 0;
                    if (a.dweights && row < p.Tq && key < p.Tk) dp[r][c] += a.dweights[(row0 + row) * p.Tk + key];
                    dp[r][c] = score_gradient(w, dp[r][c] * factor, inner);
                    s[r][c] = w * factor;
                }
            }
            tile_give(m, s);
            tile_accumulate(for_v, m, dy + i * p.dy.row, p.dy.row, least(TILE, p.Tq - i), part * TILE, p.Dv);
            tile_give(m, dp);
            tile_accumulate(for_k, m, q + i * p.q.row, p.q.row, least(TILE, p.Tq - i), part * TILE, p.D);
        }
    }
#pragma unroll
    for (int r = 0; r < 4; r++)
#pragma unroll
        for (int c = 0; c < 4; c++) {
            const int key = j + ty + 16 * r, d = part * TILE + tx + 16 * c;
            if (key < p.Tk && d < p.D) dk[key * p.dk.row + d] = for_k[r][c] * p.scale;
            if (key < p.Tk && d < p.Dv) dv[key * p.dv.row + d] = for_v[r][c];
        }
}

// for_queries' items are the first `query_items`. Where run_if is given, nothing is done unless it holds a number other than zero.
extern "C" __global__ void __launch_bounds__(TILE_THREADS)
    attention_backward(REAL *dq, REAL *dscores, REAL *dk, REAL *dv, const REAL *q, const REAL *k, const REAL *v, const REAL *y, const REAL *dy,
                       const REAL *lse, const REAL *delta, const REAL *dweights, const int *run_if, long long query_items, long long items,
                       const __grid_constant__ Problem p) {
    FSQ_SHARED(memory);
    if (run_if && *run_if == 0) return;
    const Shared m = shared_of(memory);
    const Arrays a = {dq, dscores, dk, dv, q, k, v, y, dy, lse, delta, dweights};
    for (long long item = blockIdx.x; item < items; item += gridDim.x) {
        if (item < query_items) for_queries(m, a, p, item);
        else for_keys(m, a, p, item - query_items);
    }
}

// attention_backward.cu - the gradients of attention for any dtype and any sizes, from scores formed again (Dao et al. 2022).
//
//   p = exp(s - lse), dp = (dy v^T + dweights) m, ds = p (dp - delta), delta = dy . y + dweights . weights (m: dropout)
//   dq = scale ds k, dk = scale ds^T q, dv = (p m)^T dy
// Two kernels, so that each sum has one order and one owner: blocks of 64 queries walk keys for dq, blocks of 64 keys walk the queries of
// all heads that share them for dk and dv. Bound by the multiplications, seven products of 64 x 64 x D for a pair of blocks.
#include "attention_tiles.cuh"

// delta of each query, a warp for each; weights and dweights are given together or not at all.
extern "C" __global__ void __launch_bounds__(TILE_THREADS)
    attention_delta(REAL *delta, const REAL *dy, const REAL *y, const REAL *weights, const REAL *dweights, const int *run_if,
                    const __grid_constant__ Problem p) {
    if (run_if && *run_if == 0) return;
    const int lane = threadIdx.x % 32;
    const long long rows = (long long)p.B * p.heads * p.Tq;
    for (long long row = ((long long)blockIdx.x * TILE_THREADS + threadIdx.x) / 32; row < rows; row += gridDim.x * (TILE_THREADS / 32)) {
        const int b = (int)(row / p.Tq / p.heads), h = (int)(row / p.Tq % p.heads), i = (int)(row % p.Tq);
        const REAL *dy_at = rows_of(dy, p.dy, b, h) + i * p.dy.row, *y_at = rows_of(y, p.y, b, h) + i * p.y.row;
        REAL sum = 0;
        for (int d = lane; d < p.Dv; d += 32) sum += dy_at[d] * y_at[d];
        for (int j = lane; weights && j < p.Tk; j += 32) sum += dweights[row * p.Tk + j] * weights[row * p.Tk + j];
#pragma unroll
        for (int step = 16; step; step /= 2) sum += __shfl_xor_sync(0xffffffffu, sum, step);
        if (lane == 0) delta[row] = sum;
    }
}

// ds from p and dp; nothing where the weight is zero, whatever a hidden value made of dp.
__device__ __forceinline__ REAL score_gradient(REAL p, REAL dp, REAL delta) { return p == 0 ? 0 : p * (dp - delta); }

__device__ __forceinline__ REAL shift_of(REAL lse) { return lse == -infinity() ? 0 : lse; }

extern "C" __global__ void __launch_bounds__(TILE_THREADS)
    attention_backward_queries(REAL *dq, REAL *dscores, const REAL *q, const REAL *k, const REAL *v, const REAL *dy, const REAL *lse,
                               const REAL *delta, const REAL *dweights, const int *run_if, long long items,
                               const __grid_constant__ Problem p) {
    FSQ_SHARED(memory);
    if (run_if && *run_if == 0) return;
    const Shared m = shared_of(memory);
    const int ty = threadIdx.x / 16, tx = threadIdx.x % 16, tiles = (p.Tq + TILE - 1) / TILE, parts = greatest((p.D + TILE - 1) / TILE, 1);
    for (long long item = blockIdx.x; item < items; item += gridDim.x) {
        const int part = (int)(item % parts), i = (int)(tiles - 1 - item / parts % tiles) * TILE, head = (int)(item / parts / tiles);
        const int b = head / p.heads, h = head % p.heads, n_keys = keys_of(p, b);
        const REAL *q_head = rows_of(q, p.q, b, h), *k_head = rows_of(k, p.k, b, h / p.group), *v_head = rows_of(v, p.v, b, h / p.group);
        const REAL *dy_head = rows_of(dy, p.dy, b, h);
        REAL *dq_head = rows_of(dq, p.dq, b, h);
        const long long mask_at = mask_place(p, b, h), row0 = (long long)head * p.Tq;
        const Range sees = keys_seen(p, n_keys, i, least(TILE, p.Tq - i));
        REAL s[4][4], dp[4][4], o[4][4] = {}, shift[4], inner[4];
#pragma unroll
        for (int r = 0; r < 4; r++) {
            const int row = i + ty + 16 * r;
            shift[r] = row < p.Tq ? shift_of(lse[row0 + row]) : 0, inner[r] = row < p.Tq ? delta[row0 + row] : 0;
        }
        for (int j = sees.from / TILE * TILE; j < sees.to; j += TILE) {
            scores(s, m, p, q_head, p.q.row, k_head, p.k.row, mask_at, n_keys, i, j);
            tile_product(dp, m, dy_head + i * p.dy.row, p.dy.row, p.Tq - i, v_head + j * p.v.row, p.v.row, p.Tk - j, p.Dv);
#pragma unroll
            for (int r = 0; r < 4; r++)
#pragma unroll
                for (int c = 0; c < 4; c++) {
                    const int row = i + ty + 16 * r, key = j + tx + 16 * c;
                    const bool inside = row < p.Tq && key < p.Tk;
                    if (dweights && inside) dp[r][c] += dweights[(row0 + row) * p.Tk + key];
                    if (p.threshold) dp[r][c] *= dropout_of(p, head, row, key);
                    s[r][c] = score_gradient(exponential(s[r][c] - shift[r]), dp[r][c], inner[r]);
                    if (dscores && part == 0 && inside) dscores[(row0 + row) * p.Tk + key] = s[r][c];
                }
            tile_give(m, s);
            tile_accumulate(o, m, k_head + j * p.k.row, p.k.row, least(TILE, p.Tk - j), part * TILE, p.D);
        }
#pragma unroll
        for (int r = 0; r < 4; r++)
#pragma unroll
            for (int c = 0; c < 4; c++) {
                const int row = i + ty + 16 * r, d = part * TILE + tx + 16 * c;
                if (row < p.Tq && d < p.D) dq_head[row * p.dq.row + d] = o[r][c] * p.scale;
            }
    }
}

extern "C" __global__ void __launch_bounds__(TILE_THREADS)
    attention_backward_keys(REAL *dk, REAL *dv, const REAL *q, const REAL *k, const REAL *v, const REAL *dy, const REAL *lse,
                            const REAL *delta, const REAL *dweights, const int *run_if, long long items,
                            const __grid_constant__ Problem p) {
    FSQ_SHARED(memory);
    if (run_if && *run_if == 0) return;
    const Shared m = shared_of(memory);
    const int ty = threadIdx.x / 16, tx = threadIdx.x % 16, tiles = (p.Tk + TILE - 1) / TILE, kv_heads = p.heads / p.group;
    const int parts = greatest((greatest(p.D, p.Dv) + TILE - 1) / TILE, 1);
    for (long long item = blockIdx.x; item < items; item += gridDim.x) {
        const int part = (int)(item % parts), j = (int)(item / parts % tiles) * TILE, head_kv = (int)(item / parts / tiles);
        const int b = head_kv / kv_heads, kv = head_kv % kv_heads, n_keys = keys_of(p, b);
        const REAL *k_head = rows_of(k, p.k, b, kv), *v_head = rows_of(v, p.v, b, kv);
        REAL *dk_head = rows_of(dk, p.dk, b, kv), *dv_head = rows_of(dv, p.dv, b, kv);
        const Range seeing = queries_seeing(p, n_keys, j, TILE);
        REAL s[4][4], dp[4][4], for_k[4][4] = {}, for_v[4][4] = {};
        for (int h = kv * p.group; h < (kv + 1) * p.group; h++) {
            const REAL *q_head = rows_of(q, p.q, b, h), *dy_head = rows_of(dy, p.dy, b, h);
            const long long mask_at = mask_place(p, b, h), row0 = (long long)(b * p.heads + h) * p.Tq;
            for (int i = seeing.from / TILE * TILE; i < seeing.to; i += TILE) {
                // Rows of a tile are keys here, columns queries.
                tile_product(s, m, k_head + j * p.k.row, p.k.row, p.Tk - j, q_head + i * p.q.row, p.q.row, p.Tq - i, p.D);
                tile_product(dp, m, v_head + j * p.v.row, p.v.row, p.Tk - j, dy_head + i * p.dy.row, p.dy.row, p.Tq - i, p.Dv);
#pragma unroll
                for (int c = 0; c < 4; c++) {
                    const int row = i + tx + 16 * c;
                    const REAL shift = row < p.Tq ? shift_of(lse[row0 + row]) : 0, inner = row < p.Tq ? delta[row0 + row] : 0;
#pragma unroll
                    for (int r = 0; r < 4; r++) {
                        const int key = j + ty + 16 * r;
                        const REAL factor = p.threshold ? dropout_of(p, b * p.heads + h, row, key) : 1;
                        REAL w = seen(p, n_keys, row, key) ? exponential(masked(p, mask_at, row, key, s[r][c] * p.scale) - shift) : 0;
                        if (dweights && row < p.Tq && key < p.Tk) dp[r][c] += dweights[(row0 + row) * p.Tk + key];
                        dp[r][c] = score_gradient(w, dp[r][c] * factor, inner);
                        s[r][c] = w * factor;
                    }
                }
                tile_give(m, s);
                tile_accumulate(for_v, m, dy_head + i * p.dy.row, p.dy.row, least(TILE, p.Tq - i), part * TILE, p.Dv);
                tile_give(m, dp);
                tile_accumulate(for_k, m, q_head + i * p.q.row, p.q.row, least(TILE, p.Tq - i), part * TILE, p.D);
            }
        }
#pragma unroll
        for (int r = 0; r < 4; r++)
#pragma unroll
            for (int c = 0; c < 4; c++) {
                const int key = j + ty + 16 * r, d = part * TILE + tx + 16 * c;
                if (key < p.Tk && d < p.D) dk_head[key * p.dk.row + d] = for_k[r][c] * p.scale;
                if (key < p.Tk && d < p.Dv) dv_head[key * p.dv.row + d] = for_v[r][c];
            }
    }
}

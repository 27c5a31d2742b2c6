// attention_backward.cu - the gradients of attention for any dtype and any sizes, from scores formed again (Dao et al. 2022).
//
//   p = exp(s - lse), dp = (dy v^T + dweights) m, ds = p (dp - delta), delta = dy . y + dweights . weights (m: dropout)
//   dq = scale ds k, dk = scale ds^T q, dv = (p m)^T dy
// Two kernels, so that each sum has one order and one owner: blocks of 64 queries walk keys for dq, blocks of 64 keys walk the queries of
// all heads that share them for dk and dv. Bound by the multiplications, seven products of 64 x 64 x D for a pair of blocks.
#include "attention_tiles.cuh"

// delta of each query, a warp for each; weights and dweights are given together or not at all.
extern "C" __global__ void __launch_bounds__(TILE_THREADS)
    attention_delta(REAL *delta, ATTENTION_ARRAY(const REAL, dy), ATTENTION_ARRAY(const REAL, y), const REAL *weights, const REAL *dweights,
                    const int *run_if, int rows, int heads, int Tq, int Tk, int Dv) {
    if (run_if && *run_if == 0) return;
    const int lane = threadIdx.x % 32;
    for (long long row = ((long long)blockIdx.x * TILE_THREADS + threadIdx.x) / 32; row < rows; row += gridDim.x * (TILE_THREADS / 32)) {
        const int b = (int)(row / Tq / heads), h = (int)(row / Tq % heads), i = (int)(row % Tq);
        const REAL *dy_at = ATTENTION_HEAD(dy, b, h) + i * dy_row, *y_at = ATTENTION_HEAD(y, b, h) + i * y_row;
        REAL sum = 0;
        for (int d = lane; d < Dv; d += 32) sum += dy_at[d] * y_at[d];
        for (int j = lane; weights && j < Tk; j += 32) sum += dweights[row * Tk + j] * weights[row * Tk + j];
#pragma unroll
        for (int step = 16; step; step /= 2) sum += __shfl_xor_sync(0xffffffffu, sum, step);
        if (lane == 0) delta[row] = sum;
    }
}

// ds from p and dp; nothing where the weight is zero, whatever a hidden value made of dp.
__device__ __forceinline__ REAL score_gradient(REAL p, REAL dp, REAL delta) { return p == 0 ? 0 : p * (dp - delta); }

__device__ __forceinline__ REAL shift_of(REAL lse) { return lse == -infinity() ? 0 : lse; }

extern "C" __global__ void __launch_bounds__(TILE_THREADS)
    attention_backward_queries(ATTENTION_ARRAY(REAL, dq), REAL *dscores, ATTENTION_ARRAY(const REAL, q), ATTENTION_ARRAY(const REAL, k),
                               ATTENTION_ARRAY(const REAL, v), ATTENTION_ARRAY(const REAL, dy), const REAL *lse, const REAL *delta,
                               const REAL *dweights, const int *run_if, long long items, ATTENTION_ARGUMENTS) {
    FSQ_SHARED(memory);
    if (run_if && *run_if == 0) return;
    const Problem p = ATTENTION_PROBLEM;
    const Shared m = shared_of(memory);
    const int ty = threadIdx.x / 16, tx = threadIdx.x % 16, tiles = (Tq + TILE - 1) / TILE, parts = greatest((D + TILE - 1) / TILE, 1);
    for (long long item = blockIdx.x; item < items; item += gridDim.x) {
        const int part = (int)(item % parts), i = (int)(tiles - 1 - item / parts % tiles) * TILE, head = (int)(item / parts / tiles);
        const int b = head / heads, h = head % heads, n_keys = keys_of(p, b);
        const REAL *q_head = ATTENTION_HEAD(q, b, h), *k_head = ATTENTION_HEAD(k, b, h / group), *v_head = ATTENTION_HEAD(v, b, h / group);
        const REAL *dy_head = ATTENTION_HEAD(dy, b, h);
        REAL *dq_head = ATTENTION_HEAD(dq, b, h);
        const long long mask_at = mask_place(p, b, h), row0 = (long long)head * Tq;
        const Range sees = keys_seen(p, n_keys, i, least(TILE, Tq - i));
        REAL s[4][4], dp[4][4], o[4][4] = {}, shift[4], inner[4];
#pragma unroll
        for (int r = 0; r < 4; r++) {
            const int row = i + ty + 16 * r;
            shift[r] = row < Tq ? shift_of(lse[row0 + row]) : 0, inner[r] = row < Tq ? delta[row0 + row] : 0;
        }
        for (int j = sees.from / TILE * TILE; j < sees.to; j += TILE) {
            scores(s, m, p, q_head, q_row, k_head, k_row, mask_at, n_keys, i, j);
            tile_product(dp, m, dy_head + i * dy_row, dy_row, Tq - i, v_head + j * v_row, v_row, Tk - j, Dv);
#pragma unroll
            for (int r = 0; r < 4; r++)
#pragma unroll
                for (int c = 0; c < 4; c++) {
                    const int row = i + ty + 16 * r, key = j + tx + 16 * c;
                    const bool inside = row < Tq && key < Tk;
                    if (dweights && inside) dp[r][c] += dweights[(row0 + row) * Tk + key];
                    if (threshold) dp[r][c] *= dropout_of(p, head, row, key);
                    s[r][c] = score_gradient(exponential(s[r][c] - shift[r]), dp[r][c], inner[r]);
                    if (dscores && part == 0 && inside) dscores[(row0 + row) * Tk + key] = s[r][c];
                }
            tile_give(m, s);
            tile_accumulate(o, m, k_head + j * k_row, k_row, least(TILE, Tk - j), part * TILE, D);
        }
#pragma unroll
        for (int r = 0; r < 4; r++)
#pragma unroll
            for (int c = 0; c < 4; c++) {
                const int row = i + ty + 16 * r, d = part * TILE + tx + 16 * c;
                if (row < Tq && d < D) dq_head[row * dq_row + d] = o[r][c] * scale;
            }
    }
}

extern "C" __global__ void __launch_bounds__(TILE_THREADS)
    attention_backward_keys(ATTENTION_ARRAY(REAL, dk), ATTENTION_ARRAY(REAL, dv), ATTENTION_ARRAY(const REAL, q), ATTENTION_ARRAY(const REAL, k),
                            ATTENTION_ARRAY(const REAL, v), ATTENTION_ARRAY(const REAL, dy), const REAL *lse, const REAL *delta,
                            const REAL *dweights, const int *run_if, long long items, ATTENTION_ARGUMENTS) {
    FSQ_SHARED(memory);
    if (run_if && *run_if == 0) return;
    const Problem p = ATTENTION_PROBLEM;
    const Shared m = shared_of(memory);
    const int ty = threadIdx.x / 16, tx = threadIdx.x % 16, tiles = (Tk + TILE - 1) / TILE, kv_heads = heads / group;
    const int parts = greatest((greatest(D, Dv) + TILE - 1) / TILE, 1);
    for (long long item = blockIdx.x; item < items; item += gridDim.x) {
        const int part = (int)(item % parts), j = (int)(item / parts % tiles) * TILE, head_kv = (int)(item / parts / tiles);
        const int b = head_kv / kv_heads, kv = head_kv % kv_heads, n_keys = keys_of(p, b);
        const REAL *k_head = ATTENTION_HEAD(k, b, kv), *v_head = ATTENTION_HEAD(v, b, kv);
        REAL *dk_head = ATTENTION_HEAD(dk, b, kv), *dv_head = ATTENTION_HEAD(dv, b, kv);
        const Range seeing = queries_seeing(p, n_keys, j, TILE);
        REAL s[4][4], dp[4][4], for_k[4][4] = {}, for_v[4][4] = {};
        for (int h = kv * group; h < (kv + 1) * group; h++) {
            const REAL *q_head = ATTENTION_HEAD(q, b, h), *dy_head = ATTENTION_HEAD(dy, b, h);
            const long long mask_at = mask_place(p, b, h), row0 = (long long)(b * heads + h) * Tq;
            for (int i = seeing.from / TILE * TILE; i < seeing.to; i += TILE) {
                // Rows of a tile are keys here, columns queries.
                tile_product(s, m, k_head + j * k_row, k_row, Tk - j, q_head + i * q_row, q_row, Tq - i, D);
                tile_product(dp, m, v_head + j * v_row, v_row, Tk - j, dy_head + i * dy_row, dy_row, Tq - i, Dv);
#pragma unroll
                for (int c = 0; c < 4; c++) {
                    const int row = i + tx + 16 * c;
                    const REAL shift = row < Tq ? shift_of(lse[row0 + row]) : 0, inner = row < Tq ? delta[row0 + row] : 0;
#pragma unroll
                    for (int r = 0; r < 4; r++) {
                        const int key = j + ty + 16 * r;
                        const REAL factor = threshold ? dropout_of(p, b * heads + h, row, key) : 1;
                        REAL w = seen(p, n_keys, row, key) ? exponential(masked(p, mask_at, row, key, s[r][c] * scale) - shift) : 0;
                        if (dweights && row < Tq && key < Tk) dp[r][c] += dweights[(row0 + row) * Tk + key];
                        dp[r][c] = score_gradient(w, dp[r][c] * factor, inner);
                        s[r][c] = w * factor;
                    }
                }
                tile_give(m, s);
                tile_accumulate(for_v, m, dy_head + i * dy_row, dy_row, least(TILE, Tq - i), part * TILE, Dv);
                tile_give(m, dp);
                tile_accumulate(for_k, m, q_head + i * q_row, q_row, least(TILE, Tq - i), part * TILE, D);
            }
        }
#pragma unroll
        for (int r = 0; r < 4; r++)
#pragma unroll
            for (int c = 0; c < 4; c++) {
                const int key = j + ty + 16 * r, d = part * TILE + tx + 16 * c;
                if (key < Tk && d < D) dk_head[key * dk_row + d] = for_k[r][c] * scale;
                if (key < Tk && d < Dv) dv_head[key * dv_row + d] = for_v[r][c];
            }
    }
}

// attention_forward.cu - softmax(scale q k^T + mask) v for any dtype and any sizes (Vaswani et al. 2017).
//
// A block of 64 queries walks the keys that it sees in tiles of 64 with a running maximum and sum (Milakov & Gimelshein 2018, Dao et al.
// 2022), so nothing of size (Tq, Tk) is stored. Fused: scale, mask, softmax, dropout. More than 64 columns of v are done by further
// blocks, which form the scores again. Bound by the multiplications, 2 (D + Dv) for a pair of a query and a key, at the rate of
// attention_tiles.cuh. Numbers beyond the finite ones are exact here: a weight of zero takes nothing from a value of NaN.
#include "attention_tiles.cuh"

// Where run_if is given, nothing is done unless it holds a number other than zero.
extern "C" __global__ void __launch_bounds__(TILE_THREADS)
    attention_forward(REAL *y, REAL *lse, REAL *weights, const REAL *q, const REAL *k, const REAL *v, const int *run_if, long long items,
                      const __grid_constant__ Problem p) {
    FSQ_SHARED(memory);
    if (run_if && *run_if == 0) return;
    const Shared m = shared_of(memory);
    const int ty = threadIdx.x / 16, tx = threadIdx.x % 16, tiles = (p.Tq + TILE - 1) / TILE, parts = greatest((p.Dv + TILE - 1) / TILE, 1);
    for (long long item = blockIdx.x; item < items; item += gridDim.x) {
        const int part = (int)(item % parts), i = (int)(tiles - 1 - item / parts % tiles) * TILE, head = (int)(item / parts / tiles);
        const int b = head / p.heads, h = head % p.heads, n_keys = keys_of(p, b);
        const REAL *q_head = rows_of(q, p.q, b, h), *k_head = rows_of(k, p.k, b, h / p.group), *v_head = rows_of(v, p.v, b, h / p.group);
        REAL *y_head = rows_of(y, p.y, b, h);
        const long long mask_at = mask_place(p, b, h);
        const Range sees = keys_seen(p, n_keys, i, least(TILE, p.Tq - i));
        REAL s[4][4], o[4][4] = {}, most[4], sum[4], inverse[4];
#pragma unroll
        for (int r = 0; r < 4; r++) most[r] = -infinity(), sum[r] = 0;
        for (int j = sees.from / TILE * TILE; j < sees.to; j += TILE) {
            scores(s, m, p, q_head, p.q.row, k_head, p.k.row, mask_at, n_keys, i, j);
#pragma unroll
            for (int r = 0; r < 4; r++) {
                REAL now = most[r];
#pragma unroll
                for (int c = 0; c < 4; c++) now = s[r][c] > now ? s[r][c] : now;
                now = row_max(now);
                const REAL shift = now == -infinity() ? 0 : now, factor = exponential(most[r] - shift);
                REAL added = 0;
#pragma unroll
                for (int c = 0; c < 4; c++) {
                    s[r][c] = exponential(s[r][c] - shift);
                    added += s[r][c];
                    o[r][c] *= factor;
                    if (p.threshold) s[r][c] *= dropout_of(p, head, i + ty + 16 * r, j + tx + 16 * c);
                }
                sum[r] = sum[r] * factor + row_sum(added);
                most[r] = now;
            }
            tile_give(m, s);
            tile_accumulate(o, m, v_head + j * p.v.row, p.v.row, least(TILE, p.Tk - j), part * TILE, p.Dv);
        }
#pragma unroll
        for (int r = 0; r < 4; r++) {
            const int row = i + ty + 16 * r;
            inverse[r] = sum[r] == 0 ? 0 : 1 / sum[r];
            if (row >= p.Tq) continue;
#pragma unroll
            for (int c = 0; c < 4; c++) {
                const int d = part * TILE + tx + 16 * c;
                if (d < p.Dv) y_head[row * p.y.row + d] = o[r][c] * inverse[r];
            }
            if (lse && part == 0 && tx == 0) lse[(long long)head * p.Tq + row] = sum[r] == 0 ? -infinity() : most[r] + logarithm(sum[r]);
        }
        if (!weights || part > 0) continue;
        // Scores again, now that maxima and sums are known; the array came with zeros.
        for (int j = sees.from / TILE * TILE; j < sees.to; j += TILE) {
            scores(s, m, p, q_head, p.q.row, k_head, p.k.row, mask_at, n_keys, i, j);
#pragma unroll
            for (int r = 0; r < 4; r++)
#pragma unroll
                for (int c = 0; c < 4; c++) {
                    const int row = i + ty + 16 * r, key = j + tx + 16 * c;
                    if (row >= p.Tq || key >= p.Tk) continue;
                    REAL w = exponential(s[r][c] - (most[r] == -infinity() ? 0 : most[r])) * inverse[r];
                    weights[((long long)head * p.Tq + row) * p.Tk + key] = p.threshold ? w * dropout_of(p, head, row, key) : w;
                }
        }
    }
}

// attention_backward_mma.cu - the gradients of attention by tensor cores, from operands that attention_prepare.cu has laid out.
//
//   p = exp(s - lse), dp = dy v^T m, ds = p (dp - delta); dq = scale ds k, dk = ds^T (scale q), dv = (p m)^T dy  (m: dropout)
// The method of FlashAttention-2 (Dao 2023), but with a kernel for queries and one for keys: every sum has one owner and one order, for
// seven products of tiles instead of five. Both are the forward pass with other names: a warp keeps rows of two operands, the other side
// streams by in two stages, and p and ds go from one product to the next in registers. Bound by the tensor cores: 6 DIM and 8 DIM FLOP
// for each pair of a query and a key.
#include "attention_hide.cuh"

enum { STAGE = 2 * COLUMNS * DIM };

__device__ __forceinline__ void clear(float (&o)[ROW_TILES][OUT_TILES][4]) {
#pragma unroll
    for (int m = 0; m < ROW_TILES; m++)
#pragma unroll
        for (int n = 0; n < OUT_TILES; n++)
#pragma unroll
            for (int e = 0; e < 4; e++) o[m][n][e] = 0;
}

#if SIDE == 0
extern "C" __global__ void __launch_bounds__(THREADS, BLOCKS)
    attention_backward_queries_mma(float *dq, float *dscores, const Element *q, const Element *k, const Element *v, const Element *dy,
                                   const float2 *stats, const int *special, const __grid_constant__ Problem p) {
    FSQ_SHARED(memory);
    if (*special) return;
    const int warp = threadIdx.x / 32, g = threadIdx.x % 32 / 4, t = threadIdx.x % 4, tiles = (p.Tq + ROWS - 1) / ROWS;
    const Turn turn = turn_of(blockIdx.x, tiles, p.B * p.heads, p.heads_k);     // causal queries see more keys the later they are
    const int i = (tiles - 1 - turn.tile) * ROWS, head = turn.head, b = head / p.heads, h = head % p.heads;
    const int n_keys = keys_of(p, b), first = warp * WARP_ROWS;
    Element *q_tile = (Element *)memory, *dy_tile = q_tile + ROWS * DIM, *kv = dy_tile + ROWS * DIM;
    const long long row0 = (long long)head * p.rows_q + i, kv_at = (long long)(b * (p.heads / p.group) + h / p.group) * p.rows_k * DIM;
    k += kv_at, v += kv_at;
    const Range sees = keys_seen(p, n_keys, i, least(ROWS, p.Tq - i));
    const int from = sees.from / COLUMNS * COLUMNS;
    float o[ROW_TILES][OUT_TILES][4];
    float2 stat[ROW_TILES][2];
    clear(o);
#pragma unroll
    for (int m = 0; m < ROW_TILES; m++)
#pragma unroll
        for (int half = 0; half < 2; half++) stat[m][half] = stats[row0 + first + 16 * m + 8 * half + g];
    if (from < sees.to) {
        copy_tile(q_tile, q + row0 * DIM, ROWS);
        copy_tile(dy_tile, dy + row0 * DIM, ROWS);
        copy_tile(kv, k + (long long)from * DIM, COLUMNS);
        copy_tile(kv + COLUMNS * DIM, v + (long long)from * DIM, COLUMNS);
        cp_async_commit();
    }
    int stage = 0;
    for (int j = from; j < sees.to; j += COLUMNS, stage ^= 1) {
        const Element *k_tile = kv + stage * STAGE, *v_tile = k_tile + COLUMNS * DIM;
        cp_async_wait<0>();
        __syncthreads();                                    // this stage is here, and nobody reads the other one any more
        if (j + COLUMNS < sees.to) {
            Element *next = kv + (stage ^ 1) * STAGE;
            copy_tile(next, k + (long long)(j + COLUMNS) * DIM, COLUMNS);
            copy_tile(next + COLUMNS * DIM, v + (long long)(j + COLUMNS) * DIM, COLUMNS);
            cp_async_commit();
        }
        float s[ROW_TILES][SCORE_TILES][4], dp[ROW_TILES][SCORE_TILES][4];
        product_scores(s, q_tile, first, k_tile);
        const Pairs<false> pairs = {p, n_keys, i + first, j, EXTRAS ? mask_place(p, b, h) : 0, head};
        pairs.hide(s, all_seen(p, n_keys, i + first, WARP_ROWS, j, COLUMNS));
        product_scores(dp, dy_tile, first, v_tile);
#pragma unroll
        for (int m = 0; m < ROW_TILES; m++)
#pragma unroll
            for (int n = 0; n < SCORE_TILES; n++) {
                if (EXTRAS && p.threshold) pairs.drop(dp[m][n], m, n);
#pragma unroll
                for (int e = 0; e < 4; e++) {
                    s[m][n][e] = weight_of(s[m][n][e], stat[m][e / 2].x) * (dp[m][n][e] - stat[m][e / 2].y);
                    const int row = i + first + 16 * m + 8 * (e / 2) + g, key = j + 8 * n + 2 * t + e % 2;
                    if (EXTRAS && dscores && row < p.Tq && key < p.Tk) dscores[((long long)head * p.Tq + row) * p.Tk + key] = s[m][n][e];
                }
            }
        Weights w;
        give(w, s);
        product_sum(o, w, k_tile);
    }
    float *dq_head = rows_of(dq, p.dq, b, h);
#pragma unroll
    for (int m = 0; m < ROW_TILES; m++)
#pragma unroll
        for (int half = 0; half < 2; half++) {
            const int row = i + first + 16 * m + 8 * half + g;
            if (row < p.Tq) store_row(dq_head + row * p.dq.row, o[m], half, p.scale, p.D, p.wide & WIDE_DQ);
        }
}
#else
// Keys are the rows here, queries the columns of a tile of scores, of all heads that share the keys. SIDE 1: dk and dv; 2: dv and 3: dk
// alone, where registers do not hold the sums of both.
enum { FOR_K = SIDE != 2, FOR_V = SIDE != 3 };
extern "C" __global__ void __launch_bounds__(THREADS, BLOCKS)
    attention_backward_keys_mma(float *dk, float *dv, const Element *q, const Element *k, const Element *v, const Element *dy,
                                const float2 *stats, const int *special, const __grid_constant__ Problem p) {
    FSQ_SHARED(memory);
    if (*special) return;
    const int warp = threadIdx.x / 32, g = threadIdx.x % 32 / 4, t = threadIdx.x % 4, tiles = (p.Tk + ROWS - 1) / ROWS, kv_heads = p.heads / p.group;
    const Turn mine = turn_of(blockIdx.x, tiles, p.B * kv_heads, p.heads_q);    // causal keys are seen by more queries the earlier they are
    const int j = mine.tile * ROWS, head_kv = mine.head, b = head_kv / kv_heads, kv = head_kv % kv_heads;
    const int n_keys = keys_of(p, b), first = warp * WARP_ROWS;
    Element *k_tile = (Element *)memory, *v_tile = k_tile + ROWS * DIM, *stages = v_tile + ROWS * DIM;
    float2 *stat_stages = (float2 *)(stages + 2 * STAGE);
    const Range seeing = queries_seeing(p, n_keys, j, ROWS);
    const int from = seeing.from / COLUMNS * COLUMNS, each = seeing.from < seeing.to ? (seeing.to - from + COLUMNS - 1) / COLUMNS : 0;
    const int head0 = b * p.heads + kv * p.group;
    const auto fetch = [&](int turn, int stage) {
        const long long row = (long long)(head0 + turn / each) * p.rows_q + from + turn % each * COLUMNS;
        copy_tile(stages + stage * STAGE, q + row * DIM, COLUMNS);
        copy_tile(stages + stage * STAGE + COLUMNS * DIM, dy + row * DIM, COLUMNS);
        if (threadIdx.x < COLUMNS / 2) cp_async_16(stat_stages + stage * COLUMNS + 2 * threadIdx.x, stats + row + 2 * threadIdx.x);
        cp_async_commit();
    };
    float for_k[ROW_TILES][OUT_TILES][4], for_v[ROW_TILES][OUT_TILES][4];
    clear(for_k);
    clear(for_v);
    if (each > 0) {
        const long long row = (long long)head_kv * p.rows_k + j;
        copy_tile(k_tile, k + row * DIM, ROWS);
        copy_tile(v_tile, v + row * DIM, ROWS);
        fetch(0, 0);
    }
    for (int turn = 0; turn < each * p.group; turn++) {
        const int stage = turn & 1, i = from + turn % each * COLUMNS, h = kv * p.group + turn / each;
        const Element *q_tile = stages + stage * STAGE, *dy_tile = q_tile + COLUMNS * DIM;
        const float2 *stat = stat_stages + stage * COLUMNS + 2 * t;
        cp_async_wait<0>();
        __syncthreads();                                    // this stage is here, and nobody reads the other one any more
        if (turn + 1 < each * p.group) fetch(turn + 1, stage ^ 1);
        float s[ROW_TILES][SCORE_TILES][4], dp[ROW_TILES][SCORE_TILES][4];
        product_scores(s, k_tile, first, q_tile);
        const Pairs<true> pairs = {p, n_keys, j + first, i, EXTRAS ? mask_place(p, b, h) : 0, b * p.heads + h};
        pairs.hide(s, all_seen(p, n_keys, i, COLUMNS, j + first, WARP_ROWS));
        if (FOR_K) product_scores(dp, v_tile, first, dy_tile);
        Weights w;
#pragma unroll
        for (int n = 0; n < SCORE_TILES; n++) {
            const float2 x = stat[8 * n], y = stat[8 * n + 1];
#pragma unroll
            for (int m = 0; m < ROW_TILES; m++) {
                float kept[4] = {1, 1, 1, 1};
                if (EXTRAS && p.threshold) pairs.drop(kept, m, n);
#pragma unroll
                for (int e = 0; e < 4; e++) {
                    const float weight = weight_of(s[m][n][e], e % 2 ? y.x : x.x);
                    const float given = EXTRAS ? dp[m][n][e] * kept[e] : dp[m][n][e];
                    if (FOR_K) dp[m][n][e] = weight * (given - (e % 2 ? y.y : x.y));
                    s[m][n][e] = EXTRAS ? weight * kept[e] : weight;
                }
            }
        }
        if (FOR_V) {
            give(w, s);
            product_sum(for_v, w, dy_tile);
        }
        if (FOR_K) {
            give(w, dp);
            product_sum(for_k, w, q_tile);
        }
    }
    float *dk_head = rows_of(dk, p.dk, b, kv), *dv_head = rows_of(dv, p.dv, b, kv);
#pragma unroll
    for (int m = 0; m < ROW_TILES; m++)
#pragma unroll
        for (int half = 0; half < 2; half++) {
            const int row = j + first + 16 * m + 8 * half + g;
            if (row >= p.Tk) continue;
            if (FOR_K) store_row(dk_head + row * p.dk.row, for_k[m], half, 1, p.D, p.wide & WIDE_DK);
            if (FOR_V) store_row(dv_head + row * p.dv.row, for_v[m], half, 1, p.Dv, p.wide & WIDE_DV);
        }
}
#endif

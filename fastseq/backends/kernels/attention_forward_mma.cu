// attention_forward_mma.cu - softmax(scale q k^T + mask) v by tensor cores, of keys and values that attention_prepare.cu has laid
// out; queries, which a block reads once, are rounded on the way to shared memory.
//
// The method of FlashAttention-2 (Dao 2023): a block keeps rows of q, each warp 16 ROW_TILES of them, and walks the keys that they see;
// weights go from one product to the next in registers. Two stages of keys and values arrive by asynchronous copies. Fused: mask,
// softmax, dropout; tiles that nobody sees are not computed, and only tiles at an edge are looked at number by number. Blocks with the
// most keys come first. Bound by the tensor cores: 4 DIM FLOP for each pair of a query and a key.
#include "attention_hide.cuh"
#include "attention_pieces.cuh"

// The block's rows of q, from row i on, scaled and rounded, to shared memory.
__device__ __forceinline__ void load_queries(Element *tile, const float *rows, const Problem &p, int i) {
#pragma unroll 4
    for (int at = threadIdx.x; at < ROWS * PIECES; at += THREADS) {
        const int row = at / PIECES, piece = at % PIECES;
        float numbers[PER_PIECE] = {};
        if (i + row < p.Tq) load_piece(numbers, rows + (i + row) * p.q.row, piece * PER_PIECE, p.D, p.wide & WIDE_Q);
#pragma unroll
        for (int e = 0; e < PER_PIECE; e++) numbers[e] *= p.scale;
        store_piece(tile + row * DIM + (piece ^ swizzle(row)) * PER_PIECE, numbers);
    }
}

extern "C" __global__ void __launch_bounds__(THREADS, BLOCKS)
    attention_forward_mma(float *y, float *lse, const float *q, const Element *k, const Element *v, const int *special,
                          const __grid_constant__ Problem p) {
    FSQ_SHARED(memory);
    if (*special) return;
    const int warp = threadIdx.x / 32, g = threadIdx.x % 32 / 4, t = threadIdx.x % 4, tiles = (p.Tq + ROWS - 1) / ROWS;
    const Turn turn = turn_of(blockIdx.x, tiles, p.B * p.heads, p.heads_k);     // causal queries see more keys the later they are
    const int i = (tiles - 1 - turn.tile) * ROWS, head = turn.head, b = head / p.heads, h = head % p.heads;
    const int n_keys = keys_of(p, b), first = warp * WARP_ROWS;
    Element *q_tile = (Element *)memory, *kv = q_tile + ROWS * DIM;     // a stage: COLUMNS rows of k, then of v
    const long long kv_at = (long long)(b * (p.heads / p.group) + h / p.group) * p.rows_k * DIM;
    k += kv_at, v += kv_at;
    const Range sees = keys_seen(p, n_keys, i, least(ROWS, p.Tq - i));
    const int from = sees.from / COLUMNS * COLUMNS;

    float o[ROW_TILES][OUT_TILES][4], most[ROW_TILES][2], sum[ROW_TILES][2];
#pragma unroll
    for (int m = 0; m < ROW_TILES; m++) {
        most[m][0] = most[m][1] = -infinity(), sum[m][0] = sum[m][1] = 0;
#pragma unroll
        for (int n = 0; n < OUT_TILES; n++)
#pragma unroll
            for (int e = 0; e < 4; e++) o[m][n][e] = 0;
    }
    if (from < sees.to) {
        copy_tile(kv, k + (long long)from * DIM, COLUMNS);
        copy_tile(kv + COLUMNS * DIM, v + (long long)from * DIM, COLUMNS);
        cp_async_commit();
        load_queries(q_tile, rows_of(q, p.q, b, h), p, i);
    }
    int stage = 0;
    for (int j = from; j < sees.to; j += COLUMNS, stage ^= 1) {
        const Element *k_tile = kv + stage * 2 * COLUMNS * DIM, *v_tile = k_tile + COLUMNS * DIM;
        cp_async_wait<0>();
        __syncthreads();                                    // this stage is here, and nobody reads the other one any more
        if (j + COLUMNS < sees.to) {
            Element *next = kv + (stage ^ 1) * 2 * COLUMNS * DIM;
            copy_tile(next, k + (long long)(j + COLUMNS) * DIM, COLUMNS);
            copy_tile(next + COLUMNS * DIM, v + (long long)(j + COLUMNS) * DIM, COLUMNS);
            cp_async_commit();
        }
        float s[ROW_TILES][SCORE_TILES][4];
        product_scores(s, q_tile, first, k_tile);
        const Pairs<false> pairs = {p, n_keys, i + first, j, EXTRAS ? mask_place(p, b, h) : 0, head};
        pairs.hide(s, all_seen(p, n_keys, i + first, WARP_ROWS, j, COLUMNS));
        float factor[ROW_TILES][2];
        bool rose = false;
#pragma unroll
        for (int m = 0; m < ROW_TILES; m++)
#pragma unroll
            for (int half = 0; half < 2; half++) {
                float now = most[m][half];
#pragma unroll
                for (int n = 0; n < SCORE_TILES; n++) now = fmaxf(now, fmaxf(s[m][n][2 * half], s[m][n][2 * half + 1]));
                now = quad_max(now);
                const float shift = now == -infinity() ? 0 : now;
                factor[m][half] = weight_of(most[m][half], shift);
                rose |= most[m][half] < now;
                most[m][half] = now;
                float added = 0;
#pragma unroll
                for (int n = 0; n < SCORE_TILES; n++)
#pragma unroll
                    for (int e = 2 * half; e < 2 * half + 2; e++) {
                        s[m][n][e] = weight_of(s[m][n][e], shift);
                        added += s[m][n][e];
                    }
                sum[m][half] = sum[m][half] * factor[m][half] + added;
            }
        if (__any_sync(0xffffffffu, rose)) {
#pragma unroll
            for (int m = 0; m < ROW_TILES; m++)
#pragma unroll
                for (int n = 0; n < OUT_TILES; n++)
#pragma unroll
                    for (int e = 0; e < 4; e++) o[m][n][e] *= factor[m][e / 2];
        }
        if (EXTRAS && p.threshold) {
#pragma unroll
            for (int m = 0; m < ROW_TILES; m++)
#pragma unroll
                for (int n = 0; n < SCORE_TILES; n++) pairs.drop(s[m][n], m, n);
        }
        Weights w;
        give(w, s);
        product_sum(o, w, v_tile);
    }

    float *y_head = rows_of(y, p.y, b, h);
#pragma unroll
    for (int m = 0; m < ROW_TILES; m++)
#pragma unroll
        for (int half = 0; half < 2; half++) {
            const int row = i + first + 16 * m + 8 * half + g;
            const float total = quad_sum(sum[m][half]);
            if (row >= p.Tq) continue;
            store_row(y_head + row * p.y.row, o[m], half, total == 0 ? 0 : 1 / total, p.Dv, p.wide & WIDE_Y);
            if (lse && t == 0) lse[(long long)head * p.Tq + row] = total == 0 ? -infinity() : most[m][half] + logf(total);
        }
}

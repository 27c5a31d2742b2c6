/* recurrent.c - one step of an RNN, LSTM or GRU for a block of VL hidden units, in registers from the products to h_t.
 *
 * Packed weights: for each block of VL units a panel that begins with what the sums start from (the biases), then a row for each
 * element of x and of h; a row is [gate 0: VL | gate 1: VL | ...]. A tile of batch rows keeps the sums of its units in registers
 * over the whole chain of k and goes through the cell (rnn.c, lstm.c, gru.c) right there: only h, c and, in training, what
 * backward needs touch memory. Bound by FLOP from 4 rows on; below by the bytes of the panels, hence blocks side by side.
 *
 * Where rows lie is the caller's business (recurrent_row): ragged, reversed and reset sequences run at the same speed. */

#if defined FSQ_ISA_AVX512 || defined __aarch64__
enum { recurrent_rows = 6 };                                /* 24 sums + 4 weights + 1 of 32 registers */
#elif defined FSQ_ISA_AVX2
enum { recurrent_rows = 3 };                                /* 12 + 1 + 3 of 16: weights come from memory operands */
#else
enum { recurrent_rows = 2 };                                /* 8 + 4 + 1, and a product before each addition */
#endif
enum { recurrent_gru_rows = recurrent_rows * 4 / 3 };       /* three gates: the same number of sums */
/* From so many rows on, panel rows are asked for from L2 so far ahead: 8 to 14 % at H = 128 and 256 on Cascade Lake, whose own
 * prefetcher comes late; no difference on Zen 4. With fewer rows the loads themselves are the bottleneck. */
enum { recurrent_fetch_rows = 3, recurrent_fetch_ahead = 8 };
enum { recurrent_vecs = 24 };                               /* sums of the largest tile */

enum { CELL_RNN, CELL_LSTM, CELL_GRU };
/* Vectors of a panel row, and of the panel's beginning: the GRU's n has one start for each product. */
#define CELL_GATES(cell) ((cell) == CELL_RNN ? 1 : (cell) == CELL_LSTM ? 4 : 3)
#define CELL_STARTS(cell) ((cell) == CELL_GRU ? 4 : CELL_GATES(cell))

/* Partial vectors at the end of H. */
FSQ_INLINE vreal cell_load(const real *p, ptrdiff_t units) { return units == VL ? vload(p) : vload_n(p, units); }
FSQ_INLINE void cell_store(real *p, vreal a, ptrdiff_t units) {
    if (units == VL) vstore(p, a);
    else vstore_n(p, a, units);
}

/* Zoneout: m before + (1 - m) now, exact for m = 0 and 1. */
FSQ_INLINE vreal cell_zone(const real *mask, const real *before, vreal now, ptrdiff_t units) {
    vreal m = cell_load(mask, units);
    return vfma(m, cell_load(before, units), vmul(vsub(vset1(1), m), now));
}

/* The end of every cell: h_t from h~, and what the next step's product reads where that is not h_t itself. */
FSQ_INLINE void cell_finish(const recurrent_row *row, ptrdiff_t unit, ptrdiff_t units, vreal h) {
    if (row->zone_h) h = cell_zone(row->zone_h + unit, row->h_before + unit, h, units);
    cell_store(row->h + unit, h, units);
    if (row->h_next) cell_store(row->h_next + unit, row->drop ? vmul(h, cell_load(row->drop + unit, units)) : h, units);
}

/* dL/dh~_t from all the ways of dL/dh_t. */
FSQ_INLINE vreal cell_upstream(const recurrent_back_row *row, ptrdiff_t unit, ptrdiff_t units) {
    vreal dh = vzero();
    if (!row->cut) {
        dh = cell_load(row->dh + unit, units);
        if (row->drop) dh = vmul(dh, cell_load(row->drop + unit, units));
        if (row->direct) dh = vadd(dh, cell_load(row->direct + unit, units));
    }
    if (row->dy) dh = vadd(dh, cell_load(row->dy + unit, units));
    if (row->dstate) cell_store(row->dstate + unit, dh, units);
    if (row->direct) {                                      /* h = m h' + (1 - m) h~ */
        vreal m = row->zone_h ? cell_load(row->zone_h + unit, units) : vzero();
        cell_store(row->direct + unit, vmul(m, dh), units);
        if (row->zone_h) dh = vmul(vsub(vset1(1), m), dh);
    }
    return dh;
}

#include "rnn.c"
#include "lstm.c"
#include "gru.c"

/* acc (rows x vecs) += a (rows x K, row r at a[r]) times K panel rows of `gates` vectors; the next block is one panel further.
 * Where `ahead` is not NULL, a cache line of each of K rows from there on is fetched into L2: together the row groups of one
 * block bring in the next block's panel, which would be waited for where the weights come from L3. */
FSQ_INLINE void recurrent_chain(vreal *acc, const int rows, const int vecs, const int gates, const real *const *a, const real *panel,
                                ptrdiff_t panel_size, ptrdiff_t K, const real *ahead) {
    for (ptrdiff_t k = 0; k < K; k++, panel += gates * VL) {
        vreal x[8];
        if (ahead) __builtin_prefetch(ahead + k * gates * VL, 0, 2);
        if (rows >= recurrent_fetch_rows)
#pragma GCC unroll 4
            for (int v = 0; v < vecs; v++) __builtin_prefetch(panel + v / gates * panel_size + (recurrent_fetch_ahead * gates + v % gates) * VL, 0, 3);
        if (vecs < rows) {                                  /* fewer weights than rows: they wait in registers */
            vreal w[8];
#pragma GCC unroll 8
            for (int v = 0; v < vecs; v++) w[v] = vload(panel + v / gates * panel_size + v % gates * VL);
#pragma GCC unroll 8
            for (int r = 0; r < rows; r++) {
                x[0] = vset1(a[r][k]);
#pragma GCC unroll 8
                for (int v = 0; v < vecs; v++) acc[r * vecs + v] = vfma(x[0], w[v], acc[r * vecs + v]);
            }
            continue;
        }
#pragma GCC unroll 8
        for (int r = 0; r < rows; r++) x[r] = vset1(a[r][k]);
#pragma GCC unroll 8
        for (int v = 0; v < vecs; v++) {                    /* one vector of weights at a time: 16 registers hold no more */
            vreal w = vload(panel + v / gates * panel_size + v % gates * VL);
#pragma GCC unroll 8
            for (int r = 0; r < rows; r++) acc[r * vecs + v] = vfma(x[r], w, acc[r * vecs + v]);
        }
    }
}

/* rows x blocks at once: the sums start from the biases (fused input product) or from the input product, then the cell. */
FSQ_INLINE void recurrent_tile(const int cell, const int rows, const int blocks, const recurrent_step *s, const recurrent_row *row,
                               const real *panel, ptrdiff_t panel_size, ptrdiff_t unit, const real *ahead) {
    const int gates = CELL_GATES(cell), vecs = gates * blocks;
    const real *starts = panel;
    vreal acc[recurrent_vecs];
    real aside[recurrent_vecs / 3 * VL];                    /* the GRU's W_n x, which r does not multiply */
#pragma GCC unroll 8
    for (int r = 0; r < rows; r++)
#pragma GCC unroll 8
        for (int v = 0; v < vecs; v++)
            acc[r * vecs + v] = vload(s->hoisted ? row[r].sums + unit * gates + v * VL : starts + v / gates * panel_size + v % gates * VL);
    panel += CELL_STARTS(cell) * VL;
#pragma GCC unroll 1
    for (int part = s->hoisted && !s->fed; part < 2; part++) {    /* x, then h: one loop, so that the sums keep their registers */
        const real *in[8], *from = panel + (part ? s->I * gates * VL : 0);
        ptrdiff_t K = part ? s->P : s->I;
#pragma GCC unroll 8
        for (int r = 0; r < rows; r++) in[r] = part ? row[r].h_in : row[r].x;
        if (cell == CELL_GRU)
#pragma GCC unroll 8
            for (int r = 0; r < rows; r++)
#pragma GCC unroll 2
                for (int b = 0; b < blocks; b++) {
                    vreal *n = acc + r * vecs + b * gates + gates - 1;
                    vstore(aside + (r * blocks + b) * VL, *n);
                    if (part) *n = vload(starts + b * panel_size + gates * VL);
                }
        recurrent_chain(acc, rows, vecs, gates, in, from, panel_size, K, ahead ? ahead + (from - panel) : NULL);
    }
    /* Two passes for the LSTM: h = o tanh(c) waits for all of its own gates, and alone in the core's window it would wait idly. */
#pragma GCC unroll 8
    for (int r = 0; r < rows; r++)
#pragma GCC unroll 4
        for (int b = 0; b < blocks; b++) {
            ptrdiff_t first = unit + b * VL, left = s->H - first, units = left < VL ? left : VL;
            vreal *of = acc + r * vecs + b * gates;
            if (cell == CELL_RNN) rnn_forward(of, s, row + r, first, units);
            if (cell == CELL_LSTM) lstm_gates(of, s, row + r, first, units);
            if (cell == CELL_GRU) gru_forward(of, vload(aside + (r * blocks + b) * VL), s, row + r, first, units);
        }
    if (cell == CELL_LSTM)
#pragma GCC unroll 8
        for (int r = 0; r < rows; r++)
#pragma GCC unroll 2
            for (int b = 0; b < blocks; b++) {
                ptrdiff_t first = unit + b * VL, left = s->H - first;
                lstm_hidden(acc + r * vecs + b * gates, row + r, first, left < VL ? left : VL);
            }
}

/* How many blocks side by side: enough sums for the latency of a multiply-add where the rows alone are too few. */
FSQ_INLINE int recurrent_abreast(const int cell, ptrdiff_t rows, ptrdiff_t blocks) {
    if (cell == CELL_RNN) return blocks >= 4 ? 4 : blocks >= 2 ? 2 : 1;
    const int most = cell == CELL_GRU ? recurrent_gru_rows : recurrent_rows;
    return blocks >= 2 && rows <= most / 2 ? 2 : 1;
}

/* The tiles that there are: the others are dropped by the compiler, to which cell is known (and which must not see too large ones). */
#define TILE_EXISTS(cell, R, N)                                                                                                            \
    ((R) <= ((cell) == CELL_GRU ? recurrent_gru_rows : recurrent_rows) / ((N) == 2 && (cell) != CELL_RNN ? 2 : 1) && ((N) < 4 || (cell) == CELL_RNN))
#define TILE(R, N, tile, ...)                                                                                                              \
    case (R) * 8 + (N):                                                                                                                    \
        if (TILE_EXISTS(cell, R, N)) tile(cell, TILE_EXISTS(cell, R, N) ? (R) : 1, TILE_EXISTS(cell, R, N) ? (N) : 1, __VA_ARGS__);        \
        break;
#define TILES(rows, blocks, ...)                                                                                                           \
    switch ((rows) * 8 + (blocks)) {                                                                                                       \
        TILE(1, 1, __VA_ARGS__) TILE(2, 1, __VA_ARGS__) TILE(3, 1, __VA_ARGS__) TILE(4, 1, __VA_ARGS__)                                    \
        TILE(5, 1, __VA_ARGS__) TILE(6, 1, __VA_ARGS__) TILE(7, 1, __VA_ARGS__) TILE(8, 1, __VA_ARGS__)                                    \
        TILE(1, 2, __VA_ARGS__) TILE(2, 2, __VA_ARGS__) TILE(3, 2, __VA_ARGS__) TILE(4, 2, __VA_ARGS__)                                    \
        TILE(5, 2, __VA_ARGS__) TILE(6, 2, __VA_ARGS__)                                                                                    \
        TILE(1, 4, __VA_ARGS__) TILE(2, 4, __VA_ARGS__) TILE(3, 4, __VA_ARGS__) TILE(4, 4, __VA_ARGS__)                                    \
        TILE(5, 4, __VA_ARGS__) TILE(6, 4, __VA_ARGS__)                                                                                    \
    }

/* Unit blocks [from, to) of one step for all rows of s; backwards walks the blocks from the last to the first. */
FSQ_INLINE void recurrent_blocks(const recurrent_step *s, const int cell, const real *packed, ptrdiff_t from, ptrdiff_t to, int backwards) {
    const ptrdiff_t size = (CELL_STARTS(cell) + (s->I + s->P) * CELL_GATES(cell)) * VL;
    const int most = cell == CELL_GRU ? recurrent_gru_rows : recurrent_rows;
    ptrdiff_t groups = (s->n + most - 1) / most, base = groups ? s->n / groups : 0, extra = groups ? s->n % groups : 0;
    for (ptrdiff_t done = from; done < to;) {
        int blocks = recurrent_abreast(cell, s->n, to - done);
        ptrdiff_t block = backwards ? from + to - done - blocks : done;
        const real *panel = packed + block * size, *next = NULL;
        if (s->fetch_ahead && done + blocks < to) next = backwards ? panel - size : panel + blocks * size;
        for (ptrdiff_t row = 0, rows = base + (extra > 0), g = 0; g < groups; row += rows, rows = base + (++g < extra)) {
            const real *ahead = next && g < CELL_GATES(cell) ? next + g * VL : NULL;
            TILES(rows, blocks, recurrent_tile, s, s->rows + row, panel, size, block * VL, ahead)
        }
        done += blocks;
    }
}

static void rnn_forward_blocks(const recurrent_step *s, const real *packed, ptrdiff_t from, ptrdiff_t to, int backwards) {
    recurrent_blocks(s, CELL_RNN, packed, from, to, backwards);
}
static void lstm_forward_blocks(const recurrent_step *s, const real *packed, ptrdiff_t from, ptrdiff_t to, int backwards) {
    recurrent_blocks(s, CELL_LSTM, packed, from, to, backwards);
}
static void gru_forward_blocks(const recurrent_step *s, const real *packed, ptrdiff_t from, ptrdiff_t to, int backwards) {
    recurrent_blocks(s, CELL_GRU, packed, from, to, backwards);
}

/* ---------------------------------------------------------------- the input product beforehand */

FSQ_INLINE void recurrent_input_tile(const int cell, const int rows, const int blocks, real *sums, ptrdiff_t sums_row, const real *const *x,
                                     ptrdiff_t I, const real *panel, ptrdiff_t panel_size) {
    const int gates = CELL_GATES(cell), vecs = gates * blocks;
    vreal acc[recurrent_vecs];
#pragma GCC unroll 8
    for (int r = 0; r < rows; r++)
#pragma GCC unroll 4
        for (int v = 0; v < vecs; v++) acc[r * vecs + v] = vload(panel + v / gates * panel_size + v % gates * VL);
    recurrent_chain(acc, rows, vecs, gates, x, panel + CELL_STARTS(cell) * VL, panel_size, I, NULL);
#pragma GCC unroll 8
    for (int r = 0; r < rows; r++)
#pragma GCC unroll 4
        for (int v = 0; v < vecs; v++) vstore(sums + r * sums_row + v * VL, acc[r * vecs + v]);
}

/* The same chain's first part for many rows (time steps) at once: sums (rows, sums_row) = b + W x for unit blocks [from, to). */
FSQ_INLINE void recurrent_input(real *sums, ptrdiff_t sums_row, const real *const *x, const int cell, const real *packed, ptrdiff_t n,
                                ptrdiff_t I, ptrdiff_t P, ptrdiff_t from, ptrdiff_t to) {
    const ptrdiff_t size = (CELL_STARTS(cell) + (I + P) * CELL_GATES(cell)) * VL;
    const int most = cell == CELL_GRU ? recurrent_gru_rows : recurrent_rows;
    ptrdiff_t groups = (n + most - 1) / most, base = groups ? n / groups : 0, extra = groups ? n % groups : 0;
    for (ptrdiff_t block = from; block < to;) {
        int blocks = recurrent_abreast(cell, n, to - block);
        const real *panel = packed + block * size;
        for (ptrdiff_t row = 0, rows = base + (extra > 0), g = 0; g < groups; row += rows, rows = base + (++g < extra)) {
            real *out = sums + row * sums_row + block * CELL_GATES(cell) * VL;
            TILES(rows, blocks, recurrent_input_tile, out, sums_row, x + row, I, panel, size)
        }
        block += blocks;
    }
}

static void rnn_input_blocks(real *sums, ptrdiff_t sums_row, const real *const *x, const real *packed, ptrdiff_t n, ptrdiff_t I, ptrdiff_t P,
                             ptrdiff_t from, ptrdiff_t to) {
    recurrent_input(sums, sums_row, x, CELL_RNN, packed, n, I, P, from, to);
}
static void lstm_input_blocks(real *sums, ptrdiff_t sums_row, const real *const *x, const real *packed, ptrdiff_t n, ptrdiff_t I, ptrdiff_t P,
                              ptrdiff_t from, ptrdiff_t to) {
    recurrent_input(sums, sums_row, x, CELL_LSTM, packed, n, I, P, from, to);
}
static void gru_input_blocks(real *sums, ptrdiff_t sums_row, const real *const *x, const real *packed, ptrdiff_t n, ptrdiff_t I, ptrdiff_t P,
                             ptrdiff_t from, ptrdiff_t to) {
    recurrent_input(sums, sums_row, x, CELL_GRU, packed, n, I, P, from, to);
}

/* ---------------------------------------------------------------- packing */

/* One gate's K panel rows, `row` reals apart, from its VL rows of a weight matrix w (units x K, rows w_row apart); units < VL are padded
 * with 0. */
FSQ_INLINE void recurrent_pack_gate(real *panel, ptrdiff_t row, const real *w, ptrdiff_t w_row, ptrdiff_t units, ptrdiff_t K) {
    ptrdiff_t k = 0;
    if (units == VL)
        for (; k + VL <= K; k += VL) {
            vreal square[VL];
#pragma GCC unroll 16
            for (int i = 0; i < VL; i++) square[i] = vload(w + i * w_row + k);
            vtranspose(square);
#pragma GCC unroll 16
            for (int i = 0; i < VL; i++) vstore(panel + (k + i) * row, square[i]);
        }
    for (; k < K; k++)
        for (ptrdiff_t u = 0; u < VL; u++) panel[k * row + u] = u < units ? w[u * w_row + k] : 0;
}

/* The panels of unit blocks [from, to), of I columns of w_ih, whose rows lie w_ih_row apart; `starts` vectors at the beginning of each: one more than `gates` for the GRU, whose last gate's
 * biases are not added to each other. */
static void recurrent_pack_blocks(real *packed, const real *w_ih, ptrdiff_t w_ih_row, const real *w_hh, const real *b_ih, const real *b_hh, int gates,
                                  int starts, ptrdiff_t I, ptrdiff_t P, ptrdiff_t H, ptrdiff_t from, ptrdiff_t to) {
    for (ptrdiff_t block = from; block < to; block++) {
        real *panel = packed + block * (starts + (I + P) * gates) * VL;
        ptrdiff_t unit = block * VL, units = H - unit < VL ? H - unit : VL;
        for (int gate = 0; gate < gates; gate++) {
            ptrdiff_t first = gate * H + unit;
            int apart = starts > gates && gate == gates - 1;
            for (ptrdiff_t u = 0; u < VL; u++) {
                real in = u < units && b_ih ? b_ih[first + u] : 0, recurrent = u < units && b_hh ? b_hh[first + u] : 0;
                panel[gate * VL + u] = apart ? in : in + recurrent;
                if (apart) panel[starts * VL - VL + u] = recurrent;
            }
            recurrent_pack_gate(panel + (starts + gate) * VL, gates * VL, w_ih + first * w_ih_row, w_ih_row, units, I);
            recurrent_pack_gate(panel + (starts + I * gates + gate) * VL, gates * VL, w_hh + first * P, P, units, P);
        }
    }
}

/* ---------------------------------------------------------------- what lies between the steps */

/* The end of a step whose h~ (n, P) was made by a product: elements [from, to) of h. */
static void recurrent_finish_units(const recurrent_row *rows, const real *h, ptrdiff_t n, ptrdiff_t P, ptrdiff_t from, ptrdiff_t to) {
    for (ptrdiff_t r = 0; r < n; r++)
        for (ptrdiff_t u = from; u < to; u += VL) {
            ptrdiff_t units = to - u < VL ? to - u : VL;
            cell_finish(rows + r, u, units, cell_load(h + r * P + u, units));
        }
}

/* Its beginning backwards: dh (n, P) = dL/dh~. */
static void recurrent_upstream_units(real *dh, const recurrent_back_row *rows, ptrdiff_t n, ptrdiff_t P, ptrdiff_t from, ptrdiff_t to) {
    for (ptrdiff_t r = 0; r < n; r++)
        for (ptrdiff_t u = from; u < to; u += VL) {
            ptrdiff_t units = to - u < VL ? to - u : VL;
            cell_store(dh + r * P + u, cell_upstream(rows + r, u, units), units);
        }
}

/* dL/dh of the state that came into the first step. */
static void recurrent_carry(real *dh_before, const recurrent_back_row *row, ptrdiff_t P) {
    for (ptrdiff_t u = 0; u < P; u += VL) {
        ptrdiff_t n = P - u < VL ? P - u : VL;
        vreal dh = vzero();
        if (!row->cut) {
            dh = cell_load(row->dh + u, n);
            if (row->drop) dh = vmul(dh, cell_load(row->drop + u, n));
            if (row->direct) dh = vadd(dh, cell_load(row->direct + u, n));
        }
        cell_store(dh_before + u, dh, n);
    }
}

/* Units [from, to) of a mask's row, from a multiple of 4: `below` where the word of (t, b, unit) is less than the threshold, else `above`. */
static void recurrent_mask(real *mask, ptrdiff_t from, ptrdiff_t to, uint64_t key, uint32_t t, uint32_t b, uint64_t threshold, real below, real above) {
    for (ptrdiff_t u = from; u < to; u += dropout_words) {
        uint32_t words[dropout_words];
        dropout_philox(words, (uint64_t)t << 32 | (uint64_t)(u / 4), key, 0, b);
        for (ptrdiff_t j = 0; j < dropout_words && u + j < to; j++) mask[u + j] = words[j] < threshold ? below : above;
    }
}

/* lstm.c - one step of an LSTM for a block of VL hidden units, and its derivative (Hochreiter & Schmidhuber 1997; Gers 2000).
 *
 *   i, f, o = sigmoid, g = tanh of (b + W x_t + U h_{t-1});   c_t = f c_{t-1} + i g;   h_t = o tanh(c_t)
 *
 * Packed weights: for each block of VL units a panel of 1 + I + H rows, the first the bias, then a row for each element of x and of
 * h; a row is [i: VL | f: VL | g: VL | o: VL]. A tile of batch rows keeps the four sums of VL units in registers over the whole
 * chain of k and goes through the gates right there: only c, h and, in training, the gates touch memory. Bound by FLOP from 4
 * rows on; below by the bytes of the panels, hence two blocks side by side for 1 to 3 rows. */

#if defined FSQ_ISA_AVX512 || defined __aarch64__
enum { lstm_rows = 6 };                                     /* 24 sums + 4 weights + 1 of 32 registers */
#elif defined FSQ_ISA_AVX2
enum { lstm_rows = 3 };                                     /* 12 + 1 + 3 of 16: weights come from memory operands */
#else
enum { lstm_rows = 2 };                                     /* 8 + 4 + 1, and a product before each addition */
#endif
/* From so many rows on, panel rows are asked for from L2 so far ahead: 8 to 14 % at H = 128 and 256 on Cascade Lake, whose own
 * prefetcher comes late. With fewer rows the loads themselves are the bottleneck. */
enum { lstm_fetch_rows = 3, lstm_fetch_ahead = 8 };
enum { lstm_cols = 4 * VL };                                /* width of a panel: four gates of VL units */

/* acc += a (rows x K, row r at a + r a_row) times K panel rows; block 1 is one panel further. Where `ahead` is not NULL, a
 * cache line of each of K rows from there on is fetched into L2: together the row groups of one block bring in the next block's
 * panel, which would be waited for where the weights come from L3. */
FSQ_INLINE void lstm_chain(vreal *acc, const int rows, const int blocks, const real *a, ptrdiff_t a_row, const real *panel, ptrdiff_t panel_size,
                           ptrdiff_t K, const real *ahead) {
    const real *ar[8];
#pragma GCC unroll 8
    for (int r = 0; r < rows; r++) ar[r] = a + r * a_row;
    for (ptrdiff_t k = 0; k < K; k++, panel += lstm_cols) {
        vreal x[8];
        if (ahead) __builtin_prefetch(ahead + k * lstm_cols, 0, 2);
        if (rows >= lstm_fetch_rows)
#pragma GCC unroll 4
            for (int v = 0; v < 4; v++) __builtin_prefetch(panel + lstm_fetch_ahead * lstm_cols + v * VL, 0, 3);
#pragma GCC unroll 8
        for (int r = 0; r < rows; r++) x[r] = vset1(ar[r][k]);
#pragma GCC unroll 8
        for (int v = 0; v < 4 * blocks; v++) {              /* one vector of weights at a time: 16 registers hold no more */
            vreal w = vload(panel + (v / 4) * panel_size + (v % 4) * VL);
#pragma GCC unroll 8
            for (int r = 0; r < rows; r++) acc[r * 4 * blocks + v] = vfma(x[r], w, acc[r * 4 * blocks + v]);
        }
    }
}

/* Partial vectors at the end of H. */
FSQ_INLINE vreal lstm_load(const real *p, ptrdiff_t units) { return units == VL ? vload(p) : vload_n(p, units); }
FSQ_INLINE void lstm_store(real *p, vreal a, ptrdiff_t units) {
    if (units == VL) vstore(p, a);
    else vstore_n(p, a, units);
}

/* The gates of one row and block, and c_t: on return sums[0] = c_t, sums[3] = o. `units` of the VL lanes exist. */
FSQ_INLINE void lstm_gates(vreal *sums, const real *c_before, real *c, real *gates, ptrdiff_t H, ptrdiff_t units) {
    vreal i = vsigmoid(sums[0]), f = vsigmoid(sums[1]), g = vtanh(sums[2]), o = vsigmoid(sums[3]);
    vreal now = vfma(f, lstm_load(c_before, units), vmul(i, g));
    lstm_store(c, now, units);
    if (gates) {
        lstm_store(gates, i, units);
        lstm_store(gates + H, f, units);
        lstm_store(gates + 2 * H, g, units);
        lstm_store(gates + 3 * H, o, units);
    }
    sums[0] = now;
    sums[3] = o;
}

/* rows x blocks at once: the sums start from the bias (fused input product) or from the input product, then the cell. */
FSQ_INLINE void lstm_tile(const lstm_forward_step *s, ptrdiff_t row, const int rows, const int blocks, const real *panel, ptrdiff_t panel_size, ptrdiff_t unit,
                          const real *ahead) {
    vreal acc[8 * 4];
    const real *start = s->sums ? s->sums + row * s->sums_row + 4 * unit : panel;
#pragma GCC unroll 8
    for (int r = 0; r < rows; r++)
#pragma GCC unroll 8
        for (int v = 0; v < 4 * blocks; v++)
            acc[r * 4 * blocks + v] = vload(s->sums ? start + r * s->sums_row + v * VL : start + (v / 4) * panel_size + (v % 4) * VL);
    panel += lstm_cols;
#pragma GCC unroll 1
    for (int part = s->sums != NULL; part < 2; part++) {    /* x, then h: one loop, so that the sums keep their registers */
        ptrdiff_t K = part ? s->H : s->I;
        const real *skipped = panel + (part ? s->I : 0) * lstm_cols;
        lstm_chain(acc, rows, blocks, (part ? s->h_before : s->x) + row * K, K, skipped, panel_size, K, ahead ? ahead + (skipped - panel) : NULL);
    }
    /* Two passes: h = o tanh(c) waits for all of its own gates, and alone in the core's window it would wait idly. */
#pragma GCC unroll 8
    for (int r = 0; r < rows; r++)
#pragma GCC unroll 2
        for (int b = 0; b < blocks; b++) {
            ptrdiff_t first = unit + b * VL, at = (row + r) * s->H + first, left = s->H - first;
            lstm_gates(acc + (r * blocks + b) * 4, s->c_before + at, s->c + at, s->gates ? s->gates + (row + r) * 4 * s->H + first : NULL,
                       s->H, left < VL ? left : VL);
        }
#pragma GCC unroll 8
    for (int r = 0; r < rows; r++)
#pragma GCC unroll 2
        for (int b = 0; b < blocks; b++) {
            ptrdiff_t first = unit + b * VL, left = s->H - first;
            const vreal *of = acc + (r * blocks + b) * 4;
            lstm_store(s->h + (row + r) * s->H + first, vmul(of[3], vtanh(of[0])), left < VL ? left : VL);
        }
}

/* Unit blocks [from, to) of one step for all rows of s; backwards walks the blocks from the last to the first. */
static void lstm_forward_blocks(const lstm_forward_step *s, const real *packed, ptrdiff_t from, ptrdiff_t to, int backwards) {
    ptrdiff_t size = (1 + s->I + s->H) * lstm_cols, groups = (s->rows + lstm_rows - 1) / lstm_rows;
    ptrdiff_t base = s->rows / groups, extra = s->rows % groups;
    int pairs = s->rows <= (lstm_rows >= 6 ? 3 : lstm_rows >= 3 ? 1 : 0);
    for (ptrdiff_t n = from; n < to;) {
        int blocks = pairs && n + 1 < to ? 2 : 1;
        ptrdiff_t block = backwards ? from + to - n - blocks : n;
        const real *panel = packed + block * size, *next = !s->fetch_ahead || n + blocks >= to ? NULL : backwards ? panel - size : panel + blocks * size;
        for (ptrdiff_t row = 0, rows = base + (extra > 0), g = 0; g < groups; row += rows, rows = base + (++g < extra)) {
            const real *ahead = next && g < 4 ? next + g * VL : NULL;
            switch (rows * 2 + blocks) {
                case 3: lstm_tile(s, row, 1, 1, panel, size, block * VL, ahead); break;
                case 5: lstm_tile(s, row, 2, 1, panel, size, block * VL, ahead); break;
                case 4: lstm_tile(s, row, 1, 2, panel, size, block * VL, ahead); break;
#if defined FSQ_ISA_AVX512 || defined FSQ_ISA_AVX2 || defined __aarch64__
                case 7: lstm_tile(s, row, 3, 1, panel, size, block * VL, ahead); break;
#endif
#if defined FSQ_ISA_AVX512 || defined __aarch64__
                case 6: lstm_tile(s, row, 2, 2, panel, size, block * VL, ahead); break;
                case 8: lstm_tile(s, row, 3, 2, panel, size, block * VL, ahead); break;
                case 9: lstm_tile(s, row, 4, 1, panel, size, block * VL, ahead); break;
                case 11: lstm_tile(s, row, 5, 1, panel, size, block * VL, ahead); break;
                case 13: lstm_tile(s, row, 6, 1, panel, size, block * VL, ahead); break;
#endif
            }
        }
        n += blocks;
    }
}

FSQ_INLINE void lstm_input_tile(real *sums, ptrdiff_t sums_row, const real *x, ptrdiff_t I, const int rows, const real *panel) {
    vreal acc[8 * 4];
#pragma GCC unroll 8
    for (int r = 0; r < rows; r++)
#pragma GCC unroll 4
        for (int v = 0; v < 4; v++) acc[r * 4 + v] = vload(panel + v * VL);
    lstm_chain(acc, rows, 1, x, I, panel + lstm_cols, 0, I, NULL);
#pragma GCC unroll 8
    for (int r = 0; r < rows; r++)
#pragma GCC unroll 4
        for (int v = 0; v < 4; v++) vstore(sums + r * sums_row + v * VL, acc[r * 4 + v]);
}

/* The same chain's first part for many rows (time steps) at once: sums (rows, sums_row) = b + W x for unit blocks [from, to). */
static void lstm_input_blocks(real *sums, ptrdiff_t sums_row, const real *x, const real *packed, ptrdiff_t rows, ptrdiff_t I, ptrdiff_t H,
                              ptrdiff_t from, ptrdiff_t to) {
    ptrdiff_t size = (1 + I + H) * lstm_cols, groups = (rows + lstm_rows - 1) / lstm_rows;
    ptrdiff_t base = rows / groups, extra = rows % groups;
    for (ptrdiff_t block = from; block < to; block++)
        for (ptrdiff_t row = 0, height = base + (extra > 0), g = 0; g < groups; row += height, height = base + (++g < extra)) {
            real *out = sums + row * sums_row + block * lstm_cols;
            const real *in = x + row * I, *panel = packed + block * size;
            switch (height) {
                case 1: lstm_input_tile(out, sums_row, in, I, 1, panel); break;
                case 2: lstm_input_tile(out, sums_row, in, I, 2, panel); break;
#if defined FSQ_ISA_AVX512 || defined FSQ_ISA_AVX2 || defined __aarch64__
                case 3: lstm_input_tile(out, sums_row, in, I, 3, panel); break;
#endif
#if defined FSQ_ISA_AVX512 || defined __aarch64__
                case 4: lstm_input_tile(out, sums_row, in, I, 4, panel); break;
                case 5: lstm_input_tile(out, sums_row, in, I, 5, panel); break;
                case 6: lstm_input_tile(out, sums_row, in, I, 6, panel); break;
#endif
            }
        }
}

/* One gate's K panel rows from its VL rows of a weight matrix w (units x K, a row `stride` long); units < VL are padded with 0. */
FSQ_INLINE void lstm_pack_gate(real *panel, const real *w, ptrdiff_t units, ptrdiff_t K) {
    ptrdiff_t k = 0;
    if (units == VL)
        for (; k + VL <= K; k += VL) {
            vreal square[VL];
#pragma GCC unroll 16
            for (int i = 0; i < VL; i++) square[i] = vload(w + i * K + k);
            vtranspose(square);
#pragma GCC unroll 16
            for (int i = 0; i < VL; i++) vstore(panel + (k + i) * lstm_cols, square[i]);
        }
    for (; k < K; k++)
        for (ptrdiff_t u = 0; u < VL; u++) panel[k * lstm_cols + u] = u < units ? w[u * K + k] : 0;
}

/* The panels of unit blocks [from, to). */
static void lstm_pack_blocks(real *packed, const real *w_ih, const real *w_hh, const real *b_ih, const real *b_hh, ptrdiff_t I, ptrdiff_t H,
                             ptrdiff_t from, ptrdiff_t to) {
    for (ptrdiff_t block = from; block < to; block++) {
        real *panel = packed + block * (1 + I + H) * lstm_cols;
        ptrdiff_t unit = block * VL, units = H - unit < VL ? H - unit : VL;
        for (int gate = 0; gate < 4; gate++, panel += VL) {
            ptrdiff_t first = gate * H + unit;
            for (ptrdiff_t u = 0; u < VL; u++)
                panel[u] = u < units ? (b_ih ? b_ih[first + u] : 0) + (b_hh ? b_hh[first + u] : 0) : 0;
            lstm_pack_gate(panel + lstm_cols, w_ih + first * I, units, I);
            lstm_pack_gate(panel + (1 + I) * lstm_cols, w_hh + first * H, units, H);
        }
    }
}

/* The cell's derivative for units [from, to) of all rows. On entry dh = dL/dh_t without dy, dc = dL/dc_t by way of c_{t+1};
 * on return dc is the same for c_{t-1} and dgates (rows, 4, H) holds dL/d(sums). dy NULL = 0. */
static void lstm_backward_units(const lstm_backward_step *s, ptrdiff_t from, ptrdiff_t to) {
    const vreal one = vset1(1);
    ptrdiff_t H = s->H;
    for (ptrdiff_t row = 0; row < s->rows; row++)
        for (ptrdiff_t u = from; u < to; u += VL) {
            ptrdiff_t n = to - u < VL ? to - u : VL, at = row * H + u;
            const real *gates = s->gates + 4 * row * H + u;
            real *dgates = s->dgates + 4 * row * H + u;
            vreal i = vload_n(gates, n), f = vload_n(gates + H, n), g = vload_n(gates + 2 * H, n), o = vload_n(gates + 3 * H, n);
            vreal tanh_c = vtanh(vload_n(s->c + at, n)), dh = vload_n(s->dh + at, n);
            if (s->dy) dh = vadd(dh, vload_n(s->dy + at, n));
            /* h = o tanh(c) */
            vreal do_ = vmul(dh, tanh_c);
            vreal dc = vfma(vmul(dh, o), vfnma(tanh_c, tanh_c, one), vload_n(s->dc + at, n));
            /* c = f c_before + i g */
            vreal di = vmul(dc, g), dg = vmul(dc, i), df = vmul(dc, s->c_before ? vload_n(s->c_before + at, n) : vzero());
            vstore_n(s->dc + at, vmul(dc, f), n);
            /* i, f, o = sigmoid(sum): s (1 - s); g = tanh(sum): 1 - g^2 */
            vstore_n(dgates, vmul(di, vmul(i, vsub(one, i))), n);
            vstore_n(dgates + H, vmul(df, vmul(f, vsub(one, f))), n);
            vstore_n(dgates + 2 * H, vmul(dg, vfnma(g, g, one)), n);
            vstore_n(dgates + 3 * H, vmul(do_, vmul(o, vsub(one, o))), n);
        }
}

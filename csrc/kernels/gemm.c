/* gemm.c - the register tile of every product: acc (rows x vecs vectors) += a (rows x K) b (K x vecs vectors).
 *
 * Bound by FLOP from 4 rows on, below that by the bytes of b. One element is one chain of vfma with k ascending whatever the
 * tile, so results do not depend on the shape around an element (Goto & van de Geijn 2008 for the blocking above it).
 *
 * Sizes of the tile: gemm_rows x gemm_vecs accumulators + gemm_vecs of b + 1 of a in 32 (AVX-512, arm64) or 16 registers. */

#if defined FSQ_ISA_AVX512 || defined __aarch64__
enum { gemm_rows = 6, gemm_vecs = 4 };                      /* 24 + 4 + 1 of 32 registers */
#elif defined FSQ_ISA_AVX2
enum { gemm_rows = 6, gemm_vecs = 2 };                      /* 12 + 2 + 1 of 16 */
#else
enum { gemm_rows = 4, gemm_vecs = 2 };                      /* 8 + 2 + 1, and a product before each addition */
#endif
enum { gemm_cols = gemm_vecs * VL };                        /* width of a panel of packed b */

/* The chain. Vector v of b's row k stands at b[k b_k + (v / gemm_vecs) b_panel + (v % gemm_vecs) VL]: several panels side by
 * side when there are few rows. a: element (r, k) at a[r a_row + k a_k]; rows_contiguous says that a_k = 1. */
FSQ_INLINE void gemm_chain(vreal *acc, const int rows, const int vecs, const int a_k_is_1, const real *a, ptrdiff_t a_row, ptrdiff_t a_k,
                           const real *b, ptrdiff_t b_k, ptrdiff_t b_panel, ptrdiff_t K) {
    const real *ar[8];
#pragma GCC unroll 8
    for (int r = 0; r < rows; r++) ar[r] = a + r * a_row;
    for (ptrdiff_t k = 0; k < K; k++, b += b_k) {
        vreal w[16];
#pragma GCC unroll 16
        for (int v = 0; v < vecs; v++) w[v] = vload(b + (v / gemm_vecs) * b_panel + (v % gemm_vecs) * VL);
#pragma GCC unroll 8
        for (int r = 0; r < rows; r++) {
            vreal x = vset1(a_k_is_1 ? ar[r][k] : ar[r][k * a_k]);
#pragma GCC unroll 16
            for (int v = 0; v < vecs; v++) acc[r * vecs + v] = vfma(x, w[v], acc[r * vecs + v]);
        }
    }
}

/* One tile of c: zeros or c, plus the chain. The last vector holds `tail` columns of c, 1 <= tail <= VL. The tile that comes next, at
 * next_c, is asked for meanwhile: waiting for its lines took 6 to 10 % of the time where c is larger than L2 (Cascade Lake). */
FSQ_INLINE void gemm_tile(real *c, const real *next_c, ptrdiff_t c_row, const int rows, const int vecs, const int a_k_is_1, const real *a, ptrdiff_t a_row,
                          ptrdiff_t a_k, const real *b, ptrdiff_t b_k, ptrdiff_t b_panel, ptrdiff_t K, int tail, int add) {
    vreal acc[32];
#pragma GCC unroll 8
    for (int r = 0; r < rows; r++)
#pragma GCC unroll 16
        for (int v = 0; v < vecs; v++) {
            __builtin_prefetch(next_c + r * c_row + v * VL, 1, 3);
            const real *at = c + r * c_row + v * VL;
            acc[r * vecs + v] = !add ? vzero() : v == vecs - 1 && tail != VL ? vload_n(at, tail) : vload(at);
        }
    gemm_chain(acc, rows, vecs, a_k_is_1, a, a_row, a_k, b, b_k, b_panel, K);
#pragma GCC unroll 8
    for (int r = 0; r < rows; r++)
#pragma GCC unroll 16
        for (int v = 0; v < vecs; v++) {
            real *at = c + r * c_row + v * VL;
            if (v == vecs - 1 && tail != VL) vstore_n(at, acc[r * vecs + v], tail);
            else vstore(at, acc[r * vecs + v]);
        }
}

/* bias and function on a tile of c that has just been stored (it is in L1). */
static void gemm_finish(real *c, ptrdiff_t c_row, ptrdiff_t rows, ptrdiff_t n, const real *bias, fsq_function function) {
    for (ptrdiff_t r = 0; r < rows; r++, c += c_row)
        for (ptrdiff_t j = 0; j < n; j += VL) {
            ptrdiff_t width = n - j < VL ? n - j : VL;
            vreal v = vload_n(c + j, width);
            if (bias) v = vadd(v, vload_n(bias + j, width));
            if (function == FSQ_TANH) v = vtanh(v);
            else if (function == FSQ_SIGMOID) v = vsigmoid(v);
            else if (function == FSQ_RELU) v = vselect(vlt(v, vzero()), vzero(), v);
            vstore_n(c + j, v, width);
        }
}

#define GEMM_CASE(R, V)                                                                                                            \
    case (R) * 32 + (V):                                                                                                           \
        if (a_k == 1) gemm_tile(c, next_c, c_row, R, V, 1, a, a_row, 1, b, b_k, b_panel, K, tail, add);                                    \
        else gemm_tile(c, next_c, c_row, R, V, 0, a, a_row, a_k, b, b_k, b_panel, K, tail, add);                                           \
        break;

/* One tile whose size is known at run time only. rows and vecs are such as gemm_panel asks for. */
static void gemm_any_tile(real *c, const real *next_c, ptrdiff_t c_row, int rows, int vecs, const real *a, ptrdiff_t a_row, ptrdiff_t a_k, const real *b,
                          ptrdiff_t b_k, ptrdiff_t b_panel, ptrdiff_t K, int tail, int add) {
    switch (rows * 32 + vecs) {
        GEMM_CASE(1, 1) GEMM_CASE(2, 1) GEMM_CASE(3, 1) GEMM_CASE(4, 1)
        GEMM_CASE(1, 2) GEMM_CASE(2, 2) GEMM_CASE(3, 2) GEMM_CASE(4, 2)
        GEMM_CASE(1, 4) GEMM_CASE(2, 4) GEMM_CASE(1, 8)
#if defined FSQ_ISA_AVX512 || defined FSQ_ISA_AVX2 || defined __aarch64__
        GEMM_CASE(5, 1) GEMM_CASE(6, 1) GEMM_CASE(5, 2) GEMM_CASE(6, 2)
#endif
#if defined FSQ_ISA_AVX512 || defined __aarch64__
        GEMM_CASE(1, 3) GEMM_CASE(2, 3) GEMM_CASE(3, 3) GEMM_CASE(4, 3) GEMM_CASE(5, 3) GEMM_CASE(6, 3)
        GEMM_CASE(3, 4) GEMM_CASE(4, 4) GEMM_CASE(5, 4) GEMM_CASE(6, 4)
        GEMM_CASE(2, 8) GEMM_CASE(3, 8) GEMM_CASE(1, 16)
#endif
    }
}

/* The widest tile for so few rows: enough independent chains to cover the latency of a multiply-add (4 cycles, 2 a cycle). */
FSQ_INLINE int gemm_wide(ptrdiff_t rows) {
#if defined FSQ_ISA_AVX512 || defined __aarch64__
    return rows == 1 ? 16 : rows <= 3 ? 8 : 4;
#else
    return rows == 1 ? 8 : rows == 2 ? 4 : 2;
#endif
}

/* c (M, n) = or += a (M, K) b (K, n). b: rows b_k apart, panels of gemm_cols columns b_panel apart; its columns are there up to
 * the next whole vector. M rows in groups of about equal
 * height (the first ones may have one row more), each over all of n. packed_a: group g is stored k by k at a + start K
 * (gemm_pack_a), else a_row and a_k say. bias and function apply with the last block of k only: the caller passes them then. */
static void gemm_block(real *c, ptrdiff_t c_row, const real *a, ptrdiff_t a_row, ptrdiff_t a_k, int packed_a, const real *b, ptrdiff_t b_k,
                       ptrdiff_t b_panel, ptrdiff_t M, ptrdiff_t n, ptrdiff_t K, int add, const real *bias, fsq_function function) {
    ptrdiff_t groups = (M + gemm_rows - 1) / gemm_rows, base = M / groups, extra = M % groups;
    int most = gemm_wide(M);
    for (ptrdiff_t j = 0; j < n;) {
        int vecs = most;
        while (vecs > gemm_vecs && n - j < vecs * VL) vecs /= 2;
        if (n - j < vecs * VL) vecs = (int)((n - j + VL - 1) / VL);
        int tail = n - j < vecs * VL ? (int)(n - j) - (vecs - 1) * VL : VL;
        const real *panel = b + j / gemm_cols * b_panel;
        for (ptrdiff_t start = 0, rows = base + (extra > 0), g = 0; g < groups; start += rows, rows = base + (++g < extra)) {
            const real *rows_of_a = packed_a ? a + start * K : a + start * a_row;
            const real *next_c = c + j + (g + 1 < groups ? (start + rows) * c_row : vecs * VL);
            gemm_any_tile(c + start * c_row + j, next_c, c_row, (int)rows, vecs, rows_of_a, packed_a ? 1 : a_row, packed_a ? rows : a_k, panel, b_k, b_panel, K, tail, add);
            if (bias || function != FSQ_IDENTITY)
                gemm_finish(c + start * c_row + j, c_row, rows, n - j < vecs * VL ? n - j : vecs * VL, bias ? bias + j : NULL, function);
        }
        j += vecs * VL;
    }
}

/* a (M, K) into row groups as gemm_block walks them, each k by k. Eight columns of a transposed matrix at a time: their lines fall
 * into one set of the L1 cache when they lie a multiple of 4 KB apart, and so do those of the groups that are written. */
static void gemm_pack_a(real *packed, const real *a, ptrdiff_t a_row, ptrdiff_t a_k, ptrdiff_t M, ptrdiff_t K) {
    ptrdiff_t groups = (M + gemm_rows - 1) / gemm_rows, base = M / groups, extra = M % groups;
    for (ptrdiff_t k0 = 0; k0 < K; k0 += 8) {
        ptrdiff_t k1 = k0 + 8 < K ? k0 + 8 : K;
        for (ptrdiff_t start = 0, rows = base + (extra > 0), g = 0; g < groups; start += rows, rows = base + (++g < extra)) {
            const real *from = a + start * a_row + k0 * a_k;
            real *to = packed + start * K + k0 * rows;
            if (a_row == 1 && rows == gemm_rows)
                for (ptrdiff_t k = k0; k < k1; k++, from += a_k, to += gemm_rows) memcpy(to, from, gemm_rows * sizeof(real));
            else if (a_row == 1 && rows == gemm_rows - 1)
                for (ptrdiff_t k = k0; k < k1; k++, from += a_k, to += gemm_rows - 1) memcpy(to, from, (gemm_rows - 1) * sizeof(real));
            else
                for (ptrdiff_t k = k0; k < k1; k++, from += a_k, to += rows)
                    for (ptrdiff_t r = 0; r < rows; r++) to[r] = from[r * a_row];
        }
    }
}

/* One panel (K rows of gemm_cols) from b (K, n), n <= gemm_cols; the columns from n on are zero. */
static void gemm_pack_b(real *panel, const real *b, ptrdiff_t b_row, ptrdiff_t b_col, ptrdiff_t n, ptrdiff_t K) {
    ptrdiff_t k = 0;
    if (b_col == 1 && n == gemm_cols)
        for (; k < K; k++)
#pragma GCC unroll 4
            for (int v = 0; v < gemm_vecs; v++) vstore(panel + k * gemm_cols + v * VL, vload(b + k * b_row + v * VL));
    else if (b_row == 1 && n == gemm_cols)
        for (; k + VL <= K; k += VL)
            for (int v = 0; v < gemm_vecs; v++) {
                vreal square[VL];
#pragma GCC unroll 16
                for (int i = 0; i < VL; i++) square[i] = vload(b + (v * VL + i) * b_col + k);
                vtranspose(square);
#pragma GCC unroll 16
                for (int i = 0; i < VL; i++) vstore(panel + (k + i) * gemm_cols + v * VL, square[i]);
            }
    for (; k < K; k++)
        for (ptrdiff_t j = 0; j < gemm_cols; j++) panel[k * gemm_cols + j] = j < n ? b[k * b_row + j * b_col] : 0;
}

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
            else if (function == FSQ_GELU) v = vgelu(v);
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

/* ---- few rows: the bytes of b are what counts */

/* Rows of b that are added at once to a row of c, and columns of c that wait in L1 meanwhile. */
enum { gemm_row_ks = 4, gemm_row_cols = 2048 };

/* `vecs` whole vectors of c, or its n < VL columns. */
FSQ_INLINE void gemm_row_part(real *c, const vreal *x, const int ks, const int vecs, const real *b, ptrdiff_t b_row, ptrdiff_t n, int add) {
    vreal acc[4];
#pragma GCC unroll 4
    for (int v = 0; v < vecs; v++) acc[v] = !add ? vzero() : n == VL ? vload(c + v * VL) : vload_n(c, n);
#pragma GCC unroll 4
    for (int i = 0; i < ks; i++, b += b_row)
#pragma GCC unroll 4
        for (int v = 0; v < vecs; v++) acc[v] = vfma(x[i], n == VL ? vload(b + v * VL) : vload_n(b, n), acc[v]);
#pragma GCC unroll 4
    for (int v = 0; v < vecs; v++)
        if (n == VL) vstore(c + v * VL, acc[v]);
        else vstore_n(c, acc[v], n);
}

/* c (n) = or += `ks` rows of b. The first vector is short, so that b's others are aligned where its rows lie alike: loads across two
 * lines took 15 % where b streams from L2, 5 % from L3 (Zen 4). */
FSQ_INLINE void gemm_row_step(real *c, const real *a, ptrdiff_t a_k, const int ks, const real *b, ptrdiff_t b_row, ptrdiff_t n, int add) {
    vreal x[gemm_row_ks];
#pragma GCC unroll 4
    for (int i = 0; i < ks; i++) x[i] = vset1(a[i * a_k]);
    ptrdiff_t j = (ptrdiff_t)(-((uintptr_t)b / sizeof(real)) % VL);
    if (j > n) j = n;
    if (j) gemm_row_part(c, x, ks, 1, b, b_row, j, add);
    for (; j + 4 * VL <= n; j += 4 * VL) gemm_row_part(c + j, x, ks, 4, b + j, b_row, VL, add);
    for (; j + VL <= n; j += VL) gemm_row_part(c + j, x, ks, 1, b + j, b_row, VL, add);
    if (j < n) gemm_row_part(c + j, x, ks, 1, b + j, b_row, n - j, add);
}

/* c (n) = or += a (K) b (K, n) for one row of a and b where it lies. b is read along its rows: down a tile's columns, a new page
 * for each k, its bytes came up to 15 % slower. */
static void gemm_row(real *c, const real *a, ptrdiff_t a_k, const real *b, ptrdiff_t b_row, ptrdiff_t n, ptrdiff_t K, int add, const real *bias,
                     fsq_function function) {
    for (ptrdiff_t j = 0; j < n; j += gemm_row_cols) {
        ptrdiff_t width = n - j < gemm_row_cols ? n - j : gemm_row_cols, k = 0;
        for (; k + gemm_row_ks <= K; k += gemm_row_ks) gemm_row_step(c + j, a + k * a_k, a_k, gemm_row_ks, b + k * b_row + j, b_row, width, add || k);
        for (; k < K; k++) gemm_row_step(c + j, a + k * a_k, a_k, 1, b + k * b_row + j, b_row, width, add || k);
    }
    if (bias || function != FSQ_IDENTITY) gemm_finish(c, n, 1, n, bias, function);
}

/* A few rows where b is transposed: column j of b (K, n) is contiguous at b + j b_col. Squares of b are turned in registers and used
 * at once: writing them to a panel first took twice as long. 16 columns at a time: with fewer an addition waits for the
 * one before it, with more the lines in use fall out of L1 where they lie a multiple of 2 KB apart. Past the last column the last one
 * is read again. */
enum { gemm_squares = 16 / VL, gemm_turned_rows = 4 };

FSQ_INLINE void gemm_turned_tile(real *c, ptrdiff_t c_row, const real *a, ptrdiff_t a_row, ptrdiff_t a_k, const int rows, const real *b, ptrdiff_t b_col,
                                 ptrdiff_t n, ptrdiff_t K, int add) {
    for (ptrdiff_t j = 0; j < n; j += gemm_squares * VL, c += gemm_squares * VL) {
        const real *column[gemm_squares * VL];
        int width[gemm_squares];
        vreal acc[gemm_squares][gemm_turned_rows];
        for (ptrdiff_t i = 0; i < gemm_squares * VL; i++) column[i] = b + (j + i < n ? j + i : n - 1) * b_col;
        for (int s = 0; s < gemm_squares; s++) {
            ptrdiff_t left = n - j - s * VL;
            width[s] = left < 0 ? 0 : left < VL ? (int)left : VL;
            for (int r = 0; r < rows; r++) acc[s][r] = add ? vload_n(c + r * c_row + s * VL, width[s]) : vzero();
        }
        ptrdiff_t k = 0;
        for (; k + VL <= K; k += VL)
#pragma GCC unroll 8
            for (int s = 0; s < gemm_squares; s++) {
                vreal square[VL];
                vload_turned(square, column + s * VL, k);
#pragma GCC unroll 16
                for (int i = 0; i < VL; i++)
#pragma GCC unroll 4
                    for (int r = 0; r < rows; r++) acc[s][r] = vfma(vset1(a[r * a_row + (k + i) * a_k]), square[i], acc[s][r]);
            }
        for (int s = 0; s < gemm_squares && k < K; s++) {
            vreal square[VL];
            for (int i = 0; i < VL; i++) square[i] = vload_n(column[s * VL + i] + k, K - k);
            vtranspose(square);
            for (int i = 0; i < K - k; i++)
                for (int r = 0; r < rows; r++) acc[s][r] = vfma(vset1(a[r * a_row + (k + i) * a_k]), square[i], acc[s][r]);
        }
        for (int s = 0; s < gemm_squares; s++)
            for (int r = 0; r < rows; r++) vstore_n(c + r * c_row + s * VL, acc[s][r], width[s]);
    }
}

static void gemm_turned(real *c, ptrdiff_t c_row, const real *a, ptrdiff_t a_row, ptrdiff_t a_k, const real *b, ptrdiff_t b_col, ptrdiff_t M, ptrdiff_t n,
                        ptrdiff_t K, int add, const real *bias, fsq_function function) {
    if (M == 1) gemm_turned_tile(c, c_row, a, a_row, a_k, 1, b, b_col, n, K, add);
    else if (M == 2) gemm_turned_tile(c, c_row, a, a_row, a_k, 2, b, b_col, n, K, add);
    else if (M == 3) gemm_turned_tile(c, c_row, a, a_row, a_k, 3, b, b_col, n, K, add);
    else gemm_turned_tile(c, c_row, a, a_row, a_k, 4, b, b_col, n, K, add);
    if (bias || function != FSQ_IDENTITY) gemm_finish(c, c_row, M, n, bias, function);
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
        for (int v = 0; v < gemm_vecs; v++) {                       /* VL columns at a time: more would outdo the prefetcher */
            const real *column[VL];
            for (int i = 0; i < VL; i++) column[i] = b + (v * VL + i) * b_col;
            for (k = 0; k + VL <= K; k += VL) {
                vreal square[VL];
                vload_turned(square, column, k);
#pragma GCC unroll 16
                for (int i = 0; i < VL; i++) vstore(panel + (k + i) * gemm_cols + v * VL, square[i]);
            }
        }
    for (; k < K; k++)
        for (ptrdiff_t j = 0; j < gemm_cols; j++) panel[k * gemm_cols + j] = j < n ? b[k * b_row + j * b_col] : 0;
}

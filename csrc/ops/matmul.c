/* matmul.c - blocking and threading of the product over the register tile of kernels/gemm.c.
 *
 * Two ways, after Goto & van de Geijn 2008 and BLIS (Van Zee & van de Geijn 2015):
 *   columns  each worker owns panels of columns and walks all rows; it packs its own panels of b, so no barrier is needed.
 *            For few rows, where a stays in the L2 cache; with very few rows b is not packed at all.
 *   blocks   b is packed by all workers together, one block of k at a time; then each owns a range of rows.
 * Nothing splits k between workers: an element is one chain of additions, and the bits do not depend on the threads. */
#include "matmul.h"

#include <string.h>

enum {
    matmul_kc = 256,            /* rows of b in one block: a panel (256 x 64 floats = 64 KB) streams from L2 */
    matmul_mc = 192,            /* rows of a in one block: 192 x 256 floats = 192 KB of L2 */
    matmul_nc = 4096,           /* columns of b packed at a time: 4 MB of floats */
    matmul_a_bytes = 384 << 10  /* the most of a that "columns" walks again for each panel: part of a 1 MB L2 */
};

static ptrdiff_t matmul_min(ptrdiff_t a, ptrdiff_t b) { return a < b ? a : b; }
static ptrdiff_t matmul_up(ptrdiff_t n, ptrdiff_t to) { return (n + to - 1) / to * to; }

/* a is read in place where its rows are contiguous: packing it too was slower, or no faster, from 256 to 2048 cubed on Cascade
 * Lake. A transposed one would touch a cache line for each k and is packed by row groups. */
static int matmul_pack_a(const matmul_args *g) { return g->a_col != 1; }

static int matmul_by_columns(const FSQ_FN(kernels) *k, ptrdiff_t M, ptrdiff_t N, ptrdiff_t K, int workers) {
    ptrdiff_t panels = (N + k->gemm_cols - 1) / k->gemm_cols, groups = (M + k->gemm_rows - 1) / k->gemm_rows;
    if (groups <= 1) return 1;
    if (M * K * (ptrdiff_t)sizeof(real) > matmul_a_bytes) return 0;
    ptrdiff_t rounds = (panels + workers - 1) / workers, group_rounds = (groups + workers - 1) / workers;
    return rounds * groups <= group_rounds * panels;                          /* no worse balanced than rows would be */
}

static size_t matmul_work(const FSQ_FN(kernels) *k, ptrdiff_t M, ptrdiff_t N, ptrdiff_t K, int packed, int threads) {
    ptrdiff_t kc = matmul_min(K, matmul_kc);
    ptrdiff_t own = matmul_up(matmul_min(M, matmul_mc) * kc, 64) + k->gemm_cols * kc; /* a worker's block of a, and a panel of b */
    ptrdiff_t shared = packed ? 0 : matmul_min(matmul_up(N, k->gemm_cols), matmul_nc) * kc;
    return (size_t)(shared + threads * matmul_up(own, 64)) * sizeof(real) + 64;
}

/* The rows of one worker against n columns of b that are there in panels: blocks of rows, a packed where that pays. */
static void matmul_rows(const FSQ_FN(kernels) *k, const matmul_args *g, ptrdiff_t m0, ptrdiff_t m1, ptrdiff_t j0, ptrdiff_t n, ptrdiff_t k0,
                        ptrdiff_t kc, const real *panels, ptrdiff_t b_k, ptrdiff_t b_panel, real *own) {
    int last = k0 + kc == g->K, pack = matmul_pack_a(g);
    for (ptrdiff_t m = m0; m < m1; m += matmul_mc) {
        ptrdiff_t rows = matmul_min(m1 - m, matmul_mc);
        const real *a = g->a + m * g->a_row + k0 * g->a_col;
        if (pack) k->gemm_pack_a(own, a, g->a_row, g->a_col, rows, kc);
        for (ptrdiff_t j = 0; j < n; j += k->gemm_cols)
            k->gemm_block(g->c + m * g->c_row + j0 + j, g->c_row, pack ? own : a, g->a_row, g->a_col, pack, panels + j / k->gemm_cols * b_panel, b_k,
                          b_panel, rows, matmul_min(n - j, k->gemm_cols), kc, g->add || k0 > 0, last && g->bias ? g->bias + j0 + j : NULL,
                          last ? g->function : FSQ_IDENTITY);
    }
}

/* columns: this worker's panels, each over all k and all rows. */
static void matmul_columns(const fsq_team *team, const FSQ_FN(kernels) *k, const matmul_args *g, real *own) {
    ptrdiff_t from, to, lanes = k->lanes;
    fsq_share(team, g->N, g->N >= team->size * k->gemm_cols ? k->gemm_cols : lanes, &from, &to);
    if (g->packed) fsq_share(team, g->N, k->gemm_cols, &from, &to);
    real *panel = own + matmul_up(matmul_min(g->M, matmul_mc) * matmul_min(g->K, matmul_kc), 64);
    if (g->M <= (g->packed ? 1 : 2) * k->gemm_rows && g->a_col == 1 && (g->packed || g->b_col == 1)) {    /* b is read where it lies, at most twice */
        ptrdiff_t whole = g->packed ? to : to - (to - from) % lanes;
        if (whole > from)
            k->gemm_block(g->c + from, g->c_row, g->a, g->a_row, 1, 0, g->packed ? g->packed + from * g->K : g->b + from,
                          g->packed ? k->gemm_cols : g->b_row, g->packed ? g->K * k->gemm_cols : k->gemm_cols, g->M, whole - from, g->K, g->add,
                          g->bias ? g->bias + from : NULL, g->function);
        from = whole > from ? whole : from;
    }
    for (ptrdiff_t j = from; j < to; j += k->gemm_cols)
        for (ptrdiff_t k0 = 0; k0 < g->K; k0 += matmul_kc) {
            ptrdiff_t kc = matmul_min(g->K - k0, matmul_kc), n = matmul_min(to - j, k->gemm_cols);
            const real *b = g->packed ? g->packed + j * g->K + k0 * k->gemm_cols : panel;
            if (!g->packed) k->gemm_pack_b(panel, g->b + k0 * g->b_row + j * g->b_col, g->b_row, g->b_col, n, kc);
            matmul_rows(k, g, 0, g->M, j, n, k0, kc, b, k->gemm_cols, kc * k->gemm_cols, own);
        }
}

/* blocks: all workers pack a block of b, then each walks its own rows. */
static void matmul_blocks(const fsq_team *team, const FSQ_FN(kernels) *k, const matmul_args *g, real *shared, real *own) {
    ptrdiff_t m0, m1, p0, p1, cols = k->gemm_cols;
    fsq_share(team, g->M, k->gemm_rows, &m0, &m1);
    for (ptrdiff_t j = 0; j < g->N; j += matmul_nc)
        for (ptrdiff_t k0 = 0; k0 < g->K; k0 += matmul_kc) {
            ptrdiff_t kc = matmul_min(g->K - k0, matmul_kc), n = matmul_min(g->N - j, matmul_nc);
            if (g->packed) {
                matmul_rows(k, g, m0, m1, j, n, k0, kc, g->packed + j * g->K + k0 * cols, cols, g->K * cols, own);
                continue;
            }
            fsq_barrier(team);                                                /* nobody reads the last block any more */
            fsq_share(team, (n + cols - 1) / cols, 1, &p0, &p1);
            for (ptrdiff_t p = p0; p < p1; p++)
                k->gemm_pack_b(shared + p * cols * kc, g->b + k0 * g->b_row + (j + p * cols) * g->b_col, g->b_row, g->b_col,
                               matmul_min(n - p * cols, cols), kc);
            fsq_barrier(team);
            matmul_rows(k, g, m0, m1, j, n, k0, kc, shared, cols, cols * kc, own);
        }
}

/* K = 0: an empty sum. */
static void matmul_empty(const fsq_team *team, const matmul_args *g) {
    if (team->rank || g->add) return;
    for (ptrdiff_t m = 0; m < g->M; m++)
        for (ptrdiff_t n = 0; n < g->N; n++) g->c[m * g->c_row + n] = g->bias ? g->bias[n] : 0;
    if (g->function != FSQ_IDENTITY)
        for (ptrdiff_t m = 0; m < g->M; m++)
            FSQ_FN(kernels_now)()->pointwise_forward[g->function](g->c + m * g->c_row, g->c + m * g->c_row, g->N);
}

static void matmul_team(const fsq_team *team, const matmul_args *g, real *work) {
    const FSQ_FN(kernels) *k = FSQ_FN(kernels_now)();
    if (g->M == 0 || g->N == 0) return;
    if (g->K == 0) { matmul_empty(team, g); return; }
    real *shared = (real *)(((uintptr_t)work + 63) & ~(uintptr_t)63);
    ptrdiff_t kc = matmul_min(g->K, matmul_kc);
    ptrdiff_t own = matmul_up(matmul_up(matmul_min(g->M, matmul_mc) * kc, 64) + k->gemm_cols * kc, 64);
    real *mine = shared + (g->packed ? 0 : matmul_min(matmul_up(g->N, k->gemm_cols), matmul_nc) * kc) + team->rank * own;
    if (matmul_by_columns(k, g->M, g->N, g->K, team->size)) matmul_columns(team, k, g, mine);
    else matmul_blocks(team, k, g, shared, mine);
}

/* ---------------------------------------------------------------- entry points */

typedef struct {
    matmul_args one;
    ptrdiff_t batch, c_batch, a_batch, b_batch;
    size_t solo;                                                              /* scratch of one worker alone, in reals */
    real *work;
} matmul_batch;

static void matmul_body(const fsq_team *team, void *context) {
    const matmul_batch *m = context;
    int alone = m->batch >= team->size;                                       /* each product by one worker, or all by all */
    fsq_team solo = {0, 1, NULL};
    ptrdiff_t from = 0, to = m->batch;
    if (alone) fsq_share(team, m->batch, 1, &from, &to);
    for (ptrdiff_t e = from; e < to; e++) {
        matmul_args g = m->one;
        g.a += e * m->a_batch;
        g.b += e * m->b_batch;
        g.c += e * m->c_batch;
        if (!alone && e > from) fsq_barrier(team);                            /* scratch is free again */
        matmul_team(alone ? &solo : team, &g, alone ? m->work + (size_t)team->rank * m->solo : m->work);
    }
}

static size_t matmul_solo(const FSQ_FN(kernels) *k, ptrdiff_t M, ptrdiff_t N, ptrdiff_t K, int packed) {
    return (matmul_work(k, M, N, K, packed, 1) + 63) / 64 * 64 / sizeof(real);
}

size_t FSQ_FN(matmul_work)(ptrdiff_t M, ptrdiff_t N, ptrdiff_t K, int packed, int threads) {
    const FSQ_FN(kernels) *k = FSQ_FN(kernels_now)();
    size_t together = matmul_work(k, M, N, K, packed, threads), alone = matmul_solo(k, M, N, K, packed) * sizeof(real) * (size_t)threads;
    return together > alone ? together : alone;
}

void FSQ_FN(matmul)(real *c, const real *a, const real *b, const real *packed, const real *bias, ptrdiff_t batch, ptrdiff_t M, ptrdiff_t N,
                    ptrdiff_t K, ptrdiff_t c_batch, ptrdiff_t c_row, ptrdiff_t a_batch, ptrdiff_t a_row, ptrdiff_t a_col, ptrdiff_t b_batch,
                    ptrdiff_t b_row, ptrdiff_t b_col, int accumulate, fsq_function function, int threads, void *work) {
    const FSQ_FN(kernels) *k = FSQ_FN(kernels_now)();
    matmul_batch m = {{c, a, b, packed, bias, M, N, K, c_row, a_row, a_col, b_row, b_col, accumulate, function},
                      batch, c_batch, a_batch, b_batch, matmul_solo(k, M, N, K, packed != NULL), work};
    /* A product costs its multiply-adds, or, with few rows, the bytes of b (about 40 a nanosecond from L2). */
    double flops = 2.0 * (double)M * (double)N * (double)K / k->flops_per_ns, bytes = (double)N * (double)K * sizeof(real) / 40;
    fsq_parallel(fsq_threads_for((double)batch * (flops > bytes ? flops : bytes), threads), matmul_body, &m);
}

size_t FSQ_FN(matmul_packed_size)(ptrdiff_t N, ptrdiff_t K) {
    return (size_t)(matmul_up(N, FSQ_FN(kernels_now)()->gemm_cols) * K);
}

typedef struct {
    real *panels;
    const real *b;
    ptrdiff_t N, K, b_row, b_col;
} matmul_pack_args;

static void matmul_pack_team(const fsq_team *team, const matmul_pack_args *p) {
    const FSQ_FN(kernels) *k = FSQ_FN(kernels_now)();
    ptrdiff_t from, to;
    fsq_share(team, p->N, k->gemm_cols, &from, &to);
    for (ptrdiff_t j = from; j < to; j += k->gemm_cols)
        k->gemm_pack_b(p->panels + j * p->K, p->b + j * p->b_col, p->b_row, p->b_col, matmul_min(to - j, k->gemm_cols), p->K);
}

static void matmul_pack_body(const fsq_team *team, void *context) { matmul_pack_team(team, context); }

void FSQ_FN(matmul_pack)(real *panels, const real *b, ptrdiff_t N, ptrdiff_t K, ptrdiff_t b_row, ptrdiff_t b_col, int threads) {
    matmul_pack_args p = {panels, b, N, K, b_row, b_col};
    fsq_parallel(fsq_threads_for((double)N * (double)K * sizeof(real) / 8, threads), matmul_pack_body, &p);   /* about 8 bytes a nanosecond */
}

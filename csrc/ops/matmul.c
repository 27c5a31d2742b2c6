/* matmul.c - blocking and threading of the product over the register tile of kernels/gemm.c.
 *
 * Two ways, after Goto & van de Geijn 2008 and BLIS (Van Zee & van de Geijn 2015):
 *   columns  each worker owns panels of columns and walks all rows, so no barrier is needed. For few rows, where a stays in L2.
 *   blocks   each worker owns a range of rows.
 * A right operand whose rows are contiguous is read where it lies, as long as a panel of it stays in L2 from one group of rows to
 * the next; else it is packed, in "blocks" by all workers together, one block of k at a time.
 * Nothing splits k between workers: an element is one chain of additions, and the bits do not depend on the threads. */
#include "matmul.h"

#include <string.h>

/* On a Zen 4 with 1 MB of L2, float32: 512 rows in one block for 256 took 2 to 5 % less time from 512 to 2048 cubed, and 48 to 192
 * rows of a made no difference. A b that is read where it lies saved 28 % with 16 rows of a (2048 x 512), 2 % with 512 (512 x 512),
 * and cost 2 to 4 % from 4 MB on. On Sapphire Rapids (2 MB of L2) it was even up to 128 rows and cost 5 to 30 % from 256 on, most
 * where rows lie a multiple of 2 KB apart and meet in few sets of the caches. */
enum {
    matmul_kc = 512,            /* rows of b in one block: a panel (512 x 64 floats = 128 KB) streams from L2 */
    matmul_mc = 96,             /* rows of a in one block: 96 x 512 floats = 192 KB of L2 */
    matmul_nc = 2048,           /* columns of b packed at a time: 4 MB of floats */
    matmul_a_bytes = 384 << 10, /* the most of a (one block of k) that "columns" walks again for each panel: part of L2 */
    matmul_b_bytes = 1 << 20,   /* the most of b that "blocks" reads where it lies, */
    matmul_b_rows = 192         /* and the most rows of a for which it does */
};

static ptrdiff_t matmul_min(ptrdiff_t a, ptrdiff_t b) { return a < b ? a : b; }
static ptrdiff_t matmul_up(ptrdiff_t n, ptrdiff_t to) { return (n + to - 1) / to * to; }

/* a is read in place where its rows are contiguous: packing it too was slower, or no faster, from 256 to 2048 cubed on Cascade
 * Lake. A transposed one would touch a cache line for each k and is packed by row groups. */
static int matmul_pack_a(const matmul_args *g) { return g->a_col != 1; }

static int matmul_by_columns(const FSQ_FN(kernels) *k, ptrdiff_t M, ptrdiff_t N, ptrdiff_t K, int workers) {
    ptrdiff_t panels = (N + k->gemm_cols - 1) / k->gemm_cols, groups = (M + k->gemm_rows - 1) / k->gemm_rows;
    if (groups <= 1) return 1;
    if (M * matmul_min(K, matmul_kc) * (ptrdiff_t)sizeof(real) > matmul_a_bytes) return 0;
    ptrdiff_t rounds = (panels + workers - 1) / workers, group_rounds = (groups + workers - 1) / workers;
    return rounds * groups <= group_rounds * panels;                          /* no worse balanced than rows would be */
}

static size_t matmul_work(const FSQ_FN(kernels) *k, ptrdiff_t M, ptrdiff_t N, ptrdiff_t K, int packed, int threads) {
    ptrdiff_t kc = matmul_min(K, matmul_kc);
    ptrdiff_t own = matmul_up(matmul_min(M, matmul_mc) * kc, 64) + k->gemm_cols * kc; /* a worker's block of a, and a panel of b */
    ptrdiff_t shared = packed ? 0 : matmul_min(matmul_up(N, k->gemm_cols), matmul_nc) * kc;
    return (size_t)(shared + threads * matmul_up(own, 64)) * sizeof(real) + 64;
}

/* Rows m0 ... m1 of c, n columns from j0, against the block of k that starts at k0: blocks of rows, a packed where that pays. b is there
 * in panels b_panel apart, its rows b_k apart. */
static void matmul_rows(const FSQ_FN(kernels) *k, const matmul_args *g, ptrdiff_t m0, ptrdiff_t m1, ptrdiff_t j0, ptrdiff_t n, ptrdiff_t k0,
                        ptrdiff_t kc, const real *panels, ptrdiff_t b_k, ptrdiff_t b_panel, real *own) {
    int last = k0 + kc == g->K, pack = matmul_pack_a(g);
    for (ptrdiff_t m = m0; m < m1; m += matmul_mc) {
        ptrdiff_t rows = matmul_min(m1 - m, matmul_mc);
        const real *a = g->a + m * g->a_row + k0 * g->a_col;
        if (pack) k->gemm_pack_a(own, a, g->a_row, g->a_col, rows, kc);
        k->gemm_block(g->c + m * g->c_row + j0, g->c_row, pack ? own : a, g->a_row, g->a_col, pack, panels, b_k, b_panel, rows, n, kc,
                      g->add || k0 > 0, last && g->bias ? g->bias + j0 : NULL, last ? g->function : FSQ_IDENTITY);
    }
}

/* Rows m0 ... m1 and columns from ... to, where nothing is shared between workers: b is read where it lies, packed by the caller
 * or contiguous in whole vectors; what is left of it is packed panel by panel. */
static void matmul_alone(const FSQ_FN(kernels) *k, const matmul_args *g, ptrdiff_t m0, ptrdiff_t m1, ptrdiff_t from, ptrdiff_t to, real *own) {
    ptrdiff_t cols = k->gemm_cols, whole = g->packed ? to : g->b_col == 1 ? to - (to - from) % k->lanes : from, kc;
    if (whole > from)
        for (ptrdiff_t k0 = 0; k0 < g->K; k0 += kc) {
            kc = matmul_min(g->K - k0, matmul_kc);
            if (g->packed) matmul_rows(k, g, m0, m1, from, whole - from, k0, kc, g->packed + from * g->K + k0 * cols, cols, g->K * cols, own);
            else matmul_rows(k, g, m0, m1, from, whole - from, k0, kc, g->b + k0 * g->b_row + from, g->b_row, cols, own);
        }
    real *panel = own + matmul_up(matmul_min(g->M, matmul_mc) * matmul_min(g->K, matmul_kc), 64);
    for (ptrdiff_t j = whole; j < to; j += cols)
        for (ptrdiff_t k0 = 0; k0 < g->K; k0 += kc) {
            ptrdiff_t n = matmul_min(to - j, cols);
            kc = matmul_min(g->K - k0, matmul_kc);
            k->gemm_pack_b(panel, g->b + k0 * g->b_row + j * g->b_col, g->b_row, g->b_col, n, kc);
            matmul_rows(k, g, m0, m1, j, n, k0, kc, panel, cols, cols * kc, own);
        }
}

/* columns: this worker's panels, each over all rows. */
static void matmul_columns(const fsq_team *team, const FSQ_FN(kernels) *k, const matmul_args *g, real *own) {
    ptrdiff_t from, to;
    fsq_share(team, g->N, g->packed || g->N >= team->size * k->gemm_cols ? k->gemm_cols : k->lanes, &from, &to);
    if (g->M == 1 && !g->packed && g->b_col == 1)
        k->gemm_row(g->c + from, g->a, g->a_col, g->b + from, g->b_row, to - from, g->K, g->add, g->bias ? g->bias + from : NULL, g->function);
    else if (g->M <= k->gemm_turned_rows && !g->packed && g->b_row == 1)
        k->gemm_turned(g->c + from, g->c_row, g->a, g->a_row, g->a_col, g->b + from * g->b_col, g->b_col, g->M, to - from, g->K, g->add,
                       g->bias ? g->bias + from : NULL, g->function);
    else matmul_alone(k, g, 0, g->M, from, to, own);
}

/* Whether "blocks" reads b where it lies. Packing it pays when it is large, or when many rows share its cost. */
static int matmul_b_lies_well(const matmul_args *g) {
    return g->b_col == 1 && g->N * g->K * (ptrdiff_t)sizeof(real) <= matmul_b_bytes && g->M <= matmul_b_rows;
}

/* blocks: each worker walks its own rows; b may first be packed by all of them, a block of k at a time. */
static void matmul_blocks(const fsq_team *team, const FSQ_FN(kernels) *k, const matmul_args *g, real *shared, real *own) {
    ptrdiff_t m0, m1, p0, p1, cols = k->gemm_cols;
    fsq_share(team, g->M, k->gemm_rows, &m0, &m1);
    if (g->packed || matmul_b_lies_well(g)) {
        matmul_alone(k, g, m0, m1, 0, g->N, own);
        return;
    }
    for (ptrdiff_t j = 0; j < g->N; j += matmul_nc)
        for (ptrdiff_t k0 = 0; k0 < g->K; k0 += matmul_kc) {
            ptrdiff_t kc = matmul_min(g->K - k0, matmul_kc), n = matmul_min(g->N - j, matmul_nc);
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
            FSQ_FN(kernels_now)()->pointwise_forward[g->function](g->c + m * g->c_row, g->c + m * g->c_row, g->N, 0);
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

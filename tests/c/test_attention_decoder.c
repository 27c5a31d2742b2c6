/* test_attention_decoder.c - the attention decoder of every option in buffers of the very size, which a sanitizer watches: bits for any
 * threads, and what holds for any numbers. Compiled once for each float type. Values and gradients are tested from Python. */
#include <math.h>
#include <string.h>

#include "check.h"
#include "core/real.h"
#include "fastseq.h"

#if defined FSQ_F32
#define TEST_NAME(name) name##_f32
#else
#define TEST_NAME(name) name##_f64
#endif

enum { GRU = 1, ADDITIVE = 2, PROJECTED = 4, LENGTHS = 8, STATE = 16, UPSTREAM = 32, FAR = 64, KINDS = 128 };
enum { OUTPUTS = 18 };

static real *reals(ptrdiff_t n) { return check_buffer((size_t)n * sizeof(real), sizeof(real)); }
static real *random_reals(ptrdiff_t n, double most) {
    real *x = reals(n);
    for (ptrdiff_t i = 0; i < n; i++) x[i] = (real)check_uniform(-most, most);
    return x;
}

static int64_t *random_lengths(ptrdiff_t B, ptrdiff_t most) {
    int64_t *lengths = check_buffer((size_t)B * sizeof(int64_t), sizeof(int64_t));
    for (ptrdiff_t b = 0; b < B; b++) lengths[b] = (int64_t)(check_bits() % (uint64_t)(most + 1));
    return lengths;
}

static fsq_attention_decoder_call make_call(const ptrdiff_t sizes[6], int kind) {
    fsq_attention_decoder_call c = {.cell = kind & GRU ? FSQ_GRU : FSQ_LSTM, .additive = !!(kind & ADDITIVE), .projects = !!(kind & (ADDITIVE | PROJECTED)),
                                    .T = sizes[0], .B = sizes[1], .S = sizes[2], .I = sizes[3], .H = sizes[4], .M = sizes[5], .scale = 0.5};
    if (!c.projects) c.M = c.H;
    c.A = c.additive ? c.M + 2 : c.M;
    if (kind & LENGTHS) c.lengths = random_lengths(c.B, c.T), c.memory_lengths = random_lengths(c.B, c.S);
    return c;
}

static ptrdiff_t steps_of(const fsq_attention_decoder_call *c) {
    ptrdiff_t N = c->lengths ? 0 : c->T * c->B;
    for (ptrdiff_t b = 0; c->lengths && b < c->B; b++) N += (ptrdiff_t)c->lengths[b];
    return N;
}

/* Forward and backward with so many threads; all results in `out`, their sizes in `counts`. */
static void run(const fsq_attention_decoder_call *c, fsq_attention_decoder_arrays a, fsq_attention_decoder_gradients g, int threads, real **out, ptrdiff_t *counts) {
    ptrdiff_t N = steps_of(c), G = c->cell == FSQ_LSTM ? 4 : 3, H = c->H, lstm = c->cell == FSQ_LSTM, TB = c->T * c->B;
    const ptrdiff_t sizes[OUTPUTS] = {TB * H, c->B * H, lstm * c->B * H, TB * c->S, TB * c->I, c->additive * c->B * c->S * c->A, c->B * c->S * c->M, c->B * H,
                                      lstm * c->B * H, G * H * (c->I + c->M), G * H * H, G * H, G * H, H * (H + c->M), H, c->projects * c->A * H, c->additive * c->A, 0};
    for (int i = 0; i < OUTPUTS; i++) {
        counts[i] = sizes[i];
        out[i] = reals(sizes[i]);
        memset(out[i], 0, (size_t)sizes[i] * sizeof(real));
    }
    a.packed = reals((ptrdiff_t)FSQ_FN(attention_decoder_packed_size)(c));
    FSQ_FN(attention_decoder_pack)((real *)a.packed, c, &a.weights, threads);
    a.outputs = out[0], a.h_n = out[1], a.c_n = out[2], a.a = out[3];
    a.both = reals(N * (H + c->M)), a.cells = lstm ? reals(N * H) : NULL, a.queries = c->projects ? reals(N * c->A) : NULL, a.gates = reals(N * 4 * H);
    FSQ_FN(attention_decoder_forward)(c, &a, threads, check_buffer(FSQ_FN(attention_decoder_forward_work)(c, threads), 8));
    g.dx = out[4], g.dkeys = out[5], g.dmemory = out[6], g.dh_0 = out[7], g.dc_0 = out[8], g.dw_ih = out[9], g.dw_hh = out[10], g.db_ih = out[11];
    g.db_hh = out[12], g.dw_out = out[13], g.db_out = out[14], g.dw_query = out[15], g.du = out[16];
    FSQ_FN(attention_decoder_backward)(c, &a, &g, threads, check_buffer(FSQ_FN(attention_decoder_backward_work)(c, threads), 8));
}

static void test_problem(const ptrdiff_t sizes[6], int kind) {
    fsq_attention_decoder_call c = make_call(sizes, kind);
    ptrdiff_t G = c.cell == FSQ_LSTM ? 4 : 3, H = c.H, TB = c.T * c.B, lstm = c.cell == FSQ_LSTM, counts[OUTPUTS];
    double far = kind & FAR ? 400 : 1;                      /* beyond the exponentials' range in both types */
    fsq_attention_decoder_arrays a = {
        .weights = {random_reals(G * H * (c.I + c.M), 1), random_reals(G * H * H, 1), random_reals(G * H, 1), random_reals(G * H, 1), random_reals(H * (H + c.M), 1),
                    random_reals(H, 1), c.projects ? random_reals(c.A * H, 1) : NULL, c.additive ? random_reals(c.A, 1) : NULL},
        .x = random_reals(TB * c.I, 1), .keys = c.additive ? random_reals(c.B * c.S * c.A, far) : NULL, .memory = random_reals(c.B * c.S * c.M, 1)};
    if (kind & STATE) a.h_0 = random_reals(c.B * H, 1), a.c_0 = lstm ? random_reals(c.B * H, 1) : NULL;
    fsq_attention_decoder_gradients g = {.doutputs = random_reals(TB * H, 1)};
    if (kind & UPSTREAM) g.dh_n = random_reals(c.B * H, 1), g.dc_n = lstm ? random_reals(c.B * H, 1) : NULL, g.da = random_reals(TB * c.S, 1);
    real *out[2][OUTPUTS];
    run(&c, a, g, check_threads, out[0], counts);
    run(&c, a, g, 1, out[1], counts);
    for (int i = 0; i < OUTPUTS; i++) {
        if (counts[i]) CHECK_WITH(!memcmp(out[0][i], out[1][i], (size_t)counts[i] * sizeof(real)), "kind %d: result %d depends on the threads", kind, i);
        for (ptrdiff_t j = 0; j < counts[i]; j++) CHECK(isfinite(out[0][i][j]));
    }
    for (ptrdiff_t row = 0; row < TB; row++) {
        ptrdiff_t b = row % c.B, S = c.memory_lengths ? (ptrdiff_t)c.memory_lengths[b] : c.S;
        int seen = S && (!c.lengths || row / c.B < c.lengths[b]);
        double sum = 0;
        for (ptrdiff_t i = 0; i < c.S; i++) sum += (double)out[0][3][row * c.S + i];
        CHECK_WITH(fabs(sum - seen) < 1e-5, "kind %d: the weights of row %td add up to %g", kind, row, sum);
    }
    check_free_all();
}

void TEST_NAME(test_attention_decoder)(void) {
    static const ptrdiff_t sizes[][6] = {{3, 2, 4, 3, 5, 6}, {2, 7, 9, 17, 33, 16}, {1, 1, 1, 1, 1, 1}, {2, 3, 0, 2, 4, 4}, {0, 3, 2, 2, 4, 4}, {2, 0, 2, 2, 4, 4}};
    for (size_t s = 0; s < sizeof sizes / sizeof sizes[0]; s++)
        for (int kind = 0; kind < KINDS; kind++) {
            if (kind & FAR && !(kind & ADDITIVE)) continue;
            check_seed((uint64_t)(s * KINDS + (size_t)kind));
            test_problem(sizes[s], kind);
        }
}

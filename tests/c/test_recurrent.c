/* test_recurrent.c - recurrent layers of every cell and option: the same bits for any threads, without a cache and in place, in two
 * parts of time, and stacked; gradients against differences. Compiled once for each float type. Their numbers are tested from Python. */
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

enum { WEIGHTS = 12, Y = WEIGHTS, H_N, C_N, CELLS, CACHE, DX, DH_0, DC_0, DSTATES, OUTPUTS }; /* gradients of the weights first */
enum { RAGGED = 1, EMPTY = 2, RESETS = 4, BARE = 8, KINDS = 16 };             /* bare: no states, no biases, no upstream but dy */

typedef struct {
    fsq_cell cell;
    int norm, peepholes, projection, draw;
    double dropout, zoneout_h, zoneout_c;
} options;

static const options all_options[] = {
    {.cell = FSQ_RNN_TANH}, {.cell = FSQ_RNN_RELU}, {.cell = FSQ_LSTM}, {.cell = FSQ_GRU}, {.cell = FSQ_GRU_BEFORE}, {.cell = FSQ_MUT1},
    {.cell = FSQ_MUT2}, {.cell = FSQ_MUT3, .zoneout_h = 0.2},
    {.cell = FSQ_RNN_TANH, .draw = 1, .dropout = 0.3, .zoneout_h = 0.2}, {.cell = FSQ_GRU, .draw = 1, .dropout = 0.3, .zoneout_h = 0.2},
    {.cell = FSQ_GRU_BEFORE, .draw = 1, .dropout = 0.3, .zoneout_h = 0.2}, {.cell = FSQ_MUT3, .draw = 1, .dropout = 0.3},
    {.cell = FSQ_LSTM, .peepholes = 1, .zoneout_h = 0.1, .zoneout_c = 0.3}, {.cell = FSQ_LSTM, .projection = 1},
    {.cell = FSQ_LSTM, .projection = 1, .peepholes = 1, .draw = 1, .dropout = 0.3, .zoneout_h = 0.2, .zoneout_c = 0.4},
    {.cell = FSQ_LSTM, .norm = 1}, {.cell = FSQ_GRU, .norm = 1, .draw = 1, .dropout = 0.3, .zoneout_h = 0.2},
    {.cell = FSQ_LSTM, .norm = 1, .projection = 1, .peepholes = 1, .draw = 1, .dropout = 0.3, .zoneout_h = 0.2, .zoneout_c = 0.4}};

/* A layer of D directions with its inputs, upstream gradients and the outputs of its last run; `inputs`: those to differentiate by. */
typedef struct {
    fsq_recurrent_call call;
    fsq_recurrent_direction way[2];
    fsq_recurrent_gradients back[2];
    int D;
    real *out[2][OUTPUTS], *inputs[2][WEIGHTS + 3];
    ptrdiff_t size[OUTPUTS], input_size[WEIGHTS + 3];
} layer;

static real *reals(ptrdiff_t n) { return check_buffer((size_t)n * sizeof(real), sizeof(real)); }
static real *random_reals(ptrdiff_t n, double scale) {
    real *x = reals(n);
    for (ptrdiff_t i = 0; i < n; i++) x[i] = (real)check_uniform(-scale, scale);
    return x;
}
static int same_bits(const real *a, const real *b, ptrdiff_t n) { return n == 0 || memcmp(a, b, (size_t)n * sizeof(real)) == 0; }

static layer layer_new(const options *o, const ptrdiff_t sizes[4], int D, int kind) {
    ptrdiff_t T = sizes[0], B = sizes[1], I = sizes[2], H = sizes[3], G = o->cell == FSQ_LSTM ? 4 : o->cell <= FSQ_RNN_RELU ? 1 : 3;
    ptrdiff_t P = o->projection ? (H + 1) / 2 : H, lstm = o->cell == FSQ_LSTM, mut = o->cell >= FSQ_MUT1, bias = !(kind & BARE), norm = o->norm;
    layer s = {.D = D, .call = {o->cell, o->norm, T, B, I, H, P, 0, T, NULL, NULL, o->dropout, o->zoneout_h, o->zoneout_c, o->draw}};
    const ptrdiff_t sizes_in[] = {G * H * I, G * H * P, bias * G * H, bias * !mut * G * H, (P != H) * P * H, o->peepholes * 3 * H, norm * G * H, norm * G * H,
                                  norm * G * H, norm * G * H, norm * lstm * H, norm * lstm * H, T * B * I, bias * B * P, bias * lstm * B * H};
    const ptrdiff_t sizes_out[] = {G * H * I, G * H * P, G * H, !mut * G * H, sizes_in[4], sizes_in[5], sizes_in[6], sizes_in[7], sizes_in[8], sizes_in[9],
                                   sizes_in[10], sizes_in[11], T * B * P * D, B * P, lstm * B * H, lstm * T * B * H,
                                   T * B * fsq_recurrent_cache_width(&s.call), T * B * I, B * P, lstm * B * H, T * B * P};
    memcpy(s.input_size, sizes_in, sizeof sizes_in);
    memcpy(s.size, sizes_out, sizeof sizes_out);
    if (kind & (RAGGED | EMPTY)) {
        int64_t *lengths = check_buffer((size_t)B * sizeof *lengths, 0);
        for (ptrdiff_t b = 0; b < B; b++) lengths[b] = kind & EMPTY ? 0 : (int64_t)(check_bits() % (uint64_t)(T + 1));
        s.call.lengths = lengths;
    }
    if (kind & RESETS) {
        unsigned char *reset = check_buffer((size_t)(T * B), 0);
        for (ptrdiff_t i = 0; i < T * B; i++) reset[i] = check_bits() % 4 == 0;
        s.call.reset = reset;
    }
    real *x = random_reals(T * B * I, 1), *dy = random_reals(s.size[Y], 1);
    for (int d = 0; d < D; d++) {
        const void **weight = (const void **)&s.way[d].weights;
        for (int i = 0; i < WEIGHTS + 3; i++)               /* there even where they have no elements, if the layer has such */
            s.inputs[d][i] = i == WEIGHTS ? x : s.input_size[i] || i < 2 ? random_reals(s.input_size[i], i < 2 ? 2 / sqrt((double)(I + P)) : 0.5) : NULL;
        for (int i = 0; i < WEIGHTS; i++) weight[i] = s.inputs[d][i];
        real *packed = reals((ptrdiff_t)FSQ_FN(recurrent_packed_size)(&s.call));
        FSQ_FN(recurrent_pack)(packed, &s.call, &s.way[d].weights, check_threads);
        s.way[d] = (fsq_recurrent_direction){d, check_bits(), check_bits(), check_bits(), packed, s.way[d].weights, x, s.inputs[d][WEIGHTS + 1],
                                             s.inputs[d][WEIGHTS + 2], .y_row = D * P};
        s.back[d] = (fsq_recurrent_gradients){.dy = dy + d * P, .weights = 1};
        if (kind & BARE) continue;
        s.back[d].dh_n = random_reals(B * P, 1);
        if (lstm) s.back[d].dc_n = random_reals(B * H, 1), s.back[d].dcells = random_reals(T * B * H, 1);
    }
    return s;
}

/* New outputs; those that a run does not write stay as they are, equal to those of another run. */
static void layer_outputs(layer *s) {
    for (int d = 0; d < s->D; d++) {
        void **gradient = &s->back[d].dw_ih;
        for (int i = 0; i < OUTPUTS; i++) s->out[d][i] = i == Y && d ? s->out[0][Y] : s->size[i] || i < 2 || i == Y ? reals(s->size[i]) : NULL;
        for (int i = 0; i < WEIGHTS; i++) gradient[i] = s->out[d][i];
        s->way[d].y = s->out[d][Y] + d * s->call.P, s->way[d].h_n = s->out[d][H_N], s->way[d].c_n = s->out[d][C_N];
        s->way[d].cells = s->out[d][CELLS], s->way[d].cache = s->out[d][CACHE];
        s->back[d].dx = s->out[d][DX], s->back[d].dh_0 = s->out[d][DH_0], s->back[d].dc_0 = s->out[d][DC_0], s->back[d].dstates = s->out[d][DSTATES];
    }
}

static void forward(const layer *s, int threads) {
    FSQ_FN(recurrent_forward)(&s->call, s->way, s->D, threads, check_buffer(FSQ_FN(recurrent_forward_work)(&s->call, s->D, threads), 0));
}

static void backward(const layer *s, int threads) {
    FSQ_FN(recurrent_backward)(&s->call, s->way, s->back, s->D, threads, check_buffer(FSQ_FN(recurrent_backward_work)(&s->call, s->D, threads), 0));
}

static void check_same(const layer *a, const layer *b, int first, int last, const char *run) {
    for (int d = 0; d < a->D; d++)
        for (int i = first; i <= last; i++)
            CHECK_WITH(same_bits(a->out[d][i], b->out[d][i], a->size[i]), "%s: output %d of direction %d, cell %d, T%td B%td I%td H%td", run, i, d,
                       a->call.cell, a->call.T, a->call.B, a->call.I, a->call.H);
}

/* Steps [from, to) alone: the arrays of whole sequences, from there on. */
static layer layer_part(const layer *s, ptrdiff_t from, ptrdiff_t to) {
    layer part = *s;
    ptrdiff_t rows = from * s->call.B, H = s->call.H, P = s->call.P;
    part.call.from = from, part.call.to = to;
    for (int d = 0; d < s->D; d++) {
        fsq_recurrent_direction *w = part.way + d;
        fsq_recurrent_gradients *g = part.back + d;
        w->x = (const real *)w->x + rows * s->call.I, w->y = (real *)w->y + rows * w->y_row, g->dy = (const real *)g->dy + rows * w->y_row;
        if (w->cells) w->cells = (real *)w->cells + rows * H;
        if (w->cache) w->cache = (real *)w->cache + rows * fsq_recurrent_cache_width(&s->call);
        if (g->dcells) g->dcells = (const real *)g->dcells + rows * H;
        if (g->dx) g->dx = (real *)g->dx + rows * s->call.I;
        if (g->dstates) g->dstates = (real *)g->dstates + rows * P;
    }
    return part;
}

/* In two calls the way of each direction, whose states go on in place; and the way back. */
static void test_parts(const layer *s, int threads) {
    for (int d = 0; d < s->D; d++) {
        layer one = *s, first, second;
        ptrdiff_t T = s->call.T, cut = T / 2;
        layer_outputs(&one);
        one.way[0] = one.way[d], one.back[0] = one.back[d], one.D = 1;
        first = d ? layer_part(&one, cut, T) : layer_part(&one, 0, cut), second = d ? layer_part(&one, 0, cut) : layer_part(&one, cut, T);
        forward(&first, threads);
        real *h = reals(s->size[H_N]), *c = reals(s->size[C_N]);
        if (s->size[H_N]) memcpy(h, one.out[d][H_N], (size_t)s->size[H_N] * sizeof(real));
        if (s->size[C_N]) memcpy(c, one.out[d][C_N], (size_t)s->size[C_N] * sizeof(real));
        second.way[0].h_0 = h, second.way[0].c_0 = s->size[C_N] ? c : NULL;
        forward(&second, 1);
        backward(&second, threads);
        first.back[0].dh_n = first.back[0].dh_0, first.back[0].dc_n = first.back[0].dc_0, first.back[0].accumulate = 1;
        backward(&first, threads);
        for (int i = 0; i < OUTPUTS; i++)
            if (i != Y || s->D == 1) CHECK_WITH(same_bits(one.out[d][i], s->out[d][i], s->size[i]), "in parts: output %d, cell %d", i, s->call.cell);
    }
}

/* sum (outputs upstream) over what the lengths leave. */
static double objective(const layer *s) {
    double sum = 0;
    ptrdiff_t B = s->call.B, H = s->call.H, P = s->call.P;
    for (int d = 0; d < s->D; d++) {
        const fsq_recurrent_gradients *g = s->back + d;
        for (ptrdiff_t row = 0; row < s->call.T * B; row++) {
            if (s->call.lengths && row / B >= s->call.lengths[row % B]) continue;
            for (ptrdiff_t p = 0; p < P; p++) sum += (double)s->out[0][Y][row * P * s->D + d * P + p] * (double)((const real *)g->dy)[row * P * s->D + p];
            for (ptrdiff_t u = 0; g->dcells && u < H; u++) sum += (double)s->out[d][CELLS][row * H + u] * (double)((const real *)g->dcells)[row * H + u];
        }
        for (ptrdiff_t p = 0; g->dh_n && p < B * P; p++) sum += (double)s->out[d][H_N][p] * (double)((const real *)g->dh_n)[p];
        for (ptrdiff_t u = 0; g->dc_n && u < B * H; u++) sum += (double)s->out[d][C_N][u] * (double)((const real *)g->dc_n)[u];
    }
    return sum;
}

/* Along one direction through all inputs at once: the sum of gradients and the central difference. Doubles only, and no relu, for its kink. */
static void test_gradients(layer *s) {
    const double step = 1e-6;
    double slope = 0, value[2], size = 1;
    real *back[2][WEIGHTS + 3];
    for (int d = 0; d < s->D; d++)
        for (int i = 0; i < WEIGHTS + 3; i++) {
            const real *g = s->out[d][i < WEIGHTS ? i : DX + i - WEIGHTS];
            back[d][i] = s->inputs[d][i] ? random_reals(s->input_size[i], 1) : NULL;
            if (i == WEIGHTS && d && s->input_size[i]) memcpy(back[d][i], back[0][i], (size_t)s->input_size[i] * sizeof(real));
            for (ptrdiff_t j = 0; back[d][i] && j < s->input_size[i]; j++) {
                ptrdiff_t row = i == WEIGHTS ? j / s->call.I : 0;
                if (i == WEIGHTS && s->call.lengths && row / s->call.B >= s->call.lengths[row % s->call.B]) continue;
                slope += (double)g[j] * (double)back[d][i][j], size += fabs((double)g[j]);
            }
        }
    for (int side = 0; side < 2; side++) {
        for (int d = 0; d < s->D; d++) {
            for (int i = 0; i < WEIGHTS + 3; i++)
                for (ptrdiff_t j = 0; back[d][i] && !(i == WEIGHTS && d) && j < s->input_size[i]; j++)
                    s->inputs[d][i][j] += (real)((side ? -2 : 1) * step) * back[d][i][j];
            FSQ_FN(recurrent_pack)((real *)s->way[d].packed, &s->call, &s->way[d].weights, 1);
        }
        forward(s, 1);
        value[side] = objective(s);
    }
    double off = fabs((value[0] - value[1]) / (2 * step) - slope) / size;
    CHECK_WITH(off < 1e-7, "cell %d, T%td B%td I%td H%td: gradients are %g off", s->call.cell, s->call.T, s->call.B, s->call.I, s->call.H, off);
}

static void test_layer(const options *o, const ptrdiff_t sizes[4], int D, int kind) {
    layer s = layer_new(o, sizes, D, kind), other = s;
    layer_outputs(&s);
    forward(&s, 1);
    backward(&s, 1);
    for (int threads = check_threads; threads <= check_threads + 1; threads++) {
        layer_outputs(&other);
        forward(&other, threads);
        backward(&other, threads);
        check_same(&s, &other, 0, OUTPUTS - 1, "threads");
    }
    layer_outputs(&other);
    for (int d = 0; d < D; d++) {                           /* as a stream does it */
        fsq_recurrent_direction *w = other.way + d;
        w->cache = w->cells = NULL;
        if (w->h_0 && w->h_n) w->h_0 = memcpy(w->h_n, w->h_0, (size_t)s.size[H_N] * sizeof(real));
        if (w->c_0 && w->c_n) w->c_0 = memcpy(w->c_n, w->c_0, (size_t)s.size[C_N] * sizeof(real));
    }
    forward(&other, check_threads + 1);
    check_same(&s, &other, Y, C_N, "in place");
    test_parts(&s, check_threads + 1);
    if (sizeof(real) == 8 && sizes[3] < 40 && o->cell != FSQ_RNN_RELU) test_gradients(&s);
    check_free_all();
}

/* Three layers at once are three calls. */
static void test_stack(const options *o, const ptrdiff_t sizes[4], int kind) {
    enum { L = 3 };
    layer s[L];
    fsq_recurrent_call calls[L];
    fsq_recurrent_direction ways[L];
    for (int l = 0; l < L; l++) {
        s[l] = layer_new(o, l ? (ptrdiff_t[]){sizes[0], sizes[1], s[0].call.P, sizes[3]} : sizes, 1, kind & ~(RAGGED | RESETS));
        s[l].call.lengths = l ? s[0].call.lengths : s[l].call.lengths;
        layer_outputs(s + l);
        if (l) s[l].way[0].x = s[l - 1].out[0][Y];
        forward(s + l, 1);
        calls[l] = s[l].call, ways[l] = s[l].way[0];
        ways[l].cache = ways[l].cells = NULL, ways[l].y = reals(s[l].size[Y]), ways[l].h_n = reals(s[l].size[H_N]);
        ways[l].c_n = ways[l].c_n ? reals(s[l].size[C_N]) : NULL;
        if (l) ways[l].x = ways[l - 1].y;
    }
    FSQ_FN(recurrent_stack)(calls, ways, L, check_threads + 1, check_buffer(FSQ_FN(recurrent_stack_work)(calls, L, check_threads + 1), 0));
    for (int l = 0; l < L; l++)
        CHECK_WITH(same_bits(ways[l].y, s[l].out[0][Y], s[l].size[Y]) && same_bits(ways[l].h_n, s[l].out[0][H_N], s[l].size[H_N]) &&
                       same_bits(ways[l].c_n, s[l].out[0][C_N], s[l].size[C_N]), "stacked layer %d, cell %d", l, o->cell);
    check_free_all();
}

void TEST_NAME(test_recurrent)(void) {
    /* the last two are shared by units where teams are forced: with more workers than blocks of units, and with all rows at once */
    static const ptrdiff_t sizes[][4] = {{5, 7, 3, 5}, {1, 1, 1, 1}, {9, 1, 20, 37}, {7, 13, 2, 35}, {0, 2, 3, 4}, {2, 0, 3, 4},
                                         {3, 2, 0, 6}, {3, 1, 900, 19}, {4, 2, 7, 165}};
    for (size_t o = 0; o < sizeof all_options / sizeof *all_options; o++)
        for (size_t n = 0; n < sizeof sizes / sizeof *sizes; n++) {
            for (int kind = 0; kind < KINDS; kind++)
                if (n == 0 || kind == (RAGGED | RESETS) || (n < 4 && kind == 0)) test_layer(all_options + o, sizes[n], 1 + (n < 7), kind);
            test_stack(all_options + o, sizes[n], n == 1 ? RAGGED : 0);
        }
}

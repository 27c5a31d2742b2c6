/* conv.c - convolution as a product of the weights and the columns that output positions see, in pieces that stay in L2.
 *
 * y (O, positions) = weight (O, taps) columns (taps, positions). All columns of an image would be kernel_h kernel_w times the image:
 * they exist only for a piece of the positions, of some samples or of a part of one, and for conv_depth taps at a time. A piece is as
 * wide as lets its columns, walked once for each few rows of the weights, and its product stay in L2 beside the weights.
 * Forward is one chain of multiply-adds over the taps, whatever the pieces. Backward, dx adds up the taps piece by piece; a sample is
 * cut at the same places in every batch, so a row's dx does not depend on the others. A worker owns pieces (forward), samples or
 * channels (dx), taps (dweight), channels (dbias): nothing is added up across workers. */
#include "matmul.h"

enum {
    conv_depth = 512,           /* taps at a time: matmul's block of k */
    conv_bytes = 512 << 10      /* of columns and product: half of the L2 of a Zen 4, a quarter of Sapphire Rapids' */
};

typedef struct {
    const fsq_conv_call *call;
    ptrdiff_t taps, depth, positions;
    ptrdiff_t samples, cuts, width;                         /* of a piece: samples, or the cuts of one sample, each up to width positions */
    ptrdiff_t blocks;                                       /* of samples: each has `cuts` pieces */
    ptrdiff_t own;                                          /* scratch of a worker, in reals */
} conv_plan;

static conv_plan conv_plan_of(const fsq_conv_call *c, int threads) {
    const FSQ_FN(kernels) *k = FSQ_FN(kernels_now)();
    conv_plan p = {.call = c, .taps = c->C * c->kernel_h * c->kernel_w, .positions = c->out_h * c->out_w, .cuts = 1};
    p.depth = matmul_min(p.taps, conv_depth);
    ptrdiff_t most = conv_bytes / (ptrdiff_t)sizeof(real) / (p.depth + c->O) / k->gemm_cols * k->gemm_cols;
    if (most < k->gemm_cols) most = k->gemm_cols;
    if (p.positions > most) {
        p.cuts = (p.positions + most - 1) / most;
        p.width = matmul_up((p.positions + p.cuts - 1) / p.cuts, k->lanes);
        p.cuts = (p.positions + p.width - 1) / p.width;
        p.samples = 1;
    } else {
        p.width = p.positions;
        p.samples = p.positions ? matmul_min(most / p.positions, (c->N + threads - 1) / threads) : 1;
        if (p.samples < 1) p.samples = 1;
    }
    p.blocks = (c->N + p.samples - 1) / p.samples;
    ptrdiff_t columns = p.samples * p.width;
    size_t forward = matmul_work(k, c->O, columns, p.depth, 0, 1), back = matmul_work(k, p.depth, columns, c->O, 0, 1);
    size_t weights = matmul_work(k, c->O, p.depth, columns, 0, 1), most_work = forward > back ? forward : back;
    p.own = matmul_up((p.depth + c->O) * columns, 64) + matmul_up((ptrdiff_t)((most_work > weights ? most_work : weights) / sizeof(real)) + 64, 64);
    return p;
}

static conv_piece conv_piece_of(const conv_plan *p, ptrdiff_t block, ptrdiff_t cut) {
    conv_piece piece = {block * p->samples, matmul_min((block + 1) * p->samples, p->call->N), cut * p->width, matmul_min((cut + 1) * p->width, p->positions)};
    return piece;
}

static ptrdiff_t conv_piece_columns(const conv_piece *piece) { return (piece->sample_end - piece->sample) * (piece->to - piece->from); }

/* A worker's scratch: columns (depth, ...), rows (O, ...), and matmul's. */
typedef struct { real *columns, *rows, *product; } conv_scratch;

static conv_scratch conv_scratch_of(const conv_plan *p, const fsq_team *team, void *work) {
    real *own = (real *)(((uintptr_t)work + 63) & ~(uintptr_t)63) + team->rank * p->own;
    ptrdiff_t columns = p->samples * p->width;
    return (conv_scratch){own, own + p->depth * columns, own + matmul_up((p->depth + p->call->O) * columns, 64)};
}

static void conv_product(const matmul_args *args, const conv_scratch *s) {
    fsq_team solo = {0, 1, NULL};
    matmul_team(&solo, args, s->product);
}

/* ---------------------------------------------------------------- forward */

typedef struct {
    conv_plan plan;
    real *y;
    const real *x, *weight, *bias;
    void *work;
} conv_forward_call;

static void conv_forward_piece(const conv_forward_call *f, const conv_scratch *s, ptrdiff_t group, const conv_piece *piece) {
    const FSQ_FN(kernels) *k = FSQ_FN(kernels_now)();
    const fsq_conv_call *c = f->plan.call;
    ptrdiff_t taps = f->plan.taps, columns = conv_piece_columns(piece);
    const real *x = f->x + group * c->C * c->H * c->W, *weight = f->weight + group * c->O * taps;
    for (ptrdiff_t k0 = 0, depth; k0 < taps; k0 += depth) {
        depth = matmul_min(taps - k0, f->plan.depth);
        k->conv_columns(s->columns, x, c, piece, k0, k0 + depth);
        matmul_args product = {s->rows, weight + k0, s->columns, NULL, NULL, c->O, columns, depth, columns, taps, 1, columns, 1, k0 > 0, FSQ_IDENTITY};
        conv_product(&product, s);
    }
    k->conv_store(f->y + group * c->O * f->plan.positions, s->rows, f->bias ? f->bias + group * c->O : NULL, c, piece);
}

static void conv_forward_part(const fsq_team *team, void *context) {
    const conv_forward_call *f = context;
    const conv_plan *p = &f->plan;
    conv_scratch s = conv_scratch_of(p, team, f->work);
    ptrdiff_t from, to, each = p->blocks * p->cuts;
    fsq_share(team, p->call->groups * each, 1, &from, &to);
    for (; from < to; from++) {
        conv_piece piece = conv_piece_of(p, from % each / p->cuts, from % p->cuts);
        conv_forward_piece(f, &s, from / each, &piece);
    }
}

static double conv_nanoseconds(const conv_plan *p) {
    const fsq_conv_call *c = p->call;
    return 2.0 * (double)c->N * (double)p->positions * (double)(c->groups * c->O) * (double)p->taps / FSQ_FN(kernels_now)()->flops_per_ns;
}

size_t FSQ_FN(conv_work)(const fsq_conv_call *call, int threads) {
    return (size_t)(conv_plan_of(call, threads).own * threads) * sizeof(real) + 64;
}

void FSQ_FN(conv_forward)(real *y, const real *x, const real *weight, const real *bias, const fsq_conv_call *call, int threads, void *work) {
    conv_forward_call f = {conv_plan_of(call, threads), y, x, weight, bias, work};
    if (f.plan.positions == 0 || call->N == 0) return;
    fsq_parallel(fsq_threads_for(conv_nanoseconds(&f.plan), threads), conv_forward_part, &f);
}

/* ---------------------------------------------------------------- backward */

typedef struct {
    conv_plan plan;
    real *dx, *dweight, *dbias;
    const real *dy, *x, *weight;
    void *work;
} conv_backward_call;

/* y = weight columns: dx += the columns of weight^T dy, taps [k0, k1) of a group in the samples of a block. */
static void conv_backward_block(const conv_backward_call *b, const conv_scratch *s, ptrdiff_t group, ptrdiff_t block, ptrdiff_t from, ptrdiff_t to) {
    const FSQ_FN(kernels) *k = FSQ_FN(kernels_now)();
    const fsq_conv_call *c = b->plan.call;
    ptrdiff_t taps = b->plan.taps;
    for (ptrdiff_t cut = 0; cut < b->plan.cuts; cut++) {
        conv_piece piece = conv_piece_of(&b->plan, block, cut);
        ptrdiff_t columns = conv_piece_columns(&piece);
        k->conv_load(s->rows, b->dy + group * c->O * b->plan.positions, c, &piece);
        for (ptrdiff_t k0 = from, depth; k0 < to; k0 += depth) {
            depth = matmul_min(to - k0, b->plan.depth);
            matmul_args product = {s->columns, b->weight + group * c->O * taps + k0, s->rows, NULL, NULL, depth, columns, c->O, columns, 1, taps, columns, 1, 0, FSQ_IDENTITY};
            conv_product(&product, s);
            k->conv_add(b->dx + group * c->C * c->H * c->W, s->columns, c, &piece, k0, k0 + depth);
        }
    }
}

/* dx: by samples where there are enough for everybody, else by channels. */
static void conv_backward_input(const fsq_team *team, const conv_backward_call *b, const conv_scratch *s) {
    const fsq_conv_call *c = b->plan.call;
    ptrdiff_t blocks = b->plan.blocks, block = 0, channels = c->groups * c->C, channel = 0, block_end = blocks, channel_end = channels;
    if (blocks >= team->size) fsq_share(team, blocks, 1, &block, &block_end);
    else fsq_share(team, channels, 1, &channel, &channel_end);
    if (channel == channel_end) return;
    ptrdiff_t plane = c->H * c->W, window = c->kernel_h * c->kernel_w, sample_end = matmul_min(block_end * b->plan.samples, c->N);
    for (ptrdiff_t n = block * b->plan.samples; n < sample_end; n++)
        memset(b->dx + (n * channels + channel) * plane, 0, (size_t)((channel_end - channel) * plane) * sizeof(real));
    for (; block < block_end; block++)
        for (ptrdiff_t g = channel / c->C; g * c->C < channel_end; g++) {
            ptrdiff_t first = channel > g * c->C ? channel - g * c->C : 0, end = matmul_min(channel_end - g * c->C, c->C);
            conv_backward_block(b, s, g, block, first * window, end * window);
        }
}

/* y = weight columns: dweight = dy columns^T, a chain over all positions of all samples. Each worker owns taps. */
static void conv_backward_weight(const fsq_team *team, const conv_backward_call *b, const conv_scratch *s) {
    const FSQ_FN(kernels) *k = FSQ_FN(kernels_now)();
    const fsq_conv_call *c = b->plan.call;
    ptrdiff_t taps = b->plan.taps, from, to;
    fsq_share(team, c->groups * taps, 1, &from, &to);
    for (ptrdiff_t g = from / taps; g * taps < to; g++)
        for (ptrdiff_t i = 0; i < b->plan.blocks * b->plan.cuts; i++) {
            conv_piece piece = conv_piece_of(&b->plan, i / b->plan.cuts, i % b->plan.cuts);
            ptrdiff_t columns = conv_piece_columns(&piece), end = matmul_min(to - g * taps, taps), depth;
            k->conv_load(s->rows, b->dy + g * c->O * b->plan.positions, c, &piece);
            for (ptrdiff_t k0 = from > g * taps ? from - g * taps : 0; k0 < end; k0 += depth) {
                depth = matmul_min(end - k0, b->plan.depth);
                k->conv_columns(s->columns, b->x + g * c->C * c->H * c->W, c, &piece, k0, k0 + depth);
                matmul_args product = {b->dweight + g * c->O * taps + k0, s->rows, s->columns, NULL, NULL, c->O, depth, columns, taps, columns, 1, 1, columns, i > 0, FSQ_IDENTITY};
                conv_product(&product, s);
            }
        }
}

static void conv_backward_bias(const fsq_team *team, const conv_backward_call *b) {
    const fsq_conv_call *c = b->plan.call;
    ptrdiff_t from, to, channels = c->groups * c->O, positions = b->plan.positions;
    fsq_share(team, channels, 1, &from, &to);
    for (; from < to; from++) b->dbias[from] = FSQ_FN(kernels_now)()->conv_sum(b->dy + from * positions, c->N, channels * positions, positions);
}

static void conv_backward_part(const fsq_team *team, void *context) {
    const conv_backward_call *b = context;
    conv_scratch s = conv_scratch_of(&b->plan, team, b->work);
    if (b->dx) conv_backward_input(team, b, &s);
    if (b->dweight) conv_backward_weight(team, b, &s);
    if (b->dbias) conv_backward_bias(team, b);
}

void FSQ_FN(conv_backward)(real *dx, real *dweight, real *dbias, const real *dy, const real *x, const real *weight, const fsq_conv_call *call,
                           int threads, void *work) {
    conv_backward_call b = {conv_plan_of(call, threads), dx, dweight, dbias, dy, x, weight, work};
    ptrdiff_t channels = call->groups * call->O;
    if (b.plan.positions == 0 || call->N == 0) {
        if (dx) memset(dx, 0, (size_t)(call->N * call->groups * call->C * call->H * call->W) * sizeof(real));
        if (dweight) memset(dweight, 0, (size_t)(channels * b.plan.taps) * sizeof(real));
        if (dbias) memset(dbias, 0, (size_t)channels * sizeof(real));
        return;
    }
    fsq_parallel(fsq_threads_for(conv_nanoseconds(&b.plan) * ((dx != NULL) + (dweight != NULL)), threads), conv_backward_part, &b);
}

/* recurrent.c - recurrent layers: packing, and the files of the op in their order. */
#include "recurrent.h"

#include "recurrent_order.c"
#include "recurrent_plan.c"
#include "recurrent_masks.c"

static int tile_starts(const fsq_recurrent_call *c) { return c->cell == FSQ_GRU ? 4 : (int)call_gates(c); }

/* Where the parts of a packed layer begin. */
static recurrent_layout layout_of(const fsq_recurrent_call *c) {
    const FSQ_FN(kernels) *k = FSQ_FN(kernels_now)();
    ptrdiff_t G = call_gates(c), tile = (c->H + k->lanes - 1) / k->lanes * (tile_starts(c) + (c->I + c->P) * G) * k->lanes;
    recurrent_layout at = {0};
    if (call_tiled(c)) at.w_hr = tile;
    else {
        ptrdiff_t columns = matmul_up(c->H, k->gemm_cols);
        at.ih_gate = columns * c->I;
        at.hh_gate = columns * c->P;
        at.w_ih = matmul_up(G * c->H, 16);
        at.w_hh = at.w_ih + G * at.ih_gate;
        at.w_hr = at.w_hh + G * at.hh_gate;
    }
    at.size = at.w_hr + (call_projects(c) ? matmul_up(c->P, k->gemm_cols) * c->H : 0);
    return at;
}

size_t FSQ_FN(recurrent_packed_size)(const fsq_recurrent_call *call) { return (size_t)layout_of(call).size; }

typedef struct {
    real *packed;
    const fsq_recurrent_call *call;
    const fsq_recurrent_weights *weights;
} recurrent_pack_args;

/* w (rows, K) transposed into panels of its rows. */
static void pack_panels(const fsq_team *team, real *panels, const void *w, ptrdiff_t rows, ptrdiff_t K) {
    matmul_pack_args p = {panels, w, rows, K, 1, K};
    matmul_pack_team(team, &p);
}

static void pack_staged(const fsq_team *team, const recurrent_pack_args *a, const recurrent_layout *at) {
    const fsq_recurrent_call *c = a->call;
    const real *b_ih = a->weights->b_ih, *b_hh = a->weights->b_hh;
    ptrdiff_t H = c->H, G = call_gates(c);
    for (ptrdiff_t j = 0; team->rank == 0 && j < G * H; j++) a->packed[j] = (b_ih ? b_ih[j] : 0) + (b_hh ? b_hh[j] : 0);
    for (ptrdiff_t g = 0; g < G; g++) {
        pack_panels(team, a->packed + at->w_ih + g * at->ih_gate, (const real *)a->weights->w_ih + g * H * c->I, H, c->I);
        pack_panels(team, a->packed + at->w_hh + g * at->hh_gate, (const real *)a->weights->w_hh + g * H * c->P, H, c->P);
    }
}

static void pack_body(const fsq_team *team, void *context) {
    const recurrent_pack_args *a = context;
    const fsq_recurrent_call *c = a->call;
    const FSQ_FN(kernels) *k = FSQ_FN(kernels_now)();
    const recurrent_layout at = layout_of(c);
    ptrdiff_t from, to;
    fsq_share(team, (c->H + k->lanes - 1) / k->lanes, 1, &from, &to);
    if (call_tiled(c))
        k->recurrent_pack_blocks(a->packed, a->weights->w_ih, c->I, a->weights->w_hh, a->weights->b_ih, a->weights->b_hh, (int)call_gates(c),
                                 tile_starts(c), c->I, c->P, c->H, from, to);
    else pack_staged(team, a, &at);
    if (call_projects(c)) pack_panels(team, a->packed + at.w_hr, a->weights->w_hr, c->P, c->H);
}

void FSQ_FN(recurrent_pack)(real *packed, const fsq_recurrent_call *call, const fsq_recurrent_weights *weights, int threads) {
    recurrent_pack_args a = {packed, call, weights};
    fsq_parallel(fsq_threads_for(recurrent_weights(call, 1) * sizeof(real) / 8, threads), pack_body, &a);
}

static ptrdiff_t forward_sums_row(const recurrent_forward_at *at, ptrdiff_t t);
static void backward_row(const recurrent_backward_at *at, recurrent_back_row *row, ptrdiff_t r);
static void chunk_product(const fsq_team *team, const recurrent_backward_run *k, real *c, const real *a, ptrdiff_t a_row, const real *b,
                          ptrdiff_t b_row, ptrdiff_t M, ptrdiff_t N, ptrdiff_t rows);

#include "recurrent_staged.c"
#include "recurrent_projection.c"
#include "recurrent_gated.c"
#include "recurrent_norm.c"
#include "recurrent_forward.c"
#include "recurrent_stack.c"
#include "recurrent_backward.c"

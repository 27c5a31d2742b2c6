/* recurrent_plan.c - how a recurrent layer's work is shared: the one cost model, and the constants that it rests on.
 *
 *   alone    one thread
 *   rows     each worker takes batch rows through the whole sequence: no barrier, but every worker streams all weights
 *   units    each worker owns hidden units, so its share of the weights stays in its cache: one barrier per step (staged cells two)
 * and with two directions: side by side, each with its half of the team, or one after the other with the whole of it.
 *
 * A step costs max(multiply-adds / peak, bytes of weights / rate of the cache that holds them) + cells + barriers, each part
 * divided by what shares it. The constants lie between what two machines gave (benchmarks/README.md). */

static const double recurrent_l2_bytes = 0.75e6;            /* of weights that stay in a core's L2 from step to step: of 1 MB */
static const double recurrent_l2_rate = 100, recurrent_l3_rate = 50; /* bytes a nanosecond: Zen 4 117 and 100, Cascade Lake 85 and 22 */
static const double recurrent_cell_ns = 2.0;                /* an LSTM's unit and row with 16 lanes: 1.8 to 2.2 on both */
/* The barrier itself takes 50 to 170; fetching what others wrote of h, and unequal shares, make 200 of it on two neighbouring cores and
 * 900 where the host has put them apart (both seen on one Zen 4 machine within a minute). */
static const double recurrent_barrier_ns = 500;

static double recurrent_larger(double a, double b) { return a > b ? a : b; }

static double recurrent_stream_ns(double bytes) {
    return bytes < 24e3 ? 0 : bytes / (bytes < recurrent_l2_bytes ? recurrent_l2_rate : recurrent_l3_rate);
}

static double recurrent_weights(const fsq_recurrent_call *c, int input) {
    double gates = (double)(call_gates(c) * c->H), width = (double)(c->P + (input ? c->I : 0));
    return gates * width + (call_projects(c) ? (double)(c->H * c->P) : 0);
}

/* Nanoseconds of one direction on a team of `threads`, and the best way to share it. A backward call counts no input product. */
static double recurrent_cost(const fsq_recurrent_call *c, double rows, double steps, int input, int threads, recurrent_split *best) {
    const FSQ_FN(kernels) *k = FSQ_FN(kernels_now)();
    double B = steps > 0 ? rows / steps : 0, weights = recurrent_weights(c, input), flops = 2 * weights * B / k->flops_per_ns;
    double bytes = weights * sizeof(real), cells = B * (double)c->H * recurrent_cell_ns * 16 / k->lanes * (double)(call_gates(c) + 1) / 5;
    ptrdiff_t grain = call_tiled(c) && !call_projects(c) ? k->lanes : k->gemm_cols, blocks = (c->H + grain - 1) / grain, n = threads;
    double row_share = c->B ? (double)((c->B + n - 1) / n) / (double)c->B : 1, unit_share = blocks ? (double)((blocks + n - 1) / n) / (double)blocks : 1;
    double alone = recurrent_larger(flops, recurrent_stream_ns(bytes)) + cells;
    double by_rows = recurrent_larger(flops * row_share, recurrent_stream_ns(bytes)) + cells * row_share;
    double barriers = recurrent_barrier_ns * (call_tiled(c) && !call_projects(c) ? 1 : 2);
    double by_units = recurrent_larger(flops * unit_share, recurrent_stream_ns(bytes / n)) + cells * unit_share + barriers;
    int forced = fsq_threads_for(0, threads) > 1;           /* tests want the threads even where one is faster */
    *best = RECURRENT_ALONE;
    if (threads == 1 || (alone <= by_rows && alone <= by_units && !forced)) return steps * alone;
    *best = by_rows <= by_units ? RECURRENT_ROWS : RECURRENT_UNITS;
    return steps * (by_rows <= by_units ? by_rows : by_units);
}

/* How D directions run: `groups` teams side by side, each sharing its directions as `split` says, on `threads` in all. */
typedef struct {
    int threads, groups;
    recurrent_split split;
} recurrent_plan;

static recurrent_plan recurrent_plan_of(const recurrent_order *o, int D, int input, int threads) {
    const fsq_recurrent_call *c = o->call;
    recurrent_plan plan = {1, 1, RECURRENT_ALONE};
    recurrent_split split;
    double rows = (double)o->rows, steps = (double)o->steps, alone = recurrent_cost(c, rows, steps, input, 1, &split);
    threads = fsq_threads_for(D * alone, threads);
    if (threads == 1) return plan;
    double best = recurrent_cost(c, rows, steps, input, threads, &split) * D;
    if (split != RECURRENT_ALONE) plan = (recurrent_plan){threads, 1, split};
    else best = D * alone;
    if (D == 2) {
        double apart = recurrent_cost(c, rows, steps, input, threads / 2, &split);
        if (apart < best) plan = (recurrent_plan){threads, 2, split};
    }
    return plan;
}

/* Steps per chunk of the input product; 0 where each step does its own. `team`: the threads that one direction has. */
static ptrdiff_t recurrent_input_chunk(const fsq_recurrent_call *c, recurrent_split split, int team) {
    const FSQ_FN(kernels) *k = FSQ_FN(kernels_now)();
    enum { chunk_bytes = 1 << 20, least_rows = 24 };        /* what stays in L2; rows that make a pass over W_ih pay */
    ptrdiff_t N = c->to - c->from, B = c->B, width = (c->H + k->lanes - 1) / k->lanes * k->lanes * call_gates(c);
    double bytes = recurrent_weights(c, 1) * sizeof(real) / (split == RECURRENT_UNITS ? team : 1);
    if (N == 0 || B == 0 || c->H == 0) return 0;
    if (call_tiled(c) && (N < 4 || c->I == 0 || (B > 4 && bytes < recurrent_l2_bytes))) return 0;
    ptrdiff_t chunk = chunk_bytes / (B * width * (ptrdiff_t)sizeof(real));
    if (chunk * B < least_rows) chunk = (least_rows + B - 1) / B;
    return chunk < N ? chunk : N;
}

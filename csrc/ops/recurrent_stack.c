/* recurrent_stack.c - stacked layers in one call: one after the other, each shared by all threads, or as a wavefront.
 *
 * Wavefront: every worker owns layers, and while one works on a piece of time the worker of the layer above works on the piece before:
 * one barrier per piece in place of one per step and layer, and each core keeps its own layers' weights. It pays where a layer alone
 * is too small to be shared: few rows, few units. */

/* One layer at work. */
typedef struct {
    recurrent_forward_run run;
    recurrent_forward_at at;
} stack_layer;

typedef struct {
    stack_layer *layers;
    int L;
    ptrdiff_t steps, piece;                                 /* steps in a piece of time */
} stack_args;

/* Steps of a piece, or 0: the layers go one after the other. A piece is worth its barrier, and no chunk of an input product ends
 * within it. */
static ptrdiff_t stack_piece(const stack_args *a, int threads) {
    enum { worth = 10 };                                    /* a piece takes so many barriers' time */
    ptrdiff_t steps = a->steps, most = steps;
    double apart = 0, alone = 0, slowest = 0;
    int workers = threads < a->L ? threads : a->L, forced = fsq_threads_for(0, threads) > 1;
    if (steps < 2 || a->L < 2 || threads < 2) return 0;
    for (int w = 0; w < workers; w++) {
        double own = 0;                                     /* of the layers that this worker would have, per step */
        for (int l = w; l < a->L; l += workers) {
            const recurrent_forward_run *f = &a->layers[l].run;
            recurrent_split split;
            ptrdiff_t chunk = recurrent_input_chunk(f->call, RECURRENT_ALONE, 1);
            double rows = (double)f->order.rows, one = recurrent_cost(f->call, rows, (double)steps, 1, 1, &split);
            apart += recurrent_cost(f->call, rows, (double)steps, 1, threads, &split);
            alone += one;
            own += one / (double)steps;
            if (chunk && chunk < most) most = chunk;
        }
        slowest = recurrent_larger(slowest, own);
    }
    ptrdiff_t piece = (ptrdiff_t)(worth * recurrent_barrier_ns / (slowest + 1)) + 1;
    piece = piece < most ? piece : most;
    double pieces = (double)((steps + piece - 1) / piece), wave = (pieces + a->L - 1) * ((double)piece * slowest + recurrent_barrier_ns);
    return forced || (wave < apart && fsq_threads_for(alone, threads) > 1) ? piece : 0;
}

static void stack_body(const fsq_team *team, void *context) {
    const stack_args *a = context;
    const fsq_team self = {0, 1, NULL};
    ptrdiff_t pieces = (a->steps + a->piece - 1) / a->piece;
    fsq_fp_state fp = fsq_flush_denormals();
    for (int l = team->rank; l < a->L; l += team->size) a->layers[l].at = forward_open(&self, &a->layers[l].run);
    for (ptrdiff_t wave = 0; wave < pieces + a->L - 1; wave++) {
        for (int l = team->rank; l < a->L; l += team->size) {
            ptrdiff_t from = (wave - l) * a->piece, to = from + a->piece < a->steps ? from + a->piece : a->steps;
            if (from >= 0 && from < to) forward_steps(&a->layers[l].at, from, to);
        }
        fsq_barrier(team);
    }
    for (int l = team->rank; l < a->L; l += team->size) forward_close(&a->layers[l].at);
    fsq_restore_denormals(fp);
}

size_t FSQ_FN(recurrent_stack_work)(const fsq_recurrent_call *calls, int L, int threads) {
    recurrent_scratch s = {NULL, 0};
    recurrent_take(&s, L, sizeof(stack_layer));
    for (int l = 0; l < L; l++) forward_run(calls + l, NULL, threads, &s);
    return s.used + 64;
}

void FSQ_FN(recurrent_stack)(const fsq_recurrent_call *calls, const fsq_recurrent_direction *layers, int L, int threads, void *work) {
    recurrent_scratch s = {recurrent_line(work), 0};
    stack_args a = {.layers = recurrent_take(&s, L, sizeof(stack_layer)), .L = L};
    void *rest = s.start + s.used;
    if (L == 1 || calls->to - calls->from < 2) {            /* a stream's step: no time for a plan of all */
        for (int l = 0; l < L; l++) FSQ_FN(recurrent_forward)(calls + l, layers + l, 1, threads, rest);
        return;
    }
    for (int l = 0; l < L; l++) a.layers[l].run = forward_run(calls + l, layers + l, threads, &s);
    a.steps = a.layers[0].run.order.steps;
    a.piece = stack_piece(&a, threads);
    for (int l = 0; l < L; l++) {
        recurrent_forward_run *f = &a.layers[l].run;
        if (a.piece) f->chunk = recurrent_input_chunk(f->call, RECURRENT_ALONE, 1) ? a.piece : 0;
        else FSQ_FN(recurrent_forward)(calls + l, layers + l, 1, threads, rest);
    }
    if (a.piece) fsq_parallel(threads < L ? threads : L, stack_body, &a);
}

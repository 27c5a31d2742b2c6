/* recurrent_staged.c - what the cells share whose sums go through memory (recurrent_gated.c, recurrent_norm.c), and the product of their
 * stages, of the projection and of the steps backwards. */

enum { staged_rows = 48 };                                  /* rows of x that one product takes where they must be gathered */

/* Reals of one row from stage to stage: the units' r v, and tanh v for MUT3; with layer norm U (d h'). */
static ptrdiff_t recurrent_inner_width(const fsq_recurrent_call *c) {
    return c->layer_norm ? call_gates(c) * c->H : c->cell == FSQ_MUT3 ? 2 * c->H : c->H;
}
/* The same backwards: the products' results, or what the gradients of the weights need (kernels/norm.c). */
static ptrdiff_t recurrent_back_inner_width(const fsq_recurrent_call *c) {
    return !c->layer_norm ? recurrent_inner_width(c) : c->cell == FSQ_LSTM ? 7 * c->H : 6 * c->H;
}

/* Columns [from, to) of c (rows, c_row) = a (rows, a_row) b (K, ...), with b in panels of panel_rows rows, those of the columns from `from`
 * on at `panels`. Blocks of k while a panel's part is in L1 or L2, the panels walked to and fro. add: to what is in c. */
static void panel_product(real *c, ptrdiff_t c_row, const real *a, ptrdiff_t a_row, ptrdiff_t rows, ptrdiff_t K, const real *panels,
                          ptrdiff_t panel_rows, ptrdiff_t from, ptrdiff_t to, int add, int backwards) {
    const FSQ_FN(kernels) *k = FSQ_FN(kernels_now)();
    ptrdiff_t cols = k->gemm_cols, wide = rows <= 3 ? 4 : 1, step = wide * cols;           /* few rows: several panels side by side */
    ptrdiff_t kc = rows <= k->gemm_rows || K < matmul_kc ? K : matmul_kc;
    for (ptrdiff_t n = from; n < to; n += step) {
        ptrdiff_t j = backwards ? from + (to - 1 - n) / step * step : n, width = to - j < step ? to - j : step;
        for (ptrdiff_t k0 = 0; k0 < K; k0 += kc)
            k->gemm_block(c + j, c_row, a + k0, a_row, 1, 0, panels + (j - from) * panel_rows + k0 * cols, cols, panel_rows * cols, rows, width,
                          k0 + kc < K ? kc : K - k0, add || k0 > 0, NULL, FSQ_IDENTITY);
    }
}

/* The sums of this step's places, and in the rows where theirs are. */
static real *staged_begin(const recurrent_forward_at *at) {
    const recurrent_forward_run *f = at->run;
    const fsq_recurrent_call *c = f->call;
    ptrdiff_t N = call_gates(c) * c->H, width = recurrent_inner_width(c);
    real *sums = f->sums + forward_sums_row(at, at->time) * N;
    for (ptrdiff_t r = at->share.r0; r < at->n; r++) {
        at->rows[r].sums = sums + r * N;
        at->rows[r].inner = f->inner + r * width;
    }
    return sums + at->share.r0 * N;
}

/* One gate's columns of this worker in c (places, G H), = or += a (places, a_row) U^T. */
static void staged_product(const recurrent_forward_at *at, ptrdiff_t gate, real *c, const real *a, ptrdiff_t a_row, int add) {
    const recurrent_forward_run *f = at->run;
    const fsq_recurrent_call *call = f->call;
    const recurrent_layout l = layout_of(call);
    const recurrent_share *share = &at->share;
    const real *panels = (const real *)f->direction->packed + l.w_hh + gate * l.hh_gate + share->u0 * call->P;
    panel_product(c + gate * call->H, call_gates(call) * call->H, a, a_row, at->n - share->r0, call->P, panels, call->P, share->u0, share->u1, add,
                  at->time & 1);
}

/* Rows [sums_row, sums_row + n) of the sums: W x and, where they belong there, the biases; this worker's units. */
static void staged_input(const recurrent_forward_at *at, ptrdiff_t sums_row, const real *const *x_rows, ptrdiff_t n) {
    const recurrent_forward_run *f = at->run;
    const fsq_recurrent_call *c = f->call;
    const recurrent_layout l = layout_of(c);
    const real *packed = f->direction->packed;
    ptrdiff_t I = c->I, H = c->H, G = call_gates(c), N = G * H, u0 = at->share.u0, u1 = at->share.u1;
    real *gathered = f->x + (f->x ? at->team->rank * staged_rows * I : 0);
    for (ptrdiff_t done = 0, rows; done < n; done += rows) {
        const real *x = x_rows[done];
        rows = f->x && n - done > staged_rows ? staged_rows : n - done;
        for (ptrdiff_t r = 0; f->x && r < rows; r++) memcpy(gathered + r * I, x_rows[done + r], (size_t)I * sizeof(real));
        for (ptrdiff_t g = 0; g < G; g++) {
            real *sums = f->sums + (sums_row + done) * N + g * H;
            const real *starts = c->layer_norm || (c->cell == FSQ_MUT1 && g == 2) ? f->masks.zeros : packed + g * H;
            for (ptrdiff_t r = 0; r < rows; r++) memcpy(sums + r * N + u0, starts + u0, (size_t)(u1 - u0) * sizeof(real));
            panel_product(sums, N, f->x ? gathered : x, I, rows, I, packed + l.w_ih + g * l.ih_gate + u0 * I, I, u0, u1, 1, 0);
        }
    }
}

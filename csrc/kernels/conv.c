/* conv.c - what stands around the product of a convolution: columns from images and back, rows of the product to their places.
 *
 * A column holds what one output position sees, a row is one tap (channel, row and column of the kernel): im2col (Chellapilla et al.
 * 2006). All of it moves bytes; the multiply-adds are gemm.c's. */

/* Where row k of the columns of a piece lies in one sample: the first output column that is inside x, and the first that is not any more. */
typedef struct {
    const fsq_conv_call *call;
    ptrdiff_t channel, top, left, first, end;                /* top, left: of the tap at output position (0, 0), perhaps outside x */
} conv_tap;

FSQ_INLINE conv_tap conv_tap_of(const fsq_conv_call *c, ptrdiff_t k) {
    ptrdiff_t j = k % c->kernel_w, i = k / c->kernel_w % c->kernel_h;
    conv_tap tap = {c, k / (c->kernel_w * c->kernel_h), i * c->dilation_h - c->top, j * c->dilation_w - c->left, 0, 0};
    tap.first = tap.left < 0 ? (-tap.left + c->stride_w - 1) / c->stride_w : 0;
    tap.end = tap.left < c->W ? (c->W - 1 - tap.left) / c->stride_w + 1 : 0;
    return tap;
}

/* n elements: to = from, zeros where from is NULL, or to += from. Rows of a small image are shorter than a vector: no call for them. */
FSQ_INLINE void conv_move(real *to, const real *from, ptrdiff_t n, const int add) {
    ptrdiff_t i = 0;
    for (; i + VL <= n; i += VL) vstore(to + i, add ? vadd(vload(to + i), vload(from + i)) : from ? vload(from + i) : vzero());
    if (i < n) vstore_n(to + i, add ? vadd(vload_n(to + i, n - i), vload_n(from + i, n - i)) : from ? vload_n(from + i, n - i) : vzero(), n - i);
}

/* Output positions [from, to) of one row of the output: columns = x, zeros outside; back: x += columns. */
FSQ_INLINE void conv_row(real *columns, real *x, const conv_tap *tap, ptrdiff_t row, ptrdiff_t from, ptrdiff_t to, const int back) {
    const ptrdiff_t y = row * tap->call->stride_h + tap->top, stride = tap->call->stride_w;
    ptrdiff_t first = to, end = to;
    if (y >= 0 && y < tap->call->H) {
        first = tap->first < from ? from : tap->first < to ? tap->first : to;
        end = tap->end > to ? to : tap->end > first ? tap->end : first;
        x += y * tap->call->W + tap->left;
    }
    columns -= from;
    if (!back) {
        if (first > from) conv_move(columns + from, NULL, first - from, 0);
        if (to > end) conv_move(columns + end, NULL, to - end, 0);
    }
    if (stride == 1) back ? conv_move(x + first, columns + first, end - first, 1) : conv_move(columns + first, x + first, end - first, 0);
    else if (back) for (ptrdiff_t w = first; w < end; w++) x[w * stride] += columns[w];
    else for (ptrdiff_t w = first; w < end; w++) columns[w] = x[w * stride];
}

/* Taps [k0, k1) of the piece's columns in the group whose first channel of sample 0 is x. */
FSQ_INLINE void conv_walk(real *columns, real *x, const fsq_conv_call *c, const conv_piece *p, ptrdiff_t k0, ptrdiff_t k1, const int back) {
    const ptrdiff_t first_row = p->from / c->out_w, before = p->from % c->out_w, positions = p->to - p->from;
    for (ptrdiff_t k = k0; k < k1; k++) {
        const conv_tap tap = conv_tap_of(c, k);
        for (ptrdiff_t n = p->sample; n < p->sample_end; n++, columns += positions) {
            real *plane = x + (n * c->groups * c->C + tap.channel) * c->H * c->W;
            ptrdiff_t row = first_row, from = before;
            for (ptrdiff_t at = 0, run; at < positions; at += run, row++, from = 0) {
                run = c->out_w - from < positions - at ? c->out_w - from : positions - at;
                conv_row(columns + at, plane, &tap, row, from, from + run, back);
            }
        }
    }
}

static void conv_columns(real *columns, const real *x, const fsq_conv_call *c, const conv_piece *p, ptrdiff_t k0, ptrdiff_t k1) {
    conv_walk(columns, (real *)x, c, p, k0, k1, 0);
}
static void conv_add(real *dx, const real *columns, const fsq_conv_call *c, const conv_piece *p, ptrdiff_t k0, ptrdiff_t k1) {
    conv_walk((real *)columns, dx, c, p, k0, k1, 1);
}

/* y = product + bias: the rows of the product (O, columns) to the output channels, of which the group's first in sample 0 is y. */
static void conv_store(real *y, const real *product, const real *bias, const fsq_conv_call *c, const conv_piece *p) {
    const ptrdiff_t positions = c->out_h * c->out_w, n = p->to - p->from;
    for (ptrdiff_t o = 0; o < c->O; o++)
        for (ptrdiff_t sample = p->sample; sample < p->sample_end; sample++, product += n) {
            real *to = y + (sample * c->groups * c->O + o) * positions + p->from;
            const vreal b = vset1(bias ? bias[o] : (real)-0.0);              /* -0: the sign of a zero stays */
            ptrdiff_t i = 0;
            for (; i + VL <= n; i += VL) vstore(to + i, vadd(vload(product + i), b));
            if (i < n) vstore_n(to + i, vadd(vload_n(product + i, n - i), b), n - i);
        }
}

/* The other way: rows (O, columns) of dy. */
static void conv_load(real *rows, const real *dy, const fsq_conv_call *c, const conv_piece *p) {
    const ptrdiff_t positions = c->out_h * c->out_w, n = p->to - p->from;
    for (ptrdiff_t o = 0; o < c->O; o++)
        for (ptrdiff_t sample = p->sample; sample < p->sample_end; sample++, rows += n)
            memcpy(rows, dy + (sample * c->groups * c->O + o) * positions + p->from, (size_t)n * sizeof(real));
}

/* The sum over `samples` planes of n elements, `apart` from each other; four chains a lane. */
static real conv_sum(const real *x, ptrdiff_t samples, ptrdiff_t apart, ptrdiff_t n) {
    vreal sum[4] = {vzero(), vzero(), vzero(), vzero()};
    for (; samples > 0; samples--, x += apart) {
        ptrdiff_t i = 0;
        for (; i + 4 * VL <= n; i += 4 * VL)
#pragma GCC unroll 4
            for (int v = 0; v < 4; v++) sum[v] = vadd(sum[v], vload(x + i + v * VL));
        for (; i < n; i += VL) sum[0] = vadd(sum[0], cell_load(x + i, n - i < VL ? n - i : VL));
    }
    return vsum(vadd(vadd(sum[0], sum[1]), vadd(sum[2], sum[3])));
}

/* max_pool.c - the greatest element of each window of a plane, and where it stands.
 *
 * Bound by comparisons: a window is looked at element by element, row by row, and the first of equal ones counts. A NaN is greater
 * than everything, as in PyTorch. What lies outside the plane is not there, so padding is never the greatest. */

/* Elements of one axis that output position `at` sees: the first tap that is not before x, and the end. */
typedef struct { ptrdiff_t first, end; } max_pool_span;

FSQ_INLINE max_pool_span max_pool_span_of(ptrdiff_t at, ptrdiff_t stride, ptrdiff_t padding, ptrdiff_t dilation, ptrdiff_t kernel, ptrdiff_t size) {
    ptrdiff_t start = at * stride - padding, end = start + (kernel - 1) * dilation + 1;
    while (start < 0) start += dilation;
    return (max_pool_span){start, end < size ? end : size};
}

static void max_pool_forward(real *y, int64_t *places, const real *x, const fsq_max_pool_call *c, ptrdiff_t planes) {
    for (ptrdiff_t p = 0; p < planes; p++, x += c->H * c->W)
        for (ptrdiff_t row = 0; row < c->out_h; row++) {
            const max_pool_span h = max_pool_span_of(row, c->stride_h, c->padding_h, c->dilation_h, c->kernel_h, c->H);
            for (ptrdiff_t column = 0; column < c->out_w; column++) {
                const max_pool_span w = max_pool_span_of(column, c->stride_w, c->padding_w, c->dilation_w, c->kernel_w, c->W);
                real greatest = -(real)INFINITY;
                ptrdiff_t place = h.first * c->W + w.first;
                for (ptrdiff_t i = h.first; i < h.end; i += c->dilation_h)
                    for (ptrdiff_t j = w.first; j < w.end; j += c->dilation_w) {
                        const real v = x[i * c->W + j];
                        if (v > greatest || v != v) greatest = v, place = i * c->W + j;
                    }
                *y++ = greatest;
                *places++ = place;
            }
        }
}

/* dx = the sum of dy over the windows in which the element was the greatest, in their order. */
static void max_pool_backward(real *dx, const real *dy, const int64_t *places, const fsq_max_pool_call *c, ptrdiff_t planes) {
    const ptrdiff_t windows = c->out_h * c->out_w;
    memset(dx, 0, (size_t)(planes * c->H * c->W) * sizeof(real));
    for (ptrdiff_t p = 0; p < planes; p++, dx += c->H * c->W)
        for (ptrdiff_t i = 0; i < windows; i++) dx[*places++] += *dy++;
}

/* optim.c - optimiser updates in one pass over the parameters, and the norm of gradients. Bound by bytes. */

enum { sum_squares_chains = 16 };                           /* the same on every instruction set, and so are the bits */

/* Sum of x^2 in double. */
static double sum_squares(const real *x, ptrdiff_t n) {
    double chain[sum_squares_chains] = {0};
    ptrdiff_t i = 0;
    for (; i + sum_squares_chains <= n; i += sum_squares_chains)
        for (int c = 0; c < sum_squares_chains; c++) chain[c] += (double)x[i + c] * (double)x[i + c];
    for (int c = 0; i + c < n; c++) chain[c] += (double)x[i + c] * (double)x[i + c];
    for (int half = sum_squares_chains / 2; half; half /= 2)
        for (int c = 0; c < half; c++) chain[c] += chain[c + half];
    return chain[0];
}

static void scale(real *x, ptrdiff_t n, real factor) {
    ptrdiff_t i = 0;
    for (; i + VL <= n; i += VL) vstore(x + i, vmul(vload(x + i), vset1(factor)));
    if (i < n) vstore_n(x + i, vmul(vload_n(x + i, n - i), vset1(factor)), n - i);
}

/* g = grad + weight_decay w; velocity = momentum velocity + g; w -= lr g or lr velocity or lr (g + momentum velocity) */
FSQ_INLINE vreal sgd_step(vreal w, vreal g, vreal *velocity, const sgd_constants *s) {
    g = vfma(vset1(s->weight_decay), w, g);
    if (velocity) {
        *velocity = s->first ? g : vfma(vset1(s->momentum), *velocity, g);
        g = s->nesterov ? vfma(vset1(s->momentum), *velocity, g) : *velocity;
    }
    return vfnma(vset1(s->lr), g, w);
}

/* n lanes of x, VL or fewer. */
FSQ_INLINE vreal optim_load(const real *x, ptrdiff_t n) { return n == VL ? vload(x) : vload_n(x, n); }
FSQ_INLINE void optim_store(real *x, vreal v, ptrdiff_t n) {
    if (n == VL) vstore(x, v);
    else vstore_n(x, v, n);
}

static void sgd(real *w, real *velocity, const real *grad, ptrdiff_t n, const sgd_constants *constants) {
    const sgd_constants s = *constants;
    for (ptrdiff_t i = 0; i < n; i += VL) {
        ptrdiff_t width = n - i < VL ? n - i : VL;
        vreal v = velocity && !s.first ? optim_load(velocity + i, width) : vzero();
        optim_store(w + i, sgd_step(optim_load(w + i, width), optim_load(grad + i, width), velocity ? &v : NULL, &s), width);
        if (velocity) optim_store(velocity + i, v, width);
    }
}

/* g = grad + weight_decay w; sum += g^2; w -= lr g / (sqrt(sum) + eps) */
FSQ_INLINE vreal adagrad_step(vreal w, vreal g, vreal *sum, const adagrad_constants *s) {
    g = vfma(vset1(s->weight_decay), w, g);
    *sum = vfma(g, g, *sum);
    return vfnma(vset1(s->lr), vdiv(g, vadd(vsqrt(*sum), vset1(s->eps))), w);
}

static void adagrad(real *w, real *sum, const real *grad, ptrdiff_t n, const adagrad_constants *constants) {
    const adagrad_constants s = *constants;
    for (ptrdiff_t i = 0; i < n; i += VL) {
        ptrdiff_t width = n - i < VL ? n - i : VL;
        vreal sum_i = optim_load(sum + i, width);
        optim_store(w + i, adagrad_step(optim_load(w + i, width), optim_load(grad + i, width), &sum_i, &s), width);
        optim_store(sum + i, sum_i, width);
    }
}

/* g = grad + weight_decay w; square = alpha square + (1 - alpha) g^2; mean likewise of g; g /= sqrt(square - mean^2) + eps; momentum; w -= lr g.
 * square - mean^2 is a variance, which rounding can bring below zero. */
FSQ_INLINE vreal rmsprop_step(vreal w, vreal g, vreal *square, vreal *velocity, vreal *mean, const rmsprop_constants *s) {
    g = vfma(vset1(s->weight_decay), w, g);
    *square = vfma(vset1(s->alpha), *square, vmul(vset1(s->other), vmul(g, g)));
    vreal spread = *square;
    if (mean) {
        *mean = vfma(vset1(s->alpha), *mean, vmul(vset1(s->other), g));
        spread = vmax(vzero(), vfnma(*mean, *mean, spread));     /* in this order of operands a NaN passes */
    }
    g = vdiv(g, vadd(vsqrt(spread), vset1(s->eps)));
    if (velocity) g = *velocity = vfma(vset1(s->momentum), *velocity, g);
    return vfnma(vset1(s->lr), g, w);
}

static void rmsprop(real *w, real *square, real *velocity, real *mean, const real *grad, ptrdiff_t n, const rmsprop_constants *constants) {
    const rmsprop_constants s = *constants;
    for (ptrdiff_t i = 0; i < n; i += VL) {
        ptrdiff_t width = n - i < VL ? n - i : VL;
        vreal square_i = optim_load(square + i, width), velocity_i = velocity ? optim_load(velocity + i, width) : vzero();
        vreal mean_i = mean ? optim_load(mean + i, width) : vzero();
        vreal w_i = rmsprop_step(optim_load(w + i, width), optim_load(grad + i, width), &square_i, velocity ? &velocity_i : NULL, mean ? &mean_i : NULL, &s);
        optim_store(w + i, w_i, width);
        optim_store(square + i, square_i, width);
        if (velocity) optim_store(velocity + i, velocity_i, width);
        if (mean) optim_store(mean + i, mean_i, width);
    }
}

/* g = grad + weight_decay w; m = beta1 m + (1 - beta1) g; v = beta2 v + (1 - beta2) g^2; w = keep w - rate m / (sqrt(v correction) + eps) */
FSQ_INLINE vreal adam_step(vreal w, vreal g, vreal *m, vreal *v, const adam_constants *s) {
    g = vfma(vset1(s->weight_decay), w, g);
    *m = vfma(vset1(s->beta1), *m, vmul(vset1(s->other1), g));
    *v = vfma(vset1(s->beta2), *v, vmul(vset1(s->other2), vmul(g, g)));
    vreal root = vadd(vsqrt(vmul(*v, vset1(s->correction))), vset1(s->eps));
    return vfnma(vset1(s->rate), vdiv(*m, root), vmul(w, vset1(s->keep)));
}

static void adam(real *w, real *m, real *v, const real *grad, ptrdiff_t n, const adam_constants *constants) {
    const adam_constants s = *constants;
    for (ptrdiff_t i = 0; i < n; i += VL) {
        ptrdiff_t width = n - i < VL ? n - i : VL;
        vreal mi = optim_load(m + i, width), vi = optim_load(v + i, width);
        optim_store(w + i, adam_step(optim_load(w + i, width), optim_load(grad + i, width), &mi, &vi, &s), width);
        optim_store(m + i, mi, width);
        optim_store(v + i, vi, width);
    }
}

/* cross_entropy.c - the negative log-likelihood of a softmax, which is never stored.
 *
 *   losses = lse - sum_v q_v logits_v,  lse = log sum exp(logits),  q = (1 - smoothing) onehot(target) + smoothing / V
 *   dlogits = (exp(logits - lse) - q) dlosses
 *
 * Forward reads a row twice (maximum, sum of exponentials) while it is in the cache; backward reads it once and writes once. Bound
 * by the polynomial of vexp_down. The logarithms of VL rows are taken together. The maximum is subtracted from the target's logit before
 * the logarithm is added: lse - logit alone would lose the digits of a small loss. */

/* sum_v q_v (logits_v - shift) of one row */
FSQ_INLINE real cross_entropy_expected(const real *logits, ptrdiff_t V, ptrdiff_t target, real shift, double smoothing) {
    real at_target = logits[target] - shift;
    if (smoothing == 0) return at_target;
    vreal sum[2] = {vzero(), vzero()}, by = vset1(shift);
    ptrdiff_t v = 0;
    for (; v + 2 * VL <= V; v += 2 * VL) {
        sum[0] = vadd(sum[0], vsub(vload(logits + v), by));
        sum[1] = vadd(sum[1], vsub(vload(logits + v + VL), by));
    }
    for (; v + VL <= V; v += VL) sum[0] = vadd(sum[0], vsub(vload(logits + v), by));
    if (v < V) sum[1] = vadd(sum[1], vsub(softmax_tail(logits + v, V - v, shift), by));
    return (real)(1 - smoothing) * at_target + (real)(smoothing / (double)V) * vsum(vadd(sum[0], sum[1]));
}

static void cross_entropy_forward(real *losses, real *lse, const real *logits, const int64_t *targets, ptrdiff_t rows, ptrdiff_t V,
                                  int64_t ignore_index, double smoothing) {
    for (ptrdiff_t first = 0; first < rows; first += VL) {
        ptrdiff_t count = rows - first < VL ? rows - first : VL;
        real sums[VL] = {0}, shifts[VL] = {0}, expected[VL] = {0};
        for (ptrdiff_t r = 0; r < count; r++, logits += V) {
            int64_t target = targets[first + r];
            shifts[r] = softmax_shift(softmax_maximum(logits, V));
            sums[r] = softmax_exp_sum(NULL, logits, V, shifts[r]);
            expected[r] = target == ignore_index ? 0 : cross_entropy_expected(logits, V, target, shifts[r], smoothing);
        }
        vreal log_sum = vlog(vload(sums));
        vstore_n(lse + first, vadd(log_sum, vload(shifts)), count);
        vstore_n(losses + first, vsub(log_sum, vload(expected)), count);
        for (ptrdiff_t r = 0; r < count; r++)
            if (targets[first + r] == ignore_index) losses[first + r] = 0;
    }
}

/* dlosses_step: 0 where one dlosses serves all rows */
static void cross_entropy_backward(real *dlogits, const real *lse, const real *logits, const int64_t *targets, const real *dlosses,
                                   ptrdiff_t dlosses_step, ptrdiff_t rows, ptrdiff_t V, int64_t ignore_index, double smoothing) {
    real elsewhere = (real)(smoothing / (double)V), at_target = (real)(1 - smoothing + smoothing / (double)V);
    for (ptrdiff_t r = 0; r < rows; r++, logits += V, dlogits += V) {
        if (targets[r] == ignore_index) {
            memset(dlogits, 0, (size_t)V * sizeof(real));
            continue;
        }
        /* losses = lse - sum_v q_v logits_v */
        vreal q = vset1(elsewhere), by = vset1(lse[r]), d = vset1(dlosses[r * dlosses_step]);
        real p_target[VL];
        vstore(p_target, vexp_down(vsub(vset1(logits[targets[r]]), by)));
        ptrdiff_t v = 0;
        for (; v + VL <= V; v += VL) vstore(dlogits + v, vmul(vsub(vexp_down(vsub(vload(logits + v), by)), q), d));
        if (v < V) vstore_n(dlogits + v, vmul(vsub(vexp_down(vsub(vload_n(logits + v, V - v), by)), q), d), V - v);
        dlogits[targets[r]] = (p_target[0] - at_target) * dlosses[r * dlosses_step];
    }
}

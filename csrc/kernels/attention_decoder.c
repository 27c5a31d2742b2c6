/* attention_decoder.c - backwards through the additive score of one query with S keys, e_i = u . tanh(q + k_i) (Bahdanau et al. 2015), where the
 * gradients of keys and u are added up over the steps. Forwards, and for h and "near" below: additive_attention.c.
 *
 * Bound by FLOP; what tanh was is computed again, for to keep T B S A numbers would cost more. dq and du are one chain over the keys for each
 * element, dkeys one over the steps. */

/* Elements [0, n), n <= VL, of what decoder_backward_far does. */
FSQ_INLINE void decoder_far_part(real *dquery, real *dkeys, real *du, const real *dscores, const real *query, const real *keys, const real *u,
                                      ptrdiff_t S, ptrdiff_t A, ptrdiff_t n) {
    const vreal one = vset1(1);
    vreal q = cell_load(query, n), w = cell_load(u, n), dq = vzero(), dw = cell_load(du, n);
    for (ptrdiff_t i = 0; i < S; i++, keys += A, dkeys += A) {
        /* e = u . t, t = tanh(q + k): 1 - t^2 */
        vreal de = vset1(dscores[i]), t = vtanh(vadd(q, cell_load(keys, n)));
        vreal dsum = vmul(vmul(de, w), vfnma(t, t, one));
        dw = vfma(de, t, dw);
        dq = vadd(dq, dsum);
        cell_store(dkeys, vadd(cell_load(dkeys, n), dsum), n);
    }
    cell_store(dquery, dq, n);
    cell_store(du, dw, n);
}

/* dquery (A) = , dkeys (S, A) += and du (A) += the gradients from dscores (S). */
static void decoder_backward_far(real *dquery, real *dkeys, real *du, const real *dscores, const real *query, const real *keys, const real *u,
                                    ptrdiff_t S, ptrdiff_t A) {
    ptrdiff_t j = 0;
    for (; j + VL <= A; j += VL) decoder_far_part(dquery + j, dkeys + j, du + j, dscores, query + j, keys + j, u + j, S, A, VL);
    if (j < A) decoder_far_part(dquery + j, dkeys + j, du + j, dscores, query + j, keys + j, u + j, S, A, A - j);
}

/* The same where query and keys are near: their exponentials in panels, the keys' with this stride, and u padded. What is added up keeps its
 * factors for decoder_near_gradients: dkeys (a panel) += ds (1/4 - h^2), du (padded) += ds h. */
static void decoder_backward_near(real *dquery, real *dkeys, real *du, const real *dscores, const real *query, const real *keys, ptrdiff_t stride,
                                  const real *u, ptrdiff_t S, ptrdiff_t A) {
    for (ptrdiff_t j = 0; j < A; j += VL, keys += stride * VL, dkeys += stride * VL) {
        vreal x = vload(query + j), dq = vzero(), dw = vload(du + j);
        for (ptrdiff_t i = 0; i < S; i++) {
            /* e = u . t, t = -2 h: 1 - t^2 = 4 (1/4 - h^2) */
            vreal h = additive_half(vfma(x, vload(keys + i * VL), vset1(1))), de = vset1(dscores[i]);
            vreal slope = vfnma(h, h, vset1((real)0.25));
            dq = vfma(de, slope, dq);
            dw = vfma(de, h, dw);
            vstore(dkeys + i * VL, vfma(de, slope, vload(dkeys + i * VL)));
        }
        vstore_n(dquery + j, vmul(vmul(vset1(4), vload(u + j)), dq), A - j < VL ? A - j : VL);
        vstore(du + j, dw);
    }
}

/* dkeys (S, A) and du (A) += what the near steps have added up. */
static void decoder_near_gradients(real *dkeys, real *du, const real *panel, ptrdiff_t stride, const real *sums, const real *u, ptrdiff_t S, ptrdiff_t A) {
    for (ptrdiff_t j = 0; j < A; j += VL, panel += stride * VL) {
        ptrdiff_t n = A - j < VL ? A - j : VL;
        vreal factor = vmul(vset1(4), vload(u + j));
        for (ptrdiff_t i = 0; i < S; i++) {
            real *at = dkeys + i * A + j;
            cell_store(at, vfma(factor, vload(panel + i * VL), cell_load(at, n)), n);
        }
        cell_store(du + j, vfma(vset1(-2), vload(sums + j), cell_load(du + j, n)), n);
    }
}

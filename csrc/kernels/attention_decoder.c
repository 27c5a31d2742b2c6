/* attention_decoder.c - the additive score of one query with S keys, e_i = u . tanh(q + k_i) (Bahdanau et al. 2015), and its derivative.
 *
 * Bound by the polynomial of vtanh: backward computes it again, for to keep T B S A numbers would cost more. A score is one sum over A whose
 * order follows from A alone; dq and du are one chain over the keys for each element. */

enum { decoder_keys = 4 };                                  /* keys side by side: an addition waits for the one before it */

/* Scores of `count` <= decoder_keys keys. */
FSQ_INLINE void decoder_scores_of(real *scores, const real *query, const real *keys, const real *u, const int count, ptrdiff_t A) {
    vreal sum[decoder_keys];
#pragma GCC unroll 4
    for (int i = 0; i < count; i++) sum[i] = vzero();
    ptrdiff_t j = 0;
    for (; j + VL <= A; j += VL) {
        vreal q = vload(query + j), w = vload(u + j);
#pragma GCC unroll 4
        for (int i = 0; i < count; i++) sum[i] = vfma(w, vtanh(vadd(q, vload(keys + i * A + j))), sum[i]);
    }
    if (j < A) {
        vreal q = vload_n(query + j, A - j), w = vload_n(u + j, A - j);
#pragma GCC unroll 4
        for (int i = 0; i < count; i++) sum[i] = vfma(w, vtanh(vadd(q, vload_n(keys + i * A + j, A - j))), sum[i]);
    }
#pragma GCC unroll 4
    for (int i = 0; i < count; i++) scores[i] = vsum(sum[i]);
}

/* scores (S) of a query (A) with keys (S, A). */
static void decoder_scores(real *scores, const real *query, const real *keys, const real *u, ptrdiff_t S, ptrdiff_t A) {
    ptrdiff_t i = 0;
    for (; i + decoder_keys <= S; i += decoder_keys) decoder_scores_of(scores + i, query, keys + i * A, u, decoder_keys, A);
    for (; i < S; i++) decoder_scores_of(scores + i, query, keys + i * A, u, 1, A);
}

/* Elements [0, n), n <= VL, of what decoder_scores_backward does. */
FSQ_INLINE void decoder_backward_part(real *dquery, real *dkeys, real *du, const real *dscores, const real *query, const real *keys, const real *u,
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
static void decoder_scores_backward(real *dquery, real *dkeys, real *du, const real *dscores, const real *query, const real *keys, const real *u,
                                    ptrdiff_t S, ptrdiff_t A) {
    ptrdiff_t j = 0;
    for (; j + VL <= A; j += VL) decoder_backward_part(dquery + j, dkeys + j, du + j, dscores, query + j, keys + j, u + j, S, A, VL);
    if (j < A) decoder_backward_part(dquery + j, dkeys + j, du + j, dscores, query + j, keys + j, u + j, S, A, A - j);
}

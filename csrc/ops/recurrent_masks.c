/* recurrent_masks.c - the masks of recurrent dropout and zoneout, which forward draws and backward draws again, and zeros in place of a
 * state (recurrent.h). */

/* Takes their scratch; fills what does not depend on the threads. */
static recurrent_masks masks_make(const fsq_recurrent_call *c, recurrent_scratch *s) {
    recurrent_masks m = {0};
    ptrdiff_t widest = c->H > c->P ? c->H : c->P;
    m.zeros = recurrent_take(s, widest, sizeof(real));
    if (s->start) memset(m.zeros, 0, (size_t)widest * sizeof(real));
    if (call_drops(c)) m.drop = recurrent_take(s, c->B * c->P, sizeof(real));
    if (c->draw && c->zoneout_h > 0) m.zone_h = recurrent_take(s, c->B * c->P, sizeof(real));
    if (c->draw && c->zoneout_c > 0) m.zone_c = recurrent_take(s, c->B * c->H, sizeof(real));
    if (!c->draw && (c->zoneout_h > 0 || c->zoneout_c > 0)) {
        m.expected = recurrent_take(s, c->P + c->H, sizeof(real));
        for (ptrdiff_t j = 0; s->start && j < c->P + c->H; j++) m.expected[j] = (real)(j < c->P ? c->zoneout_h : c->zoneout_c);
    }
    return m;
}

/* Row b's mask of dropout, place r's of zoneout; NULL where the call has none. */
static real *masks_drop(const recurrent_masks *m, const fsq_recurrent_call *c, ptrdiff_t b) { return m->drop ? m->drop + b * c->P : NULL; }
static const real *masks_zone_h(const recurrent_masks *m, const fsq_recurrent_call *c, ptrdiff_t r) {
    return !(c->zoneout_h > 0) ? NULL : c->draw ? m->zone_h + r * c->P : m->expected;
}
static const real *masks_zone_c(const recurrent_masks *m, const fsq_recurrent_call *c, ptrdiff_t r) {
    return !(c->zoneout_c > 0) ? NULL : c->draw ? m->zone_c + r * c->H : m->expected + c->P;
}

static uint64_t mask_threshold(double p) { return (uint64_t)ceil(p * 0x1p32); }

/* Draws elements [p0, p1) of row b's mask of dropout, if there is one. */
static void masks_draw_drop(const recurrent_masks *m, const fsq_recurrent_call *c, const fsq_recurrent_direction *d, ptrdiff_t b, ptrdiff_t p0,
                            ptrdiff_t p1) {
    double p = c->recurrent_dropout;
    if (m->drop)
        FSQ_FN(kernels_now)()->recurrent_mask(masks_drop(m, c, b), p0, p1, d->key_dropout, 0, (uint32_t)b, mask_threshold(p), 0,
                                              p < 1 ? (real)(1 / (1 - p)) : 0);
}

/* Draws zoneout's masks of a step, for this worker's places [share->r0, n) and its elements, if there are any. */
static void masks_draw_zones(const recurrent_masks *m, const recurrent_order *o, const fsq_recurrent_direction *d, const recurrent_share *share,
                             ptrdiff_t time, ptrdiff_t n) {
    const FSQ_FN(kernels) *k = FSQ_FN(kernels_now)();
    const fsq_recurrent_call *c = o->call;
    uint32_t t = (uint32_t)(c->from + time);
    if (!m->zone_h && !m->zone_c) return;
    for (ptrdiff_t r = share->r0; r < n; r++) {
        uint32_t b = (uint32_t)order_row(o, r);
        if (m->zone_h) k->recurrent_mask(m->zone_h + r * c->P, share->p0, share->p1, d->key_zoneout_h, t, b, mask_threshold(c->zoneout_h), 1, 0);
        if (m->zone_c) k->recurrent_mask(m->zone_c + r * c->H, share->u0, share->u1, d->key_zoneout_c, t, b, mask_threshold(c->zoneout_c), 1, 0);
    }
}

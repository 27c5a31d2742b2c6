/* attention.c - what lies between the products of scaled dot-product attention (Vaswani et al. 2017; blocks of keys with a running
 * softmax: Milakov & Gimelshein 2018, Dao et al. 2022), on tiles that stay in L1.
 *
 *   s = scale q . k + mask, hidden: -inf     p = exp(s - m) for the running maximum m, l = the sum of p     y = sum p v / l
 *   backward: p = exp(s - lse), dp = dy . v, ds = p (dp - delta), delta = dy . y
 *
 * A tile holds a row for each key and a lane for each query: entry (key, query) at tile[key attention_queries + query]. So nothing is
 * summed across lanes, a query's bits do not depend on its neighbours, and both products that need a tile read it as it lies, beside
 * keys and values where they lie: only queries are ever transposed. Bound by the polynomial of vexp_down, about one cycle in eight of
 * the products' at D = 64. */

/* Tiles are walked by so many vectors at a time: enough chains to hide the latency of an addition. */
#define ATTENTION_EACH(queries)                                                                                                    \
    for (ptrdiff_t q = 0, wide; wide = (queries) - q >= gemm_vecs * VL, q < (queries); q += wide ? gemm_vecs * VL : VL)

/* tile (n, D transposed) = factor x: x has n rows, row_x apart, of D reals; lanes from n up to whole vectors become 0. */
static void attention_turn_in(real *tile, const real *x, ptrdiff_t row_x, ptrdiff_t n, ptrdiff_t D, real factor) {
    for (ptrdiff_t q = 0; q < n; q += VL)
        for (ptrdiff_t d = 0; d < D; d += VL) {
            vreal square[VL];
            if (n - q >= VL && D - d >= VL) {
                const real *rows[VL];
                for (int i = 0; i < VL; i++) rows[i] = x + (q + i) * row_x;
                vload_turned(square, rows, d);
#pragma GCC unroll 16
                for (int i = 0; i < VL; i++) vstore(tile + (d + i) * attention_queries + q, vmul(square[i], vset1(factor)));
                continue;
            }
            ptrdiff_t width = D - d < VL ? D - d : VL;
            for (int i = 0; i < VL; i++) square[i] = q + i < n ? vload_n(x + (q + i) * row_x + d, width) : vzero();
            vtranspose(square);
            for (int i = 0; i < width; i++) vstore(tile + (d + i) * attention_queries + q, vmul(square[i], vset1(factor)));
        }
}

/* The way back: y (n rows, row_y apart, of D reals) = factor[query] tile, or, with add, plus what is there. factor NULL: 1. */
static void attention_turn_out(real *y, ptrdiff_t row_y, const real *tile, const real *factor, ptrdiff_t n, ptrdiff_t D) {
    for (ptrdiff_t q = 0; q < n; q += VL)
        for (ptrdiff_t d = 0; d < D; d += VL) {
            ptrdiff_t height = n - q < VL ? n - q : VL, width = D - d < VL ? D - d : VL;
            vreal square[VL], by = factor ? vload(factor + q) : vset1(1);
            for (int i = 0; i < VL; i++) square[i] = i < width ? vmul(vload(tile + (d + i) * attention_queries + q), by) : vzero();
            vtranspose(square);
            if (height == VL && width == VL)
#pragma GCC unroll 16
                for (int i = 0; i < VL; i++) vstore(y + (q + i) * row_y + d, square[i]);
            else
                for (int i = 0; i < height; i++) vstore_n(y + (q + i) * row_y + d, square[i], width);
        }
}

/* tile += x: entry (query, key) of x at x[query row_x + key]. */
static void attention_turn_add(real *tile, const real *x, ptrdiff_t row_x, ptrdiff_t n, ptrdiff_t keys) {
    for (ptrdiff_t q = 0; q < n; q += VL)
        for (ptrdiff_t j = 0; j < keys; j += VL) {
            ptrdiff_t width = keys - j < VL ? keys - j : VL;
            vreal square[VL];
            for (int i = 0; i < VL; i++) square[i] = q + i < n ? vload_n(x + (q + i) * row_x + j, width) : vzero();
            vtranspose(square);
            for (int i = 0; i < width; i++) {
                real *at = tile + (j + i) * attention_queries + q;
                vstore(at, vadd(vload(at), square[i]));
            }
        }
}

/* ---------------------------------------------------------------- what is hidden */

/* s = -inf for the keys before first[query] and after last[query], both counted from the tile's first key. */
static void attention_hide(real *s, const real *first, const real *last, ptrdiff_t keys, ptrdiff_t queries) {
    const vreal hidden = vset1(-(real)INFINITY);
    for (ptrdiff_t q = 0; q < queries; q += VL) {
        vreal from = vload(first + q), to = vload(last + q);
        for (ptrdiff_t j = 0; j < keys; j++) {
            vreal key = vset1((real)j);
            real *at = s + j * attention_queries + q;
            vstore(at, vselect(vand_m(vle(from, key), vle(key, to)), vload(at), hidden));
        }
    }
}

/* s += m, or -inf where m is -inf, whatever s was. */
FSQ_INLINE void attention_mask_at(real *s, vreal m) {
    const vreal hidden = vset1(-(real)INFINITY);
    vstore(s, vselect(veq(m, hidden), hidden, vadd(vload(s), m)));
}

/* Entry (query, key) of the mask: bytes, 0 = hidden, or reals. As a number to add. */
FSQ_INLINE real attention_mask_value(const attention_mask_tile *m, ptrdiff_t query, ptrdiff_t key) {
    ptrdiff_t at = query * m->query + key * m->key;
    return !m->is_bool ? ((const real *)m->data)[at] : ((const unsigned char *)m->data)[at] ? 0 : -(real)INFINITY;
}

/* VL keys of VL queries, transposed: square[i] is key i. `key` is the stride where it is known. */
FSQ_INLINE void attention_mask_square(vreal square[VL], const attention_mask_tile *m, ptrdiff_t query, ptrdiff_t key, ptrdiff_t height, ptrdiff_t width) {
    for (int i = 0; i < VL; i++) {
        real row[VL] = {0};
        if (i < height && m->is_bool && m->key == 1 && width == VL) {
            const unsigned char *bytes = (const unsigned char *)m->data + (query + i) * m->query + key;
            for (int j = 0; j < VL; j++) row[j] = bytes[j] ? 0 : -(real)INFINITY;
        } else if (i < height)
            for (ptrdiff_t j = 0; j < width; j++) row[j] = attention_mask_value(m, query + i, key + j);
        square[i] = vload(row);
    }
    vtranspose(square);
}

/* The mask's tile on s (keys, n): a row that does not depend on the query is one number for each key. */
static void attention_mask(real *s, const attention_mask_tile *m, ptrdiff_t keys, ptrdiff_t n) {
    for (ptrdiff_t j = 0; m->query == 0 && j < keys; j++) {
        vreal value = vset1(attention_mask_value(m, 0, j));
        for (ptrdiff_t q = 0; q < n; q += VL) attention_mask_at(s + j * attention_queries + q, value);
    }
    for (ptrdiff_t q = 0; m->query != 0 && q < n; q += VL)
        for (ptrdiff_t j = 0; j < keys; j += VL) {
            ptrdiff_t width = keys - j < VL ? keys - j : VL;
            vreal square[VL];
            attention_mask_square(square, m, q, j, n - q, width);
            for (int i = 0; i < width; i++) attention_mask_at(s + (j + i) * attention_queries + q, square[i]);
        }
}

/* seen[key] = whether any of n queries sees it; returns how many are. */
static ptrdiff_t attention_seen(unsigned char *seen, const real *s, ptrdiff_t keys, ptrdiff_t n) {
    ptrdiff_t count = 0;
    for (ptrdiff_t j = 0; j < keys; j++, s += attention_queries) {
        seen[j] = 0;
        for (ptrdiff_t q = 0; q < n && !seen[j]; q++) seen[j] = s[q] != -(real)INFINITY;
        count += seen[j];
    }
    return count;
}

/* 0 where the rows hold finite numbers alone, else NaN in some lane: 0 times infinity or NaN is NaN, and stays. */
FSQ_INLINE vreal attention_zeros(const real *x, ptrdiff_t row, ptrdiff_t rows, ptrdiff_t columns) {
    vreal zero[2] = {vzero(), vzero()};
    for (ptrdiff_t j = 0; j < rows; j++, x += row)
        for (ptrdiff_t d = 0; d < columns; d += VL)
            zero[j & 1] = vfma(columns - d < VL ? vload_n(x + d, columns - d) : vload(x + d), vzero(), zero[j & 1]);
    return vadd(zero[0], zero[1]);
}

/* plain[key] = whether the row of a key holds finite numbers alone; returns how many do. All together first: nearly always all do. */
static ptrdiff_t attention_plain(unsigned char *plain, const real *x, ptrdiff_t row, ptrdiff_t keys, ptrdiff_t columns) {
    ptrdiff_t count = 0;
    if (!vany(visnan(attention_zeros(x, row, keys, columns)))) return keys;
    for (ptrdiff_t j = 0; j < keys; j++, x += row) count += plain[j] = !vany(visnan(attention_zeros(x, row, 1, columns)));
    return count;
}

/* Dropout's m / (1 - p) on a tile whose first key and query are those of the whole problem: the weight of (query, key) is kept where
 * word key % 4 of Philox at counter (key / 4, query, row, 0) is >= threshold. */
static void attention_dropout(real *p, ptrdiff_t key, ptrdiff_t query, uint32_t row, ptrdiff_t keys, ptrdiff_t n, uint64_t seed, uint64_t threshold,
                              real factor) {
    static const uint64_t steps[8] = {0, 1, 2, 3, 4, 5, 6, 7};
    for (ptrdiff_t block = key / 4; block * 4 < key + keys; block++)
        for (ptrdiff_t q = 0; q < n; q += dropout_blocks) {
            v64 c0[2], c1[2], c2[2], c3[2];
            uint32_t words[4][dropout_blocks];
            for (int u = 0; u < 2; u++) {
                c0[u] = v64_set1((uint64_t)block);
                c1[u] = v64_load(steps) + (uint64_t)(query + q + u * VL64);
                c2[u] = v64_set1(row);
                c3[u] = v64_set1(0);
            }
            dropout_rounds(c0, c1, c2, c3, seed);
            for (int u = 0; u < 2; u++)
                for (int i = 0; i < VL64; i++) {
                    words[0][u * VL64 + i] = (uint32_t)c0[u][i], words[1][u * VL64 + i] = (uint32_t)c1[u][i];
                    words[2][u * VL64 + i] = (uint32_t)c2[u][i], words[3][u * VL64 + i] = (uint32_t)c3[u][i];
                }
            ptrdiff_t width = n - q < dropout_blocks ? n - q : dropout_blocks;
            for (ptrdiff_t w = 0; w < 4; w++) {
                ptrdiff_t j = block * 4 + w - key;
                if (j < 0 || j >= keys) continue;
                for (ptrdiff_t i = 0; i < width; i++) p[j * attention_queries + q + i] *= words[w][i] >= threshold ? factor : 0;
            }
        }
}

/* ---------------------------------------------------------------- the softmax */

/* `vecs` vectors of queries: s = exp(s - m) with m raised to the tile's maximum, l = l factor + the sum over the keys. Returns whether
 * a maximum rose, by which earlier sums are to be multiplied. */
FSQ_INLINE int attention_softmax_columns(real *s, real *m, real *l, real *factor, ptrdiff_t keys, const int vecs) {
    vreal shift[gemm_vecs], sum[gemm_vecs];
    int rose = 0;
#pragma GCC unroll 4
    for (int v = 0; v < vecs; v++) shift[v] = vload(m + v * VL);
    for (ptrdiff_t j = 0; j < keys; j++)
#pragma GCC unroll 4
        for (int v = 0; v < vecs; v++) shift[v] = vmax(vload(s + j * attention_queries + v * VL), shift[v]);    /* a NaN is passed over */
#pragma GCC unroll 4
    for (int v = 0; v < vecs; v++) {
        vreal before = vload(m + v * VL), now = shift[v];
        shift[v] = vselect(veq(now, vset1(-(real)INFINITY)), vzero(), now);
        vreal by = vexp_down(vsub(before, shift[v]));
        rose |= vany(vlt(before, now));
        vstore(m + v * VL, now);
        vstore(factor + v * VL, by);
        sum[v] = vmul(vload(l + v * VL), by);
    }
    for (ptrdiff_t j = 0; j < keys; j++)
#pragma GCC unroll 4
        for (int v = 0; v < vecs; v++) {
            real *at = s + j * attention_queries + v * VL;
            vreal e = vexp_down(vsub(vload(at), shift[v]));
            vstore(at, e);
            sum[v] = vadd(sum[v], e);
        }
#pragma GCC unroll 4
    for (int v = 0; v < vecs; v++) vstore(l + v * VL, sum[v]);
    return rose;
}

static int attention_softmax(real *s, real *m, real *l, real *factor, ptrdiff_t keys, ptrdiff_t queries) {
    int rose = 0;
    ATTENTION_EACH(queries) {
        if (wide) rose |= attention_softmax_columns(s + q, m + q, l + q, factor + q, keys, gemm_vecs);
        else rose |= attention_softmax_columns(s + q, m + q, l + q, factor + q, keys, 1);
    }
    return rose;
}

/* rows of a tile, each times the factor of its query */
static void attention_scale(real *tile, const real *factor, ptrdiff_t rows, ptrdiff_t queries) {
    for (ptrdiff_t r = 0; r < rows; r++, tile += attention_queries)
        for (ptrdiff_t q = 0; q < queries; q += VL) vstore(tile + q, vmul(vload(tile + q), vload(factor + q)));
}

/* At the end: inverse = 1 / l, lse = m + log(l); for a query that saw nothing 0 and -inf. */
static void attention_finish(real *inverse, real *lse, const real *m, const real *l, ptrdiff_t queries) {
    for (ptrdiff_t q = 0; q < queries; q += VL) {
        vreal sum = vload(l + q);
        vstore(inverse + q, vselect(veq(sum, vzero()), vzero(), vdiv(vset1(1), sum)));
        vstore(lse + q, vadd(vload(m + q), vlog(sum)));
    }
}

/* One query's products with rows of keys: s[j] = factor x . rows[j], D reals each. Lanes are columns, and the sums of VL keys are turned
 * into lanes together: no chain waits for another, so it goes as fast as L2 gives the keys. */
static void attention_dots(real *s, const real *x, const real *rows, ptrdiff_t row, ptrdiff_t keys, ptrdiff_t D, real factor) {
    for (ptrdiff_t j = 0; j < keys; j += VL) {
        ptrdiff_t count = keys - j < VL ? keys - j : VL, d = 0;
        const real *at[VL];
        vreal sum[VL];
        for (int i = 0; i < VL; i++) at[i] = rows + (j + (i < count ? i : 0)) * row;
#pragma GCC unroll 16
        for (int i = 0; i < VL; i++) sum[i] = vzero();
        for (; d + VL <= D; d += VL) {
            vreal q = vload(x + d);
#pragma GCC unroll 16
            for (int i = 0; i < VL; i++) sum[i] = vfma(q, vload(at[i] + d), sum[i]);
        }
        if (d < D) {
            vreal q = vload_n(x + d, D - d);
            for (int i = 0; i < VL; i++) sum[i] = vfma(q, vload_n(at[i] + d, D - d), sum[i]);
        }
        vtranspose(sum);
#pragma GCC unroll 4
        for (int half = VL / 2; half > 0; half /= 2)
#pragma GCC unroll 8
            for (int i = 0; i < half; i++) sum[i] = vadd(sum[i], sum[i + half]);
        vstore_n(s + j, vmul(sum[0], vset1(factor)), count);
    }
}

/* One query's scores: s = exp(s - max), the maximum and the sum. */
static void attention_row(real *s, ptrdiff_t n, real *m, real *l) {
    *m = softmax_maximum(s, n);
    *l = softmax_exp_sum(s, s, n, softmax_shift(*m));
}

/* ---------------------------------------------------------------- backward */

/* s = exp(s - lse), lse = 0 for a query that saw nothing */
static void attention_weights(real *s, const real *lse, ptrdiff_t keys, ptrdiff_t queries) {
    for (ptrdiff_t q = 0; q < queries; q += VL) {
        vreal shift = vload(lse + q);
        shift = vselect(veq(shift, vset1(-(real)INFINITY)), vzero(), shift);
        for (ptrdiff_t j = 0; j < keys; j++) {
            real *at = s + j * attention_queries + q;
            vstore(at, vexp_down(vsub(vload(at), shift)));
        }
    }
}

/* dp = p (dp - delta) scale, 0 where p is, whatever a hidden value made of dp */
static void attention_scores_backward(real *dp, const real *p, const real *delta, real scale, ptrdiff_t keys, ptrdiff_t queries) {
    for (ptrdiff_t j = 0; j < keys; j++, dp += attention_queries, p += attention_queries)
        for (ptrdiff_t q = 0; q < queries; q += VL) {
            vreal weight = vload(p + q), ds = vmul(vmul(weight, vsub(vload(dp + q), vload(delta + q))), vset1(scale));
            vstore(dp + q, vselect(veq(weight, vzero()), vzero(), ds));
        }
}

/* One query's: p = exp(p - lse), ds = p (ds - delta), 0 where p is. */
static void attention_row_backward(real *p, real *ds, real lse, real delta, ptrdiff_t n) {
    vreal shift = vset1(softmax_shift(lse));
    for (ptrdiff_t j = 0; j < n; j += VL) {
        ptrdiff_t width = n - j < VL ? n - j : VL;
        vreal weight = vexp_down(vsub(vload_n(p + j, width), shift)), d = vmul(weight, vsub(vload_n(ds + j, width), vset1(delta)));
        vstore_n(p + j, weight, width);
        vstore_n(ds + j, vselect(veq(weight, vzero()), vzero(), d), width);
    }
}

/* delta[query] += a . b, rows of n reals */
static void attention_delta(real *delta, const real *a, ptrdiff_t row_a, const real *b, ptrdiff_t row_b, ptrdiff_t queries, ptrdiff_t n) {
    for (ptrdiff_t q = 0; q < queries; q++, a += row_a, b += row_b) {
        vreal sum = vzero();
        for (ptrdiff_t d = 0; d < n; d += VL) {
            ptrdiff_t width = n - d < VL ? n - d : VL;
            sum = vfma(vload_n(a + d, width), vload_n(b + d, width), sum);
        }
        delta[q] += vsum(sum);
    }
}

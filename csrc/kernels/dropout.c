/* dropout.c - y = x m / (1 - p) with the mask m made on the way from Philox4x32-10 (Salmon, Moraes, Dror & Shaw 2011).
 *
 * Element i belongs to word i % 4 of the block with the counter (i / 4 low, i / 4 high, call, layer). A vector works on VL64 blocks,
 * each 32-bit word in the low half of a 64-bit lane, where the 32 x 32 -> 64 products are one instruction; what is in the high halves
 * is never looked at until the end. Bound by these products: 20 for VL64 x 4 elements. */

enum { dropout_blocks = 2 * VL64, dropout_words = 4 * dropout_blocks };     /* made at once: two independent chains */

/* The ten rounds on two vectors of counters; the words come out in the low halves. */
FSQ_INLINE void dropout_rounds(v64 c0[2], v64 c1[2], v64 c2[2], v64 c3[2], uint64_t seed) {
    uint32_t k0 = (uint32_t)seed, k1 = (uint32_t)(seed >> 32);
#pragma GCC unroll 10
    for (int round = 0; round < 10; round++, k0 += 0x9E3779B9u, k1 += 0xBB67AE85u)
#pragma GCC unroll 2
        for (int u = 0; u < 2; u++) {
            v64 p0 = v64_mul32(c0[u], v64_set1(0xD2511F53u)), p1 = v64_mul32(c2[u], v64_set1(0xCD9E8D57u));
            c0[u] = (p1 >> 32) ^ c1[u] ^ k0;
            c2[u] = (p0 >> 32) ^ c3[u] ^ k1;
            c1[u] = p1;
            c3[u] = p0;
        }
}

/* 4 words each of dropout_blocks blocks from counter `block` on, in the order of the elements. */
FSQ_INLINE void dropout_philox(uint32_t words[dropout_words], uint64_t block, uint64_t seed, uint32_t layer, uint32_t call) {
    static const uint64_t steps[8] = {0, 1, 2, 3, 4, 5, 6, 7};
    v64 c0[2], c1[2], c2[2], c3[2];
    for (int u = 0; u < 2; u++) {
        c0[u] = v64_load(steps) + (block + (uint64_t)u * VL64);
        c1[u] = c0[u] >> 32;
        c2[u] = v64_set1(call);
        c3[u] = v64_set1(layer);
    }
    dropout_rounds(c0, c1, c2, c3, seed);
    for (int u = 0; u < 2; u++) {
        uint64_t low[VL64], high[VL64];
        v64_store(low, (c0[u] & 0xffffffff) | c1[u] << 32);
        v64_store(high, (c2[u] & 0xffffffff) | c3[u] << 32);
        for (int b = 0; b < VL64; b++) {
            memcpy(words + 4 * (u * VL64 + b), low + b, 8);
            memcpy(words + 4 * (u * VL64 + b) + 2, high + b, 8);
        }
    }
}

#if defined FSQ_F32
typedef uint32_t dropout_bits;
#else
typedef uint64_t dropout_bits;
#endif

/* y = x factor where the word is >= threshold, else 0: a mask, because a branch would be mispredicted at random. */
FSQ_INLINE void dropout_apply(real *y, const real *x, const uint32_t words[dropout_words], const ptrdiff_t count, uint32_t threshold, real factor) {
    real scaled[dropout_words];
    dropout_bits kept[dropout_words];
    for (ptrdiff_t j = 0; j < count; j++) scaled[j] = x[j] * factor;
    memcpy(kept, scaled, (size_t)count * sizeof(real));
    for (ptrdiff_t j = 0; j < count; j++) kept[j] &= -(dropout_bits)(words[j] >= threshold);
    memcpy(y, kept, (size_t)count * sizeof(real));
}

/* Elements [first, first + n) of an array of which y and x are the start; first is a multiple of 4. */
static void dropout(real *y, const real *x, ptrdiff_t first, ptrdiff_t n, uint32_t threshold, real factor, uint64_t seed, uint32_t layer,
                    uint32_t call) {
    for (ptrdiff_t i = first; i < first + n; i += dropout_words) {
        uint32_t words[dropout_words];
        dropout_philox(words, (uint64_t)i / 4, seed, layer, call);
        if (first + n - i >= dropout_words) dropout_apply(y + i, x + i, words, dropout_words, threshold, factor);
        else dropout_apply(y + i, x + i, words, first + n - i, threshold, factor);
    }
}

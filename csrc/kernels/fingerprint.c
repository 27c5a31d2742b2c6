/* fingerprint.c - the hash of one chunk of memory; ops/fingerprint.c puts chunks together.
 *
 * For each 64-bit word d at place s of its column, with a key of its own for every place:
 *   products += (low half of d ^ key) (high half of d ^ key),   sums += d
 * The products depend on order, the sums notice what a product with a zero factor would swallow. 64 bytes, eight columns, at a time
 * on every instruction set: all give the same value. The idea of one 32 x 32 -> 64 product per word is NH's (Black, Halevi, Krawczyk,
 * Krovetz & Rogaway, UMAC, 1999). Six instructions for a vector: bound by bytes from the L2 cache on. */

enum { fingerprint_stripe = 64, fingerprint_vectors = 8 / VL64 };

/* Any odd numbers would do; these are the first bits of the fractional parts of the square roots of the primes from 2 on, made odd. */
static const uint64_t fingerprint_keys[16] = {
    0x6a09e667f3bcc909, 0xbb67ae8584caa73b, 0x3c6ef372fe94f82b, 0xa54ff53a5f1d36f1, 0x510e527fade682d1, 0x9b05688c2b3e6c1f,
    0x1f83d9abfb41bd6b, 0x5be0cd19137e2179, 0xcbbb9d5dc1059ed9, 0x629a292a367cd507, 0x9159015a3070dd17, 0x152fecd8f70e5939,
    0x67332667ffc00b31, 0x8eb44a8768581511, 0xdb0c2e0d64f98fa7, 0x47b5481dbefa4fa5,
};

FSQ_INLINE uint64_t fingerprint_mix(uint64_t x) {           /* the finaliser of MurmurHash3: a bijection in which each bit touches each */
    x = (x ^ x >> 33) * 0xff51afd7ed558ccd;
    x = (x ^ x >> 33) * 0xc4ceb9fe1a85ec53;
    return x ^ x >> 33;
}

FSQ_INLINE void fingerprint_take(v64 *products, v64 *sums, v64 *keys, const char *data) {
#pragma GCC unroll 4
    for (int v = 0; v < fingerprint_vectors; v++) {
        v64 d = v64_load(data + v * (int)sizeof(v64)), mixed = d ^ keys[v];
        products[v] += v64_mul32(mixed, mixed >> 32);
        sums[v] += d;
        keys[v] += v64_load(fingerprint_keys + 8 + v * VL64);
    }
}

/* Adds the two hashes of chunk number `index` to hash. */
static void fingerprint_chunk(uint64_t hash[2], const void *data, size_t bytes, uint64_t index) {
    v64 products[fingerprint_vectors], sums[fingerprint_vectors], keys[fingerprint_vectors];
    for (int v = 0; v < fingerprint_vectors; v++) {
        products[v] = sums[v] = v64_set1(0);
        keys[v] = v64_load(fingerprint_keys + v * VL64);
    }
    const char *p = data;
    for (; bytes >= fingerprint_stripe; bytes -= fingerprint_stripe, p += fingerprint_stripe) fingerprint_take(products, sums, keys, p);
    if (bytes) {
        char rest[fingerprint_stripe] = {0};
        memcpy(rest, p, bytes);
        fingerprint_take(products, sums, keys, rest);
    }
    uint64_t column[16];
    memcpy(column, products, 64);
    memcpy(column + 8, sums, 64);
    for (int h = 0; h < 2; h++) {
        uint64_t all = fingerprint_mix(index + fingerprint_keys[h]);
        for (int c = 0; c < 16; c++) all = (all ^ fingerprint_mix(column[c] + fingerprint_keys[c] * (uint64_t)(2 * h + 1))) * 0x9e3779b97f4a7c15;
        hash[h] += fingerprint_mix(all);
    }
}

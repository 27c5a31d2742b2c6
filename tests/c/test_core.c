/* test_core.c - what has no float type: Philox, fingerprints, the check of ids, the choice of an instruction set. */
#include <string.h>

#include "check.h"
#include "fastseq.h"

/* Known answers: Random123's kat_vectors, philox4x32 with 10 rounds. */
static void test_philox(void) {
    static const struct { uint32_t counter[4], key[2], out[4]; } known[] = {
        {{0, 0, 0, 0}, {0, 0}, {0x6627e8d5, 0xe169c58d, 0xbc57ac4c, 0x9b00dbd8}},
        {{~0u, ~0u, ~0u, ~0u}, {~0u, ~0u}, {0x408f276d, 0x41c83b0e, 0xa20bc7c6, 0x6d5451fd}},
        {{0x243f6a88, 0x85a308d3, 0x13198a2e, 0x03707344}, {0xa4093822, 0x299f31d0}, {0xd16cfe09, 0x94fdcceb, 0x5001e420, 0x24126ea1}},
    };
    for (size_t i = 0; i < sizeof known / sizeof known[0]; i++) {
        uint32_t out[4];
        fsq_philox(out, known[i].key[0] | (uint64_t)known[i].key[1] << 32, known[i].counter);
        CHECK(memcmp(out, known[i].out, sizeof out) == 0);
    }
}

static int same(const uint64_t a[2], const uint64_t b[2]) { return a[0] == b[0] || a[1] == b[1]; }

static void fingerprint_of(uint64_t state[2], const void *data, size_t bytes) {
    state[0] = state[1] = 0;
    fsq_fingerprint(state, data, bytes, check_threads);
}

/* Neither half may stay when one bit, the length, or the order of words changes. */
static void test_fingerprint(void) {
    static const size_t sizes[] = {4, 8, 60, 64, 68, 128, 4096, 32764, 32768, 32772, 65536 + 64, 200000};
    for (size_t s = 0; s < sizeof sizes / sizeof sizes[0]; s++) {
        size_t bytes = sizes[s], words = bytes / 4;
        uint32_t *data = check_buffer(bytes, 4);
        for (size_t i = 0; i < words; i++) data[i] = (uint32_t)check_bits();
        uint64_t base[2], changed[2];
        fingerprint_of(base, data, bytes);
        for (int trial = 0; trial < 64; trial++) {
            size_t at = check_bits() % words, other = check_bits() % words;
            uint32_t bit = 1u << check_bits() % 32;
            data[at] ^= bit;
            fingerprint_of(changed, data, bytes);
            CHECK(!same(base, changed));
            data[at] ^= bit;
            uint32_t a = data[at], b = data[other];
            data[at] = b, data[other] = a;
            fingerprint_of(changed, data, bytes);
            CHECK(a == b || !same(base, changed));
            data[at] = a, data[other] = b;
        }
        fingerprint_of(changed, data, bytes);
        CHECK(base[0] == changed[0] && base[1] == changed[1]);
        if (bytes > 4) {
            fingerprint_of(changed, data, bytes - 4);
            CHECK(!same(base, changed));
        }
        memset(data, 0, bytes);
        fingerprint_of(base, data, bytes);
        if (bytes > 4) {
            fingerprint_of(changed, data, bytes - 4);
            CHECK(!same(base, changed));
        }
        for (size_t i = 0; i < words; i += 1 + words / 64) {                  /* one small float somewhere in zeros */
            data[i] = 0x3f800000;
            fingerprint_of(changed, data, bytes);
            CHECK(!same(base, changed));
            data[i] = 0;
        }
    }
    check_free_all();
}

/* Two calls are not one, their order counts, and an empty call counts too. */
static void test_fingerprint_sequence(void) {
    uint32_t *data = check_buffer(800, 0);
    for (int i = 0; i < 200; i++) data[i] = (uint32_t)check_bits();
    uint64_t ab[2] = {0, 0}, ba[2] = {0, 0}, a[2] = {0, 0}, empty[2] = {0, 0}, zero[2] = {0, 0};
    fsq_fingerprint(ab, data, 400, check_threads);
    memcpy(a, ab, sizeof a);
    fsq_fingerprint(ab, data + 100, 400, check_threads);
    fsq_fingerprint(ba, data + 100, 400, check_threads);
    fsq_fingerprint(ba, data, 400, check_threads);
    fsq_fingerprint(empty, NULL, 0, check_threads);
    CHECK(!same(ab, ba) && !same(ab, a));
    CHECK(!same(empty, zero));
    check_free_all();
}

static void test_ids(void) {
    int64_t *ids = check_buffer(3000 * sizeof *ids, 0);
    for (int i = 0; i < 3000; i++) ids[i] = (int64_t)(check_bits() % 7);
    CHECK(fsq_ids_find_outside(ids, 3000, 7) == -1);
    CHECK(fsq_ids_find_outside(ids, 0, 7) == -1 && fsq_ids_find_outside(NULL, 0, 0) == -1);
    CHECK(fsq_ids_find_outside(ids, 3000, 0) == 0);
    static const int64_t bad[] = {-1, 7, INT64_MIN, INT64_MAX, -7, 1 + (int64_t)UINT32_MAX};
    static const ptrdiff_t at[] = {0, 1, 511, 512, 513, 2999};
    for (size_t b = 0; b < 6; b++)
        for (size_t p = 0; p < 6; p++) {
            int64_t before = ids[at[p]];
            ids[at[p]] = bad[b];
            CHECK(fsq_ids_find_outside(ids, 3000, 7) == at[p]);
            CHECK(fsq_ids_find_outside(ids, at[p], 7) == -1);
            CHECK(fsq_ids_find_outside(ids, 3000, INT64_MAX) == (bad[b] < 0 || bad[b] == INT64_MAX ? at[p] : -1));
            ids[at[p]] = before;
        }
    check_free_all();
}

static void test_isa(void) {
    CHECK(strcmp(fsq_isa_name(), check_isa) == 0);
    CHECK(fsq_isa_select("mmx") == -1 && fsq_isa_select("") == -1);
    CHECK(strcmp(fsq_isa_name(), check_isa) == 0);
}

void test_core(void) {
    test_philox();
    test_fingerprint();
    test_fingerprint_sequence();
    test_ids();
    test_isa();
}

/* What every instruction set must agree on to the bit. */
void test_across_isas(void) {
    size_t words = 50001;
    uint32_t *data = check_buffer(words * 4, 0);
    float *x = check_buffer(words * 4, 0), *dropped = check_buffer(words * 4, 0), *again = check_buffer(words * 4, 0);
    for (size_t i = 0; i < words; i++) data[i] = (uint32_t)check_bits(), x[i] = (float)check_uniform(-1, 1);
    uint64_t first[2] = {0, 0};
    double first_sum = 0;
    for (int i = 0; fsq_isa_available(i); i++) {
        CHECK(fsq_isa_select(fsq_isa_available(i)) == 0);
        uint64_t print[2] = {0, 0};
        fsq_fingerprint(print, data, words * 4, 2);
        double sum = fsq_sum_squares_f32(x, (ptrdiff_t)words, 2);
        fsq_dropout_f32(i ? again : dropped, x, (ptrdiff_t)words, 0.3, 42, 1, 2, 2);
        if (i == 0) memcpy(first, print, sizeof first), first_sum = sum;
        else CHECK(memcmp(dropped, again, words * 4) == 0);
        CHECK(memcmp(print, first, sizeof first) == 0);
        CHECK(sum == first_sum);
    }
}

/* fingerprint.c - threads over the chunks of kernels/fingerprint.c: no float type, so compiled once, with ops_f32.c.
 *
 * Every chunk is hashed with its number, and the hashes are added modulo 2^64: the sum does not depend on who adds what, or when. */
#include "../core/threads.h"
#include "../kernels/kernels.h"

#include <stdatomic.h>

enum { fingerprint_chunk_bytes = 1 << 15 };                 /* part of an L1 cache's worth of work, 1 us or so */

typedef struct {
    const char *data;
    size_t bytes;
    _Atomic uint64_t hash[2];
} fingerprint_call;

static void fingerprint_part(const fsq_team *team, void *context) {
    fingerprint_call *c = context;
    ptrdiff_t from, to;
    fsq_share(team, (ptrdiff_t)c->bytes, fingerprint_chunk_bytes, &from, &to);
    uint64_t hash[2] = {0, 0};
    for (; from < to; from += fingerprint_chunk_bytes) {
        ptrdiff_t left = to - from, size = left < fingerprint_chunk_bytes ? left : fingerprint_chunk_bytes;
        FSQ_FN(kernels_now)()->fingerprint_chunk(hash, c->data + from, (size_t)size, (uint64_t)from / fingerprint_chunk_bytes);
    }
    for (int h = 0; h < 2; h++) atomic_fetch_add_explicit(&c->hash[h], hash[h], memory_order_relaxed);
}

/* A bijection of a for every b: earlier data are not forgotten. */
static uint64_t fingerprint_join(uint64_t a, uint64_t b) {
    a = (a ^ b) * 0x9fb21c651e98df25;
    return (a ^ a >> 29) * 0xd6e8feb86659fd93 + b;
}

void fsq_fingerprint(uint64_t state[2], const void *data, size_t bytes, int threads) {
    fingerprint_call c = {.data = data, .bytes = bytes};
    fsq_parallel(fsq_threads_for((double)bytes / 20, threads), fingerprint_part, &c);
    for (int h = 0; h < 2; h++)
        state[h] = fingerprint_join(fingerprint_join(state[h], atomic_load_explicit(&c.hash[h], memory_order_relaxed)), (uint64_t)bytes + 1);
}

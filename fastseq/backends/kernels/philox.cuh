// Philox4x32-10 (Salmon, Moraes, Dror & Shaw 2011), the counter-based generator of every random mask: the words of reference_philox.py.
#pragma once

// The four words of a counter; key: the seed.
__device__ __forceinline__ uint4 philox(unsigned long long key, uint4 c) {
    unsigned k0 = (unsigned)key, k1 = (unsigned)(key >> 32);
#pragma unroll
    for (int round = 0; round < 10; round++) {
        unsigned long long p0 = (unsigned long long)c.x * 0xD2511F53u, p1 = (unsigned long long)c.z * 0xCD9E8D57u;
        c = make_uint4((unsigned)(p1 >> 32) ^ c.y ^ k0, (unsigned)p1, (unsigned)(p0 >> 32) ^ c.w ^ k1, (unsigned)p0);
        k0 += 0x9E3779B9u;
        k1 += 0xBB67AE85u;
    }
    return c;
}

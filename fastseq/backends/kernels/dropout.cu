// dropout.cu - y = x m / (1 - p) with the mask m made on the way from Philox (philox.cuh).
//
// Element i belongs to word i % 4 of the block with the counter (i / 4 low, i / 4 high, call, layer): a thread makes one block and its
// four elements. 8 bytes an element (16 in double) at the memory's bandwidth, or 5 products of 32 bits an element: about the same time on an H100.
#include "device.cuh"
#include "vector.cuh"
#include "philox.cuh"

extern "C" __global__ void dropout(REAL *y, const REAL *x, long long n, unsigned threshold, REAL factor, unsigned long long seed, unsigned layer, unsigned call) {
    const long long block = (long long)blockIdx.x * blockDim.x + threadIdx.x;
    if (4 * block >= n) return;
    const bool whole = on_lanes(x) && on_lanes(y);
    const uint4 drawn = philox(seed, make_uint4((unsigned)block, (unsigned)((unsigned long long)block >> 32), call, layer));
    const unsigned words[4] = {drawn.x, drawn.y, drawn.z, drawn.w};
#pragma unroll
    for (int first = 0; first < 4; first += LANES) {
        REAL v[LANES];
        load_at(v, x, 4 * block + first, n, whole);
#pragma unroll
        for (int l = 0; l < LANES; l++) v[l] = words[first + l] >= threshold ? v[l] * factor : (REAL)0;
        store_at(y, v, 4 * block + first, n, whole);
    }
}

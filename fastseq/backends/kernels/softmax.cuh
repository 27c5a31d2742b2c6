// The maximum of a row and the sum of its exponentials, of which softmax, its logarithm and cross-entropy are made.
#pragma once
#include "rows.cuh"

struct Exponentials {
    REAL greatest, shift, sum;  // of exp(x - shift); shift is 0 where the greatest is infinite, so that exp(-inf) is 0 instead of NaN
};

__device__ __forceinline__ REAL shift_of(REAL greatest) { return isinf(greatest) ? (REAL)0 : greatest; }

// What a sum of exponentials becomes when the greatest grows; from nothing, nothing.
__device__ __forceinline__ REAL rescaled(REAL sum, REAL before, REAL after) {
    return before == NO_REAL ? sum * 0 : sum * exp(shift_of(before) - shift_of(after));
}

// Of a row that is kept in v: `load` fills it, load(v[slot], i). One that is too long is read once, with the sum of what came so far
// adapted to each new maximum (Milakov & Gimelshein 2018). shared: 64 elements.
template <class Load> __device__ __forceinline__ Exponentials exponentials(REAL (&v)[SLOTS][W], int N, REAL *shared, Load load) {
    REAL greatest = NO_REAL, sum = 0;
    each_access(N, [&](int slot, int i) {
        load(v[slot], i);
        const REAL before = greatest;
#pragma unroll
        for (int l = 0; l < W; l++) greatest = fmax(greatest, v[slot][l]);
        if constexpr (!KEPT) {
            if (greatest != before) sum = rescaled(sum, before, greatest);
#pragma unroll
            for (int l = 0; l < W; l++) sum += exp(v[slot][l] - shift_of(greatest));
        }
    });
    const REAL all = row_greatest(greatest, shared), shift = shift_of(all);
    if constexpr (KEPT) {
        each_access(N, [&](int slot, int) {
#pragma unroll
            for (int l = 0; l < W; l++) sum += exp(v[slot][l] - shift);
        });
    } else {
        sum = rescaled(sum, greatest, all);
    }
    return {all, shift, row_sum(sum, shared + 32)};
}

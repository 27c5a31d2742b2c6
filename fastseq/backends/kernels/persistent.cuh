// What the persistent recurrent kernels share: numbers as pairs of float16, the gates' functions, and who goes through which step.
//
// Macros: CELL 0 LSTM, 1 GRU with the reset after the product; SPLIT 1: operands of products have the 11 bits of float16 (as many as
// tf32, more than bfloat16), 2: 22 bits, as two numbers of float16. Powers of two bring operands into float16's range before, and are
// taken off the sums, so that only bits are lost and no range is.
#pragma once
#include "device.cuh"

#define GATES (CELL ? 3 : 4)
#define LANE (threadIdx.x % 32)
#define WARP (threadIdx.x / 32)
#define CEIL_DIV(a, b) (((a) + (b) - 1) / (b))

// The bits of |x|, which are in order as whole numbers; 0 for what is not finite.
__device__ __forceinline__ unsigned magnitude(float x) {
    unsigned bits = __float_as_uint(x) & 0x7fffffffu;
    return bits < 0x7f800000u ? bits : 0u;
}

// The exponent of the power of two that brings a magnitude between 2^14 and 2^15.
__device__ __forceinline__ int shift_for(unsigned bits) {
    int shift = 14 + 127 - int(bits >> 23);
    return bits == 0 ? 0 : shift < 100 ? shift : 100;
}

__device__ __forceinline__ float power_of_two(int exponent) { return __int_as_float((exponent + 127) << 23); }

__device__ __forceinline__ unsigned largest_of_warp(unsigned bits, int lanes) {
    for (int i = lanes / 2; i; i /= 2) {
        unsigned other = __shfl_xor_sync(~0u, bits, i);
        bits = other > bits ? other : bits;
    }
    return bits;
}

// a and b as float16, and in SPLIT 2 what that leaves of them.
__device__ __forceinline__ void split(float a, float b, unsigned (&parts)[SPLIT]) {
    parts[0] = pack_f16(a, b);
#if SPLIT == 2
    parts[1] = pack_f16(a - from_f16((unsigned short)parts[0]), b - from_f16((unsigned short)(parts[0] >> 16)));
#endif
}

// A lane's 8 neighbours in k of one column of W_hh, as `multiply` takes them.
__device__ __forceinline__ void split_8(const float *x, unsigned (&w)[SPLIT][4]) {
#pragma unroll
    for (int i = 0; i < 4; i++) {
        unsigned parts[SPLIT];
        split(x[2 * i], x[2 * i + 1], parts);
#pragma unroll
        for (int p = 0; p < SPLIT; p++) w[p][i] = parts[p];
    }
}

// d += a b of two steps of 16 k: a lane's 8 neighbours in k serve as its pairs of both, in a as in b.
__device__ __forceinline__ void multiply(float (&d)[4], uint4 a0, uint4 a8, const unsigned (&b)[4]) {
    const unsigned a[2][4] = {{a0.x, a8.x, a0.y, a8.y}, {a0.z, a8.z, a0.w, a8.w}}, right[2][2] = {{b[0], b[1]}, {b[2], b[3]}};
    mma_f16(d, a[0], right[0]);
    mma_f16(d, a[1], right[1]);
}

__device__ __forceinline__ void multiply_split(float (&d)[4], const uint4 (&a0)[SPLIT], const uint4 (&a8)[SPLIT], const unsigned (&b)[SPLIT][4]) {
#if SPLIT == 2 // the small ones first
    multiply(d, a0[1], a8[1], b[0]);
    multiply(d, a0[0], a8[0], b[1]);
#endif
    multiply(d, a0[0], a8[0], b[0]);
}

// The same the other way round, for 8 rows or fewer: d (16 columns, 8 rows) += (a column's w and that of one 8 further on) (h of a row).
__device__ __forceinline__ void multiply_turned(float (&d)[4], uint4 h, const unsigned *w0, const unsigned *w8) {
    const unsigned a[2][4] = {{w0[0], w8[0], w0[1], w8[1]}, {w0[2], w8[2], w0[3], w8[3]}}, right[2][2] = {{h.x, h.y}, {h.z, h.w}};
    mma_f16(d, a[0], right[0]);
    mma_f16(d, a[1], right[1]);
}

__device__ __forceinline__ void multiply_turned_split(float (&d)[4], const uint4 (&h)[SPLIT], const unsigned (*w0)[4], const unsigned (*w8)[4]) {
#if SPLIT == 2
    multiply_turned(d, h[1], w0[0], w8[0]);
    multiply_turned(d, h[0], w0[1], w8[1]);
#endif
    multiply_turned(d, h[0], w0[0], w8[0]);
}

// 1 / (1 + exp(-x)) and tanh x, exact to a few ulp, or where products have 11 bits to 2^-22 of one.
__device__ __forceinline__ float sigmoid(float x) {
#if SPLIT == 2
    return 1.0f / (1.0f + expf(-x));
#else
    return __fdividef(1.0f, 1.0f + __expf(-x));
#endif
}
__device__ __forceinline__ float hyperbolic(float x) {
#if SPLIT == 2
    return tanhf(x);
#else
    return 1.0f - __fdividef(2.0f, 1.0f + __expf(2.0f * x));
#endif
}

// 4 neighbours of a line with `left` elements from here on, zeros behind its end.
__device__ __forceinline__ float4 load_units(const float *p, int left, bool aligned) {
    if (aligned) return left > 0 ? load_early((const float4 *)p) : make_float4(0.0f, 0.0f, 0.0f, 0.0f);
    return make_float4(left > 0 ? load_early(p) : 0.0f, left > 1 ? load_early(p + 1) : 0.0f, left > 2 ? load_early(p + 2) : 0.0f, left > 3 ? load_early(p + 3) : 0.0f);
}

// The bits of the largest |w| of all gates of `units` units in `columns` (a multiple of 4) columns, for all threads of the block.
__device__ __forceinline__ unsigned largest_weight(const float *w_hh, int first_unit, int units, int first_column, int columns, int H, unsigned *scratch) {
    unsigned most = 0;
    const int quads = columns / 4;
#pragma unroll 8
    for (int i = threadIdx.x; i < GATES * units * quads; i += blockDim.x) {
        const int row = i / quads, unit = first_unit + row % units, column = first_column + i % quads * 4;
        const float4 v = load_units(w_hh + ((long long)(row / units) * H + unit) * H + column, unit < H ? H - column : 0, H % 4 == 0);
        unsigned bits = magnitude(v.x), other = magnitude(v.y);
        most = bits > most ? bits : most, most = other > most ? other : most;
        bits = magnitude(v.z), other = magnitude(v.w);
        most = bits > most ? bits : most, most = other > most ? other : most;
    }
    most = largest_of_warp(most, 32);
    if (LANE == 0) scratch[WARP] = most;
    __syncthreads();
    for (int i = 0; i < blockDim.x / 32; i++) most = scratch[i] > most ? scratch[i] : most;
    __syncthreads();
    return most;
}

// The batch's rows [first, first + count) are one group; its blocks go through `steps` steps, those of its longest row.
struct Group {
    int first, count, steps;
};

__device__ __forceinline__ Group group_of(int number, int rows, int T, int B, const long long *lengths) {
    Group group = {number * rows, B - number * rows < rows ? B - number * rows : rows, T};
    if (lengths) {
        group.steps = 0;
        for (int b = 0; b < group.count; b++) {
            int n = (int)lengths[group.first + b];
            group.steps = n > group.steps ? n : group.steps;
        }
        if (group.steps > T) group.steps = T;
    }
    return group;
}

// Whether a boundary lies between a row's step t and the one before it; reset[t] is between t - 1 and t.
__device__ __forceinline__ bool crosses(const bool *reset, int t, int b, int length, int B, int reverse) {
    if (!reset) return false;
    return reverse ? t + 1 < length && reset[(long long)(t + 1) * B + b] : reset[(long long)t * B + b];
}

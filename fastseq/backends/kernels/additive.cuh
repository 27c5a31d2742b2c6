// Scores u . tanh(q + k) by exponentials, for additive_attention.cu and the attention decoder (Bahdanau et al. 2015).
//
// With x = exp(2q) and y = exp(2k), taken once for each query and each key,
//
//   r = 1 / (1 + x y),   tanh(q + k) = 1 - 2 r,   1 - tanh^2 = 4 (1/4 - h^2) with h = r - 1/2,
//
// and two units share a reciprocal: 1/a and 1/b are b/(ab) and a/(ab). Half a reciprocal for a unit is the cost on the special function
// unit, 16 of which a multiprocessor finishes in a cycle; the rest is a few multiply-adds. The error is that of a tanh in absolute terms.
//
// The product of two denominators must not overflow: units beyond ADDITIVE_RANGE, and NaN, are "far", and what they meet goes through tanh.
#pragma once
#include "device.cuh"

__device__ __forceinline__ float additive_range(float) { return 10.0f; } // (1 + exp(4 * 10))^2 is 5.5e34
__device__ __forceinline__ double additive_range(double) { return 85.0; } // (1 + exp(4 * 85))^2 is 2e295
__device__ __forceinline__ float additive_largest(float) { return 3.4028234e38f; }
__device__ __forceinline__ double additive_largest(double) { return 1.7976931348623157e308; }
__device__ __forceinline__ float additive_exp(float x) { return expf(2 * x); }
__device__ __forceinline__ double additive_exp(double x) { return exp(2 * x); }
__device__ __forceinline__ float additive_tanh(float x) { return tanhf(x); }
__device__ __forceinline__ double additive_tanh(double x) { return tanh(x); }
__device__ __forceinline__ float softmax_exp(float x) { return expf(x); }
__device__ __forceinline__ double softmax_exp(double x) { return exp(x); }
__device__ __forceinline__ float minus_infinity(float) { return __int_as_float(0xff800000); }
__device__ __forceinline__ double minus_infinity(double) { return __longlong_as_double(0xfff0000000000000ll); }

// Four units of a row side by side.
struct alignas(16) Four {
    REAL x[4];
};

// Units d to d + 3 of a row of D, zeros past its end; whole: rows begin on 16 bytes and D is a multiple of 4.
__device__ __forceinline__ Four load_four(const REAL *row, int d, int D, bool whole) {
    Four f;
    if (whole && d < D) return *reinterpret_cast<const Four *>(row + d);
#pragma unroll
    for (int e = 0; e < 4; e++) f.x[e] = d + e < D ? row[d + e] : 0;
    return f;
}

__device__ __forceinline__ bool rows_of_four(const void *p, int D) { return ((unsigned long long)p & 15) == 0 && D % 4 == 0; }

// Whether one of the four is beyond `limit` or a NaN.
__device__ __forceinline__ bool beyond(const Four &f, REAL limit) {
    bool found = false;
#pragma unroll
    for (int e = 0; e < 4; e++) found |= !(fabs(f.x[e]) <= limit);
    return found;
}

__device__ __forceinline__ Four exponentials(const Four &f) {
    Four y;
#pragma unroll
    for (int e = 0; e < 4; e++) y.x[e] = additive_exp(f.x[e]);
    return y;
}

// sum + u . (r - 1/2) over four units of exponentials; half is half the sum of u.
__device__ __forceinline__ REAL additive_four(REAL sum, const Four &x, const Four &y, const Four &u, REAL half) {
#pragma unroll
    for (int e = 0; e < 4; e += 2) {
        const REAL a = 1 + x.x[e] * y.x[e], b = 1 + x.x[e + 1] * y.x[e + 1];
        sum += (u.x[e] * b + u.x[e + 1] * a) * reciprocal(a * b);
    }
    return sum - half;
}

// The sum and the largest number of a warp, in every lane.
__device__ __forceinline__ REAL warp_sum(REAL x) {
#pragma unroll
    for (int n = 16; n > 0; n /= 2) x += __shfl_xor_sync(0xffffffffu, x, n);
    return x;
}
__device__ __forceinline__ REAL warp_max(REAL x) {
#pragma unroll
    for (int n = 16; n > 0; n /= 2) {
        const REAL other = __shfl_xor_sync(0xffffffffu, x, n);
        x = x > other ? x : other;
    }
    return x;
}

// pointwise.cu - y = f(x), dx = dy f'(x), y = f(y + bias) on what a product has left, and a sum's gradient.
//
// Bound by bytes: 8 an element forward, 12 backward, in double twice that. A thread has the elements of one access, so that enough of them
// are under way, and asks once which function it is. The accurate functions of CUDA: at most 2 ulp in float, but for erfc's tails.
#include "device.cuh"
#include "vector.cuh"
#include "functions.cuh"

extern "C" __global__ void pointwise_forward(REAL *y, const REAL *x, long long n, int function, REAL parameter) {
    const long long i = LANES * ((long long)blockIdx.x * blockDim.x + threadIdx.x);
    if (i >= n) return;
    const bool whole = on_lanes(x) && on_lanes(y);
    REAL v[LANES];
    load_at(v, x, i, n, whole);
#define EACH(F)                                                                                                                     \
    _Pragma("unroll") for (int l = 0; l < LANES; l++) v[l] = value_of<F>(v[l], parameter)
    FOR_FUNCTION(function, EACH)
#undef EACH
    store_at(y, v, i, n, whole);
}

extern "C" __global__ void pointwise_backward(REAL *dx, const REAL *saved, const REAL *dy, long long n, int function, REAL parameter) {
    const long long i = LANES * ((long long)blockIdx.x * blockDim.x + threadIdx.x);
    if (i >= n) return;
    const bool whole = on_lanes(saved) && on_lanes(dy) && on_lanes(dx);
    REAL s[LANES], d[LANES];
    load_at(s, saved, i, n, whole);
    load_at(d, dy, i, n, whole);
#define EACH(F)                                                                                                                     \
    _Pragma("unroll") for (int l = 0; l < LANES; l++) d[l] = gradient_of<F>(s[l], d[l], parameter)
    FOR_FUNCTION(function, EACH)
#undef EACH
    store_at(dx, d, i, n, whole);
}

// dx = dy / count, where dx is (.., summed, inner), n elements in all, and dy (.., inner).
extern "C" __global__ void sum_backward(REAL *dx, const REAL *dy, long long n, long long summed, long long inner, REAL count) {
    const long long i = LANES * ((long long)blockIdx.x * blockDim.x + threadIdx.x), group = summed * inner;
    if (i >= n) return;
    REAL v[LANES];
#pragma unroll
    for (int l = 0; l < LANES; l++) {
        const long long at = i + l < n ? i + l : n - 1;
        const long long outer = group == n ? 0 : at / group;  // a division takes longer than an access
        v[l] = dy[inner == 1 ? outer : outer * inner + at % inner] / count;
    }
    store_at(dx, v, i, n, on_lanes(dx));
}

// y (M, N) in place; bias (N) may be null. A thread keeps its columns' bias for all of its rows.
extern "C" __global__ void epilogue(REAL *y, const REAL *bias, long long M, int N, int function) {
    const int column = LANES * (blockIdx.x * blockDim.x + threadIdx.x);
    if (column >= N) return;
    const bool whole = N % LANES == 0 && on_lanes(y) && on_lanes(bias);
    REAL b[LANES] = {};
    if (bias) load_at(b, bias, column, N, whole);
    for (long long row = (long long)blockIdx.y * blockDim.y + threadIdx.y; row < M; row += (long long)gridDim.y * blockDim.y) {
        REAL v[LANES];
        load_at(v, y + row * N, column, N, whole);
        if (bias) {
#pragma unroll
            for (int l = 0; l < LANES; l++) v[l] += b[l];
        }
#define EACH(F)                                                                                                                     \
    _Pragma("unroll") for (int l = 0; l < LANES; l++) v[l] = value_of<F>(v[l], 0)
        FOR_FUNCTION(function, EACH)
#undef EACH
        store_at(y + row * N, v, column, N, whole);
    }
}

// softmax.cu - y = exp(x - max) / sum over rows, and dx = y (dy - sum(y dy)); its logarithm, y = x - max - log(sum) and
// dx = dy - exp(y) sum(dy).
//
// Bound by bytes: a row is read once and stays in registers: 8 bytes an element forward, 12 backward, in double twice that.
// A row of more than 16384 elements is read once more, from the L2 cache if the GPU has not much else to do.
#include "device.cuh"
#include "softmax.cuh"

// The row of this thread, and its length; rows that are not there have none, but their threads take part in the sums.
#define THIS_ROW                                                                                                                    \
    FSQ_SHARED(bytes);                                                                                                              \
    REAL *const shared = (REAL *)bytes;                                                                                             \
    const long long row = (long long)blockIdx.x * blockDim.y + threadIdx.y, at = row * length;                                      \
    const int N = row < rows ? length : 0

extern "C" __global__ void __launch_bounds__(ROW_THREADS, sizeof(REAL) == 4 ? 2 : 1) softmax_forward(REAL *y, const REAL *x, long long rows, int length) {
    THIS_ROW;
    REAL v[SLOTS][W];
    const Exponentials e = exponentials(v, N, shared, [&](REAL (&to)[W], int i) { load_lanes(to, x + at + i); });
    // Nothing but -inf is all zeros; with +inf all is NaN, as inf - inf.
    const REAL factor = e.greatest == -NO_REAL ? e.greatest - e.greatest : e.sum == 0 ? (REAL)0 : 1 / e.sum;
    each_access(N, [&](int slot, int i) {
        if constexpr (!KEPT) load_lanes(v[slot], x + at + i);
#pragma unroll
        for (int l = 0; l < W; l++) v[slot][l] = exp(v[slot][l] - e.shift) * factor;
        store_lanes(y + at + i, v[slot]);
    });
}

extern "C" __global__ void __launch_bounds__(ROW_THREADS, sizeof(REAL) == 4 ? 2 : 1) softmax_backward(REAL *dx, const REAL *y, const REAL *dy, long long rows, int length) {
    THIS_ROW;
    REAL v[SLOTS][W], d[SLOTS][W], dot = 0;
    each_access(N, [&](int slot, int i) {
        load_lanes(v[slot], y + at + i);
        load_lanes(d[slot], dy + at + i);
#pragma unroll
        for (int l = 0; l < W; l++) dot = fma(v[slot][l], d[slot][l], dot);
    });
    dot = row_sum(dot, shared);
    each_access(N, [&](int slot, int i) {
        if constexpr (!KEPT) {
            load_lanes(v[slot], y + at + i);
            load_lanes(d[slot], dy + at + i);
        }
#pragma unroll
        for (int l = 0; l < W; l++) v[slot][l] *= d[slot][l] - dot;
        store_lanes(dx + at + i, v[slot]);
    });
}

extern "C" __global__ void __launch_bounds__(ROW_THREADS, sizeof(REAL) == 4 ? 2 : 1) log_softmax_forward(REAL *y, const REAL *x, long long rows, int length) {
    THIS_ROW;
    REAL v[SLOTS][W];
    const Exponentials e = exponentials(v, N, shared, [&](REAL (&to)[W], int i) { load_lanes(to, x + at + i); });
    // A row of nothing but -inf stays what it is; with +inf all is NaN.
    const REAL log_sum = e.greatest == -NO_REAL ? e.greatest - e.greatest : e.sum == 0 ? (REAL)0 : log(e.sum);
    each_access(N, [&](int slot, int i) {
        if constexpr (!KEPT) load_lanes(v[slot], x + at + i);
#pragma unroll
        for (int l = 0; l < W; l++) v[slot][l] = v[slot][l] - e.shift - log_sum;
        store_lanes(y + at + i, v[slot]);
    });
}

extern "C" __global__ void __launch_bounds__(ROW_THREADS, sizeof(REAL) == 4 ? 2 : 1) log_softmax_backward(REAL *dx, const REAL *y, const REAL *dy, long long rows, int length) {
    THIS_ROW;
    REAL v[SLOTS][W], d[SLOTS][W], sum = 0;
    each_access(N, [&](int slot, int i) {
        load_lanes(v[slot], y + at + i);
        load_lanes(d[slot], dy + at + i);
#pragma unroll
        for (int l = 0; l < W; l++) sum += d[slot][l];
    });
    sum = row_sum(sum, shared);
    each_access(N, [&](int slot, int i) {
        if constexpr (!KEPT) {
            load_lanes(v[slot], y + at + i);
            load_lanes(d[slot], dy + at + i);
        }
#pragma unroll
        for (int l = 0; l < W; l++) d[slot][l] = fma(-exp(v[slot][l]), sum, d[slot][l]);
        store_lanes(dx + at + i, d[slot]);
    });
}

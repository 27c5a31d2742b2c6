// layer_norm.cu - y = weight (s - mean) rstd + bias over rows of s = x + residual, and its derivative; RMS norm where the mean counts as 0.
//
// rstd = 1 / sqrt(mean((s - mean)^2) + eps) (Ba et al. 2016; RMS norm: Zhang & Sennrich 2019). Sum with the residual, mean, variance and result
// are made of a row that stays in registers: bound by the bytes of x, residual, s and y, each moved once. Backward makes xhat again of s;
// a block walks over rows and keeps the sums of weight's and bias's gradients for its columns meanwhile, so that dy and s are read once.
// Rows too long for registers are read three times, and those sums have a kernel of their own, by columns.
#include "device.cuh"
#include "rows.cuh"

// s: written where there is a residual; mean: where the rows are centred, else null. eps in double, as it comes.
extern "C" __global__ void __launch_bounds__(ROW_THREADS) layer_norm_forward(
    REAL *y, REAL *s, REAL *mean, REAL *rstd, const REAL *x, const REAL *residual, const REAL *weight, const REAL *bias, long long rows, int length, REAL eps) {
    FSQ_SHARED(bytes);
    REAL *const shared = (REAL *)bytes;
    const long long row = (long long)blockIdx.x * blockDim.y + threadIdx.y, at = row * length;
    const int N = row < rows ? length : 0;
    REAL v[SLOTS][W], sum = 0;
    const auto load = [&](int slot, int i) {
        load_lanes(v[slot], x + at + i);
        if (residual) {
            REAL r[W];
            load_lanes(r, residual + at + i);
#pragma unroll
            for (int l = 0; l < W; l++) v[slot][l] += r[l];
        }
    };
    each_access(N, [&](int slot, int i) {
        load(slot, i);
        if (residual) store_lanes(s + at + i, v[slot]);
#pragma unroll
        for (int l = 0; l < W; l++) sum += v[slot][l];
    });
    const REAL centre = mean ? row_sum(sum, shared) / (REAL)length : (REAL)0;
    sum = 0;
    each_access(N, [&](int slot, int i) {
        if constexpr (!KEPT) load(slot, i);
#pragma unroll
        for (int l = 0; l < W; l++) sum = fma(v[slot][l] - centre, v[slot][l] - centre, sum);
    });
    const REAL scale = 1 / sqrt(row_sum(sum, shared + 32) / (REAL)length + eps);
    each_access(N, [&](int slot, int i) {
        REAL w[W], b[W];
        if constexpr (!KEPT) load(slot, i);
        if (weight) load_lanes(w, weight + i);
        if (bias) load_lanes(b, bias + i);
#pragma unroll
        for (int l = 0; l < W; l++) {
            REAL hat = (v[slot][l] - centre) * scale;
            hat = weight ? hat * w[l] : hat;
            v[slot][l] = bias ? hat + b[l] : hat;
        }
        store_lanes(y + at + i, v[slot]);
    });
    if (row >= rows || threadIdx.x != 0) return;
    if (mean) mean[row] = centre;
    rstd[row] = scale;
}

// d = weight dy in place of dy, and xhat in place of s.
__device__ __forceinline__ void scaled_and_hat(REAL (&d)[W], REAL (&hat)[W], const REAL *weight, int i, REAL centre, REAL scale) {
    REAL w[W];
    if (weight) load_lanes(w, weight + i);
#pragma unroll
    for (int l = 0; l < W; l++) {
        hat[l] = (hat[l] - centre) * scale;
        d[l] = weight ? d[l] * w[l] : d[l];
    }
}

// dx, or null; ds: s's own gradient, or null. dweight and dbias (blocks, N), or null: the sums over a block's rows, where a row is kept.
// The block's rows of threads take turns on the rows. shared: 128 elements, and N for each row of threads.
extern "C" __global__ void __launch_bounds__(ROW_THREADS) layer_norm_backward(
    REAL *dx, REAL *dweight, REAL *dbias, const REAL *dy, const REAL *ds, const REAL *s, const REAL *mean, const REAL *rstd, const REAL *weight, long long rows,
    int length, long long share) {
    FSQ_SHARED(bytes);
    REAL *shared = (REAL *)bytes;
    const long long first = blockIdx.x * share, end = first + share < rows ? first + share : rows;
    REAL by_weight[SLOTS][W] = {}, by_bias[SLOTS][W] = {};
    for (long long start = first; start < end; start += blockDim.y) {  // the same number of turns for all, who meet in the sums
        const long long row = start + threadIdx.y, at = row * length;
        const int N = row < end ? length : 0;
        const REAL centre = N && mean ? mean[row] : (REAL)0, scale = N ? rstd[row] : (REAL)0;
        REAL d[SLOTS][W], hat[SLOTS][W], sum = 0, dot = 0;
        each_access(N, [&](int slot, int i) {
            load_lanes(d[slot], dy + at + i);
            load_lanes(hat[slot], s + at + i);
#pragma unroll
            for (int l = 0; KEPT && l < W; l++) {
                // y = weight xhat + bias
                by_weight[slot][l] = fma(d[slot][l], (hat[slot][l] - centre) * scale, by_weight[slot][l]);
                by_bias[slot][l] += d[slot][l];
            }
            scaled_and_hat(d[slot], hat[slot], weight, i, centre, scale);
#pragma unroll
            for (int l = 0; l < W; l++) {
                sum += d[slot][l];
                dot = fma(d[slot][l], hat[slot][l], dot);
            }
        });
        if (!dx) continue;
        // xhat = (s - mean) rstd, where mean and rstd depend on all of s
        const REAL average = mean ? row_sum(sum, shared) / (REAL)length : (REAL)0, slope = row_sum(dot, shared + 32) / (REAL)length;
        shared = (REAL *)bytes + (shared == (REAL *)bytes ? 64 : 0);  // the next turn's places: this turn's may still be read
        each_access(N, [&](int slot, int i) {
            if constexpr (!KEPT) {
                load_lanes(d[slot], dy + at + i);
                load_lanes(hat[slot], s + at + i);
                scaled_and_hat(d[slot], hat[slot], weight, i, centre, scale);
            }
            REAL own[W] = {};
            if (ds) load_lanes(own, ds + at + i);
#pragma unroll
            for (int l = 0; l < W; l++) d[slot][l] = fma(scale, fma(-hat[slot][l], slope, d[slot][l] - average), own[l]);
            store_lanes(dx + at + i, d[slot]);
        });
    }
    if constexpr (KEPT) {
        REAL *const all = (REAL *)bytes + 128, *const mine = all + threadIdx.y * length;
        for (int which = 0; which < 2; which++) {
            REAL *const to = which ? dbias : dweight;
            if (!to) continue;
            each_access(length, [&](int slot, int i) { store_lanes(mine + i, which ? by_bias[slot] : by_weight[slot]); });
            __syncthreads();
            for (int i = threadIdx.y * ROW + threadIdx.x; i < length; i += blockDim.y * ROW) {
                REAL sum = 0;
                for (int y = 0; y < (int)blockDim.y; y++) sum += all[y * length + i];
                to[(long long)blockIdx.x * length + i] = sum;
            }
            __syncthreads();
        }
    }
}

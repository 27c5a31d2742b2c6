// layer_norm_sums.cu - the sums over rows of dy xhat and of dy, the gradients of weight and bias, for rows that are too long for registers.
//
// Bound by the bytes of dy and s, which are read once.
#include "device.cuh"
#include "columns.cuh"

// dweight and dbias (parts, N), or null.
extern "C" __global__ void layer_norm_sums(
    REAL *dweight, REAL *dbias, const REAL *dy, const REAL *s, const REAL *mean, const REAL *rstd, long long M, int N, long long rows) {
    FSQ_SHARED(bytes);
    const int column = this_column();
    const bool here = column < N;
    const long long first = blockIdx.y * rows, end = first + rows < M ? first + rows : M;
    REAL by_weight[W] = {}, by_bias[W] = {};
    if (here) {
#pragma unroll 2
        for (long long row = first + threadIdx.y; row < end; row += COLUMN_ROWS) {
            REAL d[W], v[W];
            load_lanes(d, dy + row * N + column);
            load_lanes(v, s + row * N + column);
            const REAL centre = mean ? mean[row] : (REAL)0, scale = rstd[row];
#pragma unroll
            for (int l = 0; l < W; l++) {
                by_weight[l] = fma(d[l], (v[l] - centre) * scale, by_weight[l]);
                by_bias[l] += d[l];
            }
        }
    }
    over_rows(by_weight, (REAL *)bytes);
    over_rows(by_bias, (REAL *)bytes);
    if (!here || threadIdx.y != 0) return;
    if (dweight) store_lanes(dweight + (long long)blockIdx.y * N + column, by_weight);
    if (dbias) store_lanes(dbias + (long long)blockIdx.y * N + column, by_bias);
}

// cross_entropy_backward.cu - dlogits = (exp(logits - lse) - q) dlosses, q = (1 - smoothing) onehot(target) + smoothing / V.
//
// May work in place, the bias (or null) is added to the logits on the way, and the sums of dlogits over rows, the bias's gradient,
// are made of what is in registers. Bound by bytes: the logits are read once, dlogits written once. Rows without a target that counts are zeros.
#include "device.cuh"
#include "columns.cuh"

// sums (parts, V), or null; dlosses_step: 0 where one dlosses serves all rows.
extern "C" __global__ void cross_entropy_backward(
    REAL *dlogits, REAL *sums, const REAL *logits, const REAL *bias, const REAL *lse, const long long *targets, const REAL *dlosses, int dlosses_step,
    long long M, int V, long long rows, long long ignore_index, REAL at_target, REAL everywhere) {
    FSQ_SHARED(bytes);
    const int column = this_column();
    const bool here = column < V;
    const long long first = blockIdx.y * rows, end = first + rows < M ? first + rows : M;
    REAL sum[W] = {}, b[W] = {};
    if (here) {
        if (bias) load_lanes(b, bias + column);
#pragma unroll 4
        for (long long row = first + threadIdx.y; row < end; row += COLUMN_ROWS) {
            REAL v[W];
            load_lanes(v, logits + row * V + column);
            const long long target = targets[row];
            const REAL d = dlosses[row * dlosses_step], by = lse[row];
#pragma unroll
            for (int l = 0; l < W; l++) {
                // losses = lse - sum_v q_v logits_v
                const REAL q = everywhere + (target == column + l ? at_target : (REAL)0);
                v[l] = target == ignore_index ? (REAL)0 : (exp(v[l] + b[l] - by) - q) * d;
                sum[l] += v[l];
            }
            store_lanes(dlogits + row * V + column, v);
        }
    }
    if (!sums) return;
    over_rows(sum, (REAL *)bytes);
    if (here && threadIdx.y == 0) store_lanes(sums + (long long)blockIdx.y * V + column, sum);
}

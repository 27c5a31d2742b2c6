// bias.cu - db = the sum over the rows of dy (M, N).
//
// Bound by the bytes of dy, which is read once: every row of blocks adds up its part of the rows, and a second launch the parts. A launch
// takes one matrix or two of a size.
#include "device.cuh"
#include "columns.cuh"

// sums (parts, N): of `rows` rows each; add: to what is there. The second layer of blocks has others.
extern "C" __global__ void column_sums(REAL *sums, const REAL *dy, REAL *other_sums, const REAL *other, long long M, int N, long long rows, int add) {
    FSQ_SHARED(bytes);
    if (blockIdx.z) sums = other_sums, dy = other;
    const int column = this_column();
    const bool here = column < N;
    const long long first = blockIdx.y * rows, end = first + rows < M ? first + rows : M;
    REAL sum[W] = {};
    if (here) {
#pragma unroll 8
        for (long long row = first + threadIdx.y; row < end; row += COLUMN_ROWS) {
            REAL v[W];
            load_lanes(v, dy + row * N + column);
#pragma unroll
            for (int l = 0; l < W; l++) sum[l] += v[l];
        }
    }
    over_rows(sum, (REAL *)bytes);
    if (!here || threadIdx.y != 0) return;
    REAL *const to = sums + (long long)blockIdx.y * N + column;
    if (add) {
        REAL before[W];
        load_lanes(before, to);
#pragma unroll
        for (int l = 0; l < W; l++) sum[l] += before[l];
    }
    store_lanes(to, sum);
}

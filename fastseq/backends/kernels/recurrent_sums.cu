// Sums over all steps and rows, for the gradients of what is one vector for all of them: biases, gains, peepholes.
//
//   db = sum dy; dgain = sum dy (x - mean) / std; dw_i = sum da_i c', dw_f = sum da_f c', dw_o = sum da_o c~
//
// Two stages: a block adds `chunk` rows of 128 columns, then each column's parts are added in their order. Bound by bytes, read once.
#include "recurrent.cuh"

// parts (chunks, columns of the launch) of `dy` (rows, N), and behind them those of dy normal where there are statistics, each row's mean
// and 1 / std `width` apart. Rows that are not active are left out.
extern "C" __global__ void __launch_bounds__(128)
columns(REAL *parts, const REAL *dy, const REAL *x, const REAL *stats, int width, const byte *flags, int rows, int N, int chunk) {
    int j = blockIdx.x * blockDim.x + threadIdx.x, first = blockIdx.y * chunk, end = min(first + chunk, rows);
    if (j >= N) return;
    REAL sum = 0, scaled = 0;
    for (long long r = first; r < end; r++) {
        if (flags && !(flags[r] & ACTIVE)) continue;
        REAL d = dy[r * N + j];
        sum += d;
        if (stats) scaled += d * ((x[r * N + j] - stats[r * width]) * stats[r * width + 1]);
    }
    parts[(long long)blockIdx.y * N + j] = sum;
    if (stats) parts[((long long)gridDim.y + blockIdx.y) * N + j] = scaled;
}

// out (gridDim.y, copies, N) = the sum of parts (gridDim.y, chunks, N).
extern "C" __global__ void __launch_bounds__(128) add_chunks(REAL *out, const REAL *parts, int chunks, int N, int copies) {
    int j = blockIdx.x * blockDim.x + threadIdx.x;
    if (j >= N) return;
    REAL sum = 0;
    parts += (long long)blockIdx.y * chunks * N;
    for (long long k = 0; k < chunks; k++) sum += parts[k * N + j];
    for (int k = 0; k < copies; k++) out[((long long)blockIdx.y * copies + k) * N + j] = sum;
}

// LN_c's statistics are those of c~, which is made again.
extern "C" __global__ void __launch_bounds__(128) norm_c_columns(const Step a, REAL *parts, int d, int chunk) {
    int u = blockIdx.x * blockDim.x + threadIdx.x, rows = a.T * a.B, first = blockIdx.y * chunk, end = min(first + chunk, rows);
    if (u >= a.H) return;
    REAL sum = 0, scaled = 0;
    for (int r = first; r < end; r++) {
        long long row = (long long)d * rows + r;
        const Place p = {d, r % a.B, r / a.B, row, a.flags ? a.flags[row] : (byte)ACTIVE, d + a.first > 0};
        if (!(p.flag & ACTIVE)) continue;
        REAL dn = a.dnc[row * a.H + u];
        sum += dn;
        scaled += dn * ((lstm_kept(a, p, u).c - a.stats[4 * row + 2]) * a.stats[4 * row + 3]);
    }
    parts[(long long)blockIdx.y * a.H + u] = sum;
    parts[((long long)gridDim.y + blockIdx.y) * a.H + u] = scaled;
}

// parts (chunks, 3 H) of the peepholes' gradients.
extern "C" __global__ void __launch_bounds__(128) peephole_columns(const Step a, REAL *parts, int d, int chunk) {
    int u = blockIdx.x * blockDim.x + threadIdx.x, rows = a.T * a.B, first = blockIdx.y * chunk, end = min(first + chunk, rows);
    if (u >= a.H) return;
    REAL sum[3] = {0, 0, 0};
    for (int r = first; r < end; r++) {
        long long row = (long long)d * rows + r;
        const Place p = {d, r % a.B, r / a.B, row, a.flags ? a.flags[row] : (byte)ACTIVE, d + a.first > 0};
        if (!(p.flag & ACTIVE)) continue;
        const REAL *dp = a.dp + row * 4 * a.H + u;
        REAL before = c_of(a, p, u);
        sum[0] += dp[0] * before, sum[1] += dp[a.H] * before, sum[2] += dp[3 * a.H] * lstm_kept(a, p, u).c;
    }
    for (int k = 0; k < 3; k++) parts[((long long)blockIdx.y * 3 + k) * a.H + u] = sum[k];
}

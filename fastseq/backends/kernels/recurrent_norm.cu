// Layer norm in recurrent layers: of x's products, all at once, and inside a step of h's products and of the LSTM's c~.
//
//   LN(v) = gain (v - mean) / sqrt(var + 1e-5) + bias; a = LN_ih(W_ih x) + b_ih + LN_hh(W_hh k) + b_hh; LSTM: h~ = o tanh(LN_c(c~))
//
// Ba, Kiros & Hinton 2016. A block does one row: the statistics, which need all of its sums, and the cell behind them. Two passes over the
// row for mean and variance, whose order depends on sizes alone. Bound by latency: a row is a few KB, read four times from the cache.
#include "recurrent.cuh"

#define THREADS 256

// Both sums over the block, to all threads.
__device__ __forceinline__ void block_sums(REAL *v, REAL *parts) {
    int lane = threadIdx.x % 32, warp = threadIdx.x / 32;
#pragma unroll
    for (int n = 0; n < 2; n++) {
#pragma unroll
        for (int o = 16; o; o /= 2) v[n] += __shfl_xor_sync(~0u, v[n], o);
        if (lane == 0) parts[2 * warp + n] = v[n];
    }
    __syncthreads();
#pragma unroll
    for (int n = 0; n < 2; n++) {
        v[n] = 0;
        for (int w = 0; w < THREADS / 32; w++) v[n] += parts[2 * w + n];
    }
    __syncthreads();
}

// Mean and 1 / std of value(j) for j < n.
template <class Value> __device__ __forceinline__ void statistics(REAL *mean, REAL *rstd, int n, REAL *parts, Value value) {
    REAL sum[2] = {0, 0};
    for (int j = threadIdx.x; j < n; j += THREADS) sum[0] += value(j);
    block_sums(sum, parts);
    *mean = sum[0] / n;
    sum[0] = sum[1] = 0;
    for (int j = threadIdx.x; j < n; j += THREADS) {
        REAL off = value(j) - *mean;
        sum[0] += off * off;
    }
    block_sums(sum, parts);
    *rstd = 1 / sqrt_of(sum[0] / n + (REAL)1e-5);
}

// dL/dv of one normal number; sums: those of dn and dn normal over the row.
__device__ __forceinline__ REAL norm_back(REAL dn, REAL normal, REAL rstd, const REAL *sums, int n) {
    return (dn - sums[0] / n - normal * (sums[1] / n)) * rstd;
}

// ---------------------------------------------------------------- x's products

// out (rows, N) = LN(x), and the rows' statistics (rows, 2).
extern "C" __global__ void __launch_bounds__(THREADS) norm_rows(REAL *out, const REAL *x, REAL *stats, const REAL *gain, const REAL *bias, int N) {
    FSQ_SHARED(shared);
    REAL mean, rstd;
    long long row = blockIdx.x;
    x += row * N, out += row * N;
    statistics(&mean, &rstd, N, (REAL *)shared, [&](int j) { return x[j]; });
    if (threadIdx.x == 0) stats[2 * row] = mean, stats[2 * row + 1] = rstd;
    for (int j = threadIdx.x; j < N; j += THREADS) out[j] = gain[j] * ((x[j] - mean) * rstd) + bias[j];
}

// dy (rows, N) becomes dx, zero in rows that are not active.
extern "C" __global__ void __launch_bounds__(THREADS)
norm_rows_backward(REAL *dy, const REAL *x, const REAL *stats, const REAL *gain, const byte *flags, int N) {
    FSQ_SHARED(shared);
    long long row = blockIdx.x;
    if (flags && !(flags[row] & ACTIVE)) return;  // dy is zero there
    REAL mean = stats[2 * row], rstd = stats[2 * row + 1], sums[2] = {0, 0};
    x += row * N, dy += row * N;
    for (int j = threadIdx.x; j < N; j += THREADS) {
        REAL dn = dy[j] * gain[j];
        sums[0] += dn, sums[1] += dn * ((x[j] - mean) * rstd);
    }
    block_sums(sums, (REAL *)shared);
    for (int j = threadIdx.x; j < N; j += THREADS) dy[j] = norm_back(dy[j] * gain[j], (x[j] - mean) * rstd, rstd, sums, N);
}

// ---------------------------------------------------------------- inside a step

__device__ __forceinline__ REAL bias_of(const REAL *b, const Step &a, const Place &p, int j) { return b ? b[p.d * a.weights + j] : 0; }

extern "C" __global__ void __launch_bounds__(THREADS) forward(const Step a, int s) {
    FSQ_SHARED(shared);
    REAL *parts = (REAL *)shared, mean, rstd;
    const Place p = place_of(a, blockIdx.x, s);
    const int N = GATES * a.H;
    if (!(p.flag & ACTIVE)) {
        for (int u = threadIdx.x; u < a.H; u += THREADS) {
#if CELL == LSTM
            a.c[c_after(a, p) * a.H + u] = a.c[c_before(a, p) * a.H + u];
            if (a.extra) {
                a.extra[kept(a, p) * a.H + u] = 0;
                continue;
            }
#endif
            carry_h(a, p, s, u);
        }
        return;
    }
    const REAL *q = a.q + kept(a, p) * N, *gain = a.ln_hh_weight + p.d * a.weights, *bias = a.ln_hh_bias + p.d * a.weights;
    const REAL *x = a.gates + p.row * N;
    REAL *stats = a.training ? a.stats + 4 * p.row : nullptr;
    statistics(&mean, &rstd, N, parts, [&](int j) { return q[j]; });
    if (stats && threadIdx.x == 0) stats[0] = mean, stats[1] = rstd;
    auto of_h = [&](int j) { return gain[j] * ((q[j] - mean) * rstd) + bias[j] + bias_of(a.b_hh, a, p, j); };
    auto of_x = [&](int j) { return x[j] + bias_of(a.b_ih, a, p, j); };
#if CELL == LSTM
    REAL *gates = a.gates + p.row * N, mean_c, rstd_c;  // where nothing is kept c~ waits in i's place
    const REAL *gain_c = a.ln_c_weight + p.d * a.weights, *bias_c = a.ln_c_bias + p.d * a.weights;
    for (int u = threadIdx.x; u < a.H; u += THREADS) {
        REAL sum[4];
#pragma unroll
        for (int g = 0; g < 4; g++) sum[g] = of_x(g * a.H + u) + of_h(g * a.H + u);
        Lstm l = lstm_gates(a, p, u, true, sum[0], sum[1], sum[2], sum[3]);
        if (!a.training) gates[u] = l.c;
    }
    auto c_new = [&](int u) { return a.training ? lstm_kept(a, p, u).c : gates[u]; };
    statistics(&mean_c, &rstd_c, a.H, parts, c_new);
    if (stats && threadIdx.x == 0) stats[2] = mean_c, stats[3] = rstd_c;
    for (int u = threadIdx.x; u < a.H; u += THREADS) {
        REAL h = gates[3 * a.H + u] * tanh_of(gain_c[u] * ((c_new(u) - mean_c) * rstd_c) + bias_c[u]);
        if (a.extra) a.extra[kept(a, p) * a.H + u] = h;
        else put_h(a, p, s, u, h, h_of(a, p, u));
    }
#else
    for (int u = threadIdx.x; u < a.H; u += THREADS) {
        REAL h = gru_unit(a, p, u, of_x(u) + of_h(u), of_x(a.H + u) + of_h(a.H + u), of_x(2 * a.H + u), of_h(2 * a.H + u));
        put_h(a, p, s, u, h, h_of(a, p, u));
    }
#endif
}

extern "C" __global__ void __launch_bounds__(THREADS) backward(const Step a, int s) {
    FSQ_SHARED(shared);
    REAL *parts = (REAL *)shared;
    const Place p = place_of(a, blockIdx.x, s);
    const int N = GATES * a.H;
    REAL *dp = a.dp + p.row * N, *dq = a.dq + p.row * N, *dr = a.dr + p.row * N;
    if (!(p.flag & ACTIVE)) {
        for (int j = threadIdx.x; j < N; j += THREADS) dp[j] = dq[j] = dr[j] = 0;
        for (int u = threadIdx.x; u < a.H; u += THREADS) {
#if CELL == LSTM
            a.dnc[p.row * a.H + u] = 0;
            pass_c(a, p, s, u);
            if (a.dht) continue;
#endif
            pass_h(a, p, s, u);
        }
        return;
    }
    const REAL *q = a.q + p.row * N, *gain = a.ln_hh_weight + p.d * a.weights, *stats = a.stats + 4 * p.row;
    const REAL mean = stats[0], rstd = stats[1];
#if CELL == LSTM
    const REAL *gain_c = a.ln_c_weight + p.d * a.weights, *bias_c = a.ln_c_bias + p.d * a.weights;
    const REAL mean_c = stats[2], rstd_c = stats[3];
    REAL *dnc = a.dnc + p.row * a.H, of_c[2] = {0, 0};
    for (int u = threadIdx.x; u < a.H; u += THREADS) {
        Lstm l = lstm_kept(a, p, u);
        REAL normal = (l.c - mean_c) * rstd_c, y = tanh_of(gain_c[u] * normal + bias_c[u]);
        REAL dh = a.dht ? a.dm[(long long)blockIdx.x * a.H + u] : upstream(a, p, s, u), dn = dh * l.o * (1 - y * y);
        dp[3 * a.H + u] = dh * y * l.o * (1 - l.o);
        dnc[u] = dn;
        dn *= gain_c[u];
        of_c[0] += dn, of_c[1] += dn * normal;
    }
    block_sums(of_c, parts);
    for (int u = threadIdx.x; u < a.H; u += THREADS) {
        Lstm l = lstm_kept(a, p, u);
        lstm_sums_back(a, p, s, u, l, norm_back(dnc[u] * gain_c[u], (l.c - mean_c) * rstd_c, rstd_c, of_c, a.H), dp[3 * a.H + u]);
    }
#else
    const REAL *bias = a.ln_hh_bias + p.d * a.weights;
    for (int u = threadIdx.x; u < a.H; u += THREADS) {
        int j = 2 * a.H + u;
        REAL q_n = gain[j] * ((q[j] - mean) * rstd) + bias[j] + bias_of(a.b_hh, a, p, j);
        dq[j] = gru_back(a, p, u, upstream(a, p, s, u), q_n);
        dq[u] = dp[u], dq[a.H + u] = dp[a.H + u];
    }
#endif
    // each thread reads back what it wrote: dq's elements u, H + u, ... for its own units u
    REAL of_q[2] = {0, 0};
    for (int u = threadIdx.x; u < a.H; u += THREADS)
        for (int j = u; j < N; j += a.H) {
            REAL dn = dq[j] * gain[j];
            of_q[0] += dn, of_q[1] += dn * ((q[j] - mean) * rstd);
        }
    block_sums(of_q, parts);
    for (int u = threadIdx.x; u < a.H; u += THREADS)
        for (int j = u; j < N; j += a.H) dr[j] = norm_back(dq[j] * gain[j], (q[j] - mean) * rstd, rstd, of_q, N);
}

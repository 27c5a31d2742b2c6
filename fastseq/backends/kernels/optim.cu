// optim.cu - optimiser updates in one pass over the parameters, and the norm of gradients.
//
// Bound by bytes: Adam reads w, m, v and the gradient and writes the first three, 28 bytes an element in float, twice that in double.
// A thread has the elements of one access; the constants are made of the options on the host, as csrc/ops/optim.c does.
// W: elements of an access. rows: those of the tables that the gradient (n) belongs to, of D elements, of which D is a multiple, or null.
#include "device.cuh"
#include "vector.cuh"

// The thread's first element of the gradient and of the tables, and where they end.
struct Place {
    long long i, at, n, end;
};
__device__ __forceinline__ Place place_of(long long n, const long long *rows, long long D) {
    const long long i = W * ((long long)blockIdx.x * blockDim.x + threadIdx.x);
    if (!rows) return {i, i, n, n};
    const long long at = i < n ? rows[i / D] * D + i % D : 0;
    return {i, at, n, at + W};
}

// g = grad + weight_decay w; velocity = momentum velocity + g; w -= lr g or lr velocity or lr (g + momentum velocity)
extern "C" __global__ void sgd(
    REAL *w, REAL *velocity, const REAL *grad, const long long *rows, long long n, long long D, REAL lr, REAL momentum, REAL weight_decay, int nesterov, int first) {
    const Place p = place_of(n, rows, D);
    if (p.i >= n) return;
    const bool whole = on_lanes(w) && on_lanes(velocity) && on_lanes(grad);
    REAL to[W], g[W], v[W] = {};
    load_at(to, w, p.at, p.end, whole);
    load_at(g, grad, p.i, n, whole);
    if (velocity && !first) load_at(v, velocity, p.at, p.end, whole);
#pragma unroll
    for (int l = 0; l < W; l++) {
        g[l] = fma(weight_decay, to[l], g[l]);
        if (velocity) {
            v[l] = first ? g[l] : fma(momentum, v[l], g[l]);
            g[l] = nesterov ? fma(momentum, v[l], g[l]) : v[l];
        }
        to[l] = fma(-lr, g[l], to[l]);
    }
    store_at(w, to, p.at, p.end, whole);
    if (velocity) store_at(velocity, v, p.at, p.end, whole);
}

// g = grad + weight_decay w; total += g^2; w -= lr g / (sqrt(total) + eps)
extern "C" __global__ void adagrad(
    REAL *w, REAL *total, const REAL *grad, const long long *rows, long long n, long long D, REAL lr, REAL eps, REAL weight_decay) {
    const Place p = place_of(n, rows, D);
    if (p.i >= n) return;
    const bool whole = on_lanes(w) && on_lanes(total) && on_lanes(grad);
    REAL to[W], g[W], t[W];
    load_at(to, w, p.at, p.end, whole);
    load_at(t, total, p.at, p.end, whole);
    load_at(g, grad, p.i, n, whole);
#pragma unroll
    for (int l = 0; l < W; l++) {
        g[l] = fma(weight_decay, to[l], g[l]);
        t[l] = fma(g[l], g[l], t[l]);
        to[l] = fma(-lr, g[l] / (sqrt(t[l]) + eps), to[l]);
    }
    store_at(w, to, p.at, p.end, whole);
    store_at(total, t, p.at, p.end, whole);
}

// g = grad + weight_decay w; square = alpha square + (1 - alpha) g^2; mean likewise of g; g /= sqrt(square - mean^2) + eps; momentum;
// w -= lr g. square - mean^2 is a variance, which rounding can bring below zero; a NaN stays.
extern "C" __global__ void rmsprop(
    REAL *w, REAL *square, REAL *velocity, REAL *mean, const REAL *grad, long long n, REAL lr, REAL alpha, REAL other, REAL eps, REAL momentum, REAL weight_decay) {
    const Place p = place_of(n, nullptr, 1);
    if (p.i >= n) return;
    const bool whole = on_lanes(w) && on_lanes(square) && on_lanes(velocity) && on_lanes(mean) && on_lanes(grad);
    REAL to[W], g[W], s[W], v[W] = {}, m[W] = {};
    load_at(to, w, p.i, n, whole);
    load_at(g, grad, p.i, n, whole);
    load_at(s, square, p.i, n, whole);
    if (velocity) load_at(v, velocity, p.i, n, whole);
    if (mean) load_at(m, mean, p.i, n, whole);
#pragma unroll
    for (int l = 0; l < W; l++) {
        g[l] = fma(weight_decay, to[l], g[l]);
        s[l] = fma(alpha, s[l], other * (g[l] * g[l]));
        REAL spread = s[l];
        if (mean) {
            m[l] = fma(alpha, m[l], other * g[l]);
            spread = fma(-m[l], m[l], spread);
            spread = spread < 0 ? (REAL)0 : spread;
        }
        g[l] = g[l] / (sqrt(spread) + eps);
        if (velocity) g[l] = v[l] = fma(momentum, v[l], g[l]);
        to[l] = fma(-lr, g[l], to[l]);
    }
    store_at(w, to, p.i, n, whole);
    store_at(square, s, p.i, n, whole);
    if (velocity) store_at(velocity, v, p.i, n, whole);
    if (mean) store_at(mean, m, p.i, n, whole);
}

// g = grad + weight_decay w; m = beta1 m + (1 - beta1) g; v = beta2 v + (1 - beta2) g^2; w = keep w - rate m / (sqrt(v correction) + eps)
struct Adam {
    REAL beta1, other1, beta2, other2, rate, correction, eps, weight_decay, keep;
};
#define ADAM REAL beta1, REAL other1, REAL beta2, REAL other2, REAL rate, REAL correction, REAL eps, REAL weight_decay, REAL keep
#define THIS_ADAM {beta1, other1, beta2, other2, rate, correction, eps, weight_decay, keep}
__device__ __forceinline__ void adam_step(REAL *w, REAL *m, REAL *v, const REAL *grad, const Place &p, bool whole, const Adam &o) {
    REAL to[W], g[W], first[W], second[W];
    load_at(to, w, p.at, p.end, whole);
    load_at(g, grad, p.i, p.n, whole);
    load_at(first, m, p.at, p.end, whole);
    load_at(second, v, p.at, p.end, whole);
#pragma unroll
    for (int l = 0; l < W; l++) {
        g[l] = fma(o.weight_decay, to[l], g[l]);
        first[l] = fma(o.beta1, first[l], o.other1 * g[l]);
        second[l] = fma(o.beta2, second[l], o.other2 * (g[l] * g[l]));
        to[l] = fma(-o.rate, first[l] / (sqrt(second[l] * o.correction) + o.eps), to[l] * o.keep);
    }
    store_at(w, to, p.at, p.end, whole);
    store_at(m, first, p.at, p.end, whole);
    store_at(v, second, p.at, p.end, whole);
}

extern "C" __global__ void adam(REAL *w, REAL *m, REAL *v, const REAL *grad, const long long *rows, long long n, long long D, ADAM) {
    const Place p = place_of(n, rows, D);
    if (p.i < n) adam_step(w, m, v, grad, p, on_lanes(w) && on_lanes(m) && on_lanes(v) && on_lanes(grad), THIS_ADAM);
}

// ---------------------------------------------------------------- many arrays in one launch
//
// shares: for each block the addresses of its part of the arrays, and the number of elements. A launch costs more than a small array.

__device__ __forceinline__ REAL *address_of(long long share) { return reinterpret_cast<REAL *>(share); }

extern "C" __global__ void adam_all(const long long *shares, ADAM) {  // w, m, v, grad
    const long long *const share = shares + 5 * (long long)blockIdx.x;
    REAL *const w = address_of(share[0]), *const m = address_of(share[1]), *const v = address_of(share[2]), *const grad = address_of(share[3]);
    const long long n = share[4];
    const bool whole = on_lanes(w) && on_lanes(m) && on_lanes(v) && on_lanes(grad);
    for (long long i = W * (int)threadIdx.x; i < n; i += W * (int)blockDim.x) adam_step(w, m, v, grad, {i, i, n, n}, whole, THIS_ADAM);
}

extern "C" __global__ void scale(const long long *shares, REAL factor) {
    REAL *const x = address_of(shares[2 * (long long)blockIdx.x]);
    const long long n = shares[2 * (long long)blockIdx.x + 1];
    const bool whole = on_lanes(x);
    for (long long i = W * (int)threadIdx.x; i < n; i += W * (int)blockDim.x) {
        REAL v[W];
        load_at(v, x, i, n, whole);
#pragma unroll
        for (int l = 0; l < W; l++) v[l] *= factor;
        store_at(x, v, i, n, whole);
    }
}

// sums (blocks): of x_i^2 in double. 256 threads.
extern "C" __global__ void sum_squares(double *sums, const long long *shares) {
    FSQ_SHARED(bytes);
    double *const shared = (double *)bytes;
    const REAL *const x = address_of(shares[2 * (long long)blockIdx.x]);
    const long long n = shares[2 * (long long)blockIdx.x + 1];
    const bool whole = on_lanes(x);
    double sum = 0;
#pragma unroll 4
    for (long long i = W * (int)threadIdx.x; i < n; i += 256 * W) {
        REAL v[W];
        load_at(v, x, i, n, whole);
#pragma unroll
        for (int l = 0; l < W; l++) sum = fma((double)v[l], (double)v[l], sum);
    }
    for (int flip = 16; flip; flip /= 2) sum += __shfl_xor_sync(0xffffffffu, sum, flip);
    if (threadIdx.x % 32 == 0) shared[threadIdx.x / 32] = sum;
    __syncthreads();
    if (threadIdx.x != 0) return;
    for (int warp = 1; warp < 8; warp++) sum += shared[warp];
    sums[blockIdx.x] = sum;
}

// batch_norm.cu - y = weight (x - mean) / sqrt(variance + eps) + bias, moments of each channel over the batch, and its derivative.
//
// Ioffe & Szegedy 2015. A channel has E elements, in planes of L (PLANES = 1: a block works on one channel) or side by side with the other
// channels (PLANES = 0, L = 1: 32 channels). Sums are made in parts, one for each row of blocks; who needs a sum adds up its parts. Bound by the
// bytes of x: three times read and once written forward, for the variance is that of the distances from the finished mean; backward
// x and dy twice read. 256 threads, 8 warps.
#include "device.cuh"

struct Place {
    int channel, first, end, step;  // of the elements that are this thread's
    bool here, owner;               // owner: gets the block's sum of the channel
};
__device__ __forceinline__ Place place_of(int C, int E, int share) {
    const int lane = threadIdx.x % 32, warp = threadIdx.x / 32, start = (int)blockIdx.y * share, end = E - start < share ? E : start + share;
    if (PLANES) return {(int)blockIdx.x, start + (int)threadIdx.x, end, 256, true, threadIdx.x == 0};
    const int channel = (int)blockIdx.x * 32 + lane;
    return {channel, start + warp, channel < C ? end : 0, 8, channel < C, warp == 0 && channel < C};
}
// Where element e of a channel is.
__device__ __forceinline__ long long where(int e, int channel, int C, int L) {
    if (!PLANES) return (long long)e * C + channel;
    return ((long long)(e / L) * C + channel) * L + e % L;
}

// The sum over the block of each channel's values, for its owner. shared: 256 elements.
__device__ __forceinline__ REAL over_block(REAL v, REAL *shared) {
    const int lane = threadIdx.x % 32, warp = threadIdx.x / 32;
    if (PLANES)
        for (int flip = 16; flip; flip /= 2) v += __shfl_xor_sync(0xffffffffu, v, flip);
    shared[threadIdx.x] = v;
    __syncthreads();
    for (int w = 1; w < 8 && warp == 0; w++) v += shared[w * 32 + lane];
    __syncthreads();
    return v;
}
__device__ __forceinline__ REAL sum_of(const REAL *parts, int count, int C, int channel) {
    REAL sum = 0;
    for (int p = 0; p < count; p++) sum += parts[(long long)p * C + channel];
    return sum;
}

// sums (parts, C) of x.
extern "C" __global__ void batch_norm_sums(REAL *sums, const REAL *x, int C, int E, int L, int share) {
    FSQ_SHARED(bytes);
    const Place p = place_of(C, E, share);
    REAL sum = 0;
#pragma unroll 4
    for (int e = p.first; e < p.end; e += p.step) sum += x[where(e, p.channel, C, L)];
    sum = over_block(sum, (REAL *)bytes);
    if (p.owner) sums[(long long)blockIdx.y * C + p.channel] = sum;
}

// squares (parts, C) of the distances from the mean, of which sums has `count` parts.
extern "C" __global__ void batch_norm_squares(REAL *squares, const REAL *sums, const REAL *x, int C, int E, int L, int share, int count) {
    FSQ_SHARED(bytes);
    const Place p = place_of(C, E, share);
    const REAL mean = p.here ? sum_of(sums, count, C, p.channel) / (REAL)E : (REAL)0;
    REAL sum = 0;
#pragma unroll 4
    for (int e = p.first; e < p.end; e += p.step) {
        const REAL d = x[where(e, p.channel, C, L)] - mean;
        sum = fma(d, d, sum);
    }
    sum = over_block(sum, (REAL *)bytes);
    if (p.owner) squares[(long long)blockIdx.y * C + p.channel] = sum;
}

// y, with the moments of sums and squares, which go to mean and variance, or, where count is 0, with those that are there.
extern "C" __global__ void batch_norm_apply(
    REAL *y, REAL *mean, REAL *variance, const REAL *sums, const REAL *squares, const REAL *x, const REAL *weight, const REAL *bias, int C, int E, int L,
    int share, int count, REAL eps) {
    const Place p = place_of(C, E, share);
    if (!p.here) return;
    const REAL centre = count ? sum_of(sums, count, C, p.channel) / (REAL)E : mean[p.channel];
    const REAL spread = count ? sum_of(squares, count, C, p.channel) / (REAL)E : variance[p.channel];
    const REAL slope = 1 / sqrt(spread + eps) * (weight ? weight[p.channel] : (REAL)1), shift = bias ? bias[p.channel] : (REAL)0;
#pragma unroll 4
    for (int e = p.first; e < p.end; e += p.step) {
        const long long i = where(e, p.channel, C, L);
        y[i] = bias ? fma(x[i] - centre, slope, shift) : (x[i] - centre) * slope;
    }
    if (count && p.owner && blockIdx.y == 0) {
        mean[p.channel] = centre;
        variance[p.channel] = spread;
    }
}

// products and sums (parts, C) of dy (x - mean) and of dy.
extern "C" __global__ void batch_norm_products(
    REAL *products, REAL *sums, const REAL *dy, const REAL *x, const REAL *mean, int C, int E, int L, int share) {
    FSQ_SHARED(bytes);
    const Place p = place_of(C, E, share);
    const REAL centre = p.here ? mean[p.channel] : (REAL)0;
    REAL product = 0, sum = 0;
#pragma unroll 4
    for (int e = p.first; e < p.end; e += p.step) {
        const long long i = where(e, p.channel, C, L);
        product = fma(dy[i], x[i] - centre, product);
        sum += dy[i];
    }
    product = over_block(product, (REAL *)bytes);
    sum = over_block(sum, (REAL *)bytes);
    if (!p.owner) return;
    products[(long long)blockIdx.y * C + p.channel] = product;
    sums[(long long)blockIdx.y * C + p.channel] = sum;
}

// dx, dweight, dbias, each or null. given: the moments are constants.
extern "C" __global__ void batch_norm_backward(
    REAL *dx, REAL *dweight, REAL *dbias, const REAL *products, const REAL *sums, const REAL *dy, const REAL *x, const REAL *weight, const REAL *mean,
    const REAL *variance, int C, int E, int L, int share, int count, REAL eps, int given) {
    const Place p = place_of(C, E, share);
    if (!p.here) return;
    const REAL rstd = 1 / sqrt(variance[p.channel] + eps), slope = rstd * (weight ? weight[p.channel] : (REAL)1), centre = mean[p.channel];
    const REAL product = sum_of(products, count, C, p.channel) * rstd, sum = sum_of(sums, count, C, p.channel);
    // y = weight xhat + bias
    if (p.owner && blockIdx.y == 0) {
        if (dweight) dweight[p.channel] = product;
        if (dbias) dbias[p.channel] = sum;
    }
    if (!dx) return;
    // xhat = (x - mean) rstd, where mean and rstd depend on the channel's whole batch, unless they were given
    const REAL average = given ? (REAL)0 : sum / (REAL)E, through = given ? (REAL)0 : product * rstd / (REAL)E;
#pragma unroll 4
    for (int e = p.first; e < p.end; e += p.step) {
        const long long i = where(e, p.channel, C, L);
        dx[i] = given ? slope * dy[i] : slope * (dy[i] - average - (x[i] - centre) * through);
    }
}

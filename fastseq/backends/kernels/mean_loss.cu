// mean_loss.cu - the mean of the losses whose target counts, in double, and how many they are.
//
// One block: losses are few beside the logits that they come of, and the host waits for no sum. Bound by the latency of its loads, some
// microseconds up to ten thousand rows.
#include "device.cuh"

// mean, NaN over none; count, 1 at least. Losses that do not count are 0. 1024 threads.
extern "C" __global__ void __launch_bounds__(1024) mean_loss(
    REAL *mean, REAL *count, const REAL *losses, const long long *targets, long long n, long long ignore_index) {
    FSQ_SHARED(bytes);
    double *const sums = (double *)bytes, sum = 0;
    long long *const counts = (long long *)(sums + 32), rows = 0;
#pragma unroll 4
    for (long long i = threadIdx.x; i < n; i += 1024) {
        sum += losses[i];
        rows += targets[i] != ignore_index;
    }
    for (int turn = 0; turn < 2; turn++) {  // over the lanes of each warp, then over the warps
        for (int flip = 16; flip; flip /= 2) {
            sum += __shfl_xor_sync(0xffffffffu, sum, flip);
            rows += __shfl_xor_sync(0xffffffffu, rows, flip);
        }
        if (turn) break;
        if (threadIdx.x % 32 == 0) {
            sums[threadIdx.x / 32] = sum;
            counts[threadIdx.x / 32] = rows;
        }
        __syncthreads();
        sum = sums[threadIdx.x % 32];
        rows = counts[threadIdx.x % 32];
    }
    if (threadIdx.x != 0) return;
    *mean = (REAL)(rows ? sum / (double)rows : (double)__int_as_float(0x7fc00000));
    *count = (REAL)(rows ? rows : 1);
}

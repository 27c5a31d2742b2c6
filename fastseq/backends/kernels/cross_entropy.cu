// cross_entropy.cu - the negative log-likelihood of a softmax, which is never stored.
//
//   losses = lse - sum_v q_v logits_v,  lse = log sum exp(logits),  q = (1 - smoothing) onehot(target) + smoothing / V
//
// The bias of a linear layer, which may be null, is added to its products on the way. Bound by the bytes of the logits, which are read once, or
// twice where a row does not stay in registers and is smoothed. The shift is subtracted from the target's logit before the
// logarithm is added: lse - logit alone would lose the digits of a small loss.
#include "device.cuh"
#include "softmax.cuh"

// at_target, everywhere: the target's own weight, 1 - smoothing, and every id's, smoothing / V.
extern "C" __global__ void __launch_bounds__(ROW_THREADS, sizeof(REAL) == 4 ? 2 : 1) cross_entropy_forward(
    REAL *losses, REAL *lse, const REAL *logits, const REAL *bias, const long long *targets, long long rows, int V, long long ignore_index, REAL at_target,
    REAL everywhere) {
    FSQ_SHARED(bytes);
    REAL *const shared = (REAL *)bytes;
    const long long row = (long long)blockIdx.x * blockDim.y + threadIdx.y, at = row * V;
    const int N = row < rows ? V : 0;
    REAL v[SLOTS][W];
    const auto load = [&](REAL (&to)[W], int i) {
        load_lanes(to, logits + at + i);
        if (bias) {
            REAL b[W];
            load_lanes(b, bias + i);
#pragma unroll
            for (int l = 0; l < W; l++) to[l] += b[l];
        }
    };
    const Exponentials e = exponentials(v, N, shared, load);
    REAL sum = 0;
    if (everywhere != 0) {
        each_access(N, [&](int slot, int i) {
            if constexpr (!KEPT) load(v[slot], i);
#pragma unroll
            for (int l = 0; l < W; l++) sum += v[slot][l] - e.shift;
        });
        sum = row_sum(sum, shared);
    }
    if (row >= rows || threadIdx.x != 0) return;
    const REAL log_sum = log(e.sum);
    lse[row] = log_sum + e.shift;
    const long long target = targets[row];
    REAL loss = 0;
    if (target != ignore_index) {
        REAL expected = logits[at + target] + (bias ? bias[target] : (REAL)0) - e.shift;
        if (everywhere != 0) expected = at_target * expected + everywhere * sum;
        loss = log_sum - expected;
    }
    losses[row] = loss;
}

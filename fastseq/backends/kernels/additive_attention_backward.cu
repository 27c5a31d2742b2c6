// The gradients of additive attention's q, k, u and v, one pass over all pairs: with ds = dL/dscores and h = -tanh(q_i + k_j) / 2 (additive.cuh)
//
//   dq_i = sum_j ds_ij u (1 - tanh^2),  dk_j = sum_i ds_ij u (1 - tanh^2),  du = sum_ij ds_ij tanh,  dv_j = sum_i w_ij dy_i
//
// tanh is computed again, once for all three. A block has 32 units of k or 32 columns of v, one for each lane, and of the queries every
// gridDim.y-th group of WARPS QW; a warp has QW of them in registers and goes through the keys, 32 at a time in shared memory. What the warps
// have of dk is added in their order. Bound by operations: 6.5 multiply-adds and half a reciprocal for a pair and a unit, 20 units a cycle on a
// multiprocessor, 30 us at B 32, Tq = Tk = 128, D 256 on 132 of them.
#include "additive.cuh"

enum { THREADS = 256, WARPS = THREADS / 32, QW = QUERIES_OF_WARP, GROUP = WARPS * QW, STEP = 32, S_ROW = GROUP + 4 };

struct Shared {
    REAL *partial, *s, *exps; // (WARPS, STEP, 32), (STEP, S_ROW), (STEP, 32)
    int *far_keys; // the last step that had a key with something far; then whether the block is the last of its slice
};

// Of a block: additive, dq, dk and du from ds; else dk += s^T q alone, which is dv from the weights and dy. All arrays begin at the block's row
// of the batch; d: the lane's unit of D.
template <bool additive>
__device__ __forceinline__ void sweep(const Shared &m, REAL *dq, REAL *dk, REAL *du, const REAL *q, const REAL *k, const REAL *u, const REAL *s,
                                      int d, int D, int n, int Tq, int Tk) {
    const int thread = threadIdx.x, lane = thread % 32, warp = thread / 32, Z = gridDim.y;
    const REAL range = additive_range(REAL());
    const bool there = d < D;
    const REAL unit = additive && there ? u[d] : 0;
    REAL by_unit = 0;
    int turn = 0;
    if (thread == 0) *m.far_keys = 0;
    for (int group = blockIdx.y; group * GROUP < Tq; group += Z) {
        const int i0 = group * GROUP + warp * QW;
        REAL x[QW], by_query[QW];
        bool far = false;
#pragma unroll
        for (int i = 0; i < QW; i++) {
            const REAL a = there && i0 + i < Tq ? q[(long long)(i0 + i) * D + d] : 0;
            far |= additive && !(fabs(a) <= range);
            x[i] = additive ? additive_exp(a) : a;
            by_query[i] = 0;
        }
        const bool far_queries = additive && __any_sync(0xffffffffu, far);
        for (int j0 = 0; j0 < n; j0 += STEP) {
            turn++;
            __syncthreads(); // all have read what is written now
            if (additive)
                for (int j = warp; j < STEP; j += WARPS) {
                    const REAL a = there && j0 + j < n ? k[(long long)(j0 + j) * D + d] : 0;
                    if (!(fabs(a) <= range)) *m.far_keys = turn;
                    m.exps[j * 32 + lane] = additive_exp(a);
                }
            for (int i = warp; i < GROUP; i += WARPS)
                m.s[lane * S_ROW + i] = group * GROUP + i < Tq && j0 + lane < n ? s[(long long)(group * GROUP + i) * Tk + j0 + lane] : 0;
            __syncthreads();
            const int to = min((int)STEP, n - j0);
            if (far_queries || (additive && *m.far_keys == turn)) {
                for (int j = 0; j < to; j++) {
                    REAL by_key = 0;
                    for (int i = 0; i < QW && there && i0 + i < Tq; i++) {
                        const REAL ds = m.s[j * S_ROW + warp * QW + i];
                        if (ds == 0) continue; // nothing comes from what is not seen
                        const REAL sum = q[(long long)(i0 + i) * D + d] + k[(long long)(j0 + j) * D + d];
                        const REAL h = (REAL)-0.5 * additive_tanh(sum), g = (REAL)0.25 - h * h;
#pragma unroll
                        for (int e = 0; e < QW; e++) by_query[e] += e == i ? ds * g : 0;
                        by_key += ds * g;
                        by_unit += ds * h;
                    }
                    m.partial[(warp * STEP + j) * 32 + lane] = by_key;
                }
            } else if (i0 < Tq) {
                for (int j = 0; j < to; j++) {
                    const REAL y = additive ? m.exps[j * 32 + lane] : 0;
                    REAL by_key = 0;
#pragma unroll
                    for (int i = 0; i < QW; i += 4) {
                        const Four ds = *reinterpret_cast<const Four *>(m.s + j * S_ROW + warp * QW + i);
#pragma unroll
                        for (int e = 0; e < 4; e += 2) {
                            if (!additive) {
                                by_key += ds.x[e] * x[i + e];
                                by_key += ds.x[e + 1] * x[i + e + 1];
                                continue;
                            }
                            const REAL a = 1 + x[i + e] * y, c = 1 + x[i + e + 1] * y, p = reciprocal(a * c);
                            const REAL h0 = c * p - (REAL)0.5, h1 = a * p - (REAL)0.5;
                            const REAL g0 = (REAL)0.25 - h0 * h0, g1 = (REAL)0.25 - h1 * h1;
                            by_query[i + e] += ds.x[e] * g0;
                            by_query[i + e + 1] += ds.x[e + 1] * g1;
                            by_key += ds.x[e] * g0;
                            by_key += ds.x[e + 1] * g1;
                            by_unit += ds.x[e] * h0;
                            by_unit += ds.x[e + 1] * h1;
                        }
                    }
                    m.partial[(warp * STEP + j) * 32 + lane] = by_key;
                }
            }
            __syncthreads();
            const int warps = min((int)WARPS, (Tq - group * GROUP + QW - 1) / QW); // those that have queries
            for (int j = warp; j < to && there; j += WARPS) {
                REAL sum = 0;
                for (int w = 0; w < warps; w++) sum += m.partial[(w * STEP + j) * 32 + lane];
                if (additive) sum = sum == 0 ? 0 : 4 * unit * sum;
                REAL *at = dk + (long long)(j0 + j) * D + d;
                *at = group == blockIdx.y ? sum : *at + sum;
            }
        }
        if (additive && dq)
#pragma unroll
            for (int i = 0; i < QW; i++)
                if (there && i0 + i < Tq) dq[(long long)(i0 + i) * D + d] = by_query[i] == 0 ? 0 : 4 * unit * by_query[i];
    }
    for (int j = n + warp; j < Tk && there; j += WARPS) dk[(long long)j * D + d] = 0; // keys past the end
    if (!additive) return;
    __syncthreads();
    m.partial[warp * 32 + lane] = by_unit;
    __syncthreads();
    if (warp == 0 && there) {
        REAL sum = 0;
        for (int w = 0; w < WARPS; w++) sum += m.partial[w * 32 + lane];
        du[d] = -2 * sum;
    }
}

// The block of a slice of 32 units that comes last adds up what all of them, one for each b and z, left in `parts` of du; in their order.
__device__ __forceinline__ void sum_of_parts(const Shared &m, REAL *du, const REAL *parts, unsigned *arrived, int rows, int d, int D) {
    const int lane = threadIdx.x % 32, warp = threadIdx.x / 32;
    __syncthreads();
    if (threadIdx.x == 0) *m.far_keys = add_acquire_release(arrived, 1) == (unsigned)rows - 1;
    __syncthreads();
    if (!*m.far_keys) return;
    REAL sum = 0;
    for (int r = warp; r < rows && d < D; r += WARPS) sum += load_cg(parts + (long long)r * D + d);
    m.partial[warp * 32 + lane] = sum;
    __syncthreads();
    if (warp || d >= D) return;
    sum = 0;
    for (int w = 0; w < WARPS; w++) sum += m.partial[w * 32 + lane];
    du[d] = sum;
}

// Blocks of the grid's first axis: for each b `slices` of 32 units, then 32 columns of v each; of the second: z. dk and dv have a plane for each
// z, `plane` apart, `parts` a row of du for each b and z. dq may be null. arrived: a 0 for each slice.
extern "C" __global__ void __launch_bounds__(THREADS, 2)
additive_backward(REAL *dq, REAL *dk, REAL *dv, REAL *du, REAL *parts, unsigned *arrived, const REAL *q, const REAL *k, const REAL *u,
                  const REAL *ds, const REAL *weights, const REAL *dy, const long long *key_lengths, int Tq, int Tk, int D, int Dv, int slices,
                  long long plane) {
    FSQ_SHARED(bytes);
    Shared m;
    m.partial = reinterpret_cast<REAL *>(bytes);
    m.s = m.partial + WARPS * STEP * 32;
    m.exps = m.s + STEP * S_ROW;
    m.far_keys = reinterpret_cast<int *>(m.exps + STEP * 32);
    const int blocks = slices + (Dv + 31) / 32, lane = threadIdx.x % 32, slice = blockIdx.x % blocks;
    const long long b = blockIdx.x / blocks, pairs = b * Tq * Tk, z = blockIdx.y;
    const int n = key_lengths ? (int)key_lengths[b] : Tk;
    if (slice < slices) {
        const int d = slice * 32 + lane;
        REAL *part = parts + (b * gridDim.y + z) * D;
        sweep<true>(m, dq ? dq + b * Tq * D : nullptr, dk + z * plane + b * Tk * D, part, q + b * Tq * D, k + b * Tk * D, u, ds + pairs, d, D, n, Tq,
                    Tk);
        sum_of_parts(m, du, parts, arrived + slice, gridDim.x / blocks * gridDim.y, d, D);
    } else {
        sweep<false>(m, nullptr, dv + z * plane + b * Tk * Dv, nullptr, dy + b * Tq * Dv, nullptr, nullptr, weights + pairs,
                     (slice - slices) * 32 + lane, Dv, n, Tq, Tk);
    }
}

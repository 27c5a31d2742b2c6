// Backpropagation through time for attention_decoder_forward.cu. From the last step to the first, with dL/d[s; c] by way of the outputs at hand:
//
//   dL/ds_t = that + W_hh^T dsums_{t+1} + W_q^T dq_{t+1};  the cell: dL/dsums_t, dL/dc_{t-1}           (state_phase)
//   dL/dcontext_t += W_ih^T dsums_t, its columns of the context; W_hh^T dsums_t                        (sums_phase)
//   da = memory dcontext;  ds = a (da - sum a da);  dq_t = sum over the memory of ds u (1 - tanh^2) or scale ds memory  (attend_backward)
//
// A few phases a step, as forwards, in one cooperative launch or one launch each. What no step waits for, the gradients of weights, keys, memory
// and x, are products over all steps afterwards. Bound as forward is: by 34 M multiplications a step at B 32, H = M = A = 512, and L2.
#include "attention_decoder.cuh"

struct Call {
    REAL *dboth, *dsums, *dqueries, *dscores, *raw; // (T, B, H + M), (T, B, 4 H), (T, B, A), (B, T, S); da (B, S) on its way from block to block
    REAL *dh, *direct, *dc, *dh_0; // (B, H): W_hh^T dsums, what goes past the products, dL/dc or null; the result
    const REAL *dh_n, *dweights; // (B, H), (T, B, S), or null
    const REAL *both, *cells, *gates, *queries, *weights, *near_keys, *keys, *memory, *u;
    const unsigned char *far_keys;
    const REAL *w_ih, *w_hh, *w_query, *h_0, *c_0;
    const long long *lengths, *memory_lengths;
    int T, B, S, I, H, M, A, scores_in_shared, parts, stage, hold_state, hold_sums; // the last three: product
    REAL scale;
};

__device__ __forceinline__ bool alive(const Call &c, int t, int b) { return !c.lengths || t < c.lengths[b]; }

// ---------------------------------------------------------------- phases

// The cell of one unit backwards: dh is all of dL/ds_t.
__device__ __forceinline__ void cell_backward(const Call &c, int t, int b, int u, REAL dh) {
    const long long place = (long long)t * c.B + b, H = c.H, at = (long long)b * H + u;
    REAL *dsums = c.dsums + place * 4 * H + u;
    if (!alive(c, t, b)) {
        dsums[0] = dsums[H] = dsums[2 * H] = dsums[3 * H] = 0;
        c.direct[at] = dh;
        return;
    }
    const REAL *saved = c.gates + place * 4 * H + u;
    if (GATES == 4) {
        const REAL i = saved[0], f = saved[H], g = saved[2 * H], o = saved[3 * H], now = real_tanh(c.cells[place * H + u]);
        const REAL before = t ? c.cells[(place - c.B) * H + u] : c.c_0 ? c.c_0[at] : 0, dc = c.dc[at] + dh * o * (1 - now * now);
        c.dc[at] = dc * f;
        c.direct[at] = 0;
        dsums[0] = dc * g * i * (1 - i);
        dsums[H] = dc * before * f * (1 - f);
        dsums[2 * H] = dc * i * (1 - g * g);
        dsums[3 * H] = dh * now * o * (1 - o);
    } else { // r, z, the input's part of n and the state's
        const REAL r = saved[0], z = saved[H], n = saved[2 * H], q = saved[3 * H];
        const REAL before = t ? c.both[(place - c.B) * (H + c.M) + u] : c.h_0 ? c.h_0[at] : 0, dn = dh * (1 - z) * (1 - n * n);
        c.direct[at] = dh * z;
        dsums[0] = dn * q * r * (1 - r);
        dsums[H] = dh * (before - n) * z * (1 - z);
        dsums[2 * H] = dn;
        dsums[3 * H] = dn * r;
    }
}

// A task of the state: rows of the batch and hidden units, columns of W_q. t: of the step whose queries' gradients come back, the next one.
struct StateTask {
    int u0, b0, rows, units;
    Segment segments[2];
    __device__ __forceinline__ int column(int k) const { return u0 + k; }
};

__device__ __forceinline__ int state_tasks(const Call &c) { return (c.H + TASK_UNITS - 1) / TASK_UNITS * ((c.B + TASK_ROWS - 1) / TASK_ROWS); }

__device__ __forceinline__ StateTask state_task(const Call &c, int t, int task) {
    const int groups = (c.H + TASK_UNITS - 1) / TASK_UNITS, u0 = task % groups * TASK_UNITS, b0 = task / groups * TASK_ROWS;
    const REAL *dqueries = c.dqueries + ((long long)t * c.B + b0) * c.A;
    return {u0, b0, min((int)TASK_ROWS, c.B - b0), min((int)TASK_UNITS, c.H - u0), {{dqueries, c.A, c.w_query, c.H, c.A}, {}}};
}

// Step t, or -1: the state before the first.
__device__ __forceinline__ void state_phase(const Call &c, int t, unsigned char *bytes) {
    const int H = c.H;
    const bool last = t == c.T - 1;
    REAL *partial = reinterpret_cast<REAL *>(bytes);
    for (int task = blockIdx.x; task < state_tasks(c); task += gridDim.x) {
        const StateTask a = state_task(c, t + 1, task);
        const int u0 = a.u0, b0 = a.b0, rows = a.rows, units = a.units;
        const REAL *dqueries = a.segments[0].x;
        if (!last && c.w_query) {
            REAL sum[ROWS][UNITS];
            __syncthreads();
            const Held held = held_at(c.hold_state, a.segments);
            product<UNITS, true>(sum, partial, c.stage, held, a.segments, rows, units, [&](int k) { return a.column(k); });
            put_parts<UNITS>(partial, sum);
        }
        for (int at = threadIdx.x; at < rows * TASK_UNITS; at += THREADS) {
            const int row = at / TASK_UNITS, unit = at % TASK_UNITS, u = u0 + unit, b = b0 + row;
            if (unit >= units) continue;
            const long long place = (long long)b * H + u;
            REAL dh = 0;
            if (last) {
                dh = c.dh_n ? c.dh_n[place] : 0;
            } else {
                dh = load_cg(c.dh + place) + c.direct[place];
                dh += c.w_query ? add_parts<UNITS>(partial, row, unit) : load_cg(dqueries + (long long)row * c.A + u);
            }
            if (t < 0) c.dh_0[place] = dh;
            else cell_backward(c, t, b, u, dh + c.dboth[((long long)t * c.B + b) * (H + c.M) + u]);
        }
    }
}

// A task of the sums: rows of the batch and WIDTH units of the context or of the state, columns of W_ih or W_hh.
enum { COLUMNS = 2 * UNITS, WIDTH = 4 * COLUMNS };
struct SumsTask {
    int n0, b0, rows, columns;
    bool context;
    Segment segments[2];
    __device__ __forceinline__ int column(int k) const { return n0 + k; }
};

__device__ __forceinline__ int sums_tasks(const Call &c) {
    return ((c.M + WIDTH - 1) / WIDTH + (c.H + WIDTH - 1) / WIDTH) * ((c.B + TASK_ROWS - 1) / TASK_ROWS);
}

__device__ __forceinline__ SumsTask sums_task(const Call &c, int t, int task) {
    const int H = c.H, of_context = (c.M + WIDTH - 1) / WIDTH, groups = of_context + (H + WIDTH - 1) / WIDTH;
    const int group = task % groups, b0 = task / groups * TASK_ROWS;
    const bool context = group < of_context;
    const int n0 = (context ? group : group - of_context) * WIDTH;
    const REAL *dsums = c.dsums + ((long long)t * c.B + b0) * 4 * H, *w = context ? c.w_ih + c.I : c.w_hh;
    const long long w_row = context ? c.I + c.M : H;
    // a GRU's n has its own sums for either
    const int split = 2 * H, skip = GATES == 3 && !context ? H : 0;
    return {n0, b0, min((int)TASK_ROWS, c.B - b0), min((int)WIDTH, (context ? c.M : H) - n0), context,
            {{dsums, 4 * H, w, w_row, split}, {dsums + split + skip, 4 * H, w + split * w_row, w_row, GATES * H - split}}};
}

__device__ __forceinline__ void sums_phase(const Call &c, int t, unsigned char *bytes) {
    const int H = c.H;
    const long long width = H + c.M;
    REAL *partial = reinterpret_cast<REAL *>(bytes);
    for (int task = blockIdx.x; task < sums_tasks(c); task += gridDim.x) {
        const SumsTask a = sums_task(c, t, task);
        const int n0 = a.n0, b0 = a.b0, rows = a.rows, columns = a.columns;
        const bool context = a.context;
        REAL sum[ROWS][COLUMNS];
        __syncthreads();
        const Held held = held_at(c.hold_sums, a.segments);
        product<COLUMNS, true>(sum, partial, c.stage, held, a.segments, rows, columns, [&](int k) { return a.column(k); });
        put_parts<COLUMNS>(partial, sum);
        for (int at = threadIdx.x; at < rows * WIDTH; at += THREADS) {
            const int row = at / WIDTH, k = at % WIDTH, b = b0 + row;
            if (k >= columns) continue;
            const REAL found = add_parts<COLUMNS>(partial, row, k);
            if (context) c.dboth[((long long)t * c.B + b) * width + H + n0 + k] += found;
            else c.dh[(long long)b * H + n0 + k] = found;
        }
    }
}

__device__ __forceinline__ int keys_of(const Call &c, int t, int b) {
    return !alive(c, t, b) ? 0 : c.memory_lengths ? (int)c.memory_lengths[b] : c.S;
}

// What the block that has part p of row b reads, in global memory.
__device__ __forceinline__ Kept rows_of(const Call &c, int b, const Part &part) {
    const REAL *memory = c.memory + (long long)b * c.S * c.M;
    return rows_of_part(memory, c.M, c.u ? c.near_keys + (long long)b * c.S * c.A : memory, c.A, part);
}

// Part p of row b: the gradient of its scores from those of its weights, and its units of the query's.
__device__ __forceinline__ void dquery_of(const Call &c, const Row &r, const Rows &summed, int t, int b, int p, const Part &part, int n) {
    const int thread = threadIdx.x, lane = thread % 32, units = part.end - part.first;
    const long long place = (long long)t * c.B + b;
    const REAL *weights = c.weights + place * c.S, scale = c.u ? 1 : c.scale;
    REAL *dscores = c.dscores + ((long long)b * c.T + t) * c.S, *dquery = c.dqueries + place * c.A + part.first;
    REAL mean = 0;
    for (int s = lane; s < n; s += 32) mean += weights[s] * r.scores[s];
    mean = warp_sum(mean);
    __syncthreads();
    for (int s = thread; s < n; s += THREADS) {
        const REAL ds = scale * (weights[s] * (r.scores[s] - mean));
        r.scores[s] = ds;
        if (p == 0) dscores[s] = ds;
    }
    if (!c.u) {
        __syncthreads();
        sum_over_keys(
            r.scratch, n, units,
            [&](Four &sums, int s, int d) {
                const Four value = summed.four(s, d);
#pragma unroll
                for (int e = 0; e < 4; e++) sums.x[e] += r.scores[s] * value.x[e];
            },
            [&](int d, const Four &sums) { store_four(dquery, d, units, sums); });
        return;
    }
    const REAL *query = c.queries + ((long long)b * c.T + t) * c.A + part.first, *keys = c.keys + (long long)b * c.S * c.A + part.first;
    const unsigned char *far_keys = c.far_keys + (long long)b * c.S;
    if (thread == 0) *r.far = 0;
    __syncthreads();
    for (int d = thread; d < round_up(units, 4); d += THREADS) {
        const REAL q = d < units ? query[d] : 0;
        if (!(fabs(q) <= additive_range(q))) *r.far = 1;
        r.vector[d] = additive_exp(q);
    }
    __syncthreads();
    const bool far_query = *r.far;
    sum_over_keys(
        r.scratch, n, units,
        [&](Four &sums, int s, int d) { // of ds (1/4 - h^2)
            const REAL ds = r.scores[s];
            if (far_query || far_keys[s]) {
#pragma unroll
                for (int e = 0; e < 4; e++) {
                    const REAL h = d + e < units ? (REAL)0.5 * additive_tanh(query[d + e] + keys[(long long)s * c.A + d + e]) : 0;
                    sums.x[e] += ds * ((REAL)0.25 - h * h);
                }
                return;
            }
            const Four x = *reinterpret_cast<const Four *>(r.vector + d), y = summed.four(s, d);
#pragma unroll
            for (int e = 0; e < 4; e += 2) {
                const REAL a = 1 + x.x[e] * y.x[e], b = 1 + x.x[e + 1] * y.x[e + 1], both = reciprocal(a * b);
                const REAL h0 = b * both - (REAL)0.5, h1 = a * both - (REAL)0.5;
                sums.x[e] += ds * ((REAL)0.25 - h0 * h0);
                sums.x[e + 1] += ds * ((REAL)0.25 - h1 * h1);
            }
        },
        [&](int d, const Four &sums) {
#pragma unroll
            for (int e = 0; e < 4; e++)
                if (d + e < units) dquery[d + e] = 4 * c.u[part.first + d + e] * sums.x[e];
        });
}

__device__ __forceinline__ void weights_phase(const Call &c, const Kept *kept, int t, int b, int p, unsigned char *bytes) {
    const int thread = threadIdx.x, n = keys_of(c, t, b);
    const Part part = part_of(p, c.parts, n, c.A);
    const long long place = (long long)t * c.B + b;
    REAL *dquery = c.dqueries + place * c.A, *dscores = c.dscores + ((long long)b * c.T + t) * c.S;
    const Row r = row_of(bytes, max(c.M, c.A), c.scores_in_shared, dscores);
    const Kept rows = kept ? *kept : rows_of(c, b, part);
    __syncthreads();
    if (p == 0)
        for (int s = n + thread; s < c.S; s += THREADS) dscores[s] = 0;
    if (n == 0) {
        for (int d = part.first + thread; d < part.end; d += THREADS) dquery[d] = 0;
        return;
    }
    const REAL *dcontext = c.dboth + place * (c.H + c.M) + c.H;
    for (int m = thread; m < round_up(c.M, 4); m += THREADS) r.vector[m] = m < c.M ? load_cg(dcontext + m) : 0;
    __syncthreads();
    REAL *da = c.parts == 1 ? r.scores : c.raw + (long long)b * c.S + part.from;
    const REAL *more = c.dweights ? c.dweights + place * c.S + part.from : nullptr;
    dot_with_keys(r.vector, rows.keys, part.to - part.from, [=](int s, REAL found) { da[s] = found + (more ? more[s] : 0); });
    if (c.parts > 1) return;
    __syncthreads();
    dquery_of(c, r, rows.summed, t, b, p, part, n);
}

// The second half of attention, where a row has several blocks.
__device__ __forceinline__ void dquery_phase(const Call &c, const Kept *kept, int t, int b, int p, unsigned char *bytes) {
    const int n = keys_of(c, t, b);
    if (n == 0) return;
    const Part part = part_of(p, c.parts, n, c.A);
    const Row r = row_of(bytes, max(c.M, c.A), true, nullptr);
    __syncthreads();
    for (int s = threadIdx.x; s < n; s += THREADS) r.scores[s] = load_cg(c.raw + (long long)b * c.S + s);
    __syncthreads();
    dquery_of(c, r, kept ? kept->summed : rows_of(c, b, part).summed, t, b, p, part, n);
}

// ---------------------------------------------------------------- the kernels

// Steps last to first, both included, of each the phases in `phases`: 1 state, 2 sums, 4 weights, 8 queries where a row has several parts. Step
// -1 has the first phase alone. Shared memory: as forwards.
extern "C" __global__ void __launch_bounds__(THREADS)
decoder_backward(REAL *dboth, REAL *dsums, REAL *dqueries, REAL *dscores, REAL *raw, REAL *dh, REAL *direct, REAL *dc, REAL *dh_0, const REAL *dh_n,
                 const REAL *dweights, const REAL *both, const REAL *cells, const REAL *gates, const REAL *queries, const REAL *weights,
                 const REAL *near_keys, const unsigned char *far_keys, const REAL *keys, const REAL *memory, const REAL *u, const REAL *w_ih,
                 const REAL *w_hh, const REAL *w_query, const REAL *h_0, const REAL *c_0, const long long *lengths, const long long *memory_lengths,
                 int T, int B, int S, int I, int H, int M, int A, int scores_in_shared, int parts, REAL scale, int stage, int keep_at, int hold_state,
                 int hold_sums, int last, int first, int phases, unsigned *counter) {
    FSQ_SHARED(bytes);
    const Call c = {dboth, dsums, dqueries, dscores, raw, dh, direct, dc, dh_0, dh_n, dweights, both, cells, gates, queries, weights, near_keys, keys,
                    memory, u, far_keys, w_ih, w_hh, w_query, h_0, c_0, lengths, memory_lengths, T, B, S, I, H, M, A, scores_in_shared, parts, stage,
                    hold_state, hold_sums, scale};
    REAL *base = reinterpret_cast<REAL *>(bytes);
    Kept kept;
    if (keep_at && blockIdx.x < B * parts) {
        const int b = blockIdx.x / parts, n = memory_lengths ? (int)memory_lengths[b] : S;
        const Part part = part_of(blockIdx.x % parts, parts, n, A);
        kept = keep(base + keep_at, rows_of(c, b, part), part, n);
    }
    if (hold_state >= 0 && blockIdx.x < state_tasks(c)) {
        const StateTask a = state_task(c, 0, blockIdx.x);
        hold<true>(base, held_at(hold_state, a.segments), a.segments, TASK_UNITS, a.units, [&](int k) { return a.column(k); });
    }
    if (hold_sums >= 0 && blockIdx.x < sums_tasks(c)) {
        const SumsTask a = sums_task(c, 0, blockIdx.x);
        hold<true>(base, held_at(hold_sums, a.segments), a.segments, WIDTH, a.columns, [&](int k) { return a.column(k); });
    }
    unsigned passed = 0;
    for (int t = last; t >= first; t--) {
        if (phases & 1) {
            state_phase(c, t, bytes);
            grid_barrier(counter, passed);
        }
        if (t < 0) break;
        if (phases & 2) {
            sums_phase(c, t, bytes);
            grid_barrier(counter, passed);
        }
        if (phases & 4) {
            for (int task = blockIdx.x; task < B * parts; task += gridDim.x)
                weights_phase(c, keep_at ? &kept : nullptr, t, task / parts, task % parts, bytes);
            grid_barrier(counter, passed);
        }
        if (phases & 8 && parts > 1) {
            for (int task = blockIdx.x; task < B * parts; task += gridDim.x)
                dquery_phase(c, keep_at ? &kept : nullptr, t, task / parts, task % parts, bytes);
            grid_barrier(counter, passed);
        }
    }
}

// dL/dsum of o = tanh(sum): do (1 - o^2), zeros past the end of a row, whatever stands there; do may be null.
extern "C" __global__ void __launch_bounds__(THREADS)
decoder_doutputs(REAL *dsum, const REAL *o, const REAL *doutputs, const long long *lengths, int B, int H, long long size) {
    const long long at = (long long)blockIdx.x * THREADS + threadIdx.x;
    if (at >= size) return;
    const long long row = at / H;
    dsum[at] = !doutputs || (lengths && row / B >= lengths[row % B]) ? 0 : doutputs[at] * (1 - o[at] * o[at]);
}

// x (T, B, I) with zeros past the end of each row.
extern "C" __global__ void __launch_bounds__(THREADS)
decoder_cleared(REAL *out, const REAL *x, const long long *lengths, int B, int I, long long size) {
    const long long at = (long long)blockIdx.x * THREADS + threadIdx.x;
    if (at >= size) return;
    const long long row = at / I;
    out[at] = row / B < lengths[row % B] ? x[at] : 0;
}

// A decoder with attention over a whole target sequence (Bahdanau et al. 2015). At step t, for each row of the batch,
//
//   q = W_q s_{t-1};  a = softmax over its memory of u . tanh(q + key) or scale q . memory;  c = sum a memory;  s_t = cell(s_{t-1}, [x_t; c])
//
// x's part of the cell's sums comes from one product over all steps; the outputs, which nothing waits for, are another one afterwards.
// A step is a few phases, each spread over all blocks: queries; attention, one block or more for a row, which keep their part of its keys and
// memory in shared memory, if it fits; the cell, whose two products, sums and pointwise part are one task for some units. One cooperative
// launch goes through all steps, with a barrier behind each phase; launched for one phase at a time the same code gives the same bits.
//
// Bound by operations and by L2: at B 32, H = M = A = 512 a step multiplies 34 M times for an LSTM's cell (4 us on 132 multiprocessors in
// float32) and each block reads the states and contexts of its rows, 128 KB (1.2 us); barriers are about 1 us each.
#include "attention_decoder.cuh"

struct Call {
    REAL *both, *cells, *gates, *queries; // (T, B, H + M) [s; c], (T, B, H), (T, B, 4 H) or null, (B, T, A)
    REAL *weights, *raw; // (T, B, S), and scores (B, S) on their way from block to block
    const REAL *x_sums, *near_keys, *keys, *memory, *u; // (T, B, G H), exponentials (B, S, A), (B, S, A), (B, S, M), (A)
    const unsigned char *far_keys; // (B, S)
    const REAL *w_ih, *w_hh, *b_ih, *b_hh, *w_query, *h_0, *c_0; // h_0, c_0: (B, H), or null for zeros
    const long long *lengths, *memory_lengths;
    int T, B, S, I, H, M, A, scores_in_shared, parts, stage, hold_query, hold_cell; // the last three: product
    REAL scale;
};

// s_{t-1} of row b, null for zeros.
__device__ __forceinline__ const REAL *state_before(const Call &c, int t, int b, long long &apart) {
    apart = t ? c.H + c.M : c.H;
    return t ? c.both + ((long long)(t - 1) * c.B + b) * apart : c.h_0 ? c.h_0 + (long long)b * apart : nullptr;
}

__device__ __forceinline__ bool alive(const Call &c, int t, int b) { return !c.lengths || t < c.lengths[b]; }

// ---------------------------------------------------------------- phases

// A task of the queries' product: rows of the batch and columns of W_q.
struct QueryTask {
    int n0, b0, rows, columns;
    Segment segments[2];
    __device__ __forceinline__ int column(int k) const { return n0 + k; }
};

__device__ __forceinline__ int query_tasks(const Call &c) { return (c.A + TASK_UNITS - 1) / TASK_UNITS * ((c.B + TASK_ROWS - 1) / TASK_ROWS); }

__device__ __forceinline__ QueryTask query_task(const Call &c, int t, int task) {
    const int groups = (c.A + TASK_UNITS - 1) / TASK_UNITS, n0 = task % groups * TASK_UNITS, b0 = task / groups * TASK_ROWS;
    long long apart;
    const REAL *state = state_before(c, t, b0, apart);
    return {n0, b0, min((int)TASK_ROWS, c.B - b0), min((int)TASK_UNITS, c.A - n0), {{state, apart, c.w_query, c.H, c.H}, {}}};
}

__device__ __forceinline__ void query_phase(const Call &c, int t, unsigned char *bytes) {
    REAL *base = reinterpret_cast<REAL *>(bytes);
    for (int task = blockIdx.x; task < query_tasks(c); task += gridDim.x) {
        const QueryTask a = query_task(c, t, task);
        REAL sum[ROWS][UNITS];
        __syncthreads();
        const Held held = held_at(c.hold_query, a.segments);
        product<UNITS, false>(sum, base, c.stage, held, a.segments, a.rows, a.columns, [&](int k) { return a.column(k); });
        put_parts<UNITS>(base, sum);
        for (int at = threadIdx.x; at < a.rows * TASK_UNITS; at += THREADS) {
            const int row = at / TASK_UNITS, k = at % TASK_UNITS;
            if (k < a.columns) c.queries[((long long)(a.b0 + row) * c.T + t) * c.A + a.n0 + k] = add_parts<UNITS>(base, row, k);
        }
    }
}

// put(s, score) for the keys of a part, a warp for each, from exponentials of the query and the keys.
template <class Put>
__device__ __forceinline__ void additive_scores(const Call &c, const Row &r, const REAL *query, const Rows &keys, int b, const Part &part, Put put) {
    const int lane = threadIdx.x % 32, warp = threadIdx.x / 32, count = part.to - part.from;
    const bool whole_u = rows_of_four(c.u, c.A);
    for (int s0 = warp; s0 < count; s0 += WARPS * KEYS_AT_A_TIME) {
        REAL sum[KEYS_AT_A_TIME] = {};
        for (int d = 4 * lane; d < c.A; d += 128) {
            const Four w = load_four(c.u, d, c.A, whole_u), x = *reinterpret_cast<const Four *>(r.vector + d);
            const REAL half = (REAL)0.5 * (w.x[0] + w.x[1] + w.x[2] + w.x[3]);
            Four y[KEYS_AT_A_TIME];
#pragma unroll
            for (int e = 0; e < KEYS_AT_A_TIME; e++) y[e] = keys.four(min(s0 + e * WARPS, count - 1), d);
#pragma unroll
            for (int e = 0; e < KEYS_AT_A_TIME; e++) sum[e] = additive_four(sum[e], x, y[e], w, half);
        }
#pragma unroll
        for (int e = 0; e < KEYS_AT_A_TIME; e++) {
            const int s = s0 + e * WARPS;
            if (s >= count) break;
            const long long place = (long long)b * c.S + part.from + s;
            REAL score = -2 * warp_sum(sum[e]);
            if (*r.far || c.far_keys[place]) { // by tanh itself
                score = 0;
                for (int d = lane; d < c.A; d += 32) score += c.u[d] * additive_tanh(load_cg(query + d) + c.keys[place * c.A + d]);
                score = warp_sum(score);
            }
            if (lane == 0) put(s, score);
        }
    }
}

__device__ __forceinline__ int keys_of(const Call &c, int t, int b) {
    return !alive(c, t, b) ? 0 : c.memory_lengths ? (int)c.memory_lengths[b] : c.S;
}

// What the block that has part p of row b reads, in global memory.
__device__ __forceinline__ Kept rows_of(const Call &c, int b, const Part &part) {
    const REAL *memory = c.memory + (long long)b * c.S * c.M;
    return rows_of_part(c.u ? c.near_keys + (long long)b * c.S * c.A : memory, c.A, memory, c.M, part);
}

// Part p of row b: the softmax of its scores, and its units of the context.
__device__ __forceinline__ void context_of(const Call &c, const Row &r, const Rows &memory, int t, int b, int p, const Part &part, int n) {
    const int thread = threadIdx.x, lane = thread % 32;
    REAL *weights = c.weights + ((long long)t * c.B + b) * c.S, *context = c.both + ((long long)t * c.B + b) * (c.H + c.M) + c.H;
    // each warp finds the sum for itself
    REAL largest = minus_infinity(REAL()), total = 0;
    for (int s = lane; s < n; s += 32) largest = r.scores[s] > largest ? r.scores[s] : largest;
    largest = warp_max(largest);
    if (largest == minus_infinity(REAL())) largest = 0;
    for (int s = lane; s < n; s += 32) total += softmax_exp(r.scores[s] - largest);
    total = warp_sum(total);
    if (total == 0) total = 1;
    __syncthreads();
    for (int s = thread; s < n; s += THREADS) {
        const REAL w = softmax_exp(r.scores[s] - largest) / total;
        r.scores[s] = w;
        if (p == 0) weights[s] = w;
    }
    __syncthreads();
    sum_over_keys(
        r.scratch, n, part.end - part.first,
        [&](Four &sums, int s, int m) {
            const Four value = memory.four(s, m);
#pragma unroll
            for (int e = 0; e < 4; e++) sums.x[e] += r.scores[s] * value.x[e];
        },
        [&](int m, const Four &sums) { store_four(context + part.first, m, part.end - part.first, sums); });
}

__device__ __forceinline__ void scores_phase(const Call &c, const Kept *kept, int t, int b, int p, unsigned char *bytes) {
    const int thread = threadIdx.x, n = keys_of(c, t, b);
    const Part part = part_of(p, c.parts, n, c.M);
    REAL *weights = c.weights + ((long long)t * c.B + b) * c.S, *context = c.both + ((long long)t * c.B + b) * (c.H + c.M) + c.H;
    const Row r = row_of(bytes, c.A, c.scores_in_shared, weights);
    const Kept rows = kept ? *kept : rows_of(c, b, part);
    __syncthreads();
    if (p == 0)
        for (int s = n + thread; s < c.S; s += THREADS) weights[s] = 0;
    if (n == 0) {
        for (int m = part.first + thread; m < part.end; m += THREADS) context[m] = 0;
        return;
    }
    long long apart;
    const REAL *query = c.w_query ? c.queries + ((long long)b * c.T + t) * c.A : state_before(c, t, b, apart);
    if (thread == 0) *r.far = 0;
    __syncthreads();
    for (int d = thread; d < round_up(c.A, 4); d += THREADS) {
        const REAL q = query && d < c.A ? load_cg(query + d) : 0;
        if (c.u && !(fabs(q) <= additive_range(q))) *r.far = 1;
        r.vector[d] = c.u ? additive_exp(q) : q;
    }
    __syncthreads();
    REAL *scores = c.parts == 1 ? r.scores : c.raw + (long long)b * c.S + part.from;
    if (c.u) additive_scores(c, r, query, rows.keys, b, part, [=](int s, REAL score) { scores[s] = score; });
    else dot_with_keys(r.vector, rows.keys, part.to - part.from, [=](int s, REAL score) { scores[s] = c.scale * score; });
    if (c.parts > 1) return;
    __syncthreads();
    context_of(c, r, rows.summed, t, b, p, part, n);
}

// The second half of attention, where a row has several blocks.
__device__ __forceinline__ void context_phase(const Call &c, const Kept *kept, int t, int b, int p, unsigned char *bytes) {
    const int n = keys_of(c, t, b);
    if (n == 0) return;
    const Part part = part_of(p, c.parts, n, c.M);
    const Row r = row_of(bytes, c.A, true, nullptr);
    __syncthreads();
    for (int s = threadIdx.x; s < n; s += THREADS) r.scores[s] = load_cg(c.raw + (long long)b * c.S + s);
    __syncthreads();
    context_of(c, r, kept ? kept->summed : rows_of(c, b, part).summed, t, b, p, part, n);
}

// A task of the cell: rows of the batch and hidden units. Column k of its product is gate k % GATES of unit k / GATES.
struct CellTask {
    int u0, b0, rows, units, H;
    const REAL *state;
    long long apart;
    Segment segments[2];
    __device__ __forceinline__ int column(int k) const { return k % GATES * H + u0 + k / GATES; }
};

__device__ __forceinline__ int cell_tasks(const Call &c) { return (c.H + TASK_UNITS - 1) / TASK_UNITS * ((c.B + TASK_ROWS - 1) / TASK_ROWS); }

__device__ __forceinline__ CellTask cell_task(const Call &c, int t, int task) {
    const int H = c.H, groups = (H + TASK_UNITS - 1) / TASK_UNITS, u0 = task % groups * TASK_UNITS, b0 = task / groups * TASK_ROWS;
    const long long width = H + c.M;
    long long apart;
    const REAL *state = state_before(c, t, b0, apart), *context = c.both + ((long long)t * c.B + b0) * width + H;
    return {u0, b0, min((int)TASK_ROWS, c.B - b0), min((int)TASK_UNITS, H - u0), H, state, apart,
            {{context, width, c.w_ih + c.I, c.I + c.M, c.M}, {state, apart, c.w_hh, H, H}}};
}

__device__ __forceinline__ void cell_phase(const Call &c, int t, unsigned char *bytes) {
    enum { COLUMNS = GATES * UNITS };
    const int H = c.H;
    REAL *partial = reinterpret_cast<REAL *>(bytes);
    for (int task = blockIdx.x; task < cell_tasks(c); task += gridDim.x) {
        const CellTask a = cell_task(c, t, task);
        const int u0 = a.u0, b0 = a.b0, rows = a.rows, units = a.units;
        const REAL *state = a.state;
        const long long apart = a.apart, width = H + c.M, now = (long long)t * c.B + b0;
        REAL sum[ROWS][COLUMNS];
        __syncthreads();
        const Held held = held_at(c.hold_cell, a.segments);
        product<COLUMNS, false>(sum, partial, c.stage, held, a.segments, rows, units * GATES, [&](int k) { return a.column(k); });
        put_parts<COLUMNS>(partial, sum);
        for (int at = threadIdx.x; at < rows * TASK_UNITS; at += THREADS) {
            const int row = at / TASK_UNITS, unit = at % TASK_UNITS, u = u0 + unit, b = b0 + row;
            if (unit >= units) continue;
            const long long place = now + row;
            const REAL h_before = state ? load_cg(state + row * apart + u) : 0;
            const REAL c_before = !c.cells ? 0 : t ? c.cells[(place - c.B) * H + u] : c.c_0 ? c.c_0[(long long)b * H + u] : 0;
            REAL h = h_before, cell = c_before;
            if (alive(c, t, b)) {
                const REAL *x = c.x_sums + place * GATES * H + u;
                REAL *saved = c.gates ? c.gates + place * 4 * H + u : nullptr;
                auto both = [&](int gate) {
                    const REAL bias = c.b_ih[gate * H + u] + c.b_hh[gate * H + u];
                    return x[(long long)gate * H] + bias + add_parts<COLUMNS>(partial, row, unit * GATES + gate);
                };
                if (GATES == 4) {
                    const REAL i = sigmoid(both(0)), f = sigmoid(both(1)), g = real_tanh(both(2)), o = sigmoid(both(GATES - 1));
                    cell = f * c_before + i * g;
                    h = o * real_tanh(cell);
                    if (saved) saved[0] = i, saved[H] = f, saved[2 * H] = g, saved[3 * H] = o;
                } else {
                    const REAL z = sigmoid(both(1)), reset = sigmoid(both(0));
                    const REAL p = x[2 * H] + c.b_ih[2 * H + u] + add_parts<COLUMNS>(partial, row, unit * GATES + 2, 0, WARPS / 2);
                    const REAL q = c.b_hh[2 * H + u] + add_parts<COLUMNS>(partial, row, unit * GATES + 2, WARPS / 2, WARPS);
                    const REAL n = real_tanh(p + reset * q);
                    h = z * h_before + (1 - z) * n;
                    if (saved) saved[0] = reset, saved[H] = z, saved[2 * H] = n, saved[3 * H] = q;
                }
            }
            c.both[place * width + u] = h;
            if (c.cells) c.cells[place * H + u] = cell;
        }
    }
}

// ---------------------------------------------------------------- the kernels

// Steps first to last, both included, of each the phases in `phases`: 1 queries, 2 scores, 4 contexts where a row has several parts, 8 cell.
// Shared memory, in reals: products' stages, then what is kept of a row from keep_at on and of weights from hold_query and hold_cell on, for all
// steps, where there are as many blocks as tasks; 0 and -1: it is not.
extern "C" __global__ void __launch_bounds__(THREADS)
decoder_forward(REAL *both, REAL *cells, REAL *gates, REAL *queries, REAL *weights, REAL *raw, const REAL *x_sums, const REAL *near_keys,
                const unsigned char *far_keys, const REAL *keys, const REAL *memory, const REAL *u, const REAL *w_ih, const REAL *w_hh,
                const REAL *b_ih, const REAL *b_hh, const REAL *w_query, const REAL *h_0, const REAL *c_0, const long long *lengths,
                const long long *memory_lengths, int T, int B, int S, int I, int H, int M, int A, int scores_in_shared, int parts, REAL scale,
                int stage, int keep_at, int hold_query, int hold_cell, int first, int last, int phases, unsigned *counter) {
    FSQ_SHARED(bytes);
    const Call c = {both, cells, gates, queries, weights, raw, x_sums, near_keys, keys, memory, u, far_keys, w_ih, w_hh, b_ih, b_hh, w_query, h_0,
                    c_0, lengths, memory_lengths, T, B, S, I, H, M, A, scores_in_shared, parts, stage, hold_query, hold_cell, scale};
    REAL *base = reinterpret_cast<REAL *>(bytes);
    Kept kept;
    if (keep_at && blockIdx.x < B * parts) {
        const int b = blockIdx.x / parts, n = memory_lengths ? (int)memory_lengths[b] : S;
        const Part part = part_of(blockIdx.x % parts, parts, n, M);
        kept = keep(base + keep_at, rows_of(c, b, part), part, n);
    }
    if (hold_query >= 0 && blockIdx.x < query_tasks(c)) {
        const QueryTask a = query_task(c, first, blockIdx.x);
        hold<false>(base, held_at(hold_query, a.segments), a.segments, TASK_UNITS, a.columns, [&](int k) { return a.column(k); });
    }
    if (hold_cell >= 0 && blockIdx.x < cell_tasks(c)) {
        const CellTask a = cell_task(c, first, blockIdx.x);
        hold<false>(base, held_at(hold_cell, a.segments), a.segments, GATES * TASK_UNITS, GATES * a.units, [&](int k) { return a.column(k); });
    }
    unsigned passed = 0;
    for (int t = first; t <= last; t++) {
        if (phases & 1 && w_query) {
            query_phase(c, t, bytes);
            grid_barrier(counter, passed);
        }
        if (phases & 2) {
            for (int task = blockIdx.x; task < B * parts; task += gridDim.x)
                scores_phase(c, keep_at ? &kept : nullptr, t, task / parts, task % parts, bytes);
            grid_barrier(counter, passed);
        }
        if (phases & 4 && parts > 1) {
            for (int task = blockIdx.x; task < B * parts; task += gridDim.x)
                context_phase(c, keep_at ? &kept : nullptr, t, task / parts, task % parts, bytes);
            grid_barrier(counter, passed);
        }
        if (phases & 8) {
            cell_phase(c, t, bytes);
            grid_barrier(counter, passed);
        }
    }
}

// Exponentials of keys (rows, A) for all steps, and which rows have something far, or all where u is not finite; a warp has a row.
extern "C" __global__ void __launch_bounds__(THREADS)
decoder_near(REAL *near_keys, unsigned char *far, const REAL *keys, const REAL *u, int rows, int A) {
    const int row = blockIdx.x * WARPS + threadIdx.x / 32, lane = threadIdx.x % 32;
    if (row >= rows) return;
    bool found = false;
    for (int d = lane; d < A; d += 32) {
        const REAL k = keys[(long long)row * A + d];
        found |= !(fabs(k) <= additive_range(k)) || !(fabs(u[d]) <= additive_largest(k));
        near_keys[(long long)row * A + d] = additive_exp(k);
    }
    found = __any_sync(0xffffffffu, found);
    if (lane == 0) far[row] = found;
}

// o = tanh(sum + b_out) in place, zeros past the end of a row; sum (T, B, H).
extern "C" __global__ void __launch_bounds__(THREADS)
decoder_outputs(REAL *o, const REAL *b_out, const long long *lengths, int B, int H, long long size) {
    const long long at = (long long)blockIdx.x * THREADS + threadIdx.x;
    if (at >= size) return;
    const long long row = at / H;
    o[at] = lengths && row / B >= lengths[row % B] ? 0 : real_tanh(o[at] + b_out[at % H]);
}

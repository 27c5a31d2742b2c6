// What the attention decoder's kernels share: products of a few rows by a slice of a weight, and the barrier between their phases.
//
// Macros: REAL; ROWS and UNITS, how many rows of the batch and how many hidden units a lane has (a task of a block: 8 ROWS rows, 4 UNITS
// units); GATES, 4 for an LSTM and 3 for a GRU.
#pragma once
#include "additive.cuh"

enum { THREADS = 256, WARPS = THREADS / 32, CHUNK = sizeof(REAL) == 4 ? 32 : 16, LINE = CHUNK + 4, TASK_ROWS = 8 * ROWS, TASK_UNITS = 4 * UNITS };

__device__ __forceinline__ float real_tanh(float x) { return tanhf(x); }
__device__ __forceinline__ double real_tanh(double x) { return tanh(x); }
__device__ __forceinline__ REAL sigmoid(REAL x) { return 1 / (1 + softmax_exp(-x)); }

__device__ __forceinline__ int round_up(int n, int to) { return (n + to - 1) / to * to; }

// ---------------------------------------------------------------- what other blocks wrote

__device__ __forceinline__ Four load_four_cg(const float *p) {
    const float4 v = load_cg(reinterpret_cast<const float4 *>(p));
    Four f;
    f.x[0] = v.x, f.x[1] = v.y, f.x[2] = v.z, f.x[3] = v.w;
    return f;
}
__device__ __forceinline__ Four load_four_cg(const double *p) {
    const double2 v = load_cg(reinterpret_cast<const double2 *>(p)), w = load_cg(reinterpret_cast<const double2 *>(p + 2));
    Four f;
    f.x[0] = v.x, f.x[1] = v.y, f.x[2] = w.x, f.x[3] = w.y;
    return f;
}

// load_four of an array that this kernel writes, too.
__device__ __forceinline__ Four load_four_cg(const REAL *row, int d, int D, bool whole) {
    if (whole && d < D) return load_four_cg(row + d);
    Four f;
#pragma unroll
    for (int e = 0; e < 4; e++) f.x[e] = d + e < D ? load_cg(row + d + e) : 0;
    return f;
}

// All blocks of a cooperative launch wait for each other; `passed` counts the barriers so far. Without a counter, in a launch of its own for
// each phase, there is nothing to wait for.
__device__ __forceinline__ void grid_barrier(unsigned *counter, unsigned &passed) {
    if (!counter) return;
    __syncthreads();
    passed++;
    if (threadIdx.x == 0) {
        const unsigned blocks = gridDim.x;
        add_release(counter, 1);
        while (load_acquire(counter) < passed * blocks) {
        }
    }
    __syncthreads();
}

// ---------------------------------------------------------------- products

// A part of the sum over k of x[row, k] w: rows x_row apart, zeros where x is null; the weight of column n lies at w[n w_row + k], or, `by_k`,
// at w[k w_row + n].
struct Segment {
    const REAL *x;
    long long x_row;
    const REAL *w;
    long long w_row;
    int K;
};

// Where a block keeps its columns of a weight for all steps, in reals from the beginning of shared memory: a row for each column, segment behind
// segment, each with zeros up to whole chunks; at < 0: it does not.
struct Held {
    int at, row;
};

__device__ __forceinline__ Held held_at(int at, const Segment (&segments)[2]) {
    return {at, round_up(segments[0].K, CHUNK) + round_up(segments[1].K, CHUNK) + 4};
}

template <bool by_k, class Column>
__device__ __forceinline__ void hold(REAL *base, const Held &held, const Segment (&segments)[2], int width, int columns, Column column) {
    int k0 = held.at;
    for (int i = 0; i < 2; i++) {
        const Segment &s = segments[i];
        const int K = round_up(s.K, CHUNK);
        for (int at = threadIdx.x; at < width * K; at += THREADS) {
            const int c = by_k ? at % width : at / K, k = by_k ? at / width : at % K;
            base[k0 + c * held.row + k] = c < columns && k < s.K ? (by_k ? s.w[k * s.w_row + column(c)] : s.w[column(c) * s.w_row + k]) : 0;
        }
        k0 += K;
    }
}

// sum[i][j] of row lane / 4 + 8 i and column lane % 4 + 4 j: the part of this warp. One segment is shared by all warps, chunk by
// chunk; of two each has half of them. column(c): the n of the task's column c, of which `columns` are there. Each warp has a stage of `stage`
// reals at the beginning of shared memory.
template <int COLUMNS, bool by_k, class Column>
__device__ __forceinline__ void product(REAL (&sum)[ROWS][COLUMNS], REAL *base, int stage, const Held &held, const Segment (&segments)[2], int rows,
                                        int columns, Column column) {
    enum { QUADS = CHUNK / 4, X_LOADS = ROWS * CHUNK / 16, W_LOADS = (COLUMNS * CHUNK + 31) / 32 };
    const int lane = threadIdx.x % 32, warp = threadIdx.x / 32, halves = segments[1].K > 0 ? 2 : 1, share = WARPS / halves;
    const Segment s = warp < share ? segments[0] : segments[1];
    const int x_stage = warp * stage, w_stage = x_stage + TASK_ROWS * LINE, kept = held.at + (warp < share ? 0 : round_up(segments[0].K, CHUNK));
    const bool is_held = held.at >= 0;
    const int chunks = (s.K + CHUNK - 1) / CHUNK, rows_there = s.x ? rows : 0;
    const bool whole_x = ((unsigned long long)s.x & 15) == 0 && s.x_row % 4 == 0 && s.K % 4 == 0;
    const bool on_w = ((unsigned long long)s.w & 15) == 0 && s.w_row % 4 == 0;
    const bool whole_w = on_w && (by_k ? column(0) % 4 == 0 && columns % 4 == 0 : s.K % 4 == 0);
    Four x_next[X_LOADS], w_next[W_LOADS];
    auto fetch = [&](int chunk) {
        const int k0 = chunk * CHUNK;
#pragma unroll
        for (int i = 0; i < X_LOADS; i++) {
            const int at = lane + 32 * i, row = at / QUADS;
            x_next[i] = load_four_cg(s.x + row * s.x_row, k0 + at % QUADS * 4, row < rows_there ? s.K : 0, whole_x);
        }
        if (is_held) return;
#pragma unroll
        for (int i = 0; i < W_LOADS; i++) {
            const int at = lane + 32 * i;
            if (by_k) {
                const int k = k0 + at % CHUNK, c = at / CHUNK * 4;
                w_next[i] = load_four(s.w + k * s.w_row + column(0), c, k < s.K ? columns : 0, whole_w);
            } else {
                const int c = at / QUADS;
                w_next[i] = load_four(s.w + column(c) * s.w_row, k0 + at % QUADS * 4, c < columns ? s.K : 0, whole_w);
            }
        }
    };
#pragma unroll
    for (int i = 0; i < ROWS; i++)
#pragma unroll
        for (int j = 0; j < COLUMNS; j++) sum[i][j] = 0;
    int chunk = warp % share;
    if (chunk < chunks) fetch(chunk);
    for (; chunk < chunks; chunk += share) {
        __syncwarp(); // all have read the chunk before
#pragma unroll
        for (int i = 0; i < X_LOADS; i++) {
            const int at = lane + 32 * i;
            *reinterpret_cast<Four *>(base + x_stage + at / QUADS * LINE + at % QUADS * 4) = x_next[i];
        }
        if (!is_held)
#pragma unroll
            for (int i = 0; i < W_LOADS; i++) {
                const int at = lane + 32 * i;
                if (COLUMNS * CHUNK % 32 && at >= COLUMNS * CHUNK) continue;
                if (by_k) {
#pragma unroll
                    for (int e = 0; e < 4; e++) base[w_stage + (at / CHUNK * 4 + e) * LINE + at % CHUNK] = w_next[i].x[e];
                } else {
                    *reinterpret_cast<Four *>(base + w_stage + at / QUADS * LINE + at % QUADS * 4) = w_next[i];
                }
            }
        __syncwarp();
        if (chunk + share < chunks) fetch(chunk + share);
        const int w_at = is_held ? kept + chunk * CHUNK : w_stage, w_apart = is_held ? held.row : (int)LINE;
#pragma unroll
        for (int k = 0; k < CHUNK; k += 4) {
            Four a[ROWS], b[COLUMNS];
#pragma unroll
            for (int i = 0; i < ROWS; i++) a[i] = *reinterpret_cast<const Four *>(base + x_stage + (lane / 4 + 8 * i) * LINE + k);
#pragma unroll
            for (int j = 0; j < COLUMNS; j++) b[j] = *reinterpret_cast<const Four *>(base + w_at + (lane % 4 + 4 * j) * w_apart + k);
#pragma unroll
            for (int i = 0; i < ROWS; i++)
#pragma unroll
                for (int j = 0; j < COLUMNS; j++)
#pragma unroll
                    for (int e = 0; e < 4; e++) sum[i][j] += a[i].x[e] * b[j].x[e];
        }
    }
}

// The parts of all warps, for the block to add up: `partial` (WARPS, TASK_ROWS, 4 COLUMNS) takes the place of the stages.
template <int COLUMNS> __device__ __forceinline__ void put_parts(REAL *partial, const REAL (&sum)[ROWS][COLUMNS]) {
    const int lane = threadIdx.x % 32, warp = threadIdx.x / 32;
    __syncthreads();
#pragma unroll
    for (int i = 0; i < ROWS; i++)
#pragma unroll
        for (int j = 0; j < COLUMNS; j++)
            partial[(warp * TASK_ROWS + lane / 4 + 8 * i) * 4 * COLUMNS + lane % 4 + 4 * j] = sum[i][j];
    __syncthreads();
}

// The sum of the parts of warps `from` to `to`.
template <int COLUMNS> __device__ __forceinline__ REAL add_parts(const REAL *partial, int row, int column, int from = 0, int to = WARPS) {
    REAL sum = 0;
#pragma unroll
    for (int w = from; w < to; w++) sum += partial[(w * TASK_ROWS + row) * 4 * COLUMNS + column];
    return sum;
}

// ---------------------------------------------------------------- attention of a row
//
// A row of the batch is the task of `parts` blocks. Each has some of the keys first, which give a number each; then, all of these at hand,
// some of the units of what is summed over all keys. With one part the block goes on by itself, with more there is a barrier between.

enum { KEYS_AT_A_TIME = 4, SCRATCH = 4 * THREADS };

// Shared memory of a row: a vector that meets all keys, SCRATCH reals for sums, then a number for each key, if they fit.
struct Row {
    REAL *vector, *scratch, *scores;
    int *far;
};

__device__ __forceinline__ Row row_of(unsigned char *bytes, int size, int scores_in_shared, REAL *instead) {
    Row r;
    r.vector = reinterpret_cast<REAL *>(bytes);
    r.scratch = r.vector + round_up(size, 4);
    r.far = reinterpret_cast<int *>(r.scratch + SCRATCH);
    r.scores = scores_in_shared ? r.scratch + SCRATCH + 4 : instead;
    return r;
}

// A part's keys [from, to) of n, and its units [first, end) of `size`, whole quads.
struct Part {
    int from, to, first, end;
};

__device__ __forceinline__ Part part_of(int p, int parts, int n, int size) {
    const int keys = (n + parts - 1) / parts, units = round_up((size + parts - 1) / parts, 4);
    return {min(p * keys, n), min((p + 1) * keys, n), min(p * units, size), min((p + 1) * units, size)};
}

// Rows of numbers, `apart`, each of `size`: in global memory, or kept in shared memory with zeros up to whole quads.
struct Rows {
    const REAL *at;
    int apart, size;
    bool whole;
    __device__ __forceinline__ Four four(int row, int d) const { return load_four(at + (long long)row * apart, d, size, whole); }
};

__device__ __forceinline__ Rows rows_in_global(const REAL *at, int width, int first, int end) {
    return {at + first, width, end - first, rows_of_four(at, width) && first % 4 == 0 && (end - first) % 4 == 0};
}

// Copies `count` of them to shared memory.
__device__ __forceinline__ Rows keep(REAL *to, const Rows &rows, int count) {
    const int quads = (rows.size + 3) / 4;
    for (int at = threadIdx.x; at < count * quads; at += THREADS)
        *reinterpret_cast<Four *>(to + 4 * at) = rows.four(at / quads, at % quads * 4);
    return {to, 4 * quads, rows.size, true};
}

// What a block keeps of its row for all steps: the key rows of its part, and the units of its part of all the rows that are summed. An array
// that serves as both is kept once where there is one part.
struct Kept {
    Rows keys, summed;
};

__device__ __forceinline__ Kept rows_of_part(const REAL *keys, int width, const REAL *summed, int summed_width, const Part &part) {
    return {rows_in_global(keys + (long long)part.from * width, width, 0, width), rows_in_global(summed, summed_width, part.first, part.end)};
}

__device__ __forceinline__ Kept keep(REAL *to, const Kept &from, const Part &part, int n) {
    Kept k;
    k.keys = keep(to, from.keys, part.to - part.from);
    const bool once = from.keys.at == from.summed.at && from.keys.size == from.summed.size && part.to - part.from == n;
    k.summed = once ? k.keys : keep(to + (long long)(part.to - part.from) * k.keys.apart, from.summed, n);
    return k;
}

// put(s, vector . key s) for the keys of a part, a warp for each; the vector has zeros up to a whole quad.
template <class Put> __device__ __forceinline__ void dot_with_keys(const REAL *vector, const Rows &keys, int count, Put put) {
    const int lane = threadIdx.x % 32, warp = threadIdx.x / 32;
    for (int s0 = warp; s0 < count; s0 += WARPS * KEYS_AT_A_TIME) {
        REAL sum[KEYS_AT_A_TIME] = {};
        for (int d = 4 * lane; d < keys.size; d += 128) {
            const Four x = *reinterpret_cast<const Four *>(vector + d);
#pragma unroll
            for (int e = 0; e < KEYS_AT_A_TIME; e++) {
                const Four y = keys.four(min(s0 + e * WARPS, count - 1), d);
                sum[e] += x.x[0] * y.x[0] + x.x[1] * y.x[1] + x.x[2] * y.x[2] + x.x[3] * y.x[3];
            }
        }
#pragma unroll
        for (int e = 0; e < KEYS_AT_A_TIME; e++) {
            const int s = s0 + e * WARPS;
            if (s >= count) break;
            const REAL found = warp_sum(sum[e]);
            if (lane == 0) put(s, found);
        }
    }
}

// A sum over n keys for each of `size` units: add(sums, key, unit) adds a key's part of four units to sums, and done(unit, sums) takes them at
// the end. Threads side by side have units side by side; those that are left over share the keys.
template <class Add, class Done> __device__ __forceinline__ void sum_over_keys(REAL *scratch, int n, int size, Add add, Done done) {
    const int quads = (size + 3) / 4;
    if (quads == 0) return;
    const int groups = max(1, THREADS / quads), group = threadIdx.x / quads;
    if (groups == 1) {
        for (int q = threadIdx.x; q < quads; q += THREADS) {
            Four sums = {};
#pragma unroll 4
            for (int s = 0; s < n; s++) add(sums, s, 4 * q);
            done(4 * q, sums);
        }
        return;
    }
    const int unit = threadIdx.x % quads * 4;
    if (group < groups) {
        Four sums = {};
#pragma unroll 4
        for (int s = group; s < n; s += groups) add(sums, s, unit);
        *reinterpret_cast<Four *>(scratch + group * quads * 4 + unit) = sums;
    }
    __syncthreads();
    if (threadIdx.x < quads) {
        Four sums = {};
        for (int g = 0; g < groups; g++)
#pragma unroll
            for (int e = 0; e < 4; e++) sums.x[e] += scratch[g * quads * 4 + unit + e];
        done(unit, sums);
    }
}

// Units d to d + 3 of a row of D, those that there are.
__device__ __forceinline__ void store_four(REAL *row, int d, int D, const Four &f) {
#pragma unroll
    for (int e = 0; e < 4; e++)
        if (d + e < D) row[d + e] = f.x[e];
}

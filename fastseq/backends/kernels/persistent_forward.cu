// LSTM and GRU through all steps in one launch: h_t = cell(xp_t + b + h_{t-1} W_hh^T, h_{t-1}, c_{t-1}), with xp = x W_ih^T given.
//
// Fused: the recurrent product, the gates, the states, lengths and resets; W_hh stays in registers, h and c of a block's units too. A block
// has UNITS units of ROWS rows; all blocks of a group of rows exchange h through L2 once per step. Bound by that exchange: a step reads
// ROWS H 2 SPLIT bytes per block from L2 at some 43 bytes/ns, behind one trip of h through L2; the product, 8 ROWS H^2 operations over
// all blocks, takes less. An H200 needs per step of an LSTM of 32 rows in training, SPLIT 1: 0.8 us at H 128, 1.9 at 512, 3.0 at 1024.
// There is no barrier: h of step t has its own place in `exchange`, which the host fills with UNWRITTEN, and a word is there when it is
// something else (float16 pairs made by conversion never are; NCCL's LL protocol is the same idea).
// Sources: Appleyard et al. 2016 (arXiv 1604.01946), Diamos et al. 2016 (Persistent RNNs), Poeppel et al. 2024 (FlashRNN).
//
// Macros beside persistent.cuh's: ROWS; the block's warps are SHARES, which divide the sum over k, by SIDES, which divide the units; a warp
// has STEPS k-steps of 16 and TILES tiles of 8 columns, and loads h for BATCH pairs of steps at once; LOOK_FIRST polls
// a word before it loads all; ALONE: one block has all units, and h stays in its shared memory. TRAINING keeps gates and c.
#include "persistent.cuh"

#define THREADS (SHARES * SIDES * 32)
#define UNITS (SIDES * TILES * 8 / GATES)
#define CHUNKS (STEPS / 2)
#define M_TILES CEIL_DIV(ROWS, 16)
#define CELLS CEIL_DIV(ROWS * UNITS, THREADS)
#define TURNED (ROWS <= 8) // W_hh is the left operand, of 16 rows, and h the right one, of 8
#define LINE (UNITS + (TURNED ? 1 : 4)) // of partial sums, in units: the lanes of a warp then write to different banks
#define NEAR (UNITS / 2 + (64 + 128 - UNITS * 2 % 128) % 128 / 4) // of h in shared memory, in words; 8 lanes' 16 bytes are in different banks
#define UNWRITTEN 0xffffffffu
#define AHEAD 3 // steps from a prefetch to its load

__device__ __forceinline__ bool written(uint4 v) { return v.x != UNWRITTEN && v.y != UNWRITTEN && v.z != UNWRITTEN && v.w != UNWRITTEN; }

__device__ __forceinline__ uint4 load_h(const uint4 *p) { return ALONE ? *p : load_relaxed(p); }
__device__ __forceinline__ void store_h(unsigned *p, unsigned v) {
    if (ALONE) *p = v;
    else store_relaxed(p, v);
}

// The unit and the gate of a column: of a tile's n-th, such that a lane's sums are all gates of its units.
__device__ __forceinline__ void column(int tile, int n, int *unit, int *gate) {
#if TURNED
    *unit = tile / GATES * 8 + n, *gate = tile % GATES;
#else
    const int value = tile % (CELL ? 3 : 2) * 2 + n % 2; // of two units' 6 values, or of one's 4
    *unit = CELL ? tile / 3 * 8 + n / 2 * 2 + value / 3 : tile / 2 * 4 + n / 2;
    *gate = CELL ? value % 3 : value;
#endif
}

extern "C" __global__ void __launch_bounds__(THREADS, 1) persistent_forward(
    const float *xp, const float *w_hh, const float *b_ih, const float *b_hh, const float *h_0, const float *c_0, const long long *lengths,
    const bool *reset, unsigned *exchange, float *y, float *h_n, float *c_n, float *gates, float *cells, int T, int B, int H, int unit_blocks,
    int reverse) {
    FSQ_SHARED(bytes);
    float4 *partial = (float4 *)bytes;                              // [2][SHARES][ROWS][LINE] sums of all gates
    int *row_shift = (int *)(partial + 2 * SHARES * ROWS * LINE);   // [ROWS] h is multiplied by 2^this
#if ALONE
    unsigned *const near = (unsigned *)(row_shift + CEIL_DIV(ROWS, 4) * 4); // [ROWS][SPLIT][NEAR] h
#endif
    const Group group = group_of(blockIdx.x / unit_blocks, ROWS, T, B, lengths);
    const int first_unit = blockIdx.x % unit_blocks * UNITS, line = unit_blocks * UNITS;
    const int share = WARP / SIDES, side = WARP % SIDES, g = LANE / 4, q = LANE % 4, first_k = share * STEPS * 16 + 8 * q;

    // W_hh of this warp, as the products take it.
    const int w_shift = shift_for(largest_weight(w_hh, first_unit, UNITS, 0, CEIL_DIV(H, 4) * 4, H, (unsigned *)partial));
    const float w_up = power_of_two(w_shift), w_down = power_of_two(-w_shift);
    unsigned w[CHUNKS][TILES][SPLIT][4];
#pragma unroll
    for (int j = 0; j < TILES; j++) {
        int unit, gate;
        column(side * TILES + j, g, &unit, &gate);
        unit += first_unit;
        const float *row = w_hh + ((long long)gate * H + unit) * H;
#pragma unroll
        for (int c = 0; c < CHUNKS; c++) {
            const int k = first_k + 32 * c, left = unit < H ? H - k : 0;
            const float4 low = load_units(row + k, left, H % 4 == 0), high = load_units(row + k + 4, left - 4, H % 4 == 0);
            const float x[8] = {w_up * low.x, w_up * low.y, w_up * low.z, w_up * low.w, w_up * high.x, w_up * high.y, w_up * high.z, w_up * high.w};
            split_8(x, w[c][j]);
        }
    }
    // |h| stays below the largest of 1 and |h_0|.
    for (int row = WARP; row < group.count; row += THREADS / 32) {
        unsigned most = __float_as_uint(1.0f);
        for (int k = LANE; h_0 && k < H; k += 32) {
            unsigned bits = magnitude(h_0[(long long)(group.first + row) * H + k]);
            most = bits > most ? bits : most;
        }
        most = largest_of_warp(most, 32);
        if (LANE == 0) row_shift[row] = shift_for(most);
    }
    __syncthreads();

    // The states and biases of this thread's cells.
    float h[CELLS], c[CELLS], bias[CELLS][4];
    int length[CELLS];
    bool mine[CELLS];
#pragma unroll
    for (int i = 0; i < CELLS; i++) {
        const int cell = threadIdx.x + i * THREADS, row = cell / UNITS, unit = first_unit + cell % UNITS;
        mine[i] = cell < ROWS * UNITS && row < group.count && unit < H;
        const long long at = mine[i] ? (long long)(group.first + row) * H + unit : 0;
        h[i] = mine[i] && h_0 ? h_0[at] : 0.0f;
        c[i] = mine[i] && c_0 ? c_0[at] : 0.0f;
        length[i] = mine[i] ? lengths ? (int)lengths[group.first + row] : T : 0;
#pragma unroll
        for (int k = 0; k < 4; k++) { // GRU: r, z, n of the input, n of h
            const bool input = b_ih && mine[i] && k < GATES, hidden = b_hh && mine[i] && (!CELL || k != 2);
            bias[i][k] = (input ? b_ih[k * H + unit] : 0.0f) + (hidden ? b_hh[(CELL && k == 3 ? 2 : k) * H + unit] : 0.0f);
        }
    }

    for (int step = 0; step < group.steps; step++) {
        const int t = reverse ? group.steps - 1 - step : step;
        // h for all blocks of this group, two units in a word
#if ALONE
        unsigned *const slot = near;
        const int across = NEAR, first_row = 0;
#else
        unsigned *const slot = exchange + (long long)step * B * SPLIT * (line / 2);
        const int across = line / 2, first_row = group.first;
#endif
#pragma unroll
        for (int i = 0; i < CELLS; i++) {
            const int cell = threadIdx.x + i * THREADS, row = cell / UNITS;
            const bool here = cell < ROWS * UNITS && row < group.count;
            const float scaled = here ? h[i] * power_of_two(row_shift[row]) : 0.0f, other = __shfl_xor_sync(~0u, scaled, 1);
            unsigned parts[SPLIT];
            split(cell % 2 ? other : scaled, cell % 2 ? scaled : other, parts);
            if (here && cell % 2 < SPLIT)
                store_h(slot + ((long long)(first_row + row) * SPLIT + cell % 2) * across + (first_unit + cell % UNITS) / 2, parts[SPLIT - 1 && cell % 2]);
        }
        // what the gates need beside the product, on its way while h is
        float x[CELLS][4];
        bool active[CELLS], cut[CELLS];
#pragma unroll
        for (int i = 0; i < CELLS; i++) {
            const int cell = threadIdx.x + i * THREADS, b = group.first + cell / UNITS;
            const float *from = xp + (((long long)t * B + b) * GATES) * H + first_unit + cell % UNITS;
            active[i] = t < length[i];
            cut[i] = active[i] && crosses(reset, t, b, length[i], B, reverse);
#pragma unroll
            for (int k = 0; k < 4; k++) x[i][k] = k < GATES && active[i] ? load_early(from + k * H) : 0.0f;
            if (mine[i] && cell % 8 == 0 && step + AHEAD < group.steps) {
#pragma unroll
                for (int k = 0; k < GATES; k++) prefetch_l2(from + (reverse ? -AHEAD : AHEAD) * (long long)B * GATES * H + k * H);
            }
        }

#if ALONE
        __syncthreads();
#endif
        float4 *const sums = partial + (step % 2 * SHARES + share) * ROWS * LINE;
#pragma unroll
        for (int m = 0; m < M_TILES; m++) {
            const int row = m * 16 + g;
            const uint4 *const from = (const uint4 *)(slot + (long long)(first_row + row) * SPLIT * across) + first_k / 8;
            const int below = 8 * SPLIT * (across / 4); // from a row to the one 8 further down
#if LOOK_FIRST && !ALONE // all loads at once, and again for each that was too early, would be in the way of those that write
            if (row < group.count && first_k + 32 * (CHUNKS - 1) < line)
                while (!written(load_relaxed(from + 4 * (CHUNKS - 1)))) poll_again();
            __syncwarp();
#endif
            float d[TURNED ? CEIL_DIV(TILES, 2) : TILES][4] = {};
#pragma unroll
            for (int first = 0; first < CHUNKS; first += BATCH) {
                uint4 a[2][BATCH][SPLIT];
#pragma unroll
                for (int r = 0; r < 2; r++)
#pragma unroll
                    for (int k = 0; k < BATCH && first + k < CHUNKS; k++)
#pragma unroll
                        for (int p = 0; p < SPLIT; p++) {
                            const bool real = row + 8 * r < group.count && (r == 0 || ROWS > 8) && first_k + 32 * (first + k) < line;
                            a[r][k][p] = real ? load_h(from + r * below + p * (across / 4) + 4 * (first + k)) : make_uint4(0, 0, 0, 0);
                        }
#if !ALONE
#pragma unroll
                for (int r = 0; r < 2; r++)
#pragma unroll
                    for (int k = 0; k < BATCH && first + k < CHUNKS; k++)
#pragma unroll
                        for (int p = 0; p < SPLIT; p++)
                            while (!written(a[r][k][p])) {
                                poll_again();
                                a[r][k][p] = load_h(from + r * below + p * (across / 4) + 4 * (first + k));
                            }
                __syncwarp();
#endif
#pragma unroll
                for (int k = 0; k < BATCH && first + k < CHUNKS; k++)
#if TURNED
#pragma unroll
                    for (int j = 0; j < TILES; j += 2) {
                        const unsigned none[SPLIT][4] = {};
                        multiply_turned_split(d[j / 2], a[0][k], w[first + k][j], j + 1 < TILES ? w[first + k][j + 1] : none);
                    }
#else
#pragma unroll
                    for (int j = 0; j < TILES; j++) multiply_split(d[j], a[0][k], a[1][k], w[first + k][j]);
#endif
            }
#if TURNED
#pragma unroll
            for (int r = 0; r < 2; r++) {
                if (2 * q + r >= ROWS) break;
#pragma unroll
                for (int j = 0; j < TILES; j += GATES) {
                    float v[4] = {};
#pragma unroll
                    for (int k = 0; k < GATES; k++) v[k] = d[(j + k) / 2][(j + k) % 2 * 2 + r];
                    sums[(2 * q + r) * LINE + (side * TILES + j) / GATES * 8 + g] = make_float4(v[0], v[1], v[2], v[3]);
                }
            }
#else
#pragma unroll
            for (int r = 0; r < 2; r++) {
                if (row + 8 * r >= ROWS) break;
                float4 *const to = sums + (row + 8 * r) * LINE;
#if CELL
#pragma unroll
                for (int j = 0; j < TILES / 3; j++) {
                    const int unit = side * (TILES * 8 / 3) + 8 * j + 2 * q;
                    to[unit] = make_float4(d[3 * j][2 * r], d[3 * j][2 * r + 1], d[3 * j + 1][2 * r], 0.0f);
                    to[unit + 1] = make_float4(d[3 * j + 1][2 * r + 1], d[3 * j + 2][2 * r], d[3 * j + 2][2 * r + 1], 0.0f);
                }
#else
#pragma unroll
                for (int j = 0; j < TILES / 2; j++)
                    to[side * TILES * 2 + 4 * j + q] = make_float4(d[2 * j][2 * r], d[2 * j][2 * r + 1], d[2 * j + 1][2 * r], d[2 * j + 1][2 * r + 1]);
#endif
            }
#endif
        }
        __syncthreads(); // one per step: the sums of the next one are written elsewhere

#pragma unroll
        for (int i = 0; i < CELLS; i++) {
            if (!mine[i]) continue;
            const int cell = threadIdx.x + i * THREADS, row = cell / UNITS, unit = first_unit + cell % UNITS;
            float4 sum = make_float4(0.0f, 0.0f, 0.0f, 0.0f);
#pragma unroll
            for (int p = 0; p < SHARES; p++) { // in order
                const float4 v = partial[((step % 2 * SHARES + p) * ROWS + row) * LINE + cell % UNITS];
                sum.x += v.x, sum.y += v.y, sum.z += v.z, sum.w += v.w;
            }
            const float unscale = power_of_two(-row_shift[row]) * w_down;
            if (cut[i]) sum = make_float4(0.0f, 0.0f, 0.0f, 0.0f);
            const float before = cut[i] ? 0.0f : CELL ? h[i] : c[i];
            float value[4], h_new;
            value[0] = sigmoid(x[i][0] + bias[i][0] + sum.x * unscale);
            value[1] = sigmoid(x[i][1] + bias[i][1] + sum.y * unscale);
#if CELL // r, z, n and what r multiplies in n
            value[3] = sum.z * unscale + bias[i][3];
            value[2] = hyperbolic(x[i][2] + bias[i][2] + value[0] * value[3]);
            h_new = value[1] * before + (1.0f - value[1]) * value[2];
#else // i, f, g, o
            value[2] = hyperbolic(x[i][2] + bias[i][2] + sum.z * unscale);
            value[3] = sigmoid(x[i][3] + bias[i][3] + sum.w * unscale);
            const float c_new = value[1] * before + value[0] * value[2];
            h_new = value[3] * hyperbolic(c_new);
            c[i] = active[i] ? c_new : c[i];
#endif
            h[i] = active[i] ? h_new : h[i];
            const long long at = ((long long)t * B + group.first + row) * H + unit;
            y[at] = active[i] ? h_new : 0.0f;
#if TRAINING
            if (active[i]) {
#pragma unroll
                for (int k = 0; k < 4; k++) gates[(at - unit) * 4 + (long long)k * H + unit] = value[k];
#if !CELL
                cells[at] = c[i];
#endif
            }
#endif
        }
    }

#pragma unroll
    for (int i = 0; i < CELLS; i++) {
        if (!mine[i]) continue;
        const int cell = threadIdx.x + i * THREADS;
        const long long at = (long long)(group.first + cell / UNITS) * H + first_unit + cell % UNITS;
        h_n[at] = h[i];
        if (c_n) c_n[at] = c[i];
        for (int t = group.steps; t < T; t++) y[(long long)t * B * H + at] = 0.0f;
    }
}

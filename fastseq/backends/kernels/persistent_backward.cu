// LSTM and GRU backwards through all steps in one launch: dgates_t from dh_t, and dh_{t-1} = dgates_t W_hh, for all t.
//
// W_hh is cut both ways: block (i, j) of a group of rows has the gates of UNITS units in its rows (i) and COLUMNS units in its columns (j),
// in registers. All blocks (i, .) form the same dgates of their units, from dh = dy + the sum of partial dh over all i; block (i, j)
// multiplies them by its part of W_hh and hands on its partial dh. So one exchange through L2 per step is enough, and nothing that is
// exchanged grows with the number of gates. Bound by that exchange: a block reads ROWS H 4 bytes of partial dh, ROWS UNITS 28 of what
// forward kept, and writes ROWS COLUMNS 4, at some 43 bytes/ns, behind one trip through L2 (about 0.7 us).
// There is no barrier: the last bit of a partial sum tells in which round through a ring of RING steps it was written. No block is more
// than two steps ahead of another, since what it needs comes, over two steps, from all of them; so nothing unread is overwritten.
//
// Macros beside persistent.cuh's: ROWS, UNITS, WARPS, TILES tiles of 8 columns for each warp, and AT_ONCE, the partial dh loaded together; ALONE: one block
// has all of W_hh, and dh stays in its shared memory.
#include "persistent.cuh"

#define THREADS (WARPS * 32)
#define COLUMNS (WARPS * TILES * 8)
#define K (GATES * UNITS)
#define CHUNKS (K / 32)
#define M_TILES CEIL_DIV(ROWS, 16)
#define LANES (UNITS / 4) // of a row: each has 4 units
#define CELLS CEIL_DIV(ROWS * LANES, THREADS)
#define LINE (K + (64 + 128 - K * 2 % 128) % 128 / 2) // of A, in float16: 8 lanes that read 16 bytes of two rows then meet different banks
#define TURNED (ROWS <= 8) // W_hh is the left operand, of 16 columns, and dgates the right one, of 8 rows
#define NEAR (COLUMNS + 4) // of dh in shared memory
#define RING 4
#define AHEAD 3 // steps from a prefetch to its load

__device__ __forceinline__ void store_units(float *p, float4 v, int left, bool aligned) {
    if (aligned) {
        if (left > 0) *(float4 *)p = v;
        return;
    }
    if (left > 0) p[0] = v.x;
    if (left > 1) p[1] = v.y;
    if (left > 2) p[2] = v.z;
    if (left > 3) p[3] = v.w;
}

// One cell's gradients: of its gates' sums (da), of c, and of h besides the product (dh).
__device__ __forceinline__ void cell_backward(const float *v, float c, float before, float *dh, float *dc, float *da, float *hidden) {
#if CELL // v = r, z, n, q: h = z before + (1 - z) n, n = tanh(p + r q)
    const float dn = *dh * (1.0f - v[1]) * (1.0f - v[2] * v[2]);
    da[1] = *dh * (before - v[2]) * v[1] * (1.0f - v[1]);
    da[0] = dn * v[3] * v[0] * (1.0f - v[0]);
    da[2] = dn;
    *hidden = dn * v[0];
    *dh *= v[1];
#else // v = i, f, g, o: h = o tanh(c), c = f before + i g
    const float u = hyperbolic(c), d = *dc + *dh * v[3] * (1.0f - u * u);
    da[3] = *dh * u * v[3] * (1.0f - v[3]);
    da[0] = d * v[2] * v[0] * (1.0f - v[0]);
    da[1] = d * before * v[1] * (1.0f - v[1]);
    da[2] = d * v[0] * (1.0f - v[2] * v[2]);
    *dc = d * v[1];
    *dh = 0.0f;
#endif
}

__device__ __forceinline__ bool of_round(uint4 v, unsigned bit) { return ((v.x ^ bit) | (v.y ^ bit) | (v.z ^ bit) | (v.w ^ bit)) % 2 == 0; }
__device__ __forceinline__ unsigned marked(float x, unsigned bit) { return (__float_as_uint(x) & ~1u) | bit; }
__device__ __forceinline__ float unmarked(unsigned x) { return __uint_as_float(x & ~1u); }

// What a thread's cell needs of one step beside dh. It is on its way while the products go theirs through L2; earlier, its loads would
// stand before those of the products.
struct Kept {
    float4 v[4], c, before, dy; // the gates, c_t, c_{t-1} (GRU: h_{t-1}), dy_t
    bool active, cut;
};

struct Sources {
    const float *gates, *cells, *y, *h_0, *c_0, *dy;
    const bool *reset;
    int B, H, steps, reverse;
};

__device__ __forceinline__ Kept load_kept(const Sources &s, int step, int b, int unit, int left, int length) {
    Kept kept;
    const int t = s.reverse ? step : s.steps - 1 - step;
    const bool aligned = s.H % 4 == 0, first = s.reverse ? t == length - 1 : t == 0;
    kept.active = step < s.steps && t < length && left > 0;
    kept.cut = kept.active && crosses(s.reset, t, b, length, s.B, s.reverse);
    const int some = kept.active ? left : 0;
    const long long at = (long long)b * s.H + unit, now = (long long)t * s.B * s.H + at, back = (s.reverse ? 1 : -1) * (long long)s.B * s.H;
    const float *state = first ? (CELL ? s.h_0 : s.c_0) : CELL ? s.y : s.cells, *v = s.gates + ((long long)t * s.B + b) * 4 * s.H + unit;
#pragma unroll
    for (int k = 0; k < 4; k++) kept.v[k] = load_units(v + (long long)k * s.H, some, aligned);
    kept.c = load_units(s.cells + now, CELL ? 0 : some, aligned);
    kept.before = load_units(state + (first ? at : now + back), state && !kept.cut ? some : 0, aligned);
    kept.dy = load_units(s.dy + now, s.dy ? some : 0, aligned);
    if (kept.active && unit % 8 == 0 && step + AHEAD + 1 < s.steps) {
#pragma unroll
        for (int k = 0; k < 4; k++) prefetch_l2(v + 4 * AHEAD * back + (long long)k * s.H);
        prefetch_l2((CELL ? s.y : s.cells) + now + (AHEAD + 1) * back);
        if (s.dy) prefetch_l2(s.dy + now + AHEAD * back);
    }
    return kept;
}

template <class T> __device__ __forceinline__ void store_part(T *p, T v) {
    if (ALONE) *p = v;
    else store_relaxed(p, v);
}

extern "C" __global__ void __launch_bounds__(THREADS, 1) persistent_backward(
    const float *gates, const float *cells, const float *y, const float *h_0, const float *c_0, const float *w_hh, const long long *lengths,
    const bool *reset, const float *dy, const float *dh_n, const float *dc_n, unsigned *partial, float *dgates, float *dgates_h, float *dh_0,
    float *dc_0, int T, int B, int H, int unit_blocks, int column_blocks, int reverse) {
    FSQ_SHARED(bytes);
    unsigned short *a = (unsigned short *)bytes;                              // [2][SPLIT][16 M_TILES][LINE] dgates, by powers of two
    float *row_scale = (float *)(a + 2 * SPLIT * 16 * M_TILES * LINE);        // [2][16 M_TILES] what takes them off
#if ALONE
    unsigned *const near = (unsigned *)(row_scale + 2 * 16 * M_TILES);        // [ROWS][NEAR] dh
#endif
    const int block = blockIdx.x % (unit_blocks * column_blocks);
    const Group group = group_of(blockIdx.x / (unit_blocks * column_blocks), ROWS, T, B, lengths);
    const int i_block = block / column_blocks, j_block = block % column_blocks, first_unit = i_block * UNITS;
    const int g = LANE / 4, q = LANE % 4, line = column_blocks * COLUMNS, first_column = j_block * COLUMNS + WARP * TILES * 8;
    const bool aligned = H % 4 == 0;

    // W_hh of this warp, as the products take it. A lane's sums are neighbours: of two tiles, or turned of all.
    const int w_shift = shift_for(largest_weight(w_hh, first_unit, UNITS, j_block * COLUMNS, COLUMNS, H, (unsigned *)row_scale));
    const float w_up = power_of_two(w_shift), w_down = power_of_two(-w_shift);
    unsigned w[CHUNKS][TILES][SPLIT][4];
#pragma unroll
    for (int k = 0; k < CHUNKS; k++) {
#pragma unroll
        for (int j = 0; j < TILES; j++) {
            const int n = first_column + (TURNED ? g * TILES + j : j / 2 * 16 + g / 2 * 4 + j % 2 * 2 + g % 2);
            float x[8];
#pragma unroll
            for (int i = 0; i < 8; i++) {
                const int at = 32 * k + 8 * q + i, unit = first_unit + at % UNITS;
                x[i] = n < H && unit < H ? w_up * w_hh[(at / UNITS * H + unit) * H + n] : 0.0f;
            }
            split_8(x, w[k][j]);
            if (j % 4 == 3 || j == TILES - 1) __syncwarp(); // the loads of 4 tiles are on their way together, but no more
        }
    }
    for (int i = threadIdx.x; i < 2 * SPLIT * 16 * M_TILES * LINE; i += THREADS) a[i] = 0; // rows that there are not
    for (int i = threadIdx.x; i < 2 * 16 * M_TILES; i += THREADS) row_scale[i] = 0.0f;

    // This thread's cells, 4 units each. dh and dc of the step before, without what the product brings.
    float dh[CELLS][4], dc[CELLS][4];
    int length[CELLS], b[CELLS], unit[CELLS], left[CELLS];
    bool crossing[CELLS], writes[CELLS];
#pragma unroll
    for (int i = 0; i < CELLS; i++) {
        const int cell = threadIdx.x + i * THREADS, row = cell / LANES;
        unit[i] = first_unit + cell % LANES * 4;
        const bool here = row < ROWS && row < group.count && unit[i] < H;
        b[i] = group.first + row;
        left[i] = here ? H - unit[i] : 0;
        const long long at = (long long)b[i] * H + unit[i];
        length[i] = !here ? 0 : lengths ? (int)lengths[b[i]] : T;
        writes[i] = here && row % column_blocks == j_block;
        crossing[i] = false;
        const float4 h_last = dh_n ? load_units(dh_n + at, left[i], aligned) : make_float4(0.0f, 0.0f, 0.0f, 0.0f);
        const float4 c_last = dc_n ? load_units(dc_n + at, left[i], aligned) : make_float4(0.0f, 0.0f, 0.0f, 0.0f);
        dh[i][0] = h_last.x, dh[i][1] = h_last.y, dh[i][2] = h_last.z, dh[i][3] = h_last.w;
        dc[i][0] = c_last.x, dc[i][1] = c_last.y, dc[i][2] = c_last.z, dc[i][3] = c_last.w;
        if (writes[i])
            for (int t = group.steps; t < T; t++)
                for (int k = 0; k < GATES; k++) {
                    const long long to = ((long long)t * B + b[i]) * GATES * H + k * H + unit[i];
                    store_units(dgates + to, make_float4(0.0f, 0.0f, 0.0f, 0.0f), left[i], aligned);
                    if (CELL) store_units(dgates_h + to, make_float4(0.0f, 0.0f, 0.0f, 0.0f), left[i], aligned);
                }
    }
    __syncthreads();

    const Sources sources = {gates, cells, y, h_0, c_0, dy, reset, B, H, group.steps, reverse};
    Kept kept[CELLS];
#pragma unroll
    for (int i = 0; i < CELLS; i++) kept[i] = load_kept(sources, 0, b[i], unit[i], left[i], length[i]);
    for (int step = 0;; step++) { // the last one forwards comes first; one more gathers dh_0
        const int t = reverse ? step : group.steps - 1 - step;
        if (step) {
            const unsigned round = (step - 1) / RING % 2 ^ 1;
#pragma unroll
            for (int i = 0; i < CELLS; i++) {
                if (!left[i]) continue;
#if ALONE
                const float4 sum = *(const float4 *)(near + (threadIdx.x + i * THREADS) / LANES * NEAR + unit[i]);
#else
                const unsigned *from = partial + ((long long)((step - 1) % RING) * unit_blocks * B + b[i]) * line + unit[i];
                const long long next = (long long)B * line;
                float4 sum = make_float4(0.0f, 0.0f, 0.0f, 0.0f);
                for (int k = 0; k < unit_blocks; k += AT_ONCE) {
                    uint4 part[AT_ONCE];
#pragma unroll
                    for (int j = 0; j < AT_ONCE; j++) part[j] = k + j < unit_blocks ? load_relaxed((const uint4 *)(from + (k + j) * next)) : make_uint4(round, round, round, round);
#pragma unroll
                    for (int j = 0; j < AT_ONCE; j++) {
                        while (!of_round(part[j], round)) {
                            poll_again();
                            part[j] = load_relaxed((const uint4 *)(from + (k + j) * next));
                        }
                        sum.x += unmarked(part[j].x), sum.y += unmarked(part[j].y), sum.z += unmarked(part[j].z), sum.w += unmarked(part[j].w);
                    }
                }
#endif
                if (crossing[i]) dh[i][0] += sum.x, dh[i][1] += sum.y, dh[i][2] += sum.z, dh[i][3] += sum.w;
            }
        }
        if (step == group.steps) break;

        unsigned short *const line_0 = a + step % 2 * SPLIT * 16 * M_TILES * LINE;
#pragma unroll
        for (int i = 0; i < CELLS; i++) {
            const int cell = threadIdx.x + i * THREADS, row = cell / LANES, column = cell % LANES * 4;
            float da[4][4] = {}, hidden[4] = {};
            crossing[i] = kept[i].active && !kept[i].cut;
            if (kept[i].active) {
                const float *e = (const float *)&kept[i].v[0], *c_e = (const float *)&kept[i].c, *before_e = (const float *)&kept[i].before, *dy_e = (const float *)&kept[i].dy;
#pragma unroll
                for (int u = 0; u < 4; u++) {
                    const float value[4] = {e[u], e[4 + u], e[8 + u], e[12 + u]};
                    float grad[4];
                    dh[i][u] += dy_e[u];
                    cell_backward(value, c_e[u], before_e[u], &dh[i][u], &dc[i][u], grad, &hidden[u]);
#pragma unroll
                    for (int k = 0; k < GATES; k++) da[k][u] = grad[k];
                    if (kept[i].cut) dh[i][u] = dc[i][u] = 0.0f;
                }
            }
            // the row's dgates as float16
            unsigned most = 0;
#pragma unroll
            for (int k = 0; k < GATES; k++)
#pragma unroll
                for (int u = 0; u < 4; u++) {
                    const unsigned bits = magnitude(CELL && k == 2 ? hidden[u] : da[k][u]);
                    most = bits > most ? bits : most;
                }
            const int shift = shift_for(largest_of_warp(most, LANES));
            const float scale = power_of_two(shift);
            if (row < ROWS) {
                if (cell % LANES == 0) row_scale[step % 2 * 16 * M_TILES + row] = power_of_two(-shift);
#pragma unroll
                for (int k = 0; k < GATES; k++) {
                    const float *from = CELL && k == 2 ? hidden : da[k];
                    unsigned low[SPLIT], high[SPLIT];
                    split(scale * from[0], scale * from[1], low);
                    split(scale * from[2], scale * from[3], high);
#pragma unroll
                    for (int p = 0; p < SPLIT; p++) *(uint2 *)(line_0 + (p * 16 * M_TILES + row) * LINE + k * UNITS + column) = make_uint2(low[p], high[p]);
                }
            }
            if (writes[i]) {
#pragma unroll
                for (int k = 0; k < GATES; k++) {
                    const long long to = ((long long)t * B + b[i]) * GATES * H + (long long)k * H + unit[i];
                    const float4 sum = make_float4(da[k][0], da[k][1], da[k][2], da[k][3]);
                    store_units(dgates + to, sum, left[i], aligned);
                    if (CELL) store_units(dgates_h + to, k == 2 ? make_float4(hidden[0], hidden[1], hidden[2], hidden[3]) : sum, left[i], aligned);
                }
            }
        }
        __syncthreads(); // one per step: the next one's dgates are written elsewhere

#if ALONE
        unsigned *const to = near + WARP * TILES * 8;
        const int across = NEAR;
#else
        const unsigned round = step / RING % 2 ^ 1;
        unsigned *const to = partial + (((long long)(step % RING) * unit_blocks + i_block) * B + group.first) * line + first_column;
        const int across = line;
#endif
#pragma unroll
        for (int m = 0; m < M_TILES; m++) {
            float d[TURNED ? TILES / 2 : TILES][4] = {};
#pragma unroll
            for (int k = 0; k < CHUNKS; k++) {
                uint4 rows[2][SPLIT];
#pragma unroll
                for (int p = 0; p < SPLIT; p++) {
                    const unsigned short *from = line_0 + (p * 16 * M_TILES + m * 16 + g) * LINE + k * 32 + 8 * q;
                    rows[0][p] = *(const uint4 *)from;
                    if (!TURNED) rows[1][p] = *(const uint4 *)(from + 8 * LINE);
                }
#if TURNED
#pragma unroll
                for (int j = 0; j < TILES; j += 2) multiply_turned_split(d[j / 2], rows[0], w[k][j], w[k][j + 1]);
#else
#pragma unroll
                for (int j = 0; j < TILES; j++) multiply_split(d[j], rows[0], rows[1], w[k][j]);
#endif
            }
#pragma unroll
            for (int r = 0; r < 2; r++) {
                const int row = TURNED ? 2 * q + r : m * 16 + g + 8 * r;
                if (row >= group.count || row >= ROWS) break;
                const float scale = row_scale[step % 2 * 16 * M_TILES + row] * w_down;
#pragma unroll
                for (int j = 0; j < TILES; j += 2) {
                    unsigned v[4];
#pragma unroll
                    for (int i = 0; i < 4; i++) {
                        const float sum = scale * (TURNED ? d[(j + i) / 2 % (TILES / 2)][i % 2 * 2 + r] : d[j + i / 2][2 * r + i % 2]);
#if ALONE
                        v[i] = __float_as_uint(sum);
#else
                        v[i] = marked(sum, round);
#endif
                    }
                    unsigned *const at = to + (long long)row * across + (TURNED ? g * TILES + j : 8 * j + 4 * q);
                    if (!TURNED || TILES > 2) {
                        if (!TURNED || j % 4 == 0) store_part((uint4 *)at, make_uint4(v[0], v[1], v[2], v[3]));
                    } else
                        store_part((uint2 *)at, make_uint2(v[0], v[1]));
                }
            }
        }
#pragma unroll
        for (int i = 0; i < CELLS; i++) kept[i] = load_kept(sources, step + 1, b[i], unit[i], left[i], length[i]);
#if ALONE
        __syncthreads();
#endif
    }

#pragma unroll
    for (int i = 0; i < CELLS; i++)
        if (writes[i]) {
            const long long at = (long long)b[i] * H + unit[i];
            store_units(dh_0 + at, make_float4(dh[i][0], dh[i][1], dh[i][2], dh[i][3]), left[i], aligned);
            if (dc_0) store_units(dc_0 + at, make_float4(dc[i][0], dc[i][1], dc[i][2], dc[i][3]), left[i], aligned);
        }
}

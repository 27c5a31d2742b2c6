// Around the time loop of a recurrent layer: the rows' steps, the first state, masks, the projection's step, outputs and first gradients.
//
// All bound by bytes, which they move once.
#include "recurrent.cuh"

// Which rows have which steps, and where a boundary lies before one: reset[t] is between t - 1 and t, and a row's last step, where the
// reverse direction starts, comes from no other. The steps are those from `start` on of a sequence of `whole`.
extern "C" __global__ void flags(byte *flags, const long long *lengths, const byte *reset, int D, int T, int B, int first, long long start,
                                 long long whole) {
    long long i = (long long)blockIdx.x * blockDim.x + threadIdx.x, n = (long long)T * B;
    if (i >= D * n) return;
    int reverse = (int)(i / n) + first, b = (int)(i % B);
    long long t = start + i % n / B, length = lengths ? lengths[b] : whole, from = t + reverse;
    bool active = t < length, cut = active && reset && from < length && from < whole && reset[from * B + b];
    flags[i] = active | cut << 1;
}

// The keys of zoneout's masks, the mask of dropout, the state before the first step, and what its products see of it.
extern "C" __global__ void __launch_bounds__(128)
begin(const Step a, const REAL *h_0, const REAL *c_0, REAL *drop, word64 drop_0, word64 drop_1, word64 below, REAL factor, word64 h_key_0,
      word64 c_key_0, word64 h_key_1, word64 c_key_1, word64 start) {
    int row, u = unit_of(a.P > a.H ? a.P : a.H, &row);
    if (blockIdx.x == 0 && threadIdx.x == 0 && a.keys) {
        a.keys[0] = h_key_0, a.keys[1] = c_key_0;
        if (a.D == 2) a.keys[2] = h_key_1, a.keys[3] = c_key_1;
        a.keys[2 * a.D] = start;
    }
    const Place p = place_of(a, row, 0);
    if (u < a.H && a.c) a.c[c_before(a, p) * a.H + u] = c_0 ? c_0[(long long)row * a.H + u] : 0;
    if (u >= a.P) return;
    long long at = (long long)row * a.P + u;
    REAL h = h_0 ? h_0[at] : 0;
    if (drop) drop[at] = drawn(p.d ? drop_1 : drop_0, below, u, 0, p.b) ? 0 : factor;
    a.h[h_before(a, p) * a.P + u] = h;
    put_operand(a, p, u, h);
}

// What the products see of the state, where a stream goes from one step to the next.
extern "C" __global__ void __launch_bounds__(128) operand(const Step a, int s) {
    int row, u = unit_of(a.P, &row);
    if (u >= a.P) return;
    const Place p = place_of(a, row, s);
    put_operand(a, p, u, a.h[h_before(a, p) * a.P + u]);
}

// The states after each step, zero where a row has no step: y (T, B, directions, P) and cells (D, T, B, H), where they are wanted; and the
// last ones, (D, B, P) and (D, B, H). Without y and cells there are rows for the last step alone.
extern "C" __global__ void __launch_bounds__(128) emit(const Step a, REAL *y, REAL *h_n, REAL *cells, REAL *c_n) {
    int row, u = unit_of(c_n && a.H > a.P ? a.H : a.P, &row), rows = a.D * a.B, s = a.T - 1 - row / rows;
    const Place p = place_of(a, row % rows, s);
    bool last = s == a.T - 1, active = p.flag & ACTIVE;
    if (u < a.P && (y || last)) {
        REAL h = a.h[h_after(a, p) * a.P + u];
        if (y) y[(((long long)p.t * a.B + p.b) * a.directions + p.d + a.first) * a.P + u] = active ? h : 0;
        if (last) h_n[(long long)(row % rows) * a.P + u] = h;
    }
    if (u < a.H && c_n && (cells || last)) {
        REAL c = a.c[c_after(a, p) * a.H + u];
        if (cells) cells[p.row * a.H + u] = active ? c : 0;
        if (last) c_n[(long long)(row % rows) * a.H + u] = c;
    }
}

// The projection's step: h~ = m W_hr^T lies in q.
extern "C" __global__ void __launch_bounds__(128) project(const Step a, const REAL *projected, int s) {
    int row, u = unit_of(a.P, &row);
    if (u >= a.P) return;
    const Place p = place_of(a, row, s);
    if (p.flag & ACTIVE) put_h(a, p, s, u, projected[(long long)row * a.P + u], h_of(a, p, u));
    else carry_h(a, p, s, u);
}

// dL/dh~ in front of the projection.
extern "C" __global__ void __launch_bounds__(128) project_back(const Step a, int s) {
    int row, u = unit_of(a.P, &row);
    if (u >= a.P) return;
    const Place p = place_of(a, row, s);
    REAL dh = 0;
    if (p.flag & ACTIVE) dh = upstream(a, p, s, u);
    else pass_h(a, p, s, u);
    a.dht[p.row * a.P + u] = dh;
}

// dL/d(the last states), zero where none are given.
extern "C" __global__ void __launch_bounds__(128) begin_back(const Step a, const REAL *dh_n, const REAL *dc_n) {
    int row, u = unit_of(a.P > a.H ? a.P : a.H, &row);
    if (u < a.P) a.direct[(long long)row * a.P + u] = dh_n ? dh_n[(long long)row * a.P + u] : 0;
    if (u < a.H && a.dc) a.dc[(long long)row * a.H + u] = dc_n ? dc_n[(long long)row * a.H + u] : 0;
}

// dL/dh_0 and dL/dc_0.
extern "C" __global__ void __launch_bounds__(128) end_back(const Step a, REAL *dh_0, REAL *dc_0) {
    int row, u = unit_of(a.P > a.H ? a.P : a.H, &row);
    const Place p = place_of(a, row, 0);
    if (u < a.P) dh_0[(long long)row * a.P + u] = crossing_h(a, p, -1, u);
    if (u < a.H && dc_0) dc_0[(long long)row * a.H + u] = crossing_c(a, p, -1, u);
}

// x (T, B, N) with zeros where a row has no step: what stands there may be no number. The steps are those from `start` on.
extern "C" __global__ void __launch_bounds__(128)
masked(REAL *out, const REAL *x, const long long *lengths, int B, int N, long long start) {
    int row, u = unit_of(N, &row);
    if (u >= N) return;
    out[(long long)row * N + u] = start + row / B < lengths[row % B] ? x[(long long)row * N + u] : 0;
}

// What each step's products saw of the state, out (T, B, N), from the states y after the steps of one direction and the first one: zero
// behind a reset, and where a row has no step.
extern "C" __global__ void __launch_bounds__(128)
states_before(REAL *out, const REAL *y, const REAL *h_0, const long long *lengths, const byte *reset, int T, int B, int N, int reverse) {
    int row, u = unit_of(N, &row);
    if (u >= N) return;
    int t = row / B, b = row % B, boundary = t + reverse;
    long long length = lengths ? lengths[b] : T;
    bool first = reverse ? t + 1 >= length : t == 0, cut = reset && boundary < length && reset[(long long)boundary * B + b];
    REAL h = 0;
    if (t < length && !cut) h = !first ? y[((long long)row + (reverse ? B : -B)) * N + u] : h_0 ? h_0[(long long)b * N + u] : 0;
    out[(long long)row * N + u] = h;
}

// Weights to where the kernels of the loop find them.
struct Gather {
    const REAL *from[9];
    long long count[9], to[9];
};
extern "C" __global__ void gather(const Gather g, REAL *out) {
    int k = blockIdx.y;
    for (long long i = (long long)blockIdx.x * blockDim.x + threadIdx.x; i < g.count[k]; i += (long long)gridDim.x * blockDim.x)
        out[g.to[k] + i] = g.from[k][i];
}

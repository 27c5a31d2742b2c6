// What the kernels of the recurrent layers share: the arrays of a layer, where a thread stands in them, masks, and the ends of a step.
//
// A launch is one step of D directions side by side. T steps, B rows, G sums for each of H units, h of P numbers. Step s is the s-th that is
// computed: time s forwards, T - 1 - s in the reverse direction. Arrays lie in the order of time. The state before step t and after it are
// neighbours in (D, T + 1, B, P): t and t + 1 forwards, t + 1 and t in reverse. Where nothing is kept for later (`training` and the like
// are 0) there is one place for all steps.
#include "device.cuh"
#include "philox.cuh"
#pragma once

#define RNN_TANH 0
#define RNN_RELU 1
#define LSTM 2
#define GRU 3
#define GRU_BEFORE 4
#define MUT1 5
#define MUT2 6
#define MUT3 7
#define GATES (CELL <= RNN_RELU ? 1 : CELL == LSTM ? 4 : 3)

#define ACTIVE 1  // the row has this step
#define CUT 2     // a boundary lies before it: what crosses is zero

typedef unsigned char byte;
typedef unsigned long long word64;

struct Step {
    REAL *q;         // (D, B, G H): h's products; kept with layer norm
    REAL *gates;     // (D, T, B, G H): x's products, in whose place the gates are written
    REAL *extra;     // (D, T, B, H): GRU: h's product of n; reset before: r k, which U_n multiplies; with a projection: what it multiplies
    REAL *inner;     // (D, T, B, H): MUT1: tanh(W_n x); MUT3: tanh(k)
    REAL *h;         // (D, T + 1, B, P)
    REAL *k;         // (D, T, B, P): what the products see of h, where it is not h itself
    REAL *c;         // (D, T + 1, B, H)
    REAL *stats;     // (D, T, B, 4): layer norm's mean and 1 / std of q, and of c~
    REAL *dy;        // (T, B, directions P)
    REAL *dcells;    // (D, T, B, H)
    REAL *dstates;   // (D, T, B, P)
    REAL *direct;    // (D, B, P): the part of dh that goes past the products; dh_n in the beginning
    REAL *dc;        // (D, B, H)
    REAL *dh;        // (D, B, P): the part that comes through them
    REAL *dm;        // (D, B, H): through the projection; reset before: of r k; MUT3: of tanh(k), in its second half
    REAL *dp;        // (D, T, B, G H): of x's sums
    REAL *dq;        // the same of h's sums
    REAL *dr;        // the same of the products below layer norm
    REAL *dht;       // (D, T, B, P): of h~
    REAL *dnc;       // (D, T, B, H): of layer norm's result for c~
    REAL *b_ih;      // weights: those of direction d lie d `weights` further
    REAL *b_hh;
    REAL *w_ch;
    REAL *ln_hh_weight;
    REAL *ln_hh_bias;
    REAL *ln_c_weight;
    REAL *ln_c_bias;
    byte *flags;     // (D, T, B): ACTIVE and CUT; without it all is active and nothing cut
    REAL *drop;      // (D, B, P): recurrent dropout's mask
    word64 *keys;    // (D, 2) of zoneout's masks, of h and of c; then the first step's place in the whole sequence
    word64 below_h;  // zoneout keeps the old state where the random word is below
    word64 below_c;
    long long weights;
    REAL zone_h;     // zoneout's probabilities
    REAL zone_c;
    int T, B, H, P, D;
    int first;       // the direction of d = 0
    int directions;  // of the layer: D, or 2 where they run one after the other
    int draw;        // masks; else their expectation
    int training, keep_h, keep_c;
};

// ---------------------------------------------------------------- functions

__device__ __forceinline__ float exp_of(float x) { return expf(x); }
__device__ __forceinline__ double exp_of(double x) { return exp(x); }
__device__ __forceinline__ float tanh_of(float x) { return tanhf(x); }
__device__ __forceinline__ double tanh_of(double x) { return tanh(x); }
__device__ __forceinline__ float sqrt_of(float x) { return sqrtf(x); }
__device__ __forceinline__ double sqrt_of(double x) { return sqrt(x); }
// a b + c in one rounding, wherever it stands: what is computed again has the same bits.
__device__ __forceinline__ float fused(float a, float b, float c) { return fmaf(a, b, c); }
__device__ __forceinline__ double fused(double a, double b, double c) { return fma(a, b, c); }
__device__ __forceinline__ REAL sigmoid(REAL x) { return 1 / (1 + exp_of(-x)); }

// ---------------------------------------------------------------- where a thread stands

struct Place {
    int d, b, t;     // the direction, the row, the time
    long long row;   // of arrays (D, T, B)
    byte flag;
    bool reverse;
};

// Of row `index` of the D B that a launch has.
__device__ __forceinline__ Place place_of(const Step &a, int index, int s) {
    Place p;
    p.d = index / a.B, p.b = index - p.d * a.B;
    p.reverse = p.d + a.first;
    p.t = p.reverse ? a.T - 1 - s : s;
    p.row = ((long long)p.d * a.T + p.t) * a.B + p.b;
    p.flag = a.flags ? a.flags[p.row] : ACTIVE;
    return p;
}

// A block does a piece of a row: its row, and this thread's unit of `width`, past the end where there is none.
__device__ __forceinline__ int unit_of(int width, int *row) {
    unsigned pieces = (width + blockDim.x - 1) / blockDim.x;
    *row = blockIdx.x / pieces;
    return (blockIdx.x - *row * pieces) * blockDim.x + threadIdx.x;
}

// The row of a kept array (D, T, B), or of the one place (D, B).
__device__ __forceinline__ long long kept(const Step &a, const Place &p) { return a.training ? p.row : (long long)p.d * a.B + p.b; }
__device__ __forceinline__ long long state_row(const Step &a, const Place &p, int keep, int t) {
    return (keep ? (long long)p.d * (a.T + 1) + t : p.d) * a.B + p.b;
}
__device__ __forceinline__ long long h_before(const Step &a, const Place &p) { return state_row(a, p, a.keep_h, p.t + p.reverse); }
__device__ __forceinline__ long long h_after(const Step &a, const Place &p) { return state_row(a, p, a.keep_h, p.t + 1 - p.reverse); }
__device__ __forceinline__ long long c_before(const Step &a, const Place &p) { return state_row(a, p, a.keep_c, p.t + p.reverse); }
__device__ __forceinline__ long long c_after(const Step &a, const Place &p) { return state_row(a, p, a.keep_c, p.t + 1 - p.reverse); }

// The states that the step sees.
__device__ __forceinline__ REAL h_of(const Step &a, const Place &p, int u) { return p.flag & CUT ? 0 : a.h[h_before(a, p) * a.P + u]; }
__device__ __forceinline__ REAL c_of(const Step &a, const Place &p, int u) { return p.flag & CUT ? 0 : a.c[c_before(a, p) * a.H + u]; }
__device__ __forceinline__ REAL k_of(const Step &a, const Place &p, int u) { return a.k ? a.k[kept(a, p) * a.P + u] : a.h[h_before(a, p) * a.P + u]; }

// ---------------------------------------------------------------- masks

__device__ __forceinline__ bool drawn(word64 key, word64 below, int u, unsigned t, int b) {
    uint4 words = philox(key, make_uint4(u / 4, t, b, 0));
    unsigned word = u % 4 == 0 ? words.x : u % 4 == 1 ? words.y : u % 4 == 2 ? words.z : words.w;
    return word < below;
}

// How much of the old state stays. kind: 0 of h, 1 of c.
__device__ __forceinline__ REAL zoneout(const Step &a, const Place &p, int kind, int u) {
    if (!a.draw) return kind ? a.zone_c : a.zone_h;
    return drawn(a.keys[2 * p.d + kind], kind ? a.below_c : a.below_h, u, (unsigned)(a.keys[2 * a.D] + p.t), p.b);
}

// ---------------------------------------------------------------- the ends of a step

// What step t's products see of the state before it, from that state.
__device__ __forceinline__ void put_operand(const Step &a, const Place &p, int u, REAL h) {
    if (p.flag & CUT) h = 0;
    else if (a.drop) h *= a.drop[((long long)p.d * a.B + p.b) * a.P + u];
    if (a.k) a.k[kept(a, p) * a.P + u] = h;
#if CELL == MUT3
    a.inner[kept(a, p) * a.H + u] = tanh_of(h);
#endif
}

// The new state of a unit, and what the next step's products see of it. `before` is the state that the step saw.
__device__ __forceinline__ void put_h(const Step &a, const Place &p, int s, int u, REAL h, REAL before) {
    if (p.flag & ACTIVE && a.zone_h > 0) {
        REAL m = zoneout(a, p, 0, u);
        h = m * before + (1 - m) * h;
    }
    a.h[h_after(a, p) * a.P + u] = h;
    if ((a.k || CELL == MUT3) && s + 1 < a.T) put_operand(a, place_of(a, p.d * a.B + p.b, s + 1), u, h);
}

// The state of a row that does not have the step goes on as it is.
__device__ __forceinline__ void carry_h(const Step &a, const Place &p, int s, int u) {
    REAL h = a.h[h_before(a, p) * a.P + u];
    put_h(a, p, s, u, h, h);
}

// dL/dh of the state before step s + 1, from what that step left; of the last one's at s = -1, dh_n at s = T - 1.
__device__ __forceinline__ REAL crossing_h(const Step &a, const Place &p, int s, int u) {
    long long at = ((long long)p.d * a.B + p.b) * a.P + u;
    REAL dh = a.direct[at];
    if (s + 1 < a.T) {
        Place later = place_of(a, p.d * a.B + p.b, s + 1);
        if (later.flag & CUT) return 0;
        if (later.flag & ACTIVE) {
            REAL through = a.dh[at];
#if CELL == MUT3
            REAL v = a.inner[later.row * a.H + u];  // v = tanh(k)
            through += a.dm[(long long)a.D * a.B * a.H + at] * (1 - v * v);
#endif
            dh += a.drop ? a.drop[at] * through : through;
        }
    }
    return dh;
}
__device__ __forceinline__ REAL crossing_c(const Step &a, const Place &p, int s, int u) {
    REAL dc = a.dc[((long long)p.d * a.B + p.b) * a.H + u];
    if (s + 1 < a.T && place_of(a, p.d * a.B + p.b, s + 1).flag & CUT) return 0;
    return dc;
}

// dL/dh~ of an active row's step. `direct` gets zoneout's part.
__device__ __forceinline__ REAL upstream(const Step &a, const Place &p, int s, int u) {
    REAL dh = crossing_h(a, p, s, u) + a.dy[(((long long)p.t * a.B + p.b) * a.directions + p.d + a.first) * a.P + u], m = 0;
    if (a.dstates) a.dstates[p.row * a.P + u] = dh;
    if (a.zone_h > 0) m = zoneout(a, p, 0, u);
    a.direct[((long long)p.d * a.B + p.b) * a.P + u] = m * dh;  // h = m h' + (1 - m) h~
    return a.zone_h > 0 ? (1 - m) * dh : dh;
}

// A row that does not have the step hands on the gradients that come.
__device__ __forceinline__ void pass_h(const Step &a, const Place &p, int s, int u) {
    a.direct[((long long)p.d * a.B + p.b) * a.P + u] = crossing_h(a, p, s, u);
    if (a.dstates) a.dstates[p.row * a.P + u] = 0;
}
__device__ __forceinline__ void pass_c(const Step &a, const Place &p, int s, int u) {
    a.dc[((long long)p.d * a.B + p.b) * a.H + u] = crossing_c(a, p, s, u);
}

// ---------------------------------------------------------------- the cells, between the sums and the states

// The gates of an LSTM's unit and c~; the gates are kept in the sums' place.
struct Lstm {
    REAL i, f, g, o, c;
};
__device__ __forceinline__ Lstm lstm_gates(const Step &a, const Place &p, int u, bool keep, REAL a_i, REAL a_f, REAL a_g, REAL a_o) {
    const REAL *w = a.w_ch ? a.w_ch + p.d * a.weights + u : nullptr;
    REAL before = c_of(a, p, u), *gates = a.gates + p.row * 4 * a.H + u;
    Lstm x;
    if (w) a_i += w[0] * before, a_f += w[a.H] * before;
    x.i = sigmoid(a_i), x.f = sigmoid(a_f), x.g = tanh_of(a_g);
    x.c = fused(x.f, before, x.i * x.g);
    if (w) a_o += w[2 * a.H] * x.c;
    x.o = sigmoid(a_o);
    if (keep) gates[0] = x.i, gates[a.H] = x.f, gates[2 * a.H] = x.g, gates[3 * a.H] = x.o;
    REAL now = x.c;
    if (a.zone_c > 0) {
        REAL m = zoneout(a, p, 1, u);
        now = m * before + (1 - m) * x.c;
    }
    a.c[c_after(a, p) * a.H + u] = now;
    return x;
}
__device__ __forceinline__ Lstm lstm_kept(const Step &a, const Place &p, int u) {
    const REAL *gates = a.gates + p.row * 4 * a.H + u;
    Lstm x;
    x.i = gates[0], x.f = gates[a.H], x.g = gates[2 * a.H], x.o = gates[3 * a.H];
    x.c = fused(x.f, c_of(a, p, u), x.i * x.g);
    return x;
}

// From dL/dc~ by way of h~ (dc) and dL/d(the sum of o): dL/d(the sums), and dL/dc' into its place.
__device__ __forceinline__ void lstm_sums_back(const Step &a, const Place &p, int s, int u, const Lstm &x, REAL dc, REAL da_o) {
    const REAL *w = a.w_ch ? a.w_ch + p.d * a.weights + u : nullptr;
    REAL before = c_of(a, p, u), upper = crossing_c(a, p, s, u), dc_before = 0, *dp = a.dp + p.row * 4 * a.H + u;
    if (a.dcells) upper += a.dcells[p.row * a.H + u];
    if (a.zone_c > 0) {  // c = m c' + (1 - m) c~
        REAL m = zoneout(a, p, 1, u);
        dc_before = m * upper;
        upper *= 1 - m;
    }
    dc += upper;
    if (w) dc += da_o * w[2 * a.H];
    // c~ = f c' + i g; i, f = sigmoid(sum): s (1 - s), g = tanh(sum): 1 - g^2
    REAL da_i = dc * x.g * x.i * (1 - x.i), da_f = dc * before * x.f * (1 - x.f);
    dc_before += dc * x.f;
    if (w) dc_before += da_i * w[0] + da_f * w[a.H];
    a.dc[((long long)p.d * a.B + p.b) * a.H + u] = dc_before;
    dp[0] = da_i, dp[a.H] = da_f, dp[2 * a.H] = dc * x.i * (1 - x.g * x.g), dp[3 * a.H] = da_o;
}

// A GRU's unit from its sums; q_n is h's part of n's.
__device__ __forceinline__ REAL gru_unit(const Step &a, const Place &p, int u, REAL a_r, REAL a_z, REAL p_n, REAL q_n) {
    REAL r = sigmoid(a_r), z = sigmoid(a_z), n = tanh_of(p_n + r * q_n), *gates = a.gates + p.row * 3 * a.H + u;
    if (a.training) gates[0] = r, gates[a.H] = z, gates[2 * a.H] = n;
    return z * h_of(a, p, u) + (1 - z) * n;
}

// dL/d(h's sum of n). The others' are dp's.
__device__ __forceinline__ REAL gru_back(const Step &a, const Place &p, int u, REAL dh, REAL q_n) {
    const REAL *gates = a.gates + p.row * 3 * a.H + u;
    REAL r = gates[0], z = gates[a.H], n = gates[2 * a.H], *dp = a.dp + p.row * 3 * a.H + u;
    // h~ = z h' + (1 - z) n
    REAL dz = dh * (h_of(a, p, u) - n), da_n = dh * (1 - z) * (1 - n * n);
    a.direct[((long long)p.d * a.B + p.b) * a.P + u] += dh * z;
    // n = tanh(p_n + r q_n)
    dp[0] = da_n * q_n * r * (1 - r), dp[a.H] = dz * z * (1 - z), dp[2 * a.H] = da_n;
    return da_n * r;
}

// One step of the cells whose reset gate stands before a product, in two parts around it; and the derivative.
//
//   r, z = sigmoid(sum), n = tanh(p_n + U_n (r k)); GRU: h~ = z h' + (1 - z) n; MUT: h~ = z n + (1 - z) h'
//   z's product sees v = k, MUT1: nothing, MUT3: tanh(k); MUT1: p_n = tanh(W_n x) + b_n
//
// Cho et al. 2014; Jozefowicz, Zaremba & Sutskever 2015. Bound by bytes: about 14 numbers for each row and unit, as many backwards.
#include "recurrent.cuh"

__device__ __forceinline__ REAL bias(const Step &a, const Place &p, int g, int u) {
    long long at = p.d * a.weights + g * a.H + u;
    return (a.b_ih ? a.b_ih[at] : 0) + (a.b_hh ? a.b_hh[at] : 0);
}

extern "C" __global__ void __launch_bounds__(128) forward_reset(const Step a, int s) {
    int row, u = unit_of(a.H, &row);
    if (u >= a.H) return;
    const Place p = place_of(a, row, s);
    REAL *gates = a.gates + p.row * 3 * a.H + u, rk = 0;
    if (p.flag & ACTIVE) {
        REAL r = sigmoid(gates[0] + a.q[(long long)row * 3 * a.H + u] + bias(a, p, 0, u));
        rk = r * k_of(a, p, u);
        gates[0] = r;
    }
    a.extra[kept(a, p) * a.H + u] = rk;
}

extern "C" __global__ void __launch_bounds__(128) forward(const Step a, int s) {
    int row, u = unit_of(a.H, &row);
    if (u >= a.H) return;
    const Place p = place_of(a, row, s);
    if (!(p.flag & ACTIVE)) {
        carry_h(a, p, s, u);
        return;
    }
    const REAL *q = a.q + (long long)row * 3 * a.H + u;
    REAL *gates = a.gates + p.row * 3 * a.H + u, p_n = gates[2 * a.H], h = h_of(a, p, u);
#if CELL == MUT1
    p_n = tanh_of(p_n);
    if (a.training) a.inner[p.row * a.H + u] = p_n;
    REAL z = sigmoid(gates[a.H] + bias(a, p, 1, u));
#else
    REAL z = sigmoid(gates[a.H] + q[a.H] + bias(a, p, 1, u));
#endif
    REAL n = tanh_of(p_n + q[2 * a.H] + bias(a, p, 2, u));
    gates[a.H] = z, gates[2 * a.H] = n;
    put_h(a, p, s, u, CELL == GRU_BEFORE ? z * h + (1 - z) * n : z * n + (1 - z) * h, h);
}

// dL/d(the sums of z and n), and what goes past the products.
extern "C" __global__ void __launch_bounds__(128) backward(const Step a, int s) {
    int row, u = unit_of(a.H, &row);
    if (u >= a.H) return;
    const Place p = place_of(a, row, s);
    REAL *dp = a.dp + p.row * 3 * a.H + u, *dq = a.dq + p.row * 3 * a.H + u;
    if (!(p.flag & ACTIVE)) {
        for (int g = 0; g < 3; g++) dp[g * a.H] = dq[g * a.H] = 0;
        pass_h(a, p, s, u);
        return;
    }
    const REAL *gates = a.gates + p.row * 3 * a.H + u;
    REAL dh = upstream(a, p, s, u), h = h_of(a, p, u), z = gates[a.H], n = gates[2 * a.H];
    REAL of_n = CELL == GRU_BEFORE ? 1 - z : z, of_h = CELL == GRU_BEFORE ? z : 1 - z;
    REAL dz = CELL == GRU_BEFORE ? dh * (h - n) : dh * (n - h);
    a.direct[(long long)row * a.P + u] += dh * of_h;
    dq[a.H] = dz * z * (1 - z);
    dq[2 * a.H] = dh * of_n * (1 - n * n);
#if CELL == MUT1
    REAL e = a.inner[p.row * a.H + u];
    dp[a.H] = dq[a.H], dp[2 * a.H] = dq[2 * a.H] * (1 - e * e);
#endif
}

// From dL/d(r k): dL/d(the sum of r), and dL/dh by way of r k.
extern "C" __global__ void __launch_bounds__(128) backward_reset(const Step a, int s) {
    int row, u = unit_of(a.H, &row);
    if (u >= a.H) return;
    const Place p = place_of(a, row, s);
    if (!(p.flag & ACTIVE)) return;
    long long at = (long long)row * a.H + u;
    REAL r = a.gates[p.row * 3 * a.H + u], drk = a.dm[at], da_r = drk * k_of(a, p, u) * r * (1 - r), dk = drk * r;
    a.direct[at] += a.drop ? a.drop[at] * dk : dk;
    a.dq[p.row * 3 * a.H + u] = da_r;
#if CELL == MUT1
    a.dp[p.row * 3 * a.H + u] = da_r;
#endif
}

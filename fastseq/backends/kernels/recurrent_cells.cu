// One step of a recurrent layer between its products: gates, cell, masks, lengths and resets in one pass; and the derivative.
//
//   a = W_ih x + W_hh k + b; RNN: h~ = tanh(a) or max(a, 0); LSTM: i, f, o = sigmoid(a), g = tanh(a), c~ = f c' + i g, h~ = o tanh(c~);
//   GRU: r, z = sigmoid(a), n = tanh(p_n + r q_n), h~ = z h' + (1 - z) n; zoneout: h = m h' + (1 - m) h~, k = dropout's mask times h
//
// Elman 1990; Hochreiter & Schmidhuber 1997, Gers 2000 (peepholes); Cho et al. 2014; masks: Gal & Ghahramani 2016, Krueger et al. 2017.
// Bound by bytes: forwards 3 G + 4 numbers for each row and unit with what backward needs, backwards 2 G + 8. One thread for each row and unit.
#include "recurrent.cuh"

extern "C" __global__ void __launch_bounds__(128) forward(const Step a, int s) {
    int row, u = unit_of(a.H, &row);
    if (u >= a.H) return;
    const Place p = place_of(a, row, s);
    if (!(p.flag & ACTIVE)) {
#if CELL == LSTM
        a.c[c_after(a, p) * a.H + u] = a.c[c_before(a, p) * a.H + u];
        if (a.extra) a.extra[kept(a, p) * a.H + u] = 0;  // a factor of the projection's gradient
        else carry_h(a, p, s, u);
#else
        carry_h(a, p, s, u);
#endif
        return;
    }
    REAL x[GATES], q[GATES], *gates = a.gates + p.row * GATES * a.H + u;
    const REAL *products = a.q + (long long)row * GATES * a.H + u;
#pragma unroll
    for (int g = 0; g < GATES; g++) {
        x[g] = gates[g * a.H] + (a.b_ih ? a.b_ih[p.d * a.weights + g * a.H + u] : 0);
        q[g] = products[g * a.H] + (a.b_hh ? a.b_hh[p.d * a.weights + g * a.H + u] : 0);
    }
#if CELL == LSTM
    Lstm l = lstm_gates(a, p, u, a.training, x[0] + q[0], x[1] + q[1], x[2] + q[2], x[3] + q[3]);
    REAL h = l.o * tanh_of(l.c);
    if (a.extra) {
        a.extra[kept(a, p) * a.H + u] = h;
        return;
    }
#elif CELL == GRU
    if (a.training) a.extra[p.row * a.H + u] = q[2];
    REAL h = gru_unit(a, p, u, x[0] + q[0], x[1] + q[1], x[2], q[2]);
#else
    REAL sum = x[0] + q[0], h = CELL == RNN_TANH ? tanh_of(sum) : sum <= 0 ? 0 : sum;
    if (a.training) gates[0] = h;
#endif
    put_h(a, p, s, u, h, h_of(a, p, u));
}

extern "C" __global__ void __launch_bounds__(128) backward(const Step a, int s) {
    int row, u = unit_of(a.H, &row);
    if (u >= a.H) return;
    const Place p = place_of(a, row, s);
    REAL *dp = a.dp + p.row * GATES * a.H + u, *dq = a.dq + p.row * GATES * a.H + u;
    if (!(p.flag & ACTIVE)) {
#pragma unroll
        for (int g = 0; g < GATES; g++) dp[g * a.H] = dq[g * a.H] = 0;
#if CELL == LSTM
        pass_c(a, p, s, u);
        if (a.dht) return;
#endif
        pass_h(a, p, s, u);
        return;
    }
#if CELL == LSTM
    Lstm l = lstm_kept(a, p, u);
    REAL dh = a.dht ? a.dm[(long long)row * a.H + u] : upstream(a, p, s, u), y = tanh_of(l.c);
    lstm_sums_back(a, p, s, u, l, dh * l.o * (1 - y * y), dh * y * l.o * (1 - l.o));  // h~ = o tanh(c~)
#elif CELL == GRU
    dq[2 * a.H] = gru_back(a, p, u, upstream(a, p, s, u), a.extra[p.row * a.H + u]);
    dq[0] = dp[0], dq[a.H] = dp[a.H];
#else
    REAL dh = upstream(a, p, s, u), h = a.gates[p.row * a.H + u];
    dp[0] = CELL == RNN_TANH ? dh * (1 - h * h) : h > 0 ? dh : 0;
#endif
}

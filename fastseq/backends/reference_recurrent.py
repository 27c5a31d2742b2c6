"""The cells of the reference backend's recurrent layers: one step forwards and one step backwards of each.

A step `s` holds x_t, h_{t-1}, c_{t-1} and what the forward half computes; h~ and c~ are its results, before zoneout. A cell without c
hands it on. `w` is a `Weights` with zeros for absent biases and peepholes, dw the sums of their gradients by name. d is the mask of
recurrent dropout, and k = d h what the products see of h. As in `reference.py` vectors are rows, and W x is written x W^T.
"""

from __future__ import annotations

from typing import Any

import numpy as np

Array = np.ndarray

_EPS = 1e-5  # of layer norm


def sigmoid(x: Array) -> Array:
    """1 / (1 + exp(-x))."""
    with np.errstate(over="ignore"):  # exp(-x) = inf gives the right limit 0
        return 1 / (1 + np.exp(-x))


# ---------------------------------------------------------------- layer norm and the two products


def _norm_forward(a: Array, gain: Array | None, bias: Array | None) -> tuple[Array, Any]:
    """gain (a - mean) / std + bias in each row, and what backward needs; a itself without gain."""
    if gain is None or a.size == 0:
        return a, None
    std = np.sqrt(a.var(axis=1, keepdims=True) + _EPS)
    normal = (a - a.mean(axis=1, keepdims=True)) / std
    return gain * normal + bias, (normal, std)


def _norm_backward(dw: Any, dy: Array, saved: Any, gain: Array | None, name: str) -> Array:
    if saved is None:
        return dy
    normal, std = saved
    # y = gain normal + bias
    _add(dw, f"{name}_weight", (dy * normal).sum(axis=0))
    _add(dw, f"{name}_bias", dy.sum(axis=0))
    dn = dy * gain
    # normal = (a - mean(a)) / std(a)
    return (dn - dn.mean(axis=1, keepdims=True) - normal * (dn * normal).mean(axis=1, keepdims=True)) / std


def _products_forward(w: Any, s: Any) -> tuple[Array, Array]:
    """p = LN(x W_ih^T) + b_ih and q = LN(k W_hh^T) + b_hh, for all gates."""
    s.k = s.d * s.h
    p, s.norm_ih = _norm_forward(s.x @ w.w_ih.T, w.ln_ih_weight, w.ln_ih_bias)
    q, s.norm_hh = _norm_forward(s.k @ w.w_hh.T, w.ln_hh_weight, w.ln_hh_bias)
    return p + w.b_ih, q + w.b_hh


def _products_backward(w: Any, dw: Any, s: Any, dp: Array, dq: Array) -> tuple[Array, Array]:
    """dx and dh."""
    # p = LN(x W_ih^T) + b_ih
    _add(dw, "b_ih", dp.sum(axis=0))
    dp = _norm_backward(dw, dp, s.norm_ih, w.ln_ih_weight, "ln_ih")
    _add(dw, "w_ih", dp.T @ s.x)
    # q = LN(k W_hh^T) + b_hh
    _add(dw, "b_hh", dq.sum(axis=0))
    dq = _norm_backward(dw, dq, s.norm_hh, w.ln_hh_weight, "ln_hh")
    _add(dw, "w_hh", dq.T @ s.k)
    # k = d h
    return dp @ w.w_ih, s.d * (dq @ w.w_hh)


def _add(dw: dict[str, Array], name: str, gradient: Array) -> None:
    """The gradient of a weight is the sum of those of its steps."""
    dw[name] = dw[name] + gradient if name in dw else gradient


# ---------------------------------------------------------------- Elman's RNN


def _rnn_tanh_forward(w: Any, s: Any) -> tuple[Array, Array]:
    p, q = _products_forward(w, s)
    s.h_new = np.tanh(p + q)
    return s.h_new, s.c


def _rnn_tanh_backward(w: Any, dw: Any, s: Any, dh: Array, dc: Array) -> tuple[Array, Array, Array]:
    # h~ = tanh(p + q)
    da = dh * (1 - s.h_new**2)
    return *_products_backward(w, dw, s, da, da), dc


def _rnn_relu_forward(w: Any, s: Any) -> tuple[Array, Array]:
    p, q = _products_forward(w, s)
    s.a = p + q
    return np.where(s.a <= 0, s.a.dtype.type(0), s.a), s.c  # a NaN stays


def _rnn_relu_backward(w: Any, dw: Any, s: Any, dh: Array, dc: Array) -> tuple[Array, Array, Array]:
    # h~ = max(a, 0), a = p + q
    da = np.where(s.a > 0, dh, dh.dtype.type(0))
    return *_products_backward(w, dw, s, da, da), dc


# ---------------------------------------------------------------- LSTM


def _lstm_forward(w: Any, s: Any) -> tuple[Array, Array]:
    p, q = _products_forward(w, s)
    a_i, a_f, a_g, a_o = np.split(p + q, 4, axis=1)
    w_i, w_f, w_o = w.w_ch  # the peepholes
    s.i = sigmoid(a_i + w_i * s.c)
    s.f = sigmoid(a_f + w_f * s.c)
    s.g = np.tanh(a_g)
    s.c_new = s.f * s.c + s.i * s.g
    s.o = sigmoid(a_o + w_o * s.c_new)
    normal, s.norm_c = _norm_forward(s.c_new, w.ln_c_weight, w.ln_c_bias)
    s.u = np.tanh(normal)
    s.m = s.o * s.u
    return s.m if w.w_hr is None else s.m @ w.w_hr.T, s.c_new


def _lstm_backward(w: Any, dw: Any, s: Any, dh: Array, dc: Array) -> tuple[Array, Array, Array]:
    w_i, w_f, w_o = w.w_ch
    dm = dh
    if w.w_hr is not None:
        # h~ = m W_hr^T
        _add(dw, "w_hr", dh.T @ s.m)
        dm = dh @ w.w_hr
    # m = o u
    do, du = dm * s.u, dm * s.o
    # u = tanh(LN(c~))
    dc = dc + _norm_backward(dw, du * (1 - s.u**2), s.norm_c, w.ln_c_weight, "ln_c")
    # o = sigmoid(a_o + w_o c~)
    da_o = do * s.o * (1 - s.o)
    dc = dc + da_o * w_o
    # c~ = f c + i g
    df, di, dg = dc * s.c, dc * s.g, dc * s.i
    dc = dc * s.f
    # g = tanh(a_g)
    da_g = dg * (1 - s.g**2)
    # f = sigmoid(a_f + w_f c), i = sigmoid(a_i + w_i c)
    da_f, da_i = df * s.f * (1 - s.f), di * s.i * (1 - s.i)
    dc = dc + da_f * w_f + da_i * w_i
    _add(dw, "w_ch", np.stack([(da_i * s.c).sum(axis=0), (da_f * s.c).sum(axis=0), (da_o * s.c_new).sum(axis=0)]))
    # a = p + q
    da = np.concatenate([da_i, da_f, da_g, da_o], axis=1)
    return *_products_backward(w, dw, s, da, da), dc


# ---------------------------------------------------------------- GRU with the reset after the product


def _gru_forward(w: Any, s: Any) -> tuple[Array, Array]:
    p, q = _products_forward(w, s)
    p_r, p_z, p_n = np.split(p, 3, axis=1)
    q_r, q_z, s.q_n = np.split(q, 3, axis=1)
    s.r = sigmoid(p_r + q_r)
    s.z = sigmoid(p_z + q_z)
    s.n = np.tanh(p_n + s.r * s.q_n)
    return s.z * s.h + (1 - s.z) * s.n, s.c


def _gru_backward(w: Any, dw: Any, s: Any, dh: Array, dc: Array) -> tuple[Array, Array, Array]:
    # h~ = z h + (1 - z) n
    dz, dn, dh = dh * (s.h - s.n), dh * (1 - s.z), dh * s.z
    # n = tanh(p_n + r q_n)
    da_n = dn * (1 - s.n**2)
    dr, dq_n = da_n * s.q_n, da_n * s.r
    # z = sigmoid(p_z + q_z), r = sigmoid(p_r + q_r)
    da_z, da_r = dz * s.z * (1 - s.z), dr * s.r * (1 - s.r)
    dp, dq = np.concatenate([da_r, da_z, da_n], axis=1), np.concatenate([da_r, da_z, dq_n], axis=1)
    dx, dh_products = _products_backward(w, dw, s, dp, dq)
    return dx, dh + dh_products, dc


# ---------------------------------------------------------------- GRU with the reset before the product, and the MUTs
# Their gates differ in v, which z's product sees, and in the sums p of the input.


def _gates_forward(w: Any, s: Any, p: Array) -> None:
    """r, z and n."""
    p_r, p_z, p_n = np.split(p, 3, axis=1)
    u_r, u_z, u_n = np.split(w.w_hh, 3)
    s.r = sigmoid(p_r + s.k @ u_r.T)
    s.z = sigmoid(p_z + s.v @ u_z.T)
    s.n = np.tanh(p_n + (s.r * s.k) @ u_n.T)


def _gates_backward(w: Any, dw: Any, s: Any, dz: Array, dn: Array) -> tuple[Array, Array, Array]:
    """The gradients of p, k and v."""
    u_r, u_z, u_n = np.split(w.w_hh, 3)
    # n = tanh(p_n + (r k) U_n^T)
    da_n = dn * (1 - s.n**2)
    drk = da_n @ u_n
    dr, dk = drk * s.k, drk * s.r
    # z = sigmoid(p_z + v U_z^T)
    da_z = dz * s.z * (1 - s.z)
    dv = da_z @ u_z
    # r = sigmoid(p_r + k U_r^T)
    da_r = dr * s.r * (1 - s.r)
    dk = dk + da_r @ u_r
    _add(dw, "w_hh", np.concatenate([da_r.T @ s.k, da_z.T @ s.v, da_n.T @ (s.r * s.k)]))
    dp = np.concatenate([da_r, da_z, da_n], axis=1)
    for bias in ("b_ih", "b_hh"):
        _add(dw, bias, dp.sum(axis=0))
    return dp, dk, dv


def _gru_before_forward(w: Any, s: Any) -> tuple[Array, Array]:
    s.k = s.v = s.d * s.h
    _gates_forward(w, s, s.x @ w.w_ih.T + w.b_ih + w.b_hh)
    return s.z * s.h + (1 - s.z) * s.n, s.c


def _gru_before_backward(w: Any, dw: Any, s: Any, dh: Array, dc: Array) -> tuple[Array, Array, Array]:
    # h~ = z h + (1 - z) n
    dz, dn, dh = dh * (s.h - s.n), dh * (1 - s.z), dh * s.z
    # p = x W_ih^T + b, v = k, k = d h
    dp, dk, dv = _gates_backward(w, dw, s, dz, dn)
    _add(dw, "w_ih", dp.T @ s.x)
    return dp @ w.w_ih, dh + s.d * (dk + dv), dc


def _mut1_forward(w: Any, s: Any) -> tuple[Array, Array]:
    s.k = s.d * s.h
    s.v = np.zeros_like(s.k)  # z sees x alone
    a_r, a_z, a_n = np.split(s.x @ w.w_ih.T, 3, axis=1)
    s.e = np.tanh(a_n)
    _gates_forward(w, s, np.concatenate([a_r, a_z, s.e], axis=1) + w.b_ih)
    return s.z * s.n + (1 - s.z) * s.h, s.c


def _mut1_backward(w: Any, dw: Any, s: Any, dh: Array, dc: Array) -> tuple[Array, Array, Array]:
    # h~ = z n + (1 - z) h
    dz, dn, dh = dh * (s.n - s.h), dh * s.z, dh * (1 - s.z)
    # p = (a_r, a_z, e) + b, k = d h
    dp, dk, _ = _gates_backward(w, dw, s, dz, dn)
    da_r, da_z, de = np.split(dp, 3, axis=1)
    # e = tanh(a_n), a = x W_ih^T
    da = np.concatenate([da_r, da_z, de * (1 - s.e**2)], axis=1)
    _add(dw, "w_ih", da.T @ s.x)
    return da @ w.w_ih, dh + s.d * dk, dc


def _mut2_forward(w: Any, s: Any) -> tuple[Array, Array]:
    s.k = s.v = s.d * s.h
    _gates_forward(w, s, s.x @ w.w_ih.T + w.b_ih)
    return s.z * s.n + (1 - s.z) * s.h, s.c


def _mut2_backward(w: Any, dw: Any, s: Any, dh: Array, dc: Array) -> tuple[Array, Array, Array]:
    # h~ = z n + (1 - z) h
    dz, dn, dh = dh * (s.n - s.h), dh * s.z, dh * (1 - s.z)
    # p = x W_ih^T + b, v = k, k = d h
    dp, dk, dv = _gates_backward(w, dw, s, dz, dn)
    _add(dw, "w_ih", dp.T @ s.x)
    return dp @ w.w_ih, dh + s.d * (dk + dv), dc


def _mut3_forward(w: Any, s: Any) -> tuple[Array, Array]:
    s.k = s.d * s.h
    s.v = np.tanh(s.k)
    _gates_forward(w, s, s.x @ w.w_ih.T + w.b_ih)
    return s.z * s.n + (1 - s.z) * s.h, s.c


def _mut3_backward(w: Any, dw: Any, s: Any, dh: Array, dc: Array) -> tuple[Array, Array, Array]:
    # h~ = z n + (1 - z) h
    dz, dn, dh = dh * (s.n - s.h), dh * s.z, dh * (1 - s.z)
    # p = x W_ih^T + b, v = tanh(k), k = d h
    dp, dk, dv = _gates_backward(w, dw, s, dz, dn)
    _add(dw, "w_ih", dp.T @ s.x)
    return dp @ w.w_ih, dh + s.d * (dk + dv * (1 - s.v**2)), dc


FORWARD = {
    "rnn_tanh": _rnn_tanh_forward,
    "rnn_relu": _rnn_relu_forward,
    "lstm": _lstm_forward,
    "gru": _gru_forward,
    "gru_before": _gru_before_forward,
    "mut1": _mut1_forward,
    "mut2": _mut2_forward,
    "mut3": _mut3_forward,
}
BACKWARD = {
    "rnn_tanh": _rnn_tanh_backward,
    "rnn_relu": _rnn_relu_backward,
    "lstm": _lstm_backward,
    "gru": _gru_backward,
    "gru_before": _gru_before_backward,
    "mut1": _mut1_backward,
    "mut2": _mut2_backward,
    "mut3": _mut3_backward,
}

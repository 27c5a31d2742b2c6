"""The recurrent family once more, from its equations, one row and step at a time; PyTorch differentiates it."""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import pytest

from fastseq.backends import reference
from fastseq.backends.recurrent import Noise, Weights, gates_of

torch = pytest.importorskip("torch")
s, tanh = torch.sigmoid, torch.tanh


def mask(noise, kind, direction, p, t, b, H):
    """Where the word of row b, step t and each unit is below p 2^32."""
    words = reference._philox(noise.seed, np.array([[kind, noise.layer + direction, noise.call, 0x7265636E]], np.uint64))[0]
    counters = [(u, t, b, 0) for u in range((H + 3) // 4)]
    found = reference._philox(int(words[0]) | int(words[1]) << 32, np.array(counters, np.uint64).reshape(-1, 4))
    return torch.tensor(found.reshape(-1)[:H] < np.ceil(p * 2.0**32))


def normalised(a, weight, bias):
    if weight is None:
        return a
    return (a - a.mean()) / torch.sqrt(a.var(correction=0) + 1e-5) * weight + bias


def flattened(nested):
    """The tensors in lists of lists."""
    for item in nested:
        yield from (flattened(item) if isinstance(item, list) else (item,))


def cell_step(cell, w, x, h, c, d):
    """h~ and c~ of one row; d multiplies h on its way into the product."""
    H = w.w_hh.shape[0] // gates_of(cell)
    zero = torch.zeros(w.w_hh.shape[0], dtype=x.dtype)
    b_ih, b_hh = (zero if b is None else b for b in (w.b_ih, w.b_hh))
    if cell in ("gru_before", "mut1", "mut2", "mut3"):
        (W_r, W_z, W_n), (U_r, U_z, U_n) = w.w_ih.split(H), w.w_hh.split(H)
        b_r, b_z, b_n = (b_ih + b_hh).split(H)
        r = s(W_r @ x + U_r @ (d * h) + b_r)
        if cell == "gru_before":
            z = s(W_z @ x + U_z @ (d * h) + b_z)
            return z * h + (1 - z) * tanh(W_n @ x + U_n @ (r * (d * h)) + b_n), None
        seen = {"mut1": 0 * h, "mut2": d * h, "mut3": tanh(d * h)}[cell]
        z = s(W_z @ x + U_z @ seen + b_z)
        input_part = tanh(W_n @ x) if cell == "mut1" else W_n @ x
        n = tanh(U_n @ (r * (d * h)) + input_part + b_n)
        return n * z + h * (1 - z), None
    a_x = normalised(w.w_ih @ x, w.ln_ih_weight, w.ln_ih_bias) + b_ih
    a_h = normalised(w.w_hh @ (d * h), w.ln_hh_weight, w.ln_hh_bias) + b_hh
    if cell == "rnn_tanh":
        return tanh(a_x + a_h), None
    if cell == "rnn_relu":
        return torch.relu(a_x + a_h), None
    if cell == "gru":
        (x_r, x_z, x_n), (h_r, h_z, h_n) = a_x.split(H), a_h.split(H)
        r, z = s(x_r + h_r), s(x_z + h_z)
        return z * h + (1 - z) * tanh(x_n + r * h_n), None
    p_i, p_f, p_o = torch.zeros((3, H), dtype=x.dtype) if w.w_ch is None else w.w_ch
    i, f, g, o = (a_x + a_h).split(H)
    c_new = s(f + p_f * c) * c + s(i + p_i * c) * tanh(g)
    h_new = s(o + p_o * c_new) * tanh(normalised(c_new, w.ln_c_weight, w.ln_c_bias))
    return (h_new if w.w_hr is None else w.w_hr @ h_new), c_new


def recurrent_pack(cell, directions, *, packed=None):
    return SimpleNamespace(cell=cell, directions=directions)


def recurrent_forward(x, h_0, c_0, packed, *, lengths=None, reset=None, noise=None, training=False, states=False):
    noise = noise or Noise()
    T, B, _ = x.shape
    cell, D = packed.cell, len(packed.directions)
    rows, P = packed.directions[0].w_hh.shape
    H = rows // gates_of(cell)

    def leaf(a):
        return torch.tensor(np.array(a), dtype=torch.float64, requires_grad=True)

    xs = leaf(x)
    h0, c0 = (leaf(np.zeros((D, B, n)) if a is None else a) for a, n in ((h_0, P), (c_0, H)))
    weights = tuple(Weights(*(None if a is None else leaf(a) for a in w)) for w in packed.directions)
    none = torch.zeros(P, dtype=torch.float64)
    hidden = [[[none] * B for _ in range(T)] for _ in range(D)]
    cells = [[[none.new_zeros(H)] * B for _ in range(T)] for _ in range(D)]
    h_n, c_n = ([[None] * B for _ in range(D)] for _ in range(2))
    for direction, w in enumerate(weights):
        for b in range(B):
            h, c = h0[direction, b], c0[direction, b]
            length = T if lengths is None else int(lengths[b])
            d = torch.ones(P, dtype=torch.float64)
            if noise.training and noise.recurrent_dropout:
                p = noise.recurrent_dropout
                d = (~mask(noise, 0, direction, p, 0, b, P)).double() / (1 - p)
            for t in range(length)[:: -1 if direction else 1]:
                boundary = t + direction  # the reverse direction comes from t + 1
                if reset is not None and boundary < length and reset[boundary, b]:
                    h, c = torch.zeros_like(h), torch.zeros_like(c)
                new_h, new_c = cell_step(cell, w, xs[t, b], h, c, d)
                m_h, m_c = noise.zoneout_h, noise.zoneout_c
                if noise.training:
                    m_h, m_c = (mask(noise, k, direction, m, t, b, n).double() for k, m, n in ((1, m_h, P), (2, m_c, H)))
                h = m_h * h + (1 - m_h) * new_h
                h.retain_grad()
                c = c if new_c is None else m_c * c + (1 - m_c) * new_c
                hidden[direction][t][b], cells[direction][t][b] = h, c
            h_n[direction][b], c_n[direction][b] = h, c

    def stacked(nested, *shape):
        flat = list(flattened(nested))
        return torch.stack(flat).reshape(shape) if flat else torch.zeros(shape, dtype=torch.float64)

    all_h, all_c = stacked(hidden, D, T, B, P), stacked(cells, D, T, B, H)
    y = torch.cat(list(all_h), -1)
    lstm = cell == "lstm"
    outputs = (y, stacked(h_n, D, B, P), stacked(c_n, D, B, H) if lstm else None, all_c if lstm and states else None)
    cache = SimpleNamespace(outputs=outputs, inputs=(xs, h0, c0), weights=weights, hidden=hidden, lstm=lstm)
    return (*(None if o is None else o.detach().numpy() for o in outputs), cache)


def recurrent_backward(cache, dy, dh_n, dc_n, *, dcells=None, need_dstates=True):
    pairs = zip(cache.outputs, (dy, dh_n, dc_n, dcells), strict=True)
    terms = [(o * torch.tensor(np.array(g))).sum() for o, g in pairs if o is not None and g is not None]
    terms = [t for t in terms if t.requires_grad]
    if terms:
        sum(terms).backward()

    def gradient(leaf):
        return (torch.zeros_like(leaf) if leaf.grad is None else leaf.grad).numpy()

    dx, dh_0, dc_0 = (gradient(leaf) for leaf in cache.inputs)
    T, B, P = dx.shape[0], dx.shape[1], dh_0.shape[2]
    dstates = np.array([[[gradient(h) for h in row] for row in steps] for steps in cache.hidden])
    weights = tuple(Weights(*(None if a is None else gradient(a) for a in w)) for w in cache.weights)
    dstates = dstates.reshape(len(weights), T, B, P)
    return {"dx": dx, "dh_0": dh_0, "dc_0": dc_0 if cache.lstm else None, "weights": weights, "dstates": dstates}

"""The attention decoder of the reference backend, forwards and backwards (Bahdanau et al. 2015; equations in csrc/fastseq.h).

As in `reference.py` vectors are rows, and above the lines that differentiate stands the forward line. A step works on the rows of the
batch that are not past their ends; what lies past the end of a row's memory is replaced by zeros first, so that it is never seen.
"""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import numpy as np

from fastseq.backends.attention_decoder import DecoderWeights
from fastseq.backends.recurrent import Weights
from fastseq.backends.reference_recurrent import BACKWARD, FORWARD

Array = np.ndarray


def attention_decoder_pack(cell: str, weights: DecoderWeights, *, packed: Any = None) -> Any:
    """A decoder as the other functions take it; `packed` itself, from an earlier call, where no number has changed."""
    H = weights.w_hh.shape[1]
    of_cell = Weights(*weights[:4], w_ch=np.zeros((3, H), weights.w_hh.dtype))
    return SimpleNamespace(cell=cell, weights=weights, of_cell=of_cell)


def attention_decoder_forward(
    x: Array,
    keys: Array | None,
    memory: Array,
    h_0: Array | None,
    c_0: Array | None,
    packed: Any,
    *,
    scale: float = 1.0,
    lengths: Array | None = None,
    memory_lengths: Array | None = None,
    training: bool = False,
) -> tuple[Array, Array, Array | None, Array, Any]:
    """Outputs (T, B, H), the last h and c (B, H), attention weights (T, B, S), and, in training, what backward needs.

    x (T, B, I), keys (B, S, A) and memory (B, S, M); without u the memory itself is the keys, which are None. c for an LSTM only.
    """
    (T, B, _), S, w = x.shape, memory.shape[1], packed.weights
    H, lstm = w.w_hh.shape[1], packed.cell == "lstm"
    seen = np.arange(S) < (np.full(B, S) if memory_lengths is None else memory_lengths)[:, None]
    run = SimpleNamespace(packed=packed, scale=scale, seen=seen, lengths=lengths, steps=[], x_shape=x.shape)
    run.memory = np.where(seen[:, :, None], memory, memory.dtype.type(0))
    run.keys = run.memory if keys is None else np.where(seen[:, :, None], keys, keys.dtype.type(0))
    zeros = np.zeros((B, H), x.dtype)
    h, c = zeros.copy() if h_0 is None else h_0.copy(), zeros.copy() if c_0 is None else c_0.copy()
    outputs, weights = np.zeros((T, B, H), x.dtype), np.zeros((T, B, S), x.dtype)
    for t in range(T):
        s = SimpleNamespace(rows=np.arange(B) if lengths is None else np.flatnonzero(lengths > t))
        s.h, s.c, s.d = h[s.rows], c[s.rows], 1
        _attend(run, s, w)
        s.x = np.concatenate([x[t, s.rows], s.context], axis=1)
        s.h_new, s.c_after = FORWARD[packed.cell](packed.of_cell, s)
        s.both = np.concatenate([s.h_new, s.context], axis=1)
        s.output = np.tanh(s.both @ w.w_out.T + w.b_out)
        h[s.rows], c[s.rows], outputs[t, s.rows], weights[t, s.rows] = s.h_new, s.c_after, s.output, s.weights
        run.steps.append(s)
    return outputs, h, c if lstm else None, weights, run if training else None


def _attend(run: Any, s: Any, w: DecoderWeights) -> None:
    """The weights and the context of the rows of a step."""
    keys, memory, seen = run.keys[s.rows], run.memory[s.rows], run.seen[s.rows]
    s.query = s.h if w.w_query is None else s.h @ w.w_query.T
    if w.u is None:
        scores = run.scale * np.einsum("ba,bsa->bs", s.query, keys)
    else:
        s.tanh = np.tanh(s.query[:, None] + keys)
        scores = s.tanh @ w.u
    scores = np.where(seen, scores, -np.inf)
    shift = scores.max(axis=1, keepdims=True, initial=-np.inf)
    e = np.exp(scores - np.where(shift == -np.inf, 0, shift)).astype(scores.dtype)
    total = e.sum(axis=1, keepdims=True)
    s.weights = (e / np.where(total == 0, 1, total)).astype(keys.dtype)
    s.context = np.einsum("bs,bsm->bm", s.weights, memory)


def attention_decoder_backward(
    cache: Any, doutputs: Array | None, dh_n: Array | None, dc_n: Array | None, dweights: Array | None
) -> dict[str, Any]:
    """Backpropagation through time: dx, dkeys (None without keys), dmemory, dh_0, dc_0 and weights (`DecoderWeights`)."""
    w, cell = cache.packed.weights, cache.packed.cell
    (_, B, I), H, dtype = cache.x_shape, w.w_hh.shape[1], w.w_hh.dtype
    dx, dmemory = np.zeros(cache.x_shape, dtype), np.zeros_like(cache.memory)
    dkeys = dmemory if w.u is None else np.zeros_like(cache.keys)
    dh, dc = (np.zeros((B, H), dtype) if d is None else d.copy() for d in (dh_n, dc_n))
    dw = {name: np.zeros_like(a) for name, a in w._asdict().items() if a is not None}
    of_cell: dict[str, Array] = {}
    for t, s in reversed(list(enumerate(cache.steps))):
        rows = s.rows
        do = np.zeros_like(s.output) if doutputs is None else doutputs[t, rows]
        # o = tanh(both W_out^T + b_out), both = [h, context]
        dsum = do * (1 - s.output**2)
        dw["w_out"] += dsum.T @ s.both
        dw["b_out"] += dsum.sum(axis=0)
        dboth = dsum @ w.w_out
        # h, c = cell([x, context], h, c)
        dx_both, dh_before, dc_before = BACKWARD[cell](cache.packed.of_cell, of_cell, s, dh[rows] + dboth[:, :H], dc[rows])
        dx[t, rows] = dx_both[:, :I]
        dcontext = dboth[:, H:] + dx_both[:, I:]
        dh_before = dh_before + _attend_backward(cache, s, w, dw, dkeys, dmemory, dcontext, None if dweights is None else dweights[t, rows])
        dh[rows], dc[rows] = dh_before, dc_before
    dw |= {name: a for name, a in of_cell.items() if name in dw}
    gradients = DecoderWeights(**{name: dw.get(name) for name in DecoderWeights._fields})
    found = {"dx": dx, "dkeys": None if w.u is None else dkeys, "dmemory": dmemory, "dh_0": dh}
    return found | {"dc_0": dc if cell == "lstm" else None, "weights": gradients}


def _attend_backward(
    run: Any, s: Any, w: DecoderWeights, dw: dict[str, Array], dkeys: Array, dmemory: Array, dcontext: Array, dweights: Array | None
) -> Array:
    """dh by way of the query; the others are added to."""
    # context = weights memory
    da = np.einsum("bm,bsm->bs", dcontext, run.memory[s.rows])
    dmemory[s.rows] += np.einsum("bs,bm->bsm", s.weights, dcontext)
    if dweights is not None:
        da = da + np.where(run.seen[s.rows], dweights, 0)
    # weights = softmax(scores)
    dscores = s.weights * (da - (s.weights * da).sum(axis=1, keepdims=True))
    if w.u is None:
        # scores = scale query . key
        dscores = run.scale * dscores
        dquery = np.einsum("bs,bsa->ba", dscores, run.keys[s.rows])
        dkeys[s.rows] += np.einsum("bs,ba->bsa", dscores, s.query)
    else:
        # scores = u . tanh(query + key)
        dw["u"] += np.einsum("bs,bsa->a", dscores, s.tanh)
        dsum = dscores[:, :, None] * (w.u * (1 - s.tanh**2))
        dquery = dsum.sum(axis=1)
        dkeys[s.rows] += dsum
    if w.w_query is None:
        return dquery
    # query = h W_query^T
    dw["w_query"] += dquery.T @ s.h
    return dquery @ w.w_query

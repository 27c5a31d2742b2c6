"""The reference backend's attention: softmax(scale q k^T + mask) v, every score in one matrix (part of `reference.py`).

A hidden score is -inf, whatever the key holds; a row of nothing else has weights, output and gradients of zero.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from fastseq.backends.attention import AttentionOptions
from fastseq.backends.reference_philox import philox

Array = np.ndarray


def _hidden(q: Array, k: Array, mask: Array | None, key_lengths: Array | None, options: AttentionOptions) -> Array:
    """(B, heads, Tq, Tk): True where the query does not see the key."""
    (B, heads, Tq, _), Tk = q.shape, k.shape[2]
    position, key = np.arange(Tq)[:, None] + options.offset, np.arange(Tk)
    hidden = np.zeros((B, heads, Tq, Tk), bool)
    if options.causal:
        hidden |= key > position
    if options.window:
        hidden |= np.abs(position - key) >= options.window
    if key_lengths is not None:
        hidden |= key >= key_lengths[:, None, None, None]
    if mask is not None:
        hidden |= ~mask if mask.dtype == bool else mask == -np.inf
    return hidden


def _seen(x: Array, hidden: Array, heads: int) -> Array:
    """Keys or values for each of the `heads`: zeros in place of what no query sees, which then cannot spread a NaN."""
    x = np.repeat(x, heads // x.shape[1], axis=1)
    return np.where(np.all(hidden, axis=2, keepdims=True).swapaxes(-1, -2), x.dtype.type(0), x)


def _scores(q: Array, k: Array, hidden: Array, mask: Array | None, options: AttentionOptions) -> Array:
    scores = q.dtype.type(options.scale) * (q @ k.swapaxes(-1, -2))
    if mask is not None and mask.dtype != bool:
        scores = scores + mask
    return np.where(hidden, -np.inf, scores).astype(q.dtype)


def _dropout_mask(shape: tuple[int, ...], options: AttentionOptions) -> Array | float:
    """0 or 1 / (1 - p) for each weight: word j % 4 of Philox at counter (j / 4, i, b heads + head, 0)."""
    p = options.dropout
    if p == 0:
        return 1.0
    B, heads, Tq, Tk = shape
    w0, w1 = philox(options.seed, np.array([[0, options.layer, options.call, 0x61747465]], np.uint64))[0, :2]
    row, i, block = np.indices((B * heads, Tq, (Tk + 3) // 4)).reshape(3, -1)
    words = philox(int(w0) | int(w1) << 32, np.stack([block, i, row, np.zeros_like(i)], axis=1))
    kept = words.reshape(B, heads, Tq, (Tk + 3) // 4 * 4)[..., :Tk] >= math.ceil(p * 2.0**32)
    return kept / (1 - p) if p < 1 else np.zeros(shape)


def attention_forward(
    q: Array,
    k: Array,
    v: Array,
    *,
    mask: Array | None = None,
    key_lengths: Array | None = None,
    options: AttentionOptions,
    training: bool = False,
    weights: bool = False,
) -> tuple[Array, Array | None, Array | None]:
    """y (B, heads, Tq, Dv); in training log(sum(exp(scores))) (B, heads, Tq); where asked for, the weights (B, heads, Tq, Tk).

    q (B, heads, Tq, D); k (B, kv_heads, Tk, D) and v (B, kv_heads, Tk, Dv), each of whose heads serves heads / kv_heads of q;
    mask: bool, True = sees, or a number for each score; (B or 1, heads or 1, Tq or 1, Tk or 1). key_lengths: (B,) int64.
    """
    with np.errstate(all="ignore"):
        hidden = _hidden(q, k, mask, key_lengths, options)
        scores = _scores(q, _seen(k, hidden, q.shape[1]), hidden, mask, options)
        largest = scores.max(axis=-1, keepdims=True, initial=-np.inf)
        e = np.exp(scores - np.where(largest == -np.inf, 0, largest))
        total = e.sum(axis=-1, keepdims=True)
        p = np.where(hidden, 0, e / np.where(total == 0, 1, total)) * _dropout_mask(scores.shape, options)
        p = p.astype(q.dtype)
        y = p @ _seen(v, hidden, q.shape[1])
        lse = np.log(total) + np.where(total == 0, 0, largest)
    return y, lse[..., 0].astype(q.dtype) if training else None, p if weights else None


def attention_backward(
    q: Array,
    k: Array,
    v: Array,
    y: Array,
    lse: Array,
    dy: Array,
    *,
    mask: Array | None = None,
    key_lengths: Array | None = None,
    options: AttentionOptions,
    weights: Array | None = None,
    dweights: Array | None = None,
    need_dscores: bool = False,
    out: Any = (None, None, None),
) -> tuple[Array, Array, Array, Array | None]:
    """dq, dk, dv (written to the arrays in `out`, where given) and dL/d(scores + mask), if asked for; dweights comes with weights."""
    heads, groups = q.shape[1], (k.shape[0], k.shape[1], -1, k.shape[2])
    with np.errstate(all="ignore"):
        hidden = _hidden(q, k, mask, key_lengths, options)
        keys, values = _seen(k, hidden, heads), _seen(v, hidden, heads)
        sees = ~np.all(hidden, axis=3, keepdims=True)  # what a query that sees nothing holds does not count either
        q, dy = np.where(sees, q, q.dtype.type(0)), np.where(sees, dy, q.dtype.type(0))
        scores = _scores(q, keys, hidden, mask, options)
        p = np.exp(scores - np.where(lse == -np.inf, 0, lse)[..., None])
        m = _dropout_mask(scores.shape, options)
        # y = (p m) v
        dv = (p * m).swapaxes(-1, -2) @ dy
        dp = (dy @ values.swapaxes(-1, -2) + (0 if dweights is None else dweights)) * m
        # p = softmax(s)
        ds = np.where(hidden, 0, p * (dp - (p * dp).sum(axis=-1, keepdims=True, where=~hidden))).astype(q.dtype)
        # s = scale q k^T + mask
        scale = q.dtype.type(options.scale)
        dq, dk = scale * (ds @ keys), scale * (ds.swapaxes(-1, -2) @ q)
    found = [dq] + [g.reshape(*groups, g.shape[-1]).sum(axis=2) if g.size else np.zeros_like(x) for g, x in ((dk, k), (dv, v))]
    for given, gradient in zip(out, found, strict=True):
        if given is not None:
            given[...] = gradient
    return *(g.astype(q.dtype) for g in found), ds if need_dscores else None

"""The reference backend's additive attention: every tanh in one (B, Tq, Tk, D) array (part of `reference.py`)."""

from __future__ import annotations

import numpy as np

Array = np.ndarray


def _hidden(q: Array, k: Array, mask: Array | None, key_lengths: Array | None) -> Array:
    """(B, Tq, Tk): True where the query does not see the key."""
    hidden = np.zeros((len(q), q.shape[1], k.shape[1]), bool)
    if key_lengths is not None:
        hidden |= np.arange(k.shape[1]) >= key_lengths[:, None, None]
    if mask is not None:
        hidden |= ~mask if mask.dtype == bool else mask == -np.inf
    return hidden


def additive_attention_forward(
    q: Array, k: Array, v: Array, u: Array, *, mask: Array | None = None, key_lengths: Array | None = None, need_weights: bool = False
) -> tuple[Array, Array | None]:
    """y (B, Tq, Dv) = sum_j w_ij v_j and, where asked for, the weights (B, Tq, Tk) = softmax over j of u . tanh(q_i + k_j) + mask_ij.

    mask: bool, True = sees, or a number for each score; (B or 1, Tq or 1, Tk or 1). key_lengths: (B,) int64.
    """
    hidden = _hidden(q, k, mask, key_lengths)
    with np.errstate(all="ignore"):
        scores = np.tanh(q[:, :, None] + k[:, None]) @ u
        if mask is not None and mask.dtype != bool:
            scores = scores + mask
        scores = np.where(hidden, -np.inf, scores).astype(q.dtype)
        largest = scores.max(axis=-1, keepdims=True, initial=-np.inf)
        e = np.exp(scores - np.where(largest == -np.inf, 0, largest))
        total = e.sum(axis=-1, keepdims=True)
        w = np.where(hidden, 0, e / np.where(total == 0, 1, total)).astype(q.dtype)
        y = np.where(hidden[..., None], 0, w[..., None] * v[:, None]).sum(axis=2).astype(q.dtype)
    return y, w if need_weights else None


def additive_attention_backward(
    q: Array, k: Array, v: Array, u: Array, weights: Array, dy: Array | None, *, key_lengths: Array | None = None, dweights: Array | None = None
) -> tuple[Array, Array, Array, Array, Array]:
    """dq, dk, dv, du, and dL/d(scores + mask) (B, Tq, Tk); dy or dweights may be None for zeros. A weight of 0 passes nothing on."""
    del key_lengths  # the weights beyond are 0
    w, none = weights, weights == 0
    dy = np.zeros((*w.shape[:2], v.shape[2]), q.dtype) if dy is None else dy
    with np.errstate(all="ignore"):
        # y = w v
        dv = w.swapaxes(-1, -2) @ dy
        dw = dy @ v.swapaxes(-1, -2) + (0 if dweights is None else dweights)
        # w = softmax(s)
        ds = np.where(none, 0, w * (dw - np.where(none, 0, w * dw).sum(axis=-1, keepdims=True))).astype(q.dtype)
        # s = u . tanh(q + k)
        t = np.tanh(q[:, :, None] + k[:, None])
        through = (ds != 0)[..., None]
        dx = np.where(through, ds[..., None] * (u * (1 - t * t)), 0)
        du = np.where(through, ds[..., None] * t, 0).sum(axis=(0, 1, 2))
    return dx.sum(axis=2).astype(q.dtype), dx.sum(axis=1).astype(q.dtype), dv, du.astype(q.dtype), ds

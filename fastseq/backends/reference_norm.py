"""Layer norm and RMS norm over the last axis, written to be read: the part of `reference.py` that has them."""

from __future__ import annotations

import numpy as np

Array = np.ndarray


def layer_norm_forward(
    x: Array, residual: Array | None, weight: Array | None, bias: Array | None, *, eps: float, centred: bool = True
) -> tuple[Array, Array, Array | None, Array]:
    """Y, s = x + residual (x itself without one), and each row's mean (M,) and 1 / std (M,) for backward.

    y = weight (s - mean) rstd + bias, rstd = 1 / sqrt(mean((s - mean)^2) + eps) (Ba et al. 2016); not `centred`, the mean counts
    as 0 and is None (RMS norm, Zhang & Sennrich 2019).
    """
    s = x if residual is None else x + residual
    with np.errstate(all="ignore"):
        mean = s.mean(axis=-1) if centred and s.shape[-1] else np.zeros(s.shape[:-1], s.dtype)
        hat = s - mean[..., None]
        variance = (hat * hat).mean(axis=-1) if s.shape[-1] else mean
        rstd = (1 / np.sqrt(variance + eps)).astype(s.dtype)
        y = hat * rstd[..., None]
    y = y if weight is None else y * weight
    y = y if bias is None else y + bias
    return y, s, mean.reshape(-1) if centred else None, rstd.reshape(-1)


def layer_norm_backward(
    dy: Array,
    ds: Array | None,
    s: Array,
    mean: Array | None,
    rstd: Array,
    weight: Array | None,
    *,
    need_dx: bool = True,
    need_dweight: bool = True,
    need_dbias: bool = True,
) -> tuple[Array | None, Array | None, Array | None]:
    """The gradient of s (of x and of the residual alike), dweight and dbias, None where they are not asked for; ds: s's own, or None."""
    leading = s.shape[:-1]
    rstd = rstd.reshape(*leading, 1)
    hat = (s if mean is None else s - mean.reshape(*leading, 1)) * rstd
    rows = tuple(range(len(leading)))
    dx = None
    if need_dx:
        # y = weight xhat + bias
        d = dy if weight is None else dy * weight
        # xhat = (s - mean) rstd, where mean and rstd depend on all of s
        dx = d - hat * _mean(d * hat)
        dx = rstd * (dx if mean is None else dx - _mean(d))
        dx = dx if ds is None else dx + ds
    return dx, (dy * hat).sum(axis=rows) if need_dweight else None, dy.sum(axis=rows) if need_dbias else None


def _mean(x: Array) -> Array:
    return x.mean(axis=-1, keepdims=True) if x.shape[-1] else x[..., :0].sum(axis=-1, keepdims=True)
